"""A page in the browser: drop a picture on it and see where two models differ."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.checkerboard import MIN_SIZE, isolated_pixel_rate, nyquist_energy
from ..utils.cli import UsageError
from ..visualization.pictures import image_size, overlay, read_image
from .segmenter import Segmenter

if TYPE_CHECKING:
    import gradio

__all__ = ["FILE_TYPES", "Comparison", "build_page", "compare", "launch_options"]

#: Endings of the files that the page takes.
FILE_TYPES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

#: The formats, by content, that go with them: an ending says nothing.
_FORMATS = frozenset({"BMP", "JPEG", "PNG", "WEBP"})

_DIFFERENT = (255, 0, 168)

_CSS = """
.result img {image-rendering: pixelated; width: 100%; object-fit: contain}
.chips {margin: 4px 0 10px}
.chip {margin-right: 14px; white-space: nowrap}
.chip i {display: inline-block; width: 14px; height: 14px; margin-right: 5px; vertical-align: -2px}
.scores td, .scores th {padding: 3px 14px !important; text-align: left}
.caption input, .caption textarea {border: none !important; font-weight: 600}
"""


@dataclass(frozen=True)
class Comparison:
    """What the page shows of one picture.

    Attributes:
        pictures: RGB arrays ``(H, W, 3)`` of dtype uint8 with their captions: the image, one a model, and
            the difference.
        scores: A row a model: its name, checkerboard energy, and share of isolated pixels.
        classes: The classes that were found, in the order of their indices.
    """

    pictures: list[tuple[np.ndarray, str]]
    scores: list[tuple[str, str, str]]
    classes: list[int]


def compare(path: str, segmenters: Sequence[Segmenter], names: Sequence[str], max_pixels: int) -> Comparison:
    """Segment a picture with two models and mark where they differ.

    The scores are, of the logits before the choice of a class, the energy at the frequencies of a
    checkerboard over that around them
    (:func:`~pixeldcl_plugin.evaluation.checkerboard.nyquist_energy`; 1 for none), and the share of pixels
    whose label differs from all four neighbours.

    Args:
        path: An image file.
        segmenters: Two models of the same classes.
        names: One a model.
        max_pixels: Larger pictures are refused by their header, before they are decoded.

    Raises:
        ValueError: If the picture is too large, of another format, or cannot be read.
    """
    width, height = _check_header(path, max_pixels)
    image = read_image(path)
    predictions = [segmenter.predict([image], maps="logits")[0] for segmenter in segmenters]
    pictures = [(image, f"image, {width} x {height}")]
    table = []
    for name, segmenter, prediction in zip(names, segmenters, predictions, strict=True):
        pictures.append((overlay(image, prediction.labels, segmenter.palette, 0.7), name))
        table.append((name, *_scores(prediction.maps, prediction.labels)))
    different = predictions[0].labels != predictions[1].labels
    marked = image // 3
    marked[different] = _DIFFERENT
    pictures.append((marked, f"difference: {different.mean():.1%} of the pixels"))
    classes = np.unique(np.stack([prediction.labels for prediction in predictions])).tolist()
    return Comparison(pictures, table, classes)


def _check_header(path: str, max_pixels: int) -> tuple[int, int]:
    width, height = image_size(path)
    if width * height > max_pixels:
        raise ValueError(f"the picture has {width} x {height} pixels; this page takes up to {max_pixels:,}")
    with Image.open(path) as image:
        if image.format not in _FORMATS:
            raise ValueError(f"the picture is a {image.format} file; this page takes JPEG, PNG, WebP and BMP")
    return width, height


def _scores(logits: np.ndarray | None, labels: np.ndarray) -> tuple[str, str]:
    energy = "-"
    if logits is not None and min(labels.shape) >= MIN_SIZE:
        energy = f"{float(nyquist_energy(torch.from_numpy(logits)[None])):.2f}"
    return energy, f"{float(isolated_pixel_rate(torch.from_numpy(labels))):.3%}"


def _describe(comparison: Comparison, segmenter: Segmenter) -> str:
    """Return the scores and the colours of the classes as HTML."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in comparison.scores
    )
    chips = "".join(
        f'<span class="chip"><i style="background:#{bytes(segmenter.palette[i]).hex()}"></i>'
        f"{html.escape(segmenter.classes[i])}</span>"
        for i in comparison.classes
    )
    return (
        f'<div class="chips">{chips}</div><table class="scores"><tr><th>model</th>'
        "<th>checkerboard energy (1: none)</th><th>isolated pixels</th></tr>"
        f"{rows}</table>"
    )


def build_page(segmenters: Sequence[Segmenter], names: Sequence[str], max_pixels: int) -> gradio.Blocks:
    """Build the page.

    Args:
        segmenters: Two models of the same classes.
        names: One a model.
        max_pixels: The largest picture that is taken.

    Raises:
        UsageError: If Gradio is not installed, there are not two models, or their classes differ.
    """
    if len(segmenters) != 2 or len(names) != 2:
        raise UsageError(f"the page compares two models, got {len(segmenters)} with {len(names)} names")
    if segmenters[0].classes != segmenters[1].classes:
        raise UsageError(f"the models {names[0]!r} and {names[1]!r} have different classes")
    gr = _gradio()

    def show(path: str | None) -> list[Any]:
        if path is None:
            return [*titles, *[None] * len(titles), ""]
        try:
            comparison = compare(path, segmenters, names, max_pixels)
        except ValueError as error:
            # The upload's path on the server says nothing to the user.
            raise gr.Error(str(error).replace(path, Path(path).name), print_exception=False) from error
        pictures, captions = zip(*comparison.pictures, strict=True)
        return [*captions, *pictures, _describe(comparison, segmenters[0])]

    titles = ["image", *names, "difference"]
    heading = f"## {names[0]} and {names[1]}\nDrop a picture to see what both make of it."
    with gr.Blocks(
        title=" and ".join(names), analytics_enabled=False, delete_cache=(600, 600), fill_width=True
    ) as page:
        gr.Markdown(heading)
        upload = gr.File(
            label="JPEG, PNG, WebP or BMP", file_types=list(FILE_TYPES), height=120, elem_id="upload"
        )
        captions, panels = [], []
        with gr.Row():
            for title in titles:
                with gr.Column(min_width=220):
                    captions.append(gr.Text(title, show_label=False, container=False, elem_classes="caption"))
                    panels.append(
                        gr.Image(
                            show_label=False,
                            format="png",
                            interactive=False,
                            elem_classes="result",
                            buttons=["fullscreen"],
                        )
                    )
        scores = gr.HTML(elem_id="scores")
        # One picture at a time: the models have the machine to themselves.
        outputs = [*captions, *panels, scores]
        upload.change(show, upload, outputs, api_visibility="private", concurrency_limit=1)
    page.queue(max_size=8)
    return page


def launch_options(host: str, port: int | None, max_file_size: str) -> dict[str, Any]:
    """Return what ``Blocks.launch`` is to be called with: no tunnel, no telemetry, limited uploads.

    Args:
        host: Address to listen on.
        port: Port, or None for a free one from 7860.
        max_file_size: Of an upload, such as ``'10mb'``; larger ones are cut off while they come in.
    """
    gr = _gradio()
    return dict(
        server_name=host,
        server_port=port,
        max_file_size=max_file_size,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
        theme=gr.themes.Default(font="system-ui", font_mono="ui-monospace"),
        css=_CSS,
        app_kwargs=dict(middleware=[_own_resources_only()]),
    )


def _own_resources_only() -> Any:
    """Return a middleware that has the browser load nothing from other hosts.

    Gradio's page needs nothing of them; with this it stays so, whatever a release adds.
    """
    from starlette.middleware import Middleware

    policy = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"

    class Policy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def send_with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", policy)]
                await send(message)

            await self.app(scope, receive, send_with_policy)

    return Middleware(Policy)


def _gradio() -> Any:
    """Import Gradio with its telemetry off, which it decides on import."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UsageError("the demo needs Gradio: pip install 'pixeldcl-plugin[demo]'") from error
    return gradio
