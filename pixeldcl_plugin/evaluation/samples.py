"""What the metrics share: reading a prediction and its label out of a data sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["prediction_and_label"]


def prediction_and_label(
    sample: Mapping[str, Any], ignore_index: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read both label maps of a sample; where the label is void, the prediction is made void too.

    Args:
        sample: A data sample as mmseg's metrics get it, with ``pred_sem_seg`` and ``gt_sem_seg``.
        ignore_index: The label of void pixels.
        num_classes: Number of classes.

    Returns:
        Two int16 arrays ``(H, W)`` with values from 0 to ``num_classes - 1`` and -1 for void.

    Raises:
        ValueError: If one of them is missing, their sizes differ, or a value is no class.
    """
    maps = []
    for key in ("pred_sem_seg", "gt_sem_seg"):
        if key not in sample:
            raise ValueError(f"the data sample of {sample.get('img_path')!r} has no {key!r}")
        values = sample[key]["data"].cpu().numpy()
        maps.append(values.reshape(values.shape[-2:]))
    prediction, label = maps
    if prediction.shape != label.shape:
        raise ValueError(f"prediction of {prediction.shape} and label of {label.shape} differ in size")
    void = label == ignore_index
    result = []
    for name, values in (("prediction", prediction), ("label", label)):
        wrong = ~void & ((values < 0) | (values >= num_classes))
        if wrong.any():
            raise ValueError(
                f"{name} of {sample.get('img_path')!r} holds {values[wrong][0]}: classes are 0 to "
                f"{num_classes - 1}, void is {ignore_index}"
            )
        result.append(np.where(void, np.int16(-1), values.astype(np.int16)))
    return result[0], result[1]
