"""Widths by measurement, as tables: every network that was timed, the one that was kept, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ticket_export.report import words
from ticket_export.report.artefacts import Choice
from ticket_export.report.sections import typeset
from ticket_export.report.table import markdown_table, text_table

Told = Mapping[str, Any]  # Any: JSON, as a WidthChoice tells it
NOTE = (
    "Each network was shrunk to several width grids, all computing the same, and timed beside dense in one "
    "interleaved run per batch. Per grid: its fastest form's speedup over dense with its 95 % interval, the "
    "geometric mean over the batches. Kept is the smallest file of those than which none is shown to be "
    "faster."
)
_MEGA = 1e6


def choice_text(choice: Told) -> str:
    """Return the table of a choice and the sentence about it, for a terminal."""
    return f"{text_table(_heads(choice), _rows(choice))}\n\n{choice_sentence(choice)}"


def summary_heads(choices: Sequence[Choice]) -> tuple[str, ...]:
    """Return the heads of `summary_rows`."""
    return ("network", "for", "kept", *(f"round_to {grid}" for grid in _grids(choices)))


def summary_rows(choices: Sequence[Choice]) -> list[tuple[str, ...]]:
    """Return one row per choice: what was kept, and how fast the best form of every grid is."""
    rows: list[tuple[str, ...]] = []
    for choice in choices:
        told = choice.told
        ratios: dict[int, Mapping[str, Any]] = {}  # Any: JSON
        for one in told["candidates"]:
            for grid in {one["round_to"], *(number for number, _ in one["same_as"])}:
                if grid not in ratios or one["speedup"]["ratio"] > ratios[grid]["ratio"]:
                    ratios[grid] = one["speedup"]
        rows.append(
            (
                f"{choice.subject}, replicate {choice.replicate}",
                f"{told['runtime']}, {told['precision']}",
                network_name(told["candidates"][told["chosen"]]),
                *(words.ratio(ratios[grid]) if grid in ratios else "" for grid in _grids(choices)),
            )
        )
    return rows


def summary_table(choices: Sequence[Choice]) -> str:
    """Return the choices of a run in markdown, with how to read them."""
    return f"{NOTE}\n\n{markdown_table(summary_heads(choices), summary_rows(choices))}"


def section(choices: Sequence[Choice]) -> str:
    """Return the choices of a run as a piece of HTML; empty where none was made."""
    if not choices:
        return ""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in summary_heads(choices))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{typeset(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in summary_rows(choices)
    )
    return (
        f"<h2>Widths by measurement</h2><p class='note'>{typeset(NOTE)}</p>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _grids(choices: Sequence[Choice]) -> list[int]:
    return sorted(
        {
            grid
            for choice in choices
            for one in choice.told["candidates"]
            for grid in (one["round_to"], *(number for number, _ in one["same_as"]))
        }
    )


def choice_markdown(choice: Told) -> str:
    """Return the table of a choice and the sentence about it, in markdown."""
    return f"{markdown_table(_heads(choice), _rows(choice))}\n\n{choice_sentence(choice)}"


def choice_sentence(choice: Told) -> str:
    """Say what was kept, for what, and what that rests on."""
    kept = choice["candidates"][choice["chosen"]]
    fastest = max(choice["candidates"], key=lambda one: one["speedup"]["ratio"])
    threads = "1 thread" if choice["threads"] == 1 else f"{choice['threads']} threads"
    batches = ", ".join(map(str, choice["batches"]))
    several = ", geometric mean" if len(choice["batches"]) > 1 else ""
    text = (
        f"Kept: {network_name(kept)}, {words.ratio(kept['speedup'])} against dense in {choice['runtime']}, "
        f"{choice['precision']}, batch {batches}{several}, {choice['scope']}, {threads}, "
        f"{choice['num_rounds']} rounds. No other is shown to be faster."
    )
    if fastest is not kept:
        text += (
            f" It is not shown to differ from {network_name(fastest)} ({fastest['speedup']['ratio']:.2f}x): "
            "the smaller one is kept."
        )
    reasons = list(dict.fromkeys(reason for one in choice["candidates"] for reason in one["reasons"]))
    if reasons:
        more = "" if len(reasons) == 1 else f" (and {len(reasons) - 1} more)"
        text += f" Timings are unstable: {reasons[0]}{more}."
    return text


def network_name(candidate: Mapping[str, Any]) -> str:  # Any: JSON
    """Return how a network of a choice is called: `round_to 8`, or `round_to 8, term`."""
    form = f", {candidate['form']}" if candidate["form"] else ""
    return f"round_to {candidate['round_to']}{form}"


def _heads(choice: Told) -> tuple[str, ...]:
    batches = choice["batches"] if len(choice["batches"]) > 1 else ()
    over_dense = "speedup over dense (95 %)"
    return (
        *("widths", "padded constants", "MACs, M", "weights", "file, kB", over_dense),
        *(f"batch {batch}" for batch in batches),
        "",
    )


def _rows(choice: Told) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [
        ("dense", "", f"{choice['macs_dense'] / _MEGA:,.2f}", f"{choice['params_dense']:,}", "", "baseline")
        + ("",) * (len(_heads(choice)) - 6)
    ]
    for place, one in enumerate(choice["candidates"]):
        same = [network_name({"round_to": number, "form": form}) for number, form in one["same_as"]]
        notes = ["kept"] if place == choice["chosen"] else []
        notes += [f"same as {', '.join(same)}"] if same else []
        notes += ["unstable"] if one["reasons"] else []
        per_batch = (
            [words.ratio(ratio) for ratio in one["by_batch"].values()] if len(choice["batches"]) > 1 else []
        )
        rows.append(
            (
                one["round_to"],
                one["form"] or "none",
                f"{one['macs'] / _MEGA:,.2f}",
                f"{one['params']:,}",
                "-" if one["file_bytes"] is None else f"{one['file_bytes'] / 1e3:,.0f}",
                words.ratio(one["speedup"]),
                *per_batch,
                "; ".join(notes),
            )
        )
    return rows
