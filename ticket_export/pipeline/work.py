"""The loop that makes results: take the next node that has its parents and no other maker, and publish it.

Any number of processes may run this loop on one store; the store's locks divide the work among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from safetensors import SafetensorError

from ticket_export.errors import StoreError
from ticket_export.pipeline.nodes import Node
from ticket_export.store.manifest import Manifest
from ticket_export.store.store import DISK_ERRORS, Claim, Damage, Store, store_error

if TYPE_CHECKING:
    from ticket_export.pipeline.context import Context
    from ticket_export.pipeline.together import Lead
    from ticket_export.recipe.schema import Recipe

Event: TypeAlias = Mapping[str, Any]  # Any: JSON values
Emit: TypeAlias = Callable[[Event], None]

_POLL_S = 0.1  # while others make what is needed


class Step(Protocol):
    """Fills a folder with one node's files and returns its facts, JSON values."""

    def __call__(  # noqa: D102 - told above
        self, context: Context, node: Node, folder: Path, scratch: Path, progress: Emit
    ) -> dict[str, Any]: ...  # Any: JSON values


# Each step by module and name: they are imported when they have work, and most of them load torch.
STEPS: Mapping[str, tuple[str, str]] = {
    "train": ("ticket_export.pipeline.learn", "train_step"),
    "find": ("ticket_export.pipeline.finding", "find_step"),
    "shrink": ("ticket_export.pipeline.deploy", "shrink_step"),
    "export": ("ticket_export.pipeline.deploy", "export_step"),
    "accuracy": ("ticket_export.pipeline.timing", "accuracy_step"),
    "latency": ("ticket_export.pipeline.timing", "latency_step"),
    "table": ("ticket_export.pipeline.profiling", "table_step"),
}


def work(nodes: Sequence[Node], store: Store, context: Context, emit: Emit, lead: Lead | None = None) -> None:
    """Return when every node is complete, made here or by another process, the first of `nodes` first.

    Args:
        nodes: what must be there; every parent that is not complete is among them.
        store: where results are.
        context: what the steps need.
        emit: called with an event at the start and end of each node made here, and in between.
        lead: of the other processes that share the trainings, or None where this one is alone.

    Raises:
        StoreError: the disk refuses.
        TicketExportError: whatever a step raises.
    """
    pending = list(nodes)
    done: set[Node] = set()
    while pending:
        made = False
        for node in pending:
            if is_complete(node, store, emit):
                done.add(node)
            elif all(parent in done or is_complete(parent, store, emit) for parent in node.parents.values()):
                claim = store.claim(node.stage, node.key)
                if claim is not None:
                    with claim:
                        _make(node, claim, context, emit, lead)
                    done.add(node)
                    made = True
                    break  # look again from the most urgent one
        pending = [node for node in pending if node not in done]
        if pending and not made:
            time.sleep(_POLL_S)


def require_measurable(recipe: Recipe) -> None:
    """Refuse before the work what could not be timed after it.

    Raises:
        MeasureError: it would be timed on more threads than this machine has cores.
        MissingDependency: a runtime is not installed.
    """
    from ticket_export.measure.protocol import require_cores
    from ticket_export.runtime.offers import require_installed

    require_cores(recipe.measure.threads)
    for runtime in recipe.measure.runtimes:
        require_installed(runtime)


def missing_of(nodes: Sequence[Node], store: Store, emit: Emit) -> list[Node]:
    """Return the nodes that are not complete; the others are told as skipped."""
    missing = []
    for node in nodes:
        if is_complete(node, store, emit):
            emit({**event_of(node), "event": "skip"})
        else:
            missing.append(node)
    return missing


def time_alone(
    nodes: Sequence[Node], store: Store, recipe: Recipe, emit: Emit, *, device: str, threads: int
) -> None:
    """Make nodes that are timed while no other run on this store times anything."""
    from ticket_export.pipeline.context import Context

    with (
        store.exclusively("latency"),
        Context(recipe, store, device=device, threads=threads) as context,
    ):
        work(nodes, store, context, emit)


def is_complete(node: Node, store: Store, emit: Emit) -> bool:
    """Return whether a node's result is there and intact; damage is told as an event."""
    found = store.look_up(node.stage, node.key)
    if isinstance(found, Damage):
        emit({**event_of(node), "event": "damaged", "reason": str(found)})
    return isinstance(found, Manifest)


def event_of(node: Node) -> dict[str, Any]:  # Any: JSON values
    """Return the fields that every event of a node holds."""
    item = {name: value for name, value in node.item.items() if name not in ("subject", "replicate")}
    return {
        "stage": node.stage,
        "subject": node.subject,
        "replicate": node.replicate,
        "key": node.key,
        **item,
    }


def _make(node: Node, claim: Claim, context: Context, emit: Emit, lead: Lead | None) -> None:
    emit({**event_of(node), "event": "start"})
    started_s = time.monotonic()
    shared = nullcontext() if lead is None else lead.sharing(node, claim, context)

    def progress(event: Event) -> None:
        emit({**event_of(node), **event, "event": "progress"})

    try:
        with shared:
            facts = step_of(node)(context, node, claim.folder, claim.scratch, progress)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise store_error(error, claim.folder) from error
        raise
    except SafetensorError as error:  # its own kind, also when the disk is full
        hint = "if the disk is full, free some space or choose another folder with --out"
        raise StoreError(f"{claim.folder}: {error}", hint=hint) from error
    wall_s = time.monotonic() - started_s  # of the step here: what a resumed one did before is not in it
    claim.publish(
        revision=node.revision,
        item=node.item,
        parents={role: f"{parent.stage}/{parent.key}" for role, parent in node.parents.items()},
        sections=node.sections,
        facts=facts,
    )
    seconds = round(time.monotonic() - started_s, 3)
    emit({**event_of(node), "event": "done", "seconds": seconds, "wall_s": round(wall_s, 3)})


def step_of(node: Node) -> Step:
    """Return what makes a node."""
    module, name = STEPS[node.item["kind"] if node.stage == "measure" else node.stage]
    step: Step = getattr(import_module(module), name)
    return step
