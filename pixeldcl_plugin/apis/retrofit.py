"""Sharpen a finished model: freeze it, and train a guided upsampler in place of its final resize."""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from mmseg.models.segmentors import EncoderDecoder

from ..engine import preflight, runtime
from ..engine.builder import load_model
from ..engine.hardware import adapt_to_hardware
from ..engine.hooks import ReplaceRunHook
from ..engine.progress import progress_shown
from ..engine.settings import check_settings
from ..engine.weights import load_state
from ..utils.checkpoints import CheckpointError, load_checkpoint
from ..utils.cli import UsageError
from ..utils.compat import installed_versions
from ..utils.devices import usable_device
from ..utils.files import write_text_whole, written_whole
from ..visualization import gallery_figure
from .gallery import Samples, choose
from .model_arguments import ModelArgument
from .retrofit_config import find_guides, guided_config, guided_type, training_config
from .scores import Scores, score
from .segmenter import Segmenter

__all__ = ["Result", "Retrofit"]


@dataclass(frozen=True)
class Result:
    """What a retrofit leaves: the new model's config and checkpoint, a picture, and scores of both models."""

    config: Path
    checkpoint: Path
    picture: Path
    before: Scores
    after: Scores


class Retrofit:
    """A trained model, and the training of a guided upsampler for it; all that can fail does so at first.

    Args:
        source: The model.
        work_dir: Where logs, checkpoints and results go.
        iters: Iterations of the training.
        guide: See :func:`find_guides`.
        split: The data to score on: ``'val'`` or ``'test'``.
        seed: Of the training; None for the config's.

    Raises:
        UsageError: If the model's resize cannot be guided, or a setting cannot be used.
        CheckpointError: If the checkpoint cannot be read safely, or is another model's.
    """

    def __init__(
        self,
        source: ModelArgument,
        work_dir: str | Path,
        *,
        iters: int = 500,
        guide: Literal["image", "features"] = "features",
        split: str = "val",
        seed: int | None = None,
    ) -> None:
        if iters < 1:
            raise UsageError(f"iters must be at least 1, got {iters}")
        self.source, self.iters, self.guide, self.split = source, iters, guide, split
        self.work_dir = Path(work_dir)
        guided_type(source.cfg)
        self.before = source.load_segmentor().to(usable_device(None))
        self.before.auxiliary_head = None
        self.guides = find_guides(self.before, guide)
        self.config = guided_config(source.cfg, self.guides)
        self.training = training_config(self.config, iters)
        self.training.work_dir = str(work_dir)
        runtime.set_randomness(self.training, seed)
        self.notes = adapt_to_hardware(self.training)
        check_settings(self.training, "train")
        self._samples = Samples(source.cfg, split)
        self._before = Segmenter(self.before)

    def run(self, *, resume: bool = False, overwrite: bool = False) -> Result:
        """Score, train, score again, and write what is left; progress goes to the terminal.

        Args:
            resume: Go on from the newest checkpoint in the work dir.
            overwrite: Replace an earlier retrofit there.

        Raises:
            UsageError: If the work dir holds checkpoints and neither is asked for.
            CheckpointError: If those are of another model, or of this one with other weights.
            OSError: If another process works there, or it cannot be written.
        """
        with preflight.claimed_work_dir(self.training):
            self._prepare(resume, overwrite)
            before = score(self.before, self.source.cfg, self.split, "scoring the model as it is")
            means = ", ".join(f"{name} {value:.2f}" for name, value in before.mean().items())
            print(f"Before: {means} on {len(self._samples)} images of {self.split}", flush=True)
            facts = self._train(overwrite)
            config, checkpoint = self._write()
            after_model = load_model(runtime.load_config(str(config)), checkpoint, EncoderDecoder)
            after_model.to(usable_device(None))
            after = score(after_model, self.source.cfg, self.split, "scoring the guided model")
            result = Result(config, checkpoint, self.work_dir / "before_after.png", before, after)
            self._draw(Segmenter(after_model), result.picture)
            self._record(result, facts)
        return result

    def _prepare(self, resume: bool, overwrite: bool) -> None:
        point = preflight.prepare_work_dir(self.training, "auto" if resume else None, overwrite)
        if point is None:
            return
        for name, tensor in self.before.state_dict().items():
            if not torch.equal(point.state[name].to(tensor), tensor):
                raise CheckpointError(
                    f"cannot resume from {str(point.path)!r}: it is of another checkpoint than "
                    f"{self.source.checkpoint!r}, they differ in {name!r}"
                )

    def _train(self, overwrite: bool) -> dict[str, float]:
        """Train the upsampler; return how large it is and how long it took."""
        earlier = preflight.written_files(self.training) if overwrite else []
        runner = runtime.build_runner(self.training)
        runner.register_hook(ReplaceRunHook(earlier))
        for note in self.notes:
            runner.logger.info(note)
        new = {name: tensor for name, tensor in runner.model.state_dict().items() if ".guided." in name}
        load_state(runner.model, {**new, **self.before.state_dict()})
        runner.model.is_init = True  # The Runner must not initialise it over these.
        size = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
        start = time.monotonic()
        with progress_shown(runner):
            runner.train()
        return dict(new_parameters=size, training_seconds=round(time.monotonic() - start, 1))

    def _write(self) -> tuple[Path, Path]:
        """Write config and checkpoint of the new model, for prediction as well as for any other use."""
        stem = f"{Path(self.source.config).stem}-guided"
        config, checkpoint = (self.work_dir / f"{stem}{suffix}" for suffix in (".py", ".pth"))
        trained = load_checkpoint(self.work_dir / f"iter_{self.iters}.pth")
        text = self.config.pretty_text
        meta = {**trained["meta"], "cfg": text}
        with written_whole(checkpoint, sync=True) as part:
            torch.save(dict(meta=meta, state_dict=trained["state_dict"]), part)
        write_text_whole(config, text)
        return config, checkpoint

    def _draw(self, after: Segmenter, file: Path) -> None:
        columns = choose(self._samples, [self._before, after], pool=40)
        figure = gallery_figure.draw(columns, ["before", "after"], after.classes, after.palette, inset=0.25)
        with written_whole(file) as part:
            figure.savefig(part)

    def _record(self, result: Result, facts: dict[str, float]) -> None:
        record = dict(
            config=self.source.config,
            checkpoint=self.source.checkpoint,
            iters=self.iters,
            guide=self.guide,
            seed=(self.training.get("randomness") or {}).get("seed"),
            **asdict(self.guides),
            **facts,
            device=str(usable_device(None)),
            threads=torch.get_num_threads(),
            scored_on=f"{self.split}, {len(self._samples)} images",
            before=result.before.mean(),
            after=result.after.mean(),
            classes={
                name: dict(before=scores, after=result.after.by_class()[name])
                for name, scores in result.before.by_class().items()
            },
            versions={module: " ".join(found) for module, found in installed_versions().items()},
            date=datetime.date.today().isoformat(),
        )
        write_text_whole(self.work_dir / "scores.json", json.dumps(record, indent=1) + "\n")
