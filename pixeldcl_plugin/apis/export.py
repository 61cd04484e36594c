"""A segmentor as one file that runs without this package, proven equal to the original by running it."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmseg.models.backbones import UNet
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..utils.cli import UsageError
from ..utils.files import written_whole
from .traceable import traceable

__all__ = [
    "FORMATS",
    "ExportError",
    "InferenceModel",
    "Parity",
    "check_request",
    "export_segmentor",
    "load_exported",
    "size_multiple",
    "trace",
]

#: Formats and the endings of their files.
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}

_REQUIRED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}


class ExportError(RuntimeError):
    """A model cannot be exported, or its file does not compute what the model does."""


@dataclass(frozen=True)
class Parity:
    """How far the file's logits are from the model's, on one random image batch."""

    shape: tuple[int, int, int, int]
    difference: float  # the largest absolute one
    magnitude: float  # the largest absolute logit


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


def check_request(file: Path, format: str, overwrite: bool) -> None:
    """Check what can be checked before any work.

    Raises:
        ValueError: If the format is none of :data:`FORMATS`.
        UsageError: If the file exists and may not be overwritten, its folder does not exist, its name
            does not end as the format's, or a package that the format needs is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {tuple(FORMATS)}, got {format!r}")
    if file.suffix != FORMATS[format]:
        raise UsageError(f"--out {str(file)!r}: a file of format {format!r} ends in {FORMATS[format]!r}")
    if not file.parent.is_dir():
        raise UsageError(f"--out {str(file)!r}: there is no folder {str(file.parent)!r}")
    if file.is_dir():
        raise UsageError(f"--out {str(file)!r} is a folder")
    if file.exists() and not overwrite:
        raise UsageError(f"--out {str(file)!r} exists: choose another file or replace it with --overwrite")
    missing = [name for name in _REQUIRED[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--format {format} needs the packages {', '.join(missing)}: pip install them")


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

    with written_whole(file) as unproven:
        note(f"converting it, format {format}")
        _save(program, unproven, format)
        note("running the file on images of other sizes")
        run = load_exported(unproven, format)
        parities = []
        for shape in _unseen_shapes(_image_channels(segmentor), height, width, multiple):
            parities.append(_compare(model, run, shape))
            report(parities[-1])
        if not all(parity.difference <= tolerance for parity in parities):  # true for NaN too
            raise ExportError(
                f"the exported logits differ from the model's by more than {tolerance:g}: "
                f"{str(file)!r} was not written"
            )
    return parities


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
    try:
        with torch.no_grad():
            program = torch.export.export(model, (image,), dynamic_shapes=({0: Dim("batch"), **dims},))
    except Exception as error:  # torch.export documents no common type
        reason = _first_line(error)
        raise ExportError(f"torch.export cannot trace the model with dynamic sizes: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would carry the paths of this machine into the file
    return program


def load_exported(file: Path, format: str) -> Callable[[Tensor], Tensor]:
    """Load an exported file as a function from images to logits, on the CPU.

    Args:
        file: What :func:`export_segmentor` wrote.
        format: One of :data:`FORMATS`.
    """
    if format == "torch":
        module = torch.export.load(file).module()
        return lambda image: module(image)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])


def _save(program: ExportedProgram, file: Path, format: str) -> None:
    if format == "torch":
        # By Python: on a full disk torch's own writer ends the process.
        content = io.BytesIO()
        torch.export.save(program, content)
        file.write_bytes(content.getbuffer())
        return
    converted = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    if converted is None:  # only an export straight to a file returns nothing
        raise ExportError("torch.onnx.export returned no program")
    converted.save(file)


@torch.no_grad()
def _compare(model: nn.Module, run: Callable[[Tensor], Tensor], shape: tuple[int, int, int, int]) -> Parity:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = model(image)
    try:
        actual = run(image)
    except Exception as error:  # a runtime's own types
        reason = _first_line(error)
        raise ExportError(f"the exported model fails on an image batch {shape}: {reason}") from error
    if actual.shape != expected.shape:
        raise ExportError(
            f"the exported model makes {tuple(actual.shape)} of {shape}, the model {tuple(expected.shape)}"
        )
    return Parity(shape, (actual - expected).abs().max().item(), expected.abs().max().item())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
