"""One Runner x batch x machine x protocol: every raw sample, in rounds, and how it was made."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ticket_export.errors import MeasureError, StoreError
from ticket_export.measure.gpu import GpuBlock
from ticket_export.measure.load import Load
from ticket_export.measure.protocol import Protocol

SCHEMA = 1
P99_SAMPLES = 1000
ARRAYS = ("samples_s", "lead_in_s", "warmup_s")
ENERGY_BLOCK_S = 0.1  # the energy counter's slowest refresh: a shorter block holds its neighbour's energy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """The timings of one subject in one interleaved measuring run.

    Attributes:
        name: the subject, as given to the run.
        samples_s: [rounds, samples] seconds of single inferences.
        lead_in_s: [rounds, calls] seconds of the first calls of each round, which find the caches cold; not
            in `samples_s`.
        warmup_s: [calls] seconds of the calls before the first round; not in `samples_s`.
        runtime, device, precision, settings: of the Runner.
        batch: images per inference.
        scope: "compute" or "end_to_end".
        threads: CPU threads of one inference.
        protocol: as it was run, with `samples` resolved to a number.
        machine: facts of the machine; equal facts mean comparable.
        run: name of the interleaved run; only Measurements of one run share rounds.
        loads: what others used of the machine, one per round.
        reasons: why it is not to be trusted, in words; empty means stable.
        cores: the logical cores the process was held to; None where it was not.
        gpu: what the GPU did in each round while this subject was timed; empty on a CPU.
    """

    name: str
    samples_s: npt.NDArray[np.float64]
    lead_in_s: npt.NDArray[np.float64]
    warmup_s: npt.NDArray[np.float64]
    runtime: str
    device: str
    precision: str
    batch: int
    scope: str
    threads: int
    protocol: Protocol
    machine: Mapping[str, Any]  # Any: JSON values, whatever the machine module records
    run: str
    loads: tuple[Load, ...]
    reasons: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] | None = None
    gpu: tuple[GpuBlock, ...] = ()

    @property
    def num_rounds(self) -> int:
        """Rounds, the unit of every interval."""
        return int(self.samples_s.shape[0])

    @property
    def num_samples(self) -> int:
        """Samples per round."""
        return int(self.samples_s.shape[1])

    @property
    def stable(self) -> bool:
        """True when there is no reason to distrust the samples."""
        return not self.reasons

    @property
    def round_medians_s(self) -> npt.NDArray[np.float64]:
        """The median of every round, [rounds] seconds."""
        return np.asarray(np.median(self.samples_s, axis=1), dtype=np.float64)

    @property
    def throughput_per_s(self) -> float:
        """Images per second over the timed calls: all images divided by all seconds."""
        return float(self.batch * self.samples_s.size / self.samples_s.sum())

    @property
    def p50_s(self) -> float:
        """The median of all samples."""
        return float(np.median(self.samples_s))

    @property
    def p90_s(self) -> float:
        """The 90th percentile of all samples, by nearest rank."""
        return float(np.quantile(self.samples_s, 0.9, method="inverted_cdf"))

    @property
    def p99_s(self) -> float | None:
        """The 99th percentile of all samples; None below 1000 of them, when fewer than ten lie beyond it."""
        if self.samples_s.size < P99_SAMPLES:
            return None
        return float(np.quantile(self.samples_s, 0.99, method="inverted_cdf"))

    @property
    def energy_per_image_j(self) -> float | None:
        """Joules of the GPU's board per image, host excluded; None where it is not known.

        The differences of the energy counter over this subject's blocks, summed over the rounds, divided by
        the images timed in them. It holds whatever the board drew between two timed calls too. The counter
        lags by up to 100 ms, so a block's first moments are booked on the subject before it: the order is
        random, which spreads the error, but below 100 ms per block one refresh spans several subjects and
        nothing is told.
        """
        energies_j = [block.energy_j for block in self.gpu if block.energy_j is not None]
        if not energies_j or len(energies_j) < len(self.gpu):
            return None
        if sum(block.wall_s for block in self.gpu) < ENERGY_BLOCK_S * len(self.gpu):
            return None
        return sum(energies_j) / (self.batch * self.samples_s.size)

    def latency_json(self) -> dict[str, float]:
        """Return the `latency_s` field of a report row: p50 and p90 in seconds."""
        return {"p50": self.p50_s, "p90": self.p90_s}

    def facts_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return everything but the arrays as JSON values."""
        fields = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name not in ARRAYS
        }
        return {
            "schema": SCHEMA,
            **fields,
            "protocol": dataclasses.asdict(self.protocol),
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "loads": [dataclasses.asdict(load) for load in self.loads],
            "cores": None if self.cores is None else list(self.cores),
            "gpu": [dataclasses.asdict(block) for block in self.gpu],
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_json(
        cls,
        facts: Mapping[str, Any],  # Any: JSON values
        arrays: Mapping[str, npt.NDArray[np.float64]],
    ) -> Measurement:
        """Return the Measurement that `facts_json` and its arrays came from.

        Raises:
            MeasureError: the facts have another schema, or fields that this version does not know.
        """
        if facts.get("schema") != SCHEMA:
            raise MeasureError(f"measurement: schema is {facts.get('schema')!r}, this version reads {SCHEMA}")
        fields = {key: value for key, value in facts.items() if key != "schema"}
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise MeasureError(
                f"measurement: unknown fields {', '.join(sorted(unknown))}",
                hint="it was written by a newer version of ticket-export",
            )
        fields["loads"] = tuple(Load(**load) for load in facts["loads"])
        fields["reasons"] = tuple(facts["reasons"])
        fields["protocol"] = Protocol(**facts["protocol"])
        cores = facts.get("cores")  # since cores are held; older files have none
        fields["cores"] = None if cores is None else tuple(cores)
        fields["gpu"] = tuple(GpuBlock(**block) for block in facts.get("gpu", ()))
        fields |= {name: arrays[name] for name in ARRAYS}
        return cls(**fields)


def save_measurements(path: Path, measurements: Mapping[str, Measurement]) -> None:
    """Write all raw samples and facts into one .npz file, which appears only when it is complete.

    Args:
        path: the file to write; an existing one is replaced.
        measurements: by subject name.

    Raises:
        StoreError: the file cannot be written.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {
        f"{index}/{name}": getattr(measurement, name)
        for index, measurement in enumerate(measurements.values())
        for name in ARRAYS
    }
    facts = [measurement.facts_json() for measurement in measurements.values()]
    arrays["facts"] = np.array(json.dumps(facts))
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def load_measurements(path: Path) -> dict[str, Measurement]:
    """Return what `save_measurements` wrote, by subject name in the same order.

    Raises:
        MeasureError: the file is missing, damaged or of another schema.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        facts = json.loads(str(stored["facts"]))
        measurements = [
            Measurement.from_json(fact, {name: stored[f"{index}/{name}"] for name in ARRAYS})
            for index, fact in enumerate(facts)
        ]
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MeasureError(f"{path}: not a file of measurements: {error}") from error
    return {measurement.name: measurement for measurement in measurements}
