"""How a measurement is made: the numbers that must be equal before two measurements may be compared."""

from __future__ import annotations

from dataclasses import dataclass

from ticket_export.errors import MeasureError
from ticket_export.runtime.runner import require_scope, require_threads
from ticket_export.store.machine import num_usable_cores

MIN_ROUNDS = 5  # a t interval over fewer rounds is wider than most speedups (t = 4.30 at 3 rounds)
MIN_SAMPLES = 5  # a median of fewer timings is moved by a single interrupt
MAX_SAMPLES = 1000


def require_cores(threads: int) -> None:
    """Raise MeasureError when `threads` of one inference would share cores: their waiting would be timed."""
    if threads > num_usable_cores():
        raise MeasureError(
            f"measure: threads is {threads}, but this process may use {num_usable_cores()} cores",
            hint="give every thread a core of its own: lower measure.threads or --threads",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Rounds, samples, scope, threads and warm-up of one interleaved measuring run.

    Attributes:
        rounds: rounds in which every subject is timed once, in random order; at least 5. The unit of the
            interval.
        samples: timings per subject and round, at least 5. None: as many as fit `block_s` for the slowest
            subject; the Measurement then holds the number that was used.
        scope: "compute" or "end_to_end".
        threads: CPU threads of one inference.
        block_s: seconds one subject may take in one round when `samples` is None.
        drift_fraction: warm-up ends when the medians of two consecutive windows differ by less than this.
        warmup_cap_s: seconds of warm-up per subject after which it gives up and says so; it has then compared
            four windows at least.
        seed: root of the random inputs and of the random order.
    """

    rounds: int = 10
    samples: int | None = None
    scope: str = "compute"
    threads: int = 1
    block_s: float = 0.05
    drift_fraction: float = 0.01
    warmup_cap_s: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        require_scope(self.scope)
        require_threads(self.threads)
        if self.rounds < MIN_ROUNDS:
            raise MeasureError(
                f"measure: rounds is {self.rounds}, but an interval over rounds needs at least {MIN_ROUNDS}"
            )
        if self.samples is not None and self.samples < MIN_SAMPLES:
            raise MeasureError(
                f"measure: samples is {self.samples}, but the median of a round needs at least {MIN_SAMPLES}"
            )
        for name in ("block_s", "drift_fraction", "warmup_cap_s"):
            if not getattr(self, name) > 0.0:
                raise MeasureError(f"measure: {name} is {getattr(self, name)}, but must be above 0")
