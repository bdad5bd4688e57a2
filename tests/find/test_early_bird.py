"""Early-Bird: masks from norm scales, and when they have settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images, load_images
from ticket_export.errors import ShrinkError, TrainError
from ticket_export.find.early_bird import EarlyBird, gamma_mask, gamma_scores, require_norms
from ticket_export.models.load import build
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.train.loop import TrainResult, train
from ticket_export.train.penalty import GammaL1, norm_scales
from ticket_export.train.progress import Event
from ticket_export.train.settings import TrainSettings


class Net(nn.Module):
    """An inner layer with a norm, one without, and a stream of two writers with a norm each: [N, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer, self.outer_norm = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.bare = nn.Conv2d(4, 5, 1)
        self.prelu = nn.PReLU(5)
        self.linear = nn.Linear(5, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        stream = torch.relu(self.stem_norm(self.stem(x_NCHW)))
        inner = torch.relu(self.inner_norm(self.inner(stream)))
        stream = torch.relu(stream + self.outer_norm(self.outer(inner)))
        return self.linear(self.prelu(self.bare(stream)).mean((2, 3)))


STEM = (0.1, 0.9, 0.5, 0.3)
OUTER = (0.3, 0.1, -0.5, 0.2)  # means of |gamma| on the stream: 0.2, 0.5, 0.5, 0.25
INNER = (0.05, -0.8, 0.15, 0.7, 0.6, 0.22)


def network() -> tuple[Net, list[ChannelGroup]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    with torch.no_grad():
        for norm, gammas in ((model.stem_norm, STEM), (model.outer_norm, OUTER), (model.inner_norm, INNER)):
            norm.weight.copy_(torch.tensor(gammas))
    return model, groups_of_net()


@cache
def groups_of_net() -> list[ChannelGroup]:
    return channel_groups(Net().eval(), torch.zeros(2, 1, 8, 8))


def kept(drop_fraction: float, **options: object) -> dict[str, list[int]]:
    model, groups = network()
    mask = gamma_mask(model, groups, drop_fraction=drop_fraction, **options)  # type: ignore[arg-type]
    return {name: keep.nonzero().flatten().tolist() for name, keep in mask.keep_by_group.items()}


def test_a_channels_score_is_its_mean_scale_over_the_groups_norms_and_nothing_else() -> None:
    scores = gamma_scores(*network())
    assert scores.keys() == {"stem", "inner"}  # a PReLU's weight is a vector too, and no norm's
    assert scores["stem"].tolist() == pytest.approx([0.2, 0.5, 0.5, 0.25])
    assert scores["inner"].tolist() == pytest.approx([0.05, 0.8, 0.15, 0.7, 0.6, 0.22])


def test_scores_after_a_flatten_are_means_over_all_that_a_channel_owns() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    groups = channel_groups(model.eval(), torch.zeros(2, 1, 2, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(8.0))
    assert gamma_scores(model, groups)["0"].tolist() == [1.5, 5.5]


def test_the_lowest_channels_of_the_whole_network_go_and_those_without_a_norm_stay() -> None:
    # ten ranked channels, four go: 0.05, 0.15 and 0.22 of inner, 0.2 of the stream
    assert kept(0.4) == {
        "stem": [1, 2, 3],
        "inner": [1, 3, 4],
        "bare": [0, 1, 2, 3, 4],
        "linear": list(range(10)),
    }


def test_inner_scope_ranks_blocks_alone() -> None:
    found = kept(0.5, scope="inner")
    assert found["stem"] == [0, 1, 2, 3]
    assert found["inner"] == [1, 3, 4]


def test_fractions_are_counted_exactly() -> None:
    assert len(kept(0.3)["inner"]) + len(kept(0.3)["stem"]) == 7  # 0.3 * 10 is 3 and not 2.999...


def test_a_group_keeps_its_best_channel_when_all_rank_low() -> None:
    model, groups = network()
    with torch.no_grad():
        model.inner_norm.weight.mul_(1e-3)
    mask = gamma_mask(model, groups, drop_fraction=0.6)
    assert mask.keep_by_group["inner"].nonzero().flatten().tolist() == [1]
    assert mask.keep_by_group["stem"].all()


def test_widths_are_rounded_up_with_the_next_best_channels() -> None:
    assert kept(0.4, round_to=2)["stem"] == [0, 1, 2, 3]
    assert kept(0.4, round_to=4)["inner"] == [1, 3, 4, 5]
    assert kept(0.4, round_to=16)["inner"] == list(range(6))


def test_the_cut_network_computes() -> None:
    model, groups = network()
    small = small_from_mask(model, groups, gamma_mask(model, groups, drop_fraction=0.4))
    assert small.stem.weight.shape[0] == 3
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_network_without_norms_is_refused_by_name() -> None:
    model = build("zoo:conv2", num_classes=10, image_shape=(1, 8, 8))
    groups = channel_groups(model.eval(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(ShrinkError, match="Early-Bird without norms: ConvNet"):
        require_norms(model, groups)
    with pytest.raises(ShrinkError, match="Early-Bird without norms: ConvNet"):
        EarlyBird(model, groups, drop_fraction=0.5)
    require_norms(*network())


def test_norms_on_streams_alone_leave_inner_scope_nothing() -> None:
    model, groups = network()
    streams = [group for group in groups if group.name != "inner"]
    with pytest.raises(ShrinkError, match="no group that scope inner may shrink has a norm in Net"):
        gamma_mask(model, streams, drop_fraction=0.5, scope="inner")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"drop_fraction": 0.0}, r"drop_fraction is 0\.0"),
        ({"drop_fraction": 1.0}, r"drop_fraction is 1\.0"),
        ({"drop_fraction": 0.5, "scope": "layer"}, "scope is 'layer'"),
        ({"drop_fraction": 0.5, "window": 1}, "window of 1"),
        ({}, "drop_fraction is None and choose is None"),
        ({"drop_fraction": 0.5, "max_distance": -0.1}, r"max_distance of -0\.1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ShrinkError, match=text):
        EarlyBird(*network(), **options)  # type: ignore[arg-type]


# |gamma| of ten channels after eight epochs of a training under the l1 penalty, in thousandths
RECORDED = (
    (912, 455, 610, 388, 702, 540, 333, 821, 297, 466),
    (860, 401, 655, 420, 633, 512, 390, 790, 340, 380),
    (811, 352, 660, 431, 590, 420, 402, 742, 351, 300),
    (790, 301, 671, 440, 561, 433, 380, 720, 330, 244),
    (771, 266, 690, 452, 540, 440, 351, 701, 302, 201),
    (760, 240, 699, 461, 533, 444, 330, 688, 281, 180),
    (752, 221, 703, 466, 528, 447, 312, 680, 266, 166),
    (749, 210, 706, 470, 525, 449, 301, 676, 255, 155),
)


def masks(drop_fraction: float) -> list[Tensor]:
    """What a global cut would keep of the recorded scales."""
    num_dropped = round(10 * drop_fraction)
    return [torch.tensor([sorted(row).index(gamma) >= num_dropped for gamma in row]) for row in RECORDED]


def watcher(**options: float) -> EarlyBird:
    return EarlyBird(*network(), **({"drop_fraction": 0.5} | options))  # type: ignore[arg-type]


def epochs_until_found(bird: EarlyBird, noted: Sequence[Tensor]) -> int | None:
    return next((epoch for epoch, keep_C in enumerate(noted) if bird.note(epoch, keep_C)), None)


def test_masks_that_a_budget_chooses_are_compared_in_place_of_those_of_a_share() -> None:
    model, groups = network()
    asked: list[dict[str, list[float]]] = []

    def choose(score_by_group: Mapping[str, Tensor]) -> Mask:
        asked.append({name: score_C.tolist() for name, score_C in score_by_group.items()})
        num_kept = len(asked)  # one channel more in every group each time
        return Mask({name: torch.arange(len(score_C)) < num_kept for name, score_C in score_by_group.items()})

    bird = EarlyBird(model, groups, choose=choose, window=2, max_distance=0.0)
    assert not bird.after_epoch(0, model)
    assert not bird.after_epoch(1, model)
    scores = gamma_scores(model, groups)
    assert asked[0] == {name: scores[name].tolist() for name in asked[0]}
    num_channels = sum(len(score) for score in asked[0].values())
    assert bird.distances[1]["distances"] == [pytest.approx(len(asked[0]) / num_channels)]


def test_recorded_scales_settle_at_the_epoch_a_reader_can_count() -> None:
    sets = [set(keep_C.nonzero().flatten().tolist()) for keep_C in masks(0.5)]
    assert sets == [
        {0, 2, 4, 5, 7},
        {0, 2, 4, 5, 7},
        {0, 2, 3, 4, 7},
        {0, 2, 3, 4, 7},
        {0, 2, 3, 4, 7},
        {0, 2, 3, 4, 7},
        {0, 2, 3, 4, 7},
        {0, 2, 3, 4, 7},
    ]
    bird = watcher()
    assert epochs_until_found(bird, masks(0.5)) == 6  # the first whose four older masks are all its own
    assert bird.found_epoch == 6
    assert bird.distances[2] == {"epoch": 2, "distances": pytest.approx([0.2, 0.2])}
    assert bird.distances[5]["distances"] == pytest.approx([0.2, 0, 0, 0])
    assert bird.distances[6]["distances"] == [0, 0, 0, 0]


def test_a_larger_distance_and_a_smaller_window_find_earlier() -> None:
    assert epochs_until_found(watcher(max_distance=0.2), masks(0.5)) == 4  # never before the window is full
    assert epochs_until_found(watcher(window=2), masks(0.5)) == 1
    assert epochs_until_found(watcher(window=3), masks(0.5)) == 4
    assert epochs_until_found(watcher(window=9), masks(0.5)) is None


def test_a_distance_at_the_limit_is_within_it() -> None:
    first, other = torch.ones(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)
    other[3] = False
    assert epochs_until_found(watcher(window=2), [first, other]) == 1
    assert epochs_until_found(watcher(window=2, max_distance=0.09), [first, other]) is None


def test_the_state_brings_masks_and_distances_back_and_empty_ones_too() -> None:
    for num_noted in (0, 1, 3, 7):
        bird, again = watcher(), watcher()
        for epoch, keep_C in enumerate(masks(0.5)[:num_noted]):
            bird.note(epoch, keep_C)
        again.load(bird.state())
        assert again.distances == bird.distances
        assert again.found_epoch == bird.found_epoch
        last = masks(0.5)[7]
        assert again.note(7, last) == bird.note(7, last)
        assert again.distances == bird.distances


@cache
def digits() -> Images:
    whole = load_images("digits", None, holdout_fraction=0.1, seed=0)
    return replace(whole, train_x=whole.train_x[:320], train_y=whole.train_y[:320])


def search(bird: EarlyBird, model: nn.Module, **options: object) -> TrainResult:
    return train(
        model,
        digits(),
        augment=Augment(mean=(0.3,), std=(0.38,)),
        settings=TrainSettings(epochs=12, batch=32, lr=0.05, momentum=0.9, weight_decay=1e-4),
        seed_path=(0, "replicate", 0),
        penalties=[GammaL1(names=norm_scales(model), coefficient=1e-3)],
        observer=bird,
        **options,  # type: ignore[arg-type]
    )


def test_a_search_ends_early_and_resumes_bit_equal(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    model, groups = network()
    whole_bird = EarlyBird(model, groups, drop_fraction=0.4, window=3)
    whole = search(whole_bird, model)
    assert whole.stopped_epoch is not None
    assert whole.stopped_epoch < 12
    assert whole_bird.found_epoch == whole.stopped_epoch - 1
    assert [record["epoch"] for record in whole_bird.distances] == list(range(whole.stopped_epoch))

    for epoch in range(2, whole.stopped_epoch + 1):

        def stop(event: Event, epoch: int = epoch) -> None:
            if event["epoch"] == epoch:
                raise KilledError

        model, groups = network()
        bird = EarlyBird(model, groups, drop_fraction=0.4, window=3)
        with pytest.raises(KilledError):
            search(bird, model, checkpoint_folder=tmp_path, checkpoint_interval_s=0, on_event=stop)
    model, groups = network()
    bird = EarlyBird(model, groups, drop_fraction=0.4, window=3)
    resumed = search(bird, model, checkpoint_folder=tmp_path)
    assert resumed.stopped_epoch == whole.stopped_epoch
    assert bird.distances == whole_bird.distances
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


def test_a_search_for_other_channels_does_not_take_the_checkpoint(tmp_path: Path) -> None:
    model, groups = network()
    search(
        EarlyBird(model, groups, drop_fraction=0.4, window=3),
        model,
        checkpoint_folder=tmp_path,
        checkpoint_interval_s=0,
    )
    model, groups = network()
    with pytest.raises(TrainError, match=r"observer = .*0\.4.* not .*0\.5"):
        search(EarlyBird(model, groups, drop_fraction=0.5, window=3), model, checkpoint_folder=tmp_path)
