"""Checks of arguments that name the argument, its value and what is accepted."""

from __future__ import annotations

from typing import Any

__all__ = ["check_choice", "check_positive", "is_int"]


def is_int(value: object) -> bool:
    """Tell whether a value is an integer; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_positive(**values: Any) -> None:
    """Check that every named value is a positive integer.

    Raises:
        ValueError: Names the first that is not.
    """
    for name, value in values.items():
        if not is_int(value) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_choice(name: str, value: object, accepted: tuple[Any, ...]) -> None:
    """Check that a value is one of a few, of the same type too: 3.0 is not 3.

    Raises:
        ValueError: Names the value and what is accepted.
    """
    if type(value) not in map(type, accepted) or value not in accepted:
        raise ValueError(f"{name} must be one of {accepted}, got {value!r}")
