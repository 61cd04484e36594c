"""What makes a run of a config; hooks, optimizer and model wrappers are registered on import."""

from . import checkpoint_hooks, distributed, hooks, optim, random_state, resume_hook

__all__ = ["checkpoint_hooks", "distributed", "hooks", "optim", "random_state", "resume_hook"]
