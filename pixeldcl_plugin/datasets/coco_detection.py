"""MSCOCO detection as semantic segmentation: instances painted into masks of 81 classes."""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.registry import DATASETS

from ..registry import register
from .converted import ConvertedDataset
from .converters.coco_annotations import CLASSES, PALETTE


@register(DATASETS)
class COCODetectionDataset(ConvertedDataset):
    """Background and COCO's 80 detection categories in the order of their ids; crowds are void (255).

    `tools/dataset_converters/coco_detection.py` writes the masks and the split lists; the images
    stay where they are.
    """

    METAINFO: ClassVar[dict[str, Any]] = dict(classes=CLASSES, palette=[list(color) for color in PALETTE])
    COMMAND = "coco_detection.py ANNOTATIONS.json --images IMAGES --out {folder}"
