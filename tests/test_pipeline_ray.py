"""Runs on Ray: parents first, all once, equal to a run without it; a killed worker costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pipeline_fakes
import pytest
import tiny_chain
from scripted_ray import RayError, RayTaskError, ScriptedRay

from ticket_export.errors import (
    MissingDependency,
    RecipeError,
    StoreError,
    TicketExportError,
    TrainError,
    WorkerDiedError,
)
from ticket_export.pipeline import coordinate, graph, nodes, plan, ray_engine, run, work
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.torchrun import Place
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.store.machine import machine_facts

SMOKE = Path(__file__).parent / "smoke.yaml"

Events = list[dict[str, Any]]


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(SMOKE)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRay]:
    """A scripted Ray, and steps that take no time."""
    for name in (pipeline_fakes.SECONDS, pipeline_fakes.FAILS, pipeline_fakes.FULL, pipeline_fakes.BREAKS):
        monkeypatch.delenv(name, raising=False)
    for name in ("RAY_ADDRESS", "RANK", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(work, "STEPS", dict.fromkeys(work.STEPS, ("pipeline_fakes", "fake_step")))
    monkeypatch.setattr(ray_engine, "_SEEN_S", 0.0)
    yield ScriptedRay().install(monkeypatch)
    ray_engine._opened.cache_clear()


def go(recipe: Recipe, out: Path, **options: Any) -> Events:
    events: Events = []
    run(recipe, out, emit=lambda event: events.append(dict(event)), **({"until": "measure"} | options))
    return events


def nodes_of(recipe: Recipe) -> tuple[Node, ...]:
    return graph.nodes_of(recipe, nodes.hash_inputs(recipe), machine_facts()["fingerprint"])


def texts(out: Path) -> dict[str, str]:
    return {
        path.parent.name: path.read_text()
        for path in out.glob(f"store/*/*/{pipeline_fakes.FILE}")
        if path.parent.suffix == ""
    }


def test_each_result_is_one_task_after_its_parents_and_equals_that_of_a_run_without_ray(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path
) -> None:
    events = go(recipe, tmp_path / "ray", on="ray", workers=3)
    go(recipe, tmp_path / "here")
    assert texts(tmp_path / "ray") == texts(tmp_path / "here")
    every = nodes_of(recipe)
    told = [word for word in ray.told if word[0] in ("submit", "end")]
    assert Counter(told) == {
        (word, node.key): 1 for node in every if not node.is_timed for word in ("submit", "end")
    }
    for node in every:
        if not node.is_timed:
            submitted = told.index(("submit", node.key))
            assert all(told.index(("end", parent.key)) < submitted for parent in node.parents.values())
    assert ray.peak == 3
    assert Counter(event["key"] for event in events if event["event"] == "done") == {n.key: 1 for n in every}
    assert {event["event"] for event in events} == {"start", "progress", "done"}
    assert {event["event"] for event in go(recipe, tmp_path / "ray", on="ray")} == {"skip"}
    assert ray.told.count(("init",)) == 1


def test_what_is_timed_is_timed_here_while_no_ray_of_our_own_runs(ray: ScriptedRay, tmp_path: Path) -> None:
    recipe = load_recipe(SMOKE, ["shrink.round_to=auto"])
    timed = {node.key for node in nodes_of(recipe) if node.is_timed}
    assert len(timed) > 1

    def emit(event: Any) -> None:
        assert ray.is_initialized() != (event["key"] in timed)

    run(recipe, tmp_path, on="ray", until="measure", emit=emit)
    assert {node.done for node in plan(recipe, tmp_path)} == {True}
    assert ray.told.count(("init",)) == ray.told.count(("shutdown",)) == 2


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"workers": 2}, {"num_cpus": 1, "num_gpus": 0.0}),
        ({"workers": 1}, {"num_cpus": 2, "num_gpus": 0.0}),
        ({"device": "cuda"}, {"num_cpus": 2, "num_gpus": 1.0}),
        ({"device": "cuda", "gpus_per_task": 0.5}, {"num_cpus": 1, "num_gpus": 0.5}),
    ],
)
def test_a_task_asks_for_its_threads_and_its_share_of_a_gpu(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, options: dict[str, Any], asked: dict[str, float]
) -> None:
    ray.machines = ({"CPU": 2.0, "GPU": 1.0},)
    go(recipe, tmp_path, on="ray", until="find", **options)
    assert ray.options == {**asked, "max_retries": 3}


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "expected"),
    [
        ([{"CPU": 16.0}, {"CPU": 16.0}], None, 0.0, (8, 4)),  # four on each, as without Ray
        ([{"CPU": 16.0}, {"CPU": 4.0}], 2, 0.0, (2, 4)),  # ten would fit the first machine alone
        ([{"CPU": 2.0}], 5, 0.0, (5, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], None, 0.25, (8, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], None, 1.0, (2, 4)),
    ],
)
def test_tasks_and_threads_follow_from_the_machines(
    machines: list[dict[str, float]], workers: int | None, gpus: float, expected: tuple[int, int]
) -> None:
    tasks = ray_engine.RayTasks(workers=workers, gpus=gpus)
    assert ray_engine._num_tasks_and_threads(ScriptedRay(*machines), tasks) == expected


def test_a_cluster_without_a_gpu_is_told_before_tasks_wait_for_one(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(MissingDependency, match="the Ray cluster offers no GPU on 1 machines"):
        go(recipe, tmp_path, on="ray", device="cuda")
    assert ray.told == [("init",), ("shutdown",)]


def test_ray_is_the_one_of_ray_address_or_a_quiet_one_of_our_own(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe, tmp_path / "own", on="ray", until="train", workers=1000)
    assert (ray.init_options["address"], ray.init_options["num_cpus"]) == ("local", 1000)
    assert ray.init_options["include_dashboard"] is False
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    go(recipe, tmp_path / "theirs", on="ray", until="train")
    assert ray.init_options["address"] == "10.0.0.1:6379"
    assert "num_cpus" not in ray.init_options
    ray.told.clear()
    ray.init()  # by whoever calls us
    go(recipe, tmp_path / "callers", on="ray", until="train")
    assert ray.told.count(("init",)) == 1
    assert ("shutdown",) not in ray.told


def test_a_failing_step_is_told_and_the_other_tasks_are_stopped(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pipeline_fakes.FAILS, "train ticket@1, replicate 0")
    with pytest.raises(TrainError, match="train ticket@1, replicate 0: the loss is nan") as caught:
        go(recipe, tmp_path, on="ray", workers=4)
    assert caught.value.hint == "lower train.lr"
    submitted, ended, cancelled, killed = (
        {word[1] for word in ray.told if word[0] == verb} for verb in ("submit", "end", "cancel", "kill")
    )
    assert cancelled == killed == submitted - ended
    assert cancelled != set()
    assert ray.told[-1] == ("shutdown",)


@pytest.mark.parametrize(
    ("address", "hint"), [("", "on a busy machine it gives up"), ("auto", "unset RAY_ADDRESS")]
)
def test_a_ray_that_does_not_start_is_told(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, hint: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", lambda **_: fail(Exception("the node timed out")))  # as Ray raises it
    with pytest.raises(
        WorkerDiedError, match=rf"address {address or 'local'}\): the node timed out\n.*{hint}"
    ):
        go(recipe, tmp_path, on="ray", until="train")


def fail(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RayError("out of memory"),
            WorkerDiedError,
            r"train dense, replicate 0: its workers died 4 times.*out of",
        ),
        (
            RayTaskError("ZeroDivisionError in ours.py"),
            RuntimeError,
            r"train dense, replicate 0\nZeroDivision",
        ),
    ],
)
def test_workers_that_die_again_and_again_and_mistakes_of_ours_are_told(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, error: Exception, kind: type[Exception], message: str
) -> None:
    ray.broken[nodes_of(recipe)[0].key] = lambda: fail(error)
    with pytest.raises(kind, match=message):
        go(recipe, tmp_path, on="ray")


def test_a_result_that_this_machine_does_not_see_is_told(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path
) -> None:
    ray.broken[nodes_of(recipe)[0].key] = lambda: None  # made in another machine's folder
    with pytest.raises(
        StoreError, match=r"train dense, replicate 0 was made, but machine .* does not see /"
    ) as caught:
        go(recipe, tmp_path, on="ray")
    assert caught.value.hint is not None
    assert "all machines of the cluster see under one path" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"on": "dask"}, "on: 'dask' is not one of here, ray"),
        ({"gpus_per_task": 0.5}, "gpus_per_task is 0.5, and on is here"),
        ({"on": "ray", "gpus_per_task": 0.5}, "gpus_per_task is 0.5, and device is cpu"),
        ({"on": "ray", "device": "cuda", "gpus_per_task": 2.0}, "gpus_per_task is 2\n"),
        ({"on": "ray", "device": "cuda", "gpus_per_task": 0.0}, "gpus_per_task is 0\n"),
        ({"on": "ray", "device": "cuda:1"}, "device is cuda:1, and Ray gives each task its own"),
        ({"on": "ray", "workers": 0}, "workers is 0"),
    ],
)
def test_options_that_do_not_fit_ray_are_refused_before_anything_is_written(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        run(recipe, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert ray.told == []


def test_ray_under_torchrun_is_refused(
    ray: ScriptedRay, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinate, "place_in_torchrun", lambda: Place(num_processes=2, num_here=2))
    monkeypatch.setattr(coordinate, "leading", lambda place: nullcontext())
    with pytest.raises(RecipeError, match="on is ray, and torchrun started 2 processes that train together"):
        run(recipe, tmp_path, on="ray")


def test_a_missing_ray_is_told_with_the_command(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="Ray is not installed") as caught:
        run(recipe, tmp_path / "out", on="ray")
    assert caught.value.hint == "pip install 'ticket-export[ray]'"
    assert not (tmp_path / "out").exists()


def test_a_task_on_a_machine_without_the_folder_is_told(tmp_path: Path) -> None:
    told = json.dumps({"folder": str(tmp_path / "elsewhere")})
    with pytest.raises(TicketExportError, match=r"machine .* cannot enter .*/elsewhere: No such file"):
        ray_engine._opened(told)


# In a process of its own: Ray leaves threads and sockets behind, which are warnings here.
SWEEP = f"""
import sys
from pathlib import Path
sys.path.append({str(Path(__file__).parent)!r})
from tiny_chain import tiny_recipe
from ticket_export.pipeline import run
run(tiny_recipe(Path(sys.argv[1]), *sys.argv[3:]), sys.argv[2], on="ray", workers=2, until="train")
"""
OVERRIDES = ("train.epochs=40",)  # long enough to be killed in


def log_of(out: Path) -> Events:
    path = out / "runs" / "tiny" / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last may not be whole
    return [json.loads(line) for line in lines]


def kill_a_training(out: Path, sweep: subprocess.Popen[bytes]) -> str:
    """Kill a process in the middle of a training and return the training's key."""
    while sweep.poll() is None:
        under_way = {event["key"] for event in log_of(out) if "epoch" in event and event["stage"] == "train"}
        for lock in out.glob("store/train/*.lock"):
            if lock.stem not in under_way:
                continue
            with suppress(FileNotFoundError):  # it ended this moment
                pid = json.loads(lock.read_text())["pid"]
                os.kill(pid, signal.SIGSTOP)  # it cannot end while we look
                caught = lock.exists() and not lock.with_suffix("").exists()
                os.kill(pid, signal.SIGKILL if caught else signal.SIGCONT)
                if caught:
                    return lock.stem
        time.sleep(0.05)
    raise AssertionError("the sweep ended, and no training was seen")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install 'ticket-export[ray]'")
def test_a_sweep_on_two_workers_of_which_one_is_killed_makes_everything_once_and_the_same(
    tmp_path: Path,
) -> None:
    images, out = tiny_chain.write_images(tmp_path / "images.npz"), tmp_path / "ray"
    with (tmp_path / "said").open("w+") as said:  # no pipe: what Ray starts would hold it open
        sweep = subprocess.Popen([sys.executable, "-c", SWEEP, images, out, *OVERRIDES], stderr=said)
        try:
            killed = kill_a_training(out, sweep)
            sweep.wait(300)
        finally:
            sweep.terminate()
            sweep.wait(30)
        said.seek(0)
        assert sweep.returncode == 0, said.read()
    recipe = tiny_chain.tiny_recipe(images, *OVERRIDES)
    here = tmp_path / "here"
    run(recipe, here, workers=2, until="train")  # as many threads for each
    wanted = [node for node in plan(recipe, out) if node.stage in ("train", "find")]
    assert len({node.subject for node in wanted}) >= 8
    assert [node.key for node in wanted if not node.done] == []
    done = Counter(event["key"] for event in log_of(out) if event["event"] == "done")
    assert done == {node.key: 1 for node in wanted}
    started = Counter(event["key"] for event in log_of(out) if event["event"] == "start")
    assert started == {node.key: 1 + (node.key == killed) for node in wanted}
    assert tiny_chain.published(out) == tiny_chain.published(here)
    assert [path.name for path in out.glob("store/*/*") if path.suffix in (".lock", ".partial")] == []
