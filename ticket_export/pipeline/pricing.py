"""Cost models from stored results: counted ones from the network, latencies from the measured table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ticket_export.channels.cost_models import CostModel, counted_costs
from ticket_export.channels.sites import LayerSite
from ticket_export.measure.latency_table import load_table
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.latency_costs import LatencyCosts
from ticket_export.pipeline.networks import dense_network
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.tables import TABLE_FILE


def cost_model(
    context: Context, node: Node, kind: str, sites: Sequence[LayerSite], whole: Mapping[str, int]
) -> CostModel:
    """Return what prices a network's layers.

    Args:
        context: of the run.
        node: reads the table, of a latency, under the role `table`.
        kind: `param_fraction`, `mac_fraction` or `latency_fraction`.
        sites: of the dense network.
        whole: group name -> its whole width.
    """
    if kind == "latency_fraction":
        return LatencyCosts(load_table(context.file(node.parents["table"], TABLE_FILE)), sites)
    dense = dense_network(context, node.replicate or 0)
    return counted_costs(dense, context.example_inputs, sites, kind=kind, dense=whole)
