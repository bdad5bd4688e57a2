"""The state of a training that is cut with its network: weights, their average, the optimiser's moments."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_export.channels.trace import example_tuple
from ticket_export.errors import ShrinkError
from ticket_export.find.structure import Structure
from ticket_export.seeds import stream
from ticket_export.shrink.equivalence import check_equal, evaluating, output_tensors, trials_of
from ticket_export.shrink.exact import shrink
from ticket_export.shrink.plan import Plan
from ticket_export.shrink.surgery import model_from_plan

_OF = "/"  # as in the names of `TrainResult.optimizer_state`


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A search between two trainings; all tensors are on the CPU, in the small network's shapes.

    Attributes:
        structure: what is left of the whole network.
        weights: the state dict that is trained.
        average: of the weights.
        optimizer: `PARAMETER/NAME` -> tensor; empty before the first training.
        zeroed: group -> bool in the whole network's numbering: not chosen by the last event, and there.
    """

    structure: Structure
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    zeroed: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A standing after a cut, and the relative errors of the live and the averaged network."""

    standing: Standing
    rel_error: float
    average_rel_error: float


def cut_dead(
    standing: Standing, whole: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, tolerance: float
) -> Cut:
    """Return the standing with all cut out that is dead in the live network; both networks compute the same.

    Args:
        standing: the channels that should go are zero in both networks.
        whole: the whole network.
        example_inputs: as of `shrink`.
        tolerance: as of `shrink`.

    Raises:
        DivergedError: the cut changes one of the networks.
        ShrinkError: the output would depend on no input, or leaving out channels cannot express the cut.
    """
    inputs = example_tuple(example_inputs)
    live = standing.structure.network(whole, standing.weights)
    _require_dependence(live, inputs)
    shrunk = shrink(live, inputs, tolerance=tolerance)
    _require_plain_cut(shrunk.plan, type(whole).__name__)
    averaged = copy.deepcopy(live)
    averaged.load_state_dict(dict(standing.average))
    small_average = model_from_plan(averaged, shrunk.plan)
    error = check_equal(small_average, averaged, trials_of(averaged, inputs), tolerance=tolerance)
    structure = standing.structure.cut(shrunk.plan)
    small = structure.network(whole, shrunk.model.state_dict())  # else it could not be built again
    names = small.state_dict().keys()
    cut = Standing(
        structure=structure,
        weights=_copies(small.state_dict()),
        average=_copies(small_average.state_dict()),
        optimizer=sliced_optimizer(standing.optimizer, shrunk.plan, names),
        zeroed={
            name: zeroed_C & structure.mask.keep_by_group[name] for name, zeroed_C in standing.zeroed.items()
        },
    )
    return Cut(standing=cut, rel_error=shrunk.report.rel_error, average_rel_error=error)


def sliced_optimizer(state: Mapping[str, Tensor], plan: Plan, names: Collection[str]) -> dict[str, Tensor]:
    """Return what the plan keeps of an optimiser's state, as it keeps the parameters.

    Args:
        state: `PARAMETER/NAME` -> a tensor of the parameter's shape, or a number.
        plan: what is kept.
        names: tensors of the small network; the state of others goes.
    """
    kept = {}
    for key, value in state.items():
        of = key.rpartition(_OF)[0]
        if of in names:
            kept[key] = plan.sliced(of, value) if value.dim() > 0 else value
    return kept


def _require_plain_cut(plan: Plan, network: str) -> None:
    """Raise ShrinkError unless the plan leaves out channels and does nothing else."""
    if plan.form != "module":
        raise ShrinkError(
            f"{network} without its dead channels runs in graph form alone",
            hint="search a network whose modules can be cut, e.g. zoo:supernet",
        )
    if plan.folds or plan.new_biases or plan.terms:
        raise ShrinkError(
            f"{network} cannot be cut by leaving out channels alone: a channel that is zero in its norm is "
            "a constant behind it, which would have to move on",
            hint="a decision norm must be followed by what maps zero to zero, e.g. a relu",
        )


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _require_dependence(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise ShrinkError if two random inputs have one output."""
    generator = stream(0, "search", "dependence")
    with evaluating(model), torch.no_grad():
        outputs = [
            output_tensors(model(*(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs)))
            for _ in range(2)
        ]
    if all(torch.equal(a, b) for a, b in zip(*outputs, strict=True)):
        raise ShrinkError(
            f"after this event the output of {type(model).__name__} depends on no input: every path to it is "
            "empty",
            hint="lower find.drop_fraction, or keep a channel of each layer without a shortcut",
        )
