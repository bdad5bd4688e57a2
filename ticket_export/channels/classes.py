"""Union-find over channel labels, on tensors.

Every element of every intermediate value carries a label. Two labels in one class stand for channels that
must be kept or dropped together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ticket_export.channels.compact import aligned_cores, broadcast, compact, core, varying_axes

FREE = 0  # belongs to no channel and constrains none: scalars, broadcast constants
FIXED = 1  # cannot be cut: model inputs, results of unknown operations, constants made in the forward


class ChannelClasses:
    """Labels, their classes, and the reasons why some classes must stay."""

    def __init__(self) -> None:
        self._parent = torch.arange(2)
        self._pin = torch.zeros(2, dtype=torch.int64)  # index into reasons; 0 = not pinned
        self.reasons: list[str] = [""]

    def fresh(self, num_labels: int) -> Tensor:
        """Return `num_labels` new labels, each a class of its own."""
        start = len(self._parent)
        labels = torch.arange(start, start + num_labels)
        self._parent = torch.cat([self._parent, labels])
        self._pin = torch.cat([self._pin, torch.zeros(num_labels, dtype=torch.int64)])
        return labels

    def roots(self, labels: Tensor) -> Tensor:
        """Return the smallest label of each label's class, as a compact tensor."""
        return compact(self._parent[core(labels)].expand(labels.shape))

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Put each pair of labels into one class; pairs with a FREE member are passed over."""
        (a, b), _ = aligned_cores([a, b])
        a, b = broadcast(a, b)
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)])
        pairs = pairs[:, (pairs != FREE).all(dim=0)]
        while pairs.numel():
            pairs = self._parent[pairs]
            pairs = pairs[:, pairs[0] != pairs[1]]
            if not pairs.numel():
                return
            low, high = torch.minimum(pairs[0], pairs[1]), torch.maximum(pairs[0], pairs[1])
            self._parent.scatter_reduce_(0, high, low, "amin")
            self._flatten()

    def uniform_along(self, labels: Tensor, axes: Sequence[int]) -> Tensor:
        """Return the labels after uniting those that differ along any of `axes` only."""
        for axis in axes:
            if axis in varying_axes(labels):
                self.unite(labels, labels.narrow(axis, 0, 1))
                labels = self.roots(labels)
        return labels

    def collapse(self, labels: Tensor, *, axis: int) -> Tensor:
        """Return one label per position on `axis`, after uniting all labels that share a position."""
        lines = core(labels).movedim(axis, 0).unsqueeze(-1).flatten(1)
        self.unite(lines, lines[:, :1])
        line = self.roots(lines[:, 0])
        return line.expand(labels.shape[axis])

    def _flatten(self) -> None:
        while True:
            jumped = self._parent[self._parent]
            if torch.equal(jumped, self._parent):
                return
            self._parent = jumped

    def pin(self, labels: Tensor, reason: str) -> None:
        """Mark the classes of `labels` as not removable, with the reason; the first reason stays."""
        stored = torch.unique(core(labels))
        stored = stored[stored > FIXED]
        stored = stored[self._pin[stored] == 0]
        if stored.numel():
            if reason not in self.reasons:
                self.reasons.append(reason)
            self._pin[stored] = self.reasons.index(reason)

    def mix(self, labels: Tensor, axes: Sequence[int], reason: str) -> Tensor:
        """Return the labels after an operation that lets the channels along `axes` depend on each other.

        Where the channels lie along other axes too (the heads of an attention, the groups of a norm), what
        is mixed goes as a whole; where they do not, nothing may go.
        """
        mixed = set(axes) & set(varying_axes(labels))
        if not mixed:
            return labels
        if not set(varying_axes(labels)) - mixed:
            self.pin(labels, reason)
            return labels
        return self.uniform_along(labels, sorted(mixed))

    def pin_by_root(self) -> dict[int, str]:
        """Return the roots of all pinned classes with the first reason given for each."""
        pinned = torch.nonzero(self._pin).flatten()
        found: dict[int, str] = {FIXED: "model input or a value that cannot be cut"}
        for label in pinned.tolist():
            found.setdefault(int(self._parent[label]), self.reasons[int(self._pin[label])])
        return found

    @property
    def num_labels(self) -> int:
        """Return how many labels exist, FREE and FIXED included."""
        return len(self._parent)
