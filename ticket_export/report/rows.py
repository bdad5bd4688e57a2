"""Manifests in, rows out: one row per subject x replicate x runtime x precision x batch.

The rows are the contract of `report.json`; tables, figures and the page are drawn from them alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ticket_export.errors import StoreError
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
PRECISION_ORDER = ("fp32", "fp16", "int8")
_KIND_ORDER = ("dense", "ticket", "unstructured", "uniform", "depgraph", "random", "reinit")

Row = dict[str, Any]  # Any: a row is JSON; ROW_FIELDS names what it holds
Manifest = Mapping[str, Any]  # Any: a manifest is JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """One channel group before and after: how many channels the dense network has and how many are kept."""

    group: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What training one network cost (seconds per epoch) and the validation accuracy it reached (0 to 1)."""

    subject: str
    replicate: int
    num_epochs: int
    epoch_s: float
    val_accuracy: float
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One exported network and what its precision costs.

    Attributes:
        subject: whose network it is.
        replicate: from 0.
        precision: fp32, fp16 or int8.
        runtime: whose widths it has; None where all runtimes share a file.
        path: starts at the store, as `export/<key>/model.onnx`.
        file_bytes: its size.
        parity_rel_error: max|a-b| / max|b| of its outputs against the trained network in torch.
        precision_rel_error: the same against its own fp32 file; None for that file itself.
        fp32_layers: the layers that stay in fp32.
        top1_agreement: share of the calibration images on which it names the class of fp32; int8 only.
    """

    subject: str
    replicate: int
    precision: str
    runtime: str | None
    path: str
    file_bytes: int
    parity_rel_error: float
    precision_rel_error: float | None = None
    fp32_layers: tuple[str, ...] = ()
    top1_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the widths of one network were chosen from, as JSON values; see `pipeline.widths`."""

    subject: str
    replicate: int
    told: Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a run measured, ready to be printed.

    Attributes:
        name: the recipe's name.
        machine: the facts of the machine that measured, as `machine_facts` gives them.
        rows: the rows of `report.json`: by subject, dense first, replicate, runtime, precision and batch.
        widths: subject -> replicate -> its channel groups, in the network's order.
        trainings: one per trained network.
        exported: the file of every exported network, in the order of the rows.
        choices: one per network whose widths were chosen by measurement.
        num_test_images: how many images every accuracy was computed on.
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
    causes: tuple[Mapping[str, Any], ...] = ()  # Any: JSON

    def to_json(self) -> dict[str, Any]:
        """Return the content of `report.json`."""
        return {
            "schema": 1,
            "name": self.name,
            "machine": dict(self.machine),
            "rows": list(self.rows),
            "files": [asdict(file) | {"fp32_layers": list(file.fp32_layers)} for file in self.exported],
        }

    @property
    def summary(self) -> str:
        """What the run showed, in words: numbers with n and interval, a verdict against each control."""
        from ticket_export.report.words import summary  # it reads reports, so it imports this file

        return summary(self)

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects in the order of every table: dense, tickets by level, then the controls."""
        return tuple(dict.fromkeys(row["subject"] for row in self.rows))


def subject_order(subject: str) -> tuple[int, int, str]:
    """Return the sort key of a subject: dense, tickets by level, then each control by level."""
    kind, _, level = subject.partition("@")
    rank = _KIND_ORDER.index(kind) if kind in _KIND_ORDER else len(_KIND_ORDER)
    return rank, int(level) if level.isdecimal() else 0, kind


def precision_order(precision: str) -> int:
    """Return the sort key of a precision: fp32 first, the coarsest last."""
    known = precision in PRECISION_ORDER
    return PRECISION_ORDER.index(precision) if known else len(PRECISION_ORDER)


def report_from_manifests(
    name: str,
    machine: Mapping[str, Any],  # Any: JSON
    manifests: Iterable[Manifest],
) -> Report:
    """Join what was exported, how accurate it is and how long it takes into one report.

    Args:
        name: the recipe's name.
        machine: facts of the machine that measured.
        manifests: the manifests of one run, in any order; find and shrink stages are not needed.

    Raises:
        StoreError: nothing was timed, or a timed network has no accuracy or no export.
    """
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
    return Report(
        name=name,
        machine=machine,
        rows=tuple(rows),
        widths=_widths(exports.values()),
        trainings=_trainings(manifest["facts"] for manifest in by_stage.get("train", [])),
        exported=_exported(by_stage.get("export", [])),
        choices=_choices(manifest["facts"] for manifest in by_stage.get("shrink", [])),
        num_test_images=_num_test_images(measured),
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


def _widths(exports: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, tuple[Width, ...]]]:
    widths: dict[str, dict[int, tuple[Width, ...]]] = {}
    for facts in sorted(exports, key=lambda facts: (subject_order(facts["subject"]), facts["replicate"])):
        widths.setdefault(facts["subject"], {})[facts["replicate"]] = tuple(
            Width(group=group, before=width["before"], after=width["after"])
            for group, width in facts["widths"].items()
        )
    return widths


def _exported(manifests: Iterable[Manifest]) -> tuple[ExportedFile, ...]:
    files = [
        ExportedFile(
            subject=manifest["facts"]["subject"],
            replicate=manifest["facts"]["replicate"],
            precision=manifest["facts"]["precision"],
            runtime=manifest["facts"].get("runtime"),
            path=f"export/{manifest['key']}/{manifest['facts']['file']}",
            file_bytes=manifest["facts"]["file_bytes"],
            parity_rel_error=manifest["facts"]["parity_rel_error"],
            **_precision_facts(manifest["facts"]),
        )
        for manifest in manifests
    ]
    return tuple(
        sorted(
            files,
            key=lambda f: (
                subject_order(f.subject),
                f.replicate,
                precision_order(f.precision),
                f.runtime or "",
            ),
        )
    )


def _precision_facts(facts: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """Return what fp16 and int8 files have beside an fp32 one."""
    if facts["precision"] == "fp32":
        return {}
    found = {"precision_rel_error": facts["precision_rel_error"], "fp32_layers": tuple(facts["fp32_layers"])}
    return found | ({"top1_agreement": facts["top1_agreement"]} if facts["precision"] == "int8" else {})


def _choices(shrunk: Iterable[Mapping[str, Any]]) -> tuple[Choice, ...]:
    choices = [
        Choice(subject=facts["subject"], replicate=facts["replicate"], told=facts["choice"])
        for facts in shrunk
        if "choice" in facts
    ]
    return tuple(sorted(choices, key=lambda c: (subject_order(c.subject), c.replicate, c.told["runtime"])))


def _trainings(trained: Iterable[Mapping[str, Any]]) -> tuple[Training, ...]:
    trainings = [
        Training(
            subject=facts["subject"],
            replicate=facts["replicate"],
            num_epochs=len(facts["history"]),
            epoch_s=median(epoch["seconds"] for epoch in facts["history"]),
            val_accuracy=facts["val_accuracy"],
            threads=facts["threads"],
        )
        for facts in trained
    ]
    return tuple(sorted(trainings, key=lambda t: (subject_order(t.subject), t.replicate)))
