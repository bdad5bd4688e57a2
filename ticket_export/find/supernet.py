"""A search that shrinks the network while it trains, SuperTickets-style.

Source: You et al. 2022 (arXiv 2207.03677) and its released code, from which this differs: whole channels are
pruned, not single weights, so that all that is pruned is cut out; and a choice may keep to any budget.
Between two events the network trains under a priced l1 penalty on the scales of its decision norms; an event
chooses channels by those scales, sets the others to zero, and cuts out what is dead, with the average of the
weights, the optimiser's state and the penalty. Live and averaged network compute the same before and after
every cut: that is checked.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup
from ticket_export.data.augment import Augment, normalise
from ticket_export.data.batches import SeedPath
from ticket_export.data.sources import Images
from ticket_export.errors import ShrinkError
from ticket_export.find.search_rules import Choose, SearchEvent, SearchResult, SearchRules
from ticket_export.find.search_state import Search, resume_search, save_search
from ticket_export.find.sliced_state import Standing
from ticket_export.find.structure import Structure
from ticket_export.find.supernet_events import (
    Decision,
    Outcome,
    decisions_of,
    hold_event,
    ranked_choice,
)
from ticket_export.train.average import Average
from ticket_export.train.checkpoint import fingerprint
from ticket_export.train.device import is_main_process
from ticket_export.train.loop import TrainResult, train
from ticket_export.train.penalty import PricedGammaL1
from ticket_export.train.progress import Event
from ticket_export.train.recalibrate import recalibrate_norms
from ticket_export.train.settings import TrainSettings
from ticket_export.train.state import state_copy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a search is asked for."""

    whole: nn.Module
    images: Images
    decisions: tuple[Decision, ...]
    augment: Augment
    settings: TrainSettings
    rules: SearchRules
    seed_path: SeedPath
    prices: Mapping[str, float]
    choose: Choose
    device: torch.device

    @property
    def batch_size(self) -> int:
        return min(self.settings.batch, len(self.images.train_y))

    @property
    def epoch_steps(self) -> int:
        return len(self.images.train_y) // self.batch_size

    @property
    def example_inputs(self) -> Tensor:
        x_NCHW = normalise(self.images.val_x[:2], self.augment.mean, self.augment.std).cpu()
        like = next(p for p in self.whole.parameters() if p.is_floating_point())
        return x_NCHW.to(like.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saving:
    folder: Path | None
    interval_s: float


def search(
    model: nn.Module,
    images: Images,
    *,
    groups: Sequence[ChannelGroup],
    decisions: Sequence[str],
    augment: Augment,
    settings: TrainSettings,
    rules: SearchRules,
    seed_path: SeedPath,
    prices: Mapping[str, float] | None = None,
    choose: Choose | None = None,
    device: torch.device | str = "cpu",
    checkpoint_folder: Path | None = None,
    checkpoint_interval_s: float = 10.0,
    on_event: Callable[[Event], None] | None = None,
) -> SearchResult:
    """Train a copy of `model` and cut it at every event; return what is left at the last one.

    On a CPU with as many threads the result is bit-equal from run to run, broken off anywhere or not.

    Args:
        model: the whole network with the weights to start from; it is not changed.
        images: training and validation images; test images are not touched.
        groups: the network's channel groups.
        decisions: names of the scales that channels are chosen by (`models.supernet.decision_norms`).
        augment: as of `train`.
        settings: as of `train`; `epochs` is the length of the search.
        rules: events and what becomes of channels.
        seed_path: as of `train`.
        prices: scale -> what one of its channels costs (`train.penalty.mean_prices`); None = all alike.
        choose: see `search_rules.Choose`; None ranks all channels (`supernet_events.ranked_choice`).
        device: where it trains; it is cut on the CPU.
        checkpoint_folder: an existing folder; a search that was broken off goes on from there.
        checkpoint_interval_s: least time between two checkpoints of a training.
        on_event: gets the trainings' progress events.

    Raises:
        ShrinkError: no decision norm, rules that do not fit the epochs, a choice that does not fit, or an
            event that leaves no path through the network.
        DivergedError: a cut changes what the live or the averaged network computes.
        TrainError: as of `train`, or the checkpoint is of another search.
        StoreError: a checkpoint cannot be written.
    """
    chosen = decisions_of(model, groups, decisions)
    whole = copy.deepcopy(model).cpu()
    asked = _Asked(
        whole=whole, images=images, decisions=chosen, augment=augment, settings=settings, rules=rules,
        seed_path=seed_path, prices=_prices(chosen, prices), choose=choose or ranked_choice(groups),
        device=torch.device(device),
    )  # fmt: skip
    return _found(
        asked, groups, _Saving(folder=checkpoint_folder, interval_s=checkpoint_interval_s), on_event
    )


def _found(
    asked: _Asked,
    groups: Sequence[ChannelGroup],
    saving: _Saving,
    on_event: Callable[[Event], None] | None,
) -> SearchResult:
    num_events = asked.rules.num_events(asked.settings.epochs)
    weights = state_copy(asked.whole)
    standing = Standing(
        structure=Structure.of_whole(asked.whole, groups),
        weights=weights,
        average=weights,
        optimizer={},
        zeroed={d.group: torch.zeros(len(d.places), dtype=torch.bool) for d in asked.decisions},
    )
    search = Search(standing=standing, identity=_identity(asked, weights))
    if saving.folder is not None:
        resume_search(search, saving.folder)
    for event in range(len(search.events), num_events):
        _advance(search, asked, event, saving, on_event)
        if saving.folder is not None and is_main_process():
            save_search(search, saving.folder)
            shutil.rmtree(_part_folder(saving.folder, event), ignore_errors=True)
    return _result(search, asked)


def _advance(
    search: Search,
    asked: _Asked,
    event: int,
    saving: _Saving,
    on_event: Callable[[Event], None] | None,
) -> None:
    """Train to the next event, and hold it."""
    standing = search.standing
    network = standing.structure.network(asked.whole, standing.weights)
    trained_macs = count_costs(network, asked.example_inputs).macs
    trained = _trained(network, standing, asked, event, saving, on_event)
    assert trained.average is not None  # one was asked for
    begun_s = time.perf_counter()
    target = asked.rules.target(event)
    outcome = hold_event(
        replace(
            standing,
            weights=trained.weights,
            average=trained.average,
            optimizer=trained.optimizer_state,
        ),
        asked.whole,
        asked.decisions,
        rules=asked.rules,
        choose=asked.choose,
        target=target,
        is_last=trained.num_epochs == asked.settings.epochs,
        example_inputs=asked.example_inputs,
    )
    search.standing = outcome.standing
    search.history += trained.history
    search.num_processes = trained.num_processes
    cut = outcome.standing.structure.network(asked.whole, outcome.standing.weights)
    costs = count_costs(cut, asked.example_inputs)
    search.events.append(
        SearchEvent(
            epoch=trained.num_epochs,
            target=target,
            **_kept_counts(outcome, asked.decisions),
            removed=outcome.removed,
            reactivated=outcome.reactivated,
            rel_error=outcome.rel_error,
            average_rel_error=outcome.average_rel_error,
            params=costs.params,
            macs=costs.macs,
            trained_macs=trained_macs,
            trained_images=asked.rules.event_epochs * asked.epoch_steps * asked.batch_size,
            train_seconds=trained.seconds,
            seconds=time.perf_counter() - begun_s,
        )
    )


def _trained(
    network: nn.Module,
    standing: Standing,
    asked: _Asked,
    event: int,
    saving: _Saving,
    on_event: Callable[[Event], None] | None,
) -> TrainResult:
    rules, first_epoch = asked.rules, event * asked.rules.event_epochs
    folder = None
    if saving.folder is not None:
        folder = _part_folder(saving.folder, event)
        folder.mkdir(exist_ok=True)
    penalty = PricedGammaL1(
        price_by_name={name: price for name, price in asked.prices.items() if name in standing.weights},
        limit=rules.gamma_l1,
        ramp_steps=round(rules.ramp_epochs * asked.epoch_steps),
        first_step=first_epoch * asked.epoch_steps,
    )
    return train(
        network,
        asked.images,
        augment=asked.augment,
        settings=asked.settings,
        seed_path=asked.seed_path,
        device=asked.device,
        start_epoch=first_epoch,
        stop_epoch=first_epoch + rules.event_epochs,
        penalties=[penalty] if rules.gamma_l1 > 0 else [],
        optimizer_state=standing.optimizer,
        average=Average(decay=rules.ema_decay, initial=standing.average),
        checkpoint_folder=folder,
        checkpoint_interval_s=saving.interval_s,
        on_event=on_event,
    )


def _result(search: Search, asked: _Asked) -> SearchResult:
    standing = search.standing
    network = standing.structure.network(asked.whole, standing.average).to(asked.device)
    recalibrate_norms(
        network,
        asked.images,
        augment=asked.augment,
        batch=asked.settings.batch,
        num_batches=asked.rules.norm_batches,
        seed_path=asked.seed_path,
    )
    return SearchResult(
        mask=standing.structure.mask,
        weights=state_copy(network),
        live_weights=dict(standing.weights),
        events=tuple(search.events),
        history=tuple(search.history),
        num_epochs=search.events[-1].epoch,
        seconds=sum(record["seconds"] for record in search.history),
        num_processes=search.num_processes,
    )


def _kept_counts(outcome: Outcome, decisions: Sequence[Decision]) -> dict[str, int]:
    widths = {decision: int(outcome.keep[decision.group].sum()) for decision in decisions}
    return {
        "kept_channels": sum(widths.values()),
        "kept_branches": sum(width > 0 for width in widths.values()),
        "kept_blocks": len({decision.block for decision, width in widths.items() if width > 0}),
        "zeroed": sum(int(zeroed_C.sum()) for zeroed_C in outcome.standing.zeroed.values()),
    }


def _prices(decisions: Sequence[Decision], prices: Mapping[str, float] | None) -> dict[str, float]:
    given = {decision.scale: 1.0 for decision in decisions} if prices is None else dict(prices)
    wrong = given.keys() ^ {decision.scale for decision in decisions}
    if wrong:
        raise ShrinkError(
            f"the prices and the decision norms differ in {', '.join(sorted(wrong)[:5])}",
            hint="give one price for each decision norm",
        )
    return given


def _identity(asked: _Asked, weights: Mapping[str, Tensor]) -> dict[str, object]:
    facts: dict[str, object] = {
        "rules": asdict(asked.rules),
        "settings": asdict(asked.settings),
        "augment": asdict(asked.augment),
        "seed_path": asked.seed_path,
        "prices": asked.prices,
        "weights": fingerprint(weights),
    }
    return dict(json.loads(json.dumps(facts)))


def _part_folder(folder: Path, event: int) -> Path:
    return folder / f"part-{event}"
