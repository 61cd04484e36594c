"""Photo mosaic: the embedded segmentation set, so that everything runs before any download."""

from __future__ import annotations

from typing import ClassVar

from mmseg.registry import DATASETS

from ..registry import register
from .converted import ConvertedDataset
from .converters.mosaic_photos import CLASSES, PALETTE


@register(DATASETS)
class PhotoMosaicDataset(ConvertedDataset):
    """Mosaics of photographs in PASCAL VOC layout, seven classes, void 255.

    `tools/dataset_converters/photo_mosaic.py` writes the files. It is a stand-in for a real
    data set: its scores say whether a model learns, and nothing about other images. Its lists of
    images are `ImageSets/Segmentation/{train,val}.txt`.
    """

    METAINFO: ClassVar[dict] = dict(classes=CLASSES, palette=[list(color) for color in PALETTE])
    COMMAND = "photo_mosaic.py --out {root}"
