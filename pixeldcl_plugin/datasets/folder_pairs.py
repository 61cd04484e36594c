"""Pairs of image and mask in a folder that nobody prepared: who belongs to whom, and to which split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from ..utils.cli import UsageError
from .image_files import SUFFIXES
from .pairs import Pair

__all__ = ["SPLITS", "FolderPairs", "find_pairs", "mask_files"]

SPLITS = ("train", "val", "test")
_IMAGES, _MASKS, _LISTS = "images", "masks", ("pairs.csv", "pairs.txt")
_SUFFIXES = (*SUFFIXES, ".tif", ".tiff", ".gif")
_SHOWN = 20


@dataclass(frozen=True)
class FolderPairs:
    """The pairs of a folder by split, and how they were split.

    Attributes:
        splits: The pairs of ``'train'``, ``'val'`` and ``'test'``, in the order of their names.
        rule: How the split was found, in words.
        strays: Masks that have no image, where names pair them and no list says which images count.
    """

    splits: Mapping[str, list[Pair]]
    rule: str
    strays: Sequence[Path] = ()


def find_pairs(root: Path, val_fraction: float = 0.2, split_seed: int = 0) -> FolderPairs:
    """Find the pairs of a folder.

    ``pairs.csv`` or ``pairs.txt`` lists them, an image and its mask in a line and perhaps ``train``, ``val``
    or ``test`` as a third column. Without one, ``images/`` and ``masks/`` hold them: a mask has the name of
    its image, with one further ending for all masks such as ``_mask`` if need be, and any suffix.

    The split is, in this order: the list's third column; ``train.txt``, ``val.txt`` and ``test.txt`` with a
    name of an image in a line, where a missing one of the first two is all the rest; the folders ``train``,
    ``val`` and ``test`` in ``images/``; else it is drawn. Without test data these are the validation's.

    Args:
        root: The folder.
        val_fraction: How much of the images is drawn for validation.
        split_seed: Of the drawing. An image that is added moves few others.

    Raises:
        UsageError: If there are no pairs, a list is not what it should be, or a split is empty or shares
            images with another.
    """
    listing = next((root / name for name in _LISTS if (root / name).is_file()), None)
    strays: list[Path] = []
    if listing:
        pairs, given = _read_list(root, listing)
    else:
        (pairs, strays), given = _match(root), {}
    lists = {split: root / f"{split}.txt" for split in SPLITS if (root / f"{split}.txt").is_file()}
    if given:
        splits, rule = _by_name(given), f"as {listing.name} says" if listing else ""
    elif lists:
        splits, rule = _by_lists(pairs, lists), f"as {' and '.join(f.name for f in lists.values())} say"
    elif not listing and (folders := _by_folder(pairs)):
        splits, rule = folders, f"by the folders in {_IMAGES}"
    else:
        splits = _draw(list(pairs), val_fraction, split_seed)
        rule = f"drawn with split_seed={split_seed}"
    splits.setdefault("test", splits.get("val", []))
    for split in SPLITS:
        if not splits.get(split):
            raise UsageError(
                f"{root.as_posix()!r}: no image for {split}, split {rule}: {len(pairs)} images in all"
            )
    if shared := sorted(set(splits["train"]) & {*splits["val"], *splits["test"]}):
        raise UsageError(
            f"{root.as_posix()!r}: {len(shared)} images are in training and in validation or test, "
            f"{_listed(shared)}"
        )
    found = {split: [pairs[name] for name in sorted(splits[split])] for split in SPLITS}
    return FolderPairs(found, rule, [] if lists else strays)


def mask_files(root: Path) -> list[Path]:
    """List all masks of a folder, of whatever split; empty if there are none."""
    listing = next((root / name for name in _LISTS if (root / name).is_file()), None)
    if listing:
        return sorted({pair.labels for pair in _read_list(root, listing)[0].values() if pair.labels})
    return [root / _MASKS / name for name in _names(root / _MASKS)]


# --- pairs ---------------------------------------------------------------------------------------


def _names(folder: Path) -> list[str]:
    """List the pictures below a folder by their paths in it."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    # macOS adds hidden files of the same suffix, which are no images.
    return sorted(f.relative_to(folder).as_posix() for f in files if not f.name.startswith("."))


def _match(root: Path) -> tuple[dict[str, Pair], list[Path]]:
    """Pair what images/ and masks/ hold, by name; return the pairs, and the masks that have no image."""
    for name in (_IMAGES, _MASKS):
        if not (root / name).is_dir():
            raise UsageError(
                f"{root.as_posix()!r} has no folder {name!r}: expected {_IMAGES}/ and {_MASKS}/, or "
                f"{_LISTS[0]} with an image and its mask in a line"
            )
    images, masks = _names(root / _IMAGES), _names(root / _MASKS)
    for name, found in ((_IMAGES, images), (_MASKS, masks)):
        if not found:
            raise UsageError(f"{(root / name).as_posix()!r} holds no picture ({', '.join(_SUFFIXES)})")
    stems = {_stem(name): name for name in images}
    if len(stems) < len(images):
        twice = sorted(set(images) - set(stems.values()))
        raise UsageError(f"{(root / _IMAGES).as_posix()!r}: images of one name, {_listed(twice)}")
    # Of several files of one name the PNG is the mask, others may be pictures of it.
    by_stem = {_stem(name): name for name in sorted(masks, key=lambda name: name.lower().endswith(".png"))}
    endings = _endings(list(stems), by_stem)
    ending = max(endings, key=lambda ending: (endings[ending], ending == ""))
    missing = [name for stem, name in stems.items() if stem + ending not in by_stem]
    if len(missing) == len(images):
        raise UsageError(
            f"{root.as_posix()!r}: no image has a mask of its name, {images[0]!r} in {_IMAGES}/ and "
            f"{masks[0]!r} in {_MASKS}/: name them alike, or list image and mask in {_LISTS[0]}"
        )
    # A file beside the masks of most images, such as a picture of each, is none without an image.
    usual = [ending for ending, count in endings.items() if 2 * count > len(images)]
    known = {stem + ending for stem in stems for ending in usual}
    strays = [root / _MASKS / name for stem, name in sorted(by_stem.items()) if stem not in known]
    pairs = {
        name: Pair(root / _IMAGES / name, root / _MASKS / by_stem.get(stem + ending, f"{stem}{ending}.png"))
        for stem, name in stems.items()
    }
    return pairs, strays


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _endings(images: Sequence[str], masks: Mapping[str, str]) -> dict[str, int]:
    """Count the images whose masks have an ending after their name, by ending."""
    endings = {mask[len(images[0]) :] for mask in masks if mask.startswith(images[0])}
    endings |= {mask[len(images[-1]) :] for mask in masks if mask.startswith(images[-1])}
    return {ending: sum(image + ending in masks for image in images) for ending in sorted(endings | {""})}


def _read_list(root: Path, file: Path) -> tuple[dict[str, Pair], dict[str, str]]:
    """Read a list of pairs; return them, and the split of each where the list has them."""
    text = _text(file)
    dialect = next((d for d in (",", ";", "\t") if d in text), " ")
    reader = csv.reader(text.splitlines(), delimiter=dialect, skipinitialspace=True)
    cells = enumerate(([cell.strip() for cell in row if cell.strip()] for row in reader), 1)
    rows = [(number, row) for number, row in cells if row]
    if rows and not any(PurePosixPath(cell).suffix.lower() in _SUFFIXES for cell in rows[0][1]):
        rows = rows[1:]  # the names of the columns
    faults: list[str] = []
    pairs: dict[str, Pair] = {}
    splits: dict[str, str] = {}
    for number, row in rows:
        if len(row) not in (2, 3) or (len(row) == 3 and row[2] not in SPLITS):
            faults.append(f"line {number}, {dialect.join(row)!r}")
        elif row[0] in pairs:
            faults.append(f"line {number}: {row[0]!r} a second time")
        else:
            pairs[row[0]] = Pair(root / row[0], root / row[1])
            splits |= {row[0]: row[2]} if len(row) == 3 else {}
    if splits and len(splits) < len(pairs):
        faults.append(f"{len(splits)} of {len(pairs)} lines name a split; expected all or none")
    if faults or not pairs:
        wanted = "expected an image and its mask in a line, and perhaps train, val or test"
        raise UsageError("\n".join([f"{file.as_posix()}: {wanted}", *_lines(faults or ["it lists none"])]))
    return pairs, splits


# --- splits --------------------------------------------------------------------------------------


def _by_name(given: Mapping[str, str]) -> dict[str, list[str]]:
    found = {split: [name for name, of in given.items() if of == split] for split in SPLITS}
    return {split: names for split, names in found.items() if names}


def _by_lists(pairs: Mapping[str, Pair], lists: Mapping[str, Path]) -> dict[str, list[str]]:
    """Look up the names in the lists of splits; they may lack their suffix or begin at the folder."""
    known = {_stem(name): name for name in pairs} | {name: name for name in pairs}
    known |= {f"{_IMAGES}/{key}": name for key, name in known.items()}
    splits: dict[str, list[str]] = {}
    for split, file in lists.items():
        lines = [(n, line.strip()) for n, line in enumerate(_text(file).splitlines(), 1) if line.strip()]
        if unknown := [f"line {n}: {line!r}" for n, line in lines if line.removeprefix("./") not in known]:
            first = f"{file.as_posix()}: {len(unknown)} of {len(lines)} names are no image's:"
            raise UsageError("\n".join([first, *_lines(unknown)]))
        splits[split] = list(dict.fromkeys(known[line.removeprefix("./")] for _, line in lines))
    taken = {name for names in splits.values() for name in names}
    for split in ("train", "val"):
        splits.setdefault(split, [name for name in pairs if name not in taken])
    return splits


def _by_folder(pairs: Iterable[str]) -> dict[str, list[str]]:
    """Split by the first folder of each name; empty unless all names begin with that of a split."""
    first = {name: PurePosixPath(name).parts[0] for name in pairs}
    found = set(first.values())
    return _by_name(first) if {"train", "val"} <= found <= set(SPLITS) else {}


def _draw(names: Sequence[str], fraction: float, seed: int) -> dict[str, list[str]]:
    if not 0 < fraction < 1:
        raise UsageError(f"val_fraction must be above 0 and below 1, got {fraction}")
    drawn = sorted(names, key=lambda name: blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())
    count = min(max(round(len(names) * fraction), 1), len(names) - 1)
    return {"val": drawn[:count], "train": drawn[count:]}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file.as_posix()!r} is no text file in UTF-8") from error


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _lines(faults: Sequence[str]) -> list[str]:
    more = [f"  ... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return [*(f"  {fault}" for fault in faults[:_SHOWN]), *more]
