"""How well a table of layer latencies predicts whole networks of any widths, on this machine.

    python benchmarks/latency_table.py RECIPE --out benchmarks/results --machine NAME [--set KEY=VALUE ...]

Makes the table of the recipe's first runtime, precision and batch as `ticket-export profile` does, then draws
networks whose channel groups each have a random width of the table's grid (of the branches that may go, a
quarter is gone), none of which the table has seen, and times each beside dense in interleaved rounds. Table,
files and finished chunks stay in --store: what is there is not measured again. The folder receives
`latency_table_<network>_<runtime>_<precision>_b<batch>_<machine>_<yyyy-mm>.md`, `.json` and `.svg`.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_files import write_results
from tabulate import tabulate

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.sites import layer_sites
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.latency_table import LatencyTable
from ticket_export.measure.layer_kind import table_widths
from ticket_export.measure.profile import Timing, calm_seconds
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import speedup
from ticket_export.measure.staircase import staircase
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.profiling import layers_seconds, network_of_widths, network_opener
from ticket_export.pipeline.tables import StoredTable, profile
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.seeds import stream
from ticket_export.stages import Subject
from ticket_export.store.machine import machine_facts
from ticket_export.store.store import Store

CHUNK = 8  # networks that are timed beside one dense one
GONE = 0.25  # of the branches that may go
DENSE = "dense"
SEED = 1  # the calibration's networks are drawn from the recipe's seed and another stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One network that the table has not seen.

    Attributes:
        name: of the network.
        predicted_s, measured_s: of one inference.
        predicted_share: of dense, both by the table.
        share, share_low, share_high: of dense, measured in the same rounds, with the 95 % interval.
        stable: no timing gave a reason to distrust it.
    """

    name: str
    predicted_s: float
    measured_s: float
    predicted_share: float
    share: float
    share_low: float
    share_high: float
    stable: bool

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted_s / self.measured_s - 1


def drawn(groups: Sequence[ChannelGroup], count: int) -> dict[str, dict[str, int]]:
    """Return networks of independent random widths on the table's grid, by name."""
    found = {}
    for index in range(count):
        generator = stream(SEED, "latency-table", "held-out", index)
        widths = {}
        for group in groups:
            grid = table_widths(group.width)
            place, is_gone = torch.rand(2, generator=generator).tolist()
            widths[group.name] = grid[int(place * len(grid))] if group.pinned is None else group.width
            if group.branch is not None and group.pinned is None and is_gone < GONE:
                widths[group.name] = 0
        found[f"held-out-{index}"] = widths
    return found


def held_out(given: argparse.Namespace, recipe: Recipe, stored: StoredTable) -> list[Held]:
    """Return every held-out network, predicted and measured; finished chunks are read from the store."""
    table = stored.table
    kept = given.store / "latency_table" / stored.key
    kept.mkdir(parents=True, exist_ok=True)
    with Context(recipe, Store(given.store), device=given.device, threads=1) as context:
        context.device  # sets torch's threads  # noqa: B018
        network = context.fresh_network(0, Subject("dense")).eval()
        sites = layer_sites(network, context.example_inputs, context.groups)
        whole = {group.name: group.width for group in context.groups}
        widths = {DENSE: whole} | drawn(context.groups, given.networks)
        predicted_s = {
            name: table.network_seconds(layers_seconds(table, sites, each)) for name, each in widths.items()
        }
        opened = network_opener(context, _timing(table), kept)
        names = [name for name in widths if name != DENSE]
        found = []
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            path = kept / f"held-out-{start}-{len(chunk)}-{given.rounds}-{given.block_s}.json"
            if not path.exists():
                print(f"timing {chunk[0]} to {chunk[-1]} beside dense", flush=True)
                with ExitStack() as stack:
                    runners = {
                        name: stack.enter_context(
                            opened(name, network_of_widths(network, context.groups, widths[name]))
                        )
                        for name in (DENSE, *chunk)
                    }
                    partial = path.with_suffix(".partial")
                    partial.write_text(json.dumps(_timed(given, table, runners)), encoding="utf-8")
                    partial.replace(path)
            timed = json.loads(path.read_text(encoding="utf-8"))
            found += [_held(name, predicted_s, timed[name]) for name in chunk]
    return found


def _timing(table: LatencyTable) -> Timing:
    names = ("runtime", "precision", "batch", "threads", "scope", "activations")
    return Timing(**{name: getattr(table, name) for name in names})


def _timed(given: argparse.Namespace, table: LatencyTable, runners: Mapping[str, Any]) -> dict[str, Any]:
    """Time a chunk in the same rounds and return what is kept of each network."""
    protocol = Protocol(
        rounds=given.rounds, block_s=given.block_s, threads=table.threads, scope=table.scope, seed=SEED
    )
    measured = measure_interleaved(runners, batch=table.batch, protocol=protocol)
    kept = {}
    for name, one in measured.items():
        gain = speedup(measured[DENSE], one)
        kept[name] = {
            "measured_s": calm_seconds(one),
            "share": 1 / gain.ratio,
            "share_low": 1 / gain.high,
            "share_high": 1 / gain.low,
            "stable": one.stable,
            "reasons": list(one.reasons),
        }
    return kept


def _held(name: str, predicted_s: Mapping[str, float], timed: Mapping[str, Any]) -> Held:
    return Held(
        name=name,
        predicted_s=predicted_s[name],
        predicted_share=predicted_s[name] / predicted_s[DENSE],
        **{field: timed[field] for field in ("measured_s", "share", "share_low", "share_high", "stable")},
    )


def error_sentence(found: Sequence[Held]) -> str:
    """Return the median, the 90 % and the largest error of the latencies, and those of the shares."""
    errors = np.abs([one.error for one in found])
    points = np.abs([100 * (one.predicted_share - one.share) for one in found])
    middle, most, largest = (100 * np.quantile(errors, share) for share in (0.5, 0.9, 1.0))
    middle_points, most_points, largest_points = (np.quantile(points, share) for share in (0.5, 0.9, 1.0))
    return (
        f"Predicted latency errs by {middle:.1f} % (median), {most:.1f} % (90 % of the networks), "
        f"{largest:.1f} % (largest); its share of dense by {middle_points:.1f}, {most_points:.1f} and "
        f"{largest_points:.1f} points; n = {len(found)} networks"
    )


def figure(table: LatencyTable, found: Sequence[Held]) -> str:
    """Return as SVG predicted against measured latency, and the staircases of the three slowest layers."""
    with matplotlib.rc_context({"svg.hashsalt": "ticket_export", "font.size": 9, "axes.grid": True}):
        sheet = Figure(figsize=(9.0, 4.0), layout="constrained")
        left, right = sheet.subplots(1, 2)
        _draw_predictions(left, found)
        _draw_stairs(right, table)
        out = io.StringIO()
        sheet.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw_predictions(axes: Axes, found: Sequence[Held]) -> None:
    measured_ms = 1e3 * np.array([one.measured_s for one in found])
    ends = np.array([0.9 * measured_ms.min(), 1.1 * measured_ms.max()])
    axes.fill_between(ends, 0.9 * ends, 1.1 * ends, color="#0b5cad", alpha=0.12, linewidth=0, label="10 %")
    axes.plot(ends, ends, color="#5b6470", linewidth=0.9, label="equal")
    axes.plot(measured_ms, [1e3 * one.predicted_s for one in found], "o", color="#b35c00", markersize=4)
    axes.set(xlabel="measured, ms", ylabel="predicted, ms", title="networks the table has not seen")
    axes.legend(loc="lower right", fontsize=8)


def _draw_stairs(axes: Axes, table: LatencyTable) -> None:
    stairs = [staircase(table, kind) for kind in table.cells]
    slowest = sorted(stairs, key=lambda one: (len(one.widths) > 1, one.seconds[-1]), reverse=True)[:3]
    for one, color, marker in zip(slowest, ("#0b5cad", "#b35c00", "#00796b"), "os^", strict=False):
        label = f"{one.kind}, {one.width_in} in" if not one.kind.depthwise else str(one.kind)
        heights = [1e3 * seconds for seconds in one.seconds]
        # a width between two measured ones is priced as the wider, so a step ends at its width
        axes.step(one.widths, heights, where="pre", color=color, linewidth=0.9)
        axes.plot(one.widths, heights, marker, color=color, markersize=4, label=label)
    axes.set(xlabel="channels out", ylabel="ms", ylim=(0, None), title="layers by themselves")
    axes.legend(loc="lower right", fontsize=8)


def page(given: argparse.Namespace, recipe: Recipe, table: LatencyTable, found: Sequence[Held]) -> str:
    """Return the results as markdown; FIGURE stands for the figure's name."""
    facts, calibration = machine_facts(), table.calibration
    assert calibration is not None  # the step makes both
    rows = [_row(one) for one in sorted(found, key=lambda one: one.measured_s)]
    unstable = sum(not one.stable for one in found)
    how = f"{table.runtime}, {table.precision}, batch {table.batch}, {table.threads} thread(s), {table.scope}"
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    return (
        f"# A latency table held to networks it has not seen: {recipe.model.builder}, {how}\n\n"
        f"`{command(given)}`; {facts['cpu']}, {facts['num_usable_cores']} cores; {packages}; {given.rounds} "
        f"interleaved rounds of {CHUNK} networks and dense; {unstable} of {len(found)} timings unstable.\n\n"
        f"{error_sentence(found)}, each group's width drawn by itself from the table's grid (seed {SEED}). "
        "A share is of dense, measured in the same rounds; a latency is the mean over the calmer half of the "
        f"rounds.\n\nThe table: {table.num_cells} cells; seconds = {1e6 * calibration.offset_s:.1f} us + "
        f"{calibration.scale:.3f} x sum over layers, fitted on {len(calibration.networks)} other networks, "
        f"which it predicts within {100 * calibration.median_error:.1f} % (median, each by the fit of the "
        "others).\n\n![predicted against measured, and three staircases](FIGURE)\n\n"
        f"{tabulate(rows, headers='keys', tablefmt='github', disable_numparse=True)}\n"
    )


def _row(one: Held) -> dict[str, str]:
    return {
        "network": one.name,
        "predicted, ms": f"{1e3 * one.predicted_s:.4f}",
        "measured, ms": f"{1e3 * one.measured_s:.4f}",
        "error": f"{100 * one.error:+.1f} %",
        "predicted share": f"{100 * one.predicted_share:.1f} %",
        "measured share (95 %)": (
            f"{100 * one.share:.1f} % ({100 * one.share_low:.1f}-{100 * one.share_high:.1f})"
        ),
        "stable": "yes" if one.stable else "NO",
    }


def command(given: argparse.Namespace) -> str:
    """Return the words that measure this again."""
    sets = "".join(f" --set {value}" for value in given.overrides)
    return (
        f"python benchmarks/latency_table.py {given.recipe} --out FOLDER{sets} --networks {given.networks} "
        f"--rounds {given.rounds} --block-s {given.block_s} --device {given.device} --machine {given.machine}"
    )


def write(given: argparse.Namespace, recipe: Recipe, table: LatencyTable, found: Sequence[Held]) -> str:
    """Write the page, the numbers and the figure, and return the page."""
    network = recipe.model.builder.rpartition(":")[2]
    theme = f"latency_table_{network}_{table.runtime}_{table.precision}_b{table.batch}"
    told = page(given, recipe, table, found)
    document = {
        "schema": 1,
        "command": command(given),
        "machine": machine_facts(),
        "networks": [asdict(one) | {"error": one.error} for one in found],
        "table": table.to_json(),
    }
    path = write_results(given.out, theme, given.machine, told, document)
    drawing = path.with_suffix(".svg")
    drawing.write_text(figure(table, found), encoding="utf-8")
    told = told.replace("FIGURE", drawing.name)
    path.write_text(told, encoding="utf-8")
    return told


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="its network, data and protocol are measured")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the page, the numbers, the figure"
    )
    parser.add_argument(
        "--store", type=Path, default=Path("out"), help="folder for the table and what is kept"
    )
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-s", type=float, default=0.05, help="seconds per network and round")
    parser.add_argument("--device", default="cpu", help="where torch's runtimes run")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    given = arguments(words)
    recipe = load_recipe(given.recipe, given.overrides)
    export = recipe.export.model_copy(update={"precisions": recipe.export.precisions[:1]})
    first = {"runtimes": recipe.measure.runtimes[:1], "batches": recipe.measure.batches[:1]}
    measure = recipe.measure.model_copy(update=first)
    recipe = recipe.model_copy(update={"export": export, "measure": measure})
    (stored,) = profile(recipe, given.store, device=given.device, emit=_tell)
    print(write(given, recipe, stored.table, held_out(given, recipe, stored)))


def _tell(event: Mapping[str, Any]) -> None:
    if event["event"] != "progress":
        print(f"table: {event['event']}", flush=True)


if __name__ == "__main__":
    main()
