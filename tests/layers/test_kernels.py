"""How the layers begin, and the projection that frees them of checkerboard."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixeldcl_plugin.layers import functional, kernels
from pixeldcl_plugin.layers import pixel_dcl as layers

FORMS = [(getattr(layers, name), efficient) for name, efficient in reference.LITERAL]
TABLES = {
    "PixelDCL": kernels.pixel_dcl_kernels,
    "IPixelDCL": kernels.ipixel_dcl_kernels,
}


def interpolation(cls: type[nn.Module], channels: int, **options: Any) -> nn.Module:
    """An untrained layer in float64 that sees no zeros beyond the border."""
    return cls(channels, channels, padding_mode="replicate", **options).double()


def random_layer(cls: type[nn.Module], *channels: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return cls(*channels, init="kaiming", **options)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the untrained layer -------------------------------------------------------------------------


@pytest.mark.parametrize("k", layers.KERNEL_SIZES)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_outputs_are_convex_combinations(cls: type[nn.Module], efficient: bool, k: int) -> None:
    layer = interpolation(cls, 1, efficient=efficient, kernel_size=k)
    x = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
    weights = torch.autograd.functional.jacobian(layer, x).reshape(10 * 12, 5 * 6)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(120, dtype=torch.float64))
    # Neighbours: nothing further away than two input pixels plays a part.
    ys, xs = torch.meshgrid(torch.arange(10), torch.arange(12), indexing="ij")
    columns = torch.arange(30)
    distance_y = (columns // 6 - (ys.reshape(-1, 1) - 0.5) / 2).abs()
    distance_x = (columns % 6 - (xs.reshape(-1, 1) - 0.5) / 2).abs()
    used = weights > 0
    assert distance_y[used].max() < 2
    assert distance_x[used].max() < 2
    # Smooth: inside, no pixel is a copy of another.
    assert used.reshape(10, 12, 30)[1:-1, 1:-1].sum(2).min() >= 4


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_channels_are_interpolated_one_by_one(cls: type[nn.Module], efficient: bool, groups: int) -> None:
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    single = interpolation(cls, 1, efficient=efficient)
    expected = torch.cat([single(channel) for channel in x.split(1, 1)], 1)
    torch.testing.assert_close(interpolation(cls, 4, efficient=efficient, groups=groups)(x), expected)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_all_forms_begin_alike(cls: type[nn.Module], efficient: bool) -> None:
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    expected = interpolation(layers.PixelDCL, 2)(x)
    for k in layers.KERNEL_SIZES:
        for checkerboard_free in (False, True):
            layer = interpolation(
                cls, 2, efficient=efficient, kernel_size=k, checkerboard_free=checkerboard_free
            )
            torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(interpolation(cls, 2, efficient=efficient, separable=True)(x), expected)


@pytest.mark.parametrize("scale_factor", [2, 4, 8])
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_a_constant_stays_constant(cls: type[nn.Module], efficient: bool, scale_factor: int) -> None:
    x = torch.tensor([3.0, -0.1])[None, :, None, None].expand(1, 2, 3, 4)
    layer = cls(2, 2, efficient=efficient, scale_factor=scale_factor, padding_mode="replicate")
    expected = x[..., :1, :1].expand(1, 2, 3 * scale_factor, 4 * scale_factor)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize("scale_factor", [2, 4])
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_a_ramp_is_interpolated_bilinearly(
    cls: type[nn.Module], efficient: bool, scale_factor: int, padding_mode: str
) -> None:
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    ramp = (2 * y - 3 * x + 1).expand(1, 2, 10, 12).double()
    layer = cls(2, 2, efficient=efficient, scale_factor=scale_factor, padding_mode=padding_mode)
    out = layer.double()(ramp)
    expected = F.interpolate(ramp, scale_factor=scale_factor, mode="bilinear", align_corners=False)
    inside = (..., slice(4 * scale_factor, -4 * scale_factor), slice(4 * scale_factor, -4 * scale_factor))
    torch.testing.assert_close(out[inside], expected[inside])


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_nothing_shifts(cls: type[nn.Module], efficient: bool, padding_mode: str, repeats: int) -> None:
    true_y, true_x, size = 11.3, 12.9, 24
    y, x = torch.meshgrid(*[torch.arange(float(size), dtype=torch.float64)] * 2, indexing="ij")
    blob = torch.exp(-((y - true_y) ** 2 + (x - true_x) ** 2) / (2 * 1.5**2))[None, None]
    layer = cls(1, 1, efficient=efficient, padding_mode=padding_mode).double()
    out = blob
    for _ in range(repeats):
        out = layer(out)
    # Pixel i of a map that is s times as large lies at (i + 1/2) / s - 1/2 of the small one.
    scale = 2**repeats
    mass = out.sum()
    positions = torch.arange(scale * size, dtype=torch.float64)
    for true, dim in ((true_y, 3), (true_x, 2)):
        centroid = (out.sum((0, 1, dim)) * positions).sum() / mass
        assert centroid.item() == pytest.approx((true + 0.5) * scale - 0.5, abs=0.02)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_maps_after_a_random_first_one_are_means_of_neighbours(cls: type[nn.Module], efficient: bool) -> None:
    torch.manual_seed(0)
    layer = cls(3, 5, efficient=efficient, padding_mode="replicate").double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    out = layer(x)
    p00, p11, p01, p10 = (out[..., a::2, b::2] for a, b in functional.PHASE_OFFSETS)
    torch.testing.assert_close(p00, reference.conv(x, layer.weight_p00, "replicate"))
    padded00, padded11 = (reference.pad(p, 1, "replicate") for p in (p00, p11))

    def at(p: Tensor, dy: int, dx: int) -> Tensor:
        return p[..., 1 + dy : 7 + dy, 1 + dx : 8 + dx]

    torch.testing.assert_close(
        p11,
        (p00 + at(padded00, 0, 1) + at(padded00, 1, 0) + at(padded00, 1, 1)) / 4,
    )
    torch.testing.assert_close(p01, (p00 + at(padded00, 0, 1) + at(padded11, -1, 0) + p11) / 4)
    torch.testing.assert_close(p10, (p00 + at(padded00, 1, 0) + at(padded11, 0, -1) + p11) / 4)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_a_separable_layer_begins_as_a_random_mixture_interpolated(
    cls: type[nn.Module], efficient: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    layer = cls(3, 5, efficient=efficient, separable=True, padding_mode="replicate").double()
    mixed = F.conv2d(x, layer.weight_pointwise)
    assert mixed.std() > 0.1
    torch.testing.assert_close(layer(x), interpolation(cls, 5, efficient=efficient)(mixed))


@pytest.mark.parametrize(("in_channels", "k"), [(32, 3), (128, 3), (32, 5), (32, 7)])
def test_the_random_first_map_keeps_the_variance(in_channels: int, k: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, in_channels, 24, 24)
    p00 = layers.PixelDCL(in_channels, 64, kernel_size=k)(x)[..., 6:-6:2, 6:-6:2]
    assert p00.var().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    "options", [dict(), dict(kernel_size=5), dict(groups=4), dict(separable=True)], ids=str
)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_kaiming_keeps_the_variance_of_every_map(
    cls: type[nn.Module], efficient: bool, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    # What one channel's few taps add to the variance varies widely: a mean over many of them.
    channels = 1024 if options.get("separable") else 96
    layer = cls(64, channels, efficient=efficient, init="kaiming", padding_mode="replicate", **options)
    with torch.no_grad():
        out = layer(torch.randn(2, 64, 24, 24))
    for row, column in functional.PHASE_OFFSETS:
        phase = out[..., row::2, column::2][..., 4:-4, 4:-4]
        assert phase.var().item() == pytest.approx(1, rel=0.15)


def test_paper_draws_as_the_authors_do() -> None:
    """Glorot's uniform distribution for plain convolutions, a cut normal one for the masked kernel.

    Fan-in and fan-out are those of the concatenated convolutions of their code: of iPixelDCL's, conv2 reads
    the input and p00, conv3 reads p11 too and makes two maps.
    """
    torch.manual_seed(0)
    cin, c = 48, 64
    layer = layers.PixelDCL(cin, c, init="paper")
    plain = {"weight_p00": 9 * (cin + c), "weight_p11": 9 * (c + c)}
    for name, fans in plain.items():
        limit = (6 / fans) ** 0.5
        weight = layer.get_parameter(name)
        assert weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    for masked in (layer.weight_h, layer.weight_v):
        assert 1.9 < masked.abs().max() <= 2
        # The normal distribution of standard deviation 1, cut at 2, has one of 0.88.
        assert masked.std().item() == pytest.approx(0.8796, rel=0.02)

    layer = layers.IPixelDCL(cin, c, init="paper")
    fans = {
        "p00": 9 * (cin + c), "p11": 9 * ((cin + c) + c), "p01": 9 * ((cin + 2 * c) + 2 * c),
        "p10": 9 * ((cin + 2 * c) + 2 * c),
    }  # fmt: skip
    for name, kernel in layer.kernels.items():
        blocks = layer.get_parameter(name).split(c)
        for block, target in zip(blocks, kernel.targets, strict=True):
            limit = (6 / fans[target.maps[0]]) ** 0.5
            assert 0.99 * limit < block.abs().max() <= limit, (name, target)


# --- the projection ------------------------------------------------------------------------------


PROJECTIONS = [
    pytest.param(TABLES[name](k, efficient), groups, id=f"{name}-{efficient}-{k}-{groups}")
    for name, efficient in reference.LITERAL
    for k, groups in ((3, 1), (3, 2), (5, 1), (7, 4))
]


def draw(table: dict[str, kernels.Kernel], groups: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(kernel.shape(8, 4, groups), generator=generator, dtype=torch.float64)
        for name, kernel in table.items()
    }


def product(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum((a[name] * b[name]).sum().item() for name in a)


def minus(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: a[name] - b[name] for name in a}


@pytest.mark.parametrize(("table", "groups"), PROJECTIONS)
def test_projection_is_orthogonal_and_idempotent(table: dict[str, kernels.Kernel], groups: int) -> None:
    weights = draw(table, groups, seed=0)
    projected = kernels.constrain_dc(weights, table)
    assert list(projected) == list(weights)
    torch.testing.assert_close(projected["weight_p00"], weights["weight_p00"], rtol=0, atol=0)
    step = minus(projected, weights)
    assert product(step, step) > 1
    # Idempotent, and so the identity on kernels that satisfy the constraint.
    again = kernels.constrain_dc(projected, table)
    torch.testing.assert_close(again, projected, rtol=0, atol=1e-12)
    # Orthogonal: no admissible kernels are nearer.
    for seed in (1, 2):
        admissible = kernels.constrain_dc(draw(table, groups, seed), table)
        assert abs(product(step, minus(admissible, projected))) < 1e-9


@pytest.mark.parametrize("k", layers.KERNEL_SIZES)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_projection_gives_the_papers_condition(cls: type[nn.Module], efficient: bool, k: int) -> None:
    """Tap sums of the literal kernels: the identity over the maps, zero on the input."""
    torch.manual_seed(0)
    layer = cls(3, 2, efficient=efficient, kernel_size=k, init="kaiming", checkerboard_free=True)
    _, k2, *last = (kernel.sum((2, 3)) for kernel in reference.literal_kernels(layer.double()))
    identity, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    if len(last) == 1:  # k34 of iPixelDCL makes two maps, k3 . M of PixelDCL serves both
        last = last[0].split(2)
    for tap_sums in (k2, *last):
        if cls is layers.IPixelDCL:
            torch.testing.assert_close(tap_sums[:, :3], zero)
            tap_sums = tap_sums[:, 3:]
        # Fig. 6: one kernel on the sum of two maps; otherwise a block for each map.
        blocks = tap_sums.split(2, 1)
        torch.testing.assert_close(sum(blocks), identity)


@pytest.mark.parametrize(
    "init",
    [kernels.init_interpolate, kernels.init_kaiming, kernels.init_paper],
    ids=["interpolate", "kaiming", "paper"],
)
@pytest.mark.parametrize(("table", "groups"), PROJECTIONS)
def test_every_initialisation_overwrites_every_kernel(
    table: dict[str, kernels.Kernel], groups: int, init: Callable[..., None]
) -> None:
    weights = {name: torch.full_like(w, torch.nan) for name, w in draw(table, groups, 0).items()}
    init(weights, table)
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize(("table", "groups"), PROJECTIONS)
def test_interpolation_satisfies_the_constraint(table: dict[str, kernels.Kernel], groups: int) -> None:
    weights = draw(table, groups, 0)
    kernels.init_interpolate(weights, table)
    torch.testing.assert_close(kernels.constrain_dc(weights, table), weights)


# --- checkerboard-free by construction -----------------------------------------------------------

CONSTRAINED = [dict(), dict(groups=2), dict(separable=True), dict(kernel_size=5), dict(scale_factor=4)]


def phase_spread(layer: nn.Module) -> float:
    """Largest difference between the phases' means on constant inputs, relative to the largest value."""
    channels = layer.in_channels
    # One constant a channel, and all of them together.
    constants = torch.cat([torch.eye(channels), torch.ones(1, channels)])[:, :, None, None]
    with torch.no_grad():
        x = constants.expand(-1, -1, 20, 20).to(next(layer.parameters()).dtype)
        out = layer(x).double()
    step = layer.scale_factor
    if layer.padding_mode == "zeros":  # the border knows of the zeros around: one radius a map and repeat
        margin = 8 * (step - 1) * (layer.kernel_size // 2)
        out = out[..., margin:-margin, margin:-margin]
    means = torch.stack([out[..., a::step, b::step].mean((2, 3)) for a in range(step) for b in range(step)])
    return ((means.amax(0) - means.amin(0)).max() / out.abs().max()).item()


def assert_checkerboard_free(layer: nn.Module) -> None:
    assert phase_spread(copy.deepcopy(layer).double()) < 1e-12
    # What is left in float32 is the rounding of the convolutions, which more taps and repeats amplify.
    if layer.scale_factor == 2 and layer.kernel_size == 3:
        assert phase_spread(layer) < 1e-6


@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize("options", CONSTRAINED, ids=str)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_constraint_holds_throughout(
    cls: type[nn.Module], efficient: bool, options: dict[str, Any], padding_mode: str
) -> None:
    torch.manual_seed(0)
    options = dict(options, efficient=efficient, padding_mode=padding_mode)
    for init in layers.INITS:
        assert_checkerboard_free(cls(4, 4, init=init, checkerboard_free=True, **options))
    layer = random_layer(cls, 4, 4, checkerboard_free=True, **options)
    free = random_layer(cls, 4, 4, **options)
    assert phase_spread(free) > 1e-2  # the measure sees what the constraint removes

    target = random(2, 4, 6 * layer.scale_factor, 6 * layer.scale_factor, seed=3)
    for optimizer in (
        torch.optim.SGD(layer.parameters(), lr=0.2),
        torch.optim.Adam(layer.parameters(), lr=0.1),
    ):
        before = copy.deepcopy(layer.state_dict())
        for _ in range(3):
            optimizer.zero_grad()
            (layer(random(2, 4, 6, 6)) - target).square().mean().backward()
            optimizer.step()
        changes = [(v - before[k]).abs().max() for k, v in layer.state_dict().items()]
        assert min(changes) > 1e-3
        assert_checkerboard_free(layer)

    layer.load_state_dict(free.state_dict())
    assert_checkerboard_free(layer)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_constraint_holds_under_autocast(cls: type[nn.Module], efficient: bool) -> None:
    layer = random_layer(cls, 4, 4, efficient=efficient, checkerboard_free=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = layer.effective_weights()
    for name, weight in layer.effective_weights().items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_constraint_of_half_precision_kernels_is_rounded_once(
    cls: type[nn.Module], efficient: bool, dtype: torch.dtype
) -> None:
    half = random_layer(cls, 4, 4, efficient=efficient, checkerboard_free=True).to(dtype)
    exact = copy.deepcopy(half).float().effective_weights()
    for name, weight in half.effective_weights().items():
        assert weight.dtype == dtype
        assert torch.equal(weight, exact[name].to(dtype))


@pytest.mark.parametrize(
    "options", [dict(), dict(groups=2), dict(separable=True), dict(scale_factor=4)], ids=str
)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_fold_bakes_the_constraint_in(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> None:
    options = dict(options, efficient=efficient)
    layer = random_layer(cls, 4, 4, checkerboard_free=True, **options)
    plain = random_layer(cls, 4, 4, **options)
    x = random(2, 4, 5, 6)
    assert list(layer.state_dict()) == list(plain.state_dict())
    expected, unfolded = layer(x), copy.deepcopy(layer.state_dict())

    assert layer.fold() is layer
    assert not any(m.checkerboard_free for m in layer.modules())
    assert list(layer.state_dict()) == list(unfolded)
    assert any(not torch.equal(v, unfolded[k]) for k, v in layer.state_dict().items())
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)

    # The folded kernels are those of a plain layer.
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(plain(x), expected, rtol=1e-6, atol=1e-6)


def test_fold_leaves_a_plain_layer_alone() -> None:
    layer, x = random_layer(layers.PixelDCL, 3, 3), random(1, 3, 4, 4)
    assert torch.equal(copy.deepcopy(layer).fold()(x), layer(x))
