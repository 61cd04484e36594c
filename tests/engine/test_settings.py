"""A setting that cannot be used is one line that names it, before any file is touched."""

from __future__ import annotations

import ast
import contextlib
import random
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS

from pixeldcl_plugin.engine import dry_forward, hardware, random_state, runtime, settings
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]


def _config(path: Path, *options: str) -> tuple[Config, dict[str, object]]:
    """Return the config with ``--cfg-options`` as the command line parses them."""
    given: dict[str, object] = {}
    for option in options:
        key, _, text = option.partition("=")
        try:
            given[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[key] = text
    cfg = runtime.load_config(str(path), given)
    hardware.adapt_to_hardware(cfg)
    return cfg, given


REFUSED = {
    # Numbers.
    "train_cfg.max_iters=0": "a whole number from 1",
    "train_cfg.max_iters=-5": "a whole number from 1",
    "train_cfg.max_iters=abc": "a whole number from 1",
    "train_cfg.max_iters=2.5": "a whole number from 1",
    "train_cfg.val_interval=0": "a whole number from 1",
    "train_cfg.val_interval=abc": "a whole number from 1",
    "train_cfg.val_begin=-1": "a whole number from 0",
    "train_dataloader.batch_size=0": "a whole number from 1",
    "train_dataloader.batch_size=abc": "a whole number from 1",
    "train_dataloader.num_workers=-1": "a whole number from 0",
    "train_dataloader.num_workers=abc": "a whole number from 0",
    "val_dataloader.batch_size=0": "a whole number from 1",
    "train_dataloader.dataset.pipeline.3.crop_size=(0, 0)": "a positive number of pixels",
    "train_dataloader.dataset.pipeline.3.crop_size=(32, 32, 3)": "a positive number of pixels",
    "model.data_preprocessor.size=(32, -1)": "a positive number of pixels",
    "model.decode_head.num_classes=0": "a whole number from 1",
    "model.decode_head.num_classes=-2": "a whole number from 1",
    "model.decode_head.num_classes=abc": "a whole number from 1",
    "optim_wrapper.optimizer.lr=abc": "a finite number from 0",
    "optim_wrapper.optimizer.lr=-0.1": "a finite number from 0",
    "optim_wrapper.optimizer.lr=1e999": "a finite number from 0",
    "optim_wrapper.optimizer.lr=1e38": "a finite number from 0 to 1000",
    "optim_wrapper.optimizer.weight_decay=-1": "a finite number from 0",
    "optim_wrapper.accumulative_counts=0": "a whole number from 1",
    "param_scheduler.0.end=abc": "a whole number from 1",
    "param_scheduler.0.end=0": "a whole number from 1",
    "default_hooks.checkpoint.interval=abc": "a whole number; -1 for never",
    "default_hooks.logger.interval=1.5": "a whole number; -1 for never",
    "randomness.seed=abc": "a whole number from 0 to 2**32 - 1",
    "randomness.seed=-1": "a whole number from 0 to 2**32 - 1",
    "work_dir=": "a folder",
    "model.decode_head.ignore_index=abc": "a whole number",
    "env_cfg.mp_cfg.mp_start_method=spawwn": "'spawn'",
    "log_level=LOUD": "a level of Python's logging, such as 'INFO'",
    "model=None": "a dict with 'type'",
    "default_hooks.logger=5": "a dict with 'type'",
    # Text where a constructor wants something else.
    "model.backbone.upsample_cfg.kernel_size=big": "cannot build model with model.backbone.upsample_cfg",
    "model.backbone.base_channels=abc": "a whole number from 1",
    "model.backbone.base_channels=0": "a whole number from 1",
    "model.decode_head.in_index=[0,1]": "cannot build model with model.decode_head.in_index=[0, 1]",
    "model.test_cfg.mode=slid": "'whole' or 'slide'",
    "model.decode_head.loss_decode.avg_non_ignore=perhaps": "True or False",
    # Parts that do not fit each other.
    "model.decode_head.in_channels=17": "output 2 of the backbone has 4 channels",
    "model.decode_head.in_index=9": "the backbone has 3 output(s), 0 to 2",
    "model.backbone.in_channels=1": "the images have 3 channels",
    "model.decode_head.loss_decode.class_weight=[1,2]": "weight tensor should be defined",
    # Misspelt types.
    "model.type=EncoderDecodr": "did you mean 'EncoderDecoder'",
    "model.backbone.upsample_cfg.type=DeconvModuel": "did you mean 'DeconvModule'",
    "model.backbone.norm_cfg.type=BNN": "did you mean 'BN",
    "model.decode_head.loss_decode.type=CrossEntropyLos": "did you mean 'CrossEntropyLoss'",
    "optim_wrapper.optimizer.type=Adma": "no optimizer is registered as 'Adma'; did you mean 'Adam",
    "optim_wrapper.type=OptimWraper": "did you mean 'OptimWrapper'",
    "param_scheduler.0.type=CosineAnealingLR": "did you mean 'CosineAnnealingLR'",
    "train_cfg.type=IterBasedTrainLop": "did you mean 'IterBasedTrainLoop'",
    "val_cfg.type=ValLop": "did you mean 'ValLoop'",
    "train_dataloader.sampler.type=InfinitSampler": "did you mean 'InfiniteSampler'",
    "val_evaluator.type=IoUMetrc": "did you mean 'IoUMetric'",
    "default_hooks.checkpoint.type=CheckpointHok": "did you mean 'CheckpointHook'",
    "visualizer.type=SegLocalVisualizr": "did you mean 'SegLocalVisualizer'",
    # Misspelt arguments.
    "model.backbone.upsample_cfg.kernal_size=4": "DeconvModule takes no 'kernal_size'; did you mean 'kernel_",
    "model.backbone.with_cpp=True": "UNet takes no 'with_cpp'; did you mean 'with_cp'",
    "model.decode_head.num_clases=3": "did you mean 'num_classes'",
    "model.decode_head.loss_decode.use_sigmod=True": "did you mean 'use_sigmoid'",
    "model.data_preprocessor.siz=3": "did you mean 'size'",
    "optim_wrapper.optimizer.wieght_decay=1": "did you mean 'weight_decay'",
    "optim_wrapper.clip_grad.max_nrom=1": "did you mean 'max_norm'",
    "optim_wrapper.clip_gard.max_norm=1": "did you mean 'clip_grad'",
    "optim_wrapper.paramwise_cfg.custom_key.head.lr_mult=10": "did you mean 'custom_keys'",
    "optim_wrapper.paramwise_cfg.custom_keys.gided.lr_mult=10": "no parameter of the model has 'gided'",
    "train_cfg.max_iter=5": "did you mean 'max_iters'",
    "train_dataloader.batchsize=3": "did you mean 'batch_size'",
    "train_dataloader.sampler.shufle=True": "did you mean 'shuffle'",
    "val_evaluator.iou_metric=['mIoU']": "did you mean 'iou_metrics'",
    "default_hooks.checkpoint.intervall=5": "did you mean 'interval'",
    "param_scheduler.0.eta_mn=1": "did you mean 'eta_min'",
    "randomness.sed=3": "did you mean 'seed'",
    "env_cfg.cudnn_benchmrk=True": "did you mean 'cudnn_benchmark'",
    "visualizer.alpa=1": "did you mean 'alpha'",
    "log_processor.window_siz=1": "did you mean 'window_size'",
    # What mmseg looks at after the first validation only.
    "val_evaluator.iou_metrics=['mIuO']": "expected some of 'mIoU', 'mDice', 'mFscore'",
    "default_hooks.checkpoint.save_best=mIuO": "the evaluator gives aAcc, mAcc, mIoU",
}  # fmt: skip


@pytest.mark.parametrize("option", REFUSED)
def test_refused(option: str, tiny_config: Path) -> None:
    cfg, options = _config(tiny_config, option)
    with pytest.raises(UsageError) as error:
        settings.check_settings(cfg, "train", "val", options=options)
    message = str(error.value)
    (value,) = options.values()
    key = option.partition("=")[0]
    if key.endswith(("clip_gard.max_norm", "custom_key.head.lr_mult")):
        key, value = key.removesuffix(".max_norm").removesuffix(".head.lr_mult"), ""
    assert message.startswith("config: ")
    assert f"{key}={value!r}".rstrip("'") in message
    assert REFUSED[option] in message
    assert "\n" not in message


def test_a_hook_that_is_text(tiny_config: Path) -> None:
    cfg, options = _config(tiny_config)
    cfg.custom_hooks = ["dict(type='NoHook')"]
    with pytest.raises(UsageError, match=r"custom_hooks.0=.*: expected a dict with 'type'"):
        settings.check_settings(cfg, "train", "val", options=options)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("train", {"guide_channels": [17]}, r"model.guide_channels=\[17\]: .*GuidedPixelDCL takes a guide"),
        ("test", {"guide_channels": [3, 3, 3]}, r"model.guide_channels=\[3, 3, 3\]: .*takes 3 guide"),
        (
            "train",
            {"guide_index": [7]},
            r"model.guide_index=\[7\]: guide_index must be places of the 3 features",
        ),
        ("train", {"neck.in_channels": [4, 4]}, "model.neck.in_channels=.*the backbone have .* channels"),
        (
            "train",
            {"auxiliary_head.1.in_index": -5},
            r"model.auxiliary_head.1.in_index=-5: the backbone has 3",
        ),
        ("test", {"decode_head.in_index": 9}, "model.decode_head.in_index=9: the backbone has 3 output"),
    ],
)
def test_parts_that_do_not_fit(split: str, options: dict, message: str, tiny_config: Path) -> None:
    cfg, _ = _config(tiny_config)
    cfg.model.type = "GuidedEncoderDecoder"
    cfg.model.upsample_cfg = dict(type="GuidedPixelDCL", scale_factor=8)
    cfg.model.auxiliary_head = [dict(cfg.model.decode_head), dict(cfg.model.decode_head)]
    if "neck.in_channels" in options:
        cfg.model.neck = dict(type="FPN", in_channels=[], out_channels=4, num_outs=3)
    options = {f"model.{key}": value for key, value in options.items()}
    cfg.merge_from_dict(options)
    with pytest.raises(UsageError, match=message) as error:
        settings.check_settings(cfg, split, options=options)
    assert str(error.value).startswith("config: ")


@MODELS.register_module()
class WantsItsOwn(FCNHead):
    """A head for images of the training's size, whose loss asks for an annotation of the user's own."""

    sizes: ClassVar[list[int]] = []

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.sizes.append(inputs[2].size(-1))
        if inputs[2].size(-1) != 32:
            raise RuntimeError("another size")
        return super().forward(inputs)

    def loss_by_feat(self, seg_logits: torch.Tensor, batch_data_samples: list) -> dict:
        return dict(loss=batch_data_samples[0].my_annotation)


def test_a_model_of_one_size_and_with_an_annotation_of_its_own(tiny_config: Path) -> None:
    cfg, options = _config(tiny_config, "model.decode_head.type=WantsItsOwn")
    WantsItsOwn.sizes.clear()
    settings.check_settings(cfg, "train", options=options)
    assert WantsItsOwn.sizes == [64, 32]
    cfg.model.data_preprocessor.size = (40, 40)
    with pytest.raises(UsageError, match=r"config: model.decode_head.type='WantsItsOwn': another size"):
        settings.check_settings(cfg, "train", options=options)


@pytest.mark.parametrize("key", ["in_channels", None])
def test_trying_a_model_draws_no_random_numbers(key: str | None, tiny_config: Path) -> None:
    cfg, _ = _config(tiny_config)
    if key is not None:
        cfg.model.decode_head[key] = 17
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model)

    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    state = random_state.get_random_state()
    expected = draw()
    random_state.set_random_state(state)
    with contextlib.suppress(UsageError):
        dry_forward.run_model_once(cfg, model, {}, training=True)
    assert draw() == expected


@pytest.mark.parametrize("kind", ["PixelDCL", "IPixelDCL"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("efficient", "maybe", r"efficient='maybe': efficient must be one of \(True, False\)"),
        ("checkerboard_free", 1, r"checkerboard_free=1: checkerboard_free must be one of"),
        ("kernal_size", 3, "kernal_size=3: {kind} takes no .* did you mean .kernel_size"),
        ("kernel_size", 2, r"kernel_size=2: kernel_size must be"),
    ],
)
def test_options_of_layers(kind: str, key: str, value: object, message: str, tiny_config: Path) -> None:
    upsampler = "model.backbone.upsample_cfg"
    cfg, options = _config(tiny_config, f"{upsampler}.type={kind}", f"{upsampler}.kernel_size=3")
    cfg.model.backbone.upsample_cfg[key] = value
    with pytest.raises(UsageError, match=message.format(kind=kind)):
        settings.check_settings(cfg, "train", "val", options={**options, f"{upsampler}.{key}": value})


ACCEPTED = [
    "optim_wrapper.clip_grad.max_norm=1",
    "optim_wrapper.clip_grad={'type': 'value', 'clip_value': 1}",
    "optim_wrapper.paramwise_cfg.custom_keys.decode_head.lr_mult=10",
    "optim_wrapper.optimizer.amsgrad=True",
    "optim_wrapper.accumulative_counts=2",
    "model.backbone.with_cp=True",
    "model.decode_head.ignore_index=254",
    "model.backbone.upsample_cfg={'_delete_': True, 'type': 'InterpConv'}",
    "model.backbone.act_cfg={'type': 'LeakyReLU', 'negative_slope': 0.1}",
    "model.test_cfg={'mode': 'slide', 'crop_size': (32, 32), 'stride': 16}",
    "train_cfg={'_delete_': True, 'by_epoch': True, 'max_epochs': 3}",
    "train_cfg.max_iters=1e3",
    "param_scheduler=[{'type': 'OneCycleLR', 'eta_max': 0.1, 'total_steps': 12, 'by_epoch': False}]",
    "param_scheduler=[{'type': 'PolyLR', 'by_epoch': True, 'convert_to_iter_based': True, 'end': 3}]",
    "param_scheduler=None",
    "train_dataloader.prefetch_factor=4",
    "train_dataloader.drop_last=True",
    "train_dataloader.collate_fn.type=pseudo_collate",
    "train_dataloader.num_batch_per_epoch=3",
    "default_hooks.checkpoint.save_best=mIoU",
    "default_hooks.checkpoint.save_best=auto",
    "default_hooks.checkpoint.published_keys=['meta']",
    "default_hooks.timer=None",
    "default_hooks.logger.priority=LOW",
    "val_evaluator=[{'type': 'IoUMetric', 'prefix': 'a'}, {'type': 'BoundaryIoUMetric'}]",
    "visualizer.alpha=0.5",
    "visualizer.name=other",
    "randomness.diff_rank_seed=True",
    "env_cfg.mp_cfg.mp_start_method=spawn",
    "randomness.seed=None",
]


@pytest.mark.parametrize("option", ACCEPTED)
def test_accepted(option: str, tiny_config: Path, tmp_path: Path) -> None:
    cfg, options = _config(tiny_config, option)
    before = cfg.pretty_text
    settings.check_settings(cfg, "train", "val", options=options)
    assert cfg.pretty_text == before
    assert [file.name for file in tmp_path.iterdir()] == [tiny_config.name]


@pytest.mark.parametrize(
    "name",
    ["lfw_faces/vae_pixeldcl_*", "camvid/unethead_lite0-pixeldcl_*", "coco_stuff10k/fcn_r50-d8-deconv_*"],
)
def test_configs_of_the_repository_are_accepted(name: str) -> None:
    (path,) = (ROOT / "configs").glob(name)
    cfg, options = _config(path)
    settings.check_settings(cfg, "train", "val", "test", options=options)


@MODELS.register_module()
class BreaksInside:
    """A layer with a defect."""

    def __init__(self, **kwargs: object) -> None:
        self.ready = {}["no such thing"]


def test_a_defect_inside_a_constructor_says_where_it_is(tiny_config: Path) -> None:
    cfg, options = _config(tiny_config)
    cfg.model.backbone.upsample_cfg = dict(type="BreaksInside")
    with pytest.raises(
        UsageError, match=r"cannot build model: KeyError: no such thing \(test_settings.py:\d+\)"
    ) as error:
        settings.check_settings(cfg, "train", options=options)
    assert isinstance(error.value.__cause__, KeyError)
