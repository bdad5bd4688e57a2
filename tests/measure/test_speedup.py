from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ticket_export.errors import MeasureError
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import Speedup, speedup

Make = Callable[..., Measurement]


def rounds_s(*medians_s: float) -> np.ndarray:
    """Rounds of 5 samples around each median; one of them is an interrupt, which a median ignores."""
    return np.array([[m * 0.99, m, m, m * 1.01, m * 50.0] for m in medians_s])


def test_a_constant_ratio_has_a_point_interval(measurement: Make) -> None:
    drifting = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    dense = measurement(rounds_s(*drifting))
    ticket = measurement(rounds_s(*(m / 1.6 for m in drifting)), name="ticket")
    result = speedup(dense, ticket)
    assert (result.ratio, result.low, result.high) == pytest.approx((1.6, 1.6, 1.6), rel=1e-12)
    assert (result.baseline, result.num_rounds, result.rounds_won_fraction) == ("dense", 6, 1.0)
    assert result.verdict == "faster"


def test_the_interval_is_the_t_interval_of_the_log_ratios(measurement: Make) -> None:
    log_ratios = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    result = speedup(measurement(rounds_s(*np.exp(log_ratios))), measurement(rounds_s(*[1.0] * 5), name="t"))
    half_width = 2.776445 * np.sqrt(0.025 / 5)
    assert np.log([result.ratio, result.low, result.high]) == pytest.approx(
        [0.3, 0.3 - half_width, 0.3 + half_width], rel=1e-6
    )


def test_an_interval_that_holds_one_shows_no_difference(measurement: Make) -> None:
    dense = measurement(rounds_s(1.0, 1.1, 1.0, 0.9, 1.0))
    ticket = measurement(rounds_s(1.0, 1.0, 0.9, 1.0, 1.1), name="ticket")
    result = speedup(dense, ticket)
    assert result.low < 1.0 < result.high
    assert result.verdict == "no difference shown"
    assert str(result).startswith("no difference shown: 1.00x (95 %: 0.")
    assert result.rounds_won_fraction == 0.4


def test_the_reverse_pair_reads_slower_with_the_reciprocal_interval(measurement: Make) -> None:
    dense = measurement(rounds_s(2.0, 2.1, 2.0, 2.2, 2.0))
    ticket = measurement(rounds_s(1.0, 1.0, 1.1, 1.0, 1.0), name="ticket")
    forth, back = speedup(dense, ticket), speedup(ticket, dense)
    assert back.verdict == "slower"
    reciprocal = (1 / back.ratio, 1 / back.high, 1 / back.low)
    assert reciprocal == pytest.approx((forth.ratio, forth.low, forth.high))


def test_the_text_holds_ratio_interval_and_rounds() -> None:
    result = Speedup(
        ratio=1.842, low=1.791, high=1.904, baseline="dense", num_rounds=10, rounds_won_fraction=1.0
    )
    assert str(result) == "1.84x (95 %: 1.79-1.90, n = 10 rounds)"
    assert result.to_json() == {"ratio": 1.842, "low": 1.791, "high": 1.904, "baseline": "dense"}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("runtime", "torch", r"runtime is 'torch' against 'ort-cpu'"),
        ("device", "cuda:0", r"device is 'cuda:0' against 'cpu'"),
        ("precision", "fp16", r"precision is 'fp16' against 'fp32'"),
        ("batch", 1, r"batch is 1 against 8"),
        ("scope", "end_to_end", r"scope is 'end_to_end' against 'compute'"),
        ("threads", 2, r"threads is 2 against 1"),
        ("machine", {"cpu": "two", "num_cores": 2}, r"machine cpu is 'two' against 'one'"),
        ("machine", {"cpu": "one"}, r"machine num_cores is None against 2"),
        ("run", "run-b", r"measuring run is 'run-b' against 'run-a'"),
    ],
)
def test_unequal_pairs_are_refused_with_both_values(
    measurement: Make, field: str, value: object, words: str
) -> None:
    samples_s = rounds_s(1.0, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(MeasureError, match=r"cannot compare 'ticket' against 'dense': " + words):
        speedup(measurement(samples_s), measurement(samples_s, name="ticket", **{field: value}))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Protocol)])
def test_every_field_of_the_protocol_must_be_equal(measurement: Make, field: str) -> None:
    samples_s = rounds_s(1.0, 1.0, 1.0, 1.0, 1.0)
    base = Protocol(rounds=5, samples=5)
    before = getattr(base, field)
    other = dataclasses.replace(base, **{field: "end_to_end" if field == "scope" else before + 1})
    with pytest.raises(MeasureError, match=rf"protocol {field} is .* against {before!r}"):
        speedup(measurement(samples_s, protocol=base), measurement(samples_s, name="t", protocol=other))
