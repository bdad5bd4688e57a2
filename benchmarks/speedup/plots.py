"""Figures of the speedup benchmarks as SVG text or PNG bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ticket_export.report.figure import INK, MUTED, STYLE

FAMILIES = {  # subject -> colour of its curve, marker
    "dense": (INK, "o"),
    "ticket": ("#0b5cad", "s"),
    "uniform": ("#b35c00", "^"),
    "depgraph": ("#8e44ad", "D"),
    "unstructured": ("#00796b", "P"),
}
CAUSES = {  # kind of measure/cause.py -> words, colour: the same in every figure
    "as_macs": ("the time follows the MACs", "#00796b"),
    "faster_than_macs": ("faster than the MACs say", "#0b5cad"),
    "floor": ("layers that did not shrink", "#b35c00"),
    "widths": ("widths off the kernels' grid", "#b00020"),
    "memory": ("layers bound by memory", "#8e44ad"),
    "kernels": ("smaller kernels run less well", "#7a6a00"),
    "reformat": ("changes of layout", "#c2185b"),
    "launch": ("waiting for launches", "#005f73"),
    "mixed": ("no single thing", "#6d4c41"),
    "unresolved": ("interval too wide to say", "#9e9e9e"),
    "unknown": ("not known: no profile", "#757575"),
}
OTHER_CAUSE = ("another cause", "#37474f")
UNTOLD_CAUSES = (
    "as_macs",
    "unknown",
)  # not written beside a point: the line says the first
LABEL_PLACES = (
    (6, -3),
    (6, 6),
    (6, -12),
    (-6, -3),
    (-6, 6),
    (-6, -12),
    (0, 12),
    (0, -18),
    (14, 14),
    (14, -20),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row of a cell: MACs against time.

    Attributes:
        panel: what its panel is called, e.g. "ort-cpu, fp32".
        subject: one of SUBJECTS.
        label: what is written beside it.
        macs_ratio: MACs of dense / its own.
        ratio, low, high: the speedup and its 95 % interval.
        cause: the kind of its cause, of CAUSES where it is known here.
    """

    panel: str
    subject: str
    label: str
    macs_ratio: float
    ratio: float
    low: float
    high: float
    cause: str


def text_of(point: Point) -> str:
    """Return what stands beside a point: its label, and its cause in a word where it is off the line."""
    if point.cause in UNTOLD_CAUSES:
        return point.label
    return f"{point.label}: {point.cause.replace('_', ' ')}"


def cause_of(point: Point) -> tuple[str, str]:
    """Return the words and the colour of a point's cause."""
    return CAUSES.get(point.cause, OTHER_CAUSE)


def family_of(subject: str) -> str:
    """Return the kind of a subject: the word before its first dash."""
    return subject.partition("-")[0]


def batch_curves(done: Sequence[Mapping[str, Any]]) -> str:  # Any: JSON
    """Draw latency per image and throughput over the batch, one curve per subject, as SVG."""
    batches = [document["cell"]["batch"] for document in done]
    subjects = [row["subject"] for row in done[0]["rows"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, subject in enumerate(subjects):
            rows = [document["rows"][place] for document in done]
            color, marker = FAMILIES[family_of(subject)]
            alike = [other for other in subjects if family_of(other) == family_of(subject)]
            style: dict[str, Any] = {  # Any: keywords of plot
                "color": color,
                "marker": marker,
                "linestyle": ("-", "--", ":", "-.")[alike.index(subject) % 4],
                "markerfacecolor": color if alike.index(subject) == 0 else "white",
                "label": subject,
            }
            left.plot(batches, [1000 * row["latency_s"]["p50"] for row in rows], **style)
            right.plot(
                batches,
                [batch / row["latency_s"]["p50"] for batch, row in zip(batches, rows, strict=True)],
                **style,
            )
        for axes, words in ((left, "median latency of the batch, ms"), (right, "images per second")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(batches, [str(batch) for batch in batches])
            axes.set_xlabel("images in a batch")
            axes.set_ylabel(words)
        left.set_yscale("log")
        right.set_ylim(bottom=0)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
        return _svg(figure)


def speedup_against_macs(points: Sequence[Point], title: str, note: str) -> Figure:
    """Draw measured speedups over MAC ratios, panel by panel, the ideal line in each.

    Colour and a word tell the cause, the marker the kind of subject; a bar is the 95 % interval.
    """
    panels = list(dict.fromkeys(point.panel for point in points))
    num_columns = min(3, len(panels)) if len(panels) != 4 else 2
    num_rows = -(-len(panels) // num_columns)
    highest = 1.15 * max(max(point.macs_ratio, point.high) for point in points)
    lowest = 0.93 * min(1.0, *(point.low for point in points))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(7.6, 5.2 * num_columns), 4.6 * num_rows + 1.5), layout="constrained")
        grid = figure.subplots(num_rows, num_columns, squeeze=False)
        drawn: list[tuple[Axes, list[Point]]] = []
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            held = [point for point in points if point.panel == panels[place]]
            _panel(axes, panels[place], held, (lowest, highest))
            drawn.append((axes, held))
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        figure.legend(handles=_legend(points, note), loc="outside lower left", ncols=2, fontsize=9,
                      handlelength=1.6)  # fmt: skip
        figure.draw_without_rendering()  # the places of the points on the page are known from here on
        figure.set_layout_engine("none")
        for axes, held in drawn:
            _label(axes, held)
    return figure


def _panel(axes: Axes, title: str, points: Sequence[Point], limits: tuple[float, float]) -> None:
    lowest, highest = limits
    axes.plot([1, highest], [1, highest], color=INK, linewidth=1.2)
    axes.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.text(highest, highest, "ideal: time falls as MACs ", fontsize=8, ha="right", va="bottom", color=INK)
    axes.text(highest, 1.0, "as fast as dense ", fontsize=8, ha="right", va="top", color=MUTED)
    for point, x in zip(points, spread(points), strict=True):
        axes.errorbar(
            [x],
            [point.ratio],
            yerr=[[max(0.0, point.ratio - point.low)], [max(0.0, point.high - point.ratio)]],
            color=cause_of(point)[1],
            elinewidth=1,
            capsize=2,
            marker=FAMILIES[family_of(point.subject)][1],
            markersize=6,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9, highest)
    axes.set_ylim(lowest, highest)
    ticks = [tick for tick in (0.25, 0.5, 0.7, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16) if tick <= highest]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_title(title, fontsize=10, loc="left", pad=14)
    axes.set_xlabel("fewer MACs than dense")
    axes.set_ylabel("measured speedup over dense")


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write each point's label at the first place beside it that no other point or label takes."""
    places = list(zip(spread(points), [point.ratio for point in points], strict=True))
    centres = [axes.transData.transform(place) for place in places]
    scale = axes.get_figure(root=True).dpi / 72  # offsets are in points, centres in pixels
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in centres]
    for point, place, (x, y) in zip(points, places, centres, strict=True):
        width, height = 4.4 * scale * len(text_of(point)), 8 * scale
        boxes = []
        for right, up in LABEL_PLACES:
            left = x + right * scale - (width if right < 0 else width / 2 if right == 0 else 0)
            boxes.append((left, y + up * scale, left + width, y + up * scale + height))
        chosen = next((i for i, box in enumerate(boxes) if not any(_meet(box, other) for other in taken)), 0)
        taken.append(boxes[chosen])
        right, up = LABEL_PLACES[chosen]
        axes.annotate(
            text_of(point), place, xytext=(right, up), textcoords="offset points", fontsize=7.5,
            color=cause_of(point)[1], ha="right" if right < 0 else "center" if right == 0 else "left",
        )  # fmt: skip


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def spread(points: Sequence[Point]) -> list[float]:
    """Return where points are drawn: those of one MAC ratio lie side by side, at most a few per cent off."""
    places = []
    for point in points:
        alike = [other for other in points if abs(other.macs_ratio / point.macs_ratio - 1) < 0.001]
        offset = alike.index(point) - (len(alike) - 1) / 2
        places.append(point.macs_ratio * (1 + 0.02 * offset))
    return places


def _legend(points: Sequence[Point], note: str) -> list[Line2D]:
    counts = Counter(cause_of(point) for point in points)
    handles = [
        Line2D([], [], color=color, linewidth=4, label=f"{words} ({counts[words, color]})")
        for words, color in (*CAUSES.values(), OTHER_CAUSE)
        if counts[words, color]
    ]
    families = dict.fromkeys(family_of(point.subject) for point in points)
    handles += [
        Line2D([], [], color=INK, linestyle="none", marker=FAMILIES[name][1], label=name) for name in families
    ]
    return [*handles, Line2D([], [], linestyle="none", label=note)]


def _svg(figure: Figure) -> str:
    return bytes_of(figure, "svg").decode()


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as `stem`.svg and .png and return the paths."""
    paths = []
    for kind in ("svg", "png"):
        path = stem.with_name(f"{stem.name}.{kind}")
        path.write_bytes(bytes_of(figure, kind))
        paths.append(path)
    return paths


def bytes_of(figure: Figure, kind: str) -> bytes:
    """Return the figure as "svg" or "png", without a date."""
    buffer = BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata, facecolor="white")
    return buffer.getvalue()
