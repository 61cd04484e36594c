"""Train the arms of one seed side by side, where what lies before them is frozen and computed once for all.

An arm costs then what it adds. Every arm sees the batches that it would see alone, and draws the same random
numbers: its scores do not depend on the company.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ..engine import console
from ..engine.builder import build_model
from ..engine.weights import load_state
from ..models.guided import GuidedEncoderDecoder
from ..utils.checkpoints import enable_safe_loading, read_state
from ..utils.cli import UsageError
from ..utils.files import write_text_whole, written_whole
from .configs import fingerprint, run_config
from .execute import RESULT, build_evaluator, clock, make_row, measure_cost
from .plan import Run, Study

#: Iterations between two lines of the log.
_INTERVAL = 50
#: What the study reads to say how far a group is; where MMEngine's runs have theirs.
LOG = "together/vis_data/scalars.json"
#: What a guided segmentor takes and a stock one does not.
_GUIDED_KEYS = ("upsample_cfg", "guide_index", "guide_channels", "frozen")


@dataclass
class _Member:
    """An arm in training. Without an optimizer it is the frozen model itself, which is only scored."""

    run: Run
    cfg: Config
    identity: str
    model: EncoderDecoder
    optimizer: Any = None  # an OptimWrapper
    schedulers: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: float = 0.0


def execute_together(study: Study, runs: Sequence[Run], work_dir: str | Path) -> list[dict[str, Any]]:
    """Train and score some runs of one seed; a kill loses them all.

    Args:
        study: One that says what is frozen.
        runs: Of one seed, all selecting a rate or none.
        work_dir: Gets ``result.json``, and ``<run>.pth``, a checkpoint of every run that is compared.

    Returns:
        Their rows. The milliseconds are of a whole model: what is shared, and what an arm adds to it.
    """
    console.quiet_warnings()
    enable_safe_loading()
    folder = Path(work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    init_default_scope("mmseg")
    members = [_member(study, run) for run in runs]
    shared = _Shared(study, members)
    trained = [member for member in members if member.optimizer is not None]
    if trained:
        set_random_seed(runs[0].seed)
        loader = Runner.build_dataloader(trained[0].cfg.train_dataloader, seed=runs[0].seed)
        _train(trained, shared, _repeat(loader), runs[0].seed, folder / LOG)
    found, meta = _score(members, shared)
    rows = []
    for member, scores in zip(members, found, strict=True):
        steps = len(member.seconds)
        history = {steps: scores["mIoU"]}
        rows.append(make_row(study, member.run, member.cfg, member.identity, scores, member.seconds, history))
        if not member.run.selecting:
            about = dict(cfg=member.cfg.pretty_text, dataset_meta=meta)
            with written_whole(folder / f"{member.run.key}.pth") as part:
                torch.save(dict(meta=about, state_dict=member.model.state_dict()), part)
    write_text_whole(folder / RESULT, json.dumps(rows, indent=1))
    return rows


def _member(study: Study, run: Run) -> _Member:
    assert study.together is not None
    cfg = run_config(study, run)
    identity = fingerprint(cfg)
    set_random_seed(run.seed)
    model = build_model(cfg, pretraining=True, kind=EncoderDecoder)
    if cfg.get("load_from"):
        new = {name: value for name, value in model.state_dict().items() if ".guided." in name}
        load_state(model, {**new, **read_state(cfg.load_from)})
    if cfg.get("channels_last"):
        model.to(memory_format=torch.channels_last)
    member = _Member(run, cfg, identity, model)
    if study.together.frozen == "backbone" or "upsample_cfg" in cfg.model:
        with console.quiet_logger():
            member.optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        for scheduler in cfg.param_scheduler:
            kind = dict(scheduler, optimizer=member.optimizer, _scope_="mmengine")
            member.schedulers.append(PARAM_SCHEDULERS.build(kind))
    return member


class _Shared:
    """What is frozen: the backbone; or with it the stock head, which leaves logits to be upsampled."""

    def __init__(self, study: Study, members: Sequence[_Member]) -> None:
        assert study.together is not None
        guided = [m for m in members if isinstance(m.model, GuidedEncoderDecoder)]
        first = (guided or members)[0]  # a guided one keeps the image with the features
        self.model = first.model
        self.stock: nn.Module | None = None
        if study.together.frozen == "logits":
            cfg = copy.deepcopy(first.cfg)
            cfg.model = {key: value for key, value in cfg.model.items() if key not in _GUIDED_KEYS}
            cfg.model["type"] = "EncoderDecoder"
            model = build_model(cfg, read_state(str(first.cfg.load_from)), kind=EncoderDecoder)
            self.stock = model.decode_head
        elif any(p.requires_grad for p in self.model.backbone.parameters()):
            raise UsageError("together: frozen 'backbone' asks for one that is, such as FrozenTIMMBackbone")

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> tuple[Any, Tensor | None]:
        """Return the features of some pictures, and their stock logits if those are frozen."""
        features = self.model.extract_feat(inputs)
        return features, None if self.stock is None else self.stock(features)


def _decode(member: _Member, features: Any, logits: Tensor | None) -> Tensor:
    head = member.model.decode_head
    if logits is None:
        return head(features)
    return head.enlarge(logits, features) if member.optimizer is not None else logits


def _train(members: Sequence[_Member], shared: _Shared, batches: Iterator[Any], seed: int, log: Path) -> None:
    for member in members:
        member.model.train()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # of a start that was killed: this one begins anew
    iterations = max(member.cfg.train_cfg.max_iters for member in members)
    for step in range(iterations):
        start = clock()
        data = shared.model.data_preprocessor(next(batches), True)
        with members[0].optimizer.optim_context(shared.model):
            features, logits = shared(data["inputs"])
        common = clock() - start
        for member in members:
            start = clock()
            with torch.random.fork_rng():
                torch.manual_seed(1_000_003 * seed + step)  # dropout is the same, whoever else trains
                with member.optimizer.optim_context(member.model):
                    out = _decode(member, features, logits)
                    losses = member.model.decode_head.loss_by_feat(out, data["data_samples"])
                loss, _ = member.model.parse_losses(losses)
                member.optimizer.update_params(loss)
            for scheduler in member.schedulers:
                scheduler.step()
            member.loss += float(loss.detach())
            member.seconds.append(common + clock() - start)
        if (step + 1) % _INTERVAL == 0 or step + 1 == iterations:
            means = {m.run.key: m.loss / (step + 1) for m in members}
            losses = ", ".join(f"{key} {loss:.3f}" for key, loss in means.items())
            print(f"iteration {step + 1}/{iterations}, mean loss: {losses}", flush=True)
            with log.open("a") as file:
                file.write(json.dumps({"step": step + 1, "loss": sum(means.values()), **means}) + "\n")


@torch.no_grad()
def _score(members: Sequence[_Member], shared: _Shared) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Score every member, picture by picture: what slows the machine down slows all of them.

    Returns:
        What was measured of each, and the names and colours of the classes.
    """
    loader = Runner.build_dataloader(members[0].cfg.val_dataloader, seed=0)
    evaluators = [build_evaluator(m.cfg, loader.dataset.metainfo) for m in members]
    seconds: list[list[float]] = [[] for _ in members]
    for member in members:
        member.model.eval()
    for batch in loader:
        start = clock()
        data = shared.model.data_preprocessor(batch, False)
        features, logits = shared(data["inputs"])
        common = clock() - start
        for place, member in enumerate(members):
            samples = [sample.clone() for sample in data["data_samples"]]
            start = clock()
            out = _decode(member, features, logits)
            out = member.model.decode_head.predict_by_feat(out, [sample.metainfo for sample in samples])
            outputs = member.model.postprocess_result(out, samples)
            seconds[place].append((common + clock() - start) / len(outputs))
            evaluators[place].process(data_samples=outputs, data_batch=batch)
    found = []
    for place, member in enumerate(members):
        scores = {name: float(v) for name, v in evaluators[place].evaluate(len(loader.dataset)).items()}
        scores["predict_ms"] = 1e3 * float(np.median(seconds[place]))
        found.append({**scores, **measure_cost(member.model, loader)})
    return found, dict(loader.dataset.metainfo)


def _repeat(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
