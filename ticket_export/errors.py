"""Every error a user can cause, in one tree.

TicketExportError
├── RecipeError        the recipe file or an override is wrong
├── DataError          images or labels are missing, damaged or out of range
├── TrainError         training cannot start or go on: a loss that is not finite, weights that do not fit
│   └── WorkerDiedError  a training process was killed, most often because memory ran out
├── StoreError         the output folder cannot be read, written or locked
│   ├── UnknownKeyError  a key that was asked for is in no stored result, or starts several
│   └── RevisionError    the run's results were made by another revision of the package
├── ShrinkError        the network cannot be traced, or the mask or the weights do not fit it
│   └── DivergedError  the shrunk network does not compute the same function; nothing was written
├── ExportError        a file could not be exported
│   └── ParityError    an exported file does not compute what its torch source computes
├── MeasureError       the measurement cannot be made or the things compared are unequal
│   ├── DeviceError      the device ran out of memory or was lost; what was measured before stays
│   └── BusyDeviceError  another process computes on the device that was to be measured
└── MissingDependency  hardware or an optional package is missing; the text holds the install command

Each text says what, where, the value, and the next step. `exit_code` is what the command line returns for it:
1 a check failed, 2 the input is wrong, 3 hardware, disk or an extra is missing.
"""

from __future__ import annotations


class TicketExportError(Exception):
    """A mistake the user can mend, with the next step as `hint`."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class RecipeError(TicketExportError):
    """The recipe file or an override is wrong."""


class DataError(TicketExportError):
    """Images or labels are missing, damaged or out of range."""


class TrainError(TicketExportError):
    """Training cannot start or cannot go on."""


class WorkerDiedError(TrainError):
    """A training process was killed, most often because memory ran out."""

    exit_code = 3


class StoreError(TicketExportError):
    """The output folder cannot be read, written or locked."""

    exit_code = 3


class UnknownKeyError(StoreError):
    """A key that was asked for is in no stored result, or starts several."""

    exit_code = 2


class RevisionError(StoreError):
    """The run's results were made by another revision of the package."""

    exit_code = 2


class ShrinkError(TicketExportError):
    """The network cannot be traced, or the mask or the weights do not fit it."""


class DivergedError(ShrinkError):
    """The shrunk network does not compute the same function; nothing was written."""

    exit_code = 1


class ExportError(TicketExportError):
    """A file could not be exported."""


class ParityError(ExportError):
    """An exported file does not compute what its torch source computes."""

    exit_code = 1


class MeasureError(TicketExportError):
    """The measurement cannot be made, or the things compared are unequal."""


class DeviceError(MeasureError):
    """The device ran out of memory or was lost; what was measured before stays."""

    exit_code = 3


class BusyDeviceError(MeasureError):
    """Another process computes on the device that was to be measured."""

    exit_code = 3


class MissingDependency(TicketExportError):  # noqa: N818 - the public name says what is missing, not that it failed
    """Hardware or an optional package is missing; the text holds the install command."""

    exit_code = 3
