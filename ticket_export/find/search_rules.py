"""What a search of a supernet is told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from ticket_export.channels.mask import Mask
from ticket_export.errors import ShrinkError
from ticket_export.train.state import EpochRecord

# Scores by group, in the whole network's numbering: 0 = is gone already, all others above 0; and the share
# that should be gone. Returned is what stays: bool, by the same names and widths
Choose = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRules:
    """When channels are chosen, and what becomes of the others.

    Attributes:
        event_epochs: epochs between two events; at least 1.
        drop_step: what each event adds to the share that should be gone, in (0, 1).
        drop_fraction: the share that is gone in the end, in (0, 1).
        gamma_l1: coefficient of the priced l1 penalty on the decision norms' scales; 0 = off.
        ramp_epochs: epochs over which it rises from 0 (released SuperTickets code: 25).
        gamma_threshold: a scale up to this is dead (there: 1e-3); above 0.
        reactivation: whether channels that were not chosen train on and compete again.
        zeroes: whether such a channel is set to zero first, and so comes back by what it learns anew; else it
            competes with its old scale trained on (there: `reset_mask`), and cuts change more at once.
        ema_decay: of the averaged weights, per step, in [0, 1) (there: 0.9999).
        norm_batches: training batches for the statistics of the averaged network's norms (there: 10).
        tolerance: of the equality at every cut.

    Raises:
        ShrinkError: a number is out of range.
    """

    event_epochs: int
    drop_step: float
    drop_fraction: float
    gamma_l1: float
    gamma_threshold: float
    reactivation: bool
    ema_decay: float
    norm_batches: int
    ramp_epochs: float = 0
    zeroes: bool = True
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("drop_step", "drop_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ShrinkError(
                    f"find.{name} is {getattr(self, name)}", hint="it must lie between 0 and 1, e.g. 0.1"
                )
        for name in ("event_epochs", "gamma_threshold", "norm_batches"):
            if not getattr(self, name) > 0:
                raise ShrinkError(f"find.{name} is {getattr(self, name)}", hint="it must be above 0")

    def num_events(self, epochs: int) -> int:
        """Return the events of a search of so many epochs.

        Raises:
            ShrinkError: the last event is not at their end, or asks for less than `drop_fraction`.
        """
        num_events, rest = divmod(epochs, self.event_epochs)
        if rest or not num_events:
            raise ShrinkError(
                f"a search of {epochs} epochs with an event every {self.event_epochs} does not end with one",
                hint="make train.epochs a multiple of find.event_epochs",
            )
        if self.target(num_events - 1) < self.drop_fraction:
            raise ShrinkError(
                f"{num_events} events of find.drop_step {self.drop_step:g} reach "
                f"{self.target(num_events - 1):g}, not find.drop_fraction {self.drop_fraction:g}",
                hint="raise train.epochs or find.drop_step, or lower find.event_epochs",
            )
        return num_events

    def target(self, event: int) -> float:
        """Return the share that should be gone after an event; 0 is the first."""
        reached = Fraction(str(self.drop_step)) * (event + 1)  # exact: 3 * 0.1 are 0.3
        return min(float(reached), self.drop_fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEvent:
    """What one event did; JSON by `dataclasses.asdict`.

    Attributes:
        epoch: epochs done.
        target: share that should be gone.
        kept_channels: channels of the decision norms that were chosen,
        kept_branches: branches with at least one of them,
        kept_blocks: and blocks (modules that hold such branches) with at least one.
        zeroed: channels that were not chosen and train on, from zero with `SearchRules.zeroes`.
        removed: channels that were cut out.
        reactivated: channels that were chosen though the event before had not.
        rel_error: of the cut of the live network, max|a-b| / max|b|; 0 where nothing was cut.
        average_rel_error: of the same cut of the averaged one.
        params: of the network after the event.
        macs: of one image through it.
        trained_macs: of one image through the network that was trained before the event.
        trained_images: images it was trained on.
        train_seconds: of that training.
        seconds: of the event itself.
    """

    epoch: int
    target: float
    kept_channels: int
    kept_branches: int
    kept_blocks: int
    zeroed: int
    removed: int
    reactivated: int
    rel_error: float
    average_rel_error: float
    params: int
    macs: int
    trained_macs: int
    trained_images: int
    train_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The network that was found.

    Attributes:
        mask: what is kept of every group, in the whole network's numbering;
            `small_from_mask(model, groups, mask)` takes the weights in.
        weights: the averaged state dict of the small network, its norms recalibrated; on the CPU.
        live_weights: the state dict that was trained, cut alike, with its own statistics.
        events: in order; the last ends the search.
        history: one record per epoch, as of `TrainResult`.
        num_epochs: of the search.
        seconds: of its trainings; the events come on top.
        num_processes: that shared the batches.
    """

    mask: Mask
    weights: dict[str, Tensor]
    live_weights: dict[str, Tensor]
    events: tuple[SearchEvent, ...]
    history: tuple[EpochRecord, ...]
    num_epochs: int
    seconds: float
    num_processes: int

    @property
    def event_seconds(self) -> float:
        """Return the seconds of all events."""
        return sum(event.seconds for event in self.events)

    @property
    def image_macs(self) -> int:
        """Return what the search computed forwards: multiply-adds of an image, times images, summed."""
        return sum(event.trained_macs * event.trained_images for event in self.events)

    @property
    def num_reactivated(self) -> int:
        """Return how often a channel came back."""
        return sum(event.reactivated for event in self.events)
