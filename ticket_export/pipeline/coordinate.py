"""`run` and `plan`: what is done is skipped, workers make the rest, latencies are timed alone, then reported.

A run whose results are all there loads no torch and starts no process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ticket_export.errors import RecipeError
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.images import check_images
from ticket_export.pipeline.nodes import Node, hash_inputs, nodes_until
from ticket_export.pipeline.origins import ORIGINS_FILE, origins_of_run
from ticket_export.pipeline.ray_engine import RayTasks, ray_tasks, work_on_ray
from ticket_export.pipeline.runs import RunFolder, run_folder
from ticket_export.pipeline.together import Lead, follow, leading
from ticket_export.pipeline.torchrun import Place, device_at, place_in_torchrun
from ticket_export.pipeline.work import Emit, Event, missing_of, require_measurable, time_alone
from ticket_export.pipeline.worker import Settings, work_as_told, work_in_processes
from ticket_export.recipe.schema import ZOO_PREFIX, Recipe
from ticket_export.stages import STAGE_WORDS, STAGES, StageWord
from ticket_export.store.key import key_from_content
from ticket_export.store.lock import release_all
from ticket_export.store.machine import machine_facts, num_usable_cores
from ticket_export.store.manifest import Manifest
from ticket_export.store.store import Store

if TYPE_CHECKING:
    from ticket_export.report.rows import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNode:
    """One result that a run makes or finds.

    Attributes:
        stage: the stage that makes it.
        subject: of the comparison; `all` for a latency, which times every subject in one run.
        replicate: from 0; None for a latency.
        key: of the result in the store.
        done: it is in the store, complete and intact.
    """

    stage: StageWord
    subject: str
    replicate: int | None
    key: str
    done: bool


def plan(recipe: Recipe, out: str | Path = "out") -> tuple[PlannedNode, ...]:
    """Return every result `run` would make or find, parents before children; nothing is written.

    Image files are read and checked, foreign builders called and weights loaded: what `run` would refuse at
    its start is refused here.

    Raises:
        DataError: the images are missing, damaged or mislabelled, or not those of earlier runs of the name.
        RecipeError: the weights or the builder's file are missing, or not those of earlier runs of the name;
            or the builder gives no network.
        TrainError: the weights do not fit.
        ShrinkError: the finder or a control cannot work on the network.
        MeasureError: it would be timed on more threads than this machine has cores.
        MissingDependency: a runtime it would be timed in is not installed.
        RevisionError: another revision of the package made the results that are there.
        StoreError: the store cannot be read.
    """
    store = Store(out)
    inputs = hash_inputs(recipe)
    _require_inputs(recipe, store)
    require_measurable(recipe)
    nodes = nodes_of(recipe, inputs, machine_facts()["fingerprint"])
    origins_of_run(run_folder(out, recipe), recipe, inputs, nodes, store)
    return tuple(
        PlannedNode(
            stage=node.stage,
            subject=node.subject,
            replicate=node.replicate,
            key=node.key,
            done=isinstance(store.look_up(node.stage, node.key), Manifest),
        )
        for node in nodes
    )


def _require_inputs(recipe: Recipe, store: Store) -> None:
    """Look at the files and functions a recipe names; without any this loads no torch."""
    from ticket_export.pipeline.context import require_channels

    data, model = recipe.data, recipe.model
    if model.weights is not None or not model.builder.startswith(ZOO_PREFIX):
        _require_fit(recipe, store)
    else:
        shape = check_images(data)
        if shape is not None:
            require_channels(data.mean, shape)


def _require_fit(recipe: Recipe, store: Store) -> None:
    """Build the network and see that the finder and the controls can work on it."""
    from ticket_export.pipeline.context import Context
    from ticket_export.pipeline.fit import require_fit

    with Context(recipe, store, device="cpu", threads=1) as context:
        require_fit(context)


def run(
    recipe: Recipe,
    out: str | Path = "out",
    *,
    workers: int | None = None,
    device: str = "cpu",
    until: str | None = None,
    on: str = "here",
    gpus_per_task: float | None = None,
    emit: Emit | None = None,
) -> Report | None:
    """Make every result the recipe asks for that is not in the store yet, and return the report.

    The same call again goes on where a killed or interrupted one ended; on a CPU, with the same number of
    threads, the results are bit-equal to those of an undisturbed run. Several runs may share one store.
    Under torchrun every process calls it: the first does all of this, the others share its trainings.

    Args:
        recipe: what to do.
        out: the output folder; results go to `store/`, the report to `runs/<name>/`.
        workers: processes that train, each its own networks; 1 means this process. Each gets an equal share
            of the cores. None means 1, and on Ray as many as fit.
        device: where to train: `cpu`, `cuda`, `cuda:1`, `mps`. Under torchrun `cuda` is each process's own.
        until: the last stage wanted; None means the report.
        on: `here`, or `ray`: each result is a task of the cluster that RAY_ADDRESS names, or of a Ray started
            for it. All machines see `out` under one path; what is timed is timed by this process.
        gpus_per_task: the share of a GPU that a task of Ray takes; None means a whole one where `device` is
            `cuda`.
        emit: called with each event, a dict with at least `event`, `stage`, `subject`, `replicate`, `key`.

    Returns:
        The report, or None where `until` ends before it, and in all processes of torchrun but the first.

    Raises:
        RecipeError: `until` names no stage, a file the recipe needs is missing, or `workers`, `device`, `on`
            and `gpus_per_task` do not fit each other, or processes that train together.
        DataError: the images are not those of earlier runs of the name.
        RevisionError: another revision of the package made the results that are there.
        MeasureError: it would be timed on more threads than this machine has cores.
        MissingDependency: a runtime it would be timed in is not installed, or Ray where it is asked for.
        StoreError: the disk refuses.
        TicketExportError: whatever a stage raises, in any of the processes.
    """
    place = place_in_torchrun()
    if place.rank > 0:
        follow(place)
        return None
    with leading(place) as lead:
        last = _stage_from_text(until)
        _require_workers(workers, place)
        num_workers = 1 if workers is None else workers
        how = _How(
            workers=num_workers,
            device=device_at(place, device),
            threads=max(1, num_usable_cores() // max(num_workers, place.num_here)),
            until=last,
            lead=lead,
            ray=ray_tasks(workers, device, gpus_per_task) if _is_on_ray(on, gpus_per_task, place) else None,
        )
        return _run(recipe, out, how, emit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    """How a run is made: by how many workers, or with the other processes of `lead`, or on Ray; how far."""

    workers: int
    device: str
    threads: int
    until: StageWord
    lead: Lead | None
    ray: RayTasks | None


def _run(recipe: Recipe, out: str | Path, how: _How, emit: Emit | None) -> Report | None:
    last = how.until
    inputs = hash_inputs(recipe)
    machine = machine_facts()
    nodes = nodes_until(nodes_of(recipe, inputs, machine["fingerprint"]), last)
    if last in ("measure", "report"):
        require_measurable(recipe)
    store = Store(out)
    origins = origins_of_run(run_folder(out, recipe), recipe, inputs, nodes, store)
    with _locks_given_back(), RunFolder(out, recipe) as folder:
        folder.write(ORIGINS_FILE, json.dumps(origins.to_json(), indent=1))

        def tell(event: Event) -> None:
            folder.log(event)
            if emit is not None:
                emit(event)

        settings = Settings(
            recipe=recipe.model_dump(mode="json"),
            out=str(out),
            device=how.device,
            threads=how.threads,
            until=last,
            machine=machine["fingerprint"],
            inputs=asdict(inputs),
            keys=[node.key for node in nodes],
        )
        if how.lead is not None:
            how.lead.share(settings)
        _make_all(nodes, store, recipe, settings, how, tell)
        return _report(recipe, nodes, store, folder, tell) if last == "report" else None


def _stage_from_text(until: str | None) -> StageWord:
    for word in STAGE_WORDS:
        if word == (until or "report"):
            return word
    raise RecipeError(f"until: {until!r} is not one of {', '.join(get_args(StageWord))}")


def _require_workers(workers: int | None, place: Place) -> None:
    if workers is None:
        return
    if workers < 1:
        raise RecipeError(f"workers is {workers}", hint="use at least 1")
    if workers > 1 and place.num_processes > 1:
        raise RecipeError(
            f"workers is {workers}, and torchrun started {place.num_processes} processes that train together",
            hint="leave --workers away, or start the run without torchrun",
        )


def _is_on_ray(on: str, gpus_per_task: float | None, place: Place) -> bool:
    if on not in ("here", "ray"):
        raise RecipeError(f"on: {on!r} is not one of here, ray")
    if on == "here" and gpus_per_task is not None:
        raise RecipeError(f"gpus_per_task is {gpus_per_task:g}, and on is here", hint="use --on ray")
    if on == "ray" and place.num_processes > 1:
        raise RecipeError(
            f"on is ray, and torchrun started {place.num_processes} processes that train together",
            hint="leave --on away, or start the run without torchrun",
        )
    return on == "ray"


def _make_all(
    nodes: Sequence[Node], store: Store, recipe: Recipe, settings: Settings, how: _How, emit: Emit
) -> None:
    missing = missing_of(nodes, store, emit)
    is_foreign = not recipe.model.builder.startswith(ZOO_PREFIX)  # `check` knows the zoo
    if is_foreign and any(node.stage == "train" for node in missing):
        _require_fit(recipe, store)
    for wave in sorted({node.wave for node in missing}):
        of_wave = [node for node in missing if node.wave == wave]
        beside_others = [node for node in of_wave if not node.is_timed]
        if beside_others:
            now = replace(settings, wave=wave)
            num_workers = min(how.workers, len(beside_others))
            if how.ray is not None:
                work_on_ray(now, beside_others, store, how.ray, emit)
            elif num_workers == 1:
                work_as_told(now, emit, how.lead)
            else:
                work_in_processes(now, num_workers, emit)
        timed = [node for node in of_wave if node.is_timed]
        if timed:
            time_alone(timed, store, recipe, emit, device=settings.device, threads=settings.threads)


@contextmanager
def _locks_given_back() -> Iterator[None]:
    """Give every lock back on Ctrl-C, which may fall between taking one and working under it."""
    try:
        yield
    except KeyboardInterrupt:
        release_all()
        raise


def _report(recipe: Recipe, nodes: Sequence[Node], store: Store, folder: RunFolder, emit: Emit) -> Report:
    from ticket_export.report.rows import report_from_manifests

    results = {node: _manifest(node, store) for node in nodes}
    manifests = [manifest.to_json() for manifest in results.values()]
    machine = next(manifest.machine for node, manifest in results.items() if node.is_latency)
    report = report_from_manifests(recipe.name, machine, manifests)
    keys = [f"{node.stage}/{node.key}" for node in nodes]
    # by content: a measurement that was made again has its old key and other numbers
    key = key_from_content(
        {"revision": STAGES["report"].revision, "name": recipe.name, "manifests": manifests}
    )
    event = {"stage": "report", "subject": "all", "replicate": None, "key": key}
    if folder.has_report(key):
        emit({**event, "event": "skip"})
        return report
    from ticket_export.report.page import write_report

    emit({**event, "event": "start"})
    files = write_report(report, folder.path)
    folder.finish(key=key, files=files, facts={"name": recipe.name, "machine": machine, "results": keys})
    emit({**event, "event": "done"})
    return report


def _manifest(node: Node, store: Store) -> Manifest:
    found = store.look_up(node.stage, node.key)
    assert isinstance(found, Manifest)  # made or found a moment ago
    return found
