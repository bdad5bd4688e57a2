"""The page of the paper's table: the paper's columns beside ours, and what is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, log
from statistics import fmean, median
from typing import Any, TypeAlias

from tickets.paper import CITED, PRINTED
from tickets.recipes import PARTS, Part

from ticket_export.report import words
from ticket_export.report.intervals import Spread, mean_interval, spread
from ticket_export.report.order import precision_order, subject_order
from ticket_export.report.table import markdown_table
from ticket_export.report.verdict import Verdict, paired_verdict

Document: TypeAlias = Mapping[str, Any]  # Any: JSON
Row: TypeAlias = Mapping[str, Any]  # Any: JSON
WISHED_EPOCH_S = 3.0
WISHED_DENSE = 0.945
_NONE = "-"


def page(document: Document) -> str:
    """Return the Markdown of what is finished, and of what is not.

    Args:
        document: `command`, `rehearsal`, `machine`, and `runs` as `reading.Work.told` gives them, each with
            its `state` and `why`.
    """
    parts = [part for part in PARTS if _runs_of(document, part)]
    reported = [part for part in parts if _reports(document, part)]
    title = "CIFAR-10, ResNet-18: channel tickets beside the paper's table"
    sections = [
        f"# {title}" + (" (rehearsal)" if document["rehearsal"] else ""),
        f"`{document['command']}`",
        _head(document),
        _states(document),
        _epoch_seconds(document, parts),
        _dense(document, reported),
    ]
    for part in reported:
        sections += [f"## {part.name}: {part.about}", _sizes(document, part), _beside_paper(document, part)]
        sections += [_against(document, part), _speeds(document, part), _costs(document, part)]
    return "\n\n".join([section for section in sections if section] + [_reading()]) + "\n"


def _head(document: Document) -> str:
    machine = document["machine"]
    facts = [f"- {name}: {value}" for name, value in words.machine_highlights(machine)]
    if "gpus" in machine:
        facts.append(f"- GPU: {', '.join(machine['gpus'])}, driver {machine['nvidia_driver']}")
    facts.append(
        "- n is the number of seeds; accuracies are of all test images by the fp32 file in the first runtime"
    )
    told = "\n".join(facts)
    if document["rehearsal"]:
        told += (
            "\n\n**A rehearsal on another network, with few images and epochs: it shows that the command "
            "works, and nothing about tickets.**"
        )
    return told


def _states(document: Document) -> str:
    rows = [
        (run["name"], run["state"], f"{run['num_done']} of {run['num_results']}", run["why"] or _NONE)
        for run in document["runs"]
    ]
    missing = [run["name"] for run in document["runs"] if not run["finished"]]
    told = (
        f"Not finished, and so not on this page: {', '.join(missing)}. The same command goes on with them."
        if missing
        else "All runs are finished."
    )
    table = markdown_table(("run", "state", "results in the store", "why"), rows)
    return f"## What is there\n\n{told}\n\n{table}"


def _epoch_seconds(document: Document, parts: Sequence[Part]) -> str:
    rows = []
    for part in parts:
        held = [run["epochs"] for run in _runs_of(document, part) if run["epochs"] is not None]
        if not held or part.length != "timed":
            continue
        seconds = [each for one in held for each in one["seconds"]]
        middle = median(seconds)
        rows.append(
            (
                part.about,
                f"{middle:.2f} s",
                ", ".join(f"{each:.2f}" for each in seconds),
                ", ".join(dict.fromkeys(f"{one['device']} ({one['on']})" for one in held)),
                _wish(middle <= WISHED_EPOCH_S, document),
            )
        )
    if not rows:
        return ""
    note = "An epoch of the training images and the validation after it; the first one warms up or compiles."
    heads = ("", "median", "each", "on", f"at most {WISHED_EPOCH_S:g} s")
    return f"## Seconds per epoch\n\n{note}\n\n{markdown_table(heads, rows)}"


def _dense(document: Document, reported: Sequence[Part]) -> str:
    rows: dict[int, tuple[str, ...]] = {}
    for part in reported:  # parts of a length share their dense networks: the one of more seeds is told
        epochs = _runs_of(document, part)[0]["num_epochs"]
        held = list(_accuracies(document, part, "dense").values())
        text = _mean(held)
        wish = _NONE if part.length != "full" else _wish(fmean(held) >= WISHED_DENSE, document)
        if epochs not in rows or len(held) > int(rows[epochs][1]):
            rows[epochs] = (str(epochs), str(len(held)), text, wish)
    if not rows:
        return ""
    heads = ("epochs", "n", "accuracy (95 %)", f"at least {100 * WISHED_DENSE:g} %")
    return f"## Dense\n\n{markdown_table(heads, list(rows.values()))}"


def _wish(holds: bool, document: Document) -> str:
    if document["rehearsal"]:
        return "not asked of a rehearsal"
    return "met" if holds else "not met"


def _sizes(document: Document, part: Part) -> str:
    epochs = _runs_of(document, part)[0]["num_epochs"]
    seeds = [str(run["seed"]) for run in _reports(document, part)]
    return f"{epochs} epochs, n = {len(seeds)} (seed {words.listed(seeds)})."


def _beside_paper(document: Document, part: Part) -> str:
    if part.paper is None:
        return ""
    rows = []
    for ticket, printed in zip(_tickets(document, part), PRINTED[part.paper], strict=False):
        level = ticket.partition("@")[2]
        reinit = f"reinit@{level}"
        rows.append(
            (
                level,
                f"{printed.remaining:.2f} %",
                _remaining(document, part, ticket),
                _mean_field(document, part, ticket, "param_density"),
                f"{printed.ticket:.2f} %",
                _mean(list(_accuracies(document, part, ticket).values())),
                f"{printed.reinit:.2f} %",
                _mean(list(_accuracies(document, part, reinit).values())),
                f"{printed.ticket - printed.reinit:+.2f}",
                _difference(document, part, ticket, reinit),
            )
        )
    heads = (
        "level", "paper: remaining", "ours: mask", "ours: weights", "paper: ticket", "ours: ticket (95 %)",
        "paper: re-init", "ours: re-init (95 %)", "paper: gap", "ours: gap, points (95 %)",
    )  # fmt: skip
    return f"Paper: {CITED}; one seed, 160 epochs.\n\n{markdown_table(heads, rows)}"


def _remaining(document: Document, part: Part, ticket: str) -> str:
    held = [run["remaining"][ticket] for run in _reports(document, part) if ticket in run["remaining"]]
    return f"{100 * fmean(held):.2f} %" if held else _NONE


def _against(document: Document, part: Part) -> str:
    tickets = _tickets(document, part)
    kinds = sorted({subject.partition("@")[0] for subject in _subjects(document, part)}, key=subject_order)
    others = [kind for kind in kinds if kind not in ("dense", "ticket")]
    rows = []
    for ticket in tickets:
        level = ticket.partition("@")[2]
        rows.append(
            (
                level,
                _mean(list(_accuracies(document, part, ticket).values())),
                _mean_field(document, part, ticket, "param_density"),
                _mean_field(document, part, ticket, "mac_density"),
                _difference(document, part, ticket, "dense"),
                *[_difference(document, part, ticket, f"{kind}@{level}") for kind in others],
            )
        )
    heads = ("level", "ticket (95 %)", "weights", "MACs", "less dense", *[f"less {kind}" for kind in others])
    return f"Accuracy and differences in points, paired by seed (95 %):\n\n{markdown_table(heads, rows)}"


def _speeds(document: Document, part: Part) -> str:
    tickets = _tickets(document, part)
    settings = sorted(
        {(row["runtime"], row["precision"], row["batch"]) for row in _rows(document, part)},
        key=lambda found: (found[0], precision_order(found[1]), found[2]),
    )
    rows = []
    for setting in settings:
        dense = _timed(document, part, "dense", setting)
        rows.append(
            (
                *map(str, setting),
                f"{words.milliseconds(fmean(row['latency_s']['p50'] for row in dense))} ms{_mark(dense)}",
                *[_speed(_timed(document, part, ticket, setting)) for ticket in tickets],
            )
        )
    heads = ("runtime", "precision", "batch", "dense", *tickets)
    return f"Speedup over dense, measured (95 %):\n\n{markdown_table(heads, rows)}"


def _timed(document: Document, part: Part, subject: str, setting: tuple[str, str, int]) -> list[Row]:
    return [
        row
        for row in _rows(document, part)
        if row["subject"] == subject and (row["runtime"], row["precision"], row["batch"]) == setting
    ]


def _speed(rows: Sequence[Row]) -> str:
    held = [row["speedup"] for row in rows if row["speedup"] is not None]
    if not held:
        return _NONE
    ratios = Spread(
        mean=exp(fmean(log(speedup["ratio"]) for speedup in held)),
        low=min(speedup["low"] for speedup in held),
        high=max(speedup["high"] for speedup in held),
    )
    return f"{words.times(ratios)}{_mark(rows)}"


def _mark(rows: Sequence[Row]) -> str:
    return "" if all(row["stable"] for row in rows) else " *"


def _costs(document: Document, part: Part) -> str:
    def cost(ticket: str, field: str) -> str:
        costs = [
            each[field]
            for run in _reports(document, part)
            for each in run["report"]["search_cost"]
            if each["subject"] == ticket
        ]
        if not costs or None in costs:
            return _NONE
        held = spread(costs)
        return f"{held.mean:.2f} ({words.spread_range(held, len(costs), 2)})"

    rows = [
        (ticket, cost(ticket, "time_ratio"), cost(ticket, "macs_ratio"))
        for ticket in _tickets(document, part)
    ]
    heads = ("", "by time", "by epochs x MACs")
    return f"Search cost, own training included, in dense trainings:\n\n{markdown_table(heads, rows)}"


def _reading() -> str:
    lines = (
        "**Mask**: the share of the prunable weights (convolutions but the stem) in the rows or blocks that "
        "are kept; whole channel groups have no such mask. **Weights**, **MACs**: of the exported network, "
        "as a share of dense; dropped rows that a residual add holds in place are among them.",
        "A difference is the mean over the seeds, each seed's pair trained on the same split; its interval "
        "is Student's t. A seed decides initial weights, order, augmentation and which images validate.",
        "A speedup over several seeds is their geometric mean, in brackets the span of their intervals; `*` "
        "marks a timing with a reason to distrust it.",
        "`-` by time: a training that it needed ran on another device or machine than the dense one.",
    )
    return "## How to read this\n\n" + "\n".join(f"- {line}" for line in lines)


def _runs_of(document: Document, part: Part) -> list[Document]:
    return [run for run in document["runs"] if run["part"] == part.name]


def _reports(document: Document, part: Part) -> list[Document]:
    return [run for run in _runs_of(document, part) if run["report"] is not None]


def _rows(document: Document, part: Part) -> list[Row]:
    return [row for run in _reports(document, part) for row in run["report"]["rows"]]


def _subjects(document: Document, part: Part) -> list[str]:
    return sorted({row["subject"] for row in _rows(document, part)}, key=subject_order)


def _tickets(document: Document, part: Part) -> list[str]:
    return [subject for subject in _subjects(document, part) if subject.startswith("ticket@")]


def _by_seed(document: Document, part: Part, subject: str, value: Callable[[Row], float]) -> dict[int, float]:
    """Return a value of a subject by seed, of the exported fp32 file in the first runtime."""
    held = {}
    for run in _reports(document, part):
        rows = run["report"]["rows"]
        own = [
            row
            for row in rows
            if (row["subject"], row["precision"]) == (subject, "fp32")
            and row["runtime"] == rows[0]["runtime"]
        ]
        if own:
            held[run["seed"]] = value(own[0])
    return held


def _accuracies(document: Document, part: Part, subject: str) -> dict[int, float]:
    return _by_seed(document, part, subject, lambda row: float(row["accuracy"]))


def _mean_field(document: Document, part: Part, subject: str, field: str) -> str:
    held = _by_seed(document, part, subject, lambda row: float(row[field]))
    return f"{100 * fmean(held.values()):.2f} %" if held else _NONE


def _mean(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return _NONE
    text = f"{100 * fmean(accuracies):.2f} %"
    if len(accuracies) < 2:
        return f"{text} (n = 1)"
    low, high = mean_interval(accuracies)
    return f"{text} ({100 * low:.2f}-{100 * high:.2f}, n = {len(accuracies)})"


def _difference(document: Document, part: Part, ticket: str, other: str) -> str:
    verdict = _verdict(document, part, ticket, other)
    return _NONE if verdict is None else f"{words.points(verdict)}, {words.verdict_words(verdict)}"


def _verdict(document: Document, part: Part, ticket: str, other: str) -> Verdict | None:
    held = [(each, _accuracies(document, part, each)) for each in (ticket, other)]
    if not held[0][1].keys() & held[1][1].keys():
        return None
    num_images = min(run["num_test_images"] for run in _reports(document, part))
    return paired_verdict(*held, runtime="", precision="fp32", one_image=1 / num_images)
