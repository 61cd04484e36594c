"""Activations computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recompute"]


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> Tensor:
    """Return ``function(x)``, keeping of it only ``x``: the backward pass computes it anew.

    Gradients and running statistics of the norms are those of a plain call, compiled or not.

    Args:
        function: What to compute.
        x: Its input.
        module: The module whose forward this is, or part of it; its norms count the batch once.
    """
    if not x.requires_grad:
        return function(x)
    if torch.compiler.is_compiling():  # traces the buffers' updates once, and takes no context functions
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(
        function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _frozen_running_stats(module))
    )


@contextmanager
def _frozen_running_stats(module: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting a recomputed batch a second time in their running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    saved = [(norm.momentum, deepcopy(norm.num_batches_tracked)) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, saved, strict=True):
            norm.momentum = momentum
            if tracked is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(tracked)
