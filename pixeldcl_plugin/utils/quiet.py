"""The one place where warnings of other packages are hidden about which a user can do nothing."""

from __future__ import annotations

import logging
import warnings

__all__ = ["HIDDEN_LINES", "HIDDEN_WARNINGS", "quiet_warnings"]

#: How they begin. They are about defaults that work as they should, or what the frameworks cause themselves.
HIDDEN_WARNINGS = (
    "Fail to import ``MultiScaleDeformableAttention",
    "The draw is False, it means that the hook",
    "The shape of value will convert from",
    "`broadcast_buffers` is deprecated",
    "``build_loss`` would be deprecated",
    "Setting OMP_NUM_THREADS environment variable",
    "Setting MKL_NUM_THREADS environment variable",
)
#: And those that loggers tell.
HIDDEN_LINES = {"torch.utils.cpp_extension": "No CUDA runtime is found"}


def _is_shown(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(HIDDEN_LINES[record.name])


def quiet_warnings() -> None:
    """Hide them from here on."""
    for message in HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for logger in HIDDEN_LINES:
        logging.getLogger(logger).addFilter(_is_shown)  # once, however often it is called
