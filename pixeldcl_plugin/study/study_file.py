"""A study's YAML file, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..utils.cli import UsageError
from .plan import Arm, Selection, Study, Together

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def load_study(path: str | Path) -> Study:
    """Read a study.

    The file holds ``name``, ``config``, ``seeds``, ``reference`` (the arm that others are compared to;
    ``also_compare_to`` lists further ones) and ``arms``: by name, each with ``upsampler`` (what stands at
    the key ``upsampler_key``) or ``options`` (dotted keys as in --cfg-options), and if they differ from the
    study's, ``config`` and ``seeds``. ``options`` at the top apply to all. ``learning_rate`` (``grid``,
    ``widen``, ``held_out``, ``seed``, ``options``) asks for a selection; an arm with ``learning_rate_of``
    takes another's. ``together`` (``frozen``, ``checkpoint``) is a :class:`Together`. ``out`` is the folder
    of the results.

    Raises:
        UsageError: If the file is missing, is no YAML, or does not say the above; the message names the key.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no study {str(path)!r} (looked in {Path.cwd()})")
    try:
        raw = yaml.safe_load(file.read_bytes())  # bytes: what is no text is no YAML either
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    top = _Section(raw, str(path))
    name = _name(top.take("name", str))
    seeds = _seeds(top.take("seeds", list), "seeds")
    config = top.take("config", str, None)
    upsampler_key = top.take("upsampler_key", str, "model.backbone.upsample_cfg")
    options = top.take("options", dict, {})
    selection = _selection(top.take("learning_rate", dict, None), f"{path}: learning_rate")
    arms = []
    for arm_name, value in top.take("arms", dict).items():
        part = _Section(value, f"{path}: arms.{arm_name}")
        own = dict(part.take("options", dict, {}))
        upsampler = part.take("upsampler", dict, None)
        if upsampler is not None:
            own[upsampler_key] = {"_delete_": True, **upsampler}
        arm_config = part.take("config", str, config)
        if arm_config is None:
            raise UsageError(f"{part.where}: neither the arm nor the study names a config")
        arms.append(
            Arm(
                name=_name(str(arm_name)),
                config=arm_config,
                options={**options, **own},
                seeds=_seeds(part.take("seeds", list, list(seeds)), f"{part.where}.seeds"),
                learning_rate_of=part.take("learning_rate_of", str, str(arm_name)),
            )
        )
        part.close()
    study = Study(
        name=name,
        arms=tuple(arms),
        reference=top.take("reference", str),
        selection=selection,
        out=Path(top.take("out", str, f"work_dirs/studies/{name}")),
        also_compare_to=tuple(top.take("also_compare_to", list, [])),
        together=_together(top.take("together", dict, None), f"{path}: together"),
    )
    top.close()
    _check(study, str(path))
    return study


class _Section:
    """A mapping whose keys are taken one by one; what is left over was misspelt."""

    _REQUIRED = object()

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} must be a mapping, got {value!r}")
        self.left, self.where = dict(value), where

    def take(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        if key not in self.left:
            if default is self._REQUIRED:
                raise UsageError(f"{self.where}: {key!r} is missing")
            return default
        value = self.left.pop(key)
        if not isinstance(value, kind):
            raise UsageError(f"{self.where}: {key!r} must be a {kind.__name__}, got {value!r}")
        return value

    def close(self) -> None:
        if self.left:
            raise UsageError(f"{self.where}: unknown keys {sorted(self.left)}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise UsageError(f"names are letters, digits, '.', '_' and '-', got {text!r}")
    return text


def _seeds(values: Sequence[Any], where: str) -> tuple[int, ...]:
    whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
    if not values or not whole or len(set(values)) < len(values):
        raise UsageError(f"{where} must be different integers from 0 on, got {list(values)!r}")
    return tuple(values)


def _selection(raw: Any, where: str) -> Selection | None:
    if raw is None:
        return None
    part = _Section(raw, where)
    grid = part.take("grid", list)
    # YAML 1.1 takes 1e-3, without a point, for a string.
    if not grid or not all(isinstance(lr, float) and lr > 0 for lr in grid):
        raise UsageError(f"{where}.grid must be positive numbers such as 1.0e-3, got {grid!r}")
    selection = Selection(
        grid=tuple(grid),
        widen=part.take("widen", int, 0),
        held_out=part.take("held_out", float, 0.2),
        seed=part.take("seed", int, 0),
        options=part.take("options", dict, {}),
    )
    part.close()
    if selection.widen < 0 or (selection.widen and len(set(grid)) < 2):
        raise UsageError(
            f"{where}.widen must be at least 0, and needs a grid of two rates or more, "
            f"got {selection.widen!r} with the grid {grid!r}"
        )
    if not 0 < selection.held_out < 1:
        raise UsageError(f"{where}.held_out must lie between 0 and 1, got {selection.held_out!r}")
    return selection


def _together(raw: Any, where: str) -> Together | None:
    if raw is None:
        return None
    part = _Section(raw, where)
    together = Together(part.take("frozen", str), part.take("checkpoint", str, None))
    part.close()
    if together.frozen not in ("backbone", "logits"):
        raise UsageError(f"{where}.frozen must be 'backbone' or 'logits', got {together.frozen!r}")
    if together.frozen == "logits" and together.checkpoint is None:
        raise UsageError(f"{where}: frozen 'logits' need the 'checkpoint' of the finished model")
    return together


def _check(study: Study, path: str) -> None:
    for folder in (study.out, *study.out.parents):
        if folder.exists() and not folder.is_dir():
            raise UsageError(
                f"{path}: out {str(study.out)!r} must be a folder, but {str(folder)!r} is a file"
            )
    names = [arm.name for arm in study.arms]
    for key, others in (("reference", (study.reference,)), ("also_compare_to", study.also_compare_to)):
        for other in others:
            if other not in names:
                raise UsageError(f"{path}: {key} {other!r} is none of the arms {names}")
    for arm in study.arms:
        if arm.learning_rate_of not in names or study.arm(arm.learning_rate_of).learning_rate_of not in (
            arm.learning_rate_of,
        ):
            raise UsageError(
                f"{path}: arms.{arm.name}: learning_rate_of {arm.learning_rate_of!r} must be an arm that "
                "selects its own"
            )
