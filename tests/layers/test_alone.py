"""The layers where nothing but torch is installed, and as classes in configs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
import torch
from mmcv.cnn import build_upsample_layer
from mmengine.config import Config
from mmengine.registry import METRICS, MODELS, Registry
from torch import nn

import pixeldcl_plugin
from pixeldcl_plugin.models.upsamplers import build_upsampler
from pixeldcl_plugin.registry import register

LAYERS = ["DySample", "IPixelDCL", "PixelDCL", "PixelShuffleICNR", "TorchCARAFE"]
MODEL_ARGUMENTS = dict(with_cp=False, norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU"))

# As on a machine with torch alone: what else is installed here cannot be found.
ALONE = """
import importlib.util, sys, time

class TorchOnly:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ABSENT = {"mmengine", "mmcv", "mmseg", "timm", "matplotlib", "skimage", "scipy", "cv2", "safetensors",
          "rich", "torchmetrics", "PIL", "yaml", "pycocotools", "gradio"}
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name in ABSENT else found(name, *args)
sys.meta_path.insert(0, TorchOnly)
import torch
loaded, start = set(sys.modules), time.perf_counter()
from pixeldcl_plugin import DySample, GuidedPixelDCL, IPixelDCL, PixelDCL, PixelShuffleICNR, TorchCARAFE
from pixeldcl_plugin import functional
seconds = time.perf_counter() - start
for layer in (DySample, IPixelDCL, PixelDCL, PixelShuffleICNR, TorchCARAFE):
    assert layer(4, 4)(torch.rand(1, 4, 5, 6)).shape == (1, 4, 10, 12), layer
layer = PixelDCL(4, 4, inner_act_cfg=dict(type="LeakyReLU", negative_slope=0.2))
assert layer.inner_act.negative_slope == 0.2
families = {name.split(".")[1] for name in sys.modules if name.startswith("pixeldcl_plugin.")}
assert families == {"layers"}, families
try:
    import pixeldcl_plugin
    pixeldcl_plugin.create_model
except ModuleNotFoundError as error:
    assert "create_model needs MMSegmentation: pip install 'pixeldcl-plugin[onedl]'" in str(error), error
else:
    raise AssertionError("create_model was found")
assert not ABSENT & {name.partition(".")[0] for name in set(sys.modules) - loaded}
print(seconds)
"""


def test_needs_torch_only_and_imports_fast(run_tool: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    result = run_tool("-c", ALONE)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.3, result.stdout


def test_drawing_and_converting_are_imported_by_those_who_ask(
    run_tool: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    late = ["skimage", "matplotlib", "torchmetrics", "pycocotools", "gradio", "onnx"]
    late += [
        f"pixeldcl_plugin.{family}" for family in ("apis", "zoo.models", "analysis", "benchmark", "study")
    ]
    result = run_tool("-c", f"import sys, pixeldcl_plugin; print([m for m in {late} if m in sys.modules])")
    assert result.stdout == "[]\n", result.stdout + result.stderr


@pytest.mark.parametrize("name", LAYERS)
def test_class_in_a_config_builds_what_the_name_does(name: str) -> None:
    layer = getattr(pixeldcl_plugin, name)
    by_name = MODELS.get(name)
    channels = dict(in_channels=4, out_channels=4)
    for kind in (layer, f"pixeldcl_plugin.{name}", f"{layer.__module__}.{name}"):
        built = build_upsample_layer(dict(type=kind), **channels, **MODEL_ARGUMENTS)
        assert type(built) is by_name
        assert isinstance(built.norm, nn.BatchNorm2d)
    assert type(build_upsampler(dict(type=layer), 4, 4, norm_cfg=dict(type="BN"))) is by_name
    assert type(layer(4, 4)) is layer
    # A config that holds the class is saved as text and read again.
    cfg = Config.fromstring(
        Config(dict(upsample_cfg=dict(type=f"{layer.__module__}.{name}"))).pretty_text, ".py"
    )
    assert type(build_upsample_layer(cfg.upsample_cfg, **channels, **MODEL_ARGUMENTS)) is by_name


def test_subclass_in_a_config_is_wrapped_too() -> None:
    class Mine(pixeldcl_plugin.PixelDCL):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    built = build_upsample_layer(dict(type=Mine), 4, 4, **MODEL_ARGUMENTS)
    assert type(built.layer) is Mine
    assert type(built.norm) is nn.BatchNorm2d


def test_names_of_the_application_stay_its_own() -> None:
    application = Registry("application")

    class DySample(nn.Module):
        pass

    application.register_module(module=DySample)
    with pytest.warns(UserWarning, match=r"'DySample' is .*test_alone.*pixeldcl_plugin\.DySample'"):
        register(application, "DySample")(pixeldcl_plugin.upsamplers.DySampleUpsample)
    assert application.get("DySample") is DySample
    assert application.get("pixeldcl_plugin.DySample") is pixeldcl_plugin.upsamplers.DySampleUpsample


def test_metrics_end_in_metric_and_keep_their_first_names() -> None:
    for name in ("BoundaryIoU", "IsolatedPixels"):
        assert (
            METRICS.get(name) is METRICS.get(f"{name}Metric") is METRICS.get(f"pixeldcl_plugin.{name}Metric")
        )


def test_public_names_are_found() -> None:
    for name in pixeldcl_plugin.__all__:
        assert getattr(pixeldcl_plugin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'PixelDLC'"):
        pixeldcl_plugin.PixelDLC  # noqa: B018
