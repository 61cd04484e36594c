"""COCO's instances painted into one mask of classes an image, with pycocotools.

Where instances overlap, the smaller one is painted over the larger one: a cup stays visible on its
table. Crowd regions are void and lie under every instance, so they take from the background only:
what is annotated one by one inside a crowd is as sure as anywhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from .coco_annotations import VOID, ImageRecord

# pycocotools walks every pixel of an edge, so one absurd coordinate would exhaust the memory.
_FARTHEST = 100_000


def paint(record: ImageRecord) -> npt.NDArray[np.uint8]:
    """Paint the instances of an image: crowds first, then from the largest instance to the smallest.

    Instances of equal area are painted in the order of the file.

    Args:
        record: The image and its instances.

    Returns:
        Labels of shape (height, width): 0 for background, 1 to 80, 255 for crowds.

    Raises:
        ValueError: If a segmentation is malformed or is not one of the image's size; the message
            names the annotation.
    """
    codes = []
    for instance in record.instances:
        try:
            codes.append(encode(instance.segmentation, record.height, record.width))
        except ValueError as error:
            raise ValueError(f"annotation {instance.annotation} of {record.file_name}: {error}") from None
    # The areas in the file are those of the polygons, or missing: what is painted counts.
    areas = [int(coco.area(code)) for code in codes]
    labels = [instance.label for instance in record.instances]
    canvas = np.zeros((record.height, record.width), dtype=np.uint8)
    for index in sorted(range(len(codes)), key=lambda i: (labels[i] != VOID, -areas[i])):
        canvas[coco.decode(codes[index]) > 0] = labels[index]
    return canvas


def encode(segmentation: object, height: int, width: int) -> dict[str, Any]:
    """Bring any of COCO's three forms of a segmentation to a compressed run-length code.

    Args:
        segmentation: A list of polygons ``[x1, y1, x2, y2, …]`` whose union is meant, or a run-length
            code ``{"size": [height, width], "counts": …}`` with a list of runs or a compressed string.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The code as pycocotools takes it.

    Raises:
        ValueError: If the segmentation is none of these, or does not cover height x width pixels.
    """
    if isinstance(segmentation, list):
        return coco.merge(coco.frPyObjects(_polygons(segmentation), height, width))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("a segmentation is a list of polygons or an object with size and counts")
    if segmentation["size"] != [height, width]:
        raise ValueError(
            f"the segmentation has size {segmentation['size']!r}, the image [{height}, {width}]"
            " (height, width)"
        )
    counts = segmentation["counts"]
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("the counts of a run-length code must be runs of 0 pixels or more")
    # pycocotools leaves what the runs do not reach uninitialised, so the sum is checked here.
    if sum(runs) != height * width:
        raise ValueError(
            f"the run-length code decodes to {sum(runs)} pixels, the image has {height}x{width}"
            f" = {height * width}"
        )
    return coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def _polygons(polygons: list[Any]) -> list[list[float]]:
    if not polygons:
        raise ValueError("the list of polygons is empty")
    for polygon in polygons:
        # Lists of four numbers would silently be taken for boxes.
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                f"a polygon is a list of three or more pairs of coordinates, got {str(polygon)[:60]}"
            )
        for value in polygon:
            if not isinstance(value, int | float) or not abs(value) <= _FARTHEST:  # also catches NaN
                raise ValueError(f"a coordinate must be a number up to {_FARTHEST}, got {value!r}")
    return polygons


def _runs(counts: str) -> list[int]:
    """Read a compressed code: five bits a character, differences to the run before the last.

    pycocotools decodes it as well, but shows neither the runs nor whether they are complete.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the run-length code holds the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more to come
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the run-length code ends within a number")
    return runs
