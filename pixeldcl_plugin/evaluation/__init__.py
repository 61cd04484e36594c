"""Metrics that MMSegmentation lacks, registered on import."""

from .boundary_iou import BoundaryIoU
from .generative import VAEMetric
from .isolated_pixels import IsolatedPixels

__all__ = ["BoundaryIoU", "IsolatedPixels", "VAEMetric"]
