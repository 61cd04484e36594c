"""The ways to make the maps channel by channel: each gives the method's values and derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from pixeldcl_plugin.layers import PixelDCL, channelwise, functional
from pixeldcl_plugin.layers.interleave import Cut, interleave_sums

WAYS = ("two calls", "tap by tap", "convolutions")
FORMATS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 1), (1, 6), (5, 1), (2, 2), (5, 7)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let layers take one of the ways where it is open to them."""
    if request.param != "two calls":
        monkeypatch.setattr(channelwise, "_FEW", 0)
    if request.param == "convolutions":
        monkeypatch.setattr(functional, "suits_last_phases", lambda *args: False)
    way: str = request.param
    return way


def make_layer(**options: Any) -> PixelDCL:
    torch.manual_seed(0)
    return PixelDCL(3, 3, groups="out_channels", init="kaiming", **options).double()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "dtype", "memory_format", "options", "taken"),
    [
        ((20, 20), torch.float32, FORMATS[0], {}, "in_two_calls"),
        ((20, 20), torch.bfloat16, FORMATS[1], {}, "in_two_calls"),
        ((160, 160), torch.float32, FORMATS[0], {}, "last_phases"),
        ((160, 160), torch.float32, FORMATS[1], {}, "_from_live_taps"),
        ((160, 160), torch.bfloat16, FORMATS[0], {}, "_from_live_taps"),
        ((160, 160), torch.float32, FORMATS[0], {"padding_mode": "replicate"}, "_from_live_taps"),
        ((20, 20), torch.float32, FORMATS[0], {"kernel_size": 5}, "_from_live_taps"),
        ((20, 20), torch.float32, FORMATS[0], {"groups": 1}, "_from_live_taps"),
    ],
    ids=str,
)
def test_which_way_is_taken(
    size: tuple[int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    options: dict[str, Any],
    taken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways: list[str] = []
    for name in ("in_two_calls", "last_phases", "_from_live_taps"):
        function = getattr(functional, name)
        monkeypatch.setattr(
            functional, name, lambda *args, n=name, f=function, **kwargs: ways.append(n) or f(*args, **kwargs)
        )
    layer = PixelDCL(3, 3, **{"groups": 3, **options}).to(dtype)
    with torch.no_grad():
        layer(torch.randn(1, 3, *size, dtype=dtype).contiguous(memory_format=memory_format))
    assert set(ways) == {taken}


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("options", [{}, {"separable": True}, {"padding_mode": "replicate"}], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients(
    size: tuple[int, int], options: dict[str, Any], memory_format: torch.memory_format, way: str
) -> None:
    layer = make_layer(**options)
    x = random(2, 3, *size).contiguous(memory_format=memory_format).requires_grad_()
    out, expected = layer(x), reference.upsample(layer, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = random(*out.shape, seed=2).contiguous(memory_format=memory_format)
    inputs = [x, *layer.parameters()]
    grads = torch.autograd.grad(out, inputs, cotangent)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, inputs, cotangent), rtol=0, atol=1e-12)


def test_gradients_of_gradients(way: str) -> None:
    layer, x = make_layer(), random(1, 3, 2, 3).requires_grad_()
    weights = tuple(layer.parameters())
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> Any:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *weights))
    assert torch.autograd.gradgradcheck(call, (x, *weights))


def test_only_what_is_wanted_is_differentiated(way: str) -> None:
    layer = make_layer()
    x = random(1, 3, 4, 5).requires_grad_()
    (frozen,) = torch.autograd.grad(layer.requires_grad_(False)(x).square().sum(), x)
    assert frozen.abs().max() > 0
    layer.weight_v.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x.detach()).square().sum(), layer.weight_v)
    assert grad.shape == layer.weight_v.shape


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_gradients_keep_the_memory_format(memory_format: torch.memory_format) -> None:
    phase = torch.randn(2, 4, 3, 5).contiguous(memory_format=memory_format)
    larger = torch.randn(2, 4, 3, 6).contiguous(memory_format=memory_format).requires_grad_()
    cut = Cut(larger, (slice(None), slice(1, None)))
    out = interleave_sums((phase,), (phase,), (phase, cut), (phase,))
    cotangent = torch.randn(out.shape).contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(out, larger, cotangent)
    assert grad.is_contiguous(memory_format=memory_format)
    assert grad[..., 0].eq(0).all()
    assert torch.equal(grad[..., 1:], cotangent[..., ::2, 1::2])


def test_function_transforms(way: str) -> None:
    layer, x, tangent = make_layer(), random(2, 3, 3, 4), random(2, 3, 3, 4, seed=2)
    inputs = torch.stack([x, 2 * x, x - 1], dim=1)
    expected = torch.stack([layer(each) for each in inputs.unbind(1)])
    torch.testing.assert_close(torch.vmap(layer, in_dims=1)(inputs), expected)

    weights = {name: torch.stack([w, w.square()]) for name, w in layer.named_parameters()}
    out = torch.vmap(lambda w: functional_call(layer, w, (x,)))(weights)
    for index in range(2):
        one = {name: w[index] for name, w in weights.items()}
        torch.testing.assert_close(out[index], functional_call(layer, one, (x,)))

    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    torch.testing.assert_close(dual.tangent, layer(tangent))
    small = random(1, 3, 1, 2)
    torch.testing.assert_close(torch.func.jacfwd(layer)(small), torch.func.jacrev(layer)(small))


def test_last_phases_over_any_dimension() -> None:
    maps = [random(2, 3, 4, 5, seed=seed) for seed in (1, 2)]
    weights = random(3, 1, 1, 2, seed=3), random(3, 1, 2, 1, seed=4)
    many = (
        [torch.stack([x, 2 * x, x - 1], 2) for x in maps],
        [torch.stack([w, w.square(), -w], 1) for w in weights],
    )
    out = torch.vmap(channelwise.last_phases, in_dims=(2, 2, 1, 1))(*many[0], *many[1])
    for index in range(3):
        args = (*(x.select(2, index) for x in many[0]), *(w.select(1, index) for w in many[1]))
        torch.testing.assert_close([o[index] for o in out], [*channelwise.last_phases(*args)])


def test_forward_mode_of_the_weights(way: str) -> None:
    layer, x = make_layer(), random(1, 3, 2, 3)

    def of(name: str) -> Any:
        return lambda w: functional_call(layer, {name: w}, (x,))

    for name, weight in layer.named_parameters():
        forward, backward = torch.func.jacfwd(of(name))(weight), torch.func.jacrev(of(name))(weight)
        torch.testing.assert_close(forward, backward)


def test_bfloat16_and_inner_activation(way: str) -> None:
    layer = make_layer(inner_act_cfg=dict(type="Tanh")).float()
    x = random(2, 3, 5, 6).float()
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
