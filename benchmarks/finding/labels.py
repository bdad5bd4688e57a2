"""Labels beside points: each stands where it covers no other label, no marker and as few bars as can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ticket_export.report.figure import MUTED

# P points, B bars, L places of one label, 2 = right and up, 4 = left, bottom, right and top; all in pixels
Array: TypeAlias = NDArray[np.float64]

RADII_PT = (6, 10, 15, 21, 28, 36, 46, 58, 72, 90)  # of the ellipses around a point that are tried
NUM_DIRECTIONS = 24
MARKER_PT = 5  # half the side of the square that a marker takes
PAD_PT = 1  # around a label
PLATE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0}  # it stays readable over a bar
LEADER_FROM_PT = 10  # a label this far, or nearer to another point than to its own, is tied to it by a line
NEARER_PT = 4  # a label is taken for another point's that is no farther than this beyond its own
# how much farther a label is put so as to cover no label and no marker, not to be taken for another point's,
# and to cross no bar
COVERS_PT, MISTAKEN_PT, CROSSES_PT = 1000.0, 15.0, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A point in data coordinates with its bars and what is written beside it.

    Attributes:
        low, high: ends of the upright bar.
        left, right: ends of the level bar; None without one.
    """

    text: str
    x: float
    y: float
    low: float
    high: float
    color: str
    left: float | None = None
    right: float | None = None


def write_labels(axes: Axes, points: Sequence[Labelled], fontsize: float = 8) -> None:
    """Write all labels, those in the crowd first; the places of the axes on the page must be final.

    Args:
        axes: its limits and scales are those that are drawn.
        points: each with the marker that stands there already.
        fontsize: in points.
    """
    scale = axes.get_figure(root=True).dpi / 72  # pixels of a point
    at_P2 = axes.transData.transform([(point.x, point.y) for point in points])
    taken_P4 = np.hstack([at_P2 - MARKER_PT * scale, at_P2 + MARKER_PT * scale])
    ends = [((point.x, point.low), (point.x, point.high)) for point in points]
    ends += [
        ((point.left, point.y), (point.right, point.y))
        for point in points
        if point.left is not None and point.right is not None
    ]
    bars_B4 = np.hstack(
        [
            axes.transData.transform([first for first, _ in ends]) - scale,
            axes.transData.transform([last for _, last in ends]) + scale,
        ]
    )
    apart_PP = np.hypot(*np.moveaxis(at_P2[:, None] - at_P2, -1, 0))
    for place in np.argsort(-(1 / (scale + apart_PP)).sum(axis=1), kind="stable"):
        point = points[place]
        text = axes.annotate(
            point.text, (point.x, point.y), xytext=(0, 0), textcoords="offset points",
            ha="center", va="center", fontsize=fontsize, color=point.color, bbox=PLATE,
        )  # fmt: skip
        size = text.get_window_extent().padded(PAD_PT * scale)
        tried_L4 = _places(at_P2[place], np.array([size.width, size.height]), scale)
        gaps_LP = _gaps(tried_L4, at_P2)
        near_LP = gaps_LP < gaps_LP[:, [place]] + NEARER_PT * scale
        mistaken_L = near_LP.sum(axis=1) > 1  # its own point is one
        within_L2 = (tried_L4[:, :2] >= axes.bbox.min) & (tried_L4[:, 2:] <= axes.bbox.max)
        outside_L = ~within_L2.all(axis=1)
        cost_L = gaps_LP[:, place] / scale + MISTAKEN_PT * mistaken_L + COVERS_PT * outside_L
        cost_L += COVERS_PT * _num_covered(tried_L4, taken_P4) + CROSSES_PT * _num_covered(tried_L4, bars_B4)
        best = int(np.argmin(cost_L))
        taken_P4 = np.vstack([taken_P4, tried_L4[best]])
        box = tried_L4[best].reshape(2, 2)
        text.set_position(tuple((box.mean(axis=0) - at_P2[place]) / scale))
        if gaps_LP[best, place] >= LEADER_FROM_PT * scale or mistaken_L[best]:
            edge_2 = (np.clip(at_P2[place], box[0], box[1]) - at_P2[place]) / scale
            axes.annotate(
                "", (point.x, point.y), xytext=tuple(edge_2), textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip


def _places(at_2: Array, size_2: Array, scale: float) -> Array:
    """Return the boxes of a label that are tried around its point, the nearest first."""
    turns = 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    directions = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    radii = np.array(RADII_PT)[:, None, None] * scale
    middles_L2 = (at_2 + directions * (radii + size_2 / 2)).reshape(-1, 2)
    return np.hstack([middles_L2 - size_2 / 2, middles_L2 + size_2 / 2])


def _gaps(boxes_L4: Array, at_P2: Array) -> Array:
    """Return how far each point is from each box; 0 inside."""
    beside = np.maximum(boxes_L4[:, None, :2] - at_P2, at_P2 - boxes_L4[:, None, 2:])
    return np.asarray(np.hypot(*np.moveaxis(np.maximum(beside, 0), -1, 0)))


def _num_covered(boxes_L4: Array, others_P4: Array) -> NDArray[np.int64]:
    """Return how many of the others each box meets."""
    first = boxes_L4[:, None, :2] < others_P4[:, 2:]
    last = others_P4[:, :2] < boxes_L4[:, None, 2:]
    return np.asarray((first & last).all(axis=2).sum(axis=1))
