"""A convolution in blocks: for each block of rows the input channels it reads, and a small dense convolution.

It is made of torch's own layers, so it trains, exports as Gather or Slice, Conv and Concat, and computes
what the convolution with zeros computed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ticket_export.shrink.block_rows import Block

# N images, C channels, H W pixels, O I output and input channels, Z rows of zeros


class BlockConv2d(nn.Module):
    """A Conv2d whose rows read few input channels; [N, I, H, W] -> [N, O, H', W'].

    Args:
        conv: the convolution with zeros; its values are copied.
        blocks: its weights that are not zero, in disjoint rows.
        is_grouped: compute all blocks, which then have equal shapes, as one grouped convolution.
        norm: a batch norm that follows it and is computed block by block too, or None. Behind a concatenation
            no runtime would merge it into the convolutions.
    """

    place_of_row: Tensor | None
    zero_rows: Tensor | None

    def __init__(
        self, conv: nn.Conv2d, blocks: Sequence[Block], *, is_grouped: bool, norm: nn.BatchNorm2d | None
    ) -> None:
        super().__init__()
        self.in_channels, num_rows = conv.in_channels, conv.out_channels
        in_blocks = [row for block in blocks for row in block.rows]
        other_rows = sorted(set(range(num_rows)) - set(in_blocks))
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        parts = [list(blocks)] if is_grouped else [[block] for block in blocks]
        self._reads: list[tuple[int, int] | None] = []  # a range of channels, or None for a buffer's
        for place, part in enumerate(parts):
            columns = torch.tensor([column for block in part for column in block.columns])
            self._read_by(place, columns, conv)
            self.convs.append(_part_of(conv, part))
            if norm is not None:
                self.norms.append(_norm_of(norm, [row for block in part for row in block.rows]))
        self._add_zero_rows(conv, other_rows, norm)
        order = torch.tensor(in_blocks + other_rows)
        is_in_order = torch.equal(order, torch.arange(num_rows))
        place_of_row = None if is_in_order else order.argsort().to(conv.weight.device)
        self.register_buffer("place_of_row", place_of_row)
        self.train(conv.training)

    def forward(self, x_NIHW: Tensor) -> Tensor:
        """Return what the convolution with its zeros returns, and the norm after it where it holds one."""
        parts = []
        for place, conv in enumerate(self.convs):
            y = conv(self._read(x_NIHW, place))
            parts.append(self.norms[place](y) if self.norms else y)
        if self.zero_rows is not None:
            parts.append(self._given_by_zero_rows(self.zero_rows, like=parts[0]))
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return joined if self.place_of_row is None else joined.index_select(1, self.place_of_row)

    def _given_by_zero_rows(self, values_1Z11: Tensor, *, like: Tensor) -> Tensor:
        shape = (like.shape[0], values_1Z11.shape[1], *like.shape[2:])
        if self.zero_norm is None:
            return values_1Z11.expand(shape)
        if self.training:  # a norm in training needs more than one value of a channel
            return cast(Tensor, self.zero_norm(values_1Z11.expand(shape)))
        return cast(Tensor, self.zero_norm(values_1Z11)).expand(shape)  # an export computes it once

    def _read_by(self, place: int, columns: Tensor, conv: nn.Conv2d) -> None:
        first, last = int(columns[0]), int(columns[-1])
        is_range = torch.equal(columns, torch.arange(first, last + 1))
        self._reads.append((first, last + 1) if is_range else None)
        index = None if is_range else columns.to(conv.weight.device)
        self.register_buffer(f"columns_{place}", index)

    def _read(self, x_NIHW: Tensor, place: int) -> Tensor:
        read = self._reads[place]
        if read is None:
            return x_NIHW.index_select(1, self.get_buffer(f"columns_{place}"))
        return x_NIHW if read == (0, self.in_channels) else x_NIHW[:, slice(*read)]

    def _add_zero_rows(self, conv: nn.Conv2d, rows: Sequence[int], norm: nn.BatchNorm2d | None) -> None:
        """Keep what rows of zeros give: their bias, which trains, or zero."""
        if not rows:
            self.zero_rows = None
        elif conv.bias is not None:
            values = conv.bias.detach()[list(rows)].view(1, -1, 1, 1)
            self.zero_rows = nn.Parameter(values, requires_grad=conv.bias.requires_grad)
        else:
            self.register_buffer("zero_rows", conv.weight.new_zeros(1, len(rows), 1, 1).detach())
        self.zero_norm = _norm_of(norm, rows) if rows and norm is not None else None


def joins_parts(conv: nn.Conv2d, blocks: Sequence[Block], *, is_grouped: bool) -> bool:
    """Return whether the output is put together from parts, or reordered: what follows cannot be merged."""
    rows = [row for block in blocks for row in block.rows]
    return (len(blocks) > 1 and not is_grouped) or rows != list(range(conv.out_channels))


def _part_of(conv: nn.Conv2d, blocks: Sequence[Block]) -> nn.Conv2d:
    """Return the convolution of these blocks: their rows one after the other, each block a group."""
    weights = [
        conv.weight.detach()[torch.tensor(block.rows)][:, torch.tensor(block.columns)] for block in blocks
    ]
    part = copy.deepcopy(conv)  # stride, padding, dilation, their modes and whether it trains are its own
    weight = torch.cat(weights).contiguous()
    part.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    if conv.bias is not None:
        rows = [row for block in blocks for row in block.rows]
        part.bias = nn.Parameter(conv.bias.detach()[rows], requires_grad=conv.bias.requires_grad)
    part.groups = len(blocks)
    part.out_channels, part.in_channels = len(weight), weight.shape[1] * len(blocks)
    return part


def _norm_of(norm: nn.BatchNorm2d, rows: Sequence[int]) -> nn.BatchNorm2d:
    """Return the norm of these channels alone."""
    own = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters():
        values = parameter.detach()[list(rows)]
        own.register_parameter(name, nn.Parameter(values, requires_grad=parameter.requires_grad))
    for name, buffer in norm.named_buffers():
        own.register_buffer(name, buffer[list(rows)] if buffer.dim() else buffer.clone())
    own.num_features = len(rows)
    return own
