"""The layers under torch.func, forward-mode AD and TorchScript's tracer."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from pixeldcl_plugin import layers
from pixeldcl_plugin.layers import functional

FORMS = list(reference.LITERAL)
OPTIONS = [dict(), dict(padding_mode="replicate", checkerboard_free=True, groups=2)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def make_layer(form: tuple[str, bool], **options: Any) -> nn.Module:
    name, efficient = form
    torch.manual_seed(0)
    return getattr(layers, name)(4, 4, efficient=efficient, init="kaiming", **options).double()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_vmap_over_inputs_and_over_weights(
    form: tuple[str, bool], options: dict[str, Any], memory_format: torch.memory_format
) -> None:
    layer = make_layer(form, **options)
    x = random(2, 4, 3, 5).to(memory_format=memory_format)
    inputs = torch.stack([x, 2 * x, x - 1], dim=1)
    expected = torch.stack([layer(each) for each in inputs.unbind(1)])
    torch.testing.assert_close(torch.vmap(layer, in_dims=1)(inputs), expected)

    weights = {name: torch.stack([w, 3 * w]) for name, w in layer.named_parameters()}
    out = torch.vmap(lambda w: functional_call(layer, w, (x,)))(weights)
    for index in range(2):
        one = {name: w[index] for name, w in weights.items()}
        torch.testing.assert_close(out[index], functional_call(layer, one, (x,)))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_every_sample(form: tuple[str, bool]) -> None:
    layer, x = make_layer(form), random(3, 4, 3, 5)
    weights = dict(layer.named_parameters())

    def loss(w: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(layer, w, (image[None],)).square().sum()

    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for index, image in enumerate(x):
        expected = torch.autograd.grad(loss(weights, image), list(weights.values()))
        torch.testing.assert_close([g[index] for g in grads.values()], list(expected))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_forward_mode(form: tuple[str, bool], memory_format: torch.memory_format) -> None:
    layer = make_layer(form)
    x, tangent = (random(2, 4, 3, 5, seed=s).to(memory_format=memory_format) for s in (1, 2))
    expected = layer(tangent)  # it is linear
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (tangent,))[1], expected)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    torch.testing.assert_close(dual.tangent, expected)

    small = random(1, 4, 1, 2)
    jacobian = torch.func.jacrev(layer)(small)
    torch.testing.assert_close(torch.func.jacfwd(layer)(small), jacobian)
    forward = torch.autograd.functional.jacobian(layer, small, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, jacobian)
    hessian = torch.func.hessian(lambda x: layer(x).square().sum() / 2)(small).view(8, 8)
    flat = jacobian.view(-1, 8)
    torch.testing.assert_close(hessian, flat.T @ flat)


def test_forward_mode_through_one_phase_only() -> None:
    phases = [random(1, 2, 2, 3, seed=seed) for seed in range(4)]
    tangent = random(1, 2, 2, 3, seed=9)
    out, moved = torch.func.jvp(
        lambda p: functional.interleave(*phases[:3], p), tuple(phases[3:]), (tangent,)
    )
    assert torch.equal(out, functional.interleave(*phases))
    zeros = [torch.zeros_like(tangent)] * 3
    assert torch.equal(moved, functional.interleave(*zeros, tangent))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "layer",
    [*(make_layer(form) for form in FORMS), make_layer(FORMS[0], scale_factor=4), layers.TorchCARAFE(4, 4)],
    ids=lambda layer: f"{type(layer).__name__}-{getattr(layer, 'efficient', '')}",
)
def test_traced_layer_is_saved_and_takes_other_sizes(
    layer: nn.Module, memory_format: torch.memory_format
) -> None:
    dtype = next(layer.parameters()).dtype
    x, other = (random(*s).to(dtype, memory_format=memory_format) for s in [(2, 4, 3, 5), (1, 4, 6, 2)])
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and tells of every shape it fixes
        torch.jit.save(torch.jit.trace(layer, x), file)
        file.seek(0)
        loaded = torch.jit.load(file)
    for image in (x, other):
        torch.testing.assert_close(loaded(image), layer(image))
