"""Tables in text and markdown; milliseconds appear here and nowhere below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ticket_export.report import words
from ticket_export.report.rows import Report, Row
from ticket_export.report.verdict import SubjectLine, Verdict, epoch_cost

EXPORTED_HEADS = ("Subject", "Replicate", "Precision", "File, in the store")
PRECISION_HEADS = (
    *("Subject", "Replicate", "Precision", "Accuracy", "Error to torch", "Error to fp32"),
    *("Class of fp32", "Kept in fp32", "MB"),
)
TRAINING_HEADS = ("Subject", "Epochs", "Epoch, s", "Share of dense", "MACs kept", "Threads")


def text_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table for a terminal: columns aligned, every value printed as it is."""
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in GitHub's markdown."""
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(escaped, headers=headers, tablefmt="github", disable_numparse=True)


def subject_table(lines: Sequence[SubjectLine]) -> str:
    """Return the subjects under one setting, dense first, in markdown."""
    heads = ("subject", "accuracy (lowest-highest)", "weights kept", "MACs kept", "latency, ms")
    rows = [
        (
            line.subject,
            f"{words.percent(line.accuracy.mean)} ({words.accuracy_range(line)})",
            words.percent(line.param_density),
            words.percent(line.mac_density),
            words.milliseconds(line.latency_s.mean),
            words.times(line.speedup),
            "-" if line.rounds_won_fraction is None else f"{100 * line.rounds_won_fraction:.0f} %",
            "yes" if line.stable else "NO",
        )
        for line in lines
    ]
    return markdown_table((*heads, "speedup (95 %)", "rounds won", "stable"), rows)


def verdict_table(found: Sequence[Verdict]) -> str:
    """Return each ticket's accuracy against dense and its controls, in markdown."""
    heads = ("ticket", "against", "runtime", "precision", "difference, points (95 %)", "n", "verdict")
    return markdown_table(
        heads,
        [
            (
                v.ticket,
                v.against,
                v.runtime,
                v.precision,
                words.points(v),
                v.num_replicates,
                words.verdict_words(v),
            )
            for v in found
        ],
    )


def training_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `TRAINING_HEADS` per trained subject that is also in the report's rows."""
    rows: list[tuple[str, ...]] = []
    for subject in report.subjects:
        own = [training for training in report.trainings if training.subject == subject]
        if not own:
            continue
        epoch_s, ratio = epoch_cost(report.trainings, subject)
        macs = [row["mac_density"] for row in report.rows if row["subject"] == subject]
        rows.append(
            (
                subject,
                ", ".join(dict.fromkeys(str(training.num_epochs) for training in own)),
                f"{epoch_s:.2f}",
                "-" if ratio is None else words.percent(ratio),
                words.percent(sum(macs) / len(macs)),
                ", ".join(dict.fromkeys(str(training.threads) for training in own)),
            )
        )
    return rows


def training_table(report: Report) -> str:
    """Return what training cost per subject, in markdown."""
    return markdown_table(TRAINING_HEADS, training_rows(report))


def exported_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `EXPORTED_HEADS` per exported file."""
    return [
        (
            f.subject,
            str(f.replicate),
            f.precision if f.runtime is None else f"{f.precision}, {f.runtime}",
            f.path,
        )
        for f in report.exported
    ]


def exported_table(report: Report) -> str:
    """Return where every exported network lies, in markdown."""
    return markdown_table(EXPORTED_HEADS, exported_rows(report))


def precision_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `PRECISION_HEADS` per exported file, or none where all are fp32."""
    if all(file.precision == "fp32" for file in report.exported):
        return []
    accuracies = {
        (row["subject"], row["replicate"], row["precision"]): row["accuracy"]
        for row in report.rows
        if row["parity_rel_error"] is not None  # of the file, not of torch
    }
    rows: list[tuple[str, ...]] = []
    for file in report.exported:
        accuracy = accuracies.get((file.subject, file.replicate, file.precision))
        rows.append(
            (
                file.subject,
                str(file.replicate),
                file.precision,
                "-" if accuracy is None else words.percent(accuracy),
                f"{file.parity_rel_error:.1e}",
                "-" if file.precision_rel_error is None else f"{file.precision_rel_error:.1e}",
                "-" if file.top1_agreement is None else words.percent(file.top1_agreement),
                "-" if file.precision == "fp32" else ", ".join(file.fp32_layers) or "none",
                f"{file.file_bytes / 1e6:.2f}",
            )
        )
    return rows


def precision_table(report: Report) -> str:
    """Return what each precision costs, in markdown; empty where all files are fp32."""
    rows = precision_rows(report)
    return markdown_table(PRECISION_HEADS, rows) if rows else ""


def measured_table(rows: Sequence[Row]) -> str:
    """Return the rows of `measure` for a terminal."""
    heads = (
        "model",
        "runtime",
        "precision",
        "batch",
        "median ms",
        "p90 ms",
        "images/s",
        "speedup (95 %)",
        "n",
    )
    body = [
        (
            row["subject"],
            row["runtime"],
            row["precision"],
            row["batch"],
            words.milliseconds(row["latency_s"]["p50"]),
            words.milliseconds(row["latency_s"]["p90"]),
            f"{row['throughput_per_s']:,.0f}",
            words.ratio(row["speedup"]),
            f"{row['num_rounds']} x {row['num_samples']}",
            "yes" if row["stable"] else "NO",
        )
        for row in rows
    ]
    return text_table((*heads, "stable"), body)


def machine_table(machine: Mapping[str, Any]) -> str:  # Any: JSON
    """Return the facts of a machine, in markdown."""
    return markdown_table(("fact", "value"), words.machine_pairs(machine))


def plain_value(value: object) -> str:
    """Return one value of a row as text: nested values flattened, long fractions cut to six digits."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{key} {plain_value(own)}" for key, own in value.items())
        case list():
            return "; ".join(plain_value(own) for own in value)
        case _:
            return str(value)
