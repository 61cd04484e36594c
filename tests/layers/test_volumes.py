"""Pixel deconvolution of volumes: equal to the authors' code and to a transcription, and a layer like any."""

from __future__ import annotations

import copy
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docs_code
import numpy as np
import pytest
import reference_3d as reference
import torch
import torch.nn.functional as F
from mmcv.cnn import build_upsample_layer
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from pixeldcl_plugin import IPixelDCL3d, PixelDCL3d
from pixeldcl_plugin.layers import functional
from pixeldcl_plugin.layers.pixel_dcl import PADDING_MODES

ROOT = Path(__file__).parents[2]
FORMS = [(PixelDCL3d, dict()), (PixelDCL3d, dict(efficient=True)), (IPixelDCL3d, dict())]
OPTIONS = [
    dict(),
    dict(scale_factor=4),
    dict(padding_mode="replicate", groups=2),
    dict(separable=True, checkerboard_free=True),
    dict(inner_act_cfg=dict(type="Tanh")),
]
EXACT = dict(rtol=0, atol=1e-12)
AUTHORS = np.load(Path(__file__).with_name("authors_tf.npz"))
CASES = sorted({key.rpartition("/")[0] for key in AUTHORS if "3d/" in key})
forms = pytest.mark.parametrize(("cls", "form"), FORMS, ids=["pixeldcl", "efficient", "ipixeldcl"])


def make_layer(cls: type[nn.Module], *channels: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return cls(*channels, **{"init": "kaiming", **options})


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- equality ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_authors_layers(case: str) -> None:
    """Outputs and gradients of their TensorFlow code: ``authors_tf.npz``, explained beside it."""
    cls = IPixelDCL3d if case.startswith("i") else PixelDCL3d

    def volume(name: str) -> Tensor:
        return torch.from_numpy(AUTHORS[f"{case}/{name}"]).permute(0, 4, 1, 2, 3)

    def parameters(prefix: str) -> dict[str, Tensor]:
        arrays = [torch.from_numpy(AUTHORS[f"{case}/{prefix}conv{i}"]) for i in range(4)]
        return reference.parameters(cls.__name__, [array.permute(4, 3, 0, 1, 2) for array in arrays])

    weights = parameters("")
    layer = cls(weights["weight_p000"].size(1), weights["weight_p000"].size(0)).double()
    layer.load_state_dict(weights)
    x = volume("x").requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, volume("y"), **EXACT)
    y.backward(volume("grad_y"))
    torch.testing.assert_close(x.grad, volume("grad_x"), **EXACT)
    for name, gradient in parameters("grad_").items():
        torch.testing.assert_close(layer.get_parameter(name).grad, gradient, **EXACT)


def test_the_authors_file_holds_both_layers() -> None:
    assert {case.partition("/")[0] for case in CASES} == {"pixel_dcl3d", "ipixel_dcl3d"}


def assert_equal(
    out: Tensor, expected: Tensor, inputs: list[Tensor], tolerances: dict[str, float] = EXACT
) -> None:
    """Values are equal, and so are the gradients of all inputs."""
    torch.testing.assert_close(out, expected, **tolerances)
    cotangent = random(*out.shape, seed=2)
    grads, expected_grads = (torch.autograd.grad(y, inputs, cotangent) for y in (out, expected))
    torch.testing.assert_close(grads, expected_grads, **tolerances)
    assert all(grad.abs().max() > 0 for grad in expected_grads[:2])


@pytest.mark.parametrize("act", [None, "Tanh"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(("kernel_size", "size"), [(3, (1, 1, 1)), (3, (3, 1, 2)), (5, (1, 1, 2))])
@forms
def test_equals_the_transcription(
    cls: type[nn.Module],
    form: dict[str, bool],
    kernel_size: int,
    size: tuple[int, ...],
    padding_mode: str,
    act: str | None,
) -> None:
    options = dict(form, kernel_size=kernel_size, padding_mode=padding_mode)
    layer = make_layer(cls, 3, 2, inner_act_cfg=act and dict(type=act), **options).double()
    x, do = random(1, 3, *size).requires_grad_(), layer.inner_act or nn.Identity()
    if form:
        expected = reference.pixel_dcl_3d_efficient(x, layer.effective_weights(), padding_mode, do)
        return assert_equal(layer(x), expected, [x, *layer.parameters()])

    of_x = 3 if cls is IPixelDCL3d else 0
    reads = [3, of_x + 2, of_x + 4, of_x + (10 if of_x else 8)]  # the channels that conv0 to conv3 read
    shapes = list(zip((2, 2, 6, 6), reads, strict=True))
    kernels = [random(*shape, *[kernel_size] * 3, seed=i).div(9) for i, shape in enumerate(shapes)]
    kernels = [kernel.requires_grad_() for kernel in kernels]
    literal = reference.ipixel_dcl_3d if cls is IPixelDCL3d else reference.pixel_dcl_3d
    out = functional_call(layer, reference.parameters(cls.__name__, kernels), (x,))
    return assert_equal(out, literal(x, kernels, padding_mode, do), [x, *kernels])


@pytest.mark.parametrize("options", [dict(groups=2), dict(separable=True)], ids=str)
@forms
def test_groups_are_zeros_in_a_dense_layer(
    cls: type[nn.Module], form: dict[str, bool], options: dict[str, Any]
) -> None:
    layer = make_layer(cls, 4, 4, checkerboard_free=True, **form, **options).double()
    plain = cls(4, 4, **form).double()
    x = random(2, 4, 3, 1, 2).requires_grad_()
    mixed = x
    if layer.separable:
        mixed = torch.einsum("oi,nizyx->nozyx", layer.weight_pointwise[..., 0, 0, 0], x)
    expected = functional_call(plain, reference.dense_weights(layer), (mixed,))
    assert_equal(layer(x), expected, [x, *layer.parameters()])


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@forms
def test_gradcheck(cls: type[nn.Module], form: dict[str, bool], padding_mode: str) -> None:
    layer = make_layer(cls, 1, 1, padding_mode=padding_mode, **form).double()
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    inputs = (random(1, 1, 2, 1, 2).requires_grad_(), *values)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_interleave_puts_every_phase_in_its_place() -> None:
    phases = [random(2, 3, 1, 4, 2, seed=i).requires_grad_() for i in range(8)]
    out = functional.interleave(*phases)
    assert out.shape == (2, 3, 2, 8, 4)
    assert len(set(functional.PHASE_OFFSETS_3D)) == 8
    for phase, (a, b, c) in zip(phases, functional.PHASE_OFFSETS_3D, strict=True):
        assert torch.equal(out[..., a::2, b::2, c::2], phase)
    for wrong in (phases[:4], phases[:7], [*phases[:7], phases[0][..., :1]], []):
        with pytest.raises(ValueError, match=r"eight of one shape \(N, C, D, H, W\), got"):
            functional.interleave(*wrong)


# --- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "form", "of_x", "of_maps"),
    [(PixelDCL3d, False, 27, 19 * 27), (PixelDCL3d, True, 27, 87), (IPixelDCL3d, True, 8 * 27, 22 * 27)],
)
def test_computes_live_taps_only(cls: type[nn.Module], form: bool, of_x: int, of_maps: int) -> None:
    cin, c, size = 6, 4, 12
    layer = cls(cin, c, efficient=form)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, cin, size, size, size))
    count = counter.get_total_flops() / 2
    # An even kernel gives one more along its axis than is used.
    assert (of_x * cin * c + of_maps * c * c) * size**3 <= count
    used = 27 * cin * c + 27 * c * c if form and cls is PixelDCL3d else of_x * cin * c + of_maps * c * c
    rest = of_x * cin * c + of_maps * c * c - used
    assert count <= used * size**3 + rest * (size + 1) ** 3


# --- how they begin, and the constraint ----------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(kernel_size=5), dict(scale_factor=4)], ids=str)
@forms
def test_begins_as_a_smooth_interpolation(
    cls: type[nn.Module], form: dict[str, bool], options: dict[str, Any]
) -> None:
    layer = cls(2, 2, padding_mode="replicate", **form, **options).double()
    sizes = (9, 10, 8)
    z, y, x = torch.meshgrid(*[torch.arange(float(s), dtype=torch.float64) for s in sizes], indexing="ij")
    ramp = (2 * z - 3 * y + x + 1).expand(1, 2, *sizes)
    factor = layer.scale_factor
    expected = F.interpolate(ramp, scale_factor=factor, mode="trilinear", align_corners=False)
    inside = (..., *[slice(3 * factor, -3 * factor)] * 3)
    torch.testing.assert_close(layer(ramp)[inside], expected[inside])

    noise = random(1, 2, 2, 4, 3)
    once = PixelDCL3d(2, 2, padding_mode="replicate", scale_factor=factor).double()
    torch.testing.assert_close(layer(noise), once(noise))
    constant = torch.full((1, 2, 2, 2, 3), 0.7, dtype=torch.float64)
    torch.testing.assert_close(
        layer(constant).unique(), constant.unique().expand_as(layer(constant).unique())
    )
    if not options:
        jacobian = torch.autograd.functional.jacobian(layer, random(1, 2, 2, 2, 3))
        assert jacobian.min() >= 0  # means of neighbours: nothing overshoots


@pytest.mark.parametrize("options", [dict(), dict(separable=True)], ids=str)
@forms
def test_kaiming_keeps_the_variance(
    cls: type[nn.Module], form: dict[str, bool], options: dict[str, Any]
) -> None:
    channels = 512 if options else 48
    layer = make_layer(cls, 16, channels, padding_mode="replicate", **form, **options)
    with torch.no_grad():
        out = layer(random(1, 16, 8, 8, 8, dtype=torch.float32))
    for a, b, c in functional.PHASE_OFFSETS_3D:
        assert out[..., a::2, b::2, c::2].var().item() == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("options", [dict(), dict(groups=2), dict(separable=True)], ids=str)
@forms
def test_checkerboard_free_phases_answer_a_constant_alike(
    cls: type[nn.Module], form: dict[str, bool], options: dict[str, Any]
) -> None:
    def spread(layer: nn.Module) -> float:
        constants = torch.cat([torch.eye(4), torch.ones(1, 4)]).double()[..., None, None, None]
        out = layer(constants.expand(-1, -1, 2, 2, 2))
        return (out.amax((2, 3, 4)) - out.amin((2, 3, 4))).max().item()

    options = dict(options, padding_mode="replicate", **form)
    layer = make_layer(cls, 4, 4, checkerboard_free=True, **options).double()
    plain = make_layer(cls, 4, 4, **options).double()
    assert spread(plain) > 0.1
    assert spread(layer) < 1e-12
    layer.load_state_dict(plain.state_dict())
    assert spread(layer) < 1e-12
    x = random(1, 4, 2, 3, 2)
    expected = layer(x)
    torch.testing.assert_close(layer.fold()(x), expected)
    assert not layer.checkerboard_free


# --- layers like any -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@forms
def test_keeps_format_and_precision(
    cls: type[nn.Module], form: dict[str, bool], options: dict[str, Any]
) -> None:
    layer = make_layer(cls, 4, 4, **form, **options)
    x = random(2, 4, 3, 5, 2, dtype=torch.float32)
    exact = copy.deepcopy(layer).double()(x.double())
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        inputs = x.clone(memory_format=memory_format).requires_grad_()
        out = layer(inputs)
        assert out.shape == (2, 4, *(layer.scale_factor * size for size in (3, 5, 2)))
        assert out.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
        out.square().sum().backward()
        results.append(inputs.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x)
    for out in (copy.deepcopy(layer).bfloat16()(x.bfloat16()), mixed):
        assert out.dtype == torch.bfloat16
        assert (out.double() - exact).abs().max() < 0.05 * exact.abs().max()
    mixed.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@forms
def test_empty_batch_and_views(cls: type[nn.Module], form: dict[str, bool], padding_mode: str) -> None:
    layer = make_layer(cls, 3, 2, padding_mode=padding_mode, scale_factor=4, **form)
    x = torch.zeros(0, 3, 1, 4, 5, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 2, 4, 16, 20)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert not any(p.grad.any() for p in layer.parameters())
    view = random(2, 5, 2, 3, 4, dtype=torch.float32).transpose(2, 4)[:, 1:4, ::2]
    torch.testing.assert_close(layer(view), layer(view.contiguous()))


@pytest.mark.parametrize("cls", [PixelDCL3d, IPixelDCL3d])
def test_refuses(cls: type[nn.Module]) -> None:
    for shape in [(3, 4, 4, 4), (1, 3, 4, 4), (1, 4, 2, 2, 2)]:
        with pytest.raises(ValueError, match=rf"{cls.__name__} .*\(N, 3, D, H, W\), got \({shape[0]}, "):
            cls(3, 2)(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"kernel_size must be one of \(3, 5, 7\), got 4"):
        cls(3, 2, kernel_size=4)
    with pytest.raises(TypeError, match="'stride'"):
        cls(3, 2, stride=2)


def test_input_pixel_deconvolution_has_one_form() -> None:
    with pytest.raises(ValueError, match=r"efficient must be one of \(True,\), got False"):
        IPixelDCL3d(3, 2, efficient=False)


@forms
def test_transforms(cls: type[nn.Module], form: dict[str, bool]) -> None:
    layer = make_layer(cls, 2, 2, **form).double()
    x, tangent = random(3, 1, 2, 2, 1, 3), random(3, 1, 2, 2, 1, 3, seed=2)
    expected = torch.stack([layer(each) for each in x])
    torch.testing.assert_close(torch.vmap(layer)(x), expected)
    _, moved = torch.func.jvp(layer, (x[0],), (tangent[0],))
    torch.testing.assert_close(moved, layer(tangent[0]))  # it is linear


@pytest.fixture
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("channels_last", [False, True])
@forms
def test_compiles_in_one_graph(
    cls: type[nn.Module], form: dict[str, bool], channels_last: bool, fresh_compiler: None
) -> None:
    layer = make_layer(cls, 2, 2, padding_mode="replicate", **form)
    other = copy.deepcopy(layer)
    memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = random(2, 2, 3, 2, 4, dtype=torch.float32).to(memory_format=memory_format)
    results = []
    for call, owner in ((layer, layer), (torch.compile(other, fullgraph=True, backend="aot_eager"), other)):
        out = call(x)
        assert out.is_contiguous(memory_format=memory_format)
        out.square().sum().backward()
        results.append([out, *[p.grad for p in owner.parameters()]])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


SIZES = [(2, 2, 3, 4, 5), (1, 2, 2, 6, 3)]


def dynamic_shapes() -> tuple[dict[int, Any]]:
    return (dict.fromkeys((0, 2, 3, 4), torch.export.Dim.DYNAMIC),)


@forms
def test_exports_with_dynamic_sizes(cls: type[nn.Module], form: dict[str, bool]) -> None:
    layer = make_layer(cls, 2, 2, padding_mode="replicate", checkerboard_free=True, **form).eval()
    program = torch.export.export(
        layer, (random(*SIZES[0], dtype=torch.float32),), dynamic_shapes=dynamic_shapes()
    )
    for size in SIZES:
        x = random(*size, dtype=torch.float32)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@forms
def test_onnx_runtime_agrees(
    cls: type[nn.Module], form: dict[str, bool], padding_mode: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = make_layer(cls, 2, 2, padding_mode=padding_mode, **form).eval()
    path = tmp_path / "layer.onnx"
    example = (random(*SIZES[0], dtype=torch.float32),)
    torch.onnx.export(layer, example, path, dynamo=True, dynamic_shapes=dynamic_shapes(), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in SIZES:
        x = random(*size, dtype=torch.float32)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), layer(x).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["PixelDCL3d", "IPixelDCL3d", pytest.param(PixelDCL3d, id="class"), "pixeldcl_plugin.PixelDCL3d"]
)
def test_configs_build_them(name: str | Callable[..., nn.Module]) -> None:
    contract = dict(in_channels=4, out_channels=3, norm_cfg=dict(type="BN3d"), act_cfg=dict(type="ReLU"))
    module = build_upsample_layer(dict(type=name, separable=True), **contract)
    x = random(2, 4, 2, 3, 4, dtype=torch.float32)
    out = module(x)
    assert out.shape == (2, 3, 4, 6, 8)
    assert out.min() == 0
    assert isinstance(module.norm, nn.BatchNorm3d)
    assert module.layer.separable


# --- the page about them -------------------------------------------------------------------------


def test_the_code_of_the_page_runs() -> None:
    names = docs_code.run_section("docs/volumes.md", "Volumes")
    assert names["y"].shape == (1, 32, 8, 16, 16)
    for name in ("authors", "with_input", "cheap"):
        assert names[name](names["x"]).shape == names["y"].shape


def test_the_example_trains_scores_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a ball in a shell in place of the brain, whose package is no requirement of the tests."""
    axes = [np.linspace(-1, 1, size) for size in (84, 40, 40)]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))

    def template(inner: float, outer: float) -> Callable[..., SimpleNamespace]:
        return lambda resolution: SimpleNamespace(dataobj=1.0 * ((inner <= radius) & (radius < outer)))

    datasets = SimpleNamespace(
        load_mni152_template=template(0, 1),
        load_mni152_gm_template=template(0.6, 1),
        load_mni152_wm_template=template(0, 0.6),
    )
    monkeypatch.setitem(sys.modules, "nilearn", SimpleNamespace(datasets=datasets))
    example = runpy.run_path(str(ROOT / "docs/examples/volume.py"))
    names = example["UPSAMPLERS"]
    monkeypatch.setitem(example["main"].__globals__, "version", str)
    command = ["volume.py", "--seeds", "3", "--iterations", "2"]
    command += ["--out", str(tmp_path / "out.json"), "--picture", str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "argv", command)
    example["main"]()
    result = json.loads((tmp_path / "out.json").read_text())
    assert [(run["upsampler"], run["seed"]) for run in result["runs"]] == [(name, 3) for name in names]
    assert all(0 <= run["dice"]["grey matter"] <= 1 for run in result["runs"])
    assert set(result["summary"]) == set(names)
    assert (tmp_path / "out.png").stat().st_size > 0

    label = torch.tensor([[0, 1, 1], [2, 2, 1]])
    assert example["dice"](torch.tensor([[0, 1, 0], [1, 2, 1]]), label, 1) == pytest.approx(2 * 2 / (3 + 3))
