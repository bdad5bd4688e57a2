"""Which of several equal networks is kept: scripted latencies, so that the right answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from ticket_export.errors import MeasureError
from ticket_export.measure.fastest import fastest, not_shown_slower, speedup_over_batches
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import speedup
from ticket_export.runtime.fake import FakeRunner

SAMPLES, ROUNDS = 5, 10


def script(latency_s: float, spread: Sequence[float] = (0.0,)) -> Callable[[int], float]:
    """A latency that goes through `spread` (relative) slowly, so that whole rounds differ."""
    return lambda call: latency_s * (1.0 + spread[(call // 8) % len(spread)])


def run_of(
    latency_by_name: Mapping[str, Callable[[int], float]], *, batch: int = 1, rounds: int = ROUNDS
) -> dict[str, Measurement]:
    runners = {name: FakeRunner(latency) for name, latency in latency_by_name.items()}
    return measure_interleaved(runners, batch=batch, protocol=Protocol(rounds=rounds, samples=SAMPLES))


JITTER = (0.0, 0.02, -0.03, 0.01, 0.04, -0.02, 0.03, -0.01, 0.02)
COUNTER = (0.03, -0.02, 0.02, -0.04, 0.0, 0.01, -0.03, 0.04, -0.01)


def test_the_fastest_is_kept_though_it_is_larger() -> None:
    run = run_of({"dense": script(1.0), "a": script(0.8), "b": script(0.5)})
    assert fastest([run], {"a": (10,), "b": (20,)}) == "b"


def test_of_two_without_a_shown_difference_the_smaller_file_is_kept() -> None:
    run = run_of({"dense": script(1.0), "large": script(0.5, JITTER), "small": script(0.51, COUNTER)})
    shown = speedup(run["small"], run["large"])
    assert shown.low < 1.0 < shown.ratio  # the larger one has the smaller mean, and that is not shown
    assert fastest([run], {"large": (30,), "small": (10,)}) == "small"
    assert fastest([run], {"large": (10,), "small": (30,)}) == "large"


def test_a_clear_loser_is_never_kept_however_small() -> None:
    run = run_of({"dense": script(1.0), "a": script(0.50), "b": script(0.51)})
    assert not_shown_slower([run], ["a", "b"]) == ["a"]
    assert fastest([run], {"a": (1000,), "b": (1,)}) == "a"


def test_what_is_kept_is_shown_slower_than_none_for_any_latencies() -> None:
    random = np.random.default_rng(0)
    for _ in range(40):
        names = ["a", "b", "c", "d"]
        base = dict(zip(names, random.uniform(0.9, 1.1, 4), strict=True))
        run = run_of(
            {
                name: script(base[name], tuple(random.normal(0, random.choice([0.001, 0.03]), 9)))
                for name in names
            }
        )
        sizes = {name: (int(random.integers(1, 5)),) for name in names}
        kept = fastest([run], sizes)
        others = [other for other in names if other != kept]
        assert all(speedup(run[kept], run[other]).low <= 1.0 for other in others)
        means = {name: float(np.log(run[name].round_medians_s).mean()) for name in names}
        assert min(means, key=lambda name: means[name]) in not_shown_slower([run], names)


def test_equal_sizes_keep_the_first() -> None:
    run = run_of({name: script(0.5) for name in ("x", "y")})
    assert fastest([run], {"y": (1, 2), "x": (1, 2)}) == "y"


def test_several_batches_count_by_the_geometric_mean() -> None:
    at_1 = run_of({"dense": script(1.0), "a": script(0.5), "b": script(0.8)}, batch=1)
    at_8 = run_of({"dense": script(4.0), "a": script(4.0), "b": script(2.0)}, batch=8)
    runs = [at_1, at_8]
    assert speedup_over_batches(runs, "dense", "a").ratio == pytest.approx(2**0.5)
    assert speedup_over_batches(runs, "dense", "b").ratio == pytest.approx((1.25 * 2.0) ** 0.5)
    sizes = {"a": (1,), "b": (1,)}
    assert fastest([at_1], sizes) == "a"
    assert fastest([at_8], sizes) == "b"
    assert fastest(runs, sizes) == "b"


def test_one_batch_gives_the_speedup_that_everything_else_reports() -> None:
    run = run_of({"dense": script(1.0, JITTER), "a": script(0.6, COUNTER)})
    assert speedup_over_batches([run], "dense", "a") == speedup(run["dense"], run["a"])


def test_unequal_numbers_of_rounds_have_no_mean() -> None:
    runs = [run_of({"dense": script(1.0), "a": script(0.5)}, rounds=rounds) for rounds in (5, 6)]
    with pytest.raises(MeasureError, match=r"equal numbers of rounds, got \[5, 6\]"):
        speedup_over_batches(runs, "dense", "a")


def test_measurements_of_different_runs_are_not_mixed() -> None:
    one, other = (run_of({"dense": script(1.0), "a": script(0.5)}) for _ in range(2))
    with pytest.raises(MeasureError, match="measuring run"):
        speedup_over_batches([{"dense": one["dense"], "a": other["a"]}], "dense", "a")
