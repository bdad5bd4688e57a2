from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from ticket_export.data.reading import Reading
from ticket_export.data.rows import View
from ticket_export.data.sources import Images, load_images
from ticket_export.errors import DataError

Parts = dict[str, npt.NDArray[np.generic]]


def arrays(num: int = 20, classes: int = 4) -> Parts:
    rng = np.random.default_rng(0)
    return {
        "train_x": rng.integers(0, 256, (num, 3, 5, 6), dtype=np.uint8),
        "train_y": np.arange(num) % classes,
        "test_x": rng.integers(0, 256, (num, 3, 5, 6), dtype=np.uint8),
        "test_y": np.arange(num) % classes,
    }


def load(path: Path, held: Parts | None = None, seed: int = 0, holdout_fraction: float = 0.25) -> Images:
    if held is not None:
        np.savez(path, **held)  # type: ignore[arg-type]  # numpy's stub mistakes the names for allow_pickle
    return load_images("arrays", path, holdout_fraction=holdout_fraction, seed=seed)


def test_digits_are_1797_scans_in_three_parts() -> None:
    images = load_images("digits", None, holdout_fraction=0.1, seed=0)
    assert (len(images.train_y), len(images.val_y), len(images.test_y)) == (1294, 144, 359)
    assert images.image_shape == (1, 8, 8)
    assert images.num_classes == 10
    assert images.train_x.dtype == torch.uint8
    assert int(images.train_x.max()) == 255
    assert set(images.test_y.tolist()) == set(range(10))


def test_the_seed_moves_the_validation_part_and_never_the_test_part() -> None:
    first, again, other = (load_images("digits", None, holdout_fraction=0.1, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.val_x, again.val_x)
    assert not torch.equal(first.val_x, other.val_x)
    assert torch.equal(first.test_x, other.test_x)


def test_no_training_image_is_lost_or_used_twice(tmp_path: Path) -> None:
    held = arrays()
    images = load(tmp_path / "a.npz", held)
    assert len(images.val_y) == 5
    parted = torch.cat((images.train_x, images.val_x)).flatten(1).tolist()
    assert sorted(parted) == sorted(held["train_x"].reshape(20, -1).tolist())
    assert torch.equal(images.test_x, torch.from_numpy(held["test_x"]))
    assert images.num_classes == 4
    assert images.image_shape == (3, 5, 6)
    assert images.train_y.dtype == torch.int64


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    held = arrays()
    held["train_x"][:] = held["train_y"].reshape(-1, 1, 1, 1)
    images = load(tmp_path / "a.npz", held)
    for x, y in ((images.train_x, images.train_y), (images.val_x, images.val_y)):
        assert torch.equal(x[:, 0, 0, 0].long(), y)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.99])
def test_a_holdout_that_leaves_a_part_empty_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError, match=f"{fraction} of 20"):
        load(tmp_path / "a.npz", arrays(), holdout_fraction=fraction)


def changed(key: str, value: object) -> Parts:
    return arrays() | {key: np.asarray(value)}


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (changed("train_x", np.zeros((20, 3, 5, 6), np.float32)), "train_x is float32"),
        (changed("test_x", np.zeros((20, 5, 6), np.uint8)), r"test_x is uint8 of shape \(20, 5, 6\)"),
        (changed("train_y", np.zeros(20)), "train_y is float64"),
        (changed("train_y", np.zeros((20, 1), int)), r"train_y is int64 of shape \(20, 1\)"),
        (changed("test_y", np.zeros(19, int)), "20 images in test_x, 19 labels"),
        (changed("train_y", [-1] + [0] * 19), "label -1 is negative"),
        (changed("test_y", [-3] + [0] * 19), "label -3 is negative"),
        (changed("train_y", [255, 1, 2, 3] + [0] * 16), "reach 255, but no training image is labelled 4"),
        (
            changed("train_y", [0] * 20) | {"test_y": np.zeros(20, int)},
            r"every training image is labelled 0[\s\S]*two classes",
        ),
        (changed("train_y", [1] * 10 + [2] * 10), "no training image is labelled 0"),
        (changed("test_y", [4] + [0] * 19), "test label 4 is out of range"),
        (changed("test_x", np.zeros((20, 3, 6, 6), np.uint8)), r"\(3, 5, 6\), test images \(3, 6, 6\)"),
        (
            changed("train_x", np.zeros((0, 3, 5, 6), np.uint8)) | {"train_y": np.zeros(0, int)},
            "train_x is empty",
        ),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused(tmp_path: Path, held: Parts, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load(tmp_path / "a.npz", held)


def test_a_missing_key_is_named_with_what_is_there(tmp_path: Path) -> None:
    held = arrays()
    del held["test_y"], held["test_x"]
    with pytest.raises(DataError, match=r"lacks test_x, test_y; it holds \[train_x, train_y\]"):
        load(tmp_path / "a.npz", held)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        load(tmp_path / "none.npz")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float, compress: bool) -> None:
    path = tmp_path / "a.npz"
    (np.savez_compressed if compress else np.savez)(path, **arrays())  # type: ignore[arg-type]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        load(path)


@pytest.mark.parametrize("compress", [False, True])
def test_flipped_bytes_are_noticed(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "a.npz"
    (np.savez_compressed if compress else np.savez)(path, **arrays())  # type: ignore[arg-type]
    content = bytearray(path.read_bytes())
    content[600:640] = bytes(value ^ 0xFF for value in content[600:640])
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        load(path)


def test_pickled_arrays_and_other_files_are_told_apart_from_damage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.npz holds Python objects, which are never run") as told:
        load(tmp_path / "a.npz", changed("train_y", np.array([{}] * 20, dtype=object)))
    assert "allow_pickle" not in str(told.value)
    (tmp_path / "b.npz").write_text("hello", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.npz is not an \.npz file") as told:
        load(tmp_path / "b.npz")
    assert "numpy.savez" in str(told.value)


def test_a_folder_where_a_file_should_be_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder, not a file"):
        load(tmp_path)


def test_a_single_array_is_not_a_data_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match="holds one array"):
        load(tmp_path / "a.npy")


def test_unknown_sources_and_missing_paths_are_refused() -> None:
    with pytest.raises(DataError, match="'imagenet'"):
        load_images("imagenet", None, holdout_fraction=0.1, seed=0)
    with pytest.raises(DataError, match="folder has no path"):
        load_images("folder", None, holdout_fraction=0.1, seed=0)


def write_image(path: Path, level: int, *, mode: str = "L", size: tuple[int, int] = (6, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, 0, 0)).save(path)


def image_folder(root: Path, *, mode: str = "L") -> Path:
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for index in range(4):
                write_image(root / part / name / f"{index}.png", 10 * label + index, mode=mode)
    (root / "train" / "cat" / ".hidden.png").touch()
    return root


def load_folder(root: Path) -> Images:
    return load_images("folder", root, holdout_fraction=0.25, seed=0)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_class_folders_become_labelled_images(tmp_path: Path, mode: str, channels: int) -> None:
    images = load_folder(image_folder(tmp_path, mode=mode))
    assert images.image_shape == (channels, 5, 6)
    assert images.test_y.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert images.test_x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert (len(images.train_y), len(images.val_y)) == (6, 2)


def test_images_of_mixed_size_name_both_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    write_image(root / "train" / "dog" / "x.png", 0, size=(7, 5))
    with pytest.raises(DataError, match=r"cat.0\.png is 6x5, .*dog.x\.png is 7x5"):
        load_folder(root)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "test" / "cat" / "1.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match=r"test.cat.1\.png cannot be read"):
        load_folder(root)
    whole = (root / "test" / "cat" / "2.png").read_bytes()
    (root / "test" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"test.cat.1\.png cannot be read"):
        load_folder(root)


def test_folders_without_their_parts_or_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder train"):
        load_folder(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    with pytest.raises(DataError, match="train holds no images"):
        load_folder(tmp_path)
    root = image_folder(tmp_path)
    (root / "train" / "zebra").mkdir()
    with pytest.raises(DataError, match=r"train.zebra holds no images"):
        load_folder(root)
    (root / "train" / "zebra").rmdir()
    write_image(root / "test" / "bird" / "0.png", 0)
    with pytest.raises(DataError, match="'bird' has no folder"):
        load_folder(root)


def test_checking_files_loads_no_torch() -> None:
    code = "import ticket_export.data.files, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_limit_keeps_the_first_of_the_training_images_and_all_that_validate(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())  # type: ignore[arg-type]
    whole, some = (
        load_images("arrays", path, holdout_fraction=0.25, seed=0, train_limit=limit) for limit in (0, 6)
    )
    assert torch.equal(some.train_x, whole.train_x[:6])
    assert torch.equal(some.train_y, whole.train_y[:6])
    assert torch.equal(some.val_x[:], whole.val_x[:])
    assert some.num_classes == whole.num_classes
    with pytest.raises(DataError, match="16 images should train, but 15 of 20 do not validate") as told:
        load_images("arrays", path, holdout_fraction=0.25, seed=0, train_limit=16)
    assert "data.train_limit" in str(told.value)


def test_folders_may_have_other_names_and_folders_below_them(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "test").rename(root / "val")
    with pytest.raises(DataError, match="has no folder test") as told:
        load_folder(root)
    assert "data.test_split" in str(told.value)
    below = root / "train" / "cat" / "images"
    below.mkdir()
    (root / "train" / "cat" / "3.png").rename(below / "3.png")
    reading = Reading(splits=("train", "val"))
    images = load_images("folder", root, holdout_fraction=0.25, seed=0, reading=reading)
    assert images.test_x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    seen = torch.cat((images.train_x[:], images.val_x[:]))[:, 0, 0, 0]
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 10, 11, 12, 13]


def test_grey_images_are_brought_to_one_size_in_one_channel(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    write_image(root / "train" / "dog" / "x.png", 200, size=(17, 9))
    reading = Reading(view=View(resize=4))
    images = load_images("folder", root, holdout_fraction=0.25, seed=0, reading=reading)
    assert images.image_shape == (1, 4, 4)
    assert 200 in torch.cat((images.train_x[:], images.val_x[:])).unique()


@pytest.mark.data
def test_cifar10_is_read_whole(data_folder: Path) -> None:
    images = load_images("arrays", data_folder / "cifar10.npz", holdout_fraction=0.1, seed=0)
    assert (len(images.train_y), len(images.val_y), len(images.test_y)) == (45_000, 5_000, 10_000)
    assert images.image_shape == (3, 32, 32)
    assert images.num_classes == 10
