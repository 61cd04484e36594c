"""Measures of the checkerboard artefact: of feature maps, of label maps, and of an upsampling layer.

An upsampler of factor two that treats its four phases differently adds a pattern of period two. In the
spectrum this is energy at the frequencies (pi, 0), (0, pi) and (pi, pi), in space a difference between the
means of the phases, in a label map pixels that disagree with all their neighbours.

Measures of maps are dimensionless and do not change when a map is scaled or when a constant is added. They
compute in float64 and refuse values that are not finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .linear_response import dc_response, equivalent_kernels

__all__ = [
    "MIN_SIZE",
    "azimuthal_profile",
    "equivalent_kernels",
    "isolated_pixel_rate",
    "isolated_pixels",
    "nyquist_energy",
    "nyquist_ratios",
    "phase_spread",
    "phase_variance_share",
    "power_spectrum",
    "radial_frequencies",
]

#: The least height and width for which a spectrum tells the Nyquist frequencies from their neighbours.
MIN_SIZE = 8

#: Half the width of the neighbourhood of a frequency, as a share of the sampling frequency: pi / 4.
_NEIGHBOURHOOD = 1 / 8
#: Bins on either side of a frequency that a Hann window spreads it over.
_LOBE = 1


def power_spectrum(maps: Tensor) -> Tensor:
    """Estimate the power spectrum of each map: a Hann-windowed periodogram.

    The mean is taken away first (weighted with the window, so that bin (0, 0) is zero). The window keeps the
    jump between opposite borders from leaking along the axes, on which (pi, 0) and (0, pi) lie.

    Args:
        maps: Shape ``(N, C, H, W)``.

    Returns:
        Float64 tensor of the same shape: power by frequency, in the order of ``torch.fft.fft2``, scaled so
        that white noise has its variance in every bin but those next to (0, 0).

    Raises:
        ValueError: If the shape is another one, the maps are smaller than 8 x 8, or a value is not finite.
    """
    maps = _check_maps(maps)
    maps = maps - maps[..., :1, :1]  # a constant is exactly zero from here on
    h, w = maps.shape[2:]
    rows, columns = (torch.hann_window(n, dtype=maps.dtype, device=maps.device) for n in (h, w))
    window = torch.outer(rows, columns)
    mean = (maps * window).sum((2, 3), keepdim=True) / window.sum()
    return torch.fft.fft2((maps - mean) * window).abs().square() / window.square().sum()


def nyquist_ratios(maps: Tensor) -> Tensor:
    """Compare the energy at each of the three period-two frequencies with that around it.

    The energy of a frequency is that of its bin in the :func:`power_spectrum`; the surroundings are the
    bins within pi / 4 of it in both directions (at least two bins), without those next to it, over
    which the window spreads it. Both are summed over the channels before they are divided: channels count
    by their energy, and a channel that is constant does not count. Of an odd height or width, whose
    spectrum has no bin at pi, the last row or column is left out.

    Args:
        maps: Shape ``(N, C, H, W)``.

    Returns:
        Float64 tensor ``(N, 3)``: ratios at (pi, 0), (0, pi) and (pi, pi), written (vertical, horizontal);
        so the first is that of horizontal stripes. About 1 for white noise and for natural images, 0 for a
        constant, and for a pure wave a very large number that is limited by the precision of the dtype.

    Raises:
        ValueError: As :func:`power_spectrum`.
    """
    checked = _crop_to_even(_check_maps(maps))
    rounding = _rounding_power(maps)
    power = power_spectrum(checked).sum(1)
    h, w = power.shape[1:]
    ratios = []
    for row, column in ((h // 2, 0), (0, w // 2), (h // 2, w // 2)):
        near = _neighbourhood(h, row)[:, None] & _neighbourhood(w, column)[None]
        lobe = (_distance(h, row) <= _LOBE)[:, None] & (_distance(w, column) <= _LOBE)[None]
        around = power[:, near & ~lobe].mean(1)
        ratios.append(power[:, row, column] / (around + rounding))
    return torch.stack(ratios, dim=1)


def nyquist_energy(maps: Tensor) -> Tensor:
    """Measure how far the period-two frequencies stand out of the spectrum around them.

    Args:
        maps: Shape ``(N, C, H, W)``.

    Returns:
        Float64 tensor ``(N,)``: the mean of the three :func:`nyquist_ratios`.

    Raises:
        ValueError: As :func:`power_spectrum`.
    """
    return nyquist_ratios(maps).mean(1)


def phase_variance_share(maps: Tensor) -> Tensor:
    """Measure which share of a map's variance lies between the means of its four phases.

    Both variances are summed over the channels before they are divided. A pattern whose sign changes over
    the map, as where it follows the content, has equal phase means and is not seen here; the spectrum around
    the Nyquist frequencies shows it. Of an odd height or width the last row or column is left out.

    Args:
        maps: Shape ``(N, C, H, W)``, at least 2 x 2.

    Returns:
        Float64 tensor ``(N,)`` within [0, 1]: 1 for maps that repeat every two pixels, 0 for constants, and
        on average 3 / (H W - 1) for white noise.

    Raises:
        ValueError: If the shape is another one, the maps are smaller than 2 x 2, or a value is not finite.
    """
    checked = _crop_to_even(_check_maps(maps, min_size=2))
    h, w = checked.shape[2:]
    phase_means = checked.unflatten(2, (h // 2, 2)).unflatten(4, (w // 2, 2)).mean((2, 4))
    between = phase_means.flatten(2).var(2, correction=0).sum(1)
    total = checked.flatten(2).var(2, correction=0).sum(1)
    return (between / (total + _rounding_power(maps))).clamp(max=1)


def azimuthal_profile(maps: Tensor, bins: int | None = None) -> Tensor:
    """Average the power spectrum over directions: power by radial frequency.

    Upsampled maps show in it that their highest frequencies do not fall off as those of real images do
    (Durall, Keuper, Keuper, "Watch your Up-Convolution", arXiv 2003.01826, Eq. 3).

    Args:
        maps: Shape ``(N, C, H, W)``.
        bins: Rings of equal width from frequency 0 to that of the corner (pi, pi); by default, and at most,
            half the shorter side. :func:`radial_frequencies` gives their centres.

    Returns:
        Float64 tensor ``(N, bins)``: the mean power in each ring over that of the whole spectrum, both
        averaged over the channels and without the mean (0, 0). About 1 everywhere for white noise; 0 for
        constants.

    Raises:
        ValueError: As :func:`power_spectrum`, or if ``bins`` is not within 1 and half the shorter side.
    """
    power = power_spectrum(maps)
    h, w = power.shape[2:]
    if bins is None:
        bins = min(h, w) // 2
    if not 1 <= bins <= min(h, w) // 2:
        raise ValueError(f"bins must be within 1 and {min(h, w) // 2} for maps of {h} x {w}, got {bins!r}")
    options = dict(dtype=power.dtype, device=power.device)
    radius = torch.hypot(torch.fft.fftfreq(h, **options)[:, None], torch.fft.fftfreq(w, **options)[None])
    ring = (radius.flatten()[1:] * (bins / math.sqrt(0.5))).long().clamp(max=bins - 1)
    values = power.mean(1).flatten(1)[:, 1:]
    sums = values.new_zeros(len(values), bins).index_add_(1, ring, values)
    mean = values.mean(1) + _rounding_power(maps)
    return sums / ring.bincount(minlength=bins) / mean[:, None]


def radial_frequencies(bins: int) -> Tensor:
    """Return the centres of the rings of :func:`azimuthal_profile`, in cycles a pixel: (0, sqrt(0.5))."""
    return (torch.arange(bins, dtype=torch.float64) + 0.5) * (math.sqrt(0.5) / bins)


def isolated_pixels(labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Find the pixels whose label differs from those of all their neighbours.

    Neighbours are the four that share a side: in a checkerboard each pixel differs from these and agrees
    with its four diagonal ones. Neighbours that are void or outside of the map do not count, and a
    pixel that has no other is not isolated.

    Args:
        labels: Integers, shape ``(..., H, W)``.
        ignore_index: The label of void pixels, which are never isolated.

    Returns:
        Bool tensor of the same shape.

    Raises:
        ValueError: If ``labels`` has less than two dimensions, no pixels, or is not of an integer type.
    """
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() < 2 or not integers or 0 in labels.shape[-2:]:
        raise ValueError(
            f"labels must be integers of shape (..., H, W), got {labels.dtype} of {tuple(labels.shape)}"
        )
    valid = _valid(labels, ignore_index)
    has_neighbour, agrees = torch.zeros_like(valid), torch.zeros_like(valid)
    for dim in (-2, -1):
        length = labels.size(dim) - 1
        ahead, behind = ((dim, start, length) for start in (0, 1))
        both = valid.narrow(*ahead) & valid.narrow(*behind)
        equal = both & (labels.narrow(*ahead) == labels.narrow(*behind))
        for place in (ahead, behind):
            has_neighbour.narrow(*place).logical_or_(both)
            agrees.narrow(*place).logical_or_(equal)
    return has_neighbour & ~agrees


def isolated_pixel_rate(labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Measure the share of valid pixels that are isolated, see :func:`isolated_pixels`.

    Args:
        labels: Integers, shape ``(..., H, W)``.
        ignore_index: The label of void pixels, which are not valid.

    Returns:
        Float64 tensor of shape ``(...)``, within [0, 1]; NaN for a map that has no valid pixel.

    Raises:
        ValueError: As :func:`isolated_pixels`.
    """
    isolated = isolated_pixels(labels, ignore_index).sum((-2, -1), dtype=torch.float64)
    return isolated / _valid(labels, ignore_index).sum((-2, -1))


def phase_spread(layer: nn.Module, in_channels: int) -> float:
    """Measure how far the phases of an upsampling layer differ on a constant input, without borders.

    With ``D[p]`` the response ``(Cout, Cin)`` of phase p to constants and ``D`` their mean, this is
    ``sqrt(sum_p |D[p] - D|^2 / sum_p |D[p]|^2)`` in Frobenius norms: the RMS difference of the phases over
    the RMS output, for constant inputs whose channels are independent. It is exact, not an estimate: a layer
    is free of checkerboard if and only if it is zero (Kinoshita & Kiya, arXiv 2002.02117).

    Args:
        layer: As in :func:`~pixeldcl_plugin.evaluation.linear_response.dc_response`; it is not changed.
        in_channels: Channels of its input.

    Returns:
        A number within [0, 1]. Four phases that have nothing to do with each other, as those of a random
        transposed convolution, give sqrt(3 / 4) = 0.87. Zero for a layer that maps every constant to zero.

    Raises:
        ValueError: As :func:`~pixeldcl_plugin.evaluation.linear_response.dc_response`.
    """
    response = dc_response(layer, in_channels).flatten(0, 1)
    difference = response - response.mean(0, keepdim=True)
    return float(difference.norm() / response.norm().clamp_min(torch.finfo(response.dtype).tiny))


def _valid(labels: Tensor, ignore_index: int) -> Tensor:
    """Tell which pixels are not void, also where the labels' type cannot hold the label of void."""
    limits = torch.iinfo(labels.dtype)
    if limits.min <= ignore_index <= limits.max:
        return labels != ignore_index
    return torch.ones_like(labels, dtype=torch.bool)


def _check_maps(maps: Tensor, min_size: int = MIN_SIZE) -> Tensor:
    """Return the maps in float64."""
    if maps.dim() != 4 or 0 in maps.shape[:2] or min(maps.shape[2:]) < min_size:
        raise ValueError(
            f"maps must have shape (N, C, H, W) with H, W >= {min_size}, got {tuple(maps.shape)}"
        )
    if not maps.is_floating_point():
        raise ValueError(f"maps must be of a floating-point type, got {maps.dtype}")
    maps = maps.detach().double()
    if not maps.isfinite().all():
        raise ValueError(f"maps hold {int((~maps.isfinite()).sum())} values that are NaN or infinite")
    return maps


def _rounding_power(maps: Tensor) -> Tensor:
    """Return a bound ``(N,)`` of the variance, summed over channels, that rounding to the maps' dtype causes.

    As an addend of a denominator it makes 0 / 0 a zero: that of a constant, whose deviations from its mean
    are rounding errors. What exceeds them it does not change.
    """
    power = maps.detach().double().square().mean((2, 3)).sum(1)
    return power * torch.finfo(maps.dtype).eps ** 2 + torch.finfo(power.dtype).tiny


def _crop_to_even(maps: Tensor) -> Tensor:
    h, w = maps.shape[2:]
    return maps[..., : h - h % 2, : w - w % 2]


def _distance(size: int, frequency: int) -> Tensor:
    """Return how many bins each bin of an axis is away from one, around the circle of frequencies."""
    steps = (torch.arange(size) - frequency) % size
    return torch.minimum(steps, size - steps)


def _neighbourhood(size: int, frequency: int) -> Tensor:
    return _distance(size, frequency) <= max(size * _NEIGHBOURHOOD, _LOBE + 1)
