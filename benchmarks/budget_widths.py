"""Widths under a budget of latency beside MAC-budgeted and uniform ones at equal predicted latency.

    python benchmarks/budget_widths.py RECIPE --out benchmarks/results --machine NAME [--set KEY=VALUE ...]

The recipe names a trained dense network (`model.weights`), its data, and the runtime, precision and batch
that count; its latency table is made as `ticket-export profile` does, or found in --store. For each share of
dense latency the widths are chosen that keep the most importance (the score of `--score` over the trained
weights) by the table; then those that keep the most at the largest number of MACs that the table predicts to
be no slower, and the widest uniform ones that are no slower. All are timed beside dense in interleaved
rounds.

Uniform networks are few on a width grid, so their own latencies are budgets too: compared is what is equally
fast by the table.

Second part, free channels: tickets of magnitude pruning at several densities, refilled without a width grid,
before and after every group grew to the widest width of the same predicted latency, timed beside each other.
The folder receives `budget_widths_<network>_<runtime>_<precision>_b<batch>_<machine>_<yyyy-mm>.md`, `.json`
and `.svg`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from budgets.page import figure, page
from result_files import write_results
from torch import Tensor, nn

from ticket_export.channels.cost_models import counted_costs
from ticket_export.channels.mask import ElementMask, Mask
from ticket_export.channels.sites import layer_sites
from ticket_export.errors import ShrinkError
from ticket_export.find.control import scoped_groups, uniform_masks
from ticket_export.find.early_bird import gamma_scores
from ticket_export.find.imp import prunable_weights
from ticket_export.find.knapsack import kept_importance
from ticket_export.find.magnitude import magnitude_mask
from ticket_export.find.refill import channel_scores, mask_from_shares, remaining_shares
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.latency_table import LatencyTable
from ticket_export.measure.profile import Timing
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import speedup
from ticket_export.pipeline.budgets import Pricing
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.latency_costs import LatencyCosts
from ticket_export.pipeline.profiling import network_of_widths, network_opener
from ticket_export.pipeline.tables import profile
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.stages import Subject
from ticket_export.store.machine import machine_facts
from ticket_export.store.store import Store

LATENCY, MACS, UNIFORM = "latency", "MACs", "uniform"
BISECTIONS = 12  # of the MAC budget: to 1/4096 of dense
SAME = 1 + 1e-5  # the solver's tolerance, and shares rounded to six digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A latency as a share of another, with its 95 % interval."""

    share: float
    low: float
    high: float
    stable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One choice of widths.

    Attributes:
        by: what the widths were chosen by.
        asked: the share of dense latency that was asked for.
        kept_importance: geometric mean over the groups of the kept share of their scores.
        predicted: latency as a share of dense, by the table.
        mac_share: of dense.
        widths: group -> channels kept.
        measured: latency beside dense; None until it is timed.
    """

    by: str
    asked: float
    kept_importance: float
    predicted: float
    mac_share: float
    widths: Mapping[str, int]
    measured: Timed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A ticket before and after its free channels.

    Attributes:
        density: of its weights, before channels were refilled.
        channels_before, channels_after: kept, over the groups of the scope.
        importance_before, importance_after: kept importance.
        macs: after over before.
        predicted: latency after over before, by the table.
        measured: the same, timed in the same rounds.
        of_dense: latency after over dense, timed in the same rounds.
    """

    density: float
    channels_before: int
    channels_after: int
    importance_before: float
    importance_after: float
    macs: float
    predicted: float
    measured: Timed
    of_dense: Timed


class Network:
    """The trained dense network, its scores and its prices."""

    def __init__(self, context: Context, table: LatencyTable, score: str) -> None:
        self.context, self.table = context, table
        self.dense: nn.Module = context.fresh_network(0, Subject("dense")).eval()
        groups, inputs = context.groups, context.example_inputs
        find = context.recipe.find
        self.scope = "inner" if find.scope == "inner" else "coupled"
        chosen = {group.name for group in scoped_groups(groups, self.scope) if group.pinned is None}
        every = self.scores(ElementMask({}), score)
        self.by_group = {name: score_C for name, score_C in every.items() if name in chosen}
        sites = layer_sites(self.dense, inputs, groups)
        whole = {group.name: group.width for group in groups}
        macs = counted_costs(self.dense, inputs, sites, kind="mac_fraction", dense=whole)
        self.by_latency = Pricing(groups=groups, sites=sites, costs=LatencyCosts(table, sites))
        self.by_macs = Pricing(groups=groups, sites=sites, costs=macs)
        self.whole = whole

    def scores(self, elements: ElementMask, score: str) -> dict[str, Tensor]:
        """Return the scores of the channels of every free group."""
        if score == "gamma":
            return gamma_scores(self.dense, self.context.groups)
        return channel_scores(elements, self.dense.state_dict(), self.context.groups, score=score)

    def chosen(self, by: str, asked: float, widths: Mapping[str, int]) -> Chosen:
        """Return what is known of widths before they are timed."""
        return Chosen(
            by=by,
            asked=asked,
            kept_importance=kept_importance(self.by_group, widths),
            predicted=self.by_latency.share(widths),
            mac_share=self.by_macs.share(widths),
            widths=dict(widths),
        )

    def timed(self, widths_by_name: Mapping[str, Mapping[str, int]], folder: Path) -> dict[str, Any]:
        """Return measurements by name, all timed in the same rounds."""
        table, measure = self.table, self.context.recipe.measure
        names = ("runtime", "precision", "batch", "threads", "scope", "activations")
        opened = network_opener(
            self.context, Timing(**{name: getattr(table, name) for name in names}), folder
        )
        protocol = Protocol(
            rounds=measure.rounds, samples=measure.samples, threads=table.threads, scope=table.scope
        )
        with ExitStack() as stack:
            runners = {
                name: stack.enter_context(opened(_file_name(widths), self.cut(widths)))
                for name, widths in widths_by_name.items()
            }
            return dict(measure_interleaved(runners, batch=table.batch, protocol=protocol))

    def uniform(self) -> list[dict[str, int]]:
        """Return the widths of every multiplier, the narrowest first."""
        find = self.context.recipe.find
        masks = uniform_masks(self.context.groups, round_to=find.round_to, scope=self.scope)
        return [
            {name: width for name, width in mask.kept_widths().items() if name in self.by_group}
            for mask in masks
        ]

    def cut(self, widths: Mapping[str, int]) -> nn.Module:
        """Return the network of these widths; which channels stay takes no part in its latency."""
        return network_of_widths(self.dense, self.context.groups, {**self.whole, **widths})


def _file_name(widths: Mapping[str, int]) -> str:
    return "-".join(["widths", *map(str, widths.values())]) if widths else "dense"


def choices(network: Network, asked: float) -> list[Chosen]:
    """Return the widths by latency, and those by MACs and by one multiplier that are predicted no slower."""
    round_to = network.context.recipe.find.round_to
    best = network.by_latency.choose(network.by_group, share=asked, round_to=round_to)
    found = [network.chosen(LATENCY, asked, best.widths)]
    limit = found[0].predicted * SAME
    low, high, by_macs = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        try:
            widths = network.by_macs.choose(network.by_group, share=share, round_to=round_to).widths
        except ShrinkError:  # no network has so few
            low = share
            continue
        if network.by_latency.share(widths) <= limit:
            low, by_macs = share, widths
        else:
            high = share
    if by_macs is not None:
        found.append(network.chosen(MACS, asked, by_macs))
    fitting = [widths for widths in network.uniform() if network.by_latency.share(widths) <= limit]
    if fitting:
        found.append(network.chosen(UNIFORM, asked, fitting[-1]))
    return found


def with_uniform_shares(network: Network, shares: Sequence[float]) -> list[float]:
    """Return the shares, and between them those of uniform networks: on a width grid there are few.

    A budget that no uniform network comes near to would set it against networks that take longer.
    """
    uniform = [round(network.by_latency.share(widths), 6) for widths in network.uniform()]
    low, high = min(shares, default=1.0), max(shares, default=0.0)
    return sorted({*shares, *(share for share in uniform if low <= share <= high)})


def measured_choices(network: Network, shares: Sequence[float], folder: Path) -> list[Chosen]:
    """Return the choices at every share of dense latency, those of one share timed beside dense together."""
    found = []
    for asked in with_uniform_shares(network, shares):
        own = choices(network, asked)
        print(f"timing {len(own)} choices at {asked:g} of dense latency", flush=True)
        runs = network.timed({"dense": {}} | {one.by: one.widths for one in own}, folder)
        found += [replace(one, measured=_share(runs, "dense", one.by)) for one in own]
    return found


def _share(runs: Mapping[str, Any], other: str, name: str) -> Timed:
    ratio = speedup(runs[other], runs[name])
    stable = runs[other].stable and runs[name].stable
    return Timed(share=1 / ratio.ratio, low=1 / ratio.high, high=1 / ratio.low, stable=stable)


def filled_tickets(network: Network, densities: Sequence[float], folder: Path) -> list[Filled]:
    """Return tickets of magnitude pruning before and after their free channels, timed together."""
    found = []
    for density in densities:
        weights = network.dense.state_dict()
        names = prunable_weights(network.dense)
        elements = magnitude_mask({name: weights[name] for name in names}, keep_fraction=density)
        scores = {name: s for name, s in network.scores(elements, "l1").items() if name in network.by_group}
        shares = remaining_shares(elements, network.context.groups, scope=network.scope)
        ticket = mask_from_shares(shares, scores, network.context.groups)
        found.append(_filled(network, density, ticket, scores, folder))
    return found


def _filled(
    network: Network, density: float, ticket: Mask, scores: Mapping[str, Tensor], folder: Path
) -> Filled:
    free = network.by_latency.fill(scores, ticket, round_to=1)
    before = {name: width for name, width in ticket.kept_widths().items() if name in scores}
    after = {name: free.widths[name] for name in before}
    print(f"timing a ticket of {density:g} of the weights before and after its free channels", flush=True)
    runs = network.timed({"dense": {}, "before": before, "after": after}, folder)
    return Filled(
        density=density,
        channels_before=sum(before.values()),
        channels_after=sum(after.values()),
        importance_before=kept_importance(scores, before),
        importance_after=kept_importance(scores, after),
        macs=network.by_macs.share(after) / network.by_macs.share(before),
        predicted=network.by_latency.share(after) / network.by_latency.share(before),
        measured=_share(runs, "before", "after"),
        of_dense=_share(runs, "dense", "after"),
    )


def command(given: argparse.Namespace) -> str:
    """Return the words that measure this again."""
    sets = "".join(f" --set {value}" for value in given.overrides)
    shares, densities = (" ".join(map(str, values)) for values in (given.shares, given.densities))
    return (
        f"python benchmarks/budget_widths.py {given.recipe} --out FOLDER{sets} --score {given.score} "
        f"--shares {shares} --densities {densities} --device {given.device} --machine {given.machine}"
    )


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="its network, weights, data and protocol are taken")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder for page, numbers and figure")
    parser.add_argument("--store", type=Path, default=Path("out"), help="folder for the table and networks")
    parser.add_argument("--score", choices=["l1", "l2", "gamma"], default="l1")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--densities", type=float, nargs="*", default=[0.64, 0.512, 0.41, 0.328, 0.262])
    parser.add_argument("--device", default="cpu", help="where torch's runtimes run")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    return parser.parse_args(words)


def first_execution(recipe: Recipe) -> Recipe:
    """Return the recipe with its first runtime, precision and batch alone."""
    export = recipe.export.model_copy(update={"precisions": recipe.export.precisions[:1]})
    first = {"runtimes": recipe.measure.runtimes[:1], "batches": recipe.measure.batches[:1]}
    return recipe.model_copy(update={"export": export, "measure": recipe.measure.model_copy(update=first)})


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    given = arguments(words)
    recipe = first_execution(load_recipe(given.recipe, given.overrides))
    (stored,) = profile(recipe, given.store, device=given.device)
    folder = given.store / "budget_widths" / stored.key
    folder.mkdir(parents=True, exist_ok=True)
    with Context(recipe, Store(given.store), device=given.device, threads=1) as context:
        context.device  # sets torch's threads  # noqa: B018
        network = Network(context, stored.table, given.score)
        found = measured_choices(network, given.shares, folder)
        filled = filled_tickets(network, given.densities, folder)
    table = stored.table
    document: dict[str, Any] = {  # Any: JSON values
        "schema": 1,
        "command": command(given),
        "machine": machine_facts(),
        "network": recipe.model.builder,
        "has_weights": recipe.model.weights is not None,
        "score": given.score,
        "scope": network.scope,
        "round_to": recipe.find.round_to,
        **{name: getattr(table, name) for name in ("runtime", "precision", "batch", "threads")},
        "rounds": recipe.measure.rounds,
        "num_groups": len(network.by_group),
        "table_error": None if table.calibration is None else table.calibration.median_error,
        "choices": [asdict(one) for one in found],
        "filled": [asdict(one) for one in filled],
    }
    theme = "_".join(
        [
            "budget_widths",
            recipe.model.builder.rpartition(":")[2],
            table.runtime,
            table.precision,
            f"b{table.batch}",
        ]
    )
    path = write_results(given.out, theme, given.machine, page(document), document)
    drawing = path.with_suffix(".svg")
    drawing.write_text(figure(document), encoding="utf-8")
    path.write_text(page(document).replace("FIGURE", drawing.name), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
