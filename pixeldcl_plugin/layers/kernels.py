"""The kernels of a pixel deconvolution: what each reads and makes, how it begins, what binds it.

A layer is a table of :class:`Kernel`; initialisation and the checkerboard-free constraint follow from
the table, so that they are written once for PixelDCL and iPixelDCL in all their forms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

import torch
from torch import Tensor

from .functional import live_taps

Taps = tuple[tuple[int, ...], ...]


def _nearest(source: str, made: str) -> Taps:
    """Return the taps of a phase's nearest neighbours among another's pixels, at the low resolution.

    p11[i, j] lies between p00[i, j] and p00[i + 1, j + 1], p01[i, j] between p11[i - 1, j] and p11[i, j].
    Of the input there are none, and of later phases only those that differ along one axis.
    """
    if source == "x":
        return ()
    if "1" in source and sum(_apart(source, made)) > 1:
        return ()
    after, before = (0, 1), (-1, 0)
    axes = zip(source[1:], made[1:], strict=True)
    return tuple(product(*((0,) if s == m else after if m == "1" else before for s, m in axes)))


def _apart(source: str, made: str) -> tuple[int, ...]:
    """Return along which axes the offsets of two phases differ."""
    return tuple(int(s != m) for s, m in zip(source[1:], made[1:], strict=True))


@dataclass(frozen=True)
class Target:
    """What one block of a weight makes: the maps, several if they share it, and their nearest neighbours.

    ``nearest`` are the taps, (dy, dx) or (dz, dy, dx), of these among what is read, counted from the centre;
    an even number of taps puts that after the middle.
    """

    maps: tuple[str, ...]
    nearest: Taps = ()


@dataclass(frozen=True)
class Kernel:
    """One weight: the maps that it reads, what its blocks (stacked on dim 0) make, its size in taps.

    A ``dense`` one mixes all channels whatever the groups of the others.
    """

    sources: tuple[str, ...]
    targets: tuple[Target, ...]
    size: tuple[int, ...]
    dense: bool = False

    @classmethod
    def between(cls, source: str, *maps: str, size: tuple[int, ...], dense: bool = False) -> Kernel:
        """Return the kernel that makes each of some maps out of one, with a block a map."""
        targets = tuple(Target((made,), _nearest(source, made)) for made in maps)
        return cls((source,), targets, size, dense)

    @classmethod
    def live(
        cls, parities: tuple[int, ...], sources: tuple[str, ...], maps: tuple[str, ...], kernel_size: int
    ) -> Kernel:
        """Return the taps of a masked kernel whose offsets have these parities, on the dilated grid.

        Each of these taps joins the phases whose offsets differ by its parities: one block serves them all.
        """
        pairs = [(s, made) for made in maps for s in sources if _apart(s, made) == parities]
        nearest = tuple(product(*(((0,), (-1, 0))[odd] for odd in parities))) if _nearest(*pairs[0]) else ()
        target = Target(tuple(made for _, made in pairs), nearest)
        size = tuple(live_taps(kernel_size)[odd] for odd in parities)
        return cls(tuple(source for source, _ in pairs), (target,), size)

    @property
    def reads_input(self) -> bool:
        """Whether it reads the layer's input, and no map."""
        return self.sources == ("x",)

    def shape(self, in_channels: int, out_channels: int, groups: int) -> tuple[int, ...]:
        """Return the weight's shape ``(targets * C, source channels / groups, *size)``."""
        read = in_channels if self.reads_input else out_channels
        return (len(self.targets) * out_channels, read // (1 if self.dense else groups), *self.size)


def pixel_dcl_kernels(kernel_size: int, efficient: bool, separable: bool = False) -> dict[str, Kernel]:
    """Return the kernels of PixelDCL (Fig. 6 if ``efficient``, else Fig. 5, solid lines).

    The first one mixes the channels, unless a ``separable`` layer has mixed them before.
    """
    size = (kernel_size, kernel_size)
    first = Kernel.between("x", "p00", size=size, dense=not separable)
    if not efficient:
        return {
            "weight_p00": first,
            "weight_from_p00": Kernel.between("p00", "p11", "p01", "p10", size=size),
            "weight_from_p11": Kernel.between("p11", "p01", "p10", size=size),
            "weight_from_p01": Kernel.between("p01", "p10", size=size),
        }
    # p01 reads p00 along its rows and p11 along its columns, p10 the other way round.
    phases = ("p00", "p11"), ("p01", "p10")
    return {
        "weight_p00": first,
        "weight_p11": Kernel.between("p00", "p11", size=size),
        "weight_h": Kernel.live((0, 1), *phases, kernel_size),
        "weight_v": Kernel.live((1, 0), *phases, kernel_size),
    }


def ipixel_dcl_kernels(kernel_size: int, efficient: bool, separable: bool = False) -> dict[str, Kernel]:
    """Return the kernels of iPixelDCL (Fig. 5, solid and dashed lines); ``separable`` as for PixelDCL."""
    size = (kernel_size, kernel_size)
    table = {
        "weight_p00": Kernel.between("x", "p00", size=size, dense=not separable),
        "weight_from_x": Kernel.between("x", "p11", "p01", "p10", size=size),
        "weight_from_p00": Kernel.between("p00", "p11", "p01", "p10", size=size),
        "weight_from_p11": Kernel.between("p11", "p01", "p10", size=size),
    }
    if not efficient:
        table["weight_from_p01"] = Kernel.between("p01", "p10", size=size)
    return table


def init_kaiming(weights: Mapping[str, Tensor], table: Mapping[str, Kernel]) -> None:
    """Draw every kernel so that each map has the variance of what it is made from (He et al. 2015).

    The gain is 1, as there is no activation between the maps; the fan-in of a map counts the taps of all
    the kernels that make it.
    """
    fan_in: dict[tuple[str, ...], int] = defaultdict(int)
    for name, kernel in table.items():
        for target in kernel.targets:
            fan_in[target.maps] += weights[name][0].numel()
    for name, kernel in table.items():
        for block, target in zip(_blocks(weights[name], kernel), kernel.targets, strict=True):
            torch.nn.init.normal_(block, std=fan_in[target.maps] ** -0.5)


def init_paper(weights: Mapping[str, Tensor], table: Mapping[str, Kernel]) -> None:
    """Draw every kernel as the authors' code does (HongyangGao/PixelDCN, ``utils/pixel_dcn.py``).

    Plain convolutions have Glorot's uniform distribution there, TensorFlow's default. Maps that read the
    same come from one convolution, whose outputs all count in the fan-out. The masked kernel of Fig. 6 has
    a normal distribution of standard deviation 1, cut at two of them.
    """
    reads: dict[tuple[str, ...], list[str]] = defaultdict(list)
    fan_in: dict[tuple[str, ...], int] = defaultdict(int)
    for name, kernel in table.items():
        for target in kernel.targets:
            reads[target.maps].append(name)
            fan_in[target.maps] += weights[name][0].numel()
    for name, kernel in table.items():
        for block, target in zip(_blocks(weights[name], kernel), kernel.targets, strict=True):
            if len(target.maps) > 1:
                torch.nn.init.trunc_normal_(block, std=1.0, a=-2.0, b=2.0)
                continue
            together = list(reads.values()).count(reads[target.maps])
            fan_out = together * block[:, 0].numel()
            limit = (6 / (fan_in[target.maps] + fan_out)) ** 0.5
            torch.nn.init.uniform_(block, -limit, limit)


def draw_preserving_variance(weight: Tensor) -> None:
    """Draw a kernel that makes a map alone so that the map has the variance of what it is made from."""
    torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


def init_interpolate(weights: Mapping[str, Tensor], table: Mapping[str, Kernel]) -> None:
    """Make the untrained layer a smooth x2 interpolation on the half-pixel grid.

    That is the grid of ``F.interpolate(mode='bilinear', align_corners=False)``, for volumes 'trilinear'.
    The first map lies a quarter pixel before its input pixel along every axis, which are the taps (1/4,
    3/4, 0). p11 is the mean of its four neighbours in p00, p01 and p10 the mean of theirs in p00 and p11.
    In a volume p111 is the mean of its eight in p000, and the later ones are means of six: p110 of four in
    p000 and two in p111, p100 of two each in p000, p110 and p101. Where the first map changes the number of
    channels it is a variance-preserving random convolution instead.
    """
    (first_name, first_kernel), *_ = table.items()
    first = weights[first_name]
    if not first_kernel.dense or first.size(0) == first.size(1):
        quarter = torch.zeros(first.size(2), dtype=first.dtype, device=first.device)
        centre = first.size(2) // 2
        quarter[centre - 1], quarter[centre] = 0.25, 0.75
        filter_ = reduce(lambda taps, axis: taps[..., None] * axis, [quarter] * len(_taps_of(first)))
        first.copy_(_over_taps(_eye(first), first) * filter_)
    else:
        draw_preserving_variance(first)
    neighbours: dict[tuple[str, ...], int] = defaultdict(int)
    for kernel in table.values():
        for target in kernel.targets:
            neighbours[target.maps] += len(target.nearest)
    for name, kernel in table.items():
        if name == first_name:
            continue
        weights[name].zero_()
        for block, target in zip(_blocks(weights[name], kernel), kernel.targets, strict=True):
            for tap in target.nearest:
                at = [size // 2 + step for size, step in zip(block.shape[2:], tap, strict=True)]
                block.movedim((0, 1), (-2, -1))[tuple(at)] = _eye(block) / neighbours[target.maps]


def constrain_dc(weights: Mapping[str, Tensor], table: Mapping[str, Kernel]) -> dict[str, Tensor]:
    """Project the kernels so that all phases have the same response to a constant.

    A constant input gives the constant K c in p00, K the tap sum of its kernel. The other phases give the
    same when the tap sums of the kernels that make them from maps add up to the identity, and those of
    the kernels that make them from the input to zero: the multirate condition for an upsampler without
    checkerboard (Sugawara & Kiya; Kinoshita & Kiya, arXiv 2002.02117). What is missing is spread evenly
    over the taps: the orthogonal projection, and so the identity on kernels that satisfy it already.

    Half-precision kernels are projected in float32, and rounded once.
    """
    dtypes = {name: weight.dtype for name, weight in weights.items()}
    weights = {
        name: weight.to(torch.promote_types(weight.dtype, torch.float32)) for name, weight in weights.items()
    }
    sums: dict[tuple[str, ...], Tensor] = {}
    taps: dict[tuple[str, ...], int] = defaultdict(int)
    for name, kernel in table.items():
        if kernel.reads_input:
            continue
        for block, target in zip(_blocks(weights[name], kernel), kernel.targets, strict=True):
            made, tap_sum = target.maps, block.sum(dim=_taps_of(block))
            sums[made] = sums[made] + tap_sum if made in sums else tap_sum
            taps[made] += prod(kernel.size)
    missing = {made: (_eye(tap_sum) - tap_sum) / taps[made] for made, tap_sum in sums.items()}

    constrained = {}
    for name, kernel in table.items():
        weight = weights[name]
        if name == next(iter(table)):
            constrained[name] = weight
        elif kernel.reads_input:
            constrained[name] = weight - weight.mean(dim=_taps_of(weight), keepdim=True)
        else:
            correction = torch.cat([missing[target.maps] for target in kernel.targets])
            constrained[name] = weight + _over_taps(correction, weight)
    return {name: weight.to(dtypes[name]) for name, weight in constrained.items()}


def _blocks(weight: Tensor, kernel: Kernel) -> tuple[Tensor, ...]:
    return weight.chunk(len(kernel.targets))


def _taps_of(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(2, weight.dim()))


def _over_taps(matrix: Tensor, weight: Tensor) -> Tensor:
    """Return a matrix of channels in a shape that broadcasts over the taps of a kernel."""
    return matrix[(..., *[None] * len(_taps_of(weight)))]


def _eye(weight: Tensor) -> Tensor:
    """Return the identity of a grouped kernel: ``(C, C / groups)``, one at o, o modulo C / groups."""
    out_channels, per_group = weight.shape[:2]
    eye = torch.eye(per_group, dtype=weight.dtype, device=weight.device)
    return eye.repeat(out_channels // per_group, 1)
