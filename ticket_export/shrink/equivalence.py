"""The proof by running: both networks on the same inputs, at two batches and two resolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ticket_export.errors import DivergedError, ShrinkError
from ticket_export.seeds import stream

BATCHES = (1, 3)

# what a forward raises when it is given sizes it was not written for
FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def relative_error(result: Tensor, reference: Tensor) -> float:
    """Return max|a - b| / max|b|; infinite where shapes differ or a value is not finite.

    Args:
        result: what is checked, any shape.
        reference: what it should be, the same shape.
    """
    if result.shape != reference.shape:
        return float("inf")
    wide = torch.complex128 if result.is_complex() or reference.is_complex() else torch.float64
    result, reference = result.detach().to(wide), reference.detach().to(wide)
    if not torch.isfinite(result).all() or not torch.isfinite(reference).all():
        return float("inf")
    if result.numel() == 0:
        return 0.0
    difference = float((result - reference).abs().max())
    scale = float(reference.abs().max())
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One set of inputs, and what the dense network gives for it.

    Attributes:
        name: for messages.
        inputs: tensors in the order of the forward.
        outputs: all tensors of the dense network's answer.
        has_example_size: whether height and width are those of the example.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: list[Tensor]
    has_example_size: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """What two networks are compared on, and whether the dense one takes any batch."""

    all: Sequence[Trial]
    dynamic_batch: bool


def trials_of(dense: nn.Module, inputs: Sequence[Tensor]) -> Trials:
    """Return the outputs of the dense network on the example inputs and wherever else it runs.

    Seeded normal inputs are tried at batch 1 and 3 and at a second resolution.

    Raises:
        ShrinkError: it does not run on the example inputs, returns no tensor, or a value that is not finite.
    """
    with evaluating(dense), torch.no_grad():
        try:
            trials = [_trial(f"the example inputs {_shapes(inputs)}", dense, tuple(inputs))]
        except FORWARD_ERRORS as error:
            described = ", ".join(f"{tuple(x.shape)} {x.dtype}".replace("torch.", "") for x in inputs)
            raise ShrinkError(
                f"{type(dense).__name__} does not run on the example inputs {described}: {error}",
                hint="check the shapes and types of the inputs, and of the weights",
            ) from error
        if not trials[0].outputs:
            raise ShrinkError(f"{type(dense).__name__} returns no tensor")
        try:
            trials += [_random_trial(dense, _batch_like(inputs, batch)) for batch in BATCHES]
        except FORWARD_ERRORS:  # its forward fixes the batch
            alike = _batch_like(inputs, inputs[0].shape[0])
            return Trials(all=[trials[0], _random_trial(dense, alike)], dynamic_batch=False)
        larger = tuple(_random(x, _larger(x), 0) for x in inputs)
        if any(a.shape[1:] != x.shape[1:] for a, x in zip(larger, inputs, strict=True)):
            with suppress(*FORWARD_ERRORS):  # the dense network may have one resolution only
                trials.append(replace(_random_trial(dense, larger), has_example_size=False))
    return Trials(all=trials, dynamic_batch=True)


def _random_trial(dense: nn.Module, inputs: tuple[Tensor, ...]) -> Trial:
    return _trial(f"random inputs {_shapes(inputs)}", dense, inputs)


def _trial(name: str, dense: nn.Module, inputs: tuple[Tensor, ...]) -> Trial:
    outputs = output_tensors(dense(*inputs))
    if not all(torch.isfinite(output).all() for output in outputs):
        raise ShrinkError(
            f"the network's own output on {name} is not finite", hint="check its weights for NaN"
        )
    return Trial(name=name, inputs=inputs, outputs=outputs)


def check_equal(
    small: nn.Module, dense: nn.Module, trials: Trials, *, tolerance: float, open_size: bool = True
) -> float:
    """Return the largest relative error of `small` against the dense network over all trials.

    A deep network in float32 may differ by more from its own float64 than `tolerance`. Such an error is no
    difference when both networks, computed in float64, agree within `tolerance`, and the error is at most
    ten times the dense network's own rounding.

    Args:
        small: what is checked.
        dense: what it should equal.
        trials: of `dense` (`trials_of`).
        tolerance: allowed max|a-b| / max|b|.
        open_size: whether `small` should take heights and widths other than the example's.

    Raises:
        DivergedError: an error above `tolerance`; the text names the trial and the error.
    """
    worst = 0.0
    with evaluating(small), evaluating(dense), torch.no_grad():
        for trial in trials.all:
            if not (open_size or trial.has_example_size):
                continue
            results = output_tensors(small(*trial.inputs))
            if len(results) != len(trial.outputs):
                raise DivergedError(
                    f"the shrunk network returns {len(results)} tensors, not {len(trial.outputs)}"
                )
            error = _largest(results, trial.outputs)
            if error > tolerance and not _is_rounding(small, dense, trial, error, tolerance):
                raise DivergedError(
                    f"the shrunk network differs from the dense one on {trial.name}: relative error "
                    f"{error:.3g}, allowed {tolerance:.3g}; nothing was written"
                )
            worst = max(worst, error)
    return worst


def _largest(results: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    pairs = zip(results, references, strict=True)
    return max((relative_error(result, reference) for result, reference in pairs), default=0.0)


def _is_rounding(small: nn.Module, dense: nn.Module, trial: Trial, error: float, tolerance: float) -> bool:
    if not any(x.dtype == torch.float32 for x in [*dense.parameters(), *trial.inputs]):
        return False
    wide = tuple(x.double() if x.is_floating_point() else x for x in trial.inputs)
    try:
        exact = output_tensors(copy.deepcopy(dense).double()(*wide))
        error_in_float64 = _largest(output_tensors(copy.deepcopy(small).double()(*wide)), exact)
    except FORWARD_ERRORS:
        return False  # a forward that asks for float32
    return error_in_float64 <= tolerance and error <= 10 * _largest(trial.outputs, exact)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in evaluation mode for the block and restore each module's mode after it."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


def output_tensors(value: object) -> list[Tensor]:
    """Return the tensors in what a network answers, in order."""
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _batch_like(inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    return tuple(_random(x, (batch, *x.shape[1:]), batch) for x in inputs)


def _larger(x: Tensor) -> tuple[int, ...]:
    """Return batch 1 and every axis from 2 up a quarter longer, a multiple of 4 where it was one."""
    sizes = (size + max(4, size // 16 * 4) for size in x.shape[2:])
    return (1, x.shape[1], *sizes) if x.dim() > 2 and x.is_floating_point() else (1, *x.shape[1:])


def _random(x: Tensor, shape: Sequence[int], salt: int) -> Tensor:
    if not x.is_floating_point():
        return x[:1].expand(*shape).clone() if list(shape[1:]) == list(x.shape[1:]) else x
    values = torch.randn(*shape, generator=stream(0, "equivalence", salt))
    return values.to(device=x.device, dtype=x.dtype)


def _shapes(inputs: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, x.shape)) for x in inputs)
