"""The `find` section of `supernet`: channels, branches and blocks searched for while the network trains."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ticket_export.recipe.find_parts import BudgetSection, FoundSection
from ticket_export.recipe.section import Count, Fraction, Problems, repeats

SupernetControl: TypeAlias = Literal["searched", "no_reactivation", "reinit", "uniform", "uniform_latency"]
Price: TypeAlias = Literal["none", "weights", "macs", "latency"]


class SupernetSection(FoundSection):
    """SuperTickets-style search: a supernet is pruned and shrunk while it trains (arXiv 2207.03677).

    The search lasts `train.epochs`; every `event_epochs` of them the channels of the smallest scales are set
    to zero, and what is dead is cut out. Afterwards the network trains on for `retrain_epochs`.

    Attributes:
        event_epochs: epochs between two events; the last event ends the search.
        drop_step: share of all hidden channels, or of the budget's saving, that each event adds:
            `min(drop_step * event, drop_fraction)`.
        drop_fraction: share of all hidden channels that is gone in the end; without a budget.
        budget: what the network may cost in the end, as a share of the supernet; in place of `drop_fraction`.
        gamma_l1: coefficient of the l1 penalty on the branches' norm scales (the paper: 1.8e-4 on ImageNet).
        ramp_epochs: epochs over which it rises from 0 (the paper: 25 of 350).
        price: what a channel's penalty is in proportion to: its `weights`, `macs` (the paper) or measured
            `latency`, or `none` for all alike.
        gamma_threshold: a scale up to this is dead (the paper: 1e-3).
        reactivation: channels that an event set to zero train on and compete again at the next.
        zeroes: whether a channel that an event leaves out is set to zero; else it keeps its scale, and its
            share of the network's output, until the last event (released code, `reset_mask`).
        ema_decay: per step, of the averaged weights that are scored and kept (the paper: 0.9999).
        norm_batches: training batches from which the norms' statistics are taken anew (the paper: 10).
        retrain_epochs: epochs that the network found trains on, with a schedule of its own.
        round_to: kept widths of branches are rounded up to a multiple of this.
        controls: `searched` is the ticket before it trains on; `no_reactivation` a ticket of another search
            whose channels never come back; `reinit` and `uniform` start from new weights and train as long as
            the search and what follows it; `uniform_latency` is `uniform` at equal latency.
    """

    method: Literal["supernet"]
    event_epochs: Count
    drop_step: Fraction
    drop_fraction: Fraction | None = None
    budget: BudgetSection | None = None
    gamma_l1: Annotated[float, Field(ge=0.0)]
    ramp_epochs: Annotated[int, Field(ge=0)] = 0
    price: Price = "none"
    gamma_threshold: Annotated[float, Field(gt=0.0)]
    reactivation: bool = True
    zeroes: bool = True
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    norm_batches: Count
    retrain_epochs: Count
    round_to: Count = 1
    controls: tuple[SupernetControl, ...] = ()

    def _problems(self) -> Problems:
        yield from super()._problems()
        yield from repeats("controls", self.controls)
        if (self.drop_fraction is None) == (self.budget is None):
            yield "drop_fraction", "stands in place of budget: exactly one of them is given"
        if "no_reactivation" in self.controls and not self.reactivation:
            yield "controls", "no_reactivation is the ticket itself where reactivation is false"
        if "uniform_latency" in self.controls and not self.needs_table:
            yield "controls", "uniform_latency needs a budget of latency_fraction or price latency"

    @property
    def final_target(self) -> float:
        """Return what the ramp of targets ends at: a share of the channels, or of the cost that is saved."""
        if self.drop_fraction is not None:
            return self.drop_fraction
        assert self.budget is not None  # exactly one is given
        return 1.0 - float(getattr(self.budget, self.budget.kind))

    @property
    def needs_table(self) -> bool:
        """Return whether the search reads a table of latencies."""
        return self.price == "latency" or (self.budget is not None and self.budget.kind == "latency_fraction")

    @property
    def levels(self) -> int:
        """Return 1."""
        return 1

    @property
    def scope(self) -> Literal["inner"]:
        """Return where channels are dropped: within branches; the streams stay whole."""
        return "inner"

    @property
    def form(self) -> Literal["small"]:
        """Return how subjects are trained after the search: cut out."""
        return "small"
