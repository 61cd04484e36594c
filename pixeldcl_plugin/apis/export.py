"""A model as one file that runs without this package, proven equal to the original by running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmseg.models.backbones import UNet
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..models.vae import VAE
from ..models.vae_densities import to_image
from ..utils.cli import UsageError
from .exported_file import (
    FORMATS,
    ExportError,
    Parity,
    check_request,
    load_exported,
    trace_open,
    write_proven,
)
from .traceable import traceable

__all__ = [
    "FORMATS",
    "ExportError",
    "InferenceModel",
    "Parity",
    "SamplingModel",
    "check_request",
    "export_segmentor",
    "export_vae",
    "load_exported",
    "size_multiple",
    "trace",
]


class InferenceModel(nn.Module):
    """What a segmentor does with a whole image, as a function of one tensor.

    Normalisation comes before it, and the choice of a class for each pixel after it. Sliding windows
    (``test_cfg=dict(mode='slide')``) are not part of it: every image is taken as a whole.

    Args:
        segmentor: An mmseg ``EncoderDecoder``.

    Shape:
        Normalised images ``(N, channels, H, W)`` -> logits ``(N, classes, H, W)``.
    """

    def __init__(self, segmentor: EncoderDecoder) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits at the size of the image."""
        size = image.shape[2:]
        logits: Tensor = self.segmentor.encode_decode(image, [dict(img_shape=size)])
        return logits


class SamplingModel(nn.Module):
    """What the decoder of a VAE makes of latents, drawn from N(0, I) or anywhere else.

    Args:
        vae: A :class:`~pixeldcl_plugin.models.vae.VAE`.

    Shape:
        Latents ``(N, latent_channels)`` -> pictures ``(N, 3, image_size, image_size)`` in [0, 1].
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Compute the mean of the likelihood, as a picture."""
        return to_image(self.vae.decode(latents))


def size_multiple(segmentor: EncoderDecoder) -> int:
    """Return what the height and width of an image must be multiples of.

    That of a U-Net follows from its poolings. Others take any size, but not all of them can be traced
    with sizes that do not divide evenly: 32 is the coarsest stride in use.
    """
    backbone = segmentor.backbone
    if not isinstance(backbone, UNet):
        return 32
    stages = zip(backbone.strides[1:], backbone.downsamples, strict=True)
    return 2 ** sum(stride == 2 or downsample for stride, downsample in stages)


def export_segmentor(
    segmentor: EncoderDecoder,
    file: Path,
    format: str,
    *,
    size: tuple[int, int] | None = None,
    tolerance: float = 1e-4,
    overwrite: bool = False,
    report: Callable[[Parity], None] = lambda parity: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Parity]:
    """Export a segmentor's inference with dynamic batch, height and width, and check the file by running it.

    Layers with a constraint are folded in the exported copy. The file appears, in place of an earlier
    one of its name, only when it has passed.

    Args:
        segmentor: The model, in evaluation mode and on the CPU; it is left as it is.
        file: Where to write.
        format: One of :data:`FORMATS`: 'onnx', or 'torch' for ``torch.export.load``.
        size: Height and width of the image with which the model is traced, multiples of
            :func:`size_multiple` and at least twice that; four times that by default.
        tolerance: Largest absolute difference allowed between the logits of the file and the model.
        overwrite: Whether ``file`` may exist.
        report: Called with every comparison when it is made.
        note: Called before each step with what it does.

    Returns:
        The comparisons: the file and the model on batches and sizes that were not traced.

    Raises:
        UsageError: As :func:`check_request`, if the size does not fit, or if the head resizes with
            ``align_corners=True``.
        ExportError: If the model cannot be traced, the file does not run, or a difference exceeds the
            tolerance; then no file is written.
    """
    check_request(file, format, overwrite)
    multiple = size_multiple(segmentor)
    height, width = size or (4 * multiple, 4 * multiple)
    for extent in (height, width):
        if extent % multiple or extent < 2 * multiple:
            raise UsageError(
                f"--shape: height and width must be multiples of {multiple} for this model and at least "
                f"{2 * multiple}, got {height} {width}"
            )
    if segmentor.align_corners:
        raise UsageError(
            "config: a decode_head with align_corners=True cannot be exported: mmseg's resize() then turns "
            "the traced sizes into constants"
        )
    model = InferenceModel(segmentor).eval()
    note("tracing the model, its sizes left open")
    program = trace(InferenceModel(traceable(segmentor)).eval(), (height, width), multiple)

    return write_proven(
        program,
        model,
        _unseen_shapes(_image_channels(segmentor), height, width, multiple),
        file,
        format,
        names=("image", "logits"),
        tolerance=tolerance,
        report=report,
        note=note,
    )


def export_vae(
    vae: VAE,
    file: Path,
    format: str,
    *,
    tolerance: float = 1e-4,
    overwrite: bool = False,
    report: Callable[[Parity], None] = lambda parity: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Parity]:
    """Export the decoder of a VAE with a dynamic batch, and check the file by running it.

    Args:
        vae: The model, in evaluation mode and on the CPU; it is left as it is.
        file: As in :func:`export_segmentor`, as are ``format``, ``overwrite``, ``report`` and ``note``.
        format: Likewise.
        tolerance: Largest absolute difference allowed between the pictures of the file and the model.
        overwrite: Likewise.
        report: Likewise.
        note: Likewise.

    Returns:
        The comparisons: the file and the model on batches that were not traced.

    Raises:
        UsageError: As :func:`check_request`.
        ExportError: As :func:`export_segmentor`.
    """
    check_request(file, format, overwrite)
    note("tracing the decoder, its batch left open")
    latents = torch.zeros(2, vae.latent_channels)
    program = trace_open(SamplingModel(traceable(vae)).eval(), latents, {0: Dim("batch")})
    return write_proven(
        program,
        SamplingModel(vae).eval(),
        [(1, vae.latent_channels), (5, vae.latent_channels)],
        file,
        format,
        names=("latent", "pictures"),
        tolerance=tolerance,
        report=report,
        note=note,
    )


def trace(model: nn.Module, size: tuple[int, int], multiple: int) -> ExportedProgram:
    """Trace a model from an image to logits with dynamic batch, height and width.

    Args:
        model: :class:`InferenceModel`, or another module of one image tensor.
        size: Height and width to trace with.
        multiple: What all heights and widths are multiples of. The program takes them from twice that:
            torch treats a size of one, which the deepest map would have, as a case of its own.

    Raises:
        ExportError: If torch cannot trace the model so.
    """
    dims = {2: multiple * Dim("height", min=2), 3: multiple * Dim("width", min=2)}
    image = torch.zeros(2, _image_channels(model), *size)
    return trace_open(model, image, {0: Dim("batch"), **dims})


def _unseen_shapes(
    channels: int, height: int, width: int, multiple: int
) -> Sequence[tuple[int, int, int, int]]:
    """Return a larger and a small shape that share no size with the traced one, nor its batch of 2."""
    small = [next(k * multiple for k in (2, 3) if k * multiple != extent) for extent in (height, width)]
    return (
        (1, channels, height + multiple, width + 2 * multiple),
        (3, channels, small[0], small[1]),
    )


def _image_channels(model: nn.Module) -> int:
    """Return the channels of an image: what the first convolution takes."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
