"""The axes of accuracy over latency, and the bars around a point."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from ticket_export.report.intervals import Spread

TICKS_PER_DECADE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
MIN_TICKS = 3  # a span with fewer of them is ticked in equal steps


def accuracy_over_latency(axes: Axes, latencies_ms: list[float]) -> None:
    """Set a logarithmic scale of latencies with room beside the outermost points for their labels."""
    axes.set_xscale("log")
    low, high = min(latencies_ms), max(latencies_ms)
    room = max(high / low, 1.1) ** 0.18
    axes.set_xlim(low / room, high * room)
    axes.margins(y=0.09)
    axes.xaxis.set_major_locator(FixedLocator(_ticks(low / room, high * room)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1, symbol=" %"))


def _ticks(low: float, high: float) -> list[float]:
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in TICKS_PER_DECADE]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) >= MIN_TICKS else list(MaxNLocator(nbins=4).tick_values(low, high))


def bars(held: Spread) -> list[list[float]]:
    """Return how far a bar reaches below and above the mean, as matplotlib takes it."""
    # equal replicates: their mean may lie a rounding error outside of them
    return [[max(0.0, held.mean - held.low)], [max(0.0, held.high - held.mean)]]
