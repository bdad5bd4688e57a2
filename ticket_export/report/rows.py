"""Manifests in, rows out: one row per subject x replicate x runtime x precision x batch.

The rows are the contract of `report.json`; tables, figures and the page are drawn from them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ticket_export.errors import StoreError
from ticket_export.report.artefacts import (
    Choice,
    ExportedFile,
    Manifest,
    Width,
    choices_from_facts,
    exported_from_manifests,
    widths_from_facts,
)
from ticket_export.report.blocks import Blocks, blocks_of
from ticket_export.report.budgets import Budgets, budgets_of
from ticket_export.report.lineage import lineage_from_manifests, method_of
from ticket_export.report.order import precision_order, subject_order
from ticket_export.report.search_cost import SearchCost, search_costs
from ticket_export.report.searches import Search, searches_of
from ticket_export.report.trainings import Training, trainings_of
from ticket_export.runtime.registry import MODULE_RUNTIMES

ROW_FIELDS = (
    "subject",
    "replicate",
    "accuracy",
    "params",
    "macs",
    "channel_density",
    "param_density",
    "mac_density",
    "runtime",
    "precision",
    "batch",
    "scope",
    "threads",
    "latency_s",
    "throughput_per_s",
    "speedup",
    "stable",
    "reasons",
    "num_rounds",
    "num_samples",
    "rounds_won_fraction",
    "parity_rel_error",
    "file_bytes",
)

_NETWORK_FIELDS = ("params", "macs", "channel_density", "param_density", "mac_density")
_TIMED_FIELDS = (
    "latency_s",
    "throughput_per_s",
    "speedup",
    "stable",
    "reasons",
    "num_rounds",
    "num_samples",
    "rounds_won_fraction",
)
Row = dict[str, Any]  # Any: a row is JSON; ROW_FIELDS names what it holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a run measured, ready to be printed.

    Attributes:
        name: the recipe's name.
        machine: the facts of the machine that measured, as `machine_facts` gives them.
        rows: the rows of `report.json`: by subject, dense first, replicate, runtime, precision and batch.
        widths: subject -> replicate -> its channel groups, in the network's order.
        trainings: one per measured network.
        exported: the file of every exported network, in the order of the rows.
        choices: one per network whose widths were chosen by measurement.
        num_test_images: how many images every accuracy was computed on.
        method: how the tickets were found, as `find.method` of a recipe; None without one.
        search_costs: what finding and training each measured network took.
        blocks: of the networks that are executed in blocks.
        budgets: what finders were asked for and reached.
        searches: what searches of supernets did at each event.
        causes: why a subject is as fast as it is: `measure.cause.Cause` as JSON beside its subject,
            replicate, runtime, precision and batch; in the order of the rows.
    """

    name: str
    machine: Mapping[str, Any]  # Any: JSON
    rows: tuple[Row, ...]
    widths: Mapping[str, Mapping[int, tuple[Width, ...]]]
    trainings: tuple[Training, ...]
    exported: tuple[ExportedFile, ...]
    choices: tuple[Choice, ...]
    num_test_images: int
    method: str | None = None
    search_costs: tuple[SearchCost, ...] = ()
    blocks: tuple[Blocks, ...] = ()
    budgets: Budgets = field(default_factory=Budgets)
    searches: tuple[Search, ...] = ()
    causes: tuple[Mapping[str, Any], ...] = ()  # Any: JSON

    def to_json(self) -> dict[str, Any]:
        """Return the content of `report.json`."""
        # these read reports, so they import this file
        from ticket_export.report.early_stop import early_stop_json
        from ticket_export.report.front import fronts_json
        from ticket_export.report.worth import worths

        return {
            "schema": 1,
            "name": self.name,
            "machine": dict(self.machine),
            "rows": list(self.rows),
            "files": [asdict(file) | {"fp32_layers": list(file.fp32_layers)} for file in self.exported],
            "tickets": [worth.to_json() for worth in worths(self)],
            "search_cost": [cost.to_json() for cost in self.search_costs],
            "early_stop": early_stop_json(self),
            "fronts": fronts_json(self),
            **self.budgets.to_json(),
            "searches": [search.to_json() for search in self.searches],
        }

    @property
    def summary(self) -> str:
        """What the run showed, in words: numbers with n and interval, a verdict against each control."""
        from ticket_export.report.sentences import summary  # it reads reports, so it imports this file

        return summary(self)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects in the order of every table: dense, tickets by level, then the controls."""
        return tuple(dict.fromkeys(row["subject"] for row in self.rows))


def report_from_manifests(
    name: str,
    machine: Mapping[str, Any],  # Any: JSON
    manifests: Iterable[Manifest],
) -> Report:
    """Join what was exported, how accurate it is and how long it takes into one report.

    Args:
        name: the recipe's name.
        machine: facts of the machine that measured.
        manifests: the manifests of one run, in any order.

    Raises:
        StoreError: nothing was timed, a timed network has no accuracy or no export, or a result that another
            was made from is missing.
    """
    manifests = tuple(manifests)
    by_stage: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        by_stage.setdefault(manifest["stage"], []).append(manifest)
    exports = {
        (facts["subject"], facts["replicate"], facts["precision"], facts.get("runtime")): facts
        for facts in (manifest["facts"] for manifest in by_stage.get("export", []))
    }
    measured = [manifest["facts"] for manifest in by_stage.get("measure", [])]
    accuracies = {
        (facts["subject"], facts["replicate"], facts["runtime"], facts["precision"]): facts["accuracy"]
        for facts in measured
        if facts["kind"] == "accuracy"
    }
    rows = [
        _row(timed, latency, exports, accuracies)
        for latency in measured
        if latency["kind"] == "latency"
        for timed in latency["rows"]
    ]
    if not rows:
        raise StoreError(f"{name}: no latency was measured, nothing to report", hint="run without --until")
    rows.sort(key=_row_order)
    lineage = lineage_from_manifests(manifests)
    subjects = [(row["subject"], row["replicate"]) for row in rows]
    return Report(
        name=name,
        machine=machine,
        rows=tuple(rows),
        widths=widths_from_facts(exports.values()),
        trainings=trainings_of(lineage, subjects),
        exported=exported_from_manifests(by_stage.get("export", [])),
        choices=choices_from_facts(manifest["facts"] for manifest in by_stage.get("shrink", [])),
        num_test_images=_num_test_images(measured),
        method=method_of(lineage, subjects),
        search_costs=search_costs(lineage, subjects),
        blocks=blocks_of(lineage, subjects),
        budgets=budgets_of(lineage, subjects),
        searches=searches_of(lineage, subjects),
        causes=_causes(measured),
    )


def _row(
    timed: Mapping[str, Any],
    latency: Mapping[str, Any],
    exports: Mapping[tuple[str, int, str, str | None], Mapping[str, Any]],
    accuracies: Mapping[tuple[str, int, str, str], float],
) -> Row:
    subject, replicate = timed["subject"], timed["replicate"]
    runtime, precision = latency["runtime"], latency["precision"]
    place = f"{subject}, replicate {replicate}, {runtime}, {precision}"
    hint = "run the same command again; what is missing is then redone"
    # a file of its own widths for each runtime, or one for all
    found = [exports.get((subject, replicate, precision, own)) for own in (runtime, None)]
    export = found[0] or found[1]
    if export is None:
        raise StoreError(f"{place}: timed, but no export of it is stored", hint=hint)
    if (subject, replicate, runtime, precision) not in accuracies:
        raise StoreError(f"{place}: timed, but its accuracy is not stored", hint=hint)
    # torch runs the source itself: there is no file, and nothing for it to differ from
    exported = runtime not in MODULE_RUNTIMES
    row: Row = {"subject": subject, "replicate": replicate}
    row["accuracy"] = accuracies[subject, replicate, runtime, precision]
    row |= {field: export[field] for field in _NETWORK_FIELDS}
    row |= {field: latency[field] for field in ("runtime", "precision", "batch", "scope", "threads")}
    row |= {field: timed[field] for field in _TIMED_FIELDS}
    row |= {field: export[field] if exported else None for field in ("parity_rel_error", "file_bytes")}
    return row


def _num_test_images(measured: Iterable[Mapping[str, Any]]) -> int:
    counts = sorted({facts["num_images"] for facts in measured if facts["kind"] == "accuracy"})
    if len(counts) != 1:
        raise StoreError(
            f"accuracies were computed on unequal numbers of images: {counts}",
            hint="give each recipe a name of its own",
        )
    num_images: int = counts[0]
    return num_images


def _causes(measured: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    found = [
        {field: latency[field] for field in ("runtime", "precision", "batch")} | cause
        for latency in measured
        if latency["kind"] == "latency"
        for cause in latency.get("causes", ())
    ]
    return tuple(sorted(found, key=_row_order))


def _row_order(row: Row) -> tuple[object, ...]:
    precision = precision_order(row["precision"])
    return (subject_order(row["subject"]), row["replicate"], row["runtime"], precision, row["batch"])
