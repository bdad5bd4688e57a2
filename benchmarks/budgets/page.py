"""The page and the figure of widths under a budget, from their document alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

Document = Mapping[str, Any]  # Any: JSON
LOOKS = {"latency": ("#0b5cad", "o"), "MACs": ("#b35c00", "s"), "uniform": ("#5b6470", "^")}
WORDS = {"latency": "by latency", "MACs": "by MACs, no slower", "uniform": "uniform, no slower"}
EQUAL = 0.02  # of dense: how far predicted latencies may differ that are called equal
MISS = 0.05  # of dense: how far a measured latency may lie from the asked one


def page(document: Document) -> str:
    """Return the results as markdown; FIGURE stands for the figure's name."""
    facts, packages = document["machine"], document["machine"]["packages"]
    how = (
        f"{document['runtime']}, {document['precision']}, batch {document['batch']}, "
        f"{document['threads']} thread(s)"
    )
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    trained = "trained weights" if document["has_weights"] else "UNTRAINED weights: importances say nothing"
    parts = [
        f"# Widths under a latency budget: {document['network']}, {how}",
        f"`{document['command']}`; {facts['cpu']}, {facts['num_usable_cores']} cores; {versions}; "
        f"{document['rounds']} interleaved rounds; {trained}; score {document['score']}, scope "
        f"{document['scope']}, {document['num_groups']} groups, widths at multiples of "
        f"{document['round_to']}; the table predicts other whole networks within "
        f"{100 * document['table_error']:.1f} % (median).",
    ]
    if document["choices"]:
        parts += [choice_sentence(document["choices"]), "![kept importance over latency](FIGURE)"]
        parts += [_table([_choice_row(one) for one in document["choices"]])]
    if document["filled"]:
        parts += ["## Free channels", filled_sentence(document["filled"])]
        parts += [_table([_filled_row(one) for one in document["filled"]])]
    return "\n\n".join(parts) + "\n"


def choice_sentence(choices: Sequence[Document]) -> str:
    """Return how much more latency-budgeted widths keep, and how near their latency is to the asked one."""
    by_share = _by_share(choices)
    told = []
    for other in ("MACs", "uniform"):
        every = [(own["latency"], own[other]) for own in by_share.values() if other in own]
        pairs = [(one, two) for one, two in every if one["predicted"] - two["predicted"] <= EQUAL]
        if not pairs and every:
            told.append(f"nothing that can be set against widths {WORDS[other]}: none comes near in latency")
        if pairs:
            gains = [100 * (one["kept_importance"] - two["kept_importance"]) for one, two in pairs]
            as_fast = [_is_not_slower(one, two) for one, two in pairs]
            fair = sum(gain > 0 and fast for gain, fast in zip(gains, as_fast, strict=True))
            told.append(
                f"{min(gains):.2f} to {max(gains):.2f} points of kept importance more than widths "
                f"{WORDS[other]}: more in {sum(gain > 0 for gain in gains)} of {len(gains)} budgets, in "
                f"{fair} of them without being measured slower"
            )
    missed = [100 * (own["latency"]["measured"]["share"] - asked) for asked, own in by_share.items()]
    within = sum(abs(points) <= 100 * MISS for points in missed)
    return (
        f"Widths chosen by latency keep {'; and '.join(told)}. Latencies are equal by the table, not by the "
        "clock: slower is an interval that lies above the other's. Their measured latency lies "
        f"{min(missed):+.1f} to {max(missed):+.1f} points from the asked share of dense, {within} of "
        f"{len(missed)} within {100 * MISS:.0f} points, as the table has it, without the corrections that a "
        f"finder makes. {_unstable([one['measured'] for one in choices])} Kept importance is the geometric "
        "mean over channel groups of the kept share of their scores; compared are networks whose predicted "
        f"latencies differ by {100 * EQUAL:.0f} points at most."
    )


def _is_not_slower(one: Document, two: Document) -> bool:
    return bool(one["measured"]["low"] <= two["measured"]["high"])


def _unstable(measured: Sequence[Document]) -> str:
    num_unstable = sum(not found["stable"] for found in measured)
    return f"{num_unstable} of {len(measured)} timings are unstable."


def filled_sentence(filled: Sequence[Document]) -> str:
    """Return what was free, and what it cost when it was timed."""
    gained = [100 * (one["channels_after"] / one["channels_before"] - 1) for one in filled]
    shares = [one["measured"]["share"] for one in filled]
    slower = sum(one["measured"]["low"] > 1 for one in filled)
    faster = sum(one["measured"]["high"] < 1 for one in filled)
    return (
        f"Groups of a ticket without a width grid grow by {min(gained):.0f} to {max(gained):.0f} % of its "
        f"channels at the same predicted latency; measured, the wider network takes {min(shares):.3f} to "
        f"{max(shares):.3f} times as long: shown to be slower in {slower} and faster in {faster} of "
        f"{len(filled)}. {_unstable([one['measured'] for one in filled])}"
    )


def _by_share(choices: Sequence[Document]) -> dict[float, dict[str, Document]]:
    found: dict[float, dict[str, Document]] = {}
    for one in choices:
        found.setdefault(one["asked"], {})[one["by"]] = one
    return found


def _choice_row(one: Document) -> dict[str, str]:
    return {
        "asked": f"{100 * one['asked']:.1f} %",
        "widths": WORDS[one["by"]],
        "kept importance": f"{100 * one['kept_importance']:.2f} %",
        "predicted": f"{100 * one['predicted']:.1f} %",
        "measured (95 %)": _interval(one["measured"], 100, " %", 1),
        "MACs": f"{100 * one['mac_share']:.1f} %",
    }


def _filled_row(one: Document) -> dict[str, str]:
    return {
        "weights left": f"{100 * one['density']:.0f} %",
        "channels": f"{one['channels_before']} -> {one['channels_after']}",
        "kept importance": f"{100 * one['importance_before']:.2f} -> {100 * one['importance_after']:.2f} %",
        "MACs": f"{one['macs']:.2f}x",
        "latency, predicted": f"{one['predicted']:.3f}x",
        "measured (95 %)": _interval(one["measured"], 1, "x", 3),
        "of dense": _interval(one["of_dense"], 100, " %", 1),
    }


def _interval(found: Document, factor: float, unit: str, digits: int) -> str:
    middle, low, high = (f"{factor * found[name]:.{digits}f}" for name in ("share", "low", "high"))
    return f"{middle}{unit} ({low}-{high}){'' if found['stable'] else ' unstable'}"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def figure(document: Document) -> str:
    """Return as SVG kept importance over measured latency, and what free channels cost."""
    with matplotlib.rc_context({"svg.hashsalt": "ticket_export", "font.size": 9, "axes.grid": True}):
        sheet = Figure(figsize=(9.0, 4.0), layout="constrained")
        left, right = sheet.subplots(1, 2)
        _draw_choices(left, document["choices"])
        _draw_filled(right, document["filled"])
        out = io.StringIO()
        sheet.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw_choices(axes: Axes, choices: Sequence[Document]) -> None:
    for by, (color, marker) in LOOKS.items():
        own = sorted((one for one in choices if one["by"] == by), key=lambda one: one["measured"]["share"])
        if not own:
            continue
        x = [100 * one["measured"]["share"] for one in own]
        y = [100 * one["kept_importance"] for one in own]
        errors = [
            [100 * (one["measured"]["share"] - one["measured"]["low"]) for one in own],
            [100 * (one["measured"]["high"] - one["measured"]["share"]) for one in own],
        ]
        axes.errorbar(x, y, xerr=errors, color=color, marker=marker, markersize=4, label=WORDS[by])
    axes.set(
        xlabel="measured latency, % of dense", ylabel="kept importance, %", title="Equal predicted latency"
    )
    if choices:
        axes.legend(loc="lower right", fontsize=8)


def _draw_filled(axes: Axes, filled: Sequence[Document]) -> None:
    gained = [100 * (one["channels_after"] / one["channels_before"] - 1) for one in filled]
    shares = [one["measured"]["share"] for one in filled]
    errors = [
        [one["measured"]["share"] - one["measured"]["low"] for one in filled],
        [one["measured"]["high"] - one["measured"]["share"] for one in filled],
    ]
    axes.axhline(1.0, color="#5b6470", linewidth=0.9)
    if filled:
        axes.errorbar(gained, shares, yerr=errors, fmt="o", color="#0b5cad", markersize=4)
    for one, x, y in zip(filled, gained, shares, strict=True):
        label = f"{100 * one['density']:.0f} % of the weights"
        axes.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2)
    axes.set(xlabel="channels gained, %", ylabel="latency after / before", title="Free channels")
