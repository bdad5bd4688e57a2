"""The page of a sweep, for a reader who has seen nothing else of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from speedup.cells import Cell
from tabulate import tabulate

Document: TypeAlias = Mapping[str, Any]  # Any: JSON

MAX_WIDE_TURNS = 3  # more sweeps stand in lines of their own
ABOUT = {
    "dense": "the network itself, the baseline of every ratio",
    "dense-again": "the same file a second time: what two equal files differ by is what the method errs by",
    "ticket-r1": "inner channels removed to irregular widths (each group's share drawn within 50 %)",
    "ticket-r8": "the same function with every kept width rounded up to a multiple of 8",
    "ticket-r16": "the same, 16",
    "ticket-r32": "the same, 32",
    "uniform-r16": "one width multiplier for all inner groups, at the MACs of ticket-r16",
    "depgraph-r16": "torch-pruning's own magnitude pruner over all its groups, at the MACs of ticket-r16",
    "unstructured-90": "90 % of the weights of each layer but the first and last are zero; nothing removed",
    "unstructured-same": "as many weights left as ticket-r1 has; nothing removed",
}


def page_of(documents: Sequence[Document], *, command: str, num_cells: int) -> str:
    """Return the Markdown of all cells so far."""
    done = [document for document in documents if document["state"] == "done"]
    failed = [document for document in documents if document["state"] == "failed"]
    parts = ["# Speedups over dense\n", f"`{command}`\n", f"{len(done)} of {num_cells} cells are measured"]
    parts[-1] += f", {len(failed)} failed." if failed else "."
    if done:
        parts += [how_measured(done[0]), _subjects(done), *_tables(done), *_agreement(done), *_control(done)]
        parts += [reasons_told(done)]
    parts += _without_cause(done) + _failed(failed)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def how_measured(document: Document) -> str:
    """Return the part of the page that tells machine, versions and method."""
    machine, settings = document["machine"], document["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    row = document["rows"][0]
    lines = [
        "## How it was measured",
        "",
        f"Machine: {machine['cpu']}, {machine['num_usable_cores']} of {machine['num_cores']} cores, "
        f"{_isa(machine['isa'])}; {packages}; Python {machine['python']}, {machine['os']}.",
        "",
        f"Scope `{settings['scope']}`, {settings['threads']} CPU thread(s). In a cell all subjects run in "
        f"the same {row['num_rounds']} rounds, in random order within a round, on equal fresh inputs, each "
        "placed anew in memory before its turn. A round gives one ratio of medians; the speedup is the "
        "geometric mean of the rounds' ratios with a 95 % t interval over the rounds (rounds, not samples, "
        "are independent). n is rounds x samples per round. `*` marks a timing with a reason to distrust it; "
        "the reasons are listed below. A speedup is time of dense / time of the subject in the same cell: "
        "same file format, precision, runtime, batch and rounds. MACs are multiply-adds of one image "
        "(convolutions, linear layers, matrix products); they are a count and no speedup.",
        "",
        "Weights are random (no accuracy belongs to these networks): latency depends on shapes, not on "
        "values. Norms took their statistics from data, so that numbers keep a usual size.",
    ]
    return "\n".join(lines)


def _isa(names: Sequence[str]) -> str:
    last = [name for name in names if name.startswith(("avx512", "avx2", "amx", "neon", "sve"))]
    return f"instruction sets {', '.join(last)}" if last else "no vector instruction sets told"


def _subjects(done: Sequence[Document]) -> str:
    rows = {}
    for document in done:
        for row in document["rows"]:
            at = (document["cell"]["network"], document["cell"]["density"], row["subject"])
            rows[at] = {
                "network": at[0],
                "density": f"{at[1]:g}",
                "subject": at[2],
                "M MACs": f"{row['macs'] / 1e6:.1f}",
                "MACs fewer": f"{row['macs_ratio']:.2f}x",
                "M parameters": f"{row['params'] / 1e6:.2f}",
                "M not zero": f"{row['nonzero'] / 1e6:.2f}",
            }
    names = {row["subject"] for row in rows.values()}
    told = [f"- **{name}**: {words}" for name, words in ABOUT.items() if name in names]
    note = "`density` is the share of the inner channels that stays; the first layer's and all that residual "
    note += "streams share stay whole (depgraph chooses among those too)."
    return "\n".join(["## What was timed", "", note, "", *told, "", table(list(rows.values()))])


def _tables(done: Sequence[Document]) -> list[str]:
    def group(document: Document) -> tuple[Any, ...]:  # Any: the parts of a heading
        cell = document["cell"]
        return cell["network"], cell["density"], cell["runtime"], cell["precision"]

    parts = ["## Speedups"]
    for (network, density, runtime, precision), found in groupby(sorted(done, key=group), key=group):
        documents = sorted(found, key=lambda one: (one["cell"]["batch"], one["cell"]["turn"]))
        parts.append(f"### {network}, density {density:g}, {runtime}, {precision}, {documents[0]['device']}")
        if documents[0].get("calibration"):
            parts.append(f"INT8 was calibrated on {documents[0]['calibration']}.")
        parts.append(_long(documents) if _num_turns(documents) > MAX_WIDE_TURNS else _wide(documents))
        parts.append(_counts(documents))
        parts.append(_parity(documents))
        parts += _causes(documents)
    return parts


def _num_turns(documents: Sequence[Document]) -> int:
    return len({document["cell"]["turn"] for document in documents})


def _wide(documents: Sequence[Document]) -> str:
    lines: dict[str, dict[str, str]] = {}
    for document in documents:
        cell = document["cell"]
        head = f"batch {cell['batch']}" + (f", sweep {cell['turn']}" if _num_turns(documents) > 1 else "")
        for row in document["rows"]:
            line = lines.setdefault(
                row["subject"], {"subject": row["subject"], "MACs fewer": f"{row['macs_ratio']:.2f}x"}
            )
            line[f"{head}: p50, ms"] = f"{1000 * row['latency_s']['p50']:.3g}"
            line[f"{head}: speedup (95 %)"] = _speedup(row)
    return table(list(lines.values()))


def _long(documents: Sequence[Document]) -> str:
    lines = [
        {
            "batch": str(document["cell"]["batch"]),
            "sweep": str(document["cell"]["turn"]),
            "subject": row["subject"],
            "p50, ms": f"{1000 * row['latency_s']['p50']:.3g}",
            "speedup (95 %)": _speedup(row),
        }
        for document in documents
        for row in document["rows"]
        if row["speedup"] is not None
    ]
    return table(lines)


def _counts(documents: Sequence[Document]) -> str:
    found: dict[int, set[tuple[int, int]]] = {}
    for document in documents:
        first = document["rows"][0]
        found.setdefault(document["cell"]["batch"], set()).add((first["num_samples"], first["num_rounds"]))
    told = []
    for batch, counts in found.items():
        (least, rounds), (most, _) = min(counts), max(counts)
        span = str(least) if least == most else f"{least} to {most}"
        told.append(f"batch {batch}: n = {rounds} x {span}")
    return f"{'; '.join(told)}."


def _parity(documents: Sequence[Document]) -> str:
    rows = [row for document in documents for row in document["rows"]]
    worst = max(rows, key=lambda row: row["parity_rel_error"])
    least = min(rows, key=lambda row: row["top1_agreement"])
    kept = {
        row["subject"]: len(json.loads(row["file"]["fp32_layers"]))
        for row in rows
        if row["file"].get("fp32_layers", "[]") != "[]"
    }
    in_fp32 = ", ".join(f"{subject} {count}" for subject, count in kept.items())
    return (
        f"Outputs on {documents[0]['images']} against torch in fp32 on the CPU: largest relative error "
        f"{worst['parity_rel_error']:.1e} ({worst['subject']}), least top-1 agreement "
        f"{least['top1_agreement']:.0%} ({least['subject']}; random weights decide by small margins)."
        + (f" Layers that the parity gate keeps in fp32: {in_fp32}." if kept else "")
    )


def _causes(documents: Sequence[Document]) -> list[str]:
    """Return a list of the sentences that say why a time is not what the MACs promise."""
    told = [
        f"- batch {document['cell']['batch']}, {row['subject']}: {row['cause']['sentence']}"
        for document in documents
        if document["cell"]["turn"] == 1
        for row in document["rows"]
        if row.get("cause") and row["subject"] != "dense-again"
    ]
    return ["\n".join(["Why, by the runtime's own profile:", "", *told])] if told else []


def _speedup(row: Mapping[str, Any]) -> str:  # Any: JSON
    mark = "" if row["stable"] else " *"
    if row["speedup"] is None:
        return f"1{mark}"
    held = row["speedup"]
    return f"{held['ratio']:.2f}x ({held['low']:.2f}-{held['high']:.2f}){mark}"


def by_place(done: Sequence[Document]) -> dict[tuple[Any, ...], dict[int, Document]]:
    """Return the documents of each place in the sweep, by turn."""
    found: dict[tuple[Any, ...], dict[int, Document]] = {}
    for document in done:
        cell = Cell(**document["cell"])
        found.setdefault(cell.place, {})[cell.turn] = document
    return found


def overlaps(done: Sequence[Document]) -> tuple[int, int, list[str]]:
    """Return in how many rows the intervals of two sweeps overlap, of how many, and the others in words.

    Sweep 1 is compared with each later one. A row is one subject in one place; the baseline, whose ratio is 1
    by definition, is not counted.
    """
    num_overlapping, num_all, apart = 0, 0, []
    for place, by_turn in by_place(done).items():
        if 1 not in by_turn:
            continue
        for turn in sorted(set(by_turn) - {1}):
            later = {row["subject"]: row for row in by_turn[turn]["rows"]}
            for row in by_turn[1]["rows"]:
                if row["speedup"] is None or row["subject"] not in later:
                    continue
                first, second = row["speedup"], later[row["subject"]]["speedup"]
                num_all += 1
                if first["low"] <= second["high"] and second["low"] <= first["high"]:
                    num_overlapping += 1
                else:
                    words = ", ".join(str(part) for part in place)
                    apart.append(
                        f"{words}, {row['subject']}: {_speedup(row)} in sweep 1, "
                        f"{_speedup(later[row['subject']])} in sweep {turn}"
                    )
    return num_overlapping, num_all, apart


def _agreement(done: Sequence[Document]) -> list[str]:
    num_overlapping, num_all, apart = overlaps(done)
    if not num_all:
        return []
    told = (
        f"The intervals of two sweeps overlap in {num_overlapping} of {num_all} rows "
        f"({num_overlapping / num_all:.1%})."
    )
    return ["\n".join(["## Measured again", "", told, *[f"- apart: {words}" for words in apart]])]


def called_different(done: Sequence[Document]) -> tuple[int, int]:
    """Return how often dense against itself was called faster or slower, and how often it was timed."""
    held = [
        row["speedup"]
        for document in done
        for row in document["rows"]
        if row["subject"] == "dense-again" and row["speedup"] is not None
    ]
    return sum(1 for ratio in held if ratio["low"] > 1.0 or ratio["high"] < 1.0), len(held)


def _control(done: Sequence[Document]) -> list[str]:
    num_different, num_all = called_different(done)
    if not num_all:
        return []
    told = (
        f"Dense against itself (`dense-again`) was called different in {num_different} of {num_all} cells; "
        "at 95 % confidence about one in twenty is expected."
    )
    return ["\n".join(["## The method against itself", "", told])]


def reasons_told(done: Sequence[Document]) -> str:
    """Return the part of the page that says which timings are not to be trusted, and why."""
    told: dict[str, list[str]] = {}
    for document in done:
        for row in document["rows"]:
            for reason in row["reasons"]:
                if not reason.startswith("baseline"):
                    told.setdefault(Cell(**document["cell"]).key, []).append(f"{row['subject']}: {reason}")
    if not told:
        return "## Stability\n\nNo timing gives a reason to distrust it."
    lines = [f"- {key}: {'; '.join(_merged(reasons))}" for key, reasons in told.items()]
    return "\n".join(["## Stability", "", "Timings marked `*` and why:", "", *lines])


def _merged(reasons: Sequence[str]) -> list[str]:
    """Say a reason once that several subjects share."""
    subjects: dict[str, list[str]] = {}
    for told in reasons:
        subject, _, reason = told.partition(": ")
        subjects.setdefault(reason, []).append(subject)
    return [f"{', '.join(names)}: {reason}" for reason, names in subjects.items()]


def _without_cause(done: Sequence[Document]) -> list[str]:
    told = [
        f"- {Cell(**document['cell']).key}: {document['cause_error']}"
        for document in done
        if document.get("cause_error")
    ]
    return ["\n".join(["## Cells whose profile failed", "", *told])] if told else []


def _failed(failed: Sequence[Document]) -> list[str]:
    if not failed:
        return []
    lines = [f"- {Cell(**document['cell']).key}: {document['error']}" for document in failed]
    return ["\n".join(["## Cells that failed", "", "The same command tries them again.", "", *lines])]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table of rows that share their columns."""
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
