"""Data sets that MMSegmentation lacks, registered on import."""

from .camvid import CamVidDataset
from .coco_detection import COCODetectionDataset
from .faces import CelebADataset, FaceFolderDataset, LFWFacesDataset
from .photo_mosaic import PhotoMosaicDataset

__all__ = [
    "COCODetectionDataset",
    "CamVidDataset",
    "CelebADataset",
    "FaceFolderDataset",
    "LFWFacesDataset",
    "PhotoMosaicDataset",
]
