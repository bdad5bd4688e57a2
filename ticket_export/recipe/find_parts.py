"""What the `find` sections of all methods share: distillation, a budget, the rewind point."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ticket_export.recipe.section import Fraction, Problems, Section


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


class FoundSection(Section):
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
