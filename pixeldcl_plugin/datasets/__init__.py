"""Data sets that MMSegmentation lacks, registered on import."""

from .camvid import CamVidDataset
from .photo_mosaic import PhotoMosaicDataset

__all__ = ["CamVidDataset", "PhotoMosaicDataset"]
