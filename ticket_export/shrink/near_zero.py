"""Nearly zero channels set to zero before a shrink, with what that changed: this step is not exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ticket_export.channels.trace import example_tuple
from ticket_export.errors import ShrinkError
from ticket_export.seeds import stream
from ticket_export.shrink.equivalence import FORWARD_ERRORS, evaluating, output_tensors, relative_error
from ticket_export.shrink.permanent import plain_copy

NUM_SAMPLES = 8  # enough to see a wrong threshold; only labelled images tell what it costs
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    *(
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.RMSNorm,
    ),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")  # of MultiheadAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class Zeroed:
    """What was set to zero in one tensor.

    Attributes:
        tensor: its name in the `state_dict`.
        kind: "rows" (output channels of a convolution or linear layer) or "gammas" (of a norm).
        num_zeroed, width: rows or gammas set to zero here, and all of them.
        largest: the largest |value| that was set to zero.
    """

    tensor: str
    kind: str
    num_zeroed: int
    width: int
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NearZeroReport:
    """What setting nearly zero channels to zero changed.

    Attributes:
        threshold: rows and gammas went whose largest |value| is at or below it.
        tensors: those that changed, in the order of the network; exact zeros from before do not count.
        moved: max|a - b| / max|b| of the outputs over seeded random inputs; 0 where nothing changed.
        same_top1_fraction: share of these inputs whose highest output stayed the same, in [0, 1]; None where
            the output is not [N, K], or nothing changed.
        num_samples: random inputs compared.
    """

    threshold: float
    tensors: tuple[Zeroed, ...]
    moved: float
    same_top1_fraction: float | None
    num_samples: int

    def num_zeroed(self, kind: str) -> int:
        """Return how many "rows" or "gammas" were set to zero."""
        return sum(zeroed.num_zeroed for zeroed in self.tensors if zeroed.kind == kind)

    @property
    def largest(self) -> float:
        """Return the largest |value| set to zero; 0 where nothing changed."""
        return max((zeroed.largest for zeroed in self.tensors), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NearZero:
    """The result of `zero_below`: a copy of the network with more zeros, and the `report`."""

    model: nn.Module
    report: NearZeroReport


def zero_below(model: nn.Module, example_inputs: Tensor | Sequence[Tensor], threshold: float) -> NearZero:
    """Return a copy of `model` in which every output channel and gamma at or below `threshold` is zero.

    A channel is a row of a convolution (transposed ones too), a linear layer or an attention's projection,
    judged by its largest |weight|; its bias stays. Gammas are the weights of batch, group, instance, layer
    and RMS norms. This changes what the network computes; by how much is in the report.

    Args:
        model: the network; it is not changed. Masks and parametrisations are permanent in the copy.
        example_inputs: a tensor or a tuple of tensors; their shapes and kinds are those of the random inputs.
            Integer inputs are used as they are.
        threshold: 0 or more, such as 1e-6; 0 changes nothing.

    Raises:
        ShrinkError: the threshold is negative or not finite, or the network cannot run on the inputs.
    """
    inputs = example_tuple(example_inputs)
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ShrinkError(
            f"the threshold of nearly zero channels is {threshold}", hint="0 or a small number, such as 1e-6"
        )
    zeroed = plain_copy(model)
    with torch.no_grad():
        changes = [_zero(*channels, threshold) for channels in _channels(zeroed)]
    tensors = tuple(change for change in changes if change.num_zeroed)
    moved, same_top1, num_samples = _moved(zeroed, model, inputs) if tensors else (0.0, None, 0)
    report = NearZeroReport(
        threshold=threshold,
        tensors=tensors,
        moved=moved,
        same_top1_fraction=same_top1,
        num_samples=num_samples,
    )
    return NearZero(model=zeroed, report=report)


def _channels(model: nn.Module) -> Iterator[tuple[str, str, Tensor, tuple[int, ...]]]:
    """Yield name, kind, a view of the weight, and its axes within one channel, once per parameter."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, kind in _weights(module):
            weight = getattr(module, name, None)
            if not isinstance(weight, nn.Parameter) or is_lazy(weight) or id(weight) in seen:
                continue
            seen.add(id(weight))
            full_name = f"{path}.{name}".removeprefix(".")
            if isinstance(module, TRANSPOSED):  # [inputs, outputs per group, ...], groups split the inputs
                view = torch.unflatten(weight, 0, (module.groups, len(weight) // module.groups))
                yield full_name, kind, view, (1, *range(3, view.dim()))
            else:
                yield full_name, kind, weight, tuple(range(1, weight.dim())) if kind == "rows" else ()


def _weights(module: nn.Module) -> list[tuple[str, str]]:
    if isinstance(module, nn.MultiheadAttention):
        return [(name, "rows") for name in PROJECTIONS]
    if isinstance(module, NORMS):
        return [("weight", "gammas")]
    return [("weight", "rows")] if isinstance(module, (*LAYERS, *TRANSPOSED)) else []


def _zero(tensor: str, kind: str, view: Tensor, within: tuple[int, ...], threshold: float) -> Zeroed:
    """Set the small channels of a view to zero, in place, and return what changed."""
    size = view.abs().double()
    size = size.amax(dim=within, keepdim=True) if within and size.numel() else size
    near = (size > 0) & (size <= threshold)
    view.masked_fill_(near, 0.0)
    return Zeroed(
        tensor=tensor,
        kind=kind,
        num_zeroed=int(near.sum()),
        width=near.numel(),
        largest=float(size[near].max()) if near.any() else 0.0,
    )


def _moved(zeroed: nn.Module, model: nn.Module, inputs: Sequence[Tensor]) -> tuple[float, float | None, int]:
    """Return how far the outputs moved, the share of equal predictions, and the number of inputs."""
    before: list[list[Tensor]] = []
    after: list[list[Tensor]] = []
    num_trials = -(-NUM_SAMPLES // len(inputs[0])) if any(x.is_floating_point() for x in inputs) else 1
    with evaluating(zeroed), evaluating(model), torch.no_grad():
        for trial in range(num_trials):
            sample = tuple(_random(x, trial, position) for position, x in enumerate(inputs))
            before.append(_outputs(model, sample))
            after.append(_outputs(zeroed, sample))
    references = [torch.cat([output.flatten() for output in same]) for same in zip(*before, strict=True)]
    results = [torch.cat([output.flatten() for output in same]) for same in zip(*after, strict=True)]
    if not references:
        raise ShrinkError(f"{type(model).__name__} returns no tensor, so nothing tells how far it moved")
    if not all(torch.isfinite(reference).all() for reference in references):
        raise ShrinkError(
            "the network's own output on random inputs is not finite", hint="check its weights for NaN"
        )
    moved = max(relative_error(a, b) for a, b in zip(results, references, strict=True))
    same_top1 = None
    if len(references) == 1 and before[0][0].dim() == 2 and before[0][0].shape[1] > 1:
        pairs = zip(before, after, strict=True)
        same = torch.cat([b[0].argmax(1) == a[0].argmax(1) for b, a in pairs])
        same_top1 = float(same.double().mean())
    return moved, same_top1, num_trials * len(inputs[0])


def _random(x: Tensor, trial: int, position: int) -> Tensor:
    if not x.is_floating_point():
        return x  # only the caller knows which integers are valid
    return torch.randn(x.shape, generator=stream(0, "near-zero", trial, position)).to(x)


def _outputs(model: nn.Module, sample: Sequence[Tensor]) -> list[Tensor]:
    try:
        outputs = model(*sample)
    except FORWARD_ERRORS as error:
        shapes = ", ".join("x".join(map(str, x.shape)) for x in sample)
        raise ShrinkError(
            f"{type(model).__name__} does not accept inputs {shapes}: {error}", hint="check the input shapes"
        ) from error
    return output_tensors(outputs)
