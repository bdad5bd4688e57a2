"""The dense blocks in a convolution's weight, read off its exact zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# O I output and input channels, B blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows of one layer that have their weights in the same columns; both ascending."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def blocks_of_weight(weight_OIHW: Tensor, *, min_rows: int = 1) -> tuple[Block, ...]:
    """Return the rows that read the same input channels, block by block, in the order of their first rows.

    Every weight outside of the blocks is zero; rows of zeros are in none. Blocks of fewer than `min_rows`
    rows are joined with another one, each time where that adds the fewest weights.

    Args:
        weight_OIHW: of a convolution without groups.
        min_rows: rows of a block, at least, where there is more than one.
    """
    reads_OI = (weight_OIHW != 0).flatten(2).any(dim=2)
    lives_O = reads_OI.any(dim=1)
    if not lives_O.any():
        return ()
    reads_BI, label_O = torch.unique(reads_OI[lives_O], dim=0, return_inverse=True)
    rows_BO = torch.zeros(len(reads_BI), len(lives_O), dtype=torch.bool)
    rows_BO[label_O, torch.nonzero(lives_O).flatten()] = True
    while len(rows_BO) > 1 and int(rows_BO.sum(dim=1).min()) < min_rows:
        rows_BO, reads_BI = _joined(rows_BO, reads_BI)
    blocks = [
        Block(rows=_positions(rows), columns=_positions(reads))
        for rows, reads in zip(rows_BO, reads_BI, strict=True)
    ]
    return tuple(sorted(blocks, key=lambda block: block.rows))


def _joined(rows_BO: Tensor, reads_BI: Tensor) -> tuple[Tensor, Tensor]:
    """Join the block of fewest rows with the one that makes it cheapest."""
    rows_B, columns_B = rows_BO.sum(dim=1), reads_BI.sum(dim=1)
    smallest = int(rows_B.argmin())
    weights_B = rows_B * columns_B
    together_B = (reads_BI | reads_BI[smallest]).sum(dim=1) * (rows_B + rows_B[smallest])
    added_B = together_B - weights_B - weights_B[smallest]
    added_B[smallest] = torch.iinfo(added_B.dtype).max
    other = int(added_B.argmin())
    rows_BO[other] |= rows_BO[smallest]
    reads_BI[other] |= reads_BI[smallest]
    others = torch.arange(len(rows_BO)) != smallest
    return rows_BO[others], reads_BI[others]


def _positions(chosen: Tensor) -> tuple[int, ...]:
    return tuple(torch.nonzero(chosen).flatten().tolist())
