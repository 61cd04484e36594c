"""A page in the browser: drop a picture on it and see where two models differ."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..evaluation.checkerboard import isolated_pixel_rate
from ..utils.cli import UsageError
from ..visualization.pictures import image_size, overlay, read_image
from .demo_server import import_gradio
from .segmenter import Segmenter

if TYPE_CHECKING:
    import gradio

__all__ = ["Comparison", "build_page", "compare"]

# By content: an ending says nothing.
_FORMATS = frozenset({"BMP", "JPEG", "PNG", "WEBP"})

_DIFFERENT = (255, 0, 168)

#: Photographs that scikit-image has with it, offered to try.
_EXAMPLES = ("chelsea.png", "astronaut.png", "coffee.png")


@dataclass(frozen=True)
class Comparison:
    """What the page shows of one picture.

    Attributes:
        pictures: RGB arrays ``(H, W, 3)`` of dtype uint8 with their captions: the image, one a model, and
            the difference.
        scores: A row a model: its name, and its share of isolated pixels.
        classes: The classes that were found, in the order of their indices.
    """

    pictures: list[tuple[np.ndarray, str]]
    scores: list[tuple[str, str]]
    classes: list[int]


def compare(path: str, segmenters: Sequence[Segmenter], names: Sequence[str], max_pixels: int) -> Comparison:
    """Segment a picture with two models and mark where they differ.

    The score is the share of pixels whose label differs from all four neighbours.

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
    predictions = [segmenter.predict([image])[0] for segmenter in segmenters]
    pictures = [(image, f"image, {width} x {height}")]
    table = []
    for name, segmenter, prediction in zip(names, segmenters, predictions, strict=True):
        pictures.append((overlay(image, prediction.labels, segmenter.palette, 0.7), name))
        isolated = float(isolated_pixel_rate(torch.from_numpy(prediction.labels)))
        table.append((name, f"{isolated:.3%}"))
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
        f"<th>isolated pixels</th></tr>{rows}</table>"
    )


def build_page(
    segmenters: Sequence[Segmenter],
    names: Sequence[str],
    max_pixels: int,
    make_room: Callable[[int], None] = lambda size: None,
) -> gradio.Blocks:
    """Build the page.

    Args:
        segmenters: Two models of the same classes.
        names: One a model.
        max_pixels: The largest picture that is taken.
        make_room: Called before pictures are made, with the bytes that they may take.

    Raises:
        UsageError: If Gradio is not installed, there are not two models, or their classes differ.
    """
    if len(segmenters) != 2 or len(names) != 2:
        raise UsageError(f"the page compares two models, got {len(segmenters)} with {len(names)} names")
    if segmenters[0].classes != segmenters[1].classes:
        raise UsageError(f"the models {names[0]!r} and {names[1]!r} have different classes")
    gr = import_gradio()

    def show(path: str | None) -> list[Any]:
        if path is None:
            return [*titles, *[None] * len(results), ""]
        make_room(len(results) * 3 * max_pixels)
        try:
            comparison = compare(path, segmenters, names, max_pixels)
        except ValueError as error:
            # The upload's path on the server says nothing to the user.
            raise gr.Error(str(error).replace(path, Path(path).name), print_exception=False) from error
        pictures, captions = zip(*comparison.pictures, strict=True)
        return [*captions, *pictures[1:], _describe(comparison, segmenters[0])]

    titles = ["image", *names, "difference"]
    heading = f"## {names[0]} and {names[1]}\nDrop a picture to see what both make of it."
    look = dict(
        type="filepath",
        sources=["upload", "clipboard"],
        format="png",
        show_label=False,
        elem_classes="result",
        buttons=["fullscreen"],
    )
    with gr.Blocks(
        title=" and ".join(names), analytics_enabled=False, delete_cache=(600, 600), fill_width=True
    ) as page:
        gr.Markdown(heading)
        captions: list[Any] = []
        panels: list[Any] = []
        with gr.Row():
            for title in titles:
                with gr.Column(min_width=220):
                    captions.append(gr.Text(title, show_label=False, container=False, elem_classes="caption"))
                    panels.append(
                        gr.Image(interactive=not panels, elem_id=None if panels else "upload", **look)
                    )
        upload, *results = panels
        # Gradio would open the file before it is judged.
        upload.preprocess = lambda payload: None if payload is None else payload.path
        if examples := _examples():
            gr.Examples(examples, upload, label="or take one of these", elem_id="examples")
        scores = gr.HTML(elem_id="scores")
        # One picture at a time: the models have the machine to themselves.
        outputs = [*captions, *results, scores]
        upload.change(show, upload, outputs, api_visibility="private", concurrency_limit=1)
    page.queue(max_size=8)
    return page


def _examples() -> list[str]:
    found = importlib.util.find_spec("skimage")
    folders = [] if found is None else found.submodule_search_locations or []
    files = [Path(folder, "data", name) for folder in folders for name in _EXAMPLES]
    return [str(file) for file in files if file.is_file()]
