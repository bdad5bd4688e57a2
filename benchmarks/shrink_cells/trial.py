"""One cell: build, zero, shrink, and compare on inputs that the shrink has not seen."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from shrink_cells.networks import NETWORKS, Cell, Network
from torch import Tensor, nn
from torch.utils import _pytree

from ticket_export.shrink.equivalence import FORWARD_ERRORS, relative_error
from ticket_export.shrink.exact import shrink

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "shrink"))
from pruning_laws import pruned_as_trained

# N images, C channels, H W pixels

BARS = {"float32": 1e-5, "float64": 1e-9}


def serve(connection: Connection) -> None:
    """Answer every cell that comes with its facts, until None comes."""
    torch.set_num_threads(1)
    while (cell := connection.recv()) is not None:
        connection.send(facts_of(cell))


def facts_of(cell: Cell) -> dict[str, Any]:  # Any: JSON
    """Return what happened to the cell, JSON values only; `status` is exact, wrong, refused or not built."""
    network, dtype = NETWORKS[cell.network], getattr(torch, cell.dtype)
    try:
        dense, x_NCHW = _pruned(network, cell, dtype)
    except Exception as error:  # factories raise what they like; the cell says so
        return {"status": "not built", "error": _told(error)}
    start_s = time.perf_counter()
    try:
        shrunk = shrink(dense, x_NCHW[:1])
    except Exception as error:  # whatever it raises is a finding
        return {"status": "refused", "error": _told(error), "seconds": time.perf_counter() - start_s}
    seconds = time.perf_counter() - start_s
    report = shrunk.report
    facts = {
        "params_dense": report.params_dense,
        "params": report.params,
        "macs_dense": report.macs_dense,
        "macs": report.macs,
        "form": report.form,
        "num_carriers": report.num_carriers,
        "num_folds": report.num_folds,
        "unknown_ops": list(report.unknown_ops),
        "dynamic_batch": report.dynamic_batch,
        "own_error": report.rel_error,
        "seconds": seconds,
    }
    facts |= compared(shrunk.model, dense, network, dtype)
    if facts["params_counted"] != report.params:
        facts["status"], facts["error"] = "wrong", "the report counts other parameters than the model holds"
    elif "error" in facts:
        facts["status"] = "wrong"
    else:
        facts["status"] = "exact" if facts["rel_error"] <= BARS[cell.dtype] else "wrong"
    return facts


def _pruned(network: Network, cell: Cell, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    dense = network.built().to(dtype)
    generator = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(16, network.channels, network.size, network.size, generator=generator, dtype=dtype)
    pruned_as_trained(dense, x_NCHW, cell.law, with_biases=cell.biases == "kept")
    return dense, x_NCHW


def compared(
    small: nn.Module, dense: nn.Module, network: Network, dtype: torch.dtype
) -> dict[str, Any]:  # Any: JSON
    """Compare on fresh inputs at batch 1 and 3, at both resolutions that the dense network takes.

    Returns:
        rel_error: the largest over all outputs and trials. scale: largest |output|. variation: the largest
        change of an output from one image to another, as a share of scale. trials: the shapes. noise: the
        relative error of the dense network itself in float32, against its own float64.
    """
    generator = torch.Generator().manual_seed(77)
    worst, scale, variation, noise, shapes = 0.0, 0.0, 0.0, 0.0, []
    precise = copy.deepcopy(dense).double() if dtype == torch.float32 else None
    for size in (network.size, network.other_size):
        for batch in (3, 1):
            x_NCHW = torch.randn(batch, network.channels, size, size, generator=generator, dtype=dtype)
            try:
                references = outputs_of(dense, x_NCHW)
            except FORWARD_ERRORS:
                if size != network.size or batch != 3:
                    continue  # this network has one resolution
                raise
            shapes.append("x".join(map(str, x_NCHW.shape)))
            try:
                results = outputs_of(small, x_NCHW)
            except FORWARD_ERRORS as error:
                return {"error": f"the small network at {shapes[-1]}: {_told(error)}"} | _size_of(small)
            if len(results) != len(references):
                return {"error": f"{len(results)} outputs, not {len(references)}"} | _size_of(small)
            if precise is not None:
                pairs = zip(references, outputs_of(precise, x_NCHW.double()), strict=True)
                noise = max(noise, *(relative_error(reference, exact) for reference, exact in pairs))
            for result, reference in zip(results, references, strict=True):
                worst = max(worst, relative_error(result, reference))
                scale = max(scale, float(reference.abs().max()))
                if batch == 3:
                    change = float((reference - reference[:1]).abs().max())
                    variation = max(variation, change / max(float(reference.abs().max()), 1e-300))
    facts = {"rel_error": worst, "scale": scale, "variation": variation, "noise": noise, "trials": shapes}
    return facts | _size_of(small)


def outputs_of(model: nn.Module, x_NCHW: Tensor) -> Sequence[Tensor]:
    """Return every tensor of the output, in order."""
    with torch.no_grad():
        return [leaf for leaf in _pytree.tree_leaves(model(x_NCHW)) if isinstance(leaf, Tensor)]


def _size_of(small: nn.Module) -> dict[str, int]:
    return {"params_counted": sum(parameter.numel() for parameter in small.parameters())}


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}"
