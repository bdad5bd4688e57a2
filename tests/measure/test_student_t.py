from __future__ import annotations

import math

import numpy as np
import pytest

from ticket_export.measure.speedup import mean_interval, student_t_quantile


# table of the two-sided 95 % quantiles as printed in any statistics book, three decimals
@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (19, 2.093), (120, 1.980)],
)
def test_the_975_quantile_equals_the_printed_table(degrees: int, t: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(t, abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 9, 10, 29, 30, 199])
@pytest.mark.parametrize("probability", [0.01, 0.05, 0.4, 0.5, 0.8, 0.975, 0.995])
def test_every_quantile_equals_scipys(degrees: int, probability: float) -> None:
    from scipy import stats

    expected = float(stats.t.ppf(probability, degrees))
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_interval_of_known_values_is_the_textbooks() -> None:
    # mean 3, sample standard deviation sqrt(2.5), n = 5, t(0.975, 4) = 2.7764
    center, half_width = mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert center == 3.0
    assert half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5.0), rel=1e-6)
