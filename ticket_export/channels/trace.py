"""One functional ATen graph per network, with the names of the original parameters."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd

from ticket_export.channels.branches import branch_paths
from ticket_export.errors import ShrinkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A traced network in evaluation mode.

    Attributes:
        module: the graph; `get_attr` targets are the names in the model's `state_dict`.
        inputs: the example inputs it was traced with, batch >= 2.
        layer_types: path of every module -> its class.
        branches: paths of the submodules that the network can do without.
    """

    module: GraphModule
    inputs: tuple[Tensor, ...]
    layer_types: Mapping[str, type[nn.Module]]
    branches: tuple[str, ...] = ()

    def tensor(self, name: str) -> Tensor:
        """Return the parameter, buffer or lifted constant called `name`."""
        found: object = self.module
        for part in name.split("."):
            found = getattr(found, part)
        if not isinstance(found, Tensor):
            raise ShrinkError(
                f"the traced network reads {name!r}, which is a {type(found).__name__}, no tensor"
            )
        return found

    def layer_of(self, weight: str) -> type[nn.Module] | None:
        """Return the class of the convolution or linear layer whose `weight` this is, or None."""
        owner, _, attribute = weight.rpartition(".")
        kind = self.layer_types.get(owner)
        is_layer = kind is not None and attribute == "weight" and issubclass(kind, _ConvNd | nn.Linear)
        return kind if is_layer else None


def example_tuple(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the example inputs as a tuple; a bare tensor is one input.

    Raises:
        ShrinkError: an input is no tensor, or has no batch axis.
    """
    if not isinstance(example_inputs, Tensor | Sequence):
        raise ShrinkError(
            f"example_inputs is a {type(example_inputs).__name__}", hint="pass a tensor or a tuple of tensors"
        )
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs:
        raise ShrinkError(
            "example_inputs is empty",
            hint="pass one tensor per input of the model, e.g. torch.randn(1, 3, 32, 32)",
        )
    for position, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise ShrinkError(f"example_inputs[{position}] is a {type(value).__name__}, no tensor")
        if value.layout != torch.strided:
            raise ShrinkError(
                f"example_inputs[{position}] is {value.layout}: it must be dense", hint="x.to_dense()"
            )
        if value.dim() == 0 or value.shape[0] == 0:
            raise ShrinkError(
                f"example_inputs[{position}] has shape {tuple(value.shape)}: "
                "it needs a batch axis of at least 1"
            )
    return inputs


def trace(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    open_batch: bool = False,
    open_size: bool = False,
) -> Trace:
    """Return the functional graph of `model` in evaluation mode; the model itself is untouched.

    The graph comes from `torch.export` and `run_decompositions({})`: in-place operations are gone, while
    convolution, linear, attention and the norms stay whole.

    Args:
        model: any module that `torch.export` accepts.
        example_inputs: a tensor or a tuple of tensors, axis 0 is the batch; a batch of 1 is doubled, since
            `torch.export` specialises on 0 and 1.
        open_batch: leave the batch open where the network allows it; an analysis does without, in half the
            time.
        open_size: leave height and width (axes 2 and up) open where the network allows it.

    Raises:
        ShrinkError: the model cannot be traced; the text names the reason `torch.export` gives.
    """
    inputs = tuple(
        x if x.shape[0] > 1 else x.expand(2, *x.shape[1:]).clone() for x in example_tuple(example_inputs)
    )
    frozen = copy.deepcopy(model).eval()
    dims = [_open_axes(x, open_batch=open_batch, open_size=open_size) for x in inputs]
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # torch prints its unfinished graph there
            program = _exported(frozen, inputs, _nested_as_arguments(frozen, dims))
    except Exception as error:  # torch.export raises many kinds; every one means "not traceable"
        raise _untraceable(model, inputs, error, told.getvalue()) from error
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    _read_shared_tensors_by_one_name(module, frozen)
    return Trace(
        module=module,
        inputs=inputs,
        layer_types={name: type(part) for name, part in frozen.named_modules(remove_duplicate=False)},
        branches=branch_paths(frozen),
    )


def _open_axes(x: Tensor, *, open_batch: bool, open_size: bool) -> dict[int, object]:
    axes: dict[int, object] = {0: Dim.AUTO} if open_batch else {}
    return axes | ({axis: Dim.AUTO for axis in range(2, x.dim())} if open_size else {})


def _nested_as_arguments(model: nn.Module, dims: Sequence[object]) -> tuple[object, ...]:
    """Return the sizes as `torch.export` wants them: those of `*arguments` in a tuple of their own."""
    formals = list(inspect.signature(model.forward).parameters.values())
    starred = [i for i, formal in enumerate(formals) if formal.kind is inspect.Parameter.VAR_POSITIONAL]
    if not starred or starred[0] >= len(dims):
        return tuple(dims)
    return (*dims[: starred[0]], tuple(dims[starred[0] :]))


def _read_shared_tensors_by_one_name(module: GraphModule, model: nn.Module) -> None:
    first_name: dict[int, str] = {}
    name_of = {name: first_name.setdefault(id(tensor), name) for name, tensor in named_tensors(model)}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.target = name_of.get(str(node.target), node.target)


def _exported(
    model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: object
) -> torch.export.ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings(), _quietly():
        # torch warns about its own deprecated internals during export; the user can do nothing about it
        warnings.simplefilter("ignore")
        program = export(model, inputs, dynamic_shapes=dynamic_shapes)  # type: ignore[arg-type]
        functional: torch.export.ExportedProgram = program.run_decompositions({})
        return functional


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Rest Python's garbage collector and torch's log of open sizes for the block.

    The collector would scan the millions of young objects that an export makes; the log prints pages about
    sizes that it could not simplify.
    """
    log, was_on = logging.getLogger("torch.fx.experimental.symbolic_shapes"), gc.isenabled()
    level = log.level
    gc.disable()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        if was_on:
            gc.enable()


def _untraceable(model: nn.Module, inputs: tuple[Tensor, ...], error: Exception, told: str) -> ShrinkError:
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    lines = re.findall(r"# File: (.*?:\d+) in .*?, code: (.*)", told)
    place = f", at {lines[-1][0]}: {lines[-1][1]}" if lines else ""
    return ShrinkError(
        f"{type(model).__name__} cannot be traced with inputs {shapes}{place}: {reason}",
        hint="check the input shapes; control flow that depends on tensor values cannot be traced",
    )


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer by every name it has."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def concrete_number(node: Node) -> object:
    """Return what a node holds that is no tensor; a size that is open at its example value."""
    value = node.meta.get("val")
    return int(value.node.hint) if isinstance(value, torch.SymInt) else value


def concrete_shape(node: Node) -> torch.Size:
    """Return the shape of a node's tensor at the traced example."""
    return example_shape(node.meta["val"])


def example_shape(value: Tensor) -> torch.Size:
    """Return the shape of a traced tensor with every open size at its example value."""
    return torch.Size([size if isinstance(size, int) else int(size.node.hint) for size in value.shape])
