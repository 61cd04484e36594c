"""GuidedPixelDCL: against a literal reference, what it promises, and the forms of use."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import reference_guided as reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixeldcl_plugin.layers import GuidedPixelDCL, neighbour_means, traced_means
from pixeldcl_plugin.layers.interleave import PHASE_OFFSETS
from pixeldcl_plugin.layers.neighbour_means import mean_of_neighbours
from pixeldcl_plugin.layers.neighbours import ORDERS, phase_neighbours

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "ipixeldcl": dict(order="ipixeldcl"),
    "pixeldcl": dict(order="pixeldcl"),
    "none": dict(order=None),
    "separable": dict(separable=True),
    "groups": dict(groups=2),
    "residual": dict(residual=True),
    "x4": dict(scale_factor=4, guide_channels=(3, 2)),
    "x4_one_guide": dict(scale_factor=4, order="pixeldcl"),
    "x8": dict(scale_factor=8, order=None, groups=2, residual=True, hidden_channels=(5, 3)),
}
each_option = pytest.mark.parametrize("name", OPTIONS)
# What a compiler sees grows with the neighbours and the steps, and takes it as long: these show every branch.
each_traced_option = pytest.mark.parametrize("name", ["pixeldcl", "residual", "x4_one_guide"])
each_order = pytest.mark.parametrize("order", ORDERS)


def make(name: str = "default", *, random: bool = True, **options: Any) -> GuidedPixelDCL:
    """A layer; with random parameters, as what begins at zero would leave much of it unseen."""
    torch.manual_seed(0)
    options = dict(in_channels=4, guide_channels=3, hidden_channels=5) | OPTIONS[name] | options
    layer = GuidedPixelDCL(**options)
    if random:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.4)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                nn.init.uniform_(buffer, 0.5, 1.5)
    return layer


def inputs(
    layer: GuidedPixelDCL, n: int = 2, h: int = 3, w: int = 4, seed: int = 1, **kwargs: Any
) -> tuple[Tensor, list[Tensor]]:
    """A map, and for each guide of the layer one in the size of its step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, layer.in_channels, h, w, generator=generator, dtype=torch.double)
    # A single guide serves every step; the finest there is loses nothing.
    sizes = [layer.scale_factor] if len(layer.guide_channels) == 1 else [2, 4, 8]
    guides = [
        torch.randn(n, channels, size * h, size * w, generator=generator, dtype=torch.double)
        for channels, size in zip(layer.guide_channels, sizes, strict=False)
    ]
    kwargs.setdefault("dtype", torch.float32)
    return x.to(**kwargs), [guide.to(**kwargs) for guide in guides]


def grads_of(out: Tensor, of: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    return list(torch.autograd.grad((out * weight.to(out)).sum(), of))


def repeated_bilinear(x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return x


# --- values --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    order=st.sampled_from(ORDERS),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_means_equal_literal_reference(
    order: str | None, shape: tuple[int, ...], spread: float, channels_last: bool, seed: int
) -> None:
    """Values and gradients; both the form of a CPU and that of a compiler, an export or a GPU."""
    torch.manual_seed(seed)
    n, _, h, w = shape
    taps = sum(map(len, phase_neighbours(order)))
    x = torch.randn(shape, dtype=torch.double)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    logits = (torch.randn(n, taps, h, w, dtype=torch.double) * spread).requires_grad_()
    expected = reference.mean_of_neighbours(x, logits, order)
    grads = grads_of(expected, [x, logits])
    for call in (mean_of_neighbours, traced_means.mean_by_tap, traced_means.mean_by_window):
        out = call(x, logits, order)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(grads_of(out, [x, logits]), grads, rtol=0, atol=1e-10)
    # Of a frozen model's map there is none.
    (alone,) = grads_of(mean_of_neighbours(x.detach(), logits, order), [logits])
    torch.testing.assert_close(alone, grads[1], rtol=0, atol=1e-10)


@each_option
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
def test_layer_equals_literal_reference(name: str, training: bool, size: tuple[int, int]) -> None:
    layer = make(name).double().train(training)
    x, guides = inputs(layer, 2, *size, dtype=torch.double)
    leaves = [x, *guides]
    for leaf in leaves:
        leaf.requires_grad_()
    steps = len(layer.steps)
    fitted = guides if len(guides) == steps else [F.avg_pool2d(guides[-1], 2**k) for k in (2, 1, 0)][-steps:]
    expected = reference.guided_pixel_dcl(x, fitted, layer)
    out = layer(x, guides)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    leaves += layer.parameters()
    expected_grads = grads_of(expected, leaves)
    torch.testing.assert_close(grads_of(out, leaves), expected_grads, rtol=0, atol=1e-10)
    if size != (1, 1):
        assert all(grad.abs().max() > 1e-6 for grad in expected_grads)  # the comparison is of something


@each_order
@pytest.mark.parametrize("pixels", [1, 24, 10**6])
def test_chunks_do_not_show(order: str | None, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour_means, "_CHUNK_PIXELS", pixels)
    monkeypatch.setattr(neighbour_means, "_KEPT_PIXELS", pixels)
    taps = sum(map(len, phase_neighbours(order)))
    x = torch.randn(5, 3, 4, 3, dtype=torch.double, requires_grad=True)
    logits = torch.randn(5, taps, 4, 3, dtype=torch.double, requires_grad=True)
    outs = mean_of_neighbours(x, logits, order), traced_means.mean_by_tap(x, logits, order)
    torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
    torch.testing.assert_close(*[grads_of(out, [x, logits]) for out in outs], rtol=0, atol=1e-12)


# --- promises ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, dict(order="ipixeldcl"), dict(order=None), dict(groups=2), dict(residual=True)], ids=str
)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7)])
@pytest.mark.parametrize("training", [True, False])
def test_untrained_is_bilinear_interpolation(
    options: dict[str, Any], size: tuple[int, int], training: bool
) -> None:
    for scale_factor in (2, 4, 8):
        layer = make(random=False, scale_factor=scale_factor, **options).train(training)
        x, guides = inputs(layer, 2, *size)
        out = layer(x, [1000 * guide for guide in guides])  # whatever the guide
        error = (out - repeated_bilinear(x, len(layer.steps))).abs().max()
        assert error <= 1e-3 * (x.max() - x.min())


def test_untrained_in_the_order_of_pixel_dcl_interpolates() -> None:
    """Its first phase is bilinear; p11, from p00 alone, cannot be: a ramp stays one, half a pixel off."""
    layer = make("pixeldcl", random=False)
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 4, 8, 8)
    out = layer(x, inputs(layer, 1, 8, 8)[1])
    torch.testing.assert_close(out[..., ::2, ::2], repeated_bilinear(x, 1)[..., ::2, ::2], rtol=0, atol=7e-3)
    steps = out[..., 4:-4, 4:-4].diff(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5), rtol=0, atol=7e-3)


@each_order
@pytest.mark.parametrize("scale_factor", [2, 4, 8])
def test_outputs_are_convex_combinations(order: str | None, scale_factor: int) -> None:
    """Within the range of the input pixels in reach, channel by channel; and the weights sum to one."""
    layer = make(order=order, scale_factor=scale_factor).train()
    x, guides = inputs(layer, 2, 6, 5)
    out = layer(x, guides)
    # A step reads 3x3 pixels; through p00 and p11 a phase reaches one, then another pixel further.
    reach = 3 * len(layer.steps)
    low = -F.max_pool2d(-x, 2 * reach + 1, 1, reach)
    high = F.max_pool2d(x, 2 * reach + 1, 1, reach)
    scale = dict(scale_factor=scale_factor, mode="nearest")
    assert (out >= F.interpolate(low, **scale) - 1e-5).all()
    assert (out <= F.interpolate(high, **scale) + 1e-5).all()
    # A shift and a scale of the input come out as they went in, the weights being the same.
    logits = torch.randn(2, sum(map(len, phase_neighbours(order))), 6, 5) * 5
    moved = mean_of_neighbours(3 * x - 7, logits, order)
    torch.testing.assert_close(moved, 3 * mean_of_neighbours(x, logits, order) - 7, rtol=0, atol=1e-5)


@each_order
@pytest.mark.parametrize("scale_factor", [2, 8])
@pytest.mark.parametrize("training", [True, False])
def test_constants_stay_constant_in_every_phase(order: str | None, scale_factor: int, training: bool) -> None:
    layer = make(order=order, scale_factor=scale_factor).train(training)
    constants = torch.tensor([1.0, -1.0, 0.3, 0.0]).view(1, 4, 1, 1)
    _, guides = inputs(layer, 2, 5, 7)
    out = layer(constants.expand(2, 4, 5, 7), guides)
    for row, column in PHASE_OFFSETS:
        assert (out[..., row::2, column::2] - constants).abs().max() <= 1e-6


def test_can_choose_any_neighbour() -> None:
    """Large logits pick one pixel, and are no trouble to the softmax."""
    x = torch.randn(1, 2, 4, 4)
    for tap in range(9):
        logits = torch.full((1, 36, 4, 4), -500.0)
        logits[:, tap::9] = 500.0
        dy, dx = tap // 3 - 1, tap % 3 - 1
        picked = F.pad(x, (1, 1, 1, 1), mode="replicate")[..., 1 + dy : 5 + dy, 1 + dx : 5 + dx]
        expected = F.interpolate(picked, scale_factor=2, mode="nearest")
        torch.testing.assert_close(mean_of_neighbours(x, logits, None), expected, rtol=0, atol=0)


def test_learns_an_edge_from_the_guide() -> None:
    """A step edge between two pixels of x, where only the guide knows: bilinear blurs it."""
    torch.manual_seed(0)
    layer = GuidedPixelDCL(1, 1, hidden_channels=8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(150):
        offset = torch.randint(6, 26, (8, 1, 1, 1))
        fine = (torch.arange(32).view(1, 1, 1, 32) >= offset).float().expand(8, 1, 32, 32)
        loss = F.mse_loss(layer(F.avg_pool2d(fine, 2), fine), fine)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    blurred = F.mse_loss(repeated_bilinear(F.avg_pool2d(fine, 2), 1), fine)
    assert loss < 0.2 * blurred


@each_option
def test_every_parameter_learns_from_the_second_step_on(name: str) -> None:
    layer = make(name, random=False)
    x, guides = inputs(layer, 2, 4, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x, guides).square().sum().backward()
        optimizer.step()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


# --- guides --------------------------------------------------------------------------------------


def test_one_guide_serves_every_step() -> None:
    layer = make(scale_factor=8)
    x, (guide,) = inputs(layer)
    expected = x
    for step, factor in zip(layer.steps, (4, 2, 1), strict=True):
        expected = step(expected, F.avg_pool2d(guide, factor))
    torch.testing.assert_close(layer(x, guide), expected)


def test_a_missing_finer_guide_is_made_from_the_finest() -> None:
    layer = make(scale_factor=8, guide_channels=(3, 2))
    x, guides = inputs(layer)
    expected = layer.steps[1](layer.steps[0](x, guides[0]), guides[1])
    finest = F.interpolate(guides[1], scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(layer(x, guides), layer.steps[2](expected, finest))


@pytest.mark.parametrize("size", [(5, 7), (6, 9), (25, 30), (1, 1), (3, 40)])
def test_a_guide_of_another_size_is_resized(size: tuple[int, int]) -> None:
    layer = make().eval()  # in training a norm of a constant guide blows rounding up
    x, _ = inputs(layer)
    guide = torch.randn(2, 3, *size)
    out = layer(x, guide)
    assert out.shape == (2, 4, 6, 8)
    constant = torch.full_like(guide, 0.7)
    torch.testing.assert_close(layer(x, constant), layer(x, torch.full((2, 3, 6, 8), 0.7)))


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(in_channels=0), "in_channels .* positive integer, got 0"),
        (dict(in_channels=2.0), r"in_channels .* positive integer, got 2\.0"),
        (dict(guide_channels=0), "guide_channels must be a positive integer, .*, got 0"),
        (dict(guide_channels="3"), "guide_channels .*, got '3'"),
        (dict(guide_channels=[]), r"guide_channels .*, got \[\]"),
        (dict(guide_channels=(3, 3)), r"guide_channels .* one to 1 of them, .*, got \(3, 3\)"),
        (dict(guide_channels=(3, True), scale_factor=4), r"guide_channels .*, got \(3, True\)"),
        (dict(scale_factor=3), r"scale_factor .*\(2, 4, 8\), got 3"),
        (dict(scale_factor=16), r"scale_factor .*\(2, 4, 8\), got 16"),
        (dict(scale_factor=2.0), r"scale_factor .*\(2, 4, 8\), got 2\.0"),
        (dict(order="fig5"), r"order .*'near', 'ipixeldcl', 'pixeldcl', None.*, got 'fig5'"),
        (dict(groups=3), "groups must divide in_channels, got 3 with in_channels=4"),
        (dict(groups=0), "groups .* positive integer, got 0"),
        (dict(hidden_channels=-1), "hidden_channels .* positive integer, got -1"),
        (dict(hidden_channels=(8, 0)), "hidden_channels .* positive integer, got 0"),
        (dict(hidden_channels=()), r"hidden_channels .* positive integer or one for each step, got \(\)"),
        (dict(hidden_channels=8.0), r"hidden_channels .* for each step, got 8\.0"),
        (dict(separable=0), r"separable .*\(False, True\), got 0"),
        (dict(residual=1), r"residual .*\(False, True\), got 1"),
    ],
)
def test_refuses_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidedPixelDCL(**{"in_channels": 4, "guide_channels": 3, **options})


def test_refuses_inputs() -> None:
    layer = make("x4")
    x, guides = inputs(layer)
    for bad_x in (x[0], x[:, :3], x[..., None]):
        with pytest.raises(ValueError, match=r"GuidedPixelDCL .*\(N, 4, H, W\), got"):
            layer(bad_x, guides)
    for bad_guides, message in (
        (guides[:1], r"takes 2 guide\(s\), of \(3, 2\) channels, got 1"),
        (guides[0], r"takes 2 guide\(s\).*got 1"),
        (guides[::-1], r"guide of shape \(2, 3, H, W\), got \(2, 2, 12, 16\)"),
        ([guides[0], guides[1][:1]], r"shape \(2, 2, H, W\), got \(1, 2, 12, 16\)"),
        ([guides[0][0], guides[1]], r"got \(3, 6, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, bad_guides)


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        GuidedPixelDCL(4, 3, 4)


def test_shows_its_arguments() -> None:
    for part in ("4, (3, 2)", "scale_factor=4", "order='near'", "groups=1", "residual=False"):
        assert part in repr(make("x4"))


def test_holds_no_conv2d() -> None:
    """The init_cfg of a model re-initialises every one of those after construction."""
    assert not [module for module in make("residual").modules() if isinstance(module, nn.Conv2d)]


# --- forms of use --------------------------------------------------------------------------------


@each_option
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (1, 7, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_sizes(name: str, shape: tuple[int, int, int], training: bool) -> None:
    layer = make(name).train(training)
    before = [buffer.clone() for buffer in layer.buffers()]
    x, guides = inputs(layer, *shape)
    leaves = [leaf.requires_grad_() for leaf in (x, *guides)]
    out = layer(x, guides)
    n, h, w = shape
    scale = layer.scale_factor
    assert out.shape == (n, 4, scale * h, scale * w)
    out.square().sum().backward()
    for leaf in (*leaves, *layer.parameters()):
        assert leaf.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in layer.buffers())
    if n == 0 or not training:
        assert all(map(torch.equal, before, layer.buffers()))


@each_option
def test_keeps_the_memory_format(name: str) -> None:
    layer = make(name)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, guides = inputs(layer)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        guides = [guide.contiguous(memory_format=memory_format) for guide in guides]
        out = layer(x, guides)
        assert out.is_contiguous(memory_format=memory_format)
        results.append([out, *grads_of(out, [x, *layer.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale_factor", [2, 4])
def test_a_single_channels_last_picture_shows_as_such(scale_factor: int) -> None:
    """Its strides, not only is_contiguous: what follows picks its kernel by them, and NCHW's is slower."""
    layer = make(scale_factor=scale_factor)
    x, guides = inputs(layer, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    out = layer(x, guides)
    assert out.stride() == torch.empty(out.shape).to(memory_format=torch.channels_last).stride()


def test_takes_views() -> None:
    layer = make().eval()
    x, (guide,) = inputs(layer, 2, 5, 4)
    view, guide_view = x.transpose(2, 3)[:, :, 1:], guide.transpose(2, 3)[:, :, 2:]
    torch.testing.assert_close(layer(view, guide_view), layer(view.contiguous(), guide_view.contiguous()))


@each_option
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precisions(name: str, dtype: torch.dtype) -> None:
    layer = make(name).eval()
    x, guides = inputs(layer)
    exact = copy.deepcopy(layer).double()(x.double(), [guide.double() for guide in guides])
    torch.testing.assert_close(layer(x, guides).double(), exact, rtol=1e-4, atol=1e-5)

    half = copy.deepcopy(layer).to(dtype)(x.to(dtype), [guide.to(dtype) for guide in guides])
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        mixed = layer(x, guides)
    assert half.dtype == dtype
    assert mixed.dtype == torch.float32  # that of x
    for out in (half, mixed):
        assert (out.double() - exact).norm() / exact.norm() < 0.05
    mixed.square().mean().backward()
    for leaf in (x, *layer.parameters()):
        assert leaf.grad.dtype == torch.float32
        assert leaf.grad.isfinite().all()


def test_constants_stay_constant_under_autocast() -> None:
    layer = make("x4")
    guides = inputs(layer)[1]
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.full((2, 4, 3, 4), 0.3), guides)
    assert (out - 0.3).abs().max() <= 1e-6


@each_option
def test_copies_and_round_trips(name: str) -> None:
    layer = make(name).eval()
    x, guides = inputs(layer)
    expected = layer(x, guides)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = make(name, random=False).eval()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x, guides), expected)
    assert torch.equal(copy.deepcopy(layer)(x, guides), expected)
    other.reset_parameters()
    fresh = make(name, random=False).eval()
    torch.testing.assert_close(other(x, guides), fresh(x, guides), rtol=0, atol=1e-6)


@each_traced_option
def test_compiles_in_one_graph(name: str) -> None:
    layer = make(name)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x, guides = inputs(layer)
    x.requires_grad_()
    outs = layer(x, guides), compiled(x, guides)
    torch.testing.assert_close(*outs)
    grads = [grads_of(out, [x, *owner.parameters()]) for out, owner in zip(outs, (layer, other), strict=True)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def dynamic_shapes(layer: GuidedPixelDCL) -> tuple[Any, ...]:
    dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    return dims, [dims] * len(layer.guide_channels)


@each_traced_option
def test_exports_with_dynamic_sizes(name: str) -> None:
    layer = make(name).eval()
    exported = torch.export.export(layer, inputs(layer), dynamic_shapes=dynamic_shapes(layer)).module()
    for size in ((1, 4, 3), (3, 2, 7)):
        x, guides = inputs(layer, *size)
        torch.testing.assert_close(exported(x, guides), layer(x, guides))


@pytest.mark.slow
@each_traced_option
def test_onnx_runtime_agrees(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = make(name).eval()
    path = tmp_path / "layer.onnx"
    torch.onnx.export(
        layer, inputs(layer), path, dynamo=True, dynamic_shapes=dynamic_shapes(layer), verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((1, 4, 3), (3, 2, 7)):
        x, guides = inputs(layer, *size)
        values = [tensor.numpy() for tensor in (x, *guides)]
        names = [entry.name for entry in session.get_inputs()]
        (out,) = session.run(None, dict(zip(names, values, strict=True)))
        torch.testing.assert_close(torch.from_numpy(out), layer(x, guides), rtol=0, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_option
def test_gpu_equals_cpu(name: str) -> None:
    layer = make(name).double().eval()
    x, guides = inputs(layer, dtype=torch.double)
    expected = layer(x, guides)
    out = layer.cuda()(x.cuda(), [guide.cuda() for guide in guides])
    torch.testing.assert_close(out.cpu(), expected)
