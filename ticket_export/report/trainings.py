"""The trainings of the measured networks: what they cost, and where stopping early would have ended them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from ticket_export.report.lineage import Lineage, num_epochs
from ticket_export.report.order import subject_order


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStop:
    """A training at its lowest validation loss, where stopping early would have ended it.

    Attributes:
        iteration: steps done since the start of the dense training, those before the rewind point included.
        val_loss: the lowest one.
        val_accuracy: there, 0 to 1.
        test_accuracy: there, 0 to 1; it picked nothing.
    """

    iteration: int
    val_loss: float
    val_accuracy: float
    test_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The training of one measured network: what it cost and reached.

    Attributes:
        subject: whose network it is.
        replicate: from 0.
        num_epochs: trained in this step.
        num_epochs_learnt: by the end, those before the start of this training included.
        epoch_s: median seconds of an epoch.
        val_accuracy: at the end, 0 to 1.
        threads: it ran on.
        early_stop: None where it was not validated within epochs.
    """

    subject: str
    replicate: int
    num_epochs: float
    num_epochs_learnt: float
    epoch_s: float
    val_accuracy: float
    threads: int
    early_stop: EarlyStop | None = None


def trainings_of(lineage: Lineage, subjects: Iterable[tuple[str, int]]) -> tuple[Training, ...]:
    """Return the training of each measured network, in the order of every table.

    Raises:
        StoreError: one is not among the results.
    """
    ordered = sorted(set(subjects), key=lambda who: (subject_order(who[0]), who[1]))
    return tuple(_training(lineage, subject, replicate) for subject, replicate in ordered)


def _training(lineage: Lineage, subject: str, replicate: int) -> Training:
    manifest = lineage.training(subject, replicate)
    facts = manifest["facts"]
    early = facts.get("early_stop")
    return Training(
        subject=subject,
        replicate=replicate,
        num_epochs=num_epochs(manifest),
        num_epochs_learnt=lineage.num_epochs_learnt(manifest),
        epoch_s=median(epoch["seconds"] for epoch in facts["history"]),
        val_accuracy=facts["val_accuracy"],
        threads=facts["threads"],
        early_stop=None if early is None else EarlyStop(**early),
    )
