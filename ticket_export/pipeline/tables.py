"""Latency tables of a recipe: made once per runtime, precision and batch on a machine, then found again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ticket_export.measure.latency_table import LatencyTable, load_table
from ticket_export.measure.protocol import require_cores
from ticket_export.pipeline.graph import table_nodes
from ticket_export.pipeline.nodes import hash_inputs
from ticket_export.pipeline.work import Emit, event_of, is_complete, work
from ticket_export.recipe.schema import Recipe
from ticket_export.runtime.offers import require_installed
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
    from ticket_export.pipeline.context import Context

    require_cores(recipe.measure.threads)
    for runtime in recipe.measure.runtimes:
        require_installed(runtime)
    store = Store(out)
    nodes = table_nodes(recipe, hash_inputs(recipe), machine_facts()["fingerprint"])
    tell: Emit = emit or (lambda event: None)
    missing = []
    for node in nodes:
        if is_complete(node, store, tell):
            tell({**event_of(node), "event": "skip"})
        else:
            missing.append(node)
    if missing:
        with store.exclusively("latency"), Context(recipe, store, device=device, threads=threads) as context:
            work(missing, store, context, tell)
    paths = [store.path(node.stage, node.key) / TABLE_FILE for node in nodes]
    return tuple(
        StoredTable(table=load_table(path), path=path, key=node.key, found=node not in missing)
        for node, path in zip(nodes, paths, strict=True)
    )
