"""The measures of :mod:`pixeldcl_plugin.evaluation.checkerboard`, of layers and of whole models on images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from mmseg.models.backbones.unet import DeconvModule, InterpConv
from torch import Tensor, nn
from torch.nn import functional as F

from ..apis.segmenter import Segmenter
from ..evaluation import checkerboard
from ..evaluation.linear_response import bare_layer, equivalent_kernels
from ..layers.guided_upsample import GuidedUpsample
from ..models.upsamplers import LearnedUpsample, build_upsampler
from ..utils.cli import UsageError

__all__ = [
    "Analysis",
    "UpsamplerMeasures",
    "analyze_layer",
    "analyze_model",
    "find_upsamplers",
    "profile_bins",
    "profile_of_images",
]

#: Modules that are upsamplers as wholes; what is inside of them is not looked at.
_UPSAMPLERS = (LearnedUpsample, GuidedUpsample, DeconvModule, InterpConv, nn.ConvTranspose2d)
#: Side of the random low-resolution map that a layer by itself is shown.
_FIELD_SIZE = 32


@dataclass
class UpsamplerMeasures:
    """The measures of one upsampler; those of its output are means over images.

    Attributes:
        name: Path of the module in its model.
        type: Its class.
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        phase_spread: Of the layer without norm and activation; None where it has none, as for a layer that
            does not enlarge by a whole factor or that needs a guide.
        nyquist_ratios: Of the output at (pi, 0), (0, pi) and (pi, pi); None for maps below 8 x 8.
        phase_variance_share: Of the output.
        azimuthal_profile: Of the output; None where it is not asked for.
    """

    name: str
    type: str
    in_channels: int
    out_channels: int
    phase_spread: float | None
    nyquist_ratios: list[float] | None
    phase_variance_share: float
    azimuthal_profile: list[float] | None = None


@dataclass
class Analysis:
    """What is known of one model or layer: measures for the record, and what there is to see.

    Attributes:
        name: As the caller calls it.
        upsamplers: In the order in which they run; none where the logits are only resized.
        output: Means over images of the measures of the logits, or of the output of a layer by itself.
        feature: Output of the last upsampler on the first image, ``(C, H, W)``; without one the logits.
        logits: On the first image, ``(classes, H, W)``; None for a layer by itself.
        labels: Likewise, ``(H, W)``.
        constant: Output of a layer by itself for an input of ones, ``(C, s, s)``; None for a model.
        kernels: Magnitude of the last upsampler's kernels, ``(phases, phases, k, k)``: the root mean square
            over the output channels of the norm over the input channels. None if it has none.
    """

    name: str
    upsamplers: list[UpsamplerMeasures]
    output: dict[str, Any]
    feature: Tensor
    logits: Tensor | None = None
    labels: np.ndarray | None = None
    constant: Tensor | None = None
    kernels: Tensor | None = None

    def record(self) -> dict[str, Any]:
        """Return the measures as plain data."""
        return dict(name=self.name, output=self.output, upsamplers=[asdict(u) for u in self.upsamplers])


def find_upsamplers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the upsampling modules of a model by their class, the outermost where they are nested."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or outer == "" for outer in found)
        if isinstance(module, _UPSAMPLERS) and not inside:
            found[name] = module
    return found


def profile_bins(images: Sequence[np.ndarray]) -> int:
    """Return how many rings the azimuthal profiles of images of several sizes can share, at most 32.

    Raises:
        ValueError: If an image is smaller than 16 x 16, or there is none.
    """
    side = min((min(image.shape[:2]) for image in images), default=0)
    if side < 2 * checkerboard.MIN_SIZE:
        raise ValueError(f"images must be at least 16 x 16 pixels, the smallest has a side of {side}")
    return min(32, side // 2)


def profile_of_images(images: Sequence[np.ndarray], bins: int) -> list[float]:
    """Return the mean azimuthal profile of RGB images ``(H, W, 3)``."""
    maps = (torch.from_numpy(image).permute(2, 0, 1)[None].float() for image in images)
    return torch.stack([checkerboard.azimuthal_profile(m, bins)[0] for m in maps]).mean(0).tolist()


@contextlib.contextmanager
def _recording(modules: dict[str, nn.Module]) -> Iterator[dict[str, tuple[int, Tensor]]]:
    """Record input channels and output of each module's latest run, in the order of running."""
    seen: dict[str, tuple[int, Tensor]] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.pop(name, None)
            seen[name] = (inputs[0].size(1), output.detach().float().cpu())

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def analyze_model(name: str, segmenter: Segmenter, images: Sequence[np.ndarray], bins: int) -> Analysis:
    """Measure every upsampler and the logits of a model over images.

    Args:
        name: What the model is called in the results.
        segmenter: The model.
        images: RGB arrays ``(H, W, 3)`` of dtype uint8; the first of them is kept for the figure.
        bins: Rings of the azimuthal profile of the logits, see :func:`profile_bins`. That of the last
            upsampler has fewer if its output is smaller than the image.

    Raises:
        UsageError: If there is no image, or one is so large that the segmenter would take it in blocks.
    """
    modules = find_upsamplers(segmenter.model)
    largest = max((image[..., 0].size for image in images), default=0)
    if not 0 < largest <= segmenter.max_pixels:
        raise UsageError(f"images must have 1 to {segmenter.max_pixels} pixels, the largest has {largest}")
    outputs: list[dict[str, Any]] = []
    features: dict[str, list[dict[str, Any]]] = {}
    channels: dict[str, tuple[int, int]] = {}
    shown: dict[str, Any] = {}
    for image in images:
        with _recording(modules) as seen:
            prediction = segmenter.predict([image], maps="logits")[0]
        if prediction.maps is None:
            raise RuntimeError("predict returned no logits")
        logits = torch.from_numpy(prediction.maps)
        labels = torch.from_numpy(prediction.labels.astype(np.int64))
        isolated = checkerboard.isolated_pixel_rate(labels, ignore_index=-1).item()
        outputs.append({**_measure(logits[None], bins), "isolated_pixel_rate": isolated})
        last = next(reversed(seen), None)
        for module, (in_channels, output) in seen.items():
            # A power of two, so that padding does not change it from image to image.
            ratio = 2.0 ** math.floor(math.log2(min(min(output.shape[2:]) / min(image.shape[:2]), 1)))
            measured = _measure(output, max(int(bins * ratio), 1) if module == last else None)
            features.setdefault(module, []).append(measured)
            channels[module] = (in_channels, output.size(1))
        if not shown:
            feature = logits if last is None else seen[last][1][0]
            shown = dict(feature=feature, logits=logits, labels=prediction.labels)
    records = [
        UpsamplerMeasures(
            module,
            type(modules[module]).__name__,
            *channels[module],
            phase_spread=_phase_spread(modules[module], channels[module][0]),
            **_means(features[module]),
        )
        for module in features
    ]
    kernels = None if last is None else _kernel_magnitude(modules[last], channels[last][0])
    return Analysis(name, records, _means(outputs), kernels=kernels, **shown)


@torch.no_grad()
def analyze_layer(
    name: str, cfg: Mapping[str, Any], channels: tuple[int, int], bins: int, seed: int = 0
) -> Analysis:
    """Measure the linear part of an upsampling layer by itself, as it is initialised, on smooth random maps.

    Args:
        name: What the layer is called in the results.
        cfg: Its ``upsample_cfg``.
        channels: Of input and output.
        bins: Rings of the azimuthal profile, at most 32.
        seed: Of the layer's initialisation and of its input.

    Raises:
        ValueError: If ``cfg`` names no upsampler, or see
            :func:`~pixeldcl_plugin.evaluation.checkerboard.phase_spread`.
    """
    torch.manual_seed(seed)
    layer = build_upsampler(cfg, *channels, norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU"))
    bare = bare_layer(layer)
    coarse = torch.randn(4, channels[0], *[_FIELD_SIZE // 4] * 2, dtype=torch.float64)
    feature = bare(F.interpolate(coarse, scale_factor=4, mode="bicubic", align_corners=False))
    constant = bare(torch.ones(1, channels[0], _FIELD_SIZE // 4, _FIELD_SIZE // 4, dtype=torch.float64))
    measured = _measure(feature, bins)
    spread = checkerboard.phase_spread(layer, channels[0])
    return Analysis(
        name,
        [UpsamplerMeasures("", type(layer).__name__, *channels, phase_spread=spread, **measured)],
        output=measured,
        feature=feature[0],
        constant=constant[0],
        kernels=_kernel_magnitude(layer, channels[0]),
    )


def _measure(maps: Tensor, bins: int | None) -> dict[str, Any]:
    """Measure maps ``(N, C, H, W)``, the mean over the batch."""
    large = min(maps.shape[2:]) >= checkerboard.MIN_SIZE
    return dict(
        nyquist_ratios=checkerboard.nyquist_ratios(maps).mean(0).tolist() if large else None,
        phase_variance_share=checkerboard.phase_variance_share(maps).mean().item(),
        azimuthal_profile=checkerboard.azimuthal_profile(maps, bins).mean(0).tolist() if bins else None,
    )


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average every value over the records; None where none of them has it."""
    result: dict[str, Any] = {}
    for key in records[0]:
        values = [record[key] for record in records if record[key] is not None]
        result[key] = np.mean(values, axis=0).tolist() if values else None
    return result


def _phase_spread(module: nn.Module, in_channels: int) -> float | None:
    if isinstance(module, GuidedUpsample):
        return None
    try:
        return checkerboard.phase_spread(module, in_channels)
    except ValueError:  # not by a whole factor, as nn.ConvTranspose2d(kernel_size=3, stride=2)
        return None


def _kernel_magnitude(module: nn.Module, in_channels: int) -> Tensor | None:
    if isinstance(module, GuidedUpsample):
        return None
    try:
        kernels = equivalent_kernels(module, in_channels)
    except ValueError:  # adapts to its input
        return None
    return kernels.square().sum(3).mean(2).sqrt()
