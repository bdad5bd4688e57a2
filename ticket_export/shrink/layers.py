"""Layers that a shrunk network may need and torch has not: live rows alone, and a term for border constants.

Each is the torch layer with up to two tensors more, so a network that holds them trains, exports, and keeps
its `state_dict` keys.

- `border` [O, 1, *kernel]: the kernel that reads the constants of removed channels. Its response to an image
  of ones is added, exact at zero-padded borders and at every resolution.
- `scatter`, int64 [all rows]: for every output channel its position among the live rows, L for a row of
  zeros. The weight then holds the L live rows alone, the bias all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

# N images, I O input and output channels, L live rows

_CONVOLVE: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d,
}  # fmt: skip


def all_rows(y: Tensor, scatter: Tensor, bias: Tensor | None, axis: int) -> Tensor:
    """Return the output of every row from that of the live ones, and the bias added.

    Args:
        y: output of the live rows, along `axis`.
        scatter: position of every row among them; their number for a row of zeros.
        bias: [all rows], or None.
        axis: of the rows, counted from the front.
    """
    num_axes_behind = y.dim() - 1 - axis
    with_zero = functional.pad(y, (0, 0) * num_axes_behind + (0, 1))
    y = with_zero.index_select(axis, scatter)
    return y if bias is None else y + bias.reshape(-1, *([1] * num_axes_behind))


class _ConvMore(nn.modules.conv._ConvNd):
    border: nn.Parameter | None
    scatter: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, all rows, ...] for x [N, I, ...]."""
        bias = self.bias if self.scatter is None else None
        y: Tensor = self._conv_forward(x, self.weight, bias)
        if self.border is not None:
            ones = x.new_ones((1, 1, *x.shape[2:]))
            convolve = _CONVOLVE[x.dim() - 2]
            y = y + convolve(ones, self.border, None, self.stride, self.padding, self.dilation)
        return y if self.scatter is None else all_rows(y, self.scatter, self.bias, 1)


class Conv1dMore(_ConvMore, nn.Conv1d):
    """A Conv1d with a border term, with live rows alone, or both."""


class Conv2dMore(_ConvMore, nn.Conv2d):
    """A Conv2d with a border term, with live rows alone, or both."""


class Conv3dMore(_ConvMore, nn.Conv3d):
    """A Conv3d with a border term, with live rows alone, or both."""


class LinearMore(nn.Linear):
    """A Linear with live rows alone."""

    border: None
    scatter: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., all rows] for x [..., I]."""
        y = functional.linear(x, self.weight)
        return all_rows(y, self.scatter, self.bias, y.dim() - 1)


MORE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1dMore,
    nn.Conv2d: Conv2dMore,
    nn.Conv3d: Conv3dMore,
    nn.Linear: LinearMore,
}


def give_more(layer: nn.Module) -> None:
    """Turn a plain layer into one that may hold `border` and `scatter`, in place; both are None at first.

    Args:
        layer: of a type in `MORE`, or one that was turned before.
    """
    if type(layer) in MORE:
        layer.__class__ = MORE[type(layer)]
        layer.register_parameter("border", None)
        layer.register_buffer("scatter", None)


def can_add_term(layer: type[nn.Module] | None) -> bool:
    """Return whether a layer of this class can add the response to a padded constant."""
    return layer in (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def live_rows(weight: Tensor, border: Tensor | None) -> Tensor:
    """Return bool [O]: the rows of a weight [O, I, ...] that are not zero, nor those of its border kernel."""
    lives = (weight != 0).flatten(1).any(dim=1)
    return lives if border is None else lives | (border != 0).flatten(1).any(dim=1)


def scatter_from_live(lives: Tensor) -> Tensor:
    """Return for every row its position among the live ones, their number for the others; int64."""
    return torch.where(lives, lives.cumsum(0) - 1, int(lives.sum()))
