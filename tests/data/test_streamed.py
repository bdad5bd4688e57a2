"""Streamed images: the same as those in memory, whatever the number of workers."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import nchw, noise, png, sets, write_folder
from torch import Tensor

from ticket_export.data.augment import Augment
from ticket_export.data.batches import Batches, in_order
from ticket_export.data.crops import RandomCrops
from ticket_export.data.reading import Reading
from ticket_export.data.rows import Labels, View, pixels_from_box
from ticket_export.data.sources import Images, load_images, stream_images
from ticket_export.data.streamed import StreamedImages
from ticket_export.errors import DataError, WorkerDiedError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EVERYTHING = Augment(mean=MEAN, std=STD, pad_crop=1, flip=True, cutout=2, rotation=20.0)
CROPPED = Augment(mean=MEAN, std=STD, random_resized_crop=0.1, flip=True)
MIXED = Reading(view=View(resize=8, crop=6))


def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", sets(num=20))


def mixed_folder(tmp_path: Path) -> Path:
    root = folder(tmp_path)
    for index, file in enumerate(sorted(root.rglob("*.png"))):
        file.write_bytes(png(noise(index, 9 + index % 7, 9 + index % 5)))
    return root


def both(root: Path, reading: Reading | None = None, num_workers: int = 2) -> tuple[Images, Images]:
    reading = reading or Reading()
    in_memory = load_images("folder", root, holdout_fraction=0.2, seed=3, reading=reading)
    streamed = stream_images(
        "folder", root, holdout_fraction=0.2, seed=3, reading=reading, num_workers=num_workers
    )
    return in_memory, streamed


def batches(images: Images, augment: Augment, shard: tuple[int, int] = (0, 1)) -> Batches:
    return Batches(
        x=images.train_x, y=images.train_y, batch=6, augment=augment, seed_path=(5, "r", 1), shard=shard
    )


def epochs(of: Batches, num: int = 2) -> list[tuple[Tensor, Tensor]]:
    return [pair for epoch in range(num) for pair in of.epoch(epoch)]


def assert_equal(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> None:
    assert len(left) == len(right) > 1
    for (x, y), (x_other, y_other) in zip(left, right, strict=True):
        assert torch.equal(x, x_other)
        assert torch.equal(y, y_other)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_batches_are_those_of_images_in_memory_bit_for_bit(tmp_path: Path, num_workers: int) -> None:
    in_memory, streamed = both(folder(tmp_path), num_workers=num_workers)
    assert streamed.image_shape == in_memory.image_shape == (3, 5, 6)
    assert streamed.num_classes == 2
    assert_equal(epochs(batches(in_memory, EVERYTHING)), epochs(batches(streamed, EVERYTHING)))


def test_images_of_any_size_come_to_one_streamed_or_not(tmp_path: Path) -> None:
    in_memory, streamed = both(mixed_folder(tmp_path), MIXED)
    assert in_memory.image_shape == (3, 6, 6)
    assert_equal(epochs(batches(in_memory, EVERYTHING)), epochs(batches(streamed, EVERYTHING)))


def test_parts_stand_for_the_tensors_of_images_in_memory(tmp_path: Path) -> None:
    in_memory, streamed = both(folder(tmp_path))
    for part in ("train_x", "val_x", "test_x"):
        tensor, lazy = getattr(in_memory, part), getattr(streamed, part)
        assert lazy.shape == tensor.shape
        assert len(lazy) == len(tensor)
        assert torch.equal(lazy[:3], tensor[:3])
        places = torch.tensor([2, 0, 2])
        assert torch.equal(lazy[places], tensor[places])
    assert torch.equal(streamed.test_y, in_memory.test_y)


def test_validation_and_test_images_come_in_order(tmp_path: Path) -> None:
    in_memory, streamed = both(folder(tmp_path))
    told = [
        list(in_order(images.test_x, images.test_y, mean=MEAN, std=STD, batch=8))
        for images in (in_memory, streamed)
    ]
    assert [len(y) for _, y in told[1]] == [8, 8, 4]
    assert_equal(*told)


def test_random_crops_depend_on_seed_epoch_and_image_but_not_on_workers(tmp_path: Path) -> None:
    _, alone = both(mixed_folder(tmp_path), MIXED, num_workers=0)
    _, with_workers = both(tmp_path / "images", MIXED, num_workers=2)
    first = epochs(batches(alone, CROPPED))
    assert first[0][0].shape == (6, 3, 6, 6)
    assert_equal(first, epochs(batches(with_workers, CROPPED)))
    other = replace(batches(alone, CROPPED), seed_path=(5, "r", 2))
    assert not torch.equal(first[0][0], epochs(other)[0][0])
    train_x = alone.train_x
    assert isinstance(train_x, StreamedImages)
    crops = [RandomCrops(min_area_fraction=0.1, seed_path=(5, "r", f"epoch-{e}")) for e in range(2)]
    assert not np.array_equal(train_x.pixels(0, crops[0]), train_x.pixels(0, crops[1]))


def test_processes_share_the_very_streamed_batches_one_process_would_see(tmp_path: Path) -> None:
    _, streamed = both(mixed_folder(tmp_path), MIXED, num_workers=0)
    whole = epochs(batches(streamed, CROPPED))
    shards = [epochs(batches(streamed, CROPPED, shard=(rank, 2))) for rank in range(2)]
    joined = [
        (torch.stack((x_0, x_1), dim=1).flatten(0, 1), torch.stack((y_0, y_1), dim=1).flatten())
        for (x_0, y_0), (x_1, y_1) in zip(*shards, strict=True)
    ]
    assert_equal(whole, joined)


def test_streaming_draws_no_number_that_dropout_draws(tmp_path: Path) -> None:
    _, streamed = both(folder(tmp_path))
    before = torch.default_generator.get_state()
    epochs(batches(streamed, EVERYTHING), num=1)
    assert torch.equal(before, torch.default_generator.get_state())


def test_a_damaged_image_is_named_though_a_worker_found_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    _, streamed = both(root)
    damaged = root / "test" / "dog" / "013.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(DataError) as told:
        list(in_order(streamed.test_x, streamed.test_y, mean=MEAN, std=STD, batch=8))
    assert str(told.value).splitlines()[0].startswith(f"image {damaged} cannot be read: ")
    assert told.value.hint == "remove or replace it"


def test_an_image_of_another_size_is_named_with_the_way_out(tmp_path: Path) -> None:
    root = folder(tmp_path)
    _, streamed = both(root)
    other = root / "test" / "cat" / "001.png"
    other.write_bytes(png(noise(0, 7, 9)))
    with pytest.raises(DataError, match=f"the first image is 6x5, {other} is 9x7") as told:
        list(in_order(streamed.test_x, streamed.test_y, mean=MEAN, std=STD, batch=8))
    assert "set data.resize" in str(told.value)


@dataclass(frozen=True)
class DeadlyRows:
    """Rows whose third image kills whoever reads it."""

    labels: Labels

    def where(self, index: int) -> str:
        return str(index)

    def encoded(self, index: int) -> Path:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return Path()


def test_a_killed_worker_is_told_with_a_next_step() -> None:
    rows = DeadlyRows(labels=np.zeros(3, np.int64))
    images = StreamedImages(
        rows=rows, chosen=np.array([2]), view=View(), image_shape=(3, 2, 2), num_workers=1
    )
    with pytest.raises(
        WorkerDiedError, match="a process that decodes images ended: DataLoader worker"
    ) as told:
        list(images.batches([torch.tensor([0])]))
    assert "--set data.workers=2" in str(told.value)


def test_sources_that_lie_in_memory_are_not_streamed() -> None:
    with pytest.raises(DataError, match="digits cannot be streamed"):
        stream_images("digits", None, holdout_fraction=0.1, seed=0)


def test_a_random_part_of_an_image_in_memory_is_refused(tmp_path: Path) -> None:
    in_memory, _ = both(folder(tmp_path))
    with pytest.raises(DataError, match="no random part of the original can be taken"):
        batches(in_memory, CROPPED)


# crops


def boxes(width: int, height: int, num: int = 400) -> list[tuple[int, int, int, int]]:
    crops = RandomCrops(min_area_fraction=0.08, seed_path=(0, "augment", "epoch-0"))
    return [crops.box(index, (width, height)) for index in range(num)]


def expected_area_quantiles(width: int, height: int) -> list[float]:
    """Return what areas and aspects drawn alike, less those that do not fit, come to without any rounding."""
    rng = np.random.default_rng(0)
    area = width * height * rng.uniform(0.08, 1, 40_000)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 40_000))
    fits = (np.sqrt(area * aspect) <= width) & (np.sqrt(area / aspect) <= height)
    return list(np.quantile(area[fits] / (width * height), [0.25, 0.5, 0.75]))


def test_random_parts_lie_in_the_image_and_hold_their_share_of_it() -> None:
    found = np.array(boxes(120, 90))
    left, top, width, height = found.T
    assert min(left.min(), top.min()) == 0
    assert (left + width).max() == 120
    assert (top + height).max() == 90
    area = width * height / (120 * 90)
    assert 0.07 < area.min() < 0.12
    assert 0.93 < area.max() <= 1.0
    # half a pixel of rounding on the short side
    aspect = width / height
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.42
    assert np.quantile(area, [0.25, 0.5, 0.75]) == pytest.approx(expected_area_quantiles(120, 90), abs=0.06)


def test_an_image_too_narrow_for_any_part_gives_its_middle() -> None:
    assert set(boxes(4, 400)) == {(0, 197, 4, 5)}
    assert set(boxes(400, 4)) == {(197, 0, 5, 4)}


def test_a_part_is_scaled_to_the_side() -> None:
    from PIL import Image

    left = np.zeros((8, 16, 3), np.uint8)
    left[:, :8] = 200
    image = Image.fromarray(left)
    assert (pixels_from_box(image, (0, 0, 8, 8), 4) == 200).all()
    assert (pixels_from_box(image, (8, 0, 8, 8), 4) == 0).all()
    assert pixels_from_box(image, (8, 0, 8, 8), 4).shape == (3, 4, 4)


def test_the_view_keeps_proportions_and_takes_the_middle(tmp_path: Path) -> None:
    held = sets(num=4)
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255  # the middle square
    held["train"] = ([wide] * 4, held["train"][1])
    images = load_images(
        "folder",
        write_folder(tmp_path / "set", held),
        holdout_fraction=0.5,
        seed=0,
        reading=Reading(view=View(resize=10)),
    )
    assert images.image_shape == (3, 10, 10)
    assert torch.equal(images.train_x[:], torch.full((2, 3, 10, 10), 255, dtype=torch.uint8))
    assert nchw([wide]).shape == (1, 3, 10, 40)
