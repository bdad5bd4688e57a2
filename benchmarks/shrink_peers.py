"""The shrink beside its peers: the same networks, the same zeros, in one run.

Run:  python benchmarks/shrink_peers.py --out FOLDER [--only-tool T ...] [--only-network N ...] [--force]

Needs torchvision, torch-simplify, torch-pruning and onnxsim. Every cell runs in a process of its own with a
time limit and is written as soon as it is done; a second run takes up where the first one ended, and
`--force` makes the chosen cells again. The folder receives `shrink_peers_<machine>_<yyyy-mm>.md` and `.json`.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import json
import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from costs.shrink import torchvision_schemas

_SCHEMAS = torchvision_schemas()  # before anything imports torchvision, for as long as the reference

from peers import masks, tools  # noqa: E402
from peers.cell import Cell, run_cell  # noqa: E402
from peers.networks import NETWORKS  # noqa: E402
from peers.tables import full_table, short_table  # noqa: E402
from peers.tools import EQUAL  # noqa: E402

from ticket_export.measure.load import LoadMeter  # noqa: E402
from ticket_export.store.machine import machine_facts  # noqa: E402

PEERS = ("torch", "torchvision", "torch-simplify", "torch-pruning", "onnxsim", "onnx", "onnxruntime")
HOW = """
Every network has random weights, norms with the statistics of a batch, and betas and biases that are not
zero. Each tool gets its own copy of the same masked network and an example of {sizes}. Its result and the
masked network then run on three fresh random images, and on two at a second size; the error is
max|a-b| / max|b| over the logits, and above {equal:g} it stands in bold: that is another function. For scale:
on these images the masked networks' own outputs spread by {spread} of max|b|, and float32 alone
takes them {rounding} of max|b| away from float64. "Left" are the parameters and floating buffers (running
statistics, maps of biases, float initialisers of an ONNX file) of the result, as a part of the masked
network's. Seconds are of one call, one thread, beside other work on the machine: an upper bound.
"""


def written(document: dict[str, Any], stem: Path) -> str:  # Any: JSON
    """Write both files and return the markdown."""
    cells: Sequence[Cell] = document["cells"]
    facts, packages = document["machine"], document["packages"]
    where = (
        f"{facts['cpu']}, {facts['num_usable_cores']} cores, {facts['os']}, Python {facts['python']}; "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
    )
    runs = "\n".join(
        f"- `{run['command']}`, {run['ended']}, {run['num_cells']} cells, other work on "
        f"{'an unknown number of' if run['other_cores'] is None else format(run['other_cores'], '.2f')} cores"
        for run in document["runs"]
    )
    how = HOW.format(
        sizes="two images of 64 pixels (zoo:resnet20: 32)",
        equal=EQUAL,
        spread=_range(cells, "spread"),
        rounding=_range(cells, "rounding"),
    )
    kinds = inspect.cleandoc(masks.__doc__ or "").partition("\n\n")[2].replace("\n    ", " ")
    given = inspect.cleandoc(tools.__doc__ or "").partition("\n\n")[2].replace("\n    ", " ")
    parts = (
        f"# The shrink beside its peers\n\n{where}.\n\n{runs}",
        how.strip(),
        f"The zeros:\n\n{_listed(kinds)}",
        f"The tools:\n\n{_listed(given)}",
        f"## In short\n\n{short_table(cells)}",
        f"## Every cell\n\nRelative error, what is left, seconds.\n\n{full_table(cells)}",
    )
    markdown = "\n\n".join(parts) + "\n"
    for suffix, text in ((".md", markdown), (".json", json.dumps(document, indent=1) + "\n")):
        partial = stem.with_name(f"{stem.name}{suffix}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(stem.with_name(f"{stem.name}{suffix}"))
    return markdown


def _range(cells: Sequence[Cell], key: str) -> str:
    values = [cell[key] for cell in cells if key in cell] or [0.0]
    return f"{min(values):.1e} to {max(values):.1e}"


def _listed(text: str) -> str:
    return "\n".join(f"- {line}" for line in text.splitlines())


class Clock:
    """Counts the cells of this run, and the cores that were busy with other work meanwhile."""

    def __init__(self) -> None:
        self.meter, self.start_s, self.num_cells = LoadMeter(), time.perf_counter(), 0
        self.start_of_children_s = self._children_s()

    @staticmethod
    def _children_s() -> float:
        times = os.times()
        return times.children_user + times.children_system

    def run(self, command: str) -> dict[str, Any]:  # Any: JSON
        """Return what to tell of this run, one cell later."""
        self.num_cells += 1
        other_cores = self.meter.stop().other_cores  # the cells run in children, which it takes for others
        cells = (self._children_s() - self.start_of_children_s) / (time.perf_counter() - self.start_s)
        return {
            "command": command,
            "ended": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
            "num_cells": self.num_cells,
            "other_cores": None if other_cores is None else max(other_cores - cells, 0.0),
        }


def opened(stem: Path) -> dict[str, Any]:  # Any: JSON
    """Return the document of earlier runs, or an empty one."""
    path = stem.with_name(f"{stem.name}.json")
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": [], "runs": []}
    return {
        **document,
        "schema": 1,
        "machine": machine_facts(),
        "packages": {name: version(name) for name in PEERS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    parser.add_argument("--only-tool", nargs="+", choices=tuple(tools.TOOLS), default=list(tools.TOOLS))
    parser.add_argument("--only-network", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--only-mask", nargs="+", choices=masks.MASKS, default=list(masks.MASKS))
    parser.add_argument("--force", action="store_true", help="make cells again that are in the file")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds per cell")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / f"shrink_peers_{given.machine}_{datetime.datetime.now(datetime.UTC):%Y-%m}"
    document, clock = opened(stem), Clock()
    runs = document["runs"]
    cell_by_place = {(cell["network"], cell["mask"], cell["tool"]): cell for cell in document["cells"]}
    for network in given.only_network:
        for mask in given.only_mask:
            for tool in given.only_tool:
                place = (network, mask, tool)
                if place in cell_by_place and not given.force:
                    continue
                others = [cell_by_place.get((network, mask, other)) for other in tools.TOOLS]
                masked = next((cell for cell in others if cell and cell["outcome"] == "no mask"), None)
                if masked is None or given.force:
                    masked = run_cell(tool, network, mask, limit_s=given.limit)
                cell_by_place[place] = {**masked, "tool": tool}  # what has no mask has none for every tool
                document["cells"] = list(cell_by_place.values())
                document["runs"] = [*runs, clock.run(_command(given, parser))]
                written(document, stem)
                print(
                    *place, cell_by_place[place].get("rel_error", cell_by_place[place]["outcome"]), flush=True
                )
    print(written(document, stem))


def _command(given: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    chosen = [
        f"--{name.replace('_', '-')} {' '.join(getattr(given, name))}"
        for name in ("only_tool", "only_network", "only_mask")
        if getattr(given, name) != parser.get_default(name)
    ]
    force = ["--force"] if given.force else []
    return " ".join(["python benchmarks/shrink_peers.py", *chosen, *force])


if __name__ == "__main__":
    main()
