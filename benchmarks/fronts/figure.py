"""The one figure of a machine: accuracy against measured latency of every network, a panel per batch."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from finding.labels import Labelled, write_labels
from finding.scales import accuracy_over_latency, bars
from fronts.page import accuracy_interval, names_of
from fronts.reading import DENSE, Document, accuracies_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from speedup.plots import write_figure

from ticket_export.report.figure import FRONT_LINE, INK, MUTED, STYLE, UNIFORM_KINDS, draw_front, look_of
from ticket_export.report.front import Front, Point
from ticket_export.report.intervals import Spread

NUM_COLUMNS = 2
LEGEND_CHARACTERS = 118  # of a line of the legend, per column of panels
WORDS_BY_KIND = {  # of kinds that do not tell it by their name
    "depgraph": "depgraph (torch-pruning)",
    "reinit": "reinit (new weights)",
    "searched": "searched (search only)",
    "no_reactivation": "no reactivation",
    "random_reinit": "random, new weights",
    "uniform_latency": "uniform, equal latency",
}
LATENCY_BAR: dict[str, Any] = {"alpha": 0.5, "linewidth": 0.9, "zorder": 2}  # Any: keywords of plot


def draw(document: Document, stem: Path) -> list[Path]:
    """Write the figure as `stem`.svg and .png and return the paths."""
    return write_figure(figure_of(document), stem)


def figure_of(document: Document) -> Figure:
    """Return the figure: a panel per batch, every network labelled, the fronts named below."""
    batches = document["batches"]
    num_columns = min(NUM_COLUMNS, len(batches))
    num_rows = -(-len(batches) // num_columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(8.0, 6.4 * num_columns), 5.6 * num_rows + 1.4), layout="constrained")
        grid = figure.subplots(num_rows, num_columns, squeeze=False).flat
        drawn = [(axes, _panel(axes, document, batch)) for axes, batch in zip(grid, batches, strict=False)]
        for axes in list(figure.axes)[len(batches) :]:
            axes.set_axis_off()
        figure.suptitle(
            f"{document['title']}: {document['runtime']}, {document['precision']} on {document['device']}",
            fontsize=11, x=0.01, ha="left",
        )  # fmt: skip
        figure.legend(
            handles=_kind_handles(document), loc="outside lower left", ncols=5 if num_columns > 1 else 3,
            fontsize=9, title=_front_words(document, num_columns), alignment="left", title_fontsize=9,
        )  # fmt: skip
        figure.draw_without_rendering()  # the places of the points on the page are known from here on
        figure.set_layout_engine("none")
        for axes, points in drawn:
            write_labels(axes, points, fontsize=7.5)
    return figure


def _panel(axes: Axes, document: Document, batch: Document) -> list[Labelled]:
    kinds = {network["name"]: network["kind"] for network in document["networks"]}
    points = {
        held["name"]: Point(
            subject=held["name"],
            accuracies=accuracies_of(document["networks"], held["name"]),
            latency_s=Spread(**held["latency_s"]),
        )
        for held in batch["networks"]
    }
    ordered = tuple(sorted(points.values(), key=lambda point: -point.latency_s.mean))
    front = Front(points=ordered, **{field: batch["front"][field] for field in ("dominated_by", "by_means")})
    draw_front(axes, front)
    _lines(axes, document, points)
    labelled = []
    for held in batch["networks"]:
        point, look = points[held["name"]], look_of(kinds[held["name"]])
        accuracy = accuracy_interval(list(point.accuracies.values()))
        latency_ms = Spread(**{end: 1000 * value for end, value in held["latency_s"].items()})
        axes.plot([latency_ms.low, latency_ms.high], [accuracy.mean] * 2, color=look.color, **LATENCY_BAR)
        if accuracy.low != accuracy.high:
            axes.errorbar(
                [latency_ms.mean], [accuracy.mean], yerr=bars(accuracy), color=look.color, elinewidth=0.8,
                capsize=2, fmt="none",
            )  # fmt: skip
        axes.plot(
            [latency_ms.mean], [accuracy.mean], linestyle="none", marker=look.marker, markersize=7.5,
            markerfacecolor=look.color if held["stable"] else "white", zorder=3,
            markeredgecolor="white" if held["stable"] else look.color,  # neighbours stay apart
        )  # fmt: skip
        labelled.append(
            Labelled(
                text=held["name"], x=latency_ms.mean, y=accuracy.mean, color=look.color, low=accuracy.low,
                high=accuracy.high, left=latency_ms.low, right=latency_ms.high,
            )
        )  # fmt: skip
    accuracy_over_latency(axes, [point.x for point in labelled])
    axes.set_title(f"batch {batch['batch']}", fontsize=10, loc="left")
    axes.set_xlabel(f"median latency of a batch of {batch['batch']}, ms (logarithmic)")
    axes.set_ylabel("test accuracy")
    left, right = axes.get_xlim()  # dense is a line from side to side
    denses = {network["dense"] for network in document["networks"]}
    return [replace(one, left=left, right=right) if one.text in denses else one for one in labelled]


def _lines(axes: Axes, document: Document, points: dict[str, Point]) -> None:
    """Draw each dense network as a level line, and its uniform networks as a line that ends in it."""
    networks = document["networks"]
    for dense in dict.fromkeys(network["dense"] for network in networks):
        if dense not in points:
            continue
        axes.axhline(points[dense].accuracy.mean, color=INK, linewidth=0.8, zorder=1)
        for kind in UNIFORM_KINDS:
            own = dict.fromkeys(
                network["name"]
                for network in networks
                if network["dense"] == dense and network["kind"].partition("@")[0] == kind
            )
            line = sorted((points[name] for name in (dense, *own)), key=lambda point: point.latency_s.mean)
            if own:
                look = look_of(kind)
                axes.plot(
                    [1000 * point.latency_s.mean for point in line], [point.accuracy.mean for point in line],
                    color=look.color, dashes=look.dashes, linewidth=1.1, zorder=1.5,
                )  # fmt: skip


def _front_words(document: Document, num_columns: int) -> str:
    lines = [
        textwrap.fill(
            batch["front_line"], LEGEND_CHARACTERS * num_columns // NUM_COLUMNS, subsequent_indent="    "
        )
        for batch in document["batches"]
    ]
    return "\n".join(lines)


def _kind_handles(document: Document) -> list[Line2D]:
    kinds = dict.fromkeys(network["kind"].partition("@")[0] for network in document["networks"])
    handles = [Line2D([], [], label="Pareto front", **FRONT_LINE)]
    for kind in kinds:
        look = look_of(kind)
        handles.append(
            Line2D(
                [], [], color=look.color, marker=look.marker, label=WORDS_BY_KIND.get(kind, kind),
                linestyle="none", linewidth=1.0,
            )
        )  # fmt: skip
        if kind == DENSE or kind in UNIFORM_KINDS:
            handles[-1].set_linestyle((0, look.dashes) if look.dashes else "-")
    if not all(row["stable"] for row in document["rows"]):
        handles.append(
            Line2D(
                [], [], color=MUTED, linestyle="none", marker="s", markerfacecolor="white",
                label="open: a timing to distrust",
            )
        )  # fmt: skip
    enough = max(len(accuracies_of(document["networks"], name)) for name in names_of(document)) >= 3
    told = "bars: 95 % intervals" if enough else "bar: 95 % interval of the latency"
    return [*handles, Line2D([], [], color=MUTED, label=told)]
