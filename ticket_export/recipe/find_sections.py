"""The `find` section of a recipe, one class per method; `method` has no default and decides which.

What several methods share is written once, in the classes at the top. A default means "no effect" and never
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ticket_export.recipe.section import Count, Fraction, Problems, Section, repeats

ElementControl: TypeAlias = Literal["random", "reinit", "random_reinit"]
BlockControl: TypeAlias = Literal["random", "reinit", "uniform", "unstructured", "depgraph"]
ChannelControl: TypeAlias = Literal["random", "uniform", "reinit", "depgraph"]
RefillControl: TypeAlias = Literal["random", "uniform", "reinit", "unstructured", "depgraph"]
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


class DistillSection(Section):
    """Training subjects on the outputs of the trained dense network as well (Chen et al., arXiv 2101.03255).

    Attributes:
        weight: share of the soft targets in the loss; the rest is the labels'.
        temperature: both outputs are divided by it before the softmax.
    """

    weight: Annotated[float, Field(gt=0.0, le=1.0)]
    temperature: Annotated[float, Field(gt=0.0)]


class BudgetSection(Section):
    """What the network of the last level may cost, as a share of dense; exactly one is given.

    Levels before the last come nearer to it in equal ratios.

    Attributes:
        param_fraction: of the weights.
        mac_fraction: of the multiply-adds.
        latency_fraction: of the latency, measured in the recipe's first runtime, precision and batch.
    """

    param_fraction: Fraction | None = None
    mac_fraction: Fraction | None = None
    latency_fraction: Fraction | None = None

    def _problems(self) -> Problems:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            told = " and ".join(given) if given else "none"
            yield "", f"should hold one of param_fraction, mac_fraction and latency_fraction, got {told}"

    @property
    def kind(self) -> str:
        """Return the name of the one that is given."""
        return next(name for name, value in self if value is not None)

    def target(self, level: int, levels: int) -> float:
        """Return the share that the network of a level may cost."""
        fraction: float = getattr(self, self.kind)
        return float(fraction ** (level / levels))


class _Found(Section):
    """What every method has.

    Attributes:
        rewind_epoch: the epoch of the dense training whose weights rewound subjects restart from; 0 is the
            initialisation.
        rewind_step: steps into that epoch.
        control_levels: the levels that have controls: the last one, or every one.
        distill: train all subjects but dense with soft targets too.
    """

    rewind_epoch: Annotated[int, Field(ge=0)]
    rewind_step: Annotated[int, Field(ge=0)] = 0
    control_levels: Literal["last", "every"] = "last"
    distill: DistillSection | None = None


class _Rounds(_Found):
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


class _Widths(_Found):
    """Whole channels, so that what is dropped can be cut out.

    Attributes:
        round_to: kept widths are rounded up to a multiple of this.
        budget: what the network may cost; without one the pruned weights say how much stays.
        form: train the small network cut out of the rewound one, or the dense shape with zeros held.
    """

    round_to: Count = 1
    budget: BudgetSection | None = None
    form: Literal["small", "masked"] = "small"


class _WholeShape(_Rounds):
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


class _Refilled(_Rounds, _Widths):
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
        if self.scope == "layer" and self.budget is not None:
            yield "budget", "needs scope inner or coupled: most rows that scope layer drops cannot be removed"


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


class ChannelImpSection(_Rounds, _Widths):
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


class _OneLevel(_Widths):
    """A finder that decides once.

    Attributes:
        drop_fraction: share of all channels of the scope that is dropped.
        scope: decided together: `inner` channels of blocks, or `coupled` groups.
        controls: what the ticket is compared with, beside the dense network.
    """

    drop_fraction: Fraction
    scope: Literal["inner", "coupled"]
    controls: tuple[ChannelControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)
        if self.budget is not None:
            yield "budget", "does not go with drop_fraction, which decides how much stays"

    @property
    def levels(self) -> int:
        """Return 1."""
        return 1


class EarlyBirdSection(_OneLevel):
    """Early-Bird tickets: channels by the norms' scales, as soon as they settle (arXiv 1909.11957).

    Attributes:
        gamma_l1: coefficient of the l1 penalty on the norms' scales while searching.
        window: masks that must agree.
        max_distance: share of channels by which the newest may differ from each of the others.
    """

    method: Literal["early_bird"]
    gamma_l1: Annotated[float, Field(ge=0.0)]
    window: Annotated[int, Field(ge=2)]
    max_distance: Fraction


class RstSection(_OneLevel):
    """Random sparse tickets made trainable: the dual lottery ticket hypothesis (arXiv 2203.04248).

    A growing l2 penalty moves what the channels to be dropped have learnt into the others.

    Attributes:
        criterion: which channels are dropped: drawn by chance, or those of the smallest l1 norm.
        search_epochs: epochs of the penalised training, from the rewind point on.
        search_lr: its constant learning rate.
        penalty_step: what is added to the penalty's coefficient each time.
        penalty_interval: steps between two additions.
        penalty_limit: the largest coefficient.
    """

    method: Literal["rst"]
    criterion: Literal["random", "l1"]
    search_epochs: Count
    search_lr: Annotated[float, Field(gt=0.0)]
    penalty_step: Annotated[float, Field(gt=0.0)]
    penalty_interval: Count
    penalty_limit: Annotated[float, Field(gt=0.0)]


SECTION_BY_METHOD: Mapping[str, type[_Found]] = {
    "imp": ImpSection,
    "refill": RefillSection,
    "refill_plus": RefillPlusSection,
    "regroup": RegroupSection,
    "channel_imp": ChannelImpSection,
    "early_bird": EarlyBirdSection,
    "rst": RstSection,
}

# By `method`, which has no default: a defaulted tag would vanish from the keys, and two methods share them.
FindSection: TypeAlias = Annotated[
    ImpSection
    | RefillSection
    | RefillPlusSection
    | RegroupSection
    | ChannelImpSection
    | EarlyBirdSection
    | RstSection,
    Field(discriminator="method"),
]
