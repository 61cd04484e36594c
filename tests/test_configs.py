"""Every segmentation config of the repository is built, run forward and backward, and saved and loaded."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from pixeldcl_plugin.engine.runtime import leaf_datasets, load_config
from pixeldcl_plugin.utils.compat import resolve_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    if "_base_" not in path.relative_to(ROOT).parts and not path.name.startswith("vae_")
)
#: Finished models of other configs with an upsampler on top: of no family.
RETROFITS = [path for path in CONFIGS if "-retrofit_" in path]
TAG = re.compile(
    r"-(?:carafe|deconv(?:-k\d+)?|dysample|fade|guided|ipixeldcl|pixeldcl(?:-separable)?|sapa)(?=_)"
)
#: The files of each family, by the name without the upsampler's tag, then by the tag.
FAMILIES: dict[str, dict[str, str]] = {}
for _path in sorted({*CONFIGS} - {*RETROFITS}):
    _tag = TAG.search(_path)
    FAMILIES.setdefault(TAG.sub("", _path), {})[_tag[0] if _tag else ""] = _path

#: What must exist: the systems of the paper, and pretrained encoders.
PIXELDCLS = ["-ipixeldcl", "-pixeldcl"]
SYSTEMS = {
    f"{folder}/{model}_*.py": ["", f"-deconv{kernel}", *PIXELDCLS]
    for model, kernel, folders in [
        ("unet-s5-d16", "-k6", ["voc12aug", "coco_detection", "coco_stuff164k"]),
        ("unethead_resnet50", "-k4", ["voc12aug", "camvid"]),
        ("unethead_lite0", "-k4", ["voc12aug"]),
        ("unet-s5-d16-c16", "-k4", ["camvid", "voc12_subset", "photo_mosaic", "coco128"]),
    ]
    for folder in folders
} | {
    "voc12aug/deeplabv3_r101-d8_*.py": ["-deconv", "-guided", *PIXELDCLS],
    "ade20k/segformer_mit-b1_*.py": [
        *("", "-carafe", "-dysample", "-fade", "-guided", "-pixeldcl-separable", "-sapa")
    ],
    "ade20k/upernet_r50_*.py": ["", "-guided"],
    **{
        f"{folder}/fcn_r50-d8_*.py": ["", "-deconv", "-guided", *PIXELDCLS]
        for folder in ("voc12aug", "coco_stuff10k", "coco_stuff164k")
    },
    "voc12aug/unet-s5-d16-authors_*.py": PIXELDCLS,
    **{
        f"{folder}/unethead_lite0_*.py": ["", "-deconv-k4", *PIXELDCLS, "-pixeldcl-separable"]
        for folder in ("camvid", "voc12_subset")
    },
    **{
        f"{folder}/unethead_lite0-s8_*.py": ["", "-guided"]
        for folder in ("voc12_subset", "own_data", "photo_mosaic")
    },
    "camvid/unethead_lite0-s8_*.py": ["", "-carafe", "-guided"],
    "camvid/fcn_lite0-d8_*.py": ["", "-guided"],
    "voc12_subset/fcn_lite0-d8_*.py": ["", "-carafe", "-deconv-k4", "-guided", "-pixeldcl"],
    "own_data/unethead_frozen-lite0-s8_*.py": ["", "-guided"],
    "own_data/unet-s5-d16-c16_*.py": ["", "-pixeldcl"],
}
DEEPLAB = "configs/voc12aug/deeplabv3_r101-d8-pixeldcl_4xb4-ft-10k_voc12aug-512x512.py"


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 80
    assert sum(len(members) for members in FAMILIES.values()) == len(CONFIGS) - len(RETROFITS)


@pytest.mark.parametrize(("pattern", "tags"), SYSTEMS.items(), ids=str)
def test_the_systems_of_the_paper_are_there(pattern: str, tags: list[str]) -> None:
    found = [family for family in FAMILIES if Path(family).match(pattern)]
    assert len(found) == 1, found
    assert sorted(FAMILIES[found[0]]) == sorted(tags)


# --- models --------------------------------------------------------------------------------------


def build(path: str) -> tuple[Config, nn.Module]:
    """Build a config's model for small images on a CPU, without asking for weights anywhere."""
    cfg = load_config(str(ROOT / path))
    init_default_scope(cfg.default_scope)
    cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = None
    if cfg.model.backbone.type == "TIMMBackbone":
        cfg.model.backbone.pretrained = False
    if "size" in cfg.model.data_preprocessor:  # batches are padded to it
        cfg.model.data_preprocessor.size = (32, 48)
    return cfg, revert_sync_batchnorm(MODELS.build(cfg.model))


def batch_of(count: int, height: int, width: int, classes: int) -> dict[str, Any]:
    """A batch as a data loader gives it: random images and labels."""
    size = dict.fromkeys(("img_shape", "ori_shape", "pad_shape"), (height, width))
    labels = torch.randint(0, classes, (count, 1, height, width))
    return dict(
        inputs=list(torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)),
        data_samples=[
            SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=dict(flip=False, **size))
            for label in labels
        ],
    )


@pytest.mark.parametrize("path", CONFIGS)
def test_config_trains_and_round_trips(path: str) -> None:
    torch.manual_seed(0)
    cfg, model = build(path)
    model.init_weights()
    classes = cfg.model.decode_head.num_classes
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    data = model.data_preprocessor(batch_of(2, 32, 48, classes), training=True)
    with optimizer.optim_context(model):
        loss, _ = model.parse_losses(model.loss(**data))
    optimizer.backward(loss)
    # Only an encoder that the config says to freeze may be left out.
    frozen = cfg.model.backbone.type == "FrozenTIMMBackbone"
    for name, parameter in model.named_parameters():
        if frozen and name.startswith("backbone."):
            assert not parameter.requires_grad, name
            continue
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), name
    optimizer.step()

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build(path)[1]
    other.load_state_dict(torch.load(file, weights_only=True))
    # A size that is no multiple of 16 or 32: the prediction has it all the same.
    odd = batch_of(1, 29, 43, classes)
    logits = []
    for trained in (model.eval(), other.eval()):
        with torch.no_grad():
            data = trained.data_preprocessor(odd, training=False)
            logits.append(trained.predict(**data)[0].seg_logits.data)
    assert logits[0].shape == (classes, 29, 43)
    torch.testing.assert_close(*logits)


# --- families ------------------------------------------------------------------------------------


def split_upsampler(path: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Give a config without its upsampler, and the innermost ``upsample_cfg`` (None if there is none)."""
    cfg = Config.fromfile(ROOT / path).to_dict()
    model, head = cfg["model"], cfg["model"]["decode_head"]
    guided = model.pop("upsample_cfg", None)
    # Only a guided model and heads of this package take an upsample_cfg: their type is part of what is
    # switched, and so is the list of guides.
    if guided or "guide_index" in head:
        model["type"] = model["type"].removeprefix("Guided")
        model.pop("guide_index", None) or head.pop("guide_index", None)
    # So is a rate of its own.
    if (cfg["optim_wrapper"].get("paramwise_cfg") or {}).get("custom_keys", {}).keys() == {"guided"}:
        del cfg["optim_wrapper"]["paramwise_cfg"]
    head["type"] = head["type"].removeprefix("Upsampled").removeprefix("Staged")
    found = [part.pop("upsample_cfg") for part in (cfg["model"]["backbone"], head) if "upsample_cfg" in part]
    assert len(found) <= 1
    upsampler = guided or (found[0] if found else None)
    while upsampler and "upsample_cfg" in upsampler:
        upsampler = upsampler["upsample_cfg"]
    return cfg, upsampler


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_differs_only_in_its_upsampler(family: str) -> None:
    members = FAMILIES[family]
    assert {"-pixeldcl", "-guided"} & members.keys()
    assert len(members) >= 2
    configs = {tag: split_upsampler(path) for tag, path in members.items()}
    reference, _ = configs[""] if "" in configs else configs["-pixeldcl"]
    for tag, (cfg, upsampler) in configs.items():
        assert cfg == reference, tag
        kind = upsampler and upsampler["type"]
        if tag.startswith("-deconv"):
            assert kind == "DeconvModule"
            assert tag in ("-deconv", f"-deconv-k{upsampler['kernel_size']}")
        else:
            allowed = {"pixeldcl": ["PixelDCL"], "ipixeldcl": ["IPixelDCL"], "": ["InterpConv", None]}
            allowed |= {"guided": ["GuidedPixelDCL"], "carafe": ["TorchCARAFE"], "dysample": ["DySample"]}
            allowed |= {"sapa": ["SAPA"], "fade": ["FADE"], "pixeldcl-separable": ["SeparablePixelDCL"]}
            assert kind in allowed[tag.removeprefix("-")]
            assert not (upsampler or {}).get("separable")


@pytest.mark.parametrize(
    "path",
    [
        "voc12aug/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
        "ade20k/segformer_mit-b1_8xb2-160k_ade20k-512x512.py",
        "ade20k/upernet_r50_4xb4-160k_ade20k-512x512.py",
    ],
)
def test_stock_members_are_those_of_mmseg(path: str) -> None:
    ours = Config.fromfile(ROOT / "configs" / path).to_dict()
    assert ours.pop("custom_imports")["imports"] == ["pixeldcl_plugin"]
    name = path.partition("/")[2]
    theirs = Config.fromfile(resolve_config(f"mmseg::{name.partition('_')[0]}/{name}")).to_dict()
    assert without_scopes(ours) == without_scopes(theirs)


@pytest.mark.parametrize(("name", "iterations"), [("coco-stuff10k", "20k"), ("coco-stuff164k", "80k")])
def test_fcn_on_coco_stuff_is_set_up_as_pspnet_of_mmseg(name: str, iterations: str) -> None:
    tail = f"_r50-d8_4xb4-{iterations}_{name}-512x512.py"
    ours = Config.fromfile(ROOT / "configs" / name.replace("-", "_") / f"fcn{tail}").to_dict()
    theirs = Config.fromfile(resolve_config(f"mmseg::pspnet/pspnet{tail}")).to_dict()
    del ours["custom_imports"], ours["model"]["decode_head"], theirs["model"]["decode_head"]
    assert without_scopes(ours) == without_scopes(theirs)


def without_scopes(node: Any) -> Any:
    """Drop the marks that mmengine leaves where a config comes from another package."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != "_scope_"}
    return [without_scopes(value) for value in node] if isinstance(node, list | tuple) else node


# --- DeepLab -------------------------------------------------------------------------------------


def test_deeplab_starts_from_the_weights_of_its_base() -> None:
    stock = "deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512"
    folder = resolve_config(f"mmseg::deeplabv3/{stock}.py").parent
    metafile = next(file for file in folder.iterdir() if file.suffix in (".yml", ".yaml"))
    models = yaml.safe_load(metafile.read_text())["Models"]
    released = next(model["Weights"] for model in models if model["Name"] == stock)
    # The same file lies on the host of either distribution.
    assert load_config(str(ROOT / DEEPLAB)).load_from.rpartition("/")[2] == released.rpartition("/")[2]


@pytest.mark.parametrize(("tag", "new"), [("-pixeldcl", "upsample"), ("-guided", "guided")])
def test_deeplab_takes_the_stock_weights_and_trains_what_is_new_at_the_full_rate(tag: str, new: str) -> None:
    stock = load_config("mmseg::deeplabv3/deeplabv3_r101-d8_4xb4-20k_voc12aug-512x512.py").model
    stock.pretrained = None
    with torch.device("meta"):
        cfg, model = build(DEEPLAB.replace("-pixeldcl", tag))
        released = MODELS.build(stock).state_dict()
    own = {name for name in model.state_dict() if name.startswith(f"decode_head.{new}.")}
    assert own
    # The kernels of PixelDCL and of the convolution after it.
    assert tag == "-guided" or len(own) == 3 * (4 + 1)
    assert model.state_dict().keys() - released.keys() == own
    assert not released.keys() - model.state_dict().keys()

    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-2 if name in own else 1e-3), name


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_transforms_are_built(family: str) -> None:
    cfg = load_config(str(ROOT / next(iter(FAMILIES[family].values()))))
    init_default_scope(cfg.default_scope)
    pipelines = [cfg.tta_pipeline]
    for split in ("train", "val", "test"):
        pipelines += [dataset["pipeline"] for dataset in leaf_datasets(cfg[f"{split}_dataloader"].dataset)]
    assert len(pipelines) >= 4
    for pipeline in pipelines:
        assert [TRANSFORMS.build(transform) for transform in pipeline]


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (30, 50) if path.suffix == ".png" else (30, 50, 3)
    assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))


#: Config, and the files of a tiny set in its layout: the label of each mask, the names in each list.
LAYOUTS = {
    "voc12aug": dict(
        masks={
            "JPEGImages/a.jpg": {"SegmentationClass/a.png": 3},
            "JPEGImages/b.jpg": {"SegmentationClassAug/b.png": 20},
            "JPEGImages/c.jpg": {"SegmentationClass/c.png": 255},
        },
        lists={f"ImageSets/Segmentation/{n}.txt": k for n, k in (("train", "a"), ("aug", "b"), ("val", "c"))},
    ),
    "coco_detection": dict(
        masks={
            "train2014/a.jpg": {"masks/train2014/a.png": 3},
            "train2014/b.jpg": {"masks/train2014/b.png": 20},
            "val2014/c.jpg": {"masks/val2014/c.png": 255},
        },
        lists={"masks/train2014.txt": "a\nb", "masks/val2014.txt": "c"},
    ),
    "coco_stuff164k": dict(
        masks={
            "images/train2017/a.jpg": {"annotations/train2017/a_labelTrainIds.png": 3},
            "images/train2017/b.jpg": {"annotations/train2017/b_labelTrainIds.png": 20},
            "images/val2017/c.jpg": {"annotations/val2017/c_labelTrainIds.png": 255},
        },
        lists={},
    ),
}


@pytest.mark.parametrize("folder", LAYOUTS)
def test_images_are_resized_and_judged_at_their_size(folder: str, tmp_path: Path) -> None:
    path = next(p for p in CONFIGS if Path(p).match(f"{folder}/unet-s5-d16-pixeldcl_*.py"))
    for image, masks in LAYOUTS[folder]["masks"].items():
        write_image(tmp_path / image, 100)
        for mask, label in masks.items():
            write_image(tmp_path / mask, label)
    for file, names in LAYOUTS[folder]["lists"].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(names + "\n")
    cfg = load_config(str(ROOT / path))
    init_default_scope("mmseg")
    seen = []
    for split, size in (("train", (256, 256)), ("val", (30, 50))):
        for dataset in leaf_datasets(cfg[f"{split}_dataloader"].dataset):
            dataset["data_root"] = str(tmp_path)
        for item in DATASETS.build(cfg[f"{split}_dataloader"].dataset):
            label = item["data_samples"].gt_sem_seg.data
            assert item["inputs"].shape == (3, 256, 256)
            assert item["data_samples"].ori_shape == (30, 50)
            assert label.shape == (1, *size)
            seen += label.unique().tolist()
    assert seen == [3, 20, 255]
    # Images lose their mean and keep their contrast.
    batch = dict(inputs=[item["inputs"]], data_samples=[item["data_samples"]])
    normalised = MODELS.build(cfg.model.data_preprocessor)(batch, training=True)["inputs"]
    expected = 100 - torch.tensor([123.675, 116.28, 103.53])
    torch.testing.assert_close(normalised[0, :, 0, 0], expected)


def test_data_of_a_dataset_config_are_read_where_present() -> None:
    path = ROOT / "configs/camvid/unet-s5-d16-c16-pixeldcl_fcn_1xb8-1k_camvid-160x128.py"
    cfg = load_config(str(path))
    root = ROOT / cfg.data_root
    if not (root / "val").is_dir():
        pytest.skip(f"CamVid is not in {root}")
    init_default_scope("mmseg")
    dataset_cfg = cfg.val_dataloader.dataset
    dataset_cfg.data_root = str(root)
    dataset = DATASETS.build(dataset_cfg)
    assert len(dataset) == 101
    labels = {int(v) for i in range(8) for v in dataset[i]["data_samples"].gt_sem_seg.data.unique()}
    assert labels <= {*range(11), 255}
    assert 255 in labels  # void, 11 in the files
