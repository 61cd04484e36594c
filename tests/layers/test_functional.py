"""Every fast path is the paper's method: values, gradients, arithmetic, memory format."""

from __future__ import annotations

from math import gcd
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pixeldcl_plugin.layers import functional
from pixeldcl_plugin.layers import pixel_dcl as layers

FORMS = list(reference.LITERAL)
SIZES = [(1, 1), (1, 6), (5, 1), (2, 2), (5, 7), (8, 3)]


def make_layer(form: tuple[str, bool], *channels: int, **options: Any) -> nn.Module:
    """A layer in float64 with random kernels."""
    name, efficient = form
    torch.manual_seed(0)
    layer = getattr(layers, name)(*channels, efficient=efficient, init="kaiming", **options)
    return layer.double()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals_reference(layer: nn.Module, x: Tensor) -> None:
    """The outputs are equal, and so are the gradients of the input and of every kernel."""
    x.requires_grad_()
    inputs = [x, *layer.parameters()]
    out, expected = layer(x), reference.upsample(layer, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)

    cotangent = random(*out.shape, seed=2)
    grads = torch.autograd.grad(out, inputs, cotangent)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-10)
    assert all(grad.abs().max() > 0 for grad in expected_grads[:2])


# --- the reference itself ------------------------------------------------------------------------


def test_1d_deconvolution_is_two_independent_maps() -> None:
    x, kernel = random(2, 3, 7), random(3, 5, 4)
    expected = F.conv_transpose1d(x, kernel, stride=2)
    torch.testing.assert_close(reference.deconvolution_1d(x, kernel), expected)


@pytest.mark.parametrize("size", SIZES)
def test_deconvolution_of_kernel_6_is_four_3x3_convolutions(size: tuple[int, int]) -> None:
    x, kernel = random(2, 3, *size), random(3, 4, 6, 6)
    assert [tuple(k.shape) for k in reference.sub_kernels(kernel)] == [(4, 3, 3, 3)] * 4
    expected = F.conv_transpose2d(x, kernel, stride=2, padding=2)
    torch.testing.assert_close(reference.deconvolution_kernel6(x, kernel), expected)
    phases = [F.conv2d(x, k, padding=1) for k in reference.sub_kernels(kernel)]
    torch.testing.assert_close(functional.interleave(*phases), expected)


def test_deconvolution_of_kernel_3_overlaps_unevenly() -> None:
    kernel = random(3, 4, 3, 3)
    assert [tuple(k.shape[2:]) for k in reference.sub_kernels(kernel)] == [
        (2, 2), (1, 1), (2, 1), (1, 2),
    ]  # fmt: skip
    # Which of the taps they are: each phase of the deconvolution of a pixel is one sub-kernel, reversed.
    pixel = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    out = F.conv_transpose2d(pixel, kernel, stride=2)
    for k, (row, column) in zip(reference.sub_kernels(kernel), functional.PHASE_OFFSETS, strict=True):
        torch.testing.assert_close(out[..., row::2, column::2], k.flip(2, 3).transpose(0, 1))


# --- interleave ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_interleave_round_trip(size: tuple[int, int], channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    phases = [random(2, 3, *size, seed=i).to(memory_format=memory_format) for i in range(4)]
    out = functional.interleave(*phases)
    assert out.shape == (2, 3, 2 * size[0], 2 * size[1])
    if size != (1, 1):  # a single pixel is in both formats at once
        assert out.is_contiguous(memory_format=memory_format)
    assert torch.equal(out, reference.interleave(*phases))
    for phase, (row, column) in zip(phases, functional.PHASE_OFFSETS, strict=True):
        assert torch.equal(out[..., row::2, column::2], phase)


def test_interleave_gradients() -> None:
    phases = [random(2, 1, 2, 3, seed=i).requires_grad_() for i in range(4)]
    assert torch.autograd.gradcheck(functional.interleave, phases)
    assert torch.autograd.gradgradcheck(functional.interleave, phases)


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ([(2, 3, 4)] * 4, r"\(2, 3, 4\)"),
        ([(3, 4)] * 4, r"\(3, 4\)"),
        ([(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5)], r"\(1, 2, 3, 5\)"),
        ([(1, 2, 3, 4), (1, 1, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], r"\(1, 1, 3, 4\)"),
    ],
)
def test_interleave_refuses(shapes: list[tuple[int, ...]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        functional.interleave(*(torch.zeros(shape) for shape in shapes))


# --- pixel deconvolution against the reference ---------------------------------------------------


@pytest.mark.parametrize(
    ("kernel_size", "taps"), [(3, (1, 2)), (5, (3, 2)), (7, (3, 4)), (9, (5, 4)), (11, (5, 6))]
)
def test_live_taps(kernel_size: int, taps: tuple[int, int]) -> None:
    assert functional.live_taps(kernel_size) == taps
    even, odd = taps
    assert even + odd == kernel_size
    assert 2 * even * odd == reference.odd_mask(kernel_size).sum()


def test_efficient_pixel_dcl_is_the_papers_equations() -> None:
    h, w = 3, 4
    x, k1, k2 = random(1, 1, h, w), random(1, 1, 3, 3), random(1, 1, 3, 3, seed=2)
    (left, right, up, down) = (0.3, -1.1, 0.7, 2.0)
    weight_h = torch.tensor([left, right], dtype=torch.float64).view(1, 1, 1, 2)
    weight_v = torch.tensor([up, down], dtype=torch.float64).view(1, 1, 2, 1)
    out = functional.pixel_dcl(x, k1, k2, weight_h, weight_v)[0, 0]

    f1 = F.conv2d(x, k1, padding=1)
    f2 = F.conv2d(f1, k2, padding=1)
    # One pixel of zeros around the maps, so that index i + 1 stands for pixel i.
    f1, f2 = F.pad(f1, (1, 1, 1, 1))[0, 0], F.pad(f2, (1, 1, 1, 1))[0, 0]
    for i in range(h):
        for j in range(w):
            y, x_ = i + 1, j + 1
            expected = {
                (0, 0): f1[y, x_],
                (1, 1): f2[y, x_],
                (0, 1): left * f1[y, x_] + right * f1[y, x_ + 1] + up * f2[y - 1, x_] + down * f2[y, x_],
                (1, 0): up * f1[y, x_] + down * f1[y + 1, x_] + left * f2[y, x_ - 1] + right * f2[y, x_],
            }
            for (row, column), value in expected.items():
                assert out[2 * i + row, 2 * j + column] == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize("kernel_size", layers.KERNEL_SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_reference_at_every_size(
    form: tuple[str, bool], kernel_size: int, padding_mode: str
) -> None:
    layer = make_layer(form, 2, 3, kernel_size=kernel_size, padding_mode=padding_mode)
    for size in SIZES:
        assert_equals_reference(layer, random(2, 2, *size))


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    form = draw(st.sampled_from(FORMS))
    in_channels, out_channels = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    divided = out_channels if form[0] == "PixelDCL" else gcd(in_channels, out_channels)
    separable = draw(st.booleans())
    checkerboard_free = draw(st.booleans())
    act = None if checkerboard_free else draw(st.sampled_from([None, "ReLU", "Tanh"]))
    layer = make_layer(
        form,
        in_channels,
        out_channels,
        kernel_size=draw(st.sampled_from(layers.KERNEL_SIZES)),
        scale_factor=draw(st.sampled_from([2, 2, 2, 4])),
        padding_mode=draw(st.sampled_from(layers.PADDING_MODES)),
        groups=1 if separable else draw(st.sampled_from([g for g in range(1, 5) if divided % g == 0])),
        separable=separable,
        checkerboard_free=checkerboard_free,
        inner_act_cfg=act and dict(type=act),
    )
    return layer, random(draw(st.integers(1, 2)), in_channels, *draw(st.tuples(*[st.integers(1, 6)] * 2)))


@settings(deadline=None, max_examples=100)
@given(cases())
def test_equals_the_reference(case: tuple[nn.Module, Tensor]) -> None:
    assert_equals_reference(*case)


@pytest.mark.parametrize("act", [None, "Tanh"])
@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize("options", [dict(groups=2), dict(separable=True)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(
    form: tuple[str, bool], options: dict[str, Any], padding_mode: str, act: str | None
) -> None:
    options = dict(options, padding_mode=padding_mode, inner_act_cfg=act and dict(type=act))
    layer = make_layer(form, 2, 2, **options)
    check_gradients(torch.autograd.gradcheck, layer, random(1, 2, 2, 3))


@pytest.mark.parametrize("form", FORMS)
def test_gradgradcheck(form: tuple[str, bool]) -> None:
    check_gradients(torch.autograd.gradgradcheck, make_layer(form, 1, 1), random(1, 1, 2, 1))


def check_gradients(check: Any, layer: nn.Module, x: Tensor) -> None:
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert check(call, (x.requires_grad_(), *values))


@pytest.mark.parametrize("mode", ["reflect", "circular", "", None])
def test_refuses_padding_modes(mode: Any) -> None:
    x, square, h = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 1, 2)
    v = h.transpose(2, 3)
    by_source = [square, square.repeat(3, 1, 1, 1), square.repeat(2, 1, 1, 1), square]
    for call in (
        lambda: functional.pixel_dcl(x, square, square, h, v, padding_mode=mode),
        lambda: functional.pixel_dcl_full(x, by_source, padding_mode=mode),
        lambda: functional.ipixel_dcl(x, [square, *by_source[1:2], *by_source[1:]], padding_mode=mode),
    ):
        with pytest.raises(ValueError, match=f"'zeros' or 'replicate', got {mode!r}"):
            call()


# --- arithmetic ----------------------------------------------------------------------------------


def multiply_adds(call: Any, *args: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call(*args)
    return counter.get_total_flops() // 2


def by_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off what is faster channel by channel: tap by tap, or in two calls with more products."""
    monkeypatch.setattr(functional, "suits_two_calls", lambda *args: False)
    monkeypatch.setattr(functional, "suits_last_phases", lambda *args: False)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize("k", layers.KERNEL_SIZES)
def test_the_last_step_computes_only_live_taps(
    k: int, padding_mode: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_convolutions(monkeypatch)
    c, h, w = 4, 10, 12
    layer = make_layer(("PixelDCL", True), c, c, kernel_size=k, padding_mode=padding_mode, groups=groups)
    x = random(1, c, h, w)
    before = k**2 * c * c * h * w * (1 + 1 / groups)  # p00 and p11
    last_step = multiply_adds(layer, x) - before
    per_pixel = (k**2 - 1) * c * c / groups  # 8 C^2 for k = 3
    # An even kernel gives one row or column more than is used.
    assert per_pixel * h * w <= last_step <= per_pixel * (h + 1) * (w + 1)
    if groups == 1 and padding_mode == "zeros":
        literal = multiply_adds(reference.upsample, layer, x)
        assert literal - before == 4 * k**2 * c * c * h * w  # 36 C^2 for k = 3


@pytest.mark.parametrize("k", layers.KERNEL_SIZES)
@pytest.mark.parametrize(("form", "kernels"), [(FORMS[1], 7), (FORMS[2], 9), (FORMS[3], 10)])
def test_the_other_forms_compute_one_product_a_parameter(
    form: tuple[str, bool], kernels: int, k: int
) -> None:
    layer = make_layer(form, 4, 4, kernel_size=k)
    assert multiply_adds(layer, random(1, 4, 5, 6)) == kernels * k**2 * 16 * 30


@pytest.mark.parametrize(("form", "taps"), [(FORMS[0], 26), (FORMS[1], 63), (FORMS[2], 81), (FORMS[3], 90)])
def test_a_separable_layer_mixes_the_channels_once(
    form: tuple[str, bool], taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_convolutions(monkeypatch)
    c_in, c, h, w = 12, 8, 10, 14
    count = multiply_adds(make_layer(form, c_in, c, separable=True), random(1, c_in, h, w))
    # An even kernel gives one row or column more than is used.
    assert (c_in * c + taps * c) * h * w <= count <= (c_in * c + taps * c) * (h + 1) * (w + 1)


class ConvolvedSizes(TorchDispatchMode):
    """Records the height and width of every map that a convolution, forward or backward, reads or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []
        self.operators: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "conv" in func.__name__:
            self.operators.add(func.__name__.partition(".")[0])
            tensors = [*args, *(out if isinstance(out, tuple) else [out])]
            self.sizes += [tuple(t.shape[2:]) for t in tensors if isinstance(t, Tensor)]
        return out


@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
@pytest.mark.parametrize("form", FORMS)
def test_no_convolution_sees_the_full_resolution(form: tuple[str, bool], padding_mode: str) -> None:
    layer = make_layer(form, 2, 2, kernel_size=7, padding_mode=padding_mode)
    x = random(1, 2, 16, 20).requires_grad_()
    with ConvolvedSizes() as seen:
        layer(x).sum().backward()
    assert seen.operators == {"convolution", "convolution_backward"}
    assert max(h for h, _ in seen.sizes) <= 16 + 6
    assert max(w for _, w in seen.sizes) <= 20 + 6
    with ConvolvedSizes() as literal:
        reference.pixel_dcl_fig6(x, *[random(2, 2, 3, 3)] * 3, "zeros")
    assert max(h for h, _ in literal.sizes) == 32 + 2
