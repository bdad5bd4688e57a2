from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from ticket_export.measure.load import Load, LoadMeter, num_cores
from ticket_export.measure.stability import stability_reasons

QUIET = Load(other_cores=0.02, steal_cores=0.0)


def reasons(samples_s: np.ndarray, **changes: Any) -> tuple[str, ...]:
    fields: dict[str, Any] = {
        "warmup_drift_fraction": 0.004,
        "drift_limit": 0.01,
        "loads": [QUIET] * len(samples_s),
        "threads": 1,
        "num_cores": 2,
    }
    return stability_reasons(samples_s, **{**fields, **changes})


def steady_s(rounds: int = 10, samples: int = 50) -> np.ndarray:
    return 1e-3 * (1.0 + 0.01 * np.random.default_rng(0).standard_normal((rounds, samples)))


def equal_rounds_s() -> np.ndarray:
    return np.tile(steady_s(rounds=1), (10, 1))


def test_steady_samples_on_a_quiet_machine_give_no_reason() -> None:
    assert reasons(steady_s()) == ()


def test_a_single_interrupt_per_round_is_no_reason() -> None:
    samples_s = steady_s()
    samples_s[:, 7] *= 30.0
    assert reasons(samples_s) == ()


def test_rounds_that_differ_are_named_with_their_variation() -> None:
    samples_s = equal_rounds_s() * np.where(np.arange(10) % 2, 1.0, 1.2)[:, None]
    # five rounds at 1.0 and five at 1.2: standard deviation 0.1054, mean 1.1
    assert reasons(samples_s) == ("the medians of the rounds vary by 9.6% (limit 5%)",)


@pytest.mark.parametrize(("factor", "word"), [(1.1, "10.0% slower"), (0.9, "10.0% faster")])
def test_a_trend_is_named_with_its_direction(factor: float, word: str) -> None:
    samples_s = equal_rounds_s() * np.where(np.arange(10) < 5, 1.0, factor)[:, None]
    found = [reason for reason in reasons(samples_s) if "second half" in reason]
    assert found == [f"the second half of the rounds is {word} than the first (limit 5%)"]


def test_a_heavy_tail_is_named_with_its_size() -> None:
    samples_s = steady_s()
    samples_s[:, ::5] *= 3.0
    assert reasons(samples_s) == ("one sample in ten takes 3.0x the median or more (limit 1.5x)",)


@pytest.mark.parametrize("drift", [0.034, 0.01])
def test_a_warm_up_that_never_settled_is_named(drift: float) -> None:
    words = f"warm-up never settled: its last two windows differ by {drift:.1%} (limit 1.0%)"
    assert reasons(steady_s(), warmup_drift_fraction=drift) == (words,)


def test_a_neighbour_counts_where_it_takes_cores_that_the_inference_needs() -> None:
    beside = [Load(other_cores=1.0, steal_cores=0.0)] * 10
    assert reasons(steady_s(), loads=beside, threads=1, num_cores=2) == ()
    assert reasons(steady_s(), loads=beside, threads=2, num_cores=2) == (
        "busy neighbour: other processes used 1.00 of 2 cores during the rounds (limit 0.15 with 2 threads)",
    )
    more = [Load(other_cores=1.4, steal_cores=0.0)] * 10
    assert reasons(steady_s(), loads=more) == (
        "busy neighbour: other processes used 1.40 of 2 cores during the rounds (limit 1.15 with 1 thread)",
    )


def test_time_taken_by_the_hypervisor_is_named() -> None:
    loads = [Load(other_cores=0.0, steal_cores=0.2)] * 10
    assert reasons(steady_s(), loads=loads) == (
        "the hypervisor took 0.20 cores for other guests during the rounds (limit 0.05)",
    )


def test_time_kept_back_by_a_containers_limit_is_named() -> None:
    loads = [Load(other_cores=0.0, steal_cores=0.0, quota_cores=0.4)] * 10
    assert reasons(steady_s(), loads=loads) == (
        "the container's CPU limit kept 0.40 cores from this process during the rounds (limit 0.05)",
    )


def test_all_reasons_are_told_at_once() -> None:
    samples_s = steady_s() * np.linspace(1.0, 2.0, 10)[:, None]
    samples_s[:, ::5] *= 4.0
    loads = [Load(other_cores=2.0, steal_cores=0.5, quota_cores=0.5)] * 10
    assert len(reasons(samples_s, loads=loads, warmup_drift_fraction=float("inf"))) == 7


def test_a_system_that_does_not_tell_the_load_is_a_reason() -> None:
    loads = [Load(other_cores=None, steal_cores=None)] * 10
    assert reasons(steady_s(), loads=loads) == (
        "busy neighbour not ruled out: this system does not tell the load of other processes",
    )


@pytest.mark.usefixtures("real_machine")
def test_the_meter_sees_another_process_and_not_this_one() -> None:
    meter = LoadMeter()
    end = time.perf_counter() + 0.4
    while time.perf_counter() < end:
        pass
    alone = meter.stop()
    command = [sys.executable, "-c", "print('up', flush=True)\nwhile True: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as burner:
        assert burner.stdout is not None
        burner.stdout.readline()
        meter = LoadMeter()
        time.sleep(0.4)
        beside = meter.stop()
        burner.kill()
    assert 0.0 <= alone.other_cores <= num_cores()
    # under a load of its own the machine still gives an endless loop a fair share
    assert beside.other_cores > 0.3
