"""Random sparse tickets: an even share of every layer, and a training that empties it before the cut."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, Member, channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.data.augment import Augment
from ticket_export.data.sources import load_images
from ticket_export.errors import ShrinkError
from ticket_export.find.rst import dropped_elements, rst_mask
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.train.evaluate import evaluate
from ticket_export.train.loop import train
from ticket_export.train.penalty import GrowingL2
from ticket_export.train.settings import TrainSettings


class Net(nn.Module):
    """A stem, one residual block and a classifier with norms: [N, 1, 8, 8] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv1, self.norm1 = nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv3, self.norm3 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        stream = torch.relu(self.stem_norm(self.stem(x_NCHW)))
        stream = torch.relu(self.norm1(self.conv1(stream)))
        inner = torch.relu(self.norm2(self.conv2(stream)))
        stream = torch.relu(stream + self.norm3(self.conv3(inner)))
        return self.linear(stream.mean((2, 3)))


def network() -> tuple[nn.Module, list[ChannelGroup]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(), groups_of_net()


@cache
def groups_of_net() -> list[ChannelGroup]:
    return channel_groups(Net().eval(), torch.zeros(2, 1, 8, 8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def group(name: str, width: int, *tensors: str, pinned: str | None = None) -> ChannelGroup:
    rows = torch.arange(width).view(-1, 1)
    members = tuple(Member(tensor=tensor, axis=0, indices=rows, role="producer") for tensor in tensors)
    return ChannelGroup(name=name, width=width, members=members, pinned=pinned)


def kept(groups: list[ChannelGroup], drop_fraction: float = 0.5, **options: object) -> dict[str, list[int]]:
    weights = {
        "one": torch.tensor([[1.0, -4.0], [2.0, 2.0], [0.5, 0.0], [-3.0, 3.0]]),
        "two": torch.tensor([[0.0], [-9.0], [1.0], [0.0]]),
    }
    options = {"criterion": "l1"} | options
    mask = rst_mask(groups, weights, drop_fraction=drop_fraction, **options)  # type: ignore[arg-type]
    return {name: keep.nonzero().flatten().tolist() for name, keep in mask.keep_by_group.items()}


def test_l1_keeps_the_largest_rows_summed_over_all_layers_that_write_a_channel() -> None:
    assert kept([group("a", 4, "one")]) == {"a": [0, 3]}  # 5, 4, 0.5, 6
    assert kept([group("a", 4, "one", "two")]) == {"a": [1, 3]}  # 5, 13, 1.5, 6
    assert kept([group("a", 4, "two")], 0.75) == {"a": [1]}
    assert kept([group("a", 4, "two")], 0.25) == {"a": [0, 1, 2]}  # of equal ones the first


def test_inner_scope_and_pins_leave_groups_whole() -> None:
    groups = [
        group("inner", 4, "one"),
        group("stream", 4, "one", "two"),
        group("fixed", 3, "one", pinned="it"),
    ]
    assert kept(groups, scope="inner") == {"inner": [0, 3], "stream": [0, 1, 2, 3], "fixed": [0, 1, 2]}
    assert kept(groups)["fixed"] == [0, 1, 2]


def test_every_group_loses_the_same_share_rounded_down() -> None:
    model, groups = network()
    for drop_fraction, expected in ((0.5, (6, 8, 8)), (0.29, (9, 12, 12)), (0.95, (1, 1, 1))):
        mask = rst_mask(
            groups,
            model.state_dict(),
            drop_fraction=drop_fraction,
            criterion="random",
            generator=generator(),
        )
        widths = mask.kept_widths()
        assert (widths["stem"], widths["conv1"], widths["conv2"]) == expected
        assert widths["linear"] == 10


def test_shares_are_counted_exactly() -> None:
    wide = group("wide", 100, "none")
    mask = rst_mask([wide], {}, drop_fraction=0.29, criterion="random", generator=generator())
    assert mask.kept_widths() == {"wide": 71}  # 0.29 * 100 is 28.999... in floating point


def test_widths_are_rounded_up() -> None:
    wide = group("wide", 20, "none")
    options = {"drop_fraction": 0.5, "criterion": "random"}
    for round_to, width in ((1, 10), (4, 12), (8, 16), (16, 16), (32, 20)):
        mask = rst_mask([wide], {}, round_to=round_to, generator=generator(), **options)  # type: ignore[arg-type]
        assert mask.kept_widths() == {"wide": width}


def test_chance_is_drawn_from_the_generator_alone() -> None:
    model, groups = network()

    def drawn(seed: int) -> dict[str, list[bool]]:
        mask = rst_mask(
            groups, model.state_dict(), drop_fraction=0.5, criterion="random", generator=generator(seed)
        )
        return {name: keep.tolist() for name, keep in mask.keep_by_group.items()}

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(1)["conv1"] != drawn(1)["conv2"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"drop_fraction": 1.0}, r"drop_fraction is 1\.0"),
        ({"criterion": "l2"}, "criterion is 'l2'"),
        ({"criterion": "random"}, "'random' has no generator"),
        ({"round_to": 0}, "round_to is 0"),
        ({"scope": "layer"}, "scope is 'layer'"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        kept([group("a", 4, "one")], **options)  # type: ignore[arg-type]


def test_a_missing_weight_is_named() -> None:
    with pytest.raises(ShrinkError, match="'three', which is not among the 2"):
        kept([group("a", 4, "three")])


def test_dropped_elements_are_all_that_dropped_channels_own() -> None:
    model, groups = network()
    mask = rst_mask(groups, model.state_dict(), drop_fraction=0.5, criterion="l1")
    keep = dropped_elements(model, groups, mask)
    inner = mask.keep_by_group["conv2"]
    for name in ("conv2.bias", "norm2.weight", "norm2.bias"):
        assert torch.equal(keep[name], inner)
    stream = mask.keep_by_group["conv1"]
    expected = inner.view(-1, 1, 1, 1) & stream.view(1, -1, 1, 1)
    assert torch.equal(keep["conv2.weight"], expected.expand(16, 16, 3, 3))
    assert torch.equal(keep["linear.weight"], stream.expand(10, 16))
    assert "norm2.running_mean" not in keep
    assert "linear.bias" not in keep


def searched(penalties: list[GrowingL2]) -> nn.Module:
    model, _ = network()
    train(
        model,
        load_images("digits", None, holdout_fraction=0.1, seed=0),
        augment=Augment(mean=(0.3,), std=(0.38,)),
        settings=TrainSettings(epochs=8, batch=64, lr=0.05, momentum=0.9),
        seed_path=(0, "replicate", 0),
        penalties=penalties,
    )
    return model.eval()


def change_at_the_cut(model: nn.Module, groups: list[ChannelGroup], mask: Mask) -> tuple[float, float, float]:
    """Return accuracy before and after the cut, and the largest change of a logit over the largest logit."""
    images = load_images("digits", None, holdout_fraction=0.1, seed=0)
    small = small_from_mask(copy.deepcopy(model), groups, mask).eval()
    options = {"mean": (0.3,), "std": (0.38,)}
    before, after = (
        evaluate(net, images.val_x, images.val_y, **options)  # type: ignore[arg-type]
        for net in (model, small)
    )
    x_NCHW = (images.val_x.float() / 255 - 0.3) / 0.38
    with torch.no_grad():
        whole_NK, small_NK = model(x_NCHW), small(x_NCHW)
    return before, after, float((whole_NK - small_NK).abs().max() / whole_NK.abs().max())


@pytest.mark.parametrize("criterion", ["random", "l1"])
def test_a_growing_penalty_empties_the_channels_so_that_the_cut_changes_almost_nothing(
    criterion: str,
) -> None:
    model, groups = network()
    mask = rst_mask(
        groups,
        model.state_dict(),
        drop_fraction=0.5,
        criterion=criterion,
        generator=generator(),
    )
    keep = dropped_elements(model, groups, mask)
    plain = searched([])
    emptied = searched([GrowingL2(keep=keep, delta=0.02, interval=1, limit=1.0)])
    left = {name: emptied.get_parameter(name)[~held].norm() for name, held in keep.items()}
    assert max(left.values()) < 2e-3
    before, after, changed = change_at_the_cut(emptied, groups, mask)
    assert before > 0.9
    assert after == before
    assert changed < 1e-4
    plain_before, plain_after, plain_changed = change_at_the_cut(plain, groups, mask)
    assert plain_before > 0.9
    assert plain_after < plain_before - 0.2
    assert plain_changed > 0.2
