from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ticket_export.data.augment import Augment, Draws, augmented, draw, normalise
from ticket_export.data.batches import Batches
from ticket_export.errors import DataError

PLAIN = Augment(mean=(0.0,), std=(1.0,))


def numbered(num: int) -> Batches:
    x = torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1).expand(num, 1, 4, 5).contiguous()
    return Batches(x=x, y=torch.arange(num), batch=8, augment=PLAIN, seed_path=(0, "replicate", 1))


def test_batches_hold_each_image_once_with_its_label() -> None:
    batches = list(numbered(32).epoch(0))
    assert [len(y) for _, y in batches] == [8, 8, 8, 8]
    assert sorted(int(y) for _, ys in batches for y in ys) == list(range(32))
    for x, y in batches:
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), y)


def test_what_is_left_over_is_dropped_and_changes_with_the_epoch() -> None:
    batches = numbered(35)
    seen = [{int(y) for _, ys in batches.epoch(e) for y in ys} for e in range(5)]
    assert batches.num_batches == 4
    assert all(len(labels) == 32 for labels in seen)
    assert set.union(*seen) == set(range(35))


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    assert [len(y) for _, y in numbered(3).epoch(0)] == [3]


def test_the_order_depends_on_path_and_epoch_alone() -> None:
    def order(batches: Batches, epoch: int) -> list[int]:
        return [int(y) for _, ys in batches.epoch(epoch) for y in ys]

    first = numbered(32)
    assert order(first, 3) == order(numbered(32), 3)
    assert order(first, 3) != order(first, 4)
    other = Batches(x=first.x, y=first.y, batch=8, augment=PLAIN, seed_path=(0, "replicate", 2))
    assert order(first, 3) != order(other, 3)


def test_an_augmentation_never_shifts_the_order() -> None:
    plain = numbered(32)
    crops = Augment(mean=(0.0,), std=(1.0,), pad_crop=1, flip=True, cutout=2)
    other = Batches(x=plain.x, y=plain.y, batch=8, augment=crops, seed_path=plain.seed_path)
    assert torch.equal(torch.cat([y for _, y in plain.epoch(0)]), torch.cat([y for _, y in other.epoch(0)]))


def shard(rank: int, num_processes: int) -> Batches:
    whole = numbered(32)
    crops = Augment(mean=(0.0,), std=(1.0,), pad_crop=1)
    return Batches(
        x=whole.x,
        y=whole.y,
        batch=8,
        augment=crops,
        seed_path=whole.seed_path,
        shard=(rank, num_processes),
    )


def test_processes_share_the_very_batches_one_process_would_see() -> None:
    parts = zip(shard(0, 2).epoch(0), shard(1, 2).epoch(0), strict=True)
    for (x, y), ((x_0, y_0), (x_1, y_1)) in zip(shard(0, 1).epoch(0), parts, strict=True):
        assert torch.equal(y, torch.stack((y_0, y_1), dim=1).flatten())
        assert torch.equal(x, torch.stack((x_0, x_1), dim=1).flatten(0, 1))


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(DataError, match="8 images cannot be shared evenly by 3"):
        shard(0, 3)


def test_a_batch_of_no_images_is_refused() -> None:
    with pytest.raises(DataError, match="batch of 0"):
        Batches(x=torch.zeros(1), y=torch.zeros(1), batch=0, augment=PLAIN, seed_path=(0,))


def test_normalised_images_have_the_stated_scale() -> None:
    x_NCHW = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    y_NCHW = normalise(x_NCHW, (0.5, 0.1, 0.0), (0.25, 0.2, 1.0))
    assert torch.allclose(y_NCHW.flatten(), torch.tensor([-2.0, 0.5, 1.0]), atol=1e-6)


def test_wrong_means_and_kinds_are_refused() -> None:
    x_NCHW = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match="3 channels, mean has 1 numbers and std 3"):
        normalise(x_NCHW, (0.5,), (1.0, 1.0, 1.0))
    with pytest.raises(DataError, match=r"std is \[1.0, 0.0, 1.0\]"):
        normalise(x_NCHW, (0.5,) * 3, (1.0, 0.0, 1.0))
    with pytest.raises(DataError, match="float32"):
        normalise(x_NCHW.float(), (0.5,) * 3, (1.0,) * 3)


def images() -> Tensor:
    return torch.arange(1, 61, dtype=torch.uint8).view(2, 2, 3, 5)


def at(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


TWO = Augment(mean=(0.0, 0.0), std=(1 / 255, 1 / 255), pad_crop=2, cutout=2)


def only(**draws: Tensor) -> Draws:
    none: dict[str, Tensor | None] = {name: None for name in Draws.__slots__}
    return Draws(**(none | draws))


def test_a_crop_is_the_image_moved_with_zeros_following() -> None:
    x_NCHW = images()
    y_NCHW = augmented(x_NCHW, TWO, only(crop_row=at(2, 0), crop_column=at(2, 3)), slice(0, 2)).round()
    assert torch.equal(y_NCHW[0], x_NCHW[0].float())  # offset = pad: not moved
    assert torch.equal(y_NCHW[1, :, 2:, :4], x_NCHW[1, :, :1, 1:].float())  # two rows down, one column left
    assert not y_NCHW[1, :, :2].any()
    assert not y_NCHW[1, :, :, 4].any()


def test_a_flip_mirrors_the_chosen_images_alone() -> None:
    x_NCHW = images()
    y_NCHW = augmented(x_NCHW, TWO, only(flip=torch.tensor([False, True])), slice(0, 2)).round()
    assert torch.equal(y_NCHW[0], x_NCHW[0].float())
    assert torch.equal(y_NCHW[1], x_NCHW[1].flip(2).float())


def test_a_cutout_blanks_one_square_that_may_reach_over_the_border() -> None:
    x_NCHW = images()
    y_NCHW = augmented(x_NCHW, TWO, only(cut_row=at(1, 0), cut_column=at(2, 4)), slice(0, 2)).round()
    blank_NHW = (y_NCHW == 0).all(1)
    assert blank_NHW[0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert blank_NHW[1].nonzero().tolist() == [[0, 3], [0, 4]]


def turned(x_NCHW: Tensor, *degrees: float) -> Tensor:
    angle = torch.tensor([math.radians(each) for each in degrees])
    return augmented(x_NCHW, TWO, only(angle=angle), slice(0, len(degrees))).round()


def test_an_image_turns_around_its_middle_and_zeros_follow() -> None:
    x_NCHW = torch.arange(1, 51, dtype=torch.uint8).view(1, 2, 5, 5).repeat(2, 1, 1, 1)
    quarter, none = turned(x_NCHW, 90.0, 0.0)
    assert torch.equal(none, x_NCHW[1].float())
    assert torch.equal(quarter, x_NCHW[0].rot90(1, (1, 2)).float()) or torch.equal(
        quarter, x_NCHW[0].rot90(-1, (1, 2)).float()
    )
    corners = turned(x_NCHW[:1], 45.0)[0, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()


def test_proportions_stay_when_an_image_that_is_not_square_turns() -> None:
    x_NCHW = images()  # 3 rows, 5 columns
    assert torch.equal(turned(x_NCHW, 180.0, 180.0), x_NCHW.flip((2, 3)).float())
    (quarter, _) = turned(x_NCHW, 90.0, 0.0)
    assert not quarter[:, :, [0, -1]].any()  # what was above and below is now beside, and is narrower
    assert torch.equal(quarter[:, 1, 1:4].sort().values, x_NCHW[0, :, :, 2].float().sort().values)


def test_angles_reach_both_limits_and_no_further() -> None:
    turns = Augment(mean=(0.0,), std=(1.0,), rotation=20.0)
    draws = draw(turns, 2000, 4, 5, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
    assert draws.angle is not None
    degrees = draws.angle.rad2deg()
    assert 19.9 < float(degrees.max()) <= 20.0
    assert -20.0 <= float(degrees.min()) < -19.9
    assert abs(float(degrees.mean())) < 1.1  # four standard deviations of the mean


def test_rotation_shifts_no_other_augmentation() -> None:
    plain = Augment(mean=(0.0,), std=(1.0,), pad_crop=1, flip=True, cutout=2)
    turns = replace(plain, rotation=20.0)
    kept = [
        draw(each, 50, 4, 5, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
        for each in (plain, turns)
    ]
    for name in ("crop_row", "crop_column", "flip", "cut_row", "cut_column"):
        assert torch.equal(getattr(kept[0], name), getattr(kept[1], name))


def test_each_batch_takes_its_own_part_of_the_draws() -> None:
    x_NCHW = images()[:1]
    flips = only(flip=torch.tensor([False, True]))
    assert torch.equal(augmented(x_NCHW, TWO, flips, slice(0, 1)).round(), x_NCHW.float())
    assert torch.equal(augmented(x_NCHW, TWO, flips, slice(1, 2)).round(), x_NCHW.flip(3).float())


def test_crops_reach_every_offset_and_half_the_images_are_mirrored() -> None:
    x = torch.arange(20, dtype=torch.uint8).view(1, 1, 4, 5).repeat(2000, 1, 1, 1)
    crops = Augment(mean=(0.0,), std=(1 / 255,), pad_crop=1, flip=True)
    batches = Batches(x=x, y=torch.zeros(2000).long(), batch=2000, augment=crops, seed_path=(0,))
    ((x_NCHW, _),) = batches.epoch(0)
    kinds, counts = torch.unique(x_NCHW.round(), dim=0, return_counts=True)
    assert len(kinds) == 9 * 2
    # 2000 / 18 = 111 of each; four standard deviations are 41
    assert int(counts.min()) > 70
    assert int(counts.max()) < 152
