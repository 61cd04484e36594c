"""What an upsampling layer computes, found by probing it: its kernels and its response to constants.

Any layer will do that takes only the low-resolution map: those of this package, mmcv's ``InterpConv`` and
``DeconvModule``, plain ``nn.ConvTranspose2d``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from mmcv.cnn import is_norm
from torch import Tensor, nn

from ..layers.arguments import check_positive
from ..models.upsamplers import LearnedUpsample

__all__ = ["bare_layer", "dc_response", "equivalent_kernels"]

#: Values of a batch of probes, so that probing a wide layer does not fill the memory.
_BATCH_VALUES = 2**24
#: A layer whose response does not end within so many pixels on each side has no kernel to speak of.
_MAX_REACH = 48
#: What float64 leaves of a zero, relative to the values that make it.
_TOLERANCE = 1e-10

_ACTIVATION_MODULES = {
    "torch.nn.modules.activation",
    "mmcv.cnn.bricks.activation",
    "mmcv.cnn.bricks.hsigmoid",
    "mmcv.cnn.bricks.hswish",
    "mmcv.cnn.bricks.swish",
}


def bare_layer(module: nn.Module) -> nn.Module:
    """Copy an upsampler to float64 on the CPU, in eval mode, without the norms and activations around it.

    What is left of the upsamplers of this package, of ``DeconvModule`` and of ``InterpConv`` is linear up to
    a bias, but for those that adapt to their input. An ``inner_act_cfg`` of a pixel deconvolution is part of
    the layer and stays.
    """
    return _strip(deepcopy(module)).double().cpu().eval()


def _strip(module: nn.Module) -> nn.Module:
    """Replace the norms and activations in a module by identities, in place."""
    for name, child in module.named_children():
        if is_norm(child) or type(child).__module__ in _ACTIVATION_MODULES:
            setattr(module, name, nn.Identity())
        elif not (isinstance(module, LearnedUpsample) and name == "layer"):
            _strip(child)
    return module


@torch.no_grad()
def dc_response(layer: nn.Module, in_channels: int) -> Tensor:
    """Return what each phase of an upsampling layer makes of constants, where borders are out of reach.

    Norms and activations around the layer are left out (:func:`bare_layer`), a bias is subtracted.

    Args:
        layer: Maps ``(N, in_channels, H, W)`` to ``(N, Cout, s H, s W)``; it is not changed.
        in_channels: Channels of its input.

    Returns:
        Float64 tensor ``(s, s, Cout, in_channels)``: at ``[a, b, :, c]`` the value of the output's phase
        ``out[..., a::s, b::s]`` for an input that is 1 everywhere in channel c and 0 in the others.

    Raises:
        ValueError: If the layer does not take such an input, does not enlarge it by one whole factor of two
            or more, or reaches further than 48 pixels.
    """
    layer = bare_layer(layer)
    reach, scale = _probe(layer, in_channels)
    size = 2 * reach + 1
    centre = slice(reach * scale, (reach + 1) * scale)
    responses = [
        (layer(ones[:, :, None, None].expand(-1, -1, size, size).contiguous()))[:, :, centre, centre]
        for ones in _unit_vectors(range(in_channels), in_channels, size)
    ]
    at_zero = layer(torch.zeros(1, in_channels, size, size, dtype=torch.float64))[:, :, centre, centre]
    return (torch.cat(responses) - at_zero).permute(2, 3, 1, 0)


@torch.no_grad()
def equivalent_kernels(layer: nn.Module, in_channels: int, inputs: Sequence[int] | None = None) -> Tensor:
    """Return the convolution that each phase of a linear upsampling layer is: its impulse response.

    ``out[:, o, s i + a, s j + b]`` is the sum over c, dy and dx of ``K[a, b, o, c, r + dy, r + dx]`` times
    ``x[:, c, i + dy, j + dx]``, away from the borders. Norms and activations around the layer are left out
    (:func:`bare_layer`), a bias is subtracted.

    Args:
        layer: Maps ``(N, in_channels, H, W)`` to ``(N, Cout, s H, s W)``; it is not changed.
        in_channels: Channels of its input.
        inputs: Input channels of interest; all by default.

    Returns:
        Float64 tensor ``(s, s, Cout, len(inputs), 2 r + 1, 2 r + 1)`` with the least r that holds all taps.

    Raises:
        ValueError: As :func:`dc_response`, or if the layer is not a linear function that treats all input
            pixels alike, or a channel of ``inputs`` does not exist.
    """
    channels = range(in_channels) if inputs is None else inputs
    if not channels or not set(channels) <= set(range(in_channels)):
        raise ValueError(f"inputs must name channels from 0 to {in_channels - 1}, got {inputs!r}")
    layer = bare_layer(layer)
    reach, scale = _probe(layer, in_channels)
    _check_linear(layer, in_channels, reach, scale)
    size = 2 * reach + 1
    at_zero = layer(torch.zeros(1, in_channels, size, size, dtype=torch.float64))
    responses = []
    for ones in _unit_vectors(channels, in_channels, size):
        impulse = ones.new_zeros(*ones.shape, size, size)
        impulse[:, :, reach, reach] = ones
        responses.append(layer(impulse) - at_zero)
    response = torch.cat(responses).unflatten(2, (size, scale)).unflatten(4, (size, scale))
    # The impulse lies at an offset of (dy, dx) from the pixel that is (dy, dx) before it.
    kernels = response.permute(3, 5, 1, 0, 2, 4).flip(4, 5)
    used = kernels.abs().amax((0, 1, 2, 3)) > _TOLERANCE * kernels.abs().max()
    offsets = (used.nonzero() - reach).abs()
    radius = int(offsets.max()) if len(offsets) else 0
    return kernels[..., reach - radius : reach + radius + 1, reach - radius : reach + radius + 1].contiguous()


def _unit_vectors(channels: Sequence[int], in_channels: int, size: int) -> Iterator[Tensor]:
    """Yield the unit vectors of channels, as many rows at a time as maps of this size may be probed with."""
    rows = max(_BATCH_VALUES // (in_channels * size**2), 1)
    index = torch.as_tensor(list(channels))
    for chunk in index.split(rows):
        yield torch.nn.functional.one_hot(chunk, in_channels).double()


def _probe(layer: nn.Module, in_channels: int) -> tuple[int, int]:
    """Find how far one input pixel reaches, in input pixels, and the scale factor."""
    check_positive(in_channels=in_channels)
    generator = torch.Generator().manual_seed(0)
    reach = 3
    while True:
        size = 2 * reach + 1
        x = torch.randn(1, in_channels, size, size, dtype=torch.float64, generator=generator)
        changed = x.clone()
        changed[:, :, reach, reach] += torch.randn(in_channels, dtype=torch.float64, generator=generator)
        out = _call(layer, x)
        scale = out.size(2) // size
        if scale < 2 or out.shape[2:] != (scale * size, scale * size):
            raise ValueError(
                f"{type(layer).__name__} maps {size} x {size} to {tuple(out.shape[2:])}: no whole factor >= 2"
            )
        difference = (_call(layer, changed) - out).abs().amax((0, 1))
        difference[scale:-scale, scale:-scale] = 0  # what is left is the outermost input pixels
        if difference.max() <= _TOLERANCE * out.abs().max():
            return reach, scale
        if reach >= _MAX_REACH:
            raise ValueError(f"{type(layer).__name__} reaches further than {_MAX_REACH} pixels")
        reach = min(2 * reach, _MAX_REACH)


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    try:
        out = layer(x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(layer).__name__} takes no input of shape {tuple(x.shape)}: {reason}"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 4:
        raise ValueError(f"{type(layer).__name__} does not return a map (N, C, H, W)")
    return out


def _check_linear(layer: nn.Module, in_channels: int, reach: int, scale: int) -> None:
    """Check that the layer, without its bias, is additive and commutes with a shift of one input pixel."""
    generator = torch.Generator().manual_seed(1)
    size = 4 * reach + 3
    shape = (1, in_channels, 1, 1)
    first, second = (torch.zeros(1, in_channels, size, size, dtype=torch.float64) for _ in range(2))
    for x in (first, second):
        x[:, :, 2 * reach : -2 * reach, 2 * reach : -2 * reach] = torch.randn(
            shape, dtype=torch.float64, generator=generator
        )
    at_zero = layer(torch.zeros_like(first))
    responses = [layer(x) - at_zero for x in (first, second, first + second, first.roll((1, 1), (2, 3)))]
    limit = _TOLERANCE * (responses[0].abs().max() + responses[1].abs().max())
    additive = (responses[0] + responses[1] - responses[2]).abs().max() <= limit
    moved = responses[0].roll((scale, scale), (2, 3))
    if not additive or (moved - responses[3]).abs().max() > limit:
        raise ValueError(
            f"{type(layer).__name__} has no equivalent kernels: it is not linear, or does not treat all "
            "pixels alike"
        )
