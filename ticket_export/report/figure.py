"""Figures as SVG text: every subject has its own marker and hatch, so that they read without colour too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from ticket_export.report.artefacts import Width
from ticket_export.report.front import Front
from ticket_export.report.rows import Report
from ticket_export.report.verdict import SubjectLine

INK, MUTED, RULE = "#1b1f24", "#5b6470", "#d9dee5"
_WIDTH_IN = 4.4  # two side by side on a desk; one on a phone, its letters still above 10 px
UNIFORM_KINDS = ("uniform", "uniform_latency")


class Look(NamedTuple):
    """How one kind of subject is drawn in every figure."""

    color: str
    marker: str
    dashes: tuple[float, ...]


# each kind differs in marker and dashes as well as in colour
_LOOKS = {
    "dense": Look(INK, "o", ()),
    "ticket": Look("#0b5cad", "s", ()),
    "unstructured": Look("#00796b", "P", (6, 1.5, 1, 1.5)),
    "uniform": Look("#b35c00", "^", (5, 2)),
    "uniform_latency": Look("#c77700", ">", (2, 1.5)),
    "searched": Look("#004d7a", "h", (8, 2)),
    "no_reactivation": Look("#5a7d9a", "d", (3, 2, 1, 2)),
    "depgraph": Look("#a3195b", "p", (4, 1.5, 1, 1.5)),
    "random": Look("#757575", "v", (1, 1.5)),
    "reinit": Look("#8e44ad", "X", (3, 1.5, 1, 1.5, 1, 1.5)),
    "random_reinit": Look("#8a6d00", "*", (1, 3)),
}
_OTHER = Look("#444444", "D", (2, 2))

# a front is broad and pale: what lies on it stays readable
FRONT_LINE: dict[str, Any] = {  # Any: keywords of plot
    "color": "#9fd0b4",
    "linewidth": 5.0,
    "solid_capstyle": "round",
}
FRONT_GROUND: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 16, "markeredgewidth": 0}

_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # digits stay readable over a line

STYLE: dict[Any, Any] = {  # of every figure of ours. Any: matplotlib types its keys as one long Literal
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same letters everywhere
    "font.size": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "ticket_export",  # the same numbers give the same bytes
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
_REPORT_STYLE = STYLE | {"hatch.linewidth": 0.8, "legend.fontsize": 9, "lines.linewidth": 1.6}


def accuracy_against_latency(lines: Sequence[SubjectLine], front: Front) -> str:
    """Draw each subject's accuracy over its median latency; bars span the replicates.

    Dense is a level line, each kind of uniform network a line that ends in dense, the front a broad one.
    What is on the front has a pale ground, also where means put it below the line.

    Args:
        lines: all subjects under one setting.
        front: theirs.
    """
    with matplotlib.rc_context(_REPORT_STYLE):
        figure, axes = _axes(height_in=4.2)
        _reference_lines(axes, lines, front)
        for line in lines:
            look, latency_ms = look_of(line.subject), 1000 * line.latency_s.mean
            axes.errorbar(
                [latency_ms],
                [line.accuracy.mean],
                xerr=_bars(latency_ms, 1000 * line.latency_s.low, 1000 * line.latency_s.high),
                yerr=_bars(line.accuracy.mean, line.accuracy.low, line.accuracy.high),
                capsize=3,
                color=look.color,
                elinewidth=1,
                label=line.subject,
                linestyle="none",
                marker=look.marker,
                markerfacecolor=_face(line.subject, lines),
                markersize=9,
            )
        axes.set_xlim(0, 1.08 * max(1000 * line.latency_s.high for line in lines))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1, symbol=" %"))
        batch = lines[0].setting.batch
        axes.set_xlabel(f"median latency of a batch of {batch}, ms")
        axes.set_ylabel("test accuracy")
        return _svg(figure, axes)


def _reference_lines(axes: Axes, lines: Sequence[SubjectLine], front: Front) -> None:
    dense = [line for line in lines if line.subject == "dense"]
    for line in dense:
        axes.axhline(line.accuracy.mean, color=INK, linewidth=0.8, zorder=1)
    for kind in UNIFORM_KINDS:
        own = [line for line in lines if line.subject.partition("@")[0] == kind]
        if own:
            look = look_of(kind)
            axes.plot(*_places([*dense, *own]), color=look.color, dashes=look.dashes, linewidth=1.1)
    draw_front(axes, front)


def draw_front(axes: Axes, front: Front, label: str = "Pareto front") -> None:
    """Draw a front below everything else: a broad line, and a pale ground under each of its points.

    Args:
        axes: of accuracy over milliseconds.
        front: the front.
        label: its words in a legend.
    """
    for points, style in ((front.line, {"label": label}), (front.on_it, FRONT_GROUND)):
        axes.plot(
            [1000 * point.latency_s.mean for point in points],
            [point.accuracy.mean for point in points],
            zorder=1.2,
            **FRONT_LINE | style,
        )


def _places(lines: Sequence[SubjectLine]) -> tuple[list[float], list[float]]:
    ordered = sorted(lines, key=lambda line: line.latency_s.mean)
    return [1000 * line.latency_s.mean for line in ordered], [line.accuracy.mean for line in ordered]


def latency_against_batch(lines_by_batch: Mapping[int, Sequence[SubjectLine]]) -> str:
    """Draw each subject's median latency per image over the batch size, both on logarithmic scales.

    Args:
        lines_by_batch: batch size -> all subjects, under settings that differ in nothing else.
    """
    batches = sorted(lines_by_batch)
    subjects = lines_by_batch[batches[0]]
    with matplotlib.rc_context(_REPORT_STYLE):
        figure, axes = _axes(height_in=4.0)
        for subject in [line.subject for line in subjects]:
            look = look_of(subject)
            per_image_ms = [
                1000 * line.latency_s.mean / batch
                for batch in batches
                for line in lines_by_batch[batch]
                if line.subject == subject
            ]
            axes.plot(
                batches,
                per_image_ms,
                color=look.color,
                dashes=look.dashes,
                label=subject,
                marker=look.marker,
                markerfacecolor=_face(subject, subjects),
                markersize=7,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("images in a batch")
        axes.set_ylabel("median latency per image, ms")
        return _svg(figure, axes)


def kept_fractions(lines: Sequence[SubjectLine]) -> str:
    """Draw three bars per subject: weights, MACs and time kept, each as a share of dense.

    Args:
        lines: all subjects under one setting; time kept is 1 / speedup, with the interval of the speedup.
    """
    subjects = [line for line in lines if line.speedup is not None]
    with matplotlib.rc_context(_REPORT_STYLE):
        figure, axes = _axes(height_in=0.9 + 0.62 * max(1, len(subjects)))
        axes.grid(axis="y", visible=False)
        for place, line in enumerate(subjects):
            assert line.speedup is not None
            time_kept = 1 / line.speedup.mean
            bars = (
                (-0.26, line.param_density, "#44546a", "", "weights"),
                (0.0, line.mac_density, "#c9d3df", "////", "MACs"),
                (0.26, time_kept, "white", "", "time"),
            )
            for offset, fraction, color, hatch, label in bars:
                axes.barh(
                    place + offset,
                    fraction,
                    color=color,
                    edgecolor=INK,
                    hatch=hatch,
                    height=0.24,
                    label=label if place == 0 else None,
                    linewidth=0.8,
                )
                # the digits of the time stand clear of its whisker
                end = 1 / line.speedup.low if label == "time" else fraction
                axes.text(
                    end + 0.015,
                    place + offset,
                    f"{100 * fraction:.0f} %",
                    fontsize=8,
                    va="center",
                    bbox=_PLATE,
                )
            axes.errorbar(
                [time_kept],
                [place + 0.26],
                xerr=_bars(time_kept, 1 / line.speedup.high, 1 / line.speedup.low),
                capsize=2,
                color=INK,
                elinewidth=1,
            )
        axes.axvline(1.0, color=INK, linewidth=1)
        axes.set_yticks(range(len(subjects)), [line.subject for line in subjects])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max([1.0, *(1 / line.speedup.low for line in subjects if line.speedup)]))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_xlabel(f"kept, share of dense (time: batch {lines[0].setting.batch})")
        return _svg(figure, axes)


def layer_widths(report: Report, subject: str) -> str:
    """Draw the channels kept in every group of one subject inside the outline of the dense network.

    Raises:
        KeyError: `subject` is not in the report.
    """
    by_replicate = list(report.widths[subject].values())
    groups = by_replicate[0]
    with matplotlib.rc_context(_REPORT_STYLE):
        figure, axes = _axes(height_in=0.9 + 0.26 * len(groups))
        axes.grid(axis="y", visible=False)
        for place, group in enumerate(groups):
            kept = [widths[place].after for widths in by_replicate]
            axes.barh(place, group.before, color="white", edgecolor=MUTED, height=0.72, linewidth=0.9)
            axes.barh(place, fmean(kept), color=look_of(subject).color, height=0.72)
            if min(kept) != max(kept):
                axes.plot([min(kept), max(kept)], [place, place], color=INK, linewidth=1.2, marker="|")
            axes.text(group.before, place, f"  {_kept_text(group, kept)}", fontsize=8, va="center")
        axes.set_yticks(range(len(groups)), [group.group for group in groups], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(group.before for group in groups))
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel("channels: filled is kept, outlined is dense")
        return _svg(figure, axes, legend=False)


def _bars(mean: float, low: float, high: float) -> list[list[float]]:
    # equal replicates: their mean may lie a rounding error outside of them
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]


def _kept_text(group: Width, kept: Sequence[int]) -> str:
    low, high = min(kept), max(kept)
    return f"{low} of {group.before}" if low == high else f"{low}-{high} of {group.before}"


def look_of(subject: str) -> Look:
    """Return how a subject is drawn."""
    kind = subject.partition("@")[0]
    return _LOOKS.get(kind, _OTHER)


def _face(subject: str, lines: Sequence[SubjectLine]) -> str:
    # the last ticket is filled, earlier ones are open: levels differ without colour
    tickets = [line.subject for line in lines if line.subject.startswith("ticket@")]
    return "white" if subject in tickets[:-1] else look_of(subject).color


def _axes(*, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, axes: Axes, *, legend: bool = True) -> str:
    if legend:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, columnspacing=1.2, handlelength=2.4)
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=False)
    return buffer.getvalue()
