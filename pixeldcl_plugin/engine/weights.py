"""Weights into a model: all of them or a clear refusal."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from ..utils.checkpoints import CheckpointError

__all__ = ["ClassCountError", "WrongArchitectureError", "check_state", "load_state"]


class WrongArchitectureError(CheckpointError):
    """The weights are those of another model."""


class ClassCountError(CheckpointError):
    """The weights are those of this model with another number of classes."""


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, new_classes: bool = False, inference: bool = False
) -> list[str]:
    """Load a state dict into a model; if that is refused, the model is unchanged.

    Args:
        model: The model.
        state: Its weights.
        new_classes: Whether the model may have another number of classes than the weights. Then the tensors
            whose shape depends on it keep their values: ``conv_seg``, the last layer of mmseg's heads
            (auxiliary heads included), and in a head that upsamples its logits also the upsampler after
            it, whose channels are the classes.
        inference: Whether the model is to predict only. Then what predicts nothing is left out on both
            sides: auxiliary heads, the data preprocessor and the counters of batch norm.

    Returns:
        The names of the tensors that kept their values because of the number of classes.

    Raises:
        ClassCountError: If only the number of classes differs, and ``new_classes`` is False.
        WrongArchitectureError: If a tensor is missing or superfluous, or has another shape.
    """
    fitting, reshaped = _fitting(model, state, new_classes, inference)
    model.load_state_dict(fitting, strict=False)
    return reshaped


def check_state(model: nn.Module, state: Mapping[str, Tensor], *, inference: bool = False) -> None:
    """Raise what :func:`load_state` would, and load nothing."""
    _fitting(model, state, new_classes=False, inference=inference)


def _predicts(name: str) -> bool:
    ignored = ("auxiliary_head.", "data_preprocessor.")
    return not name.startswith(ignored) and not name.endswith(".num_batches_tracked")


def _fitting(
    model: nn.Module, state: Mapping[str, Tensor], new_classes: bool, inference: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return what of a state dict fits a model, and the names of what depends on the number of classes."""
    if inference:
        state = {name: tensor for name, tensor in state.items() if _predicts(name)}
    own = model.state_dict()
    reshaped = [name for name in own if name in state and own[name].shape != state[name].shape]
    counts = _class_counts(reshaped, state, own)
    if reshaped and counts is None:
        name = reshaped[0]
        raise WrongArchitectureError(
            f"the weights are of another model: {len(reshaped)} tensors differ in shape, first {name!r}, "
            f"{tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        )
    fitting = {name: tensor for name, tensor in state.items() if name not in reshaped}
    # A real load, which knows of names that changed between versions of a layer, on a copy.
    result = copy.deepcopy(model).load_state_dict(fitting, strict=False)
    missing = [name for name in result.missing_keys if name not in reshaped]
    if inference:
        missing = [name for name in missing if _predicts(name)]
    for kind, names in (("the file lacks", missing), ("the model has no", result.unexpected_keys)):
        if names:
            raise WrongArchitectureError(
                f"the weights are of another model: {kind} {names[0]!r} ({len(names)} such of {len(own)})"
            )
    if counts is not None and not new_classes:
        raise ClassCountError(
            f"the weights are for {counts[0]} classes and the model has {counts[1]}: build it with "
            f"{counts[0]}, or let create_model(name, num_classes={counts[1]}) initialise the last layer anew"
        )
    return fitting, reshaped


def _class_counts(
    names: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[int, int] | None:
    """Return the class counts of file and model if these tensors differ in nothing else, else None.

    A dimension that depends on the number of classes is proportional to it: one channel a class in
    ``conv_seg``, several in an upsampler that makes its phases from one convolution.
    """
    last = next((name for name in names if name.endswith("conv_seg.weight")), None)
    if last is None:
        return None
    theirs, ours = state[last].shape[0], own[last].shape[0]
    for name in names:
        if state[name].ndim != own[name].ndim:
            return None
        pairs = zip(state[name].shape, own[name].shape, strict=True)
        if any(a != b and a * ours != b * theirs for a, b in pairs):
            return None
    return theirs, ours
