"""The measures of the checkerboard on signals whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import build_upsample_layer
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL, PixelDCL
from pixeldcl_plugin.evaluation import checkerboard
from pixeldcl_plugin.evaluation.checkerboard import (
    azimuthal_profile,
    isolated_pixel_rate,
    isolated_pixels,
    nyquist_energy,
    nyquist_ratios,
    phase_spread,
    phase_variance_share,
    power_spectrum,
    radial_frequencies,
)
from pixeldcl_plugin.evaluation.linear_response import bare_layer, dc_response, equivalent_kernels
from pixeldcl_plugin.layers.functional import interleave
from pixeldcl_plugin.layers.pixel_shuffle import PixelShuffleICNR


def wave(vertical: int, horizontal: int, shape: tuple[int, int] = (32, 48)) -> Tensor:
    """The wave of frequency (pi, 0), (0, pi) or (pi, pi), shape (1, 1, H, W)."""
    rows, columns = ((-1.0) ** torch.arange(n) for n in shape)
    return (rows[:, None] ** vertical * columns**horizontal)[None, None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


WAVES = [(1, 0), (0, 1), (1, 1)]
MEASURES = [power_spectrum, nyquist_ratios, nyquist_energy, phase_variance_share, azimuthal_profile]


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("shape", [(32, 48), (31, 47), (8, 8)])
def test_pure_wave_stands_out_at_its_frequency_alone(index: int, shape: tuple[int, int]) -> None:
    maps = 3 * wave(*WAVES[index], shape) + 5
    ratios = nyquist_ratios(maps)[0]
    assert ratios[index] > 1e9
    assert torch.cat([ratios[:index], ratios[index + 1 :]]).max() < 1e-3
    assert phase_variance_share(maps).item() == pytest.approx(1)


def test_wave_in_noise_has_the_expected_ratio() -> None:
    """A Hann window concentrates a wave of amplitude A into A^2 H W 4/9 of its bin, noise into 1."""
    amplitude, h, w = 0.5, 64, 64
    maps = noise(200, 1, h, w) + amplitude * wave(1, 1, (h, w))
    expected = 1 + amplitude**2 * h * w * (0.5**2 / 0.375) ** 2
    assert nyquist_ratios(maps).mean(0)[2].item() == pytest.approx(expected, rel=0.05)
    between, total = amplitude**2 + 3 / (h * w), amplitude**2 + 1
    assert phase_variance_share(maps).mean().item() == pytest.approx(between / total, rel=0.02)


@pytest.mark.parametrize("shape", [(8, 8), (33, 47)])
def test_white_noise_is_flat(shape: tuple[int, int]) -> None:
    """The power of a bin at pi scatters by sqrt(2): a ratio's mean over 300 x 8 maps by 0.03."""
    maps = noise(300, 8, *shape)
    assert nyquist_ratios(maps).mean(0).tolist() == pytest.approx([1] * 3, abs=0.12)
    assert nyquist_energy(maps).shape == (300,)
    profile = azimuthal_profile(maps).mean(0)[2:]  # the first two rings touch (0, 0)
    assert profile.tolist() == pytest.approx([1] * len(profile), abs=0.1)
    pixels = (shape[0] // 2 * 2) * (shape[1] // 2 * 2)
    assert phase_variance_share(maps).mean().item() == pytest.approx(3 / (pixels - 1), rel=0.06)
    power = power_spectrum(maps).mean((0, 1))
    assert power[2:-1, 2:-1].mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 3.7, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_has_nothing(value: float, dtype: torch.dtype) -> None:
    maps = torch.full((2, 3, 17, 24), value, dtype=dtype)
    assert nyquist_energy(maps).abs().max() < 1e-6
    assert phase_variance_share(maps).abs().max() < 1e-6
    assert azimuthal_profile(maps).abs().max() < 1e-6


def test_rounding_errors_do_not_count() -> None:
    """A constant with the noise of float32 in its last digit."""
    maps = torch.full((50, 1, 32, 32), 7.3) * (1 + (torch.rand(50, 1, 32, 32) - 0.5) * 2**-23)
    assert maps.unique().numel() > 1
    assert nyquist_energy(maps).mean() < 0.5
    assert phase_variance_share(maps).max() < 0.01


def test_bilinear_map_has_no_checkerboard() -> None:
    low = noise(4, 8, 32, 32)
    smooth = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
    assert nyquist_energy(smooth).max() < 1e-3
    assert phase_variance_share(smooth).max() < 1e-3
    profile = azimuthal_profile(smooth).mean(0)
    assert profile[-1] < 1e-3 < 1 < profile[2]


def test_phases_with_different_gains() -> None:
    """What the layers are accused of: phases of one map, each with its own factor on a constant."""
    gains = torch.tensor([1.0, 1.2, 0.9, 0.9])
    maps = interleave(*(gain * torch.ones(1, 1, 16, 16) for gain in gains))
    assert phase_variance_share(maps).item() == pytest.approx(1)
    noisy = maps + 0.1 * noise(1, 1, 32, 32)
    variance = gains.var(correction=0).item()
    assert phase_variance_share(noisy).item() == pytest.approx(variance / (variance + 0.01), abs=0.05)
    assert nyquist_energy(noisy).item() > 50


def test_scale_and_offset_do_not_matter() -> None:
    maps = noise(2, 3, 24, 24) + 0.3 * wave(1, 1, (24, 24))
    for measure in (nyquist_ratios, phase_variance_share, azimuthal_profile):
        assert torch.allclose(measure(maps), measure(250 * maps - 40), rtol=1e-4)


def test_channels_count_by_their_energy() -> None:
    flat, checker = noise(1, 1, 32, 32), wave(1, 1, (32, 32))
    assert nyquist_energy(torch.cat([1e-3 * flat, checker], 1)) > 1e4
    assert nyquist_energy(torch.cat([flat, 1e-3 * checker], 1)) < 3
    dead = torch.cat([flat, torch.zeros_like(flat)], 1)
    assert torch.allclose(nyquist_energy(dead), nyquist_energy(flat))
    batch = torch.cat([flat, checker])
    assert torch.allclose(nyquist_energy(batch)[0], nyquist_energy(flat)[0])


def test_profile_finds_the_radius_of_a_wave() -> None:
    frequency = 0.2  # cycles a pixel along the rows
    maps = torch.cos(2 * math.pi * frequency * torch.arange(100)).expand(1, 1, 100, 100)
    bins = 25
    profile = azimuthal_profile(maps, bins)[0]
    centres = radial_frequencies(bins)
    assert abs(centres[profile.argmax()] - frequency) <= math.sqrt(0.5) / bins / 2
    assert centres[0] > 0
    assert centres[-1] < math.sqrt(0.5)
    assert azimuthal_profile(wave(1, 1)).argmax() == 15  # the corner is in the last of 16 rings


@pytest.mark.parametrize("measure", MEASURES)
def test_wrong_maps_are_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"\(N, C, H, W\).* got \(9, 9, 9\)"):
        measure(torch.zeros(9, 9, 9))
    with pytest.raises(ValueError, match=r"got \(1, 1, 9, 1\)"):
        measure(torch.zeros(1, 1, 9, 1))
    with pytest.raises(ValueError, match=r"got \(1, 0, 9, 9\)"):
        measure(torch.zeros(1, 0, 9, 9))
    with pytest.raises(ValueError, match=r"floating-point type, got torch\.int64"):
        measure(torch.zeros(1, 1, 9, 9, dtype=torch.int64))
    for value in (math.nan, math.inf):
        maps = torch.zeros(1, 1, 9, 9)
        maps[0, 0, 8, 8] = value  # in the row and column that an even crop leaves out
        with pytest.raises(ValueError, match="maps hold 1 values that are NaN or infinite"):
            measure(maps)


def test_tiny_maps_and_wrong_bins_are_refused() -> None:
    with pytest.raises(ValueError, match=r"H, W >= 8, got \(1, 1, 7, 8\)"):
        nyquist_energy(torch.zeros(1, 1, 7, 8))
    assert phase_variance_share(torch.eye(2)[None, None]).item() == pytest.approx(1)
    for bins in (0, 5):
        with pytest.raises(ValueError, match=f"within 1 and 4 .* got {bins}"):
            azimuthal_profile(torch.zeros(1, 1, 8, 9), bins)


# --- labels --------------------------------------------------------------------------------------


def reference_isolated(labels: Tensor, ignore_index: int) -> Tensor:
    result = torch.zeros(labels.shape, dtype=torch.bool)
    h, w = labels.shape
    for i in range(h):
        for j in range(w):
            around = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
            values = [labels[a, b].item() for a, b in around if 0 <= a < h and 0 <= b < w]
            known = [v for v in values if v != ignore_index]
            own = labels[i, j].item()
            result[i, j] = own != ignore_index and bool(known) and own not in known
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("shape", [(9, 12), (1, 7), (7, 1), (1, 1), (2, 2)])
def test_isolated_pixels_equal_the_definition(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        labels = torch.randint(0, 4, shape, generator=generator, dtype=dtype)
        for ignore in (3, 255, -1):
            assert torch.equal(isolated_pixels(labels, ignore), reference_isolated(labels, ignore))


def test_isolated_pixel_rate_of_known_maps() -> None:
    checker = (wave(1, 1, (6, 8))[0, 0] > 0).long()
    stripes = (wave(1, 0, (6, 8))[0, 0] > 0).long()
    one = torch.zeros(6, 8, dtype=torch.long)
    one[3, 3] = 1
    void = torch.full((6, 8), 255)
    maps = torch.stack([checker, stripes, one, void])
    rates = isolated_pixel_rate(maps)
    assert rates[:3].tolist() == [1, 0, pytest.approx(1 / 48)]
    assert math.isnan(rates[3])
    half = one.clone()
    half[:, 4:] = 255
    assert isolated_pixel_rate(half).item() == pytest.approx(1 / 24)
    assert isolated_pixel_rate(half.to(torch.uint8), ignore_index=-1).item() == pytest.approx(1 / 48)


@pytest.mark.parametrize(
    "labels", [torch.zeros(4), torch.zeros(4, 4), torch.zeros(4, 4) > 0, torch.ones(0, 4).int()]
)
def test_wrong_labels_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        isolated_pixel_rate(labels)


# --- layers --------------------------------------------------------------------------------------


LINEAR = {
    "PixelDCL": lambda: PixelDCL(3, 4, init="kaiming"),
    "PixelDCL_full_k5": lambda: PixelDCL(3, 4, kernel_size=5, efficient=False, init="kaiming"),
    "PixelDCL_x4": lambda: PixelDCL(3, 4, scale_factor=4, init="kaiming"),
    "IPixelDCL": lambda: IPixelDCL(3, 4, init="kaiming", padding_mode="replicate"),
    "ConvTranspose2d_k4": lambda: nn.ConvTranspose2d(3, 4, 4, 2, 1),
    "ConvTranspose2d_k6": lambda: nn.ConvTranspose2d(3, 4, 6, 2, 2),
    "InterpConv": lambda: upsampler("InterpConv"),
    "DeconvModule": lambda: upsampler("DeconvModule", kernel_size=4),
    "PixelShuffleICNR": lambda: PixelShuffleICNR(3, 4),
}


def upsampler(kind: str, **options) -> nn.Module:
    """An upsampler as a U-Net builds it, with statistics in its norm that are not the initial ones."""
    init_default_scope("mmseg")
    cfg = dict(type=kind, in_channels=3, out_channels=4, **options)
    module = build_upsample_layer(dict(cfg, norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU")))
    return module.train()


@pytest.mark.parametrize("name", LINEAR)
def test_equivalent_kernels_compute_what_the_layer_does(name: str) -> None:
    torch.manual_seed(0)
    layer = LINEAR[name]()
    kernels = equivalent_kernels(layer, 3)
    bare = bare_layer(layer)
    x = noise(2, 3, 40, 40).double()
    scale, radius = kernels.size(0), kernels.size(-1) // 2
    expected = bare(x) - bare(torch.zeros_like(x))
    margin = slice(2 * radius, 40 - 2 * radius)
    for a in range(scale):
        for b in range(scale):
            phase = expected[..., a::scale, b::scale][..., margin, margin]
            made = F.conv2d(x, kernels[a, b], padding=radius)[..., margin, margin]
            assert torch.allclose(made, phase, atol=1e-9)
    assert torch.allclose(kernels.sum((-2, -1)), dc_response(layer, 3), atol=1e-9)
    assert torch.equal(equivalent_kernels(layer, 3, [2, 0]), kernels[:, :, :, [2, 0]])


def test_sub_kernels_of_a_transposed_convolution() -> None:
    """Known in closed form: phase (a, b) of kernel 6, padding 2 has the taps a::2, b::2 turned around."""
    layer = nn.ConvTranspose2d(2, 3, 6, stride=2, padding=2, bias=False).double()
    kernels = equivalent_kernels(layer, 2)
    for a in range(2):
        for b in range(2):
            taps = layer.weight.detach()[:, :, a::2, b::2].flip(2, 3).transpose(0, 1)
            assert torch.allclose(kernels[a, b], taps)


def test_kernels_of_bilinear_interpolation() -> None:
    kernels = equivalent_kernels(nn.Upsample(scale_factor=2, mode="bilinear"), 1)
    rows = torch.tensor([[0.25, 0.75, 0], [0, 0.75, 0.25]], dtype=torch.float64)
    for a in range(2):
        for b in range(2):
            assert torch.allclose(kernels[a, b, 0, 0], torch.outer(rows[a], rows[b]))
    assert phase_spread(nn.Upsample(scale_factor=2, mode="bilinear"), 1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cls", [PixelDCL, IPixelDCL])
@pytest.mark.parametrize("efficient", [True, False])
def test_spread_is_zero_exactly_for_constrained_layers(cls: type, efficient: bool) -> None:
    torch.manual_seed(0)
    free = cls(6, 5, init="kaiming", efficient=efficient, checkerboard_free=True)
    plain = cls(6, 5, init="kaiming", efficient=efficient)
    assert phase_spread(free, 6) < 1e-12
    assert phase_spread(plain, 6) > 0.5


def test_spread_of_known_phases() -> None:
    """1x1 sub-kernels with chosen values: a transposed convolution whose stride is its kernel."""
    layer = nn.ConvTranspose2d(1, 1, 2, stride=2)
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    layer.weight.data = values.view(1, 1, 2, 2)
    expected = values.std(correction=0) / values.square().mean().sqrt()
    assert phase_spread(layer, 1) == pytest.approx(expected.item())
    layer.weight.data.zero_()
    assert phase_spread(layer, 1) == 0


def test_spread_of_independent_phases() -> None:
    torch.manual_seed(0)
    assert phase_spread(nn.ConvTranspose2d(64, 64, 4, 2, 1), 64) == pytest.approx(math.sqrt(0.75), abs=0.01)


def test_norm_and_bias_do_not_enter_and_the_layer_stays_as_it_is() -> None:
    module = upsampler("DeconvModule", kernel_size=4)
    deconv = module.deconv_upsamping[0]
    before = {key: value.clone() for key, value in module.state_dict().items()}
    plain = nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False)
    plain.weight.data = deconv.weight.data
    assert phase_spread(module, 3) == pytest.approx(phase_spread(plain, 3))
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert module.state_dict().keys() == before.keys()


def test_inner_activation_is_part_of_the_layer() -> None:
    torch.manual_seed(0)
    module = upsampler("PixelDCL", init="kaiming", inner_act_cfg=dict(type="ReLU"))
    with pytest.raises(ValueError, match="no equivalent kernels"):
        equivalent_kernels(module, 3)
    assert 0 < phase_spread(module, 3) < 1


def test_adaptive_layers_have_no_kernels_but_a_spread() -> None:
    module = upsampler("TorchCARAFE")
    with pytest.raises(ValueError, match="no equivalent kernels: it is not linear"):
        equivalent_kernels(module, 3)
    assert phase_spread(module, 3) == pytest.approx(0, abs=1e-12)  # its weights sum to one


class Mean(nn.Module):
    """Reaches everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x - x.mean((2, 3), keepdim=True), scale_factor=2)


@pytest.mark.parametrize(
    ("layer", "channels", "message"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), 2, "no whole factor"),
        (nn.ConvTranspose2d(2, 2, 3, 2, 1), 2, "no whole factor"),
        (PixelDCL(2, 2), 3, r"\(N, 2, H, W\)"),
        (nn.ConvTranspose2d(2, 2, 4, 2, 1), 3, "takes no input of shape"),
        (nn.Flatten(), 1, "does not return a map"),
        (nn.ConvTranspose2d(2, 2, 4, 2, 1), 0, "in_channels must be a positive integer, got 0"),
        (Mean(), 1, "reaches further than 48 pixels"),
    ],
)
def test_wrong_layers_are_refused(layer: nn.Module, channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phase_spread(layer, channels)


def test_kernels_that_do_not_exist_are_refused() -> None:
    stretched = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    with pytest.raises(ValueError, match="does not treat all pixels alike"):
        equivalent_kernels(stretched, 1)
    for inputs in ([3], [-1], []):
        with pytest.raises(ValueError, match=r"channels from 0 to 1, got \["):
            equivalent_kernels(PixelDCL(2, 2), 2, inputs)


def test_public_names_are_there() -> None:
    assert all(hasattr(checkerboard, name) for name in checkerboard.__all__)
    assert checkerboard.equivalent_kernels is equivalent_kernels
