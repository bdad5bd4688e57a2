"""One wave of results as Ray tasks, where several machines are to work: each task makes one result.

    driver   parents made? -> submit (settings, key) ...... events -> in the store? -> its children
    task                      key -> claim -> make -> publish

All that is shared is the store, a folder that every machine sees under one path; its locks let nothing be
made twice. A task whose worker was killed is started again by Ray and goes on from the checkpoint that is
left: on the same machine at once, elsewhere when the lock's heartbeat is a minute old.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ticket_export.errors import (
    MissingDependency,
    RecipeError,
    StoreError,
    TicketExportError,
    WorkerDiedError,
)
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.nodes import Node, longest_chain_first
from ticket_export.pipeline.work import Emit, Event, work
from ticket_export.pipeline.worker import Settings, error_from_event, event_from_error, nodes_as_told
from ticket_export.store.machine import num_usable_cores
from ticket_export.store.manifest import Manifest
from ticket_export.store.store import Store

_MAX_RETRIES = 3  # of one result whose worker was killed: a result that kills its workers must end
_POLL_S = 0.2
_STOP_S = 5.0  # a task gives its lock back as soon as torch returns to Python
_SEEN_S = 60.0  # network file systems hide what is new for up to this long
_OBJECTS_BYTES = 100 * 2**20  # of a Ray of our own: keys and events alone lie there
_MOST_HERE = 4  # tasks at once on the cores of one machine, as --workers without Ray


@dataclass(frozen=True, slots=True, kw_only=True)
class RayTasks:
    """What Ray is asked for.

    Attributes:
        workers: tasks at once; None means as many as fit, at most four on the cores of one machine.
        gpus: the share of a GPU that each task takes; 0 means that it trains on the CPU.
    """

    workers: int | None
    gpus: float


def ray_tasks(workers: int | None, device: str, gpus_per_task: float | None) -> RayTasks:
    """Return what Ray is to be asked for.

    Raises:
        RecipeError: the device or the share of a GPU is none that Ray could give to a task.
        MissingDependency: Ray is not installed.
    """
    if device not in ("cpu", "cuda"):
        raise RecipeError(
            f"device is {device}, and Ray gives each task its own", hint="use --device cuda or --device cpu"
        )
    if gpus_per_task is not None and device == "cpu":
        raise RecipeError(f"gpus_per_task is {gpus_per_task:g}, and device is cpu", hint="use --device cuda")
    if gpus_per_task is not None and not 0 < gpus_per_task <= 1:
        hint = "a task trains on one GPU: use a share of it, above 0 and at most 1"
        raise RecipeError(f"gpus_per_task is {gpus_per_task:g}", hint=hint)
    if find_spec("ray") is None:
        raise MissingDependency("Ray is not installed", hint="pip install 'ticket-export[ray]'")
    share = 1.0 if gpus_per_task is None else gpus_per_task
    return RayTasks(workers=workers, gpus=share if device == "cuda" else 0.0)


def work_on_ray(settings: Settings, nodes: Sequence[Node], store: Store, tasks: RayTasks, emit: Emit) -> None:
    """Return when every node is complete, each made by one task.

    Args:
        settings: of the run; the threads are Ray's.
        nodes: what must be there; every parent that is not complete is among them.
        store: where results are.
        tasks: what Ray is asked for.
        emit: called with what the tasks tell.

    Raises:
        MissingDependency: the cluster has no GPU.
        StoreError: the machines do not see one store.
        TicketExportError: what a task told, or that its workers died; the others are stopped first.
    """
    waiting = list(longest_chain_first(nodes))
    running: dict[Any, Node] = {}  # Any: a reference of Ray's
    with _connected(tasks) as ray:
        num_tasks, threads = _num_tasks_and_threads(ray, tasks)
        told = json.dumps({**asdict(replace(settings, threads=threads, wave=0)), "folder": str(Path.cwd())})
        post = _post_on_this_machine(ray)
        task = ray.remote(num_cpus=threads, num_gpus=tasks.gpus, max_retries=_MAX_RETRIES)(make_one)
        try:
            while waiting or running:
                unfinished = {*waiting, *running.values()}
                ready = [node for node in waiting if unfinished.isdisjoint(node.parents.values())]
                for node in ready[: num_tasks - len(running)]:
                    waiting.remove(node)
                    running[task.remote(told, node.key, post)] = node
                finished, _ = ray.wait(list(running), timeout=_POLL_S)
                for event in post.get_nowait_batch(post.size()):
                    emit(event)
                for reference in finished:
                    node = running.pop(reference)
                    _require_success(ray, reference, node)
                    _require_seen(node, store)
        finally:
            _stop(ray, list(running))


def make_one(told: str, key: str, post: Any) -> Event | None:  # Any: a queue of Ray's
    """Make the result `key` unless it is there; return an error that the user can mend, as JSON values."""
    try:
        context, node_by_key = _opened(told)
        node = node_by_key[key]
        for parent in node.parents.values():
            _require_seen(parent, context.store)
        work([node], context.store, context, post.put)
    except TicketExportError as error:
        return event_from_error(error)
    return None


@lru_cache(maxsize=1)  # a worker of Ray's makes many results of one run, and reads the images once
def _opened(told: str) -> tuple[Context, Mapping[str, Node]]:
    values = json.loads(told)
    folder = values.pop("folder")
    try:
        os.chdir(folder)  # the recipe's paths and --out may start there
    except OSError as error:
        raise StoreError(
            f"machine {platform.node()} cannot enter {folder}: {error.strerror}",
            hint="start the run in a folder that all machines of the cluster see under one path",
        ) from error
    settings = Settings(**values)
    recipe, nodes = nodes_as_told(settings)
    context = Context(recipe, Store(settings.out), device=settings.device, threads=settings.threads)
    return context, {node.key: node for node in nodes}


def _require_seen(node: Node, store: Store) -> None:
    """Wait for a result that another machine may have published a moment ago."""
    deadline_s = time.monotonic() + _SEEN_S
    while not isinstance(store.look_up(node.stage, node.key), Manifest):
        if time.monotonic() > deadline_s:
            place = store.path(node.stage, node.key).absolute()
            raise StoreError(
                f"{node} was made, but machine {platform.node()} does not see {place}",
                hint="choose a folder that all machines of the cluster see under one path with --out",
            )
        time.sleep(_POLL_S)


@contextmanager
def _connected(tasks: RayTasks) -> Iterator[Any]:  # Any: the module ray; mypy must pass where it is missing
    """Yield Ray: the one this process is in, the one RAY_ADDRESS names, or one of our own on this machine.

    Our own ends with the block: whatever is timed next has the machine for itself.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}  # Any: Ray's own
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else tasks without a GPU warn
        options["num_cpus"] = max(num_usable_cores(), tasks.workers or 0)
        options |= {"object_store_memory": _OBJECTS_BYTES, "include_dashboard": False}
    ray: Any = import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, **options)
    except Exception as error:  # plain ones too
        hint = "unset RAY_ADDRESS, or let it name a cluster that runs"
        if address == "local":
            hint = "on a busy machine it gives up: run the same command again; its logs are in /tmp/ray"
        raise WorkerDiedError(f"Ray does not start (address {address}): {error}", hint=hint) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _num_tasks_and_threads(ray: Any, tasks: RayTasks) -> tuple[int, int]:  # Any: the module ray, also below
    """Return how many tasks run at once, and the threads of each, which one machine must have free."""
    every = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [offer for offer in every if "CPU" in offer and (not tasks.gpus or "GPU" in offer)]
    if not machines:
        what = "GPU" if tasks.gpus else "CPU"
        raise MissingDependency(
            f"the Ray cluster offers no {what} on {len(every)} machines",
            hint="use --device cpu, or start Ray on machines that have one" if tasks.gpus else None,
        )
    cores = [int(offer["CPU"]) for offer in machines]
    if tasks.workers is not None:
        num_tasks = tasks.workers
    elif tasks.gpus:
        num_tasks = max(1, sum(int(offer["GPU"]) * int(1 / tasks.gpus) for offer in machines))
    else:
        num_tasks = sum(min(num, _MOST_HERE) for num in cores)
    return num_tasks, max(1, min(sum(cores) // num_tasks, *cores))


def _post_on_this_machine(ray: Any) -> Any:
    """Return a queue for the events, which lives as long as this machine does."""
    here = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    options = {"num_cpus": 0, "scheduling_strategy": here}
    return import_module("ray.util.queue").Queue(actor_options=options)


def _require_success(ray: Any, reference: Any, node: Node) -> None:
    try:
        told = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # a mistake of ours: its text holds the trace
        raise RuntimeError(f"a task failed: {node}\n{error}") from None
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(
            f"{node}: its workers died {_MAX_RETRIES + 1} times or could not start: {error}",
            hint="run the same command again; if memory ran out, use fewer tasks at once (--workers 1)",
        ) from error
    if told is not None:
        raise error_from_event(told)


def _stop(ray: Any, running: Sequence[Any]) -> None:
    """Stop tasks: first by an interruption, after which they give their locks back, then by force."""
    if not running:
        return
    for reference in running:
        ray.cancel(reference)
    _, stubborn = ray.wait(running, num_returns=len(running), timeout=_STOP_S)
    for reference in stubborn:
        ray.cancel(reference, force=True)
