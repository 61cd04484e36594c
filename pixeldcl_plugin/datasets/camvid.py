"""CamVid: street scenes in 11 classes (Brostow et al. 2008, in the split and classes of SegNet)."""

from __future__ import annotations

from typing import Any, ClassVar

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from ..registry import register

VOID = 11


@register(DATASETS)
class CamVidDataset(BaseSegDataset):
    """CamVid in the layout ``{split}/*.jpg``, ``{split}annot/*.png`` with labels 0-10 and 11 for void.

    Void pixels are handed on as 255, which losses and metrics ignore.
    """

    METAINFO: ClassVar[dict[str, Any]] = dict(
        classes=(
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    @classmethod
    def get_label_map(cls, new_classes: Any = None) -> dict[int, int]:
        """Map void to 255, beside what a choice of classes (``metainfo``) asks for."""
        return {VOID: 255, **(super().get_label_map(new_classes) or {})}
