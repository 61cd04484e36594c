"""Faces out of folders, zip files and the official CelebA layout, and how they can be broken."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from pixeldcl_plugin.datasets import CelebADataset, FaceFolderDataset, LFWFacesDataset
from pixeldcl_plugin.datasets.image_files import ImageFiles
from pixeldcl_plugin.utils import cli

ROOT = Path(__file__).parents[2]


def encoded(shade: int, size: tuple[int, int] = (64, 64), form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def people(count: int = 20) -> dict[str, bytes]:
    """Two pictures of each person, both in the person's shade."""
    return {f"{p}_{k:06d}.jpg": encoded(10 * p) for p in range(count) for k in (2 * p, 2 * p + 1)}


# --- folders and zip files -----------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_no_person_is_in_two_splits(write: Callable, tmp_path: Path) -> None:
    root = str(write(tmp_path / "faces.zip", people()))
    splits = {split: FaceFolderDataset(root, split) for split in ("train", "val", "test")}
    assert [len(dataset) for dataset in splits.values()] == [32, 4, 4]
    persons = [{name.split("_")[0] for name in dataset.names} for dataset in splits.values()]
    assert sum(map(len, persons)) == len(set.union(*persons)) == 20
    assert FaceFolderDataset(root, "train").names == splits["train"].names
    assert FaceFolderDataset(root, "train", seed=1).names != splits["train"].names


def test_items_are_rgb_pictures_and_carry_their_name(tmp_path: Path) -> None:
    dataset = FaceFolderDataset(str(write_folder(tmp_path, people(10))), "train", size=32)
    item = dataset[3]
    assert item["inputs"].shape == (3, 32, 32)
    assert item["inputs"].dtype == torch.uint8
    sample = item["data_samples"]
    assert (sample.sample_idx, sample.img_path) == (3, dataset.names[3])
    person = int(dataset.names[3].split("_")[0])
    red, green, _ = item["inputs"].float().mean((1, 2))
    assert red.item() == pytest.approx(10 * person, abs=4)
    assert green < 5


def test_crop_is_the_centre_and_flip_mirrors(tmp_path: Path) -> None:
    pixels = np.zeros((30, 20, 3), np.uint8)
    pixels[13:17, 8:10] = 255  # in the centre, left of the middle
    write_folder(tmp_path, {})
    for name in "abcdefghij":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    dataset = FaceFolderDataset(str(tmp_path), "train", crop=4, size=4)
    assert torch.equal(dataset[0]["inputs"][0] > 0, torch.tensor([[True, True, False, False]]).expand(4, 4))
    torch.manual_seed(0)
    flipped = FaceFolderDataset(str(tmp_path), "train", crop=4, size=4, flip=True)
    lefts = {bool(flipped[0]["inputs"][0, 0, 0]) for _ in range(20)}
    assert lefts == {True, False}
    # Without a crop, the largest square: 20 of 30 rows.
    whole = FaceFolderDataset(str(tmp_path), "train", size=20)[0]["inputs"][0]
    assert torch.equal(whole.nonzero(), torch.from_numpy(pixels[5:25, :, 0]).nonzero())


def test_workers_read_one_zip_without_disturbing_each_other(tmp_path: Path) -> None:
    dataset = FaceFolderDataset(str(write_zip(tmp_path / "faces.zip", people(25))), "train")
    dataset[0]  # the parent has it open before the workers start
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=pseudo_collate)
    shades = {}
    for batch in loader:
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            shades[sample.img_path] = image[0].float().mean().item()
    assert len(shades) == len(dataset)
    for name, shade in shades.items():
        assert shade == pytest.approx(10 * int(name.split("_")[0]), abs=4)


def test_an_open_zip_can_be_sent_to_another_process(tmp_path: Path) -> None:
    dataset = FaceFolderDataset(str(write_zip(tmp_path / "faces.zip", people(10))))
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1]["inputs"], dataset[1]["inputs"])


def test_names_without_a_person_are_split_by_image(tmp_path: Path) -> None:
    files = {f"holiday/IMG_{k:04d}.jpg": encoded(k) for k in range(10)}
    files |= {"__MACOSX/holiday/._IMG_0000.jpg": b"x", "notes.txt": b"x"}
    root = str(write_zip(tmp_path / "faces.zip", files))
    with pytest.raises(ValueError, match=r"split 'val' .* is empty: identity_pattern .* finds 1 persons"):
        FaceFolderDataset(root, "val")
    assert len(FaceFolderDataset(root, "val", identity_pattern=None)) == 1
    assert len(FaceFolderDataset(root, "train", identity_pattern=None)) == 8
    assert len(FaceFolderDataset(root, "train", fractions=(1, 0, 0))) == 10


def broken_files() -> dict[str, bytes]:
    jpeg, png = encoded(9, (80, 80)), encoded(9, (80, 80), "PNG")
    return {
        "a_0.jpg": encoded(1),
        "b_0.jpg": b"no image",
        "c_0.jpg": jpeg[: len(jpeg) // 2],
        "d_0.png": png[: len(png) // 2],
        "e_0.jpg": b"",
        "f_0.jpg": encoded(1, (64, 40)),
    }


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_all_unusable_images_are_named_at_once(write: Callable, tmp_path: Path) -> None:
    root = str(write(tmp_path / "faces.zip", broken_files()))
    with pytest.raises(ValueError, match="5 of 6 images") as failure:
        FaceFolderDataset(root, fractions=(1, 0, 0))
    text = str(failure.value)
    assert "\n" not in text
    for name in "bcde":
        assert f"{name}_0.{'png' if name == 'd' else 'jpg'} (unreadable)" in text
    assert "f_0.jpg (64x40, less than 64)" in text
    assert "a_0" not in text


def test_a_long_list_of_unusable_images_is_cut(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{k:02d}.jpg": b"x" for k in range(30)})
    with pytest.raises(ValueError, match=r"30 of 30 images .* 09.jpg \(unreadable\) and 20 more$"):
        FaceFolderDataset(str(tmp_path), fractions=(1, 0, 0))


def test_an_image_may_have_bytes_after_its_end(tmp_path: Path) -> None:
    files = ImageFiles(write_folder(tmp_path, {"a.jpg": encoded(5) + b"\0" * 7}))
    files.check(files.names(), 64)
    assert files.load("a.jpg").size == (64, 64)


def test_a_damaged_zip_entry_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "faces.zip", {"a_0.jpg": encoded(1), "b_0.jpg": encoded(2)})
    data = bytearray(path.read_bytes())
    data[data.index(b"b_0.jpg") + 100] ^= 0xFF  # within the stored image: its checksum fails
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"1 of 2 images .* b_0.jpg \(unreadable\)"):
        FaceFolderDataset(str(path), fractions=(1, 0, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(split="dev"), "split must be one of"),
        (dict(fractions=(0.5, 0.5)), "fractions must be three"),
        (dict(fractions=(0.5, 0.1, 0.1)), "fractions must be three shares that add up to 1"),
        (dict(size=0), "size must be"),
        (dict(crop=-1), "crop must be"),
    ],
)
def test_wrong_arguments_are_named(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FaceFolderDataset(str(write_folder(tmp_path, people(10))), **settings)


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder or zip file '.*nowhere'"):
        FaceFolderDataset(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no image in '.*empty.zip'"):
        FaceFolderDataset(str(write_zip(tmp_path / "empty.zip", {})))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match=r"'.*text.zip' is neither a folder nor a zip file"):
        FaceFolderDataset(str(tmp_path / "text.zip"))


def test_a_config_with_broken_data_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(write_folder(tmp_path, broken_files()))
    with pytest.raises(SystemExit) as stop, cli.user_errors():
        DATASETS.build(dict(type="FaceFolderDataset", data_root=root, fractions=(1, 0, 0)))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "c_0.jpg (unreadable)" in error


# --- CelebA --------------------------------------------------------------------------------------


def celeba(root: Path, layout: str) -> Path:
    """Six pictures in the official files, four to train with; their shades are 20, 40, ..."""
    files = {f"{k:06d}.jpg": encoded(20 * k, (178, 218)) for k in range(1, 7)}
    partition = "".join(f"{k:06d}.jpg {split}\n" for k, split in enumerate("000012", 1))
    root.mkdir()
    if layout == "official":
        (root / "Img").mkdir()
        inside = {f"img_align_celeba/{name}": data for name, data in files.items()}
        write_zip(root / "Img/img_align_celeba.zip", inside)
        write_folder(root, {"Eval/list_eval_partition.txt": partition.encode()})
    else:
        nested = "img_align_celeba/img_align_celeba" if layout == "nested" else "img_align_celeba"
        write_folder(root / nested, files)
        (root / "list_eval_partition.txt").write_text(partition)
    return root


@pytest.mark.parametrize("layout", ["official", "folder", "nested"])
def test_celeba_is_read_in_its_official_split(layout: str, tmp_path: Path) -> None:
    root = str(celeba(tmp_path / "celeba", layout))
    splits = {split: CelebADataset(root, split) for split in ("train", "val", "test")}
    assert [len(dataset) for dataset in splits.values()] == [4, 1, 1]
    item = splits["test"][0]
    assert item["inputs"].shape == (3, 64, 64)
    assert item["inputs"][0].float().mean().item() == pytest.approx(120, abs=4)


def test_celeba_crops_the_middle_148_pixels(tmp_path: Path) -> None:
    root = celeba(tmp_path / "celeba", "folder")
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[35:183, 15:163] = 200
    Image.fromarray(pixels).save(root / "img_align_celeba/000006.jpg", quality=100)
    assert CelebADataset(str(root), "test")[0]["inputs"].min() > 150


def test_celeba_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of list_eval_partition.txt, Eval/"):
        CelebADataset(str(tmp_path))
    root = celeba(tmp_path / "celeba", "folder")
    partition = root / "list_eval_partition.txt"
    partition.write_text(partition.read_text() + "000007.jpg 0\n")
    with pytest.raises(ValueError, match=r"1 of 5 images .* 000007.jpg \(missing\)"):
        CelebADataset(str(root))
    assert len(CelebADataset(str(root), "test")) == 1
    partition.write_text("000001.jpg 0\n000002.jpg train\n")
    with pytest.raises(ValueError, match=r"list_eval_partition.txt:2: expected .* got '000002.jpg train'"):
        CelebADataset(str(root))
    partition.write_text("000001.jpg 0\n")
    with pytest.raises(ValueError, match="no image in"):
        CelebADataset(str(root), "val")


# --- sets that are there -------------------------------------------------------------------------


def test_embedded_faces_need_no_files() -> None:
    splits = [LFWFacesDataset(split) for split in ("train", "val", "test")]
    assert [len(dataset) for dataset in splits] == [80, 10, 10]
    pictures = torch.stack([dataset[k]["inputs"] for dataset in splits for k in range(len(dataset))])
    assert pictures.shape == (100, 3, 64, 64)
    assert len({picture.numpy().tobytes() for picture in pictures}) == 100
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    with pytest.raises(ValueError, match="split must be one of"):
        LFWFacesDataset("all")


def test_celeba64_is_split_by_person_where_present() -> None:
    path = ROOT / "data/celeba64/images.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    val, test = (FaceFolderDataset(str(path), split) for split in ("val", "test"))
    assert len(val) + len(test) == pytest.approx(0.2 * 18_686, abs=4)
    persons = [{name.split("_")[0] for name in dataset.names} for dataset in (val, test)]
    assert not persons[0] & persons[1]
    assert val[0]["inputs"].shape == (3, 64, 64)
