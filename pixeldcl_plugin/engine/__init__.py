"""What makes a run of a config; hooks, optimizer and model wrappers are registered on import."""

from . import distributed, hooks, optim

__all__ = ["distributed", "hooks", "optim"]
