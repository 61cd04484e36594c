"""Data sets that MMSegmentation lacks, registered on import."""

from .camvid import CamVidDataset
from .coco_detection import COCODetectionDataset
from .faces import CelebADataset, FaceFolderDataset, LFWFacesDataset
from .folder import FolderSegDataset
from .masks import LoadMask
from .photo_mosaic import PhotoMosaicDataset

__all__ = [
    "COCODetectionDataset",
    "CamVidDataset",
    "CelebADataset",
    "FaceFolderDataset",
    "FolderSegDataset",
    "LFWFacesDataset",
    "LoadMask",
    "PhotoMosaicDataset",
]
