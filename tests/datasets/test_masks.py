"""Masks of every mode become labels, and what cannot be read for sure is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixeldcl_plugin.datasets.class_list import ClassList
from pixeldcl_plugin.datasets.masks import LoadMask, MaskError, MaskReader
from pixeldcl_plugin.utils.label_maps import voc_palette

PLAIN = ClassList(("a", "b", "c"), (0, 1, 2))
COLORS = ((0, 0, 0), (200, 0, 0), (0, 0, 200))
COLORED = ClassList(("a", "b", "c"), (0, 1, 2), COLORS, (), ((224, 224, 192),))
VALUES = ClassList(("a", "b", "c"), (7, 255, 300), None, (9,))
LABELS = np.array([[0, 1, 2, 2], [1, 1, 0, 255], [2, 0, 0, 0]], np.uint8)


def png(pixels: Any, mode: str | None = None, file_format: str = "PNG", palette: Any = None) -> bytes:
    image = Image.fromarray(np.asarray(pixels))
    if palette is not None:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format=file_format)
    return file.getvalue()


def painted(alpha: int | None = None) -> np.ndarray:
    colors = np.zeros((256, 3), np.uint8)
    colors[:3], colors[255] = COLORS, (224, 224, 192)
    rgb = colors[LABELS]
    return rgb if alpha is None else np.dstack([rgb, np.full(LABELS.shape, alpha, np.uint8)])


#: The colors of the classes in the palette of a file, but in another order.
SHUFFLED = png(
    np.select([LABELS == 0, LABELS == 1, LABELS == 2], [1, 0, 2], 3).astype(np.uint8),
    palette=[COLORS[1], COLORS[0], COLORS[2], *[(224, 224, 192)] * 253],
)
BY_VALUE = np.select([LABELS == 0, LABELS == 1, LABELS == 2], [7, 255, 300], 9)


@pytest.mark.parametrize(
    ("classes", "kind", "data"),
    [
        (PLAIN, None, png(LABELS)),
        (PLAIN, None, png(LABELS, palette=voc_palette(256))),
        (PLAIN, None, png(np.dstack([LABELS] * 3))),
        (PLAIN, None, png(np.dstack([LABELS, LABELS * 0 + 9]))),
        (PLAIN, None, png(LABELS, file_format="BMP")),
        (PLAIN, None, png(LABELS.astype(np.uint16))),
        (PLAIN, None, png(LABELS.astype(np.int32), file_format="TIFF")),
        (VALUES, None, png(BY_VALUE.astype(np.uint16))),
        (VALUES, None, png(BY_VALUE.astype(np.int32), file_format="TIFF")),
        (COLORED, None, png(LABELS)),
        (COLORED, None, png(painted())),
        (COLORED, None, png(painted(255))),
        (COLORED, None, png(painted(0))),
        (COLORED, None, png(LABELS, palette=[*COLORS, *[(224, 224, 192)] * 253])),
        (COLORED, "indices", png(LABELS, palette=[COLORS[1], COLORS[0], COLORS[2], *[(9, 9, 9)] * 253])),
        (COLORED, "indices", png(np.dstack([LABELS] * 3))),
        (COLORED, "colors", png(painted())),
        (COLORED, "colors", SHUFFLED),
    ],
)
def test_reads_labels(classes: ClassList, kind: Any, data: bytes) -> None:
    labels = MaskReader(classes, kind).read(data)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, LABELS)


def test_reads_grey_as_a_color_and_one_bit_as_a_value() -> None:
    bits = LABELS == 1
    grey = MaskReader(ClassList(("off", "on"), (0, 1), ((0, 0, 0), (255, 255, 255))), "colors")
    for data in (png(bits * np.uint8(255)), png(bits)):
        np.testing.assert_array_equal(grey.read(data), bits)
    np.testing.assert_array_equal(MaskReader(ClassList(("off", "on"), (0, 1))).read(png(bits)), bits)


@pytest.mark.parametrize(
    ("classes", "kind", "data", "message"),
    [
        (PLAIN, None, png(LABELS + np.uint8(1)),
         "value 3 (3 px, first at x 2, y 0); classes.txt has value 0; 1; 2; 255"),
        (PLAIN, None, png(np.arange(40, dtype=np.uint8).reshape(5, 8)),
         "value 3 (1 px, first at x 3, y 0), value 4 (1 px, first at x 4, y 0), value 5 (1 px, first at x 5, "
         "y 0), value 6 (1 px, first at x 6, y 0), value 7 (1 px, first at x 7, y 0) and 32 more; "
         "classes.txt has value 0; 1; 2; 255"),
        (PLAIN, None, png(LABELS.astype(np.uint16) * 257),
         "value 65535"),
        (VALUES, None, png(LABELS), "value 0 (5 px, first at x 0, y 0)"),
        (PLAIN, None, png(painted()), "4 colors, color 0, 0, 0; 0, 0, 200; 200, 0, 0; 224, 224, 192; "
         "classes.txt gives the classes no colors"),
        (COLORED, "indices", png(painted()), "masks=indices reads values"),
        (COLORED, None, png(painted() + np.uint8(1)), "color 1, 1, 1 (5 px, first at x 0, y 0), color "),
        (COLORED, None, png(np.dstack([LABELS] * 3)), "color 1, 1, 1 (3 px, first at x 1, y 0), color "),
        (COLORED, None, SHUFFLED, "its value 1 (first at x 0, y 0) has the color of 'a' in the file: "
         "masks=colors reads its colors, masks=indices its values"),
        (COLORED, "colors", png(LABELS.astype(np.uint16) + 256), "16 bits a pixel"),
        (ClassList(("off", "on"), (0, 1)), None, png((LABELS == 1) * np.uint8(255)),
         "no values but 0 and 255: if 255 is 'on', write 'off, 0' and 'on, 255' into classes.txt"),
        (ClassList(("off", "on"), (0, 1)), None, png(np.dstack([(LABELS == 1) * np.uint8(255)] * 3)),
         "no values but 0 and 255"),
        (PLAIN, None, png(painted(), file_format="JPEG"), "a JPEG file, whose compression changes labels"),
        (PLAIN, None, png(painted(), file_format="WEBP"), "a WEBP file"),
        (PLAIN, None, png(LABELS.astype(np.float32), file_format="TIFF"), "of mode F; expected one channel"),
        (PLAIN, None, png(painted(), "CMYK", "TIFF"), "of mode CMYK; expected one channel"),
        (PLAIN, None, b"no image", "cannot be decoded by pillow"),
    ],
)  # fmt: skip
def test_refuses(classes: ClassList, kind: Any, data: bytes, message: str) -> None:
    with pytest.raises(MaskError) as error:
        MaskReader(classes, kind).read(data)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "classes", [ClassList(("off", "on"), (0, 1), None, (255,)), ClassList(("off", "on"), (0, 255))]
)
def test_takes_0_and_255_as_it_is_told(classes: ClassList) -> None:
    labels = MaskReader(classes).read(png((LABELS == 1) * np.uint8(255)))
    assert set(np.unique(labels)) == {0, 255 if classes.ignored_values else 1}


def test_refuses_kinds_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="'indices', 'colors' or None, got 'rgb'"):
        MaskReader(PLAIN, "rgb")
    with pytest.raises(ValueError, match="needs a color for every class"):
        MaskReader(PLAIN, "colors")


def test_the_transform_names_the_file(tmp_path: Any) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(LABELS))
    reader = MaskReader(PLAIN)
    assert copy.deepcopy(reader) is reader
    results = LoadMask()(dict(seg_map_path=str(file), mask_reader=reader, seg_fields=[]))
    assert results["seg_fields"] == ["gt_seg_map"]
    np.testing.assert_array_equal(results["gt_seg_map"], LABELS)
    file.write_bytes(png(LABELS + np.uint8(9)))
    with pytest.raises(ValueError, match=r"a\.png: value 9 "):
        LoadMask()(dict(seg_map_path=str(file), mask_reader=reader, seg_fields=[]))
