"""The proof by running: both networks on the same inputs, at two batches and two resolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


def check_equal(
    small: nn.Module,
    dense: nn.Module,
    inputs: Sequence[Tensor],
    *,
    tolerance: float,
    dynamic_batch: bool,
    open_size: bool = True,
) -> float:
    """Return the largest relative error of `small` against `dense` over all trial inputs.

    Trials: the example inputs, and seeded normal inputs at batch 1 and 3 and at a second resolution, where
    the dense network accepts them and `open_size` says that the small one should.

    A deep network in float32 may differ by more from its own float64 than `tolerance`. Such an error is no
    difference when both networks, computed in float64, agree ten times better than `tolerance`, and the
    error is at most ten times the dense network's own rounding.

    Raises:
        ShrinkError: the dense network itself gives a value that is not finite.
        DivergedError: an error above `tolerance`; the text names the trial and the error.
    """
    worst = 0.0
    with evaluating(small), evaluating(dense), torch.no_grad():
        for name, trial in _trials(dense, inputs, dynamic_batch=dynamic_batch, open_size=open_size):
            references, results = _outputs(dense(*trial)), _outputs(small(*trial))
            if not all(torch.isfinite(reference).all() for reference in references):
                raise ShrinkError(
                    f"the network's own output on {name} is not finite", hint="check its weights for NaN"
                )
            if len(results) != len(references):
                raise DivergedError(
                    f"the shrunk network returns {len(results)} tensors, not {len(references)}"
                )
            error = _largest(results, references)
            if error > tolerance and not _is_rounding(small, dense, trial, error, tolerance):
                raise DivergedError(
                    f"the shrunk network differs from the dense one on {name}: relative error {error:.3g}, "
                    f"allowed {tolerance:.3g}; nothing was written"
                )
            worst = max(worst, error)
    return worst


def _largest(results: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    pairs = zip(results, references, strict=True)
    return max((relative_error(result, reference) for result, reference in pairs), default=0.0)


def _is_rounding(
    small: nn.Module, dense: nn.Module, trial: Sequence[Tensor], error: float, tolerance: float
) -> bool:
    if not any(x.dtype == torch.float32 for x in [*dense.parameters(), *trial]):
        return False
    wide_trial = tuple(x.double() if x.is_floating_point() else x for x in trial)
    try:
        exact = _outputs(copy.deepcopy(dense).double()(*wide_trial))
        error_in_float64 = _largest(_outputs(copy.deepcopy(small).double()(*wide_trial)), exact)
    except FORWARD_ERRORS:
        return False  # a forward that asks for float32
    own_rounding = _largest(_outputs(dense(*trial)), exact)
    return error_in_float64 <= tolerance / 10 and error <= 10 * own_rounding


def accepts_any_batch(model: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Return whether the model runs on inputs like these at a batch of one and of three."""
    with evaluating(model), torch.no_grad():
        try:
            for batch in BATCHES:
                model(*_batch_like(inputs, batch))
        except FORWARD_ERRORS:
            return False
    return True


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model in evaluation mode for the block and restore each module's mode after it."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


def _outputs(value: object) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _trials(
    dense: nn.Module, inputs: Sequence[Tensor], *, dynamic_batch: bool, open_size: bool
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    yield f"the example inputs {_shapes(inputs)}", tuple(inputs)
    for batch in BATCHES if dynamic_batch else (inputs[0].shape[0],):
        trial = _batch_like(inputs, batch)
        yield f"random inputs {_shapes(trial)}", trial
    larger = tuple(_random(x, _larger(x), 0) for x in inputs)
    if (
        open_size
        and dynamic_batch
        and any(a.shape[1:] != x.shape[1:] for a, x in zip(larger, inputs, strict=True))
    ):
        try:
            dense(*larger)
        except FORWARD_ERRORS:
            return  # the dense network has one resolution only
        yield f"random inputs {_shapes(larger)}", larger


def _batch_like(inputs: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    return tuple(_random(x, (batch, *x.shape[1:]), batch) for x in inputs)


def _larger(x: Tensor) -> tuple[int, ...]:
    """Return batch 1 and every axis from 2 up a quarter longer, a multiple of 4 where it was one."""
    return (
        (1, x.shape[1], *(size + max(4, size // 16 * 4) for size in x.shape[2:]))
        if x.dim() == 4
        else tuple(x.shape)
    )


def _random(x: Tensor, shape: Sequence[int], salt: int) -> Tensor:
    if not x.is_floating_point():
        return x[:1].expand(*shape).clone() if list(shape[1:]) == list(x.shape[1:]) else x
    values = torch.randn(*shape, generator=stream(0, "equivalence", salt))
    return values.to(device=x.device, dtype=x.dtype)


def _shapes(inputs: Sequence[Tensor]) -> str:
    return ", ".join("x".join(map(str, x.shape)) for x in inputs)
