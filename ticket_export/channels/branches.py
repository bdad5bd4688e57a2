"""Branches: submodules that a network can do without, so that their channels may all go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HoldsBranches(Protocol):
    """A module that can do without some of its submodules; any network's may offer these two methods.

    A channel group that lies inside one branch may lose all its channels; the branch is removed then. Names
    and shapes of what is left must depend on the shapes of the cut tensors alone, never on values, and each
    name must be one that the whole module has: so weights find their place between the whole and the cut
    network by name.
    """

    def branch_names(self) -> tuple[str, ...]:
        """Return the names of the submodules that may go, relative to this module."""

    def drop_empty_branches(self) -> None:
        """Remove, in place, the branches with a tensor of no element; the rest computes the same function.

        Called after every tensor was cut. A cut branch may have gained biases: the constant that they add
        in evaluation mode must not get lost.
        """


def branch_paths(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the submodules that may go, without those that share a tensor with another."""
    paths = [
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, HoldsBranches)
        for name in module.branch_names()
    ]
    if not paths:
        return ()
    parameters = model.named_parameters(remove_duplicate=False)
    num_names = Counter(id(tensor) for _, tensor in parameters)
    return tuple(
        path
        for path in paths
        if all(num_names[id(tensor)] == 1 for tensor in model.get_submodule(path).parameters())
    )


def drop_empty_branches(model: nn.Module) -> None:
    """Let every module that holds branches drop those that lost all their channels, in place."""
    for module in list(model.modules()):
        if isinstance(module, HoldsBranches):
            module.drop_empty_branches()


def branch_around(tensors: Iterable[str], branches: Iterable[str]) -> str | None:
    """Return the innermost of `branches` that holds all `tensors`, or None."""
    names = list(tensors)
    around = [path for path in branches if all(name.startswith(f"{path}.") for name in names)]
    return max(around, key=len, default=None)
