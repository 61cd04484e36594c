"""What a config asks for that cannot be built, as one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

__all__ = [
    "accepted_arguments",
    "did_you_mean",
    "explain",
    "find_class",
    "find_key",
    "first_import_error",
    "unknown_argument",
    "unknown_type",
]

_UNKNOWN_TYPE = re.compile(r"(\S+) is not in the .+ registry")
_UNKNOWN_LAYER = "Cannot find None in registry"  # as mmcv puts it
_UNKNOWN_ARGUMENT = re.compile(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'")
# Where a type and its arguments are taken out of a config and called.
_BUILDERS = ("mmengine/registry", "mmengine/optim", "mmcv/cnn/bricks")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the name most like one that is not known, or an empty string."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def accepted_arguments(call: Any) -> tuple[set[str], bool]:
    """Return the names that a class or function takes as keywords, and whether it has ``**kwargs`` besides.

    Those of a class are followed to its bases, which is where most hand them on.
    """
    names: set[str] = set()
    open_ended = False
    calls = [call]
    if inspect.isclass(call):
        calls = [vars(base)["__init__"] for base in inspect.getmro(call) if "__init__" in vars(base)]
    for function in calls:
        if function is object.__init__:
            break
        parameters = inspect.signature(function).parameters.values()
        takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name for p in parameters if p.kind in takes} - {"self"}
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
        open_ended = True
    return names, open_ended


def unknown_argument(call: Any, name: str, kind: Any = None) -> str:
    """Return the sentence about an argument that a class or function does not take.

    Args:
        call: The class or function.
        name: The argument.
        kind: The type in a config that led to it, a name or a class; None if unknown.
    """
    known, _ = accepted_arguments(call)
    written = kind if isinstance(kind, str) else getattr(kind, "__name__", call.__name__)
    return f"{written} takes no {name!r}{did_you_mean(name, known) or _listed(known)}"


def unknown_type(registry: Registry, name: str) -> str:
    """Return the sentence about a type that is not registered."""
    known: set[str] = set()
    level: Registry | None = registry
    while level is not None:
        known |= set(level.module_dict)
        level = level.parent
    return f"no {registry.name} is registered as {name!r}{did_you_mean(name, known)}"


def explain(error: BaseException) -> str | None:
    """Return what is wrong with a config that could not be built; None if the error says nothing of it.

    A call with arguments that it does not take fails in the frame of the caller, which is a builder's; an
    error inside a constructor has a further frame. Constructors of this package raise ValueError for values
    that they do not accept.
    """
    frames = traceback.extract_tb(error.__traceback__)
    files = [Path(frame.filename).as_posix() for frame in frames]
    if not files or not error.args:
        return None
    # MMEngine adds general advice and a link after the first sentence.
    message = " ".join(str(error.args[0]).partition(". Please")[0].split())
    if isinstance(error, ValueError):
        built = any(builder in file for file in files for builder in _BUILDERS)
        return message if built and Path(files[-1]).is_relative_to(Path(__file__).parents[1]) else None
    if not isinstance(error, KeyError | TypeError) or not any(part in files[-1] for part in _BUILDERS):
        return None
    local = list(traceback.walk_tb(error.__traceback__))[-1][0].f_locals
    registry = local.get("registry")
    if found := _UNKNOWN_TYPE.search(message):
        return unknown_type(registry, found[1]) if isinstance(registry, Registry) else message
    if _UNKNOWN_LAYER in message and isinstance(registry, Registry):
        return unknown_type(registry, str(local.get("layer_type", local.get("padding_type"))))
    if found := _UNKNOWN_ARGUMENT.search(message):
        call = find_class(error, found[1])
        return unknown_argument(call, found[2]) if call is not None else message
    return message


def find_class(error: BaseException, name: str) -> Any:
    """Return the class or function of a name that an error's frames know, else any module, or None."""
    name = name.removesuffix(".__init__")
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    values = [value for frame in reversed(frames) for value in list(frame.f_locals.values())]
    known = [kind for v in values for kind in (v, *inspect.getmro(v if inspect.isclass(v) else type(v)))]
    known += [vars(module).get(name) for module in list(sys.modules.values())]
    return next((k for k in known if callable(k) and getattr(k, "__qualname__", None) == name), None)


def first_import_error(error: BaseException) -> BaseException:
    """Return what failed where an import did: MMEngine's error about ``custom_imports`` lists sys.path."""
    while isinstance(error, ImportError) and (before := error.__cause__ or error.__context__):
        error = before
    return error


def find_key(node: Any, key: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted paths below a part of a config at which a key stands, and the values."""
    items: Collection[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = list(enumerate(node))
    for name, value in items:
        if name == key:
            yield f"{path}.{name}", value
        yield from find_key(value, key, f"{path}.{name}")


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted paths of a config's values and sequences, and what stands there."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
        return
    yield path, node
    if isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}.{index}")


def _listed(known: Collection[str]) -> str:
    return f"; it takes {', '.join(sorted(known))}" if 0 < len(known) <= 12 else ""
