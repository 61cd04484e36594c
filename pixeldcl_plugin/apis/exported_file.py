"""A file that runs without this package, written only when it computes what the model does."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..utils.cli import UsageError
from ..utils.files import written_whole

__all__ = ["FORMATS", "ExportError", "Parity", "check_request", "load_exported", "trace_open", "write_proven"]

#: Formats and the endings of their files.
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}

_REQUIRED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}


class ExportError(RuntimeError):
    """A model cannot be exported, or its file does not compute what the model does."""


@dataclass(frozen=True)
class Parity:
    """How far the file's output is from the model's, on one random input."""

    shape: tuple[int, ...]
    difference: float  # the largest absolute one
    magnitude: float  # the largest absolute value


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


def trace_open(model: nn.Module, example: Tensor, dynamic: dict[int, Any]) -> ExportedProgram:
    """Trace a model of one tensor, some of whose sizes stay open.

    Args:
        model: The model.
        example: An input.
        dynamic: Of each dimension that stays open, its :class:`torch.export.Dim`.

    Raises:
        ExportError: If torch cannot trace the model so.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,))
    except Exception as error:  # torch.export documents no common type
        reason = _first_line(error)
        raise ExportError(f"torch.export cannot trace the model with dynamic sizes: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would carry the paths of this machine into the file
    return program


def write_proven(
    program: ExportedProgram,
    model: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    file: Path,
    format: str,
    *,
    names: tuple[str, str],
    tolerance: float,
    report: Callable[[Parity], None],
    note: Callable[[str], None],
) -> list[Parity]:
    """Write a traced program, run the file beside the model, and keep it if both agree.

    Args:
        program: What was traced.
        model: What it is to compute.
        shapes: Of the random inputs that both are run on.
        file: Where to write; it appears, in place of an earlier one of its name, only when it has passed.
        format: One of :data:`FORMATS`.
        names: Of the input and of the output, in an ONNX file.
        tolerance: Largest absolute difference allowed.
        report: Called with every comparison when it is made.
        note: Called before each step with what it does.

    Returns:
        The comparisons.

    Raises:
        ExportError: If the file does not run, or a difference exceeds the tolerance.
    """
    with written_whole(file) as unproven:
        note(f"converting it, format {format}")
        _save(program, unproven, format, names)
        note(f"running the file on {names[0]}s of other sizes")
        run = load_exported(unproven, format)
        parities = []
        for shape in shapes:
            parities.append(_compare(model, run, shape, names[0]))
            report(parities[-1])
        if not all(parity.difference <= tolerance for parity in parities):  # true for NaN too
            raise ExportError(
                f"the exported {names[1]} differ from the model's by more than {tolerance:g}: "
                f"{str(file)!r} was not written"
            )
    return parities


def load_exported(file: Path, format: str) -> Callable[[Tensor], Tensor]:
    """Load an exported file as a function of one tensor, on the CPU.

    Args:
        file: What :func:`write_proven` wrote.
        format: One of :data:`FORMATS`.
    """
    if format == "torch":
        module = torch.export.load(file).module()
        return lambda x: module(x)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _save(program: ExportedProgram, file: Path, format: str, names: tuple[str, str]) -> None:
    if format == "torch":
        # By Python: on a full disk torch's own writer ends the process.
        content = io.BytesIO()
        torch.export.save(program, content)
        file.write_bytes(content.getbuffer())
        return
    converted = torch.onnx.export(
        program, dynamo=True, input_names=names[:1], output_names=names[1:], verbose=False
    )
    if converted is None:  # only an export straight to a file returns nothing
        raise ExportError("torch.onnx.export returned no program")
    converted.save(file)


@torch.no_grad()
def _compare(model: nn.Module, run: Callable[[Tensor], Tensor], shape: tuple[int, ...], name: str) -> Parity:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    try:
        actual = run(x)
    except Exception as error:  # a runtime's own types
        reason = _first_line(error)
        article = "an" if name[0] in "aeiou" else "a"
        raise ExportError(f"the exported model fails on {article} {name} batch {shape}: {reason}") from error
    if actual.shape != expected.shape:
        raise ExportError(
            f"the exported model makes {tuple(actual.shape)} of {shape}, the model {tuple(expected.shape)}"
        )
    return Parity(shape, (actual - expected).abs().max().item(), expected.abs().max().item())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
