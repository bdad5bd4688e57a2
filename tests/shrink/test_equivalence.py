"""What counts as equal: within the tolerance, or within the dense network's own rounding."""

from __future__ import annotations

import copy
from functools import reduce

import pytest
import torch
from torch import Tensor, nn

from ticket_export.errors import DivergedError
from ticket_export.shrink.equivalence import check_equal, trials_of


class Cancelling(nn.Module):
    """A difference of large sums: float32 leaves it few digits; the order of the sum decides which."""

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter((torch.randn(8, 4096, generator=generator) + 100.0)[:, order])
        self.order = order
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x_NC: Tensor) -> Tensor:
        ordered = torch.cat([x_NC, -x_NC], dim=1)[:, self.order] * self.factor
        return reduce(torch.add, (ordered[:, None] * self.weight).unbind(2))


def networks() -> tuple[nn.Module, nn.Module]:
    shuffled = torch.randperm(4096, generator=torch.Generator().manual_seed(1))
    return Cancelling(torch.arange(4096)), Cancelling(shuffled)


INPUTS = (torch.randn(2, 2048, generator=torch.Generator().manual_seed(2)),)


def test_rounding_that_the_dense_network_has_itself_is_no_difference():
    dense, small = networks()
    error = check_equal(small, dense, trials_of(dense, INPUTS), tolerance=1e-7)
    assert 1e-7 < error < 1e-2


def test_a_difference_of_that_size_that_stays_in_float64_is_one():
    dense, small = networks()
    small.factor.data.fill_(1.0 + 1e-5)
    with pytest.raises(DivergedError, match="allowed 1e-07"):
        check_equal(small, dense, trials_of(dense, INPUTS), tolerance=1e-7)


def test_a_network_given_in_float64_has_no_such_excuse():
    dense, small = (copy.deepcopy(net).double() for net in networks())
    small.factor.data.fill_(1.0 + 1e-8)
    trials = trials_of(dense, tuple(x.double() for x in INPUTS))
    with pytest.raises(DivergedError, match="allowed 1e-09"):
        check_equal(small, dense, trials, tolerance=1e-9)
