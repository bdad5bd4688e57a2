"""Seconds of one exact shrink at 224x224, verification included, beside torch-pruning on the same network.

Run:  python benchmarks/shrink_speed.py --out FOLDER [--only NETWORK ...] [--rounds N] [--threads N]

Ours traces, labels, decides, folds, cuts and compares both networks on four inputs. torch-pruning builds its
dependency graph and prunes the channels that no layer of their group writes; it verifies nothing. Both run in
every round, in random order, each on a copy of its own that is made before its clock starts. The folder
receives `shrink_speed_<machine>_<yyyy-mm>.md` and `.json`, which holds every sample.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from costs.line import IMAGENET, Network
from costs.shrink import torchvision_schemas
from result_files import write_results
from tabulate import tabulate
from torch import Tensor, nn

from ticket_export.measure.load import LoadMeter
from ticket_export.measure.speedup import mean_interval
from ticket_export.shrink.exact import shrink
from ticket_export.store.machine import machine_facts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shrink"))
from pruning_laws import pruned_as_trained

TORCHVISION_SCHEMAS = torchvision_schemas()  # before torchvision is imported, for as long as the reference

# N images, C channels, H W pixels

TARGETS_S: Mapping[str, float] = {"resnet50": 5.0, "vit_b_16": 8.0}  # on two idle cores
PACKAGES = ("torch", "torchvision", "torch-pruning")


def by_us(model: nn.Module, x_NCHW: Tensor) -> nn.Module:
    """Shrink it, with the comparison at the end."""
    return shrink(model, x_NCHW[:1]).model


def by_torch_pruning(model: nn.Module, x_NCHW: Tensor) -> nn.Module:
    """Build the dependency graph and prune what is dead in whole groups; the model itself becomes small."""
    from peers.tools import torch_pruning

    torch_pruning(model, x_NCHW[:1])
    return model


TOOLS: Mapping[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "ours": by_us,
    "torch-pruning": by_torch_pruning,
}


def measured(name: str, num_rounds: int) -> dict[str, Any]:  # Any: JSON
    """Return the samples of one network and what each tool leaves of it; one call of each comes before."""
    network = Network(f"torchvision:{name}", IMAGENET, {})
    x_NCHW = network.examples()
    model = pruned_as_trained(network.built(), x_NCHW, "rows")
    params = {"given": _count(model)}
    wall_s: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    cpu_s: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    order = random.Random(0)
    for tool, call in TOOLS.items():
        params[tool] = _count(call(copy.deepcopy(model), x_NCHW))
    meter = LoadMeter()
    for _ in range(num_rounds):
        for tool in order.sample(sorted(TOOLS), len(TOOLS)):
            given = copy.deepcopy(model)
            start_s, cpu_start_s = time.perf_counter(), time.process_time()
            TOOLS[tool](given, x_NCHW)
            wall_s[tool].append(time.perf_counter() - start_s)
            cpu_s[tool].append(time.process_time() - cpu_start_s)
    load = meter.stop()
    return {
        "network": name,
        "params": params,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "ratio": ratio_of(wall_s["ours"], wall_s["torch-pruning"]),
        "other_cores": load.other_cores,
        "steal_cores": load.steal_cores,
    }


def ratio_of(ours_s: Sequence[float], theirs_s: Sequence[float]) -> dict[str, float]:
    """Return ours / theirs: the geometric mean over the rounds and its 95 % t interval."""
    center, half_width = mean_interval(np.log(np.array(ours_s)) - np.log(np.array(theirs_s)))
    return {
        "ratio": math.exp(center),
        "low": math.exp(center - half_width),
        "high": math.exp(center + half_width),
    }


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shown(case: Mapping[str, Any]) -> dict[str, str]:
    """Return its line of the table."""
    ours_s, theirs_s = case["wall_s"]["ours"], case["wall_s"]["torch-pruning"]
    median_s, target_s = statistics.median(ours_s), TARGETS_S[case["network"]]
    ratio = case["ratio"]
    return {
        "network": case["network"],
        "ours, s": f"{median_s:.2f} ({min(ours_s):.2f}-{max(ours_s):.2f})",
        "ours, CPU s": f"{statistics.median(case['cpu_s']['ours']):.2f}",
        "target, s": f"{target_s:g}: {'met' if median_s <= target_s else 'missed'}",
        "torch-pruning, s": f"{statistics.median(theirs_s):.2f} ({min(theirs_s):.2f}-{max(theirs_s):.2f})",
        "ours / torch-pruning": f"{ratio['ratio']:.2f} (95 %: {ratio['low']:.2f}-{ratio['high']:.2f})",
        "parameters, M: given, ours, theirs": ", ".join(
            f"{case['params'][key] / 1e6:.2f}" for key in ("given", "ours", "torch-pruning")
        ),
        "other work, cores": "unknown" if case["other_cores"] is None else f"{case['other_cores']:.2f}",
    }


def written(cases: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """Write both files and return the page."""
    facts = machine_facts()
    command = (
        f"python benchmarks/shrink_speed.py --out FOLDER --only {' '.join(arguments.only)} "
        f"--rounds {arguments.rounds} --threads {arguments.threads} --machine {arguments.machine}"
    )
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    table = tabulate(
        [shown(case) for case in cases], headers="keys", tablefmt="github", disable_numparse=True
    )
    page = (
        "# Seconds of a shrink\n\n"
        f"`{command}`; {facts['cpu']}, {facts['num_usable_cores']} cores, {arguments.threads} threads; "
        f"{packages}; {arguments.rounds} rounds after one call of each, both tools in every round in random "
        "order.\n\n"
        "Half of the rows of every layer but the last are zero, all biases and betas are kept; 3x224x224. "
        "A cell is the median (lowest-highest) of the rounds, the ratio is of one round, with a 95 % t "
        "interval over the rounds. Ours compares the two networks at the end, at two batches and two "
        "resolutions; torch-pruning builds its graph and prunes, compares nothing and drops the constants of "
        "dead channels. CPU seconds are of all threads; `other work` is what other processes took of the "
        "machine meanwhile.\n\n"
        f"{table}\n"
    )
    document = {"schema": 1, "command": command, "machine": facts, "cases": list(cases)}
    write_results(arguments.out, "shrink_speed", arguments.machine, page, document)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--only", nargs="+", choices=tuple(TARGETS_S), default=list(TARGETS_S))
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each tool")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; an interval needs at least 2")
    torch.set_num_threads(arguments.threads)
    print(written([measured(name, arguments.rounds) for name in arguments.only], arguments))


if __name__ == "__main__":
    main()
