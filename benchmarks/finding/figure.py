"""The figure of a comparison of finders: accuracy against measured latency, and what each search costs."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import matplotlib
from finding.labels import Labelled, write_labels
from finding.reading import Document, batches_of, cost_of, names_of, rows_of, values_of
from finding.scales import accuracy_over_latency, bars
from finding.variants import CONTROLS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from speedup.plots import write_figure

from ticket_export.report.figure import INK, MUTED, STYLE
from ticket_export.report.intervals import spread

PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # digits stay readable over a line
COSTS = (  # field of a network, words, offset of its bar, hatch
    ("time_ratio", "by time", -0.19, ""),
    ("macs_ratio", "by epochs x MACs", 0.19, "////"),
)


class Look(NamedTuple):
    """How a kind of network is drawn: kinds differ in marker as well as in colour."""

    words: str
    color: str
    marker: str


DENSE = Look("dense", INK, "o")
FINDER = Look("ticket", "#0b5cad", "s")
UNIFORM = Look("uniform", "#b35c00", "^")
CONTROL = Look("other controls", "#757575", "v")


def draw(document: Document, stem: Path) -> list[Path]:
    """Write the figure as `stem`.svg and .png and return the paths."""
    return write_figure(figure_of(document), stem)


def figure_of(document: Document) -> Figure:
    """Return the figure: a panel for the smallest batch, one for the largest, and the search costs."""
    batches = sorted({batches_of(document)[0], batches_of(document)[-1]})
    networks = [name for name in names_of(document) if name != "dense"]
    panels = [f"batch {batch}" for batch in batches]
    height_in = 0.8 + 0.36 * len(networks)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6 * max(2, len(batches)), 6.4 + height_in), layout="constrained")
        axes_by_name = figure.subplot_mosaic(
            [panels, ["costs"] * len(batches)], height_ratios=[5.2, height_in]
        )  # fmt: skip
        drawn = [
            (axes_by_name[panel], _panel(axes_by_name[panel], document, batch))
            for panel, batch in zip(panels, batches, strict=True)
        ]
        _costs(axes_by_name["costs"], document, networks)
        machine = document["machine"]
        figure.suptitle(
            f"CIFAR-10, ResNet-20, n = {len(values_of(document, 'dense', 'accuracy'))}: "
            f"{document['rows'][0]['runtime']} on {machine['cpu']}", fontsize=11, x=0.01, ha="left",
        )  # fmt: skip
        figure.legend(handles=_legend(document), loc="outside lower left", ncols=3, fontsize=9)
        figure.draw_without_rendering()  # the places of the points on the page are known from here on
        figure.set_layout_engine("none")
        for axes, points in drawn:
            write_labels(axes, points)
    return figure


def look_of(name: str) -> Look:
    """Return how a network is drawn."""
    if name == "dense":
        return DENSE
    return UNIFORM if name == "uniform" else CONTROL if name in CONTROLS else FINDER


def _panel(axes: Axes, document: Document, batch: int) -> list[Labelled]:
    points = []
    for name in names_of(document):
        rows = rows_of(document, name, batch)
        if not rows:
            continue
        look = look_of(name)
        accuracy = spread(list(values_of(document, name, "accuracy").values()))
        latency_ms = 1000 * fmean(row["latency_s"]["p50"] for row in rows)
        if accuracy.low != accuracy.high:
            axes.errorbar(
                [latency_ms], [accuracy.mean], yerr=bars(accuracy), color=look.color, elinewidth=0.8,
                capsize=2, fmt="none",
            )  # fmt: skip
        stable = all(row["stable"] for row in rows)
        axes.plot(
            [latency_ms], [accuracy.mean], linestyle="none", marker=look.marker, markersize=7.5, zorder=3,
            markerfacecolor=look.color if stable else "white",
            markeredgecolor="white" if stable else look.color,  # neighbours stay apart
        )  # fmt: skip
        held = {"low": accuracy.low, "high": accuracy.high, "color": look.color}
        points.append(Labelled(text=name, x=latency_ms, y=accuracy.mean, **held))
    accuracy_over_latency(axes, [point.x for point in points])
    axes.set_title(f"batch {batch}", fontsize=10, loc="left")
    axes.set_xlabel(f"median latency of a batch of {batch}, ms")
    axes.set_ylabel("test accuracy")
    return points


def _costs(axes: Axes, document: Document, names: list[str]) -> None:
    axes.grid(axis="y", visible=False)
    longest = 1.0
    for place, name in enumerate(names):
        for field, _, offset, hatch in COSTS:
            cost = cost_of(document, name, field)
            if cost is None:
                continue
            color = look_of(name).color
            axes.barh(
                place + offset, cost.mean, height=0.36, color="white" if hatch else color, edgecolor=color,
                hatch=hatch, linewidth=0.8,
            )  # fmt: skip
            if cost.low != cost.high:
                axes.errorbar(
                    [cost.mean], [place + offset], xerr=bars(cost), color=INK, elinewidth=0.8, capsize=2
                )
            axes.annotate(
                f"{cost.mean:.2f}", (cost.high, place + offset), xytext=(4, 0), textcoords="offset points",
                fontsize=7.5, va="center", bbox=PLATE,
            )  # fmt: skip
            longest = max(longest, cost.high)
    axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.08 * longest)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_title("what the search costs, its own training included", fontsize=10, loc="left")
    axes.set_xlabel("dense trainings (dashed: one)")


def _legend(document: Document) -> list[Line2D | Patch]:
    looks = dict.fromkeys(look_of(name) for name in names_of(document))
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=look.color, linestyle="none", marker=look.marker, label=look.words)
        for look in looks
    ]
    if not all(row["stable"] for row in document["rows"]):
        handles.append(
            Line2D(
                [], [], color=MUTED, linestyle="none", marker="s", markerfacecolor="white",
                label="open: a timing to distrust",
            )
        )  # fmt: skip
    handles.append(Line2D([], [], color=MUTED, label="bar: lowest to highest replicate"))
    for _, told, _, hatch in COSTS:
        handles.append(
            Patch(facecolor="white" if hatch else MUTED, edgecolor=MUTED, hatch=hatch, label=f"cost {told}")
        )
    return handles
