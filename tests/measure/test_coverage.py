"""The promise of the interval, by simulation: it holds the true ratio 95 times in 100, drift or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import speedup

TRUE_RATIO = 1.5


def simulated_pair_s(random: np.random.Generator, rounds: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Rounds on a machine whose speed is a random walk both share, plus a draw per subject and round."""
    walk = np.exp(np.cumsum(random.normal(0.0, 0.05, rounds)))[:, None]
    pair = []
    for latency_s in (TRUE_RATIO * 1e-3, 1e-3):
        own = np.exp(random.normal(0.0, 0.02, (rounds, 1)))
        noise = 1.0 + 0.05 * random.exponential(size=(rounds, samples))
        pair.append(latency_s * walk * own * noise)
    return pair[0], pair[1]


def pooled_interval(
    random: np.random.Generator, dense_s: np.ndarray, ticket_s: np.ndarray
) -> tuple[float, float]:
    """Bootstrap the ratio of medians over all samples, as if they were independent."""
    ratios = [
        np.median(random.choice(dense_s.ravel(), dense_s.size))
        / np.median(random.choice(ticket_s.ravel(), ticket_s.size))
        for _ in range(100)
    ]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize("rounds", [5, 10])
def test_the_interval_over_rounds_holds_the_true_ratio_95_times_in_100(
    measurement: Callable[..., Measurement], rounds: int
) -> None:
    random = np.random.default_rng(rounds)
    held = []
    for _ in range(1500):
        dense_s, ticket_s = simulated_pair_s(random, rounds, samples=20)
        result = speedup(measurement(dense_s), measurement(ticket_s, name="ticket"))
        held.append(result.low <= TRUE_RATIO <= result.high)
    # the standard error of a share of 0.95 over 1500 trials is 0.0056
    assert 0.935 <= np.mean(held) <= 0.965


def test_an_interval_over_pooled_samples_would_claim_far_too_much() -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(150):
        dense_s, ticket_s = simulated_pair_s(random, 10, samples=100)
        low, high = pooled_interval(random, dense_s, ticket_s)
        held.append(low <= TRUE_RATIO <= high)
    assert np.mean(held) < 0.75


def test_interleaved_runs_recover_the_known_ratio_on_a_drifting_machine(
    world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ticket_export.measure.latency.machine_facts", lambda: {"cpu": "simulated"})
    ratios, held = [], []
    for seed in range(150):
        machine = world(seed, drift=0.1, placement=0.01, noise=0.02)
        runners = {"dense": machine.runner(TRUE_RATIO * 4e-3), "ticket": machine.runner(4e-3)}
        protocol = Protocol(rounds=10, samples=5, warmup_cap_s=0.05, seed=seed)
        measured = measure_interleaved(runners, batch=1, protocol=protocol)
        result = speedup(measured["dense"], measured["ticket"])
        ratios.append(result.ratio)
        held.append(result.low <= TRUE_RATIO <= result.high)
    assert np.median(ratios) == pytest.approx(TRUE_RATIO, rel=0.01)
    # the standard error of a share of 0.95 over 150 trials is 0.018
    assert 0.90 <= np.mean(held) <= 0.99


def test_a_subject_against_itself_is_called_different_in_about_one_run_of_twenty(
    measurement: Callable[..., Measurement],
) -> None:
    random = np.random.default_rng(1)
    different = []
    for _ in range(1500):
        dense_s, ticket_s = simulated_pair_s(random, 10, samples=20)
        same_s = ticket_s * TRUE_RATIO
        result = speedup(measurement(dense_s), measurement(same_s, name="copy"))
        different.append(result.verdict != "no difference shown")
    assert 0.035 <= np.mean(different) <= 0.065
