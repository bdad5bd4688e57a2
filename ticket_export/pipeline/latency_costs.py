"""A network's layers priced by a table of measured latencies, in seconds of one inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ticket_export.channels.sites import Axis, LayerSite
from ticket_export.measure.latency_table import LatencyTable
from ticket_export.measure.layer_kind import LayerKind, table_widths
from ticket_export.measure.profile import Wanted

NAME = "latency_fraction"


def kind_of(site: LayerSite) -> LayerKind:
    """Return what a site's layer shares with others of other widths; the site is no norm."""
    return LayerKind(
        op=site.op,
        kernel=site.kernel,
        stride=site.stride,
        padding=site.padding,
        in_size=site.in_size,
        depthwise=site.depthwise,
    )


def wanted_cells(
    sites: Sequence[LayerSite], whole: Mapping[str, int], max_widths: int | None = None
) -> tuple[Wanted, ...]:
    """Return what a table must hold so that every choice of widths of a network has a price.

    Args:
        sites: of the dense network; norms are fused and take no time of their own.
        whole: group name -> its whole width.
        max_widths: on one side of a layer; None is the table's own.
    """
    return tuple(
        Wanted(
            kind=kind_of(site),
            widths_in=_axis_widths(site.columns, whole, max_widths),
            widths_out=_axis_widths(site.rows, whole, max_widths),
        )
        for site in sites
        if site.op != "norm"
    )


def _axis_widths(axis: Axis, whole: Mapping[str, int], max_widths: int | None) -> tuple[int, ...]:
    options = {} if max_widths is None else {"max_widths": max_widths}
    full = axis.width(whole)
    if not axis.parts:
        return (full,)
    if len(axis.parts) == 1:
        ((group, elements),) = axis.parts
        return tuple(axis.fixed + elements * width for width in table_widths(whole[group], **options))
    return table_widths(full, **options)


@dataclass(frozen=True, slots=True)
class LatencyCosts:
    """Calibrated seconds of one inference; a `CostModel`.

    Attributes:
        table: calibrated, of the network that the sites belong to.
        sites: of the dense network.

    Raises:
        MeasureError: no whole network was timed for the table, or it lacks a kind of layer of the sites.
    """

    table: LatencyTable
    sites: Sequence[LayerSite]

    def __post_init__(self) -> None:
        self.fixed()
        for site in self.sites:
            if site.op != "norm":
                self.table.grid(kind_of(site))

    @property
    def name(self) -> str:
        """Return the kind of budget that these costs serve."""
        return NAME

    def cost(self, site: LayerSite, width_in: int, width_out: int) -> float:
        """Return what one site adds to the network's seconds; norms are fused into their layers."""
        if site.op == "norm":
            return 0.0
        layer_s = self.table.seconds(kind_of(site), width_in, width_out)
        return self.table.network_seconds(layer_s) - self.fixed()

    def fixed(self) -> float:
        """Return what no width changes; below 0 where layers overlap."""
        return self.table.network_seconds(0.0)

    def widths(self, group: str, width: int) -> tuple[int, ...]:
        """Return the widths of a group that were measured on every layer it alone decides on."""
        found: set[int] | None = None
        for site in self.sites:
            if site.op == "norm":
                continue
            grid_in, grid_out = self.table.grid(kind_of(site))
            sides = (
                ((site.rows, grid_out),)
                if site.depthwise
                else ((site.columns, grid_in), (site.rows, grid_out))
            )
            for axis, grid in sides:
                if len(axis.parts) == 1 and axis.parts[0][0] == group:
                    elements = axis.parts[0][1]
                    held = {(w - axis.fixed) // elements for w in grid if (w - axis.fixed) % elements == 0}
                    found = held if found is None else found & held
        kept = {w for w in found or set(table_widths(width)) if 0 < w < width}
        return (*sorted(kept), width)
