"""Metrics that MMSegmentation lacks, registered on import."""

from .boundary_iou import BoundaryIoU, BoundaryIoUMetric
from .generative import VAEMetric
from .isolated_pixels import IsolatedPixels, IsolatedPixelsMetric

__all__ = ["BoundaryIoU", "BoundaryIoUMetric", "IsolatedPixels", "IsolatedPixelsMetric", "VAEMetric"]
