"""The layers: arguments, shapes, precision, memory format, state."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL, PixelDCL, SeparablePixelDCL
from pixeldcl_plugin.layers import functional
from pixeldcl_plugin.layers import pixel_dcl as layers

FORMS = [(getattr(layers, name), efficient) for name, efficient in reference.LITERAL]
OPTIONS = [
    dict(),
    dict(kernel_size=5),
    dict(scale_factor=4),
    dict(padding_mode="replicate"),
    dict(groups=4),
    dict(separable=True),
    dict(bias=True),
    dict(inner_act_cfg=dict(type="ReLU")),
    dict(checkerboard_free=True),
    dict(padding_mode="replicate", groups=2, scale_factor=4, checkerboard_free=True),
]


def random_layer(cls: type[nn.Module], *channels: int, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return cls(*channels, init="kaiming", **options)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", layers.KERNEL_SIZES)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_parameter_counts(cls: type[nn.Module], efficient: bool, k: int) -> None:
    """22, 63, 81 and 90 C^2 for k = 3; C^2 from the input to the first map when the channels differ."""
    kernels = {
        (PixelDCL, True): 2 * k**2 + (k**2 - 1) // 2,
        (PixelDCL, False): 7 * k**2,
        (IPixelDCL, True): 9 * k**2,
        (IPixelDCL, False): 10 * k**2,
    }[cls, efficient]
    if k == 3:
        assert kernels == {
            (PixelDCL, True): 22, (PixelDCL, False): 63, (IPixelDCL, True): 81, (IPixelDCL, False): 90,
        }[cls, efficient]  # fmt: skip
    count = sum(p.numel() for p in cls(4, 4, kernel_size=k, efficient=efficient).parameters())
    assert count == kernels * 4**2

    reads_input = 1 if cls is PixelDCL else 4
    extra = sum(p.numel() for p in cls(6, 4, kernel_size=k, efficient=efficient).parameters()) - count
    assert extra == reads_input * k**2 * 2 * 4


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_groups_divide_all_but_the_first_kernel(cls: type[nn.Module], efficient: bool) -> None:
    dense = cls(8, 4, efficient=efficient).state_dict()
    grouped = cls(8, 4, efficient=efficient, groups=4).state_dict()
    assert list(grouped) == list(dense)
    for name, weight in dense.items():
        assert weight.numel() == grouped[name].numel() * (1 if name == "weight_p00" else 4)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_separable_is_a_1x1_convolution_before_a_layer_of_one_channel_each(
    cls: type[nn.Module], efficient: bool
) -> None:
    layer, x = random_layer(cls, 6, 4, efficient=efficient, separable=True), random(1, 6, 5, 7)
    assert layer.groups == 4
    mixed = torch.nn.functional.conv2d(x, layer.weight_pointwise)
    for channel in range(4):
        alone = cls(1, 1, efficient=efficient)
        alone.load_state_dict(
            {name: layer.state_dict()[name].unflatten(0, (-1, 4))[:, channel] for name in alone.state_dict()}
        )
        expected = alone(mixed[:, channel : channel + 1])
        torch.testing.assert_close(layer(x)[:, channel : channel + 1], expected)


def test_the_separable_form_has_a_name_of_its_own() -> None:
    torch.manual_seed(0)
    named = SeparablePixelDCL(6, 4, scale_factor=4, padding_mode="replicate")
    form = PixelDCL(6, 4, scale_factor=4, padding_mode="replicate", separable=True)
    form.load_state_dict(named.state_dict())
    x = random(1, 6, 5, 7)
    assert torch.equal(named(x), form(x))
    with pytest.raises(ValueError, match="got separable=False"):
        SeparablePixelDCL(6, 4, separable=False)


@pytest.mark.parametrize("cls", [PixelDCL, IPixelDCL])
def test_groups_may_follow_the_width(cls: type[nn.Module]) -> None:
    for out_channels in (2, 4):
        named = cls(8, out_channels, groups="out_channels", scale_factor=4)
        counted = cls(8, out_channels, groups=out_channels, scale_factor=4)
        assert named.groups == out_channels
        shapes = {name: w.shape for name, w in counted.state_dict().items()}
        assert {name: w.shape for name, w in named.state_dict().items()} == shapes


def test_pixel_dcl_groups_need_not_divide_the_input() -> None:
    assert PixelDCL(3, 4, groups=4)(random(1, 3, 2, 2)).shape == (1, 4, 4, 4)


@pytest.mark.parametrize("cls", [PixelDCL, IPixelDCL])
@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        ((0, 4), {}, "in_channels .* positive integer, got 0"),
        ((4, -2), {}, "out_channels .* positive integer, got -2"),
        ((4.0, 4), {}, r"in_channels .* positive integer, got 4\.0"),
        ((4, "4"), {}, "out_channels .* positive integer, got '4'"),
        ((True, 4), {}, "in_channels .* positive integer, got True"),
        ((4, None), {}, "out_channels .* positive integer, got None"),
        ((4, 4), dict(kernel_size=2), r"kernel_size .*\(3, 5, 7\), got 2"),
        ((4, 4), dict(kernel_size=4), r"kernel_size .*\(3, 5, 7\), got 4"),
        ((4, 4), dict(kernel_size=1), r"kernel_size .*\(3, 5, 7\), got 1"),
        ((4, 4), dict(kernel_size=9), r"kernel_size .*\(3, 5, 7\), got 9"),
        ((4, 4), dict(kernel_size=(3, 3)), r"kernel_size .*\(3, 5, 7\), got \(3, 3\)"),
        ((4, 4), dict(kernel_size=3.0), r"kernel_size .*\(3, 5, 7\), got 3\.0"),
        ((4, 4), dict(scale_factor=3), r"scale_factor .*power of two.*, got 3"),
        ((4, 4), dict(scale_factor=1), r"scale_factor .*power of two.*, got 1"),
        ((4, 4), dict(scale_factor=0), r"scale_factor .*power of two.*, got 0"),
        ((4, 4), dict(scale_factor=-2), r"scale_factor .*power of two.*, got -2"),
        ((4, 4), dict(scale_factor=2.0), r"scale_factor .*power of two.*, got 2\.0"),
        ((4, 4), dict(scale_factor=True), r"scale_factor .*power of two.*, got True"),
        ((4, 4), dict(padding_mode="reflect"), "padding_mode .*'zeros', 'replicate'.*, got 'reflect'"),
        ((4, 4), dict(init="xavier"), "init .*'interpolate', 'kaiming', 'paper'.*, got 'xavier'"),
        ((4, 4), dict(groups=0), "groups .* positive integer or .out_channels., got 0"),
        ((4, 4), dict(groups=True), "groups .* positive integer or .out_channels., got True"),
        ((4, 4), dict(groups="depthwise"), "groups must be .*, got 'depthwise'"),
        ((4, 4), dict(groups=3), "groups must divide .*, got 3 .*out_channels=4"),
        ((4, 4), dict(separable=True, groups=2), "separable=True .*channel by channel, got groups=2"),
        (
            (4, 4),
            dict(checkerboard_free=True, inner_act_cfg=dict(type="ReLU")),
            "checkerboard_free=True .*inner_act_cfg=.*ReLU",
        ),
    ],
)
def test_refuses(
    cls: type[nn.Module], channels: tuple[Any, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(*channels, **options)


def test_ipixel_dcl_groups_must_divide_the_input() -> None:
    with pytest.raises(ValueError, match=r"groups must divide .*, got 4 .*in_channels=6"):
        IPixelDCL(6, 4, groups=4)


@pytest.mark.parametrize("cls", [PixelDCL, IPixelDCL])
@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (2, 3, 8, 8, 8), (2, 4, 8, 8), (2, 8, 8, 3)])
def test_refuses_inputs(cls: type[nn.Module], shape: tuple[int, ...]) -> None:
    named = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"{cls.__name__} .*\(N, 3, H, W\), got {named}"):
        cls(3, 4)(torch.zeros(shape))


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        PixelDCL(4, 4, 5)
    with pytest.raises(TypeError, match="'stride'"):
        PixelDCL(4, 4, stride=2)


@pytest.mark.parametrize("cls", [PixelDCL, IPixelDCL])
def test_shows_its_arguments(cls: type[nn.Module]) -> None:
    layer = cls(6, 4, kernel_size=5, padding_mode="replicate", groups=2, efficient=False)
    for part in ("6, 4", "kernel_size=5", "efficient=False", "padding_mode='replicate'", "groups=2"):
        assert part in repr(layer)


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
@pytest.mark.parametrize("scale_factor", [4, 8])
def test_larger_factors_repeat_the_x2_layer(cls: type[nn.Module], efficient: bool, scale_factor: int) -> None:
    layer = random_layer(cls, 3, 2, scale_factor=scale_factor, efficient=efficient)
    x = random(1, 3, 3, 5)
    expected, rest, steps = x, layer, 0
    while rest is not None:
        step = cls(expected.size(1), 2, efficient=efficient)
        step.load_state_dict({k: v for k, v in rest.state_dict().items() if "repeat" not in k})
        expected, rest, steps = step(expected), rest.repeat, steps + 1
    assert 2**steps == scale_factor
    out = layer(x)
    assert out.shape == (1, 2, 3 * scale_factor, 5 * scale_factor)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    first, second = layer.weight_p00, layer.repeat.weight_p00
    assert second.shape[:2] == (2, 2)
    assert first.shape != second.shape


@pytest.mark.parametrize("cls", [PixelDCL, IPixelDCL])
def test_repeats_have_the_same_options(cls: type[nn.Module]) -> None:
    shared = [
        dict(kernel_size=5, padding_mode="replicate", init="kaiming", groups=2, efficient=False),
        dict(checkerboard_free=True, separable=True),
    ]
    for options in shared:
        layer = cls(4, 2, scale_factor=4, **options)
        assert {name: getattr(layer.repeat, name) for name in options} == options
    repeat = cls(4, 2, scale_factor=4, inner_act_cfg=dict(type="Tanh")).repeat
    assert isinstance(repeat.inner_act, nn.Tanh)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
@pytest.mark.parametrize("padding_mode", layers.PADDING_MODES)
def test_empty_batch(cls: type[nn.Module], efficient: bool, padding_mode: str) -> None:
    layer = cls(3, 2, efficient=efficient, padding_mode=padding_mode, scale_factor=4)
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 2, 16, 20)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_keeps_the_memory_format(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> None:
    layer = random_layer(cls, 4, 4, efficient=efficient, **options)
    x = random(2, 4, 5, 6)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        inputs = x.clone(memory_format=memory_format).requires_grad_()
        out = layer(inputs)
        assert out.is_contiguous(memory_format=memory_format)
        out.square().sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.is_contiguous(memory_format=memory_format)
        results.append([out, inputs.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_takes_views(cls: type[nn.Module], efficient: bool) -> None:
    layer = random_layer(cls, 4, 2, efficient=efficient)
    view = random(2, 6, 4, 10).transpose(2, 3)[:, 1:5, 1::2]
    assert not view.is_contiguous()
    torch.testing.assert_close(layer(view), layer(view.contiguous()))


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_precisions(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> None:
    layer = random_layer(cls, 4, 4, efficient=efficient, **options)
    x = random(2, 4, 5, 6)
    exact = copy.deepcopy(layer).double()(x.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(layer(x).double(), exact, rtol=1e-4, atol=1e-5)

    half = copy.deepcopy(layer).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x)
    for out in (half(x.bfloat16()), mixed):
        assert out.dtype == torch.bfloat16
        error = (out.double() - exact).abs().max() / exact.abs().max()
        assert error < 0.05
    mixed.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_copies_and_round_trips(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> None:
    layer, x = random_layer(cls, 4, 4, efficient=efficient, **options), random(1, 4, 3, 4)
    expected = layer(x)

    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = random_layer(cls, 4, 4, seed=5, efficient=efficient, **options)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), expected)

    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert torch.equal(layer(x), expected)
    assert not torch.equal(twin(x), expected)

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    assert torch.equal(torch.func.functional_call(other, parameters, (x,)), expected)


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_bias_is_added_to_the_output(cls: type[nn.Module], efficient: bool) -> None:
    layer, x = random_layer(cls, 3, 2, efficient=efficient, bias=True), random(1, 3, 4, 5)
    plain = random_layer(cls, 3, 2, efficient=efficient)
    assert not layer.bias.any()
    torch.testing.assert_close(layer(x), plain(x))
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(layer(x), plain(x) + layer.bias[:, None, None])


def test_reset_parameters_starts_again() -> None:
    layer = PixelDCL(3, 3, scale_factor=4, bias=True)
    fresh = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    layer.reset_parameters()
    torch.testing.assert_close(layer.state_dict(), fresh, rtol=0, atol=0)


def test_inner_activation_is_between_the_maps_only() -> None:
    layer = random_layer(PixelDCL, 3, 3, inner_act_cfg=dict(type="ReLU"))
    out = layer(random(1, 3, 6, 6))
    for row, column in functional.PHASE_OFFSETS:
        assert (out[..., row::2, column::2] < 0).any()


@pytest.mark.parametrize(("cls", "efficient"), FORMS)
def test_inner_activation_never_works_in_place(cls: type[nn.Module], efficient: bool) -> None:
    """In place it would change the maps that go to the output."""
    outputs = []
    for inplace in (False, True):
        act = dict(type="ReLU", inplace=inplace)
        layer = random_layer(cls, 3, 3, efficient=efficient, inner_act_cfg=act)
        outputs.append(layer(random(1, 3, 6, 6)))
    assert torch.equal(*outputs)
