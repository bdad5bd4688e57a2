"""Latencies of layers over their widths, on one machine in one runtime: the staircase that networks climb."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ticket_export.errors import MeasureError
from ticket_export.measure.calibration import Calibration
from ticket_export.measure.layer_kind import LayerKind

SCHEMA = 1
_FACTS = ("runtime", "precision", "batch", "threads", "scope", "activations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Seconds of one layer at a pair of widths, with the 95 % interval over the rounds."""

    seconds: float
    low_s: float
    high_s: float


Cells = Mapping[tuple[int, int], Cell]


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What layers take on one machine.

    Attributes:
        runtime, precision, batch, threads, scope: what was timed; `batch` images per inference.
        activations: of int8, "uint8" or "int8".
        machine: facts of the machine.
        cells: kind of layer -> (width in, width out) -> seconds.
        calibration: from the sum over layers to whole networks; None before any was timed.
    """

    runtime: str
    precision: str
    batch: int
    threads: int
    scope: str
    machine: Mapping[str, Any]  # Any: JSON values
    cells: Mapping[LayerKind, Cells] = field(repr=False)
    activations: str = "uint8"
    calibration: Calibration | None = None

    def seconds(self, kind: LayerKind, width_in: int, width_out: int) -> float:
        """Return the seconds of a layer as it was timed by itself, not calibrated.

        A width that was not measured is priced as the next measured one above: padding gives no less. A layer
        without channels on one side is not there and takes 0.

        Raises:
            MeasureError: the kind was not measured, or nothing as wide.
        """
        if width_in == 0 or width_out == 0:
            return 0.0
        cells = self._cells_of(kind)
        exact = cells.get((width_in, width_out))
        if exact is not None:
            return exact.seconds
        widths_in, widths_out = self.grid(kind)
        above_in = next((width for width in widths_in if width >= width_in), 0)
        above_out = next((width for width in widths_out if width >= width_out), 0)
        above = cells.get((above_in, above_out))
        if above is not None:
            return above.seconds
        wider = [cell.seconds for (a, b), cell in cells.items() if a >= width_in and b >= width_out]
        if not wider:
            raise MeasureError(
                f"latency table: {kind} was measured up to {widths_in[-1]} channels in and {widths_out[-1]} "
                f"out, asked for {width_in} and {width_out}",
                hint="measure the table for the network that is asked about",
            )
        return min(wider)

    def grid(self, kind: LayerKind) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the measured widths of a kind, in and out, rising.

        Raises:
            MeasureError: the kind was not measured.
        """
        self._cells_of(kind)
        return self._grids[kind]

    def network_seconds(self, layers_s: float) -> float:
        """Return the calibrated seconds of a network from the sum over its layers.

        Raises:
            MeasureError: no whole network was timed for this table.
        """
        if self.calibration is None:
            raise MeasureError("latency table: no whole network was timed for it, so it prices layers alone")
        return self.calibration.seconds(layers_s)

    @cached_property
    def _grids(self) -> dict[LayerKind, tuple[tuple[int, ...], tuple[int, ...]]]:
        return {
            kind: (tuple(sorted({a for a, _ in cells})), tuple(sorted({b for _, b in cells})))
            for kind, cells in self.cells.items()
        }

    @property
    def num_cells(self) -> int:
        """Measured pairs of widths of all kinds."""
        return sum(len(cells) for cells in self.cells.values())

    def _cells_of(self, kind: LayerKind) -> Cells:
        if kind not in self.cells:
            raise MeasureError(
                f"latency table: {kind} was not measured; it holds {'; '.join(map(str, self.cells))}",
                hint="measure the table for the network that is asked about",
            )
        return self.cells[kind]

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return JSON values that `from_json` reads."""
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in _FACTS},
            "machine": dict(self.machine),
            "kinds": [
                {
                    "kind": kind.to_json(),
                    "cells": [
                        [a, b, cell.seconds, cell.low_s, cell.high_s]
                        for (a, b), cell in sorted(cells.items())
                    ],
                }
                for kind, cells in self.cells.items()
            ],
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LatencyTable:  # Any: JSON values
        """Return the table that `to_json` described.

        Raises:
            MeasureError: it is of another schema, or not such a table.
        """
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, Mapping) else type(value).__name__
            raise MeasureError(f"latency table: schema is {found!r}, this version reads {SCHEMA}")
        names = {"schema", *_FACTS, "machine", "kinds", "calibration"}
        if set(value) != names:
            raise MeasureError(
                f"latency table: fields {', '.join(sorted(set(value) ^ names))} are missing or not known"
            )
        _require_facts(value)
        calibration = value["calibration"]
        return cls(
            **{name: value[name] for name in _FACTS},
            machine=value["machine"],
            cells=_cells_from_json(value["kinds"]),
            calibration=None if calibration is None else Calibration.from_json(calibration),
        )


def load_table(path: Path) -> LatencyTable:
    """Return the table in a file.

    Raises:
        MeasureError: the file cannot be read or holds no table.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"{path}: not a latency table: {error}") from error
    return LatencyTable.from_json(value)


def _require_facts(value: Mapping[str, Any]) -> None:  # Any: JSON values
    kinds = {"runtime": str, "precision": str, "batch": int, "threads": int, "scope": str, "activations": str}
    for name, kind in kinds.items():
        if type(value[name]) is not kind:
            raise MeasureError(f"latency table: {name} should be {kind.__name__}, got {value[name]!r}")
    if not isinstance(value["machine"], Mapping) or not isinstance(value["kinds"], list):
        raise MeasureError("latency table: machine should be an object and kinds a list")


def _cells_from_json(entries: list[Any]) -> dict[LayerKind, dict[tuple[int, int], Cell]]:  # Any: JSON values
    cells: dict[LayerKind, dict[tuple[int, int], Cell]] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or set(entry) != {"kind", "cells"} or not entry["cells"]:
            raise MeasureError(f"latency table: {entry!r:.80} holds no kind with its cells")
        kind = LayerKind.from_json(entry["kind"])
        cells[kind] = dict(_cell_from_json(kind, row) for row in entry["cells"])
    return cells


def _cell_from_json(kind: LayerKind, row: Any) -> tuple[tuple[int, int], Cell]:  # Any: JSON values
    fits = isinstance(row, list) and len(row) == 5 and all(type(n) in (int, float) for n in row)
    if not fits or type(row[0]) is not int or type(row[1]) is not int or not all(map(math.isfinite, row)):
        raise MeasureError(
            f"latency table: a cell of {kind} should be two widths and three times, got {row!r:.80}"
        )
    return (row[0], row[1]), Cell(seconds=float(row[2]), low_s=float(row[3]), high_s=float(row[4]))
