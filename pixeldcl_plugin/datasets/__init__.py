"""Data sets that MMSegmentation lacks, registered on import."""

from .camvid import CamVidDataset
from .coco_detection import COCODetectionDataset
from .photo_mosaic import PhotoMosaicDataset

__all__ = ["COCODetectionDataset", "CamVidDataset", "PhotoMosaicDataset"]
