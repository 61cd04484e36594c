"""What makes a run of a config; hooks and optimizer wrappers are registered on import."""

from . import hooks, optim

__all__ = ["hooks", "optim"]
