"""Training by several processes that computes what one process would on their batches together."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmseg.models.losses import CrossEntropyLoss
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ..registry import register


@register(MODEL_WRAPPERS)
class GlobalBatchDDP(MMDistributedDataParallel):
    """Distributed data parallel training whose step is that of one process on the global batch.

    MMEngine's wrapper averages the gradients of losses that every rank has averaged by itself. That is not
    the average over the global batch where the ranks have different numbers of labelled pixels, and what it
    logs is the loss of rank 0. Here

    - mmseg's ``CrossEntropyLoss`` divides by the mean over the ranks of what it would divide by: the
      labelled pixels with ``avg_non_ignore=True``, their weights with ``class_weight``;
    - the losses that are logged are means over the ranks;
    - ``SyncBN`` synchronises its statistics on a CPU too, where torch has it for GPUs only.

    What still differs from one process: ``BN``, which normalises by the batch of its own rank; other losses
    that divide by a count of their own batch (Dice, Lovasz); the numbers that dropout and augmentation draw.

    Args:
        module: The model, on the device on which it computes.
        device_ids: As in torch; left out on a CPU.
        broadcast_buffers: As in torch.
        channels_last: Convert the model to that memory format. It is too late afterwards: the buckets of
            the gradients have the strides that the weights had.
        **kwargs: Other arguments of torch's ``DistributedDataParallel``, and ``detect_anomalous_params``.
    """

    def __init__(
        self,
        module: nn.Module,
        device_ids: list[int] | None = None,
        broadcast_buffers: bool = False,
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters())
        for part in module.modules():
            if isinstance(part, CrossEntropyLoss):
                part.register_forward_pre_hook(_average_over_ranks, with_kwargs=True)
            elif on_cpu and isinstance(part, nn.SyncBatchNorm):
                # As torch's lazy modules become what they stand for: parameters and names stay.
                part.__class__ = _SyncBatchNormOnCPU  # type: ignore[assignment]
        if channels_last:
            module.to(memory_format=torch.channels_last)
        ids = None if on_cpu else device_ids
        super().__init__(module=module, device_ids=ids, broadcast_buffers=broadcast_buffers, **kwargs)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Take a training step, and return the losses to be logged: means over the ranks."""
        losses = super().train_step(data, optim_wrapper)
        values = torch.stack([value.detach().float() for value in losses.values()])
        all_reduce(values, "mean")
        return dict(zip(losses, values.unbind(), strict=True))


def _average_over_ranks(
    loss: CrossEntropyLoss, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Give a cross entropy, before its forward, the ranks' mean of what it would divide by."""
    names = ("cls_score", "label", "weight", "avg_factor", "reduction_override", "ignore_index")
    given = dict(zip(names, args, strict=False)) | kwargs
    reduction = given.get("reduction_override") or loss.reduction
    if loss.use_mask or reduction != "mean" or given.get("avg_factor") is not None:
        return None
    divisor = _divisor(loss, given["cls_score"], given["label"], given.get("ignore_index", -100))
    if divisor is None:
        return None
    all_reduce(divisor, "mean")
    return (), given | {"avg_factor": divisor}


def _divisor(loss: CrossEntropyLoss, scores: Tensor, label: Tensor, ignore_index: int) -> Tensor | None:
    """Return what the cross entropy divides by, or None where that follows from the shape of the batch."""
    labelled = label != ignore_index
    if loss.use_sigmoid:
        if not loss.avg_non_ignore:
            return None
        return (labelled & (label >= 0)).sum().float() * (scores.numel() // label.numel())
    if loss.class_weight is not None:
        return scores.new_tensor(loss.class_weight, dtype=torch.float32)[label[labelled]].sum()
    return labelled.sum().float() if loss.avg_non_ignore else None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        torch.distributed.all_reduce(total)  # every rank's result depends on every rank's input
        return total


class _SyncBatchNormOnCPU(_BatchNorm):
    """What a ``nn.SyncBatchNorm`` becomes: torch has its kernels, and lets DDP hold it, for GPUs only."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = torch.full((1,), x.numel() // x.size(1), dtype=wide.dtype)
        sums = _SumOverRanks.apply(torch.cat([wide.sum(dims), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = wide - _by_channel(mean, x)
        variance = _SumOverRanks.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        out = centred * _by_channel((variance + self.eps).rsqrt(), x)
        if self.affine:
            out = out * _by_channel(self.weight, x) + _by_channel(self.bias, x)
        return out.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))
