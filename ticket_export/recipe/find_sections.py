"""The `find` section of a recipe, one class per method; `method` has no default and decides which.

What several methods share is written once, in the classes at the top. A default means "no effect" and never
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ticket_export.recipe.find_parts import BudgetSection, FoundSection
from ticket_export.recipe.section import Count, Fraction, Problems, repeats
from ticket_export.recipe.supernet_section import SupernetSection

ElementControl: TypeAlias = Literal["random", "reinit", "random_reinit"]
BlockControl: TypeAlias = Literal["random", "reinit", "uniform", "unstructured", "depgraph"]
ChannelControl: TypeAlias = Literal["random", "uniform", "uniform_latency", "reinit", "depgraph"]
RefillControl: TypeAlias = Literal[
    "random", "uniform", "uniform_latency", "reinit", "unstructured", "depgraph"
]
Score: TypeAlias = Literal[
    "l1",
    "l2",
    "count",
    "gamma",
    "taylor",
    "tp_magnitude",
    "tp_bn_scale",
    "tp_lamp",
    "tp_fpgm",
    "tp_taylor",
    "tp_hessian",
]

NORM_SCORES = ("gamma", "tp_bn_scale")  # read the scales of norms; a network without norms has none


class RoundsSection(FoundSection):
    """Rounds of magnitude pruning.

    Attributes:
        levels: rounds; each yields a ticket.
        ticket_levels: the levels whose tickets are compared: every one, or the last one alone.
        drop_fraction: share of the weights still kept that a round drops.
        conv_drop_fraction: the same for convolutions alone, where it differs (`magnitude_scope: layer`).
        classifier_drop_fraction: the same for the last linear layer, which stays whole without it
            (`magnitude_scope: layer`; Frankle & Carbin take half the rate).
        magnitude_scope: compare magnitudes over the whole network or within each layer.
        rewind: `weights` go back to the rewind point (Frankle & Carbin); only the learning `rate` does, and
            the trained weights stay (Renda et al., arXiv 2003.02389); `none` trains them on at the last rate
            for as many epochs.
    """

    levels: Count
    ticket_levels: Literal["last", "every"] = "every"
    drop_fraction: Fraction
    conv_drop_fraction: Fraction | None = None
    classifier_drop_fraction: Fraction | None = None
    magnitude_scope: Literal["global", "layer"] = "global"
    rewind: Literal["weights", "rate", "none"] = "weights"

    def _problems(self) -> Problems:
        yield from super()._problems()
        for name in ("conv_drop_fraction", "classifier_drop_fraction"):
            if self.magnitude_scope == "global" and getattr(self, name) is not None:
                yield name, "needs magnitude_scope layer: global ranks the weights of all layers together"
        if self.ticket_levels == "last" and self.control_levels == "every":
            yield "control_levels", "every level has controls, but ticket_levels is last"


class WidthsSection(FoundSection):
    """Whole channels, so that what is dropped can be cut out.

    Attributes:
        round_to: kept widths are rounded up to a multiple of this.
        budget: what the network may cost; without one the finder's own rule says how much stays.
        free_channels: widen what was chosen as far as the measured latency stays the same.
        form: train the small network cut out of the rewound one, or the dense shape with zeros held.
    """

    round_to: Count = 1
    budget: BudgetSection | None = None
    free_channels: bool = False
    form: Literal["small", "masked"] = "small"

    @property
    def needs_table(self) -> bool:
        """Return whether the finder reads a table of latencies."""
        return self.free_channels or (self.budget is not None and self.budget.kind == "latency_fraction")

    def _problems(self) -> Problems:
        yield from super()._problems()
        if self.free_channels and self.budget is not None and self.budget.kind != "latency_fraction":
            yield "free_channels", f"does not go with a budget of {self.budget.kind}, which it would exceed"
        controls: tuple[str, ...] = getattr(self, "controls", ())
        if "uniform_latency" in controls and not self.needs_table:
            yield "controls", "uniform_latency needs free_channels or a budget of latency_fraction"


class _WholeShape(RoundsSection):
    """Single weights or blocks of them are dropped; every layer keeps its shape until the shrink."""

    @property
    def scope(self) -> Literal["coupled"]:
        """Return where the channel-wise controls drop channels: everywhere."""
        return "coupled"

    @property
    def form(self) -> Literal["small"]:
        """Return how subjects are trained: as small as their channel masks allow."""
        return "small"


class ImpSection(_WholeShape):
    """Iterative magnitude pruning: the lottery tickets of Frankle & Carbin (arXiv 1803.03635).

    One-shot pruning is one level with a large `drop_fraction`.

    Attributes:
        controls: `reinit` keeps the mask with new weights, `random` shuffles the mask within each layer,
            `random_reinit` does both.
    """

    method: Literal["imp"]
    controls: tuple[ElementControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)

    @property
    def round_to(self) -> int:
        """Return 1: what is dead goes, and no width is chosen."""
        return 1


class _Refilled(RoundsSection, WidthsSection):
    """Iterative magnitude pruning with rewinding, then whole channels on every level.

    Attributes:
        scope: decided together: rows of a `layer` (the paper), `inner` channels of blocks, `coupled` groups.
        score: what a channel is worth: `l1` of its surviving weights (the paper), `l2`, their `count`, the
            norms' `gamma`, first-order `taylor`, or one of torch-pruning's importances.
        controls: what a ticket is compared with, beside the dense network.
    """

    scope: Literal["layer", "inner", "coupled"]
    score: Score = "l1"
    controls: tuple[RefillControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)
        if self.scope == "layer" and self.score.startswith(("gamma", "tp_")):
            yield "score", f"{self.score} scores whole channel groups, scope layer needs scores of rows"
        for name in ("budget", "free_channels"):
            if self.scope == "layer" and getattr(self, name):
                yield name, "needs scope inner or coupled: most rows that scope layer drops cannot be removed"


class RefillSection(_Refilled):
    """Refill (Chen et al., arXiv 2202.04736, algorithm 2)."""

    method: Literal["refill"]


class RefillPlusSection(_Refilled):
    """Refill+: a share of the rows that Refill drops is kept beside (arXiv 2202.04736, section 3.2).

    Attributes:
        extra_fraction: that share; 0.2 fits the paper's printed costs.
    """

    method: Literal["refill_plus"]
    extra_fraction: Fraction


class RegroupSection(_WholeShape):
    """Iterative magnitude pruning, then Regroup: dense blocks of rows and columns.

    Source: Chen et al. (arXiv 2202.04736), algorithm 3.

    Attributes:
        num_groups: clusters of output channels per layer, at most.
        min_rows: output channels that a cluster holds at least; a layer of fewer stays whole.
        columns: whole input `channels`, which execute as small convolutions, or single kernel `taps` (the
            paper), which execute as dense convolutions.
        equal_blocks: every block of a layer has one shape, so that it runs as a grouped convolution.
        extra_fraction: share of the dropped columns that is kept beside, as in Refill+.
        round_to: the columns of a block, and the widths of `uniform` and `depgraph`, are multiples of this.
        controls: what a ticket is compared with, beside the dense network.
    """

    method: Literal["regroup"]
    num_groups: Annotated[int, Field(ge=1)]
    min_rows: Count
    columns: Literal["channels", "taps"] = "channels"
    equal_blocks: bool = False
    extra_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    round_to: Count = 1
    controls: tuple[BlockControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)


class ChannelImpSection(RoundsSection, WidthsSection):
    """In-loop Refill: every level is refilled and cut out before the next is trained, so levels get cheaper.

    Attributes:
        scope: decided together: `inner` channels of blocks, or `coupled` groups.
        score: as of `refill`.
        controls: what a ticket is compared with, beside the dense network.
    """

    method: Literal["channel_imp"]
    scope: Literal["inner", "coupled"]
    score: Score = "l1"
    controls: tuple[ChannelControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)


class _OneLevel(WidthsSection):
    """A finder that decides once.

    Attributes:
        scope: decided together: `inner` channels of blocks, or `coupled` groups.
        controls: what the ticket is compared with, beside the dense network.
    """

    scope: Literal["inner", "coupled"]
    controls: tuple[ChannelControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)

    @property
    def levels(self) -> int:
        """Return 1."""
        return 1


class EarlyBirdSection(_OneLevel):
    """Early-Bird tickets: channels by the norms' scales, as soon as they settle (arXiv 1909.11957).

    Attributes:
        drop_fraction: share of all channels of the scope that is dropped; without a budget.
        gamma_l1: coefficient of the l1 penalty on the norms' scales while searching.
        window: masks that must agree.
        max_distance: share of channels by which the newest may differ from each of the others.
    """

    method: Literal["early_bird"]
    drop_fraction: Fraction | None = None
    gamma_l1: Annotated[float, Field(ge=0.0)]
    window: Annotated[int, Field(ge=2)]
    max_distance: Fraction

    def _problems(self) -> Problems:
        yield from super()._problems()
        if (self.drop_fraction is None) == (self.budget is None):
            yield "drop_fraction", "stands in place of budget: exactly one of them is given"


class RstSection(_OneLevel):
    """Random sparse tickets made trainable: the dual lottery ticket hypothesis (arXiv 2203.04248).

    A growing l2 penalty moves what the channels to be dropped have learnt into the others.

    Attributes:
        drop_fraction: share of all channels of the scope that is dropped.
        criterion: which channels are dropped: drawn by chance, or those of the smallest l1 norm.
        search_epochs: epochs of the penalised training, from the rewind point on.
        search_lr: its constant learning rate.
        penalty_step: what is added to the penalty's coefficient each time.
        penalty_interval: steps between two additions.
        penalty_limit: the largest coefficient.
    """

    method: Literal["rst"]
    drop_fraction: Fraction
    criterion: Literal["random", "l1"]
    search_epochs: Count
    search_lr: Annotated[float, Field(gt=0.0)]
    penalty_step: Annotated[float, Field(gt=0.0)]
    penalty_interval: Count
    penalty_limit: Annotated[float, Field(gt=0.0)]

    def _problems(self) -> Problems:
        yield from super()._problems()
        if self.budget is not None:
            yield "budget", "does not go with drop_fraction, which decides how much stays"
        if self.free_channels:
            yield "free_channels", "does not go with drop_fraction, which decides how much stays"


SECTION_BY_METHOD: Mapping[str, type[FoundSection]] = {
    "imp": ImpSection,
    "refill": RefillSection,
    "refill_plus": RefillPlusSection,
    "regroup": RegroupSection,
    "channel_imp": ChannelImpSection,
    "early_bird": EarlyBirdSection,
    "rst": RstSection,
    "supernet": SupernetSection,
}

# By `method`, which has no default: a defaulted tag would vanish from the keys, and two methods share them.
FindSection: TypeAlias = Annotated[
    ImpSection
    | RefillSection
    | RefillPlusSection
    | RegroupSection
    | ChannelImpSection
    | EarlyBirdSection
    | RstSection
    | SupernetSection,
    Field(discriminator="method"),
]
