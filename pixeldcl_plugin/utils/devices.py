"""Where to compute."""

from __future__ import annotations

import torch

from .cli import UsageError

__all__ = ["usable_device"]


def usable_device(device: str | torch.device | None) -> torch.device:
    """Return where to compute: the given device, by default a GPU if there is one.

    Raises:
        UsageError: If the device cannot be used here; the message says why.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch has a type of its own for an unknown name, an absent driver and an absent backend
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used here: {reason}") from error
    return usable
