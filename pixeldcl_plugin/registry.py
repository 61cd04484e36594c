"""This package's scope in MMEngine's registries.

``type='pixeldcl_plugin.DySample'`` always means this package's class. MMEngine imports this module by its
name, so a config needs no ``custom_imports``. The bare ``type='DySample'`` works too, unless the application
has registered a class of its own under that name.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import TypeVar

from mmengine.registry import Registry

__all__ = ["SCOPE", "register"]

SCOPE = "pixeldcl_plugin"

_Class = TypeVar("_Class", bound=type)


def register(registry: Registry, *names: str) -> Callable[[_Class], _Class]:
    """Return a decorator that registers a class in this package's scope and under its bare names.

    Args:
        registry: Where the bare names go, such as mmseg's ``MODELS``.
        names: The names; by default that of the class. A name that is taken there is left to its owner,
            with a warning.
    """

    def decorate(cls: _Class) -> _Class:
        for name in names or (cls.__name__,):
            _scoped(registry).register_module(name=name, module=cls, force=True)
            taken = registry.module_dict.get(name)
            if taken is None:
                registry.register_module(name=name, module=cls)
            elif _place(taken) != _place(cls):  # the same place: this module was imported anew
                warnings.warn(
                    f"{name!r} is registered as {'.'.join(_place(taken))} already: it stays so, and "
                    f"{'.'.join(_place(cls))} is '{SCOPE}.{name}'",
                    stacklevel=2,
                )
        return cls

    return decorate


def _place(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _scoped(registry: Registry) -> Registry:
    """Return the registry of this package's scope beside the one of another scope."""
    root = registry
    while root.parent is not None:
        root = root.parent
    found = root.children.get(SCOPE)
    if found is None:
        found = Registry(root.name, parent=root, scope=SCOPE, locations=[SCOPE])
        # MMEngine puts all that a config inherits from ``_base_ = 'pixeldcl_plugin::...'`` into this scope,
        # mmseg's types too.
        found.parent = root.children.get("mmseg", root)
    return found


if importlib.util.find_spec("mmseg") is not None:
    for _registry in list(vars(importlib.import_module("mmseg.registry")).values()):
        if isinstance(_registry, Registry):
            _scoped(_registry)
