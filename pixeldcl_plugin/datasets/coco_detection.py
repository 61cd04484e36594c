"""MSCOCO detection as semantic segmentation: instances painted into masks of 81 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..registry import register
from .converters.coco_annotations import CLASSES, PALETTE


@register(DATASETS)
class COCODetectionDataset(BaseSegDataset):
    """Background and COCO's 80 detection categories in the order of their ids; crowds are void (255).

    `tools/dataset_converters/coco_detection.py` writes the masks and the split lists; the images
    stay where they are.

    Args:
        ann_file: Text file with one image name a line, as the converter writes it.
        img_suffix: Suffix of the images.
        seg_map_suffix: Suffix of the masks.
        **kwargs: As `mmseg.datasets.BaseSegDataset` takes them.

    Raises:
        FileNotFoundError: If `ann_file` does not exist.
    """

    METAINFO: ClassVar[dict[str, Any]] = dict(classes=CLASSES, palette=[list(color) for color in PALETTE])

    def __init__(
        self,
        ann_file: str,
        img_suffix: str = ".jpg",
        seg_map_suffix: str = ".png",
        **kwargs: Any,
    ) -> None:
        super().__init__(ann_file=ann_file, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List image and mask paths; see the base class."""
        if not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f"{self.ann_file} not found; write masks and split lists with: "
                "python tools/dataset_converters/coco_detection.py ANNOTATIONS.json "
                f"--images IMAGES --out {Path(self.ann_file).parent}"
            )
        return super().load_data_list()
