"""Photo mosaic: the embedded segmentation set, so that everything runs before any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..registry import register
from .converters.mosaic_photos import CLASSES, PALETTE


@register(DATASETS)
class PhotoMosaicDataset(BaseSegDataset):
    """Mosaics of photographs in PASCAL VOC layout, seven classes, void 255.

    `tools/dataset_converters/photo_mosaic.py` writes the files. It is a stand-in for a real
    data set: its scores say whether a model learns, and nothing about other images.

    Args:
        ann_file: Text file with one image name a line, `ImageSets/Segmentation/{train,val}.txt`.
        img_suffix: Suffix of the images.
        seg_map_suffix: Suffix of the labels.
        **kwargs: As `mmseg.datasets.BaseSegDataset` takes them.

    Raises:
        FileNotFoundError: If `ann_file` does not exist.
    """

    METAINFO: ClassVar[dict] = dict(classes=CLASSES, palette=[list(color) for color in PALETTE])

    def __init__(
        self,
        ann_file: str,
        img_suffix: str = ".jpg",
        seg_map_suffix: str = ".png",
        **kwargs: Any,
    ) -> None:
        super().__init__(ann_file=ann_file, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List image and label paths; see the base class."""
        if not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f"{self.ann_file} not found; write the photo mosaic set with: "
                f"python tools/dataset_converters/photo_mosaic.py --out {self.data_root}"
            )
        return super().load_data_list()
