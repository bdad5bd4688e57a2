"""Where a layer gets slower: the widths of a table that take the same time, told apart by their intervals."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ticket_export.measure.latency_table import LatencyTable
from ticket_export.measure.layer_kind import LayerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Staircase:
    """One kind of layer over its output widths, at its widest input.

    Attributes:
        kind: of the layer.
        width_in: channels in.
        widths: every measured output width, rising.
        seconds: of each.
        stairs: the widest width of each stair, rising; the last is the whole width.
    """

    kind: LayerKind
    width_in: int
    widths: tuple[int, ...]
    seconds: tuple[float, ...]
    stairs: tuple[int, ...]


def staircase(table: LatencyTable, kind: LayerKind) -> Staircase:
    """Return the staircase of a kind over its output widths; a depthwise layer has both widths equal.

    A width is on the next stair when its interval lies above that of the first width of the stair.

    Raises:
        MeasureError: the kind was not measured.
    """
    widths_in, _ = table.grid(kind)
    cells = table.cells[kind]
    widest = widths_in[-1]
    widths = sorted(b for a, b in cells if kind.depthwise or a == widest)
    stairs: list[int] = []
    first = widths[0]
    for before, width in itertools.pairwise(widths):
        bottom = cells[first if kind.depthwise else widest, first]
        if cells[width if kind.depthwise else widest, width].low_s > bottom.high_s:
            stairs.append(before)
            first = width
    return Staircase(
        kind=kind,
        width_in=widest,
        widths=tuple(widths),
        seconds=tuple(cells[width if kind.depthwise else widest, width].seconds for width in widths),
        stairs=(*stairs, widths[-1]),
    )
