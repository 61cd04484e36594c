"""Which upsamplers can be replaced, and by what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .pixel_dcl import IPixelDCL

__all__ = ["CONVERTERS", "Converter", "converter_of", "interpolation"]

#: Makes the layer in a module's place, from the module and, where it was seen, its input. It returns None
#: where it must see the input first, and raises a ValueError if no layer computes the same.
Converter = Callable[[Any, Tensor | None], nn.Module | None]


def interpolation(x: Tensor, mode: str, scale_factor: int = 2) -> IPixelDCL:
    """Make the layer that interpolates a map ``(N, C, H, W)``, where that is and in its dtype."""
    layer = IPixelDCL.from_interpolation(x.size(1), mode, scale_factor=scale_factor)
    return layer.to(x.device, x.dtype)


def _from_deconvolution(module: nn.ConvTranspose2d, x: Tensor | None) -> IPixelDCL:
    return IPixelDCL.from_deconvolution(module)


def _from_upsample(module: nn.Upsample, x: Tensor | None) -> IPixelDCL | None:
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,)
    if module.size is not None:
        raise ValueError(f"its output has a fixed size, {module.size}")
    if len(set(factors)) > 1 or factors[0] not in (2, 4, 8, 16, 32):
        raise ValueError(f"scale_factor must be a power of two, got {module.scale_factor}")
    if module.align_corners:
        raise ValueError("with align_corners=True every pixel weighs its neighbours otherwise")
    return None if x is None else interpolation(x, module.mode, int(factors[0]))


#: By type. A subclass counts as its nearest base here; what is inside of a module of these is not looked at.
CONVERTERS: dict[type[nn.Module], Converter] = {
    nn.ConvTranspose2d: _from_deconvolution,
    nn.Upsample: _from_upsample,
}


def converter_of(module: nn.Module) -> Converter | None:
    """Return what converts a module, or None if it is no upsampler known here."""
    return next((CONVERTERS[base] for base in type(module).__mro__ if base in CONVERTERS), None)
