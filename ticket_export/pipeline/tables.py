"""Latency tables of a recipe: made once per runtime, precision and batch on a machine, then found again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ticket_export.measure.latency_table import LatencyTable, load_table
from ticket_export.pipeline.graph import table_nodes
from ticket_export.pipeline.nodes import hash_inputs
from ticket_export.pipeline.work import Emit, missing_of, require_measurable, time_alone
from ticket_export.recipe.schema import Recipe
from ticket_export.store.machine import machine_facts
from ticket_export.store.store import Store

TABLE_FILE = "table.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTable:
    """A table in the store.

    Attributes:
        table: what was measured.
        path: its file.
        key: of the result.
        found: it was there before.
    """

    table: LatencyTable
    path: Path
    key: str
    found: bool


def profile(
    recipe: Recipe,
    out: str | Path = "out",
    *,
    device: str = "cpu",
    threads: int = 1,
    emit: Emit | None = None,
) -> tuple[StoredTable, ...]:
    """Make the latency table of every runtime, precision and batch of a recipe that is not in the store yet.

    Args:
        recipe: whose network and runtimes.
        out: the output folder.
        device: where torch's runtimes run.
        threads: of torch while networks are exported.
        emit: called with each event, as of `run`.

    Raises:
        MeasureError: it would be timed on more threads than this machine has cores, or cannot be timed.
        MissingDependency: a runtime is not installed.
        ShrinkError: a layer of the network has no price.
        StoreError: the disk refuses.
    """
    require_measurable(recipe)
    store = Store(out)
    nodes = table_nodes(recipe, hash_inputs(recipe), machine_facts()["fingerprint"])
    tell: Emit = emit or (lambda event: None)
    missing = missing_of(nodes, store, tell)
    if missing:
        time_alone(missing, store, recipe, tell, device=device, threads=threads)
    paths = [store.path(node.stage, node.key) / TABLE_FILE for node in nodes]
    return tuple(
        StoredTable(table=load_table(path), path=path, key=node.key, found=node not in missing)
        for node, path in zip(nodes, paths, strict=True)
    )
