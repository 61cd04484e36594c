"""The photo mosaic set on disk: PASCAL VOC layout, atomic files, a marker that says whose it is.

The marker (`photo_mosaic.json`) holds the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...utils.files import write_text_whole, written_whole
from ...utils.label_maps import save_index_png
from .marker import Marker
from .mosaic_photos import CLASSES, PALETTE, SPLITS
from .mosaic_synthesis import compose, cut_sources, load_photos

MARKER = "photo_mosaic.json"
IMAGE_DIR = "JPEGImages"
LABEL_DIR = "SegmentationClass"
LIST_DIR = "ImageSets/Segmentation"

# Raise it whenever the same parameters give other pixels.
_VERSION = 1


@dataclass(frozen=True)
class MosaicParameters:
    """What determines every byte of a photo mosaic set.

    Attributes:
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        size: Height and width of an image in pixels, 32 to 1024.
        seed: Seed of the set, not negative.

    Raises:
        ValueError: If a number is outside the range given above.
    """

    num_train: int = 400
    num_val: int = 80
    size: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("num_train", 1, 99_999),
            ("num_val", 1, 99_999),
            ("size", 32, 1024),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not lowest <= value <= highest:
                raise ValueError(f"{name} must be an integer in {lowest}..{highest}, got {value!r}")

    def count(self, split: str) -> int:
        """Give the number of images in a split."""
        return {"train": self.num_train, "val": self.num_val}[split]


def image_name(split: str, index: int) -> str:
    """Give the file name of an image or label, without suffix."""
    return f"{split}_{index:05d}"


def write_mosaic(
    out: Path, parameters: MosaicParameters, on_image: Callable[[], None] = lambda: None
) -> bool:
    """Write a photo mosaic set, or complete one that was interrupted.

    Every image depends on (seed, split, index) only, so a set completed in two runs has the bytes
    of one written in a single run.

    Args:
        out: Folder to write; it must be new, empty, or a set with the same parameters.
        parameters: What to write.
        on_image: Called once an image, also for those already there.

    Returns:
        False if the complete set was already there, else True.

    Raises:
        FileExistsError: If the folder holds anything else; nothing in it is changed.
        NotADirectoryError: If the path is a file.
    """
    names = {
        split: [image_name(split, index) for index in range(parameters.count(split))] for split in SPLITS
    }
    files = [file for listed in names.values() for name in listed for file in _files_of(out, name)]
    lists = {split: out / LIST_DIR / f"{split}.txt" for split in SPLITS}
    marker = Marker(out / MARKER, "a photo mosaic set", {"version": _VERSION, **asdict(parameters)})
    if marker.claim() and all(file.is_file() for file in (*files, *lists.values())):
        return False

    for folder in (IMAGE_DIR, LABEL_DIR, LIST_DIR):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        sources = cut_sources(load_photos(), split)
        for index, name in enumerate(names[split]):
            image_file, label_file = _files_of(out, name)
            if not (image_file.is_file() and label_file.is_file()):
                rng = np.random.default_rng((parameters.seed, SPLITS.index(split), index))
                image, label = compose(sources, parameters.size, rng, first=index % len(CLASSES))
                _save_image(image_file, image)
                with written_whole(label_file) as part:
                    save_index_png(label, PALETTE, part)
            on_image()
    for split, file in lists.items():
        write_text_whole(file, "".join(f"{name}\n" for name in names[split]))
    marker.save(complete=True)
    return True


def _files_of(out: Path, name: str) -> tuple[Path, Path]:
    return out / IMAGE_DIR / f"{name}.jpg", out / LABEL_DIR / f"{name}.png"


def _save_image(file: Path, image: npt.NDArray[np.float32]) -> None:
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    # No chroma subsampling: it would smear colour across the thin regions.
    with written_whole(file) as part:
        picture.save(part, format="JPEG", quality=95, subsampling=0)
