"""A network of two layers to vary, and the comparison that the tests of odd networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import Shrunk, shrink

# N batch, F features


class Small(nn.Module):
    """[N, 4] -> [N, 2] over six hidden units, of which three emit a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.a.weight[::2] = 0.0
            self.a.bias[::2] = torch.tensor([0.5, -0.5, 0.25])

    def hidden(self, x_NF: Tensor) -> Tensor:
        return torch.relu(self.a(x_NF))

    def forward(self, x_NF: Tensor) -> object:
        return self.c(self.hidden(x_NF))


def fresh(inputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(99)
    return [
        torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point()
        else value
        for value in inputs
    ]


def equal_result(net: nn.Module, *inputs: Tensor) -> Shrunk:
    """Shrink, and compare all outputs on fresh inputs, apart from the check inside of `shrink`."""
    shrunk = shrink(net.eval(), inputs)
    trial = fresh(inputs)
    with torch.no_grad():
        given, found = net(*trial), shrunk.model(*trial)
    assert _pytree.tree_structure(found) == _pytree.tree_structure(given)
    pairs = [
        pair
        for pair in zip(_pytree.tree_leaves(found), _pytree.tree_leaves(given), strict=True)
        if isinstance(pair[1], Tensor)
    ]
    assert pairs
    assert max(relative_error(real(a), real(b)) for a, b in pairs) <= 1e-5
    return shrunk


def real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def hidden_width(shrunk: Shrunk) -> int:
    return shrunk.report.widths["a"].after
