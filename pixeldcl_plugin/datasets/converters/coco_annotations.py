"""COCO's instance annotations as this package reads them: the classes, and what each image holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...utils.label_maps import voc_palette

#: Names of the 80 detection categories by COCO's own ids, which have gaps.
CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    8: "truck", 9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign",
    14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove",
    41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass",
    47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza",
    60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear",
    89: "hair drier", 90: "toothbrush",
}  # fmt: skip

#: Background, then the categories in the order of their ids.
CLASSES = ("background", *CATEGORIES.values())
#: Label in the masks of each category id.
LABELS = {category: label for label, category in enumerate(CATEGORIES, start=1)}
#: Label of crowd regions, which losses and metrics ignore.
VOID = 255


#: Those of PASCAL VOC, as tuples.
PALETTE = tuple(map(tuple, voc_palette(len(CLASSES)).tolist()))


@dataclass(frozen=True)
class Instance:
    """One annotated object or crowd.

    Attributes:
        annotation: Its id in the file, for messages.
        label: Its class, 1 to 80, or `VOID` for a crowd.
        segmentation: Polygons or a run-length code, as in the file.
    """

    annotation: object
    label: int
    segmentation: Any


@dataclass(frozen=True)
class ImageRecord:
    """One image with all that is annotated in it.

    Attributes:
        file_name: File below the image folder.
        height: Height in pixels, as the annotation file says.
        width: Width in pixels, likewise.
        instances: In the order of the file.
    """

    file_name: str
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)

    @property
    def name(self) -> str:
        """File name without suffix, as it stands in a split list."""
        return str(PurePosixPath(self.file_name).with_suffix(""))

    @property
    def labels(self) -> frozenset[int]:
        """What may occur in the mask: background and the labels of the instances."""
        return frozenset({0, *(instance.label for instance in self.instances)})


def read_annotations(file: Path) -> tuple[str, list[ImageRecord]]:
    """Read an instance annotation file (``instances_*.json``).

    Segmentations are handed on unread; `coco_masks.paint` judges them.

    Args:
        file: JSON with the keys images, annotations and categories.

    Returns:
        SHA-256 of the file, and one record an image in the order of the file.

    Raises:
        ValueError: If the file is not such a file, names a category that is not COCO's, or lists an
            image twice or an annotation of an unlisted image.
        OSError: If it cannot be read.
    """
    content = file.read_bytes()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    try:
        records = _records(found)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return hashlib.sha256(content).hexdigest(), records


def _records(found: object) -> list[ImageRecord]:
    images, annotations, categories = _fields(found, "the file", ("images", "annotations", "categories"))
    for name, entries in (("images", images), ("annotations", annotations), ("categories", categories)):
        if not isinstance(entries, list):
            raise ValueError(f"{name} must be a list, got {type(entries).__name__}")
    for index, entry in enumerate(categories):
        _check_category(*_fields(entry, f"category number {index}", ("id", "name")))
    if not images:
        raise ValueError("no image is listed")
    records: dict[object, ImageRecord] = {}
    for index, entry in enumerate(images):
        identity, *parts = _fields(entry, f"image number {index}", ("id", "file_name", "height", "width"))
        if not isinstance(identity, int | str) or identity in records:
            raise ValueError(f"image number {index} has the id {identity!r}; accepted is a number of its own")
        records[identity] = _image(*parts)
    _check_names(records.values())
    for index, entry in enumerate(annotations):
        identity = entry.get("id", f"number {index}") if isinstance(entry, dict) else f"number {index}"
        what = f"annotation {identity}"
        image, category, segmentation = _fields(entry, what, ("image_id", "category_id", "segmentation"))
        if not isinstance(image, int | str) or image not in records:
            raise ValueError(f"{what} belongs to image {image!r}, which the file does not list")
        if not isinstance(category, int) or category not in LABELS:
            raise ValueError(f"{what} has the unknown category id {category!r}; COCO has 80, from 1 to 90")
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"{what} has iscrowd={crowd!r}; accepted are 0 and 1")
        label = VOID if crowd else LABELS[category]
        records[image].instances.append(Instance(identity, label, segmentation))
    return list(records.values())


def _fields(entry: object, what: str, names: tuple[str, ...]) -> list[Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{what} must be an object, got {type(entry).__name__}")
    missing = [name for name in names if name not in entry]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    return [entry[name] for name in names]


def _check_category(identity: object, name: object) -> None:
    # Another set in COCO's format would be mislabelled without a word if only the ids were looked at.
    if not isinstance(identity, int) or CATEGORIES.get(identity) != name:
        raise ValueError(f"unknown category id {identity!r} ({name!r}); accepted are COCO's 80 categories")


def _image(file_name: object, height: object, width: object) -> ImageRecord:
    if not isinstance(file_name, str) or not PurePosixPath(file_name).stem:
        raise ValueError(f"file_name must be a file below the image folder, got {file_name!r}")
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"file_name must be a file below the image folder, got {file_name!r}")
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or not 1 <= value <= 100_000:
            raise ValueError(f"{file_name} has {name}={value!r}; accepted are 1 to 100000 pixels")
    return ImageRecord(str(path), int(height), int(width))  # type: ignore[call-overload]


def _check_names(records: Collection[ImageRecord]) -> None:
    suffixes = {PurePosixPath(record.file_name).suffix for record in records}
    if len(suffixes) > 1:  # a split list names images without suffix, a data set adds a single one
        raise ValueError(f"all images must have one suffix, got {', '.join(sorted(suffixes))}")
    seen: dict[str, str] = {}
    for record in records:
        if record.name in seen:
            raise ValueError(
                f"{seen[record.name]} and {record.file_name} would share the mask {record.name}.png"
            )
        seen[record.name] = record.file_name
