"""Whether a recipe's finder and controls fit its network, seen before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.errors import ShrinkError
from ticket_export.find.control import scoped_groups
from ticket_export.find.depgraph import require_depgraph
from ticket_export.find.early_bird import require_norms
from ticket_export.find.imp import last_linear, prunable_weights
from ticket_export.find.regroup import require_regroupable
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import unpruned_weights
from ticket_export.recipe.find_sections import (
    NORM_SCORES,
    ChannelImpSection,
    EarlyBirdSection,
    RefillPlusSection,
    RefillSection,
    RegroupSection,
    RstSection,
)
from ticket_export.stages import Subject


def require_fit(context: Context) -> None:
    """Pass when the recipe's finder and controls can work on its network.

    Raises:
        ShrinkError: they cannot, with the reason: no norms, no channels that may go, grouped convolutions, no
            weights to prune, or a network that torch-pruning prunes otherwise.
    """
    find = context.recipe.find
    network = context.fresh_network(0, Subject("dense"))
    groups = context.groups
    if isinstance(find, EarlyBirdSection) or (
        isinstance(find, RefillSection | RefillPlusSection | ChannelImpSection) and find.score in NORM_SCORES
    ):
        require_norms(network, groups)
    if not isinstance(find, EarlyBirdSection | RstSection):
        names: Collection[str] = prunable_weights(network, unpruned=unpruned_weights(context))
        if find.classifier_drop_fraction is not None:
            last_linear(network)
        if isinstance(find, RegroupSection):
            require_regroupable(network, names)
    if find.method not in ("imp", "regroup"):
        _require_free_channels(network, groups, "coupled" if find.scope == "layer" else find.scope)
    if "depgraph" in find.controls:
        require_depgraph(network, context.example_inputs, groups)


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
