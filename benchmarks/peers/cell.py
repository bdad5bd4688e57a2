"""One cell of the table: a tool on a masked network, in a process of its own, checked on fresh inputs."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peers.masks import masked
from peers.networks import NETWORKS, images
from peers.tools import TOOLS, num_values
from torch import Tensor, nn

CHECK_SEED = 1234  # no tool sees these images
Cell = dict[str, Any]  # Any: JSON


def run_cell(tool: str, network: str, mask: str, *, limit_s: float) -> Cell:
    """Return the cell of `tool` on the network, measured in a forked process.

    Making the mask may take `limit_s`, and so may the tool with its check. The `outcome` is "result",
    "crash" (the tool raised), "no mask" (torch-pruning finds no groups to mask, or takes too long) or
    "timeout".
    """
    context = multiprocessing.get_context("fork")  # the imports, some seconds, are paid once
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, tool, network, mask))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads; they hold nothing
        process.start()
    theirs.close()
    cell: Cell = {"outcome": "no mask", "error": f"not made within {limit_s:.0f} s"}
    try:
        if mine.poll(limit_s):
            cell = json.loads(mine.recv()) or {"outcome": "timeout", "limit_s": limit_s}
        if cell["outcome"] == "timeout" and mine.poll(limit_s):
            cell = json.loads(mine.recv())
    except EOFError:
        process.join()
        cell = {"outcome": "crash", "error": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return {"tool": tool, "network": network, "mask": mask, **cell}


def _child(pipe: Connection, tool: str, network: str, mask: str) -> None:
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the tools print
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pipe.send(json.dumps(_cell(pipe, tool, network, mask)))
    pipe.close()


def _cell(pipe: Connection, tool: str, network: str, mask: str) -> Cell:
    sizes = NETWORKS[network]
    try:
        dense = masked(network, mask)
    except Exception as error:
        if mask == "general":
            raise  # that mask needs no tool
        return {"outcome": "no mask", "error": _one_line(error)}
    pipe.send(json.dumps({}))  # the mask is there: from here on it is the tool's time
    example = images(2, sizes.size, 2)
    dense_values = num_values(dense)
    given = copy.deepcopy(dense)
    start_s = time.perf_counter()
    try:
        small = TOOLS[tool](given, example)
    except Exception as error:  # every kind: that it fails is the finding
        return {"outcome": "crash", "error": _one_line(error), "where": _place(error)}
    seconds = time.perf_counter() - start_s if small.seconds is None else small.seconds
    x = images(3, sizes.size, CHECK_SEED)
    with torch.no_grad():
        reference = dense(x)
    cell: Cell = {
        "outcome": "result",
        "seconds": seconds,
        "values_left": small.num_values / dense_values,
        "num_values": small.num_values,
        "num_values_dense": dense_values,
        "spread": float((reference - reference.mean(0)).abs().max() / reference.abs().max()),
        "rounding": _rounding(dense, x, reference),
        "note": small.note,
    }
    cell |= _compared(small.run, dense, x, "rel_error")
    if sizes.other_size != sizes.size and tool != "onnxsim":  # the exported file has one resolution
        cell |= _compared(small.run, dense, images(2, sizes.other_size, CHECK_SEED), "other_rel_error")
    return cell


def _rounding(dense: nn.Module, x: Tensor, reference: Tensor) -> float:
    """Return how far float32 takes the masked network itself from its float64 outputs."""
    with torch.no_grad():
        exact = copy.deepcopy(dense).double()(x.double())
    return float((reference.double() - exact).abs().max() / exact.abs().max())


def _compared(run: Any, dense: nn.Module, x: Tensor, key: str) -> Cell:  # Any: a callable of some library
    with torch.no_grad():
        expected = dense(x)
        try:
            result = run(x)
        except Exception as error:
            return {key: None, f"{key}_failure": _one_line(error)}
    if result.shape != expected.shape:
        return {key: None, f"{key}_failure": f"shape {tuple(result.shape)}, not {tuple(expected.shape)}"}
    error = (result.double() - expected.double()).abs().max() / expected.double().abs().max()
    return {key: float(error)}


def _one_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:200]


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{'/'.join(Path(last.filename).parts[-2:])}:{last.lineno}"
