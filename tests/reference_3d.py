"""Pixel deconvolution of volumes transcribed voxel by voxel, for the fast paths to be compared with.

Source: the authors' code (HongyangGao/PixelDCN, ``utils/pixel_dcn.py``), with its kernels: conv0 to conv3,
each reading the concatenation of its sources. Fig. 6 on a grid of eight phases is nobody's but the package's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from reference import dense, identity
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Offset = tuple[int, int, int]

CORNER, CENTRE = (0, 0, 0), (1, 1, 1)
FACES = ((1, 1, 0), (1, 0, 1), (0, 1, 1))
EDGES = ((1, 0, 0), (0, 0, 1), (0, 1, 0))


def voxels(size: tuple[int, ...]) -> itertools.product[Offset]:
    return itertools.product(*map(range, size))


def at(volume: Tensor, position: tuple[int, ...], mode: str) -> Tensor:
    """The values ``(N, C)`` at a voxel; beyond the border zeros, or those of the nearest voxel."""
    inside = [min(max(p, 0), size - 1) for p, size in zip(position, volume.shape[2:], strict=True)]
    value = volume[:, :, inside[0], inside[1], inside[2]]
    return value if mode == "replicate" or tuple(inside) == position else torch.zeros_like(value)


def conv(x: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """``x * kernel``, voxel by voxel and tap by tap."""
    radius = kernel.size(2) // 2
    out = []
    for voxel in voxels(x.shape[2:]):
        value = x.new_zeros(x.size(0), kernel.size(0))
        for tap in voxels(kernel.shape[2:]):
            position = tuple(v + t - radius for v, t in zip(voxel, tap, strict=True))
            value = value + at(x, position, mode) @ kernel[:, :, tap[0], tap[1], tap[2]].T
        out.append(value)
    return torch.stack(out, 2).unflatten(2, x.shape[2:])


def interleave(maps: dict[Offset, Tensor]) -> Tensor:
    first = maps[CORNER]
    out = first.new_zeros(*first.shape[:2], *(2 * size for size in first.shape[2:]))
    for (a, b, c), phase in maps.items():
        out[..., a::2, b::2, c::2] = phase
    return out


# --- the authors' layers -------------------------------------------------------------------------


def pixel_dcl_3d(x: Tensor, kernels: list[Tensor], mode: str, act: Activation = identity) -> Tensor:
    conv0, conv1, conv2, conv3 = kernels
    corner = conv(x, conv0, mode)
    centre = conv(act(corner), conv1, mode)
    faces = conv(torch.cat([act(corner), act(centre)], 1), conv2, mode)
    edges = conv(torch.cat([act(corner), act(faces)], 1), conv3, mode)
    return by_name(corner, centre, faces, edges)


def ipixel_dcl_3d(x: Tensor, kernels: list[Tensor], mode: str, act: Activation = identity) -> Tensor:
    conv0, conv1, conv2, conv3 = kernels
    corner = conv(x, conv0, mode)
    centre = conv(torch.cat([x, act(corner)], 1), conv1, mode)
    faces = conv(torch.cat([x, act(corner), act(centre)], 1), conv2, mode)
    edges = conv(torch.cat([act(faces), x, act(corner), act(centre)], 1), conv3, mode)
    return by_name(corner, centre, faces, edges)


def by_name(corner: Tensor, centre: Tensor, faces: Tensor, edges: Tensor) -> Tensor:
    maps = {CORNER: corner, CENTRE: centre}
    maps |= dict(zip(FACES, faces.chunk(3, 1), strict=True)) | dict(
        zip(EDGES, edges.chunk(3, 1), strict=True)
    )
    return interleave(maps)


def parameters(kind: str, kernels: list[Tensor]) -> dict[str, Tensor]:
    """The authors' kernels ``(out, in, k, k, k)`` under the layer's names: cut by what they read and make."""
    conv0, conv1, conv2, conv3 = kernels
    c, cin = conv0.shape[:2]
    if kind == "PixelDCL3d":
        (centre_of_corner,) = conv1.split(c, 1)
        faces_of_corner, faces_of_centre = conv2.split(c, 1)
        edges_of_corner, *edges_of_faces = conv3.split(c, 1)
        of_x, of_centre = {}, faces_of_centre
    else:
        centre_of_x, centre_of_corner = conv1.split([cin, c], 1)
        faces_of_x, faces_of_corner, faces_of_centre = conv2.split([cin, c, c], 1)
        *edges_of_faces, edges_of_x, edges_of_corner, edges_of_centre = conv3.split([c, c, c, cin, c, c], 1)
        of_x = {"weight_from_x": torch.cat([centre_of_x, faces_of_x, edges_of_x])}
        of_centre = torch.cat([faces_of_centre, edges_of_centre])
    return {
        "weight_p000": conv0,
        **of_x,
        "weight_from_p000": torch.cat([centre_of_corner, faces_of_corner, edges_of_corner]),
        "weight_from_p111": of_centre,
        "weight_from_p110": edges_of_faces[0],
        "weight_from_p101": edges_of_faces[1],
        "weight_from_p011": edges_of_faces[2],
    }


# --- Fig. 6 on the grid of a volume --------------------------------------------------------------


def masked_kernel(taps: dict[Offset, Tensor], kernel_size: int) -> Tensor:
    """A ``k x k x k`` kernel from its live taps, which are given by the parities of their offsets."""
    some = next(iter(taps.values()))
    kernel = some.new_zeros(*some.shape[:2], *[kernel_size] * 3)
    for parities, weight in taps.items():
        where = [
            torch.tensor([i for i in range(kernel_size) if (i - kernel_size // 2) % 2 == odd])
            for odd in parities
        ]
        kernel[:, :, where[0][:, None, None], where[1][:, None], where[2]] = weight
    return kernel


def on_the_grid(maps: dict[Offset, Tensor], made: Offset, kernel: Tensor, mode: str) -> Tensor:
    """A phase made by a kernel on the dilated grid, in which every phase that is not given is a hole.

    With 'replicate' each phase goes on beyond its own border.
    """
    some, radius = next(iter(maps.values())), kernel.size(2) // 2
    out = []
    for voxel in voxels(some.shape[2:]):
        value = some.new_zeros(some.size(0), kernel.size(0))
        for tap in voxels(kernel.shape[2:]):
            full = [2 * v + m + t - radius for v, m, t in zip(voxel, made, tap, strict=True)]
            phase = maps.get(tuple(f % 2 for f in full))
            if phase is not None:
                position = tuple(f // 2 for f in full)
                value = value + at(phase, position, mode) @ kernel[:, :, tap[0], tap[1], tap[2]].T
        out.append(value)
    return torch.stack(out, 2).unflatten(2, some.shape[2:])


def pixel_dcl_3d_efficient(
    x: Tensor, weights: dict[str, Tensor], mode: str, act: Activation = identity
) -> Tensor:
    """From the layer's weights, whose names tell the parities of their taps."""
    taps: dict[str, dict[Offset, Tensor]] = {"face": {}, "edge": {}}
    for name, weight in weights.items():
        _, kind, *parities = name.split("_")
        if kind in taps:
            taps[kind][tuple(map(int, parities[0]))] = weight
    face_kernel, edge_kernel = (masked_kernel(taps[k], weights["weight_p000"].size(2)) for k in taps)
    corner = conv(x, weights["weight_p000"], mode)
    centre = conv(act(corner), weights["weight_p111"], mode)
    grid = {CORNER: act(corner), CENTRE: act(centre)}
    faces = {made: on_the_grid(grid, made, face_kernel, mode) for made in FACES}
    grid = {CORNER: act(corner), **{offset: act(face) for offset, face in faces.items()}}
    edges = {made: on_the_grid(grid, made, edge_kernel, mode) for made in EDGES}
    return interleave({CORNER: corner, CENTRE: centre, **faces, **edges})


def dense_weights(layer: nn.Module) -> dict[str, Tensor]:
    """A grouped layer's kernels as those of a layer without groups: zero between channels of two groups."""
    made = {}
    for name, weight in layer.effective_weights().items():
        groups = 1 if layer.kernels[name].dense else layer.groups
        made[name] = torch.cat([dense(block, groups) for block in weight.split(layer.out_channels)])
    return made
