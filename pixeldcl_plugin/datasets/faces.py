"""Faces for generative models: CelebA in its official form, any folder or zip, and an embedded set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..layers.arguments import check_choice, check_positive
from ..registry import register
from .image_files import ImageFiles

SPLITS = ("train", "val", "test")


class FaceDataset(Dataset):
    """Square RGB pictures, by subclasses that say which.

    Args:
        names: What identifies the pictures of the split.
        size: Height and width of what is given out, in pixels.
        crop: Side of the centre square that is cut out first; None for the largest there is.
        flip: Mirror a picture with probability 1/2.

    Shape:
        An item is ``dict(inputs=uint8 (3, size, size), data_samples=element)``, the element with the
        ``img_path`` of the picture and its index ``sample_idx``.
    """

    def __init__(self, names: Sequence[str], size: int, crop: int | None, flip: bool) -> None:
        self.names = list(names)
        self.size = size
        self.crop = crop
        self.flip = flip

    @property
    def metainfo(self) -> dict[str, Any]:
        """What the loops of MMEngine hand on to evaluators and visualizers."""
        return dict(classes=("face",))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self._to_tensor(self._load(self.names[index]))
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        meta = dict(img_path=self.names[index], sample_idx=index)
        return dict(inputs=pixels, data_samples=BaseDataElement(metainfo=meta))

    def _load(self, name: str) -> Image.Image:
        raise NotImplementedError

    def _to_tensor(self, image: Image.Image) -> Tensor:
        side = self.crop or min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if (side, side) != image.size:
            image = image.crop((left, top, left + side, top + side))
        if side != self.size:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


class FaceFileDataset(FaceDataset):
    """Pictures out of files, checked when the dataset is made.

    Args:
        files: Where the pictures are.
        names: Those of the split.
        size: As in :class:`FaceDataset`.
        crop: Likewise.
        flip: Likewise.

    Raises:
        ValueError: If there are no names, or some files cannot be read or are smaller than ``crop`` or
            ``size``; the message names them.
    """

    def __init__(
        self, files: ImageFiles, names: Sequence[str], size: int, crop: int | None, flip: bool
    ) -> None:
        check_positive(size=size, **({} if crop is None else dict(crop=crop)))
        if not names:
            raise ValueError(f"no image in {str(files.root)!r}")
        files.check(names, crop or size)
        super().__init__(names, size, crop, flip)
        self.files = files

    def _load(self, name: str) -> Image.Image:
        return self.files.load(name)


@register(DATASETS)
class FaceFolderDataset(FaceFileDataset):
    """Images in a folder or zip file, split at random so that no person is in two splits.

    Args:
        data_root: Folder, searched with all those in it, or ``.zip`` file.
        split: 'train', 'val' or 'test'.
        fractions: Shares of the persons in the three splits; they add up to 1.
        seed: Of the split.
        identity_pattern: Regular expression for a file's name without folder and suffix; its first group is
            the person. Names that it does not match, and all of them where it is None, are persons of their
            own. By default ``<person>_<number>``.
        size: As in :class:`FaceDataset`.
        crop: Likewise.
        flip: Likewise.

    Raises:
        ValueError: If the folder or file is missing or holds no image, the split is empty, images are
            unusable (see :class:`FaceFileDataset`), or an argument is none of the above.
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        *,
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        identity_pattern: str | None = r"(.+)_\d+",
        size: int = 64,
        crop: int | None = None,
        flip: bool = False,
    ) -> None:
        files = ImageFiles(data_root)
        names = files.names()
        if names:
            persons = [_person(name, identity_pattern) for name in names]
            chosen = _split_identities(persons, split, fractions, seed)
            names = [name for name, person in zip(names, persons, strict=True) if person in chosen]
            if not names:
                raise ValueError(
                    f"split {split!r} of {str(data_root)!r} is empty: identity_pattern {identity_pattern!r} "
                    f"finds {len(set(persons))} persons in all; None splits by image"
                )
        super().__init__(files, names, size, crop, flip)


def _person(name: str, pattern: str | None) -> str:
    found = re.fullmatch(pattern, Path(name).stem) if pattern is not None else None
    return found[1] if found else name


def _split_identities(persons: Sequence[str], split: str, fractions: Sequence[float], seed: int) -> set[str]:
    check_choice("split", split, SPLITS)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three shares that add up to 1, got {fractions!r}")
    unique = sorted(set(persons))
    ends = [0, *(round(len(unique) * share) for share in np.cumsum(fractions))]
    order = np.random.default_rng(seed).permutation(len(unique))
    place = SPLITS.index(split)
    return {unique[index] for index in order[ends[place] : ends[place + 1]]}


@register(DATASETS)
class CelebADataset(FaceFileDataset):
    """CelebA (Liu et al. 2015), aligned and cropped, in its official files and split.

    Looks for ``img_align_celeba`` (a folder, also with another of this name in it, or a ``.zip``) and
    ``list_eval_partition.txt`` in the root and in its folders ``Img`` and ``Eval``.

    Args:
        data_root: Folder with the above.
        split: 'train', 'val' or 'test'.
        size: As in :class:`FaceDataset`.
        crop: Likewise; 148 of the 178x218 pixels is usual and keeps the face.
        flip: Likewise.

    Raises:
        ValueError: If a file is missing or unreadable, the partition names images that are not there, or
            images are unusable (see :class:`FaceFileDataset`).
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        *,
        size: int = 64,
        crop: int | None = 148,
        flip: bool = False,
    ) -> None:
        check_choice("split", split, SPLITS)
        root = Path(data_root)
        partition = _find(root, ("list_eval_partition.txt", "Eval/list_eval_partition.txt"))
        names = _read_partition(partition, SPLITS.index(split))
        images = ("img_align_celeba", "img_align_celeba.zip")
        files = ImageFiles(_find(root, (*images, *(f"Img/{name}" for name in images))))
        # The official zip has a folder of the same name in it, and unpacking it may leave two levels.
        places = {Path(name).name: name for name in files.names()}
        super().__init__(files, [places.get(name, name) for name in names], size, crop, flip)


def _find(root: Path, candidates: Sequence[str]) -> Path:
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise ValueError(f"CelebA: none of {', '.join(candidates)} in {str(root)!r} (looked in {Path.cwd()})")


def _read_partition(path: Path, wanted: int) -> list[str]:
    names = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise ValueError(f"{path}:{number}: expected '<image> <0, 1 or 2>', got {line!r}")
        if int(fields[1]) == wanted:
            names.append(fields[0])
    return names


@register(DATASETS)
class LFWFacesDataset(FaceDataset):
    """100 faces that scikit-image ships, so that a VAE trains before any download; 80/10/10 in order.

    The faces of ``skimage.data.lfw_subset``: 25x25 grey pixels out of Labeled Faces in the Wild, enlarged. A
    stand-in: what a model makes of them says that it runs, and nothing more.

    Args:
        split: 'train', 'val' or 'test'.
        size: As in :class:`FaceDataset`.
        flip: Likewise.

    Raises:
        ValueError: If an argument is none of the above.
    """

    def __init__(self, split: str = "train", *, size: int = 64, flip: bool = False) -> None:
        check_choice("split", split, SPLITS)
        check_positive(size=size)
        first, end = dict(train=(0, 80), val=(80, 90), test=(90, 100))[split]
        super().__init__([f"lfw_{index:03d}" for index in range(first, end)], size, None, flip)
        # The second hundred of the set are no faces.
        import skimage.data  # only where the embedded faces are used

        self._pixels = np.rint(skimage.data.lfw_subset()[first:end] * 255).astype(np.uint8)
        self._first = first

    def _load(self, name: str) -> Image.Image:
        return Image.fromarray(self._pixels[int(name[4:]) - self._first]).convert("RGB")
