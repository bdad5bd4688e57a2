"""Several exported files, side by side, in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticket_export.errors import MeasureError
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.protocol import Protocol, require_cores
from ticket_export.measure.speedup import Speedup, speedup
from ticket_export.runtime.registry import open_runner

# seconds that the timed rounds take when `samples` is left open, whatever the number of models and rounds:
# three batches of a pair stay well within a minute, warm-up and loading included
ROUNDS_BUDGET_S = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All measurements of one interleaved run; the first model is the baseline.

    Attributes:
        measurements: by model name, in the order given.
        file_bytes: size of each file, by model name.
    """

    measurements: Mapping[str, Measurement]
    file_bytes: Mapping[str, int]

    @property
    def baseline(self) -> str:
        """The name of the first model."""
        return next(iter(self.measurements))

    @property
    def machine(self) -> Mapping[str, Any]:  # Any: JSON values, whatever the machine module records
        """The facts of the machine that all were measured on."""
        return self.measurements[self.baseline].machine

    @property
    def stable(self) -> bool:
        """True when no measurement gives a reason to distrust it."""
        return all(measurement.stable for measurement in self.measurements.values())

    @property
    def rows(self) -> list[dict[str, Any]]:  # Any: JSON values
        """One row per model with every field of `report.json`; what a file alone does not tell is None."""
        return [self._row(name) for name in self.measurements]

    def speedup(self, name: str) -> Speedup:
        """Return how many times faster `name` ran than the baseline, with its interval.

        Raises:
            MeasureError: `name` is not one of the models.
        """
        if name not in self.measurements:
            raise MeasureError(f"{name!r} is not one of {', '.join(self.measurements)}")
        return speedup(self.measurements[self.baseline], self.measurements[name])

    def _row(self, name: str) -> dict[str, Any]:  # Any: JSON values
        counts = ("params", "macs", "channel_density", "param_density", "mac_density")
        return {
            "subject": name,
            **dict.fromkeys(("replicate", "accuracy", *counts)),
            **latency_row(self.measurements[name], self.measurements[self.baseline]),
            "parity_rel_error": None,
            "file_bytes": self.file_bytes[name],
        }


def latency_row(subject: Measurement, baseline: Measurement) -> dict[str, Any]:  # Any: JSON values
    """Return the measured fields of a report row; a speedup is no stabler than its baseline.

    Args:
        subject: the row's own measurement.
        baseline: the measurement it is divided by; the subject itself for the baseline's row.

    Raises:
        MeasureError: the two are not comparable.
    """
    row: dict[str, Any] = {  # Any: JSON values
        "runtime": subject.runtime,
        "precision": subject.precision,
        "batch": subject.batch,
        "scope": subject.scope,
        "threads": subject.threads,
        "latency_s": subject.latency_json(),
        "throughput_per_s": subject.throughput_per_s,
        "speedup": None,
        "reasons": list(subject.reasons),
        "num_rounds": subject.num_rounds,
        "num_samples": subject.num_samples,
        "rounds_won_fraction": None,
    }
    if subject is not baseline:
        ratio = speedup(baseline, subject)
        row["speedup"] = ratio.to_json()
        row["rounds_won_fraction"] = ratio.rounds_won_fraction
        row["reasons"] += [
            f"baseline {baseline.name}: {reason}"
            for reason in baseline.reasons
            if reason not in subject.reasons
        ]
    return row | {"stable": not row["reasons"]}


def compare(
    models: Mapping[str, str | Path],
    *,
    runtime: str = "ort-cpu",
    batch: int = 1,
    scope: str = "compute",
    threads: int = 1,
    rounds: int = 10,
    samples: int | None = None,
    seed: int = 0,
    batches: Sequence[int] = (),
    cuda_graph: bool | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Time all models in the same rounds on this machine; the first one is the baseline.

    Args:
        models: path of an exported file by name; the same file may be given twice.
        runtime: how to run them, e.g. "ort-cpu".
        batch: images per inference.
        scope: "compute" or "end_to_end".
        threads: CPU threads of one inference.
        rounds: rounds in which every model is timed once, at least 5.
        samples: timings per model and round; None lets the rounds take about 12 s in all.
        seed: root of the random inputs and of the order within a round.
        batches: further sizes that are going to be measured, so that an engine is built once for all.
        cuda_graph: whether each network is launched as one CUDA graph; None is the runtime's own choice.
        on_round: called after each round with (rounds done, rounds in all).

    Raises:
        MeasureError: a file is missing or damaged, the models take or give unequal tensors or compute in
            unequal precisions, an output is not finite, a number is out of range, or there are more threads
            than cores.
        DeviceError: memory runs out at this batch, or the device is lost.
        MissingDependency: the runtime is not installed.
    """
    if not models:
        raise MeasureError("measure: no models were given")
    require_cores(threads)
    block_s = ROUNDS_BUDGET_S / (max(rounds, 1) * len(models))
    protocol = Protocol(
        rounds=rounds, samples=samples, scope=scope, threads=threads, block_s=block_s, seed=seed
    )
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(
                open_runner(
                    Path(path), runtime, threads=threads, batches=(batch, *batches), cuda_graph=cuda_graph
                )
            )
            for name, path in models.items()
        }
        measurements = measure_interleaved(runners, batch=batch, protocol=protocol, on_round=on_round)
    return Comparison(
        measurements=measurements,
        file_bytes={name: Path(path).stat().st_size for name, path in models.items()},
    )
