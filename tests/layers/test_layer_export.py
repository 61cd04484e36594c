"""The layers through torch.compile, torch.export and ONNX."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from pixeldcl_plugin.layers import pixel_dcl as layers
from pixeldcl_plugin.models.upsamplers import PixelDCLUpsample

FORMS = [(getattr(layers, name), efficient) for name, efficient in reference.LITERAL]
OPTIONS = [
    dict(scale_factor=4, kernel_size=5),
    dict(padding_mode="replicate", groups=2, checkerboard_free=True),
    dict(inner_act_cfg=dict(type="ReLU")),
    dict(separable=True, padding_mode="replicate"),
]
CASES = [
    *[pytest.param(*form, dict(), id=f"{form[0].__name__}-{form[1]}") for form in FORMS],
    *[pytest.param(layers.PixelDCL, True, options, id=f"PixelDCL-{options}") for options in OPTIONS],
    pytest.param(layers.IPixelDCL, False, OPTIONS[1], id=f"IPixelDCL-{OPTIONS[1]}"),
]
SIZES = [(2, 4, 5, 6), (1, 4, 3, 8), (5, 4, 7, 2)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make_layer(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return cls(4, 4, efficient=efficient, init="kaiming", **options)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_compiles(layer: nn.Module, x: Tensor) -> None:
    """The compiled layer, in one graph, has the same output and gradients."""
    compiled_layer = copy.deepcopy(layer)
    compiled = torch.compile(compiled_layer, fullgraph=True, backend="aot_eager")
    results = []
    for call, owner in ((layer, layer), (compiled, compiled_layer)):
        inputs = x.clone(memory_format=torch.preserve_format).requires_grad_()
        out = call(inputs)
        out.square().sum().backward()
        results.append([out, inputs.grad, *[p.grad for p in owner.parameters()], *owner.buffers()])
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        assert out.is_contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cls", "efficient", "options"), CASES)
def test_compiles_in_one_graph(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> None:
    assert_compiles(make_layer(cls, efficient, options), random(2, 4, 5, 6))


@pytest.mark.parametrize(("cls", "efficient"), [FORMS[0], FORMS[3]])
def test_compiled_keeps_channels_last(cls: type[nn.Module], efficient: bool) -> None:
    x = random(2, 4, 5, 6).to(memory_format=torch.channels_last)
    assert_compiles(make_layer(cls, efficient, {}), x)


@pytest.mark.parametrize("with_cp", [False, True])
def test_upsampler_compiles_in_one_graph(with_cp: bool) -> None:
    torch.manual_seed(0)
    module = PixelDCLUpsample(4, 4, with_cp=with_cp, init="kaiming")
    assert_compiles(module, random(2, 4, 5, 6))


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    layer, x = make_layer(layers.PixelDCL, True, {}), random(2, 4, 5, 6)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True)(x)
        torch.testing.assert_close(compiled, layer(x), rtol=1e-5, atol=1e-5)


def dynamic_shapes() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


@pytest.mark.parametrize(("cls", "efficient", "options"), CASES)
def test_exports_with_dynamic_sizes(cls: type[nn.Module], efficient: bool, options: dict[str, Any]) -> None:
    layer = make_layer(cls, efficient, options).eval()
    program = torch.export.export(layer, (random(*SIZES[0]),), dynamic_shapes=dynamic_shapes())
    names = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.conv2d.default in names
    exported = program.module()
    for size in SIZES:
        x = random(*size)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "efficient", "options"), CASES)
def test_onnx_runtime_agrees(
    cls: type[nn.Module], efficient: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = make_layer(cls, efficient, options).eval()
    path = tmp_path / "layer.onnx"
    torch.onnx.export(
        layer, (random(*SIZES[0]),), path, dynamo=True, dynamic_shapes=dynamic_shapes(), verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    for size in SIZES:
        x = random(*size)
        (out,) = session.run(None, {entry.name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), layer(x).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("upsampler", ["PixelDCL", "IPixelDCL"])
def test_a_whole_unet_compiles_in_one_graph(upsampler: str) -> None:
    init_default_scope("mmseg")
    torch.manual_seed(0)
    cfg = dict(type="UNet", base_channels=4, num_stages=3, upsample_cfg=dict(type=upsampler))
    cfg |= dict(strides=(1,) * 3, enc_num_convs=(1,) * 3, dec_num_convs=(1,) * 2)
    cfg |= dict(downsamples=(True,) * 2, enc_dilations=(1,) * 3, dec_dilations=(1,) * 2)
    model = MODELS.build(cfg)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = random(2, 3, 16, 24)
    expected, got = model(x)[-1], compiled(x)[-1]
    torch.testing.assert_close(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4, msg=name)
