"""Whether a recipe's finder and controls fit its network, seen before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.sites import layer_sites
from ticket_export.errors import ShrinkError
from ticket_export.find.control import scoped_groups
from ticket_export.find.depgraph import require_depgraph
from ticket_export.find.early_bird import require_norms
from ticket_export.find.imp import last_linear, prunable_weights
from ticket_export.find.regroup import require_regroupable
from ticket_export.find.site_costs import require_priced
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import unpruned_weights
from ticket_export.recipe.find_sections import (
    NORM_SCORES,
    ChannelImpSection,
    EarlyBirdSection,
    RefillPlusSection,
    RefillSection,
    RegroupSection,
    RoundsSection,
    WidthsSection,
)
from ticket_export.stages import Subject


def require_fit(context: Context) -> None:
    """Pass when the recipe's finder and controls can work on its network.

    Raises:
        ShrinkError: they cannot, with the reason: no norms, no channels that may go, grouped convolutions, no
            weights to prune, layers that a budget cannot price, or a network that torch-pruning prunes
            otherwise.
    """
    find = context.recipe.find
    network = context.fresh_network(0, Subject("dense"))
    groups = context.groups
    if isinstance(find, EarlyBirdSection) or (
        isinstance(find, RefillSection | RefillPlusSection | ChannelImpSection) and find.score in NORM_SCORES
    ):
        require_norms(network, groups)
    if isinstance(find, RoundsSection):
        names: Collection[str] = prunable_weights(network, unpruned=unpruned_weights(context))
        if find.classifier_drop_fraction is not None:
            last_linear(network)
        if isinstance(find, RegroupSection):
            require_regroupable(network, names)
    if find.method not in ("imp", "regroup"):
        _require_free_channels(network, groups, "coupled" if find.scope == "layer" else find.scope)
    if isinstance(find, WidthsSection):
        kinds = [] if find.budget is None else [find.budget.kind]
        for kind in ["latency_fraction"] if find.needs_table else kinds:
            _require_priced(network, context, kind, find.scope)
    if "depgraph" in find.controls:
        require_depgraph(network, context.example_inputs, groups)


def _require_priced(network: nn.Module, context: Context, kind: str, scope: str) -> None:
    sites = layer_sites(network, context.example_inputs, context.groups)
    whole = {group.name: group.width for group in context.groups if group.pinned is None}
    chosen = [group.name for group in scoped_groups(context.groups, scope) if group.name in whole]
    require_priced(sites, kind=kind, whole=whole, chosen=chosen)


def _require_free_channels(network: nn.Module, groups: Sequence[ChannelGroup], scope: str) -> None:
    scoped = scoped_groups(groups, scope)
    if any(group.pinned is None for group in scoped):
        return
    reasons = sorted({group.pinned for group in scoped if group.pinned is not None})
    told = f"all are pinned ({'; '.join(reasons)})" if reasons else "it has no channel group"
    raise ShrinkError(
        f"no channel of {type(network).__name__} can be dropped with scope {scope}: {told}",
        hint="use scope coupled, or find.method imp, which drops single weights",
    )
