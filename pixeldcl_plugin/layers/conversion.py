"""Upsamplers of a trained model replaced by learned ones that compute the same and go on learning."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .arguments import check_choice
from .converters import converter_of, interpolation
from .pixel_dcl import IPixelDCL
from .rerouting import Interpolate, InterpolationCall, reroute, watch

__all__ = ["Conversion", "convert_upsamplers"]

Where = str | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class Conversion:
    """What became of one upsampler.

    Attributes:
        name: Of the module in the model; for a call of ``F.interpolate``, of the module that makes it.
        source: What it was.
        target: What computes the same, or None if nothing does.
        difference: Largest difference of the two on a probe input, computed in float64, as a part of the
            largest output if that is more than 1.
        reason: Why it was left as it was; empty if it was replaced.
    """

    name: str
    source: str
    target: str | None = None
    difference: float | None = None
    reason: str = ""

    @property
    def converted(self) -> bool:
        """Whether the model has the new layer."""
        return not self.reason

    def __str__(self) -> str:
        """Tell it in one line."""
        if self.reason:
            return f"{self.name}: {self.source} stays: {self.reason}"
        return f"{self.name}: {self.source} -> {self.target}, differs by {self.difference:.1e}"


@dataclass
class _Candidate:
    """An upsampler while it is looked at: a module to replace, or the module that calls ``F.interpolate``."""

    name: str
    module: nn.Module
    source: str
    layer: nn.Module | None = None
    call: InterpolationCall | None = None
    difference: float | None = None
    reason: str = ""

    def report(self) -> Conversion:
        target = None if self.layer is None else _describe(self.layer)
        return Conversion(self.name, self.source, target, self.difference, self.reason)


@torch.no_grad()
def convert_upsamplers(
    model: nn.Module,
    to: str = "IPixelDCL",
    where: Where = None,
    *,
    probe: Any = None,
    tolerance: float = 1e-5,
) -> list[Conversion]:
    """Replace the upsamplers of a model, in place, by learned ones that compute the same.

    Deconvolutions (``nn.ConvTranspose2d``), ``nn.Upsample``, x2 calls of ``F.interpolate`` inside of modules
    and, where MMSegmentation is installed, its ``DeconvModule`` and ``InterpConv`` become
    :class:`~pixeldcl_plugin.IPixelDCL`. Make the optimizer after this: the parameters are new ones.

    A module that calls ``F.interpolate`` keeps its parameters and its forward; the layer is its child
    ``learned_upsample`` and takes the call. Where a size is odd the layer's map is resized by the pixel that
    it has too much or too little; by the nearest pixel, which computes the same there too.

    Args:
        model: Any model of torch.
        to: 'IPixelDCL'. PixelDCL makes three phases of the first one alone, and holds none of these.
        where: Which: a pattern of names as a shell has them (``'decoder.*'``), or a function of the name
            and the module; None for all.
        probe: What the model is called with, a tuple for several arguments: it runs once, in eval mode,
            and every upsampler is compared on what it gets there. Interpolation needs it, which only the
            running model tells. Without it deconvolutions are compared on random numbers.
        tolerance: Largest difference accepted, see :class:`Conversion`. If any upsampler differs by
            more, the model is left as it was, with a warning.

    Returns:
        One :class:`Conversion` for every upsampler found.

    Raises:
        ValueError: If ``to`` is another word.
    """
    check_choice("to", to, ("IPixelDCL",))
    found = _candidates(model, where)
    if probe is not None:
        _run_probe(model, found, where, probe)
    for candidate in found.values():
        if not candidate.reason and candidate.difference is None:
            _compare_alone(candidate)
    rows = [candidate.report() for candidate in found.values()]
    failed = [row for row in rows if row.converted and not (row.difference or 0) <= tolerance]
    if failed:
        reason = f"{failed[0].name} differs by {failed[0].difference:.1e}, more than {tolerance:g}"
        warnings.warn(f"the model was left as it was: {reason}", stacklevel=2)
        return [replace(row, reason=row.reason or reason) for row in rows]
    for candidate in found.values():
        if candidate.layer is None or candidate.reason:
            continue
        if candidate.call is None:
            _put(model, candidate.module, candidate.layer)
        else:
            reroute(candidate.module, candidate.call, candidate.layer)
    return rows


def _candidates(model: nn.Module, where: Where) -> dict[Any, _Candidate]:
    """Find the modules to replace, and make the layers that need not see an input."""
    found: dict[Any, _Candidate] = {}
    within: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(outer) for outer in within):
            continue
        convert = converter_of(module)
        if convert is None or not _selected(where, name, module):
            continue
        candidate = _Candidate(name, module, _describe(module))
        if module is model:
            candidate.reason = "it is the model itself"
        elif parametrize.is_parametrized(module):
            candidate.reason = "its weight is computed from other parameters"
        elif any(getattr(module, hooks) for hooks in _HOOKS):
            candidate.reason = "its hooks would be lost"
        else:
            _make(candidate, convert, module, None)
        found[module] = candidate
        within.append(f"{name}.")
    return found


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _selected(where: Where, name: str, module: nn.Module) -> bool:
    if where is None:
        return True
    return fnmatch.fnmatchcase(name, where) if isinstance(where, str) else bool(where(name, module))


def _make(candidate: _Candidate, make: Callable[..., nn.Module | None], *args: Any) -> None:
    try:
        candidate.layer = make(*args)
    except ValueError as error:
        candidate.reason = str(error)


def _run_probe(model: nn.Module, found: dict[Any, _Candidate], where: Where, probe: Any) -> None:
    """Run the model once and compare every upsampler on what it gets."""
    names = {module: name for name, module in model.named_modules()}
    others: set[str] = set()  # modules with a call of F.interpolate that stays

    def on_module(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        candidate = found.get(module)
        if candidate is None or not args or not isinstance(args[0], Tensor):
            return
        if candidate.layer is None and not candidate.reason:
            convert = converter_of(module)
            assert convert is not None
            _make(candidate, convert, module, args[0])
        _compare(candidate, module, args, kwargs)

    def on_call(running: Sequence[nn.Module], x: Tensor, call: InterpolationCall) -> None:
        inside = [module for module in running if module in names]
        if not inside or any(module in found for module in inside):
            return
        module, name = inside[-1], names[inside[-1]]
        if not call.doubles or not _selected(where, name, module):
            others.add(name)
            return
        key = (module, call.key)
        if key not in found:
            found[key] = _Candidate(name, module, f"{call} in {type(module).__name__}", call=call)
            _make(found[key], interpolation, x, call.mode)
        _compare(found[key], Interpolate(call), (x,), {}, call)

    training = {module: module.training for module in names}
    model.eval()
    try:
        with watch(on_module, on_call):
            model(*probe if isinstance(probe, tuple) else (probe,))
    finally:
        for module, mode in training.items():
            module.training = mode
    for candidate in found.values():
        inside = [name for name in others if _is_inside(name, candidate.name)]
        if candidate.call is not None and not candidate.reason and inside:
            candidate.reason = f"{inside[0]}, inside of it, interpolates otherwise"


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def _compare(
    candidate: _Candidate,
    old: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call: InterpolationCall | None = None,
) -> None:
    """Note the largest difference so far, of copies in float64 that are not in training."""
    if candidate.reason or candidate.layer is None:
        return
    device = _device(args)
    exact = [copy.deepcopy(module).to(device).double().eval() for module in (old, candidate.layer)]
    doubles = [arg.to(device).double() if isinstance(arg, Tensor) else arg for arg in args]
    try:
        wanted, got = (module.forward(*doubles, **kwargs) for module in exact)
        got = got if call is None else call.fit(got)
    except TypeError as error:  # such as output_size=
        candidate.reason = f"it is called as no upsampler of one map: {error}"
        return
    if wanted.shape != got.shape:
        candidate.reason = f"its output has shape {tuple(wanted.shape)}, the layer's {tuple(got.shape)}"
    elif wanted.numel():
        scale = max(1.0, float(wanted.abs().max()))
        difference = float((got - wanted).abs().max()) / scale
        candidate.difference = max(candidate.difference or 0.0, difference)


def _device(args: tuple[Any, ...]) -> torch.device:
    device: torch.device = next(arg.device for arg in args if isinstance(arg, Tensor))
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64


def _compare_alone(candidate: _Candidate) -> None:
    """Compare on random numbers what no probe has reached, where the channels are known."""
    if candidate.layer is None:
        candidate.reason = "how many channels it gets is seen by a probe= that reaches it"
        return
    channels = next(m.in_channels for m in candidate.layer.modules() if isinstance(m, IPixelDCL))
    x = torch.randn(2, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    weight = next(candidate.layer.parameters())
    _compare(candidate, candidate.module, (x.to(weight.device),), {})


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a module wherever it is a child."""
    new.train(old.training)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def _describe(module: nn.Module) -> str:
    """Return the repr of a module in one line: its own, or that of the first child which has one."""
    shown = next((part for part in module.modules() if part.extra_repr()), module)
    own = f"{type(shown).__name__}({shown.extra_repr()})"
    return own if shown is module else f"{type(module).__name__}({own}, ...)"
