"""Products of two activations: matmul, bmm and scaled dot-product attention, in both passes.

The elements of one leading index (one attention head, say) are mixed with each other, so they form one
class: a head goes as a whole, when nothing reads it or when what it emits is constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ticket_export.channels.classes import ChannelClasses
from ticket_export.channels.compact import broadcast, core
from ticket_export.channels.known import Known

ATTENTION = "scaled_dot_product_attention"
PRODUCTS = frozenset({"matmul", "bmm", ATTENTION})


def label_product(classes: ChannelClasses, factors: list[Tensor], shape: torch.Size) -> Tensor:
    """Return the labels of a product [..., M, N] after uniting all factors of each leading index.

    Args:
        classes: the classes to unite in.
        factors: labels of the tensors that meet, each [..., rows, columns]; an attention mask is one of them.
            One that is the same for every leading index ties none of them.
        shape: of the product.
    """
    heads: list[Tensor] = []
    for labels in factors:
        if heads and labels.shape[:-2].numel() == 1:
            continue
        stored = core(labels)
        lines = stored.reshape(*stored.shape[:-2], -1)
        classes.unite(lines, lines[..., :1])
        heads.append(lines[..., :1])
    for head in heads[1:]:
        classes.unite(heads[0], head)
    joined = heads[0]
    for head in heads[1:]:
        joined = torch.maximum(*broadcast(joined, head))  # FREE is the smallest label
    return classes.roots(joined[..., None]).expand(shape)


def known_product(a: Known, b: Known) -> Known:
    """Return a product's known values: an exactly zero factor cancels what it meets."""
    reads_b = (b.value != 0) | b.taint
    reads_a = (a.value != 0) | a.taint
    met = a.taint.double() @ reads_b.double() + reads_a.double() @ b.taint.double()
    return Known.of(a.value @ b.value, met > 0)


def known_attention(v: Known, shape: torch.Size) -> Known:
    """Return an attention's known values: rows of a softmax sum to 1, so a `v` equal over tokens passes."""
    token_axis = v.value.dim() - 2
    value, taint = v.value.narrow(token_axis, 0, 1), v.taint.any(dim=token_axis, keepdim=True)
    changes = (v.value != value).any(dim=token_axis, keepdim=True)
    return Known.of(value.expand(shape), (taint | changes).expand(shape))
