"""What the folder of all runs holds by now: counts of results, finished reports, seconds of epochs.

Only what was measured is read; a result is there when its folder is, for folders are published whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.numpy import load_file
from tickets.recipes import Run

from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.nodes import InputHashes, Node, hash_inputs, nodes_until
from ticket_export.pipeline.runs import RUN_FILE, run_folder
from ticket_export.store.machine import machine_facts
from ticket_export.store.manifest import FILE_NAME
from ticket_export.store.store import Store

Document: TypeAlias = dict[str, Any]  # Any: JSON
ELEMENTS_FILE = "elements.safetensors"  # as pipeline.networks calls it, which loads torch
_REPORTED = ("rows", "search_cost", "machine")  # of report.json: the rest names files or is drawn from these


@dataclass(frozen=True)
class Work:
    """The folder of all runs, which share a store and read the same files."""

    folder: Path
    runs: Sequence[Run]

    @cached_property
    def inputs(self) -> InputHashes:
        """The hashes of the images, which all runs share.

        Raises:
            DataError: they are missing.
        """
        return hash_inputs(self.runs[0].recipe)

    def nodes(self, run: Run) -> tuple[Node, ...]:
        """Return every result of a run on this machine."""
        nodes = nodes_of(run.recipe, self.inputs, machine_facts()["fingerprint"])
        return nodes_until(nodes, run.part.until)

    def is_there(self, node: Node) -> bool:
        """Return whether a result is in the store."""
        return self._manifest_path(node).is_file()

    def is_finished(self, run: Run) -> bool:
        """Return whether all results of a run are in the store, and its report where it has one."""
        if run.part.only_dense:
            return all(self.is_there(node) for node in self.nodes(run))
        return self.report(run) is not None

    def report(self, run: Run) -> Document | None:
        """Return the finished report of a run; None where there is none of just these results."""
        folder = run_folder(self.folder, run.recipe)
        if not (folder / RUN_FILE).is_file():
            return None
        told = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if told["results"] != [f"{node.stage}/{node.key}" for node in self.nodes(run)]:
            return None
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return {field: report[field] for field in _REPORTED}

    def epochs(self, run: Run) -> Document | None:
        """Return the seconds of each epoch of the dense training and where it ran; None before its end."""
        [dense] = [node for node in self.nodes(run) if (node.stage, node.subject) == ("train", "dense")]
        if not self.is_there(dense):
            return None
        manifest = self._manifest(dense)
        machine = manifest["machine"]
        return {
            "seconds": [epoch["seconds"] for epoch in manifest["facts"]["history"]],
            "device": manifest["facts"]["device"],
            "on": ", ".join(machine.get("gpus", [machine["cpu"]])),
        }

    def remaining(self, run: Run) -> dict[str, float]:
        """Return, by ticket, the share of the prunable weights that its mask keeps.

        Finders of whole channel groups leave no such mask: what they drop is cut out of other layers too.
        """
        store = Store(self.folder)
        kept = {}
        for node in self.nodes(run):
            path = store.path(node.stage, node.key) / ELEMENTS_FILE
            if node.stage == "find" and node.subject.startswith("ticket@") and path.is_file():
                keep = load_file(path).values()  # uint8, 1 = keep
                kept[node.subject] = float(sum(each.sum() for each in keep) / sum(each.size for each in keep))
        return kept

    def num_test_images(self, run: Run) -> int:
        """Return how many images the accuracies of a finished run are of."""
        measured = next(node for node in self.nodes(run) if node.item.get("kind") == "accuracy")
        count: int = self._manifest(measured)["facts"]["num_images"]
        return count

    def told(self, run: Run) -> Document:
        """Return everything about one run as JSON values."""
        nodes = self.nodes(run)
        report = None if run.part.only_dense else self.report(run)
        return {
            "name": run.name,
            "part": run.part.name,
            "seed": run.seed,
            "num_epochs": run.recipe.train.epochs,
            "num_results": len(nodes),
            "num_done": sum(self.is_there(node) for node in nodes),
            "finished": self.is_finished(run),
            "epochs": self.epochs(run),
            "report": report,
            "num_test_images": None if report is None else self.num_test_images(run),
            "remaining": {} if report is None else self.remaining(run),
        }

    def _manifest(self, node: Node) -> Document:
        found: Document = json.loads(self._manifest_path(node).read_text(encoding="utf-8"))
        return found

    def _manifest_path(self, node: Node) -> Path:
        return Store(self.folder).path(node.stage, node.key) / FILE_NAME


def num_epochs_left(work: Work, run: Run, seen: set[str]) -> int:
    """Return how many epochs a run would train; `seen` holds the keys counted before, and grows.

    Those of a training that was begun are counted whole.
    """
    total = 0
    for node in work.nodes(run):
        if node.stage == "train" and node.key not in seen and not work.is_there(node):
            seen.add(node.key)
            rewound = run.recipe.find.rewind_epoch if "start" in node.parents else 0
            total += run.recipe.train.epochs - rewound
    return total
