"""The one list of the commands in README and docs: run small, run by another test, or skipped and why.

The small runs follow each other in one folder with small data of each layout, so that later ones find the
models of earlier ones. ``tests/test_docs_commands.py`` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ELSEWHERE", "RUN", "SKIPPED", "Small"]


@dataclass(frozen=True)
class Small:
    """A command as it is run.

    Attributes:
        words: What takes the place of a part of the line, such as of a placeholder.
        add: What is added at its end.
    """

    words: dict[str, str] = field(default_factory=dict)
    add: str = ""

    def line(self, command: str) -> str:
        """The line that is run."""
        for old, new in self.words.items():
            assert old in command, f"{old!r} is not in {command!r}"
            command = command.replace(old, new)
        return f"{command} {self.add}"


_SETTINGS = "train_cfg.max_iters=2 train_cfg.val_interval=2 train_dataloader.batch_size=2"
_TRAINED = f"--cfg-options {_SETTINGS}"
_OWN = "unethead_frozen-lite0-s8-guided_1xb8-amp-500_own-data-256x256"
_DIR = {"data_root=DIR": "data_root=.cache/own_data"}
_PIXELDCL = "unethead_lite0-pixeldcl_1xb8-amp-1k_camvid-160x128"
_STAGE = "unethead_lite0-s8_1xb8-amp-1k_camvid-160x128"
_VAE = "vae_pixeldcl_1xb16-1k_lfw-64x64"
_NETWORK = "installs from a network; tests/test_packaging.py builds and installs the package"
_MIM = "asks for openmim, which is no dependency"
_GPUS = "GPUs and full data sets; tests/test_configs.py builds the config"


def _model(name: str) -> str:
    """A model by what its training left."""
    return f"work_dirs/{name}/{name}.py work_dirs/{name}/iter_2.pth"


_GUIDED, _BILINEAR = _model(_OWN), _model(_OWN.replace("-guided", ""))
# Two threads wait for each other where tests share the cores.
_ONE = {"--threads 2": "--threads 1"}
_BENCHMARK = "--rounds 1 --directions forward --out"

RUN: dict[str, Small] = {
    # Data and weights
    "python tools/dataset_converters/photo_mosaic.py --out .cache/photo_mosaic": Small(
        add="--num-train 4 --num-val 2"
    ),
    "python tools/convert_timm_weights.py": Small(),
    "python tools/dataset_converters/voc_folder.py data/voc2012_subset --out .cache/own_data": Small(),
    # Training
    f"python tools/train.py configs/own_data/{_OWN}.py --cfg-options data_root=DIR": Small(_DIR, _SETTINGS),
    f"python tools/train.py configs/own_data/{_OWN}.py --cfg-options data_root=.cache/own_data": Small(
        add=f"{_SETTINGS} --work-dir work_dirs/again"
    ),
    "python tools/train.py CONFIG": Small(
        {"CONFIG": f"configs/own_data/{_OWN.replace('-guided', '')}.py"},
        f"{_TRAINED} data_root=.cache/own_data",
    ),
    "python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--seed N] "
    "[--deterministic] [--cfg-options KEY=VALUE ...] [--launcher pytorch] [--overwrite] "
    "[--no-data-check]": Small(
        {
            "CONFIG": "configs/photo_mosaic/unethead_lite0-s8_1xb8-amp-400_photo-mosaic-160x160.py",
            "DIR": "work_dirs/mosaic",
            "[--resume [CHECKPOINT]]": "--resume",
            "--seed N": "--seed 1",
            "KEY=VALUE ...": _SETTINGS,
            "[--launcher pytorch] [--overwrite]": "",  # run by other tests
        }
    ),
    "python tools/train.py configs/voc12aug/unet-s5-d16-pixeldcl_fcn_1xb8-20k_voc12aug-256x256.py": Small(
        add=f"{_TRAINED} model.backbone.base_channels=4 model.decode_head.in_channels=4"
    ),
    f"python tools/train.py configs/lfw_faces/{_VAE}.py --amp": Small(add=_TRAINED),
    "python tools/train.py configs/celeba64/vae_pixeldcl_1xb64-5k_celeba64-64x64.py --amp": Small(
        add=_TRAINED
    ),
    # Models
    "python tools/test.py CONFIG CHECKPOINT --show-dir pictures": Small({"CONFIG CHECKPOINT": _GUIDED}),
    "python tools/test.py MODEL [--out DIR] [--show-dir DIR] [--tta] [--cfg-options KEY=VALUE ...]": Small(
        {
            "MODEL": _GUIDED,
            "--out DIR": "--out maps",
            "--show-dir DIR": "--show-dir shown",
            "KEY=VALUE ...": "test_dataloader.num_workers=0 test_dataloader.persistent_workers=False",
        }
    ),
    "python tools/test.py CONFIG CHECKPOINT --cfg-options data_root=DIR": Small(
        _DIR | {"CONFIG CHECKPOINT": _GUIDED}
    ),
    "python tools/infer.py CONFIG CHECKPOINT new_images --out results": Small({"CONFIG CHECKPOINT": _GUIDED}),
    "python tools/infer.py MODEL IMAGES --out DIR [--probabilities] [--batch-size N] [--device cuda:1] "
    "[--max-pixels N] [--resume | --overwrite]": Small(
        {
            "MODEL IMAGES --out DIR": f"{_BILINEAR} new_images --out labels",
            "--batch-size N": "--batch-size 2",
            "cuda:1": "cpu",
            "--max-pixels N": "--max-pixels 65536",
            "--resume | --overwrite": "--resume",
        }
    ),
    "python tools/retrofit.py CONFIG CHECKPOINT": Small(
        {"CONFIG CHECKPOINT": _BILINEAR}, "--iters 2 --guide image --work-dir work_dirs/by_the_image"
    ),
    "python tools/retrofit.py CONFIG CHECKPOINT --cfg-options data_root=DIR": Small(
        _DIR | {"CONFIG CHECKPOINT": _BILINEAR}, "--iters 2"
    ),
    f"python tools/gallery.py {_STAGE} {_STAGE.replace('s8', 's8-carafe')} "
    f"{_STAGE.replace('s8', 's8-retrofit').replace('1k', '300')} {_STAGE.replace('s8', 's8-guided')} "
    '--names bilinear CARAFE "bilinear, retrofit" "guided, trained together" --out gallery.png': Small(
        {"gallery.png": "camvid.png"}, "--count 1"
    ),
    "python tools/gallery.py [MODEL ...] [--names NAME ...] --out gallery.png": Small(
        {"MODEL ...": f"{_GUIDED} {_BILINEAR}", "NAME ...": "guided bilinear", "gallery.png": "own.png"}
    ),
    "python tools/analyze_checkerboard.py NAME CONFIG CHECKPOINT CONFIG --images FOLDER --out DIR": Small(
        {
            "NAME CONFIG CHECKPOINT CONFIG": f"{_STAGE} {_GUIDED} configs/camvid/{_PIXELDCL}.py",
            "FOLDER --out DIR": "new_images --out checkerboard/models",
        }
    ),
    "python tools/analyze_checkerboard.py --images data/voc2012_subset/JPEGImages --out DIR": Small(
        {"DIR": "checkerboard/released"}, "--max-images 2"
    ),
    "python tools/analyze_checkerboard.py --layer DeconvModule PixelDCL --channels 64 32 --out DIR": Small(
        {"DIR": "checkerboard/layers"}
    ),
    "python tools/test.py MODEL --show-dir pictures": Small({"MODEL": _model(_VAE), "pictures": "faces"}),
    "python tools/test.py MODEL --cfg-options model.importance_samples=50": Small({"MODEL": _model(_VAE)}),
    "python tools/sample.py MODEL [MODEL ...] --out pictures [--labels NAME ...]": Small(
        {"MODEL [MODEL ...]": _model(_VAE), "pictures": "samples", "NAME ...": "PixelDCL"}
    ),
    # Time
    "python tools/benchmark.py layer --threads 2": Small(_ONE, f"--shapes 1,8,8,8,8 {_BENCHMARK} layers.csv"),
    "python tools/benchmark.py model --threads 2": Small(_ONE, f"--shapes 4,1,32,32 {_BENCHMARK} models.csv"),
    "python tools/benchmark.py volume --threads 1": Small(
        add=f"--shapes 1,8,8,4,4,4 {_BENCHMARK} volumes.csv"
    ),
    "python tools/benchmark.py check": Small(),
}

_CLONE = "tests/test_clean_clone.py::test_readme_commands_need_nothing_but_the_clone"
_COCO = "tests/datasets/test_coco_detection.py::test_runs_and_names_the_split_by_the_file"

#: Commands that another test runs, with the same tool and flags.
ELSEWHERE: dict[str, str] = {
    "make train": "tests/tools/test_quickstart.py::test_the_quick_start_trains_evaluates_and_draws",
    "python tools/infer.py NAME PICTURES --out DIR": _CLONE,
    "python tools/gallery.py NAME NAME --out gallery.png": _CLONE,
    "python tools/analyze_checkerboard.py NAME NAME --images PICTURES --out DIR": _CLONE,
    "python tools/demo.py --models NAME NAME": _CLONE,
    "python tools/demo.py [--models MODEL MODEL] [--names NAME NAME]": _CLONE,
    "python tools/export.py NAME --format onnx --out model.onnx": _CLONE,
    "python tools/test.py NAME": _CLONE,
    "python tools/benchmark.py decoder --threads 2 --dtypes bf16 --memory-formats channels_last": (
        "tests/benchmark/test_benchmark.py::test_whole_decoders_can_be_measured"
    ),
    "python tools/benchmark.py retrofit": (
        "tests/benchmark/test_benchmark.py::test_retrofits_can_be_measured"
    ),
    "python tools/test.py CONFIG FILE.safetensors": (
        "tests/zoo/test_publish.py::test_the_command_writes_a_file_and_its_record"
    ),
    "python tools/publish.py CHECKPOINT CONFIG --metrics results.json|KEY=VALUE ... --data NAME "
    "--licence NOTE": "tests/zoo/test_publish.py::test_the_command_writes_a_file_and_its_record",
    "python tools/stock_configs.py --out docs/results/stock_configs.csv": (
        "tests/tools/test_terminal.py::test_trying_stock_configs"
    ),
    "torchrun --nproc-per-node 2 tools/train.py CONFIG --launcher pytorch": (
        "tests/tools/test_tools.py::test_two_processes_train_on_cpu"
    ),
    "python docs/examples/volume.py --out volume.json --picture volume.png": (
        "tests/layers/test_volumes.py::test_the_example_trains_scores_and_draws"
    ),
    **{
        f"python tools/dataset_converters/coco_detection.py {data}/annotations/instances_{split}.json "
        f"--images {data}/{images} --out {out}": _COCO
        for data, split, images, out in (
            ("data/coco", "train2014", "train2014", "data/coco/masks"),
            ("data/coco", "val2014", "val2014", "data/coco/masks"),
            ("data/coco128", "coco128", "images/train2017", ".cache/coco128"),
        )
    },
}

#: Commands that no test runs, with the reason.
SKIPPED: dict[str, str] = {
    "make test": "it is what runs this",
    "make docs": "CI runs it",
    "make test-openmmlab": "compiles mmcv for 20 minutes",
    "make gpu-check": "a GPU",
    "torchrun --nproc-per-node 4 tools/train.py "
    "configs/voc12aug/fcn_r50-d8-pixeldcl_4xb4-20k_voc12aug-512x512.py --launcher pytorch": _GPUS,
    "torchrun --nproc-per-node 8 tools/train.py "
    "configs/ade20k/segformer_mit-b1-guided_8xb2-160k_ade20k-512x512.py --launcher pytorch": _GPUS,
    "python docs/examples/take_over.py --result FILE": "half an hour, and CamVid's data",
    "python tools/gallery.py --out gallery.png": "VOC's data",
    "python tools/test.py CONFIG {file}": "a part of a record, which is no command",
    "python tools/train.py CONFIG --seed N": "likewise",
    "apt-get install chromium chromium-driver": "asks for root and a network",
    'pip install -e ".[onedl]"': _NETWORK,
    'pip install -e ".[openmmlab]"': _NETWORK,
    'pip install -e ".[demo]"': _NETWORK,
    "pip install -e .": _NETWORK,
    "pip install ./weights": _NETWORK,
    'pip install "pixeldcl-plugin[onedl] @ git+ADDRESS"': _NETWORK,
    'pip install "pixeldcl-plugin-weights @ git+ADDRESS#subdirectory=weights"': _NETWORK,
    "pip install tensorboard": _NETWORK,
    "pip install pixeldcl-plugin nilearn matplotlib": _NETWORK,
    "tensorboard --logdir work_dirs": "serves a page, and is not ours",
    "mim test pixeldcl_plugin CONFIG --checkpoint FILE": _MIM,
    "mim search pixeldcl-plugin": _MIM,
    "mim download": _MIM,
}
