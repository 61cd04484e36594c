"""PixelDCL and iPixelDCL for volumes.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), and the authors' code,
which makes the eight phases of a volume in four stages: p000, then p111, then p110 p101 p011 together, then
p100 p001 p010 together. In a cell of the grid that p000 spans these are the corners, the centre, the middles
of the faces and those of the edges.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import functional
from .functional import EDGE_PARITIES, FACE_PARITIES
from .kernels import Kernel
from .pixel_dcl import PixelUpsample

__all__ = ["IPixelDCL3d", "PixelDCL3d", "ipixel_dcl_3d_kernels", "pixel_dcl_3d_kernels"]

_FACES, _EDGES = ("p110", "p101", "p011"), ("p100", "p001", "p010")


def pixel_dcl_3d_kernels(kernel_size: int, efficient: bool, separable: bool = False) -> dict[str, Kernel]:
    """Return the kernels of PixelDCL for volumes, of live taps only if ``efficient``."""
    size = (kernel_size,) * 3
    first = {"weight_p000": Kernel.between("x", "p000", size=size, dense=not separable)}
    if not efficient:
        return first | {
            "weight_from_p000": Kernel.between("p000", "p111", *_FACES, *_EDGES, size=size),
            "weight_from_p111": Kernel.between("p111", *_FACES, size=size),
            **_from_faces(size),
        }
    table = first | {"weight_p111": Kernel.between("p000", "p111", size=size)}
    for kind, every, sources, maps in (
        ("face", FACE_PARITIES, ("p000", "p111"), _FACES),
        ("edge", EDGE_PARITIES, ("p000", *_FACES), _EDGES),
    ):
        for parities in every:
            name = f"weight_{kind}_{''.join(map(str, parities))}"
            table[name] = Kernel.live(parities, sources, maps, kernel_size)
    return table


def ipixel_dcl_3d_kernels(kernel_size: int, efficient: bool, separable: bool = False) -> dict[str, Kernel]:
    """Return the kernels of iPixelDCL for volumes, which has one form."""
    size = (kernel_size,) * 3
    return {
        "weight_p000": Kernel.between("x", "p000", size=size, dense=not separable),
        "weight_from_x": Kernel.between("x", "p111", *_FACES, *_EDGES, size=size),
        "weight_from_p000": Kernel.between("p000", "p111", *_FACES, *_EDGES, size=size),
        "weight_from_p111": Kernel.between("p111", *_FACES, *_EDGES, size=size),
        **_from_faces(size),
    }


def _from_faces(size: tuple[int, ...]) -> dict[str, Kernel]:
    return {f"weight_from_{face}": Kernel.between(face, *_EDGES, size=size) for face in _FACES}


class PixelDCL3d(PixelUpsample):
    """Pixel deconvolution of volumes: the eight phases of the output in four stages, as the authors' code.

    p000 is made from the input, p111 from p000, then p110, p101 and p011 from p000 and p111, then p100, p001
    and p010 from p000 and those three.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels C of the output.
        efficient: False is the authors' layer, a dense kernel for every pair of maps. True carries Fig. 6
            over to volumes, which neither the paper nor their code does: from the third stage on a voxel is
            made from its nearest neighbours on the output's grid, through masked kernels computed on their
            live taps (:func:`~pixeldcl_plugin.layers.functional.pixel_dcl_3d`). That takes a quarter of the
            arithmetic.
        **options: ``kernel_size``, ``scale_factor``, ``padding_mode``, ``init``, ``checkerboard_free``,
            ``groups``, ``separable``, ``bias`` and ``inner_act_cfg`` of :class:`~pixeldcl_plugin.PixelDCL`.
            With ``init='interpolate'`` the untrained layer is a smooth interpolation on the grid of
            ``F.interpolate(mode='trilinear', align_corners=False)``.

    Shape:
        ``(N, in_channels, D, H, W)`` -> ``(N, out_channels, s D, s H, s W)``, s the scale factor, in the
        memory format of the input.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    spatial_dims = 3
    _kernel_table = staticmethod(pixel_dcl_3d_kernels)

    def __init__(
        self, in_channels: int, out_channels: int, *, efficient: bool = False, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, efficient=efficient, **options)

    def _upsample(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        if not self.efficient:
            return functional.pixel_dcl_full(x, list(weights.values()), **self._options())
        p000, p111, *taps = weights.values()
        faces, edges = taps[: len(FACE_PARITIES)], taps[len(FACE_PARITIES) :]
        return functional.pixel_dcl_3d(x, p000, p111, faces, edges, **self._options())


class IPixelDCL3d(PixelUpsample):
    """Input pixel deconvolution of volumes, as the authors' code: every stage also reads the input.

    p000 is made from the input, and each later stage from the input and all the stages before it. There is
    no ``efficient=False``; the other arguments, shapes and errors are those of :class:`PixelDCL3d`.
    ``groups`` must divide ``in_channels`` too, since the later maps read the input.
    """

    spatial_dims = 3
    _forms = (True,)
    _kernel_table = staticmethod(ipixel_dcl_3d_kernels)

    def _upsample(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return functional.ipixel_dcl(x, list(weights.values()), **self._options())
