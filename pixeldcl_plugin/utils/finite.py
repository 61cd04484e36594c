"""Whether weights are numbers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["first_not_finite"]


def first_not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity in it, or None.

    Minus infinity is let pass: masks of attention are made of it.
    """
    for name, tensor in state.items():
        # The comparison is false of NaN too.
        if tensor.is_floating_point() and not bool((tensor < float("inf")).all()):
            return name
    return None
