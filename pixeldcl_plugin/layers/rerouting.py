"""Calls of ``F.interpolate`` inside of modules: who makes them, and a learned layer that takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .fixed_upsamplers import INTERPOLATIONS

__all__ = ["CHILD", "Interpolate", "InterpolationCall", "reroute", "watch"]

#: Name of the child that holds the layers which take a module's calls.
CHILD = "learned_upsample"


@dataclass(frozen=True)
class InterpolationCall:
    """What a call of ``F.interpolate`` asks for.

    Attributes:
        mode: As ``F.interpolate`` takes it.
        channels: Channels of the map.
        doubles: Whether it is x2, to a pixel, in a way that a layer can hold.
        size: Height and width of the output; empty if it is no map ``(N, C, H, W)``.
    """

    mode: str
    channels: int
    doubles: bool
    size: tuple[int, ...]

    @property
    def key(self) -> str:
        """What tells the layer that takes the call."""
        return f"{self.mode.replace('-', '_')}_{self.channels}"

    def fit(self, out: Tensor) -> Tensor:
        """Resize the map that a layer made, x2, to the size of the call where that is an odd one."""
        return out if out.shape[2:] == self.size else F.interpolate(out, size=self.size, mode=self.mode)

    def __str__(self) -> str:
        return f"F.interpolate(mode={self.mode!r})"


def _read(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> InterpolationCall:
    """Read the arguments of ``F.interpolate``."""
    if x.dim() != 4:
        return InterpolationCall(mode, x.size(1), False, ())
    height, width = x.shape[2:]
    if size is None:
        factors = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
        target = (int(height * factors[0]), int(width * factors[1]))
    else:
        target = tuple(size) if isinstance(size, Sequence) else (size, size)
    near = all(
        abs(out - 2 * got) <= 1 and out > got for out, got in zip(target, (height, width), strict=True)
    )
    doubles = near and mode in INTERPOLATIONS and not align_corners
    return InterpolationCall(mode, x.size(1), doubles, target)


class _Reroute(TorchFunctionMode):
    """Hands a module's x2 calls to its layers."""

    def __init__(self, layers: nn.ModuleDict) -> None:
        super().__init__()
        self.layers = layers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.interpolate:
            return func(*args, **kwargs)
        x, *rest = (kwargs.pop("input"),) if "input" in kwargs else args
        call = _read(x, *rest, **kwargs)
        if not call.doubles or call.key not in self.layers:
            return func(x, *rest, **kwargs)
        return call.fit(self.layers[call.key](x))


class _Rerouted:
    """Comes before the class of a module whose calls are rerouted."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, with its layers in place of ``F.interpolate``."""
        with _Reroute(getattr(self, CHILD)):
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Tell copies and pickles the class that this one was made from."""
        return _blank, (type(self).__mro__[2],), self.__dict__.copy()


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _rerouted(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _CLASSES:
        names = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        _CLASSES[cls] = type(cls.__name__, (_Rerouted, cls), names)
    return _CLASSES[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    made = _rerouted(cls)
    return made.__new__(made)


def reroute(module: nn.Module, call: InterpolationCall, layer: nn.Module) -> None:
    """Let a layer take, from now on, the calls of ``F.interpolate`` that a module's forward makes.

    The module's class becomes a subclass of itself, as ``torch.nn.utils.parametrize`` does it; the layer is
    its child.
    """
    if not isinstance(module, _Rerouted):
        module.add_module(CHILD, nn.ModuleDict())
        module.__class__ = _rerouted(type(module))
    getattr(module, CHILD)[call.key] = layer.train(module.training)


class Interpolate(nn.Module):
    """A call of ``F.interpolate`` as a module."""

    def __init__(self, call: InterpolationCall) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        """Resize ``(N, C, H, W)`` to the size of the call."""
        return F.interpolate(x, size=self.call.size, mode=self.call.mode)


class _Watch(TorchFunctionMode):
    """Tells a function of every call of ``F.interpolate``."""

    def __init__(self, on_call: Callable[[Tensor, InterpolationCall], None]) -> None:
        super().__init__()
        self.on_call = on_call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate:
            rest = dict(kwargs)
            x, *more = (rest.pop("input"),) if "input" in rest else args
            self.on_call(x, _read(x, *more, **rest))
        return func(*args, **kwargs)


@contextmanager
def watch(
    on_module: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None],
    on_call: Callable[[Sequence[nn.Module], Tensor, InterpolationCall], None],
) -> Iterator[None]:
    """Tell of every module that runs and of every call of ``F.interpolate``.

    Args:
        on_module: Called after a module has run, with it and its arguments.
        on_call: Called before an interpolation, with the modules that run, the outermost first, the map and
            the call. What the two functions run themselves is not told of.
    """
    running: list[nn.Module] = []
    telling = False

    def tell(function: Callable[..., None], *args: Any) -> None:
        nonlocal telling
        telling = True
        try:
            function(*args)
        finally:
            telling = False

    def before(module: nn.Module, args: Any) -> None:
        if not telling:
            running.append(module)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not telling:
            running.pop()
            tell(on_module, module, args, kwargs)

    handles = [
        nn.modules.module.register_module_forward_pre_hook(before),
        nn.modules.module.register_module_forward_hook(after, with_kwargs=True),
    ]
    try:
        with _Watch(lambda x, call: None if telling else tell(on_call, running, x, call)):
            yield
    finally:
        for handle in handles:
            handle.remove()
