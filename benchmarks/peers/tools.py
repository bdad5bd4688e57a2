"""Each tool as its own manual says, on a masked network: what comes back runs, and can be counted.

ours: `shrink(model, x)`.
torch-simplify: `simplify(model, zeros)`, a zero tensor of the usual input shape; it fuses norms first.
torch-pruning: `build_dependency`, then from every group the channels that are zero: each layer that writes
    the channel has a zero row, or a zero gamma in the norm behind it; where grouped convolutions or attention
    heads need equal parts, the places that are zero in all parts. It has no way to take a mask.
onnxsim: `simplify(model)` of the exported ONNX file. It takes no masks and removes no channels of its own
    accord; it folds what is constant. (Its pruning functions choose channels themselves.)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peers.masks import all_groups, dependencies, num_parts
from peers.networks import LAYERS
from torch import Tensor, nn

from ticket_export.shrink.exact import shrink

EQUAL = 1e-4  # float32 through a hundred layers with folds; above, it is another function


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """What a tool made.

    Attributes:
        run: images -> logits.
        num_values: parameters and floating buffers that it holds.
        seconds: what the tool took; None where the whole call is the tool's.
        note: anything a reader should know of this one.
    """

    run: Callable[[Tensor], Tensor]
    num_values: int
    seconds: float | None = None
    note: str = ""


def num_values(model: nn.Module) -> int:
    """Return how many parameters and floating buffers a network holds, constants of its graph among them."""
    seen = {
        id(tensor): tensor.numel()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point()
    }
    return sum(seen.values())


def ours(model: nn.Module, x_NCHW: Tensor) -> Small:
    """Shrink it here."""
    shrunk = shrink(model, x_NCHW)
    small = shrunk.model.eval()
    return Small(run=small, num_values=num_values(small), note=f"{shrunk.report.form} form")


def torch_simplify(model: nn.Module, x_NCHW: Tensor) -> Small:
    """Simplify it with the defaults."""
    from simplify import simplify

    small = simplify(model, torch.zeros(1, *x_NCHW.shape[1:])).eval()
    return Small(run=small, num_values=num_values(small))


def torch_pruning(model: nn.Module, x_NCHW: Tensor) -> Small:
    """Prune the zero channels of every group."""
    graph = dependencies(model, x_NCHW[:1])
    num_pruned = 0
    for group in all_groups(graph, model):
        dead = _dead_channels(graph, group)
        if not dead:
            continue
        smaller = graph.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, dead)
        if graph.check_pruning_group(smaller):
            smaller.prune()
            num_pruned += len(dead)
    if type(model).__name__ == "VisionTransformer":
        # a width that its forward holds; torch-pruning's own test of torchvision's networks sets it too
        model.hidden_dim = model.conv_proj.out_channels  # type: ignore[assignment, union-attr]
    small = model.eval()
    return Small(run=small, num_values=num_values(small), note=f"{num_pruned} channels pruned")


def _dead_channels(graph: object, group: object) -> list[int]:
    """Return the positions, on the root of the group, of the channels that no layer writes."""
    gamma_behind: dict[int, Tensor] = {}
    for item in group:  # type: ignore[attr-defined]
        ends = (item.dep.source.module, item.dep.target.module)
        for layer, norm in (ends, ends[::-1]):
            if isinstance(layer, LAYERS) and isinstance(norm, nn.BatchNorm2d):
                gamma_behind[id(layer)] = norm.weight
    is_dead = dict.fromkeys(group[0].idxs, True)  # type: ignore[index]
    for item in group:  # type: ignore[attr-defined]
        layer = item.dep.target.module
        writes = graph.is_out_channel_pruning_fn(item.dep.handler)  # type: ignore[attr-defined]
        if not writes or not isinstance(layer, LAYERS):
            continue
        gone = (layer.weight == 0).flatten(1).all(dim=1)
        if id(layer) in gamma_behind:
            gone |= gamma_behind[id(layer)] == 0
        for position, root in zip(item.idxs, item.root_idxs, strict=True):
            is_dead[root] = is_dead[root] and bool(gone[position])
    parts, width = num_parts(group), len(is_dead)
    in_all_parts = torch.tensor([*is_dead.values()]).view(parts, width // parts).all(dim=0)
    return torch.nonzero(in_all_parts.repeat(parts)).flatten().tolist()


def onnxsim(model: nn.Module, x_NCHW: Tensor) -> Small:
    """Export it and simplify the file; the batch is free, height and width are those of the example."""
    import numpy as np
    import onnxruntime
    import onnxsim as tool

    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (x_NCHW,), dynamo=True, input_names=["x"], dynamic_shapes=({0: batch},), verbose=False
        )
    assert program is not None
    exported = program.model_proto
    start_s = time.perf_counter()
    simplified, checked = tool.simplify(exported)
    seconds = time.perf_counter() - start_s
    session = onnxruntime.InferenceSession(simplified.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {"x": x.numpy()})[0]))

    count = sum(int(np.prod(tensor.dims)) for tensor in simplified.graph.initializer if tensor.data_type == 1)
    note = "" if checked else "its own check failed"
    return Small(run=run, num_values=count, seconds=seconds, note=note)


TOOLS: Mapping[str, Callable[[nn.Module, Tensor], Small]] = {
    "ours": ours,
    "torch-simplify": torch_simplify,
    "torch-pruning": torch_pruning,
    "onnxsim": onnxsim,
}
