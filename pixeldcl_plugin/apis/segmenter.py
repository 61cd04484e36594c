"""Pictures of any size to label maps: a config and a checkpoint as one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.models.backbones import UNet
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.builder import load_model, scope_of
from ..engine.runtime import leaf_datasets
from ..utils.cli import UsageError
from ..utils.devices import usable_device
from ..utils.label_maps import voc_palette
from ..visualization.pictures import ImageSource, read_image
from .export import size_multiple
from .model_arguments import read_model
from .tiling import Block, blocks, interpolate

__all__ = ["Maps", "Prediction", "Segmenter"]

# Transforms of a test pipeline after which a pixel of the result is not where it was in the image.
_REFUSED = {
    "CenterCrop",
    "MultiScaleFlipAug",
    "Pad",
    "RandomCrop",
    "RandomFlip",
    "RandomRotate",
    "TestTimeAug",
}

#: What can be kept beside the labels.
Maps = Literal["logits", "probabilities", "bytes"]


@dataclass(frozen=True)
class Prediction:
    """The labels of one image, and its maps if they were asked for.

    Attributes:
        labels: Class indices ``(H, W)``, of dtype uint8 up to 256 classes and int32 beyond.
        maps: ``(classes, H, W)``: float32 logits, float32 probabilities, or probabilities in 255ths of
            dtype uint8; None if they were not asked for.
    """

    labels: np.ndarray
    maps: np.ndarray | None = None


@dataclass(frozen=True)
class _Prepared:
    """An image as the test pipeline leaves it: unnormalised ``(3, h, w)``, and the size it came in."""

    inputs: Tensor
    sample: SegDataSample
    size: tuple[int, int]


class Segmenter:
    """Segments images with a model.

    The image passes the config's test pipeline (its resizing included), data preprocessor and test mode,
    so that the labels are those which ``tools/test.py`` scores. Sides that a U-Net's poolings do not
    divide are padded where the config does not do so.

    An image of more than ``max_pixels``, as the pipeline leaves it, is taken in overlapping blocks of at
    most so many pixels, and of each block only the middle is kept, an eighth of its side away from its
    inner edges. A model that sees no further than that makes the labels that it makes of the whole image.
    The logits of one block at a time exist; on top of these the memory is some bytes a pixel, whatever the
    number of classes.

    Args:
        model: The name of a released model; or, with a checkpoint, a config or its file
            (``'mmseg::<path>'`` for one that MMSegmentation ships); or a model with its config as ``cfg``, as
            ``create_model`` and mmseg's ``init_model`` return it, which is put into evaluation mode and onto
            the device.
        checkpoint: A ``.pth`` or ``.safetensors`` file of the config's model; read as weights only.
        device: Where to compute, such as ``'cuda:1'``; by default where a given model is, else a GPU if there
            is one.
        max_pixels: The largest image or block that passes the model at once, from 128x128 pixels.

    Attributes:
        classes: Names, in the order of the indices.
        palette: RGB colours, an array ``(classes, 3)`` of dtype uint8.

    Raises:
        UsageError: If the device or ``max_pixels`` cannot be used, the name is unknown, the config cannot be
            read, the model is no ``EncoderDecoder`` or has no weights, or the test pipeline does more to the
            geometry of an image than resize it.
        CheckpointError: If the checkpoint is missing, unsafe, or of another model.

    Example:
        >>> segmenter = Segmenter("unethead_lite0-s8-retrofit_1xb8-amp-300_camvid-160x128")
        >>> labels = segmenter("street.jpg")  # (H, W)
    """

    def __init__(
        self,
        model: str | Path | Config | EncoderDecoder,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        max_pixels: int = 2**21,
    ) -> None:
        if max_pixels < 128**2:
            raise UsageError(f"max_pixels must be at least {128**2}, got {max_pixels}")
        self.max_pixels = max_pixels
        if device is None and isinstance(model, nn.Module):
            device = next(model.parameters()).device
        self.device = usable_device(device)
        self.model = _load(model, checkpoint).to(self.device).eval()
        self._pipeline = _image_pipeline(self.model.cfg)
        self._multiple = size_multiple(self.model) if isinstance(self.model.backbone, UNet) else 1
        self.classes, self.palette = _classes_of(self.model)

    def __call__(self, image: ImageSource) -> np.ndarray:
        """Segment one image.

        Args:
            image: A path, a PIL image, or an array ``(H, W, 3)`` of dtype uint8 in the order R, G, B.

        Returns:
            Class indices ``(H, W)`` at the size of the (upright) image, uint8 up to 256 classes.

        Raises:
            ValueError: If the image cannot be read; see
                :func:`~pixeldcl_plugin.visualization.pictures.read_image`.
        """
        return self.predict([image])[0].labels

    def probabilities(self, image: ImageSource) -> np.ndarray:
        """Compute the probability of every class in every pixel: float32, ``(classes, H, W)``.

        Unlike the labels these need memory in proportion to the classes.
        """
        maps = self.predict([image], maps="probabilities")[0].maps
        if maps is None:
            raise RuntimeError("predict returned no maps")
        return maps

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[ImageSource],
        *,
        maps: Maps | None = None,
        on_block: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Prediction]:
        """Segment several images, those of one size in one batch.

        Args:
            images: As for a call; the caller chooses how many fit into memory.
            maps: What to return beside the labels, or None.
            on_block: Called while a large image passes in blocks, with how many are done and their number.

        Raises:
            ValueError: If one of the images cannot be read.
        """
        prepared = [self._prepare(read_image(image)) for image in images]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, item in enumerate(prepared):
            large = item.inputs[0].numel() > self.max_pixels
            # A large image is a batch of its own, block by block.
            key = (index,) if large else (*item.inputs.shape, *item.size)
            groups.setdefault(key, []).append(index)
        results: dict[int, Prediction] = {}
        for members in groups.values():
            predictions = self._predict_group([prepared[i] for i in members], maps, on_block)
            results.update(zip(members, predictions, strict=True))
        return [results[index] for index in range(len(prepared))]

    def _prepare(self, image: np.ndarray) -> _Prepared:
        size = (image.shape[0], image.shape[1])
        # The config's preprocessor turns OpenCV's order, which its LoadImageFromFile gives, into RGB.
        bgr = np.ascontiguousarray(image[..., ::-1])
        packed = self._pipeline(dict(img=bgr, img_shape=size, ori_shape=size, img_path=None))
        return _Prepared(packed["inputs"], packed["data_samples"], size)

    def _predict_group(
        self, group: list[_Prepared], maps: Maps | None, on_block: Callable[[int, int], None]
    ) -> list[Prediction]:
        count, size = len(self.classes), group[0].size
        labels = np.empty((len(group), *size), np.uint8 if count <= 256 else np.int32)
        kept = None
        if maps is not None:
            kept = np.empty((len(group), count, *size), np.uint8 if maps == "bytes" else np.float32)
        for rows, columns, logits in self._logits(group, on_block):
            labels[:, rows, columns] = self._decide(logits).cpu().numpy()
            if kept is not None:
                kept[:, :, rows, columns] = _kept(logits, maps).cpu().numpy()
        return [Prediction(labels[i], None if kept is None else kept[i]) for i in range(len(group))]

    def _logits(
        self, group: list[_Prepared], on_block: Callable[[int, int], None]
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield rows, columns and logits (N, classes, rows, columns) of parts that tile the images."""
        inputs = group[0].inputs
        parts = list(blocks((inputs.shape[1], inputs.shape[2]), self.max_pixels))
        for done, block in enumerate(parts, 1):
            logits = self._forward(group, block)
            yield from interpolate(logits, block, group[0].size, self.model.align_corners, self.max_pixels)
            if len(parts) > 1:
                on_block(done, len(parts))

    def _forward(self, group: list[_Prepared], block: Block) -> Tensor:
        """Return the logits of a block, (N, classes, h, w), the padding cut off."""
        data = dict(
            inputs=[item.inputs[:, block.rows, block.columns] for item in group],
            data_samples=[item.sample.clone() for item in group],
        )
        batch = self.model.data_preprocessor(data, False)["inputs"]
        height, width = batch.shape[2:]
        batch = F.pad(batch, (0, -width % self._multiple, 0, -height % self._multiple))
        shape = batch.shape[2:]
        meta = dict(ori_shape=tuple(shape), img_shape=shape, pad_shape=tuple(shape))
        logits = self.model.inference(batch, [dict(meta) for _ in group])
        return logits[..., : block.height, : block.width].float()

    def _decide(self, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:  # two classes told apart by one sigmoid
            return (logits[:, 0].sigmoid() > self.model.decode_head.threshold).to(torch.uint8)
        return logits.argmax(dim=1)


def _kept(logits: Tensor, maps: Maps | None) -> Tensor:
    if logits.shape[1] == 1:
        # softmax of (0, x) is (1 - sigmoid(x), sigmoid(x))
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if maps == "logits":
        return logits
    probabilities = logits.softmax(dim=1)
    return (probabilities * 255).round().to(torch.uint8) if maps == "bytes" else probabilities


def _load(model: str | Path | Config | EncoderDecoder, checkpoint: str | Path | None) -> EncoderDecoder:
    """Return the model that a segmenter is asked for."""
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            raise UsageError(f"a model brings its weights: checkpoint {str(checkpoint)!r} is one too many")
        if not isinstance(model, EncoderDecoder) or not isinstance(getattr(model, "cfg", None), Config):
            raise UsageError(f"expected an EncoderDecoder with its config as cfg, got {type(model).__name__}")
        return model
    if not isinstance(model, Config):
        found = read_model(str(model), None if checkpoint is None else str(checkpoint))
        return found.load(EncoderDecoder)
    if checkpoint is None:
        raise UsageError("a config needs a checkpoint")
    return load_model(model, checkpoint, EncoderDecoder)


def _image_pipeline(cfg: Config) -> Compose:
    """Build what a config's test pipeline does to an image once it is loaded."""
    dataset = next(leaf_datasets((cfg.get("test_dataloader") or {}).get("dataset")), {})
    pipeline = dataset.get("pipeline") or cfg.get("test_pipeline") or [dict(type="PackSegInputs")]
    kinds = [str(step.get("type")) for step in pipeline]
    if refused := sorted(_REFUSED.intersection(kinds)):
        raise UsageError(
            f"config: the test pipeline has {', '.join(refused)}; only what resizes an image can be undone"
        )
    with DefaultScope.overwrite_default_scope(scope_of(cfg)):
        return Compose(
            [step for step, kind in zip(pipeline, kinds, strict=True) if not kind.startswith("Load")]
        )


def _classes_of(model: EncoderDecoder) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names and colours of a model's classes; those that it does not know are made up."""
    meta, count = getattr(model, "dataset_meta", None) or {}, model.num_classes
    classes, palette = meta.get("classes") or (), meta.get("palette")
    if len(classes) != count:
        classes, palette = [f"class {index}" for index in range(count)], None
    # A dataset may name its classes anew and leave the palette of all of them.
    if palette is None or np.shape(palette) != (count, 3):
        palette = voc_palette(count)
    return tuple(map(str, classes)), np.array(palette, np.uint8)
