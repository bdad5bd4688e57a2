"""Runs that are killed, interrupted, doubled, damaged or out of disk: nothing is lost, everything is told."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pipeline_fakes
import pytest

from ticket_export import stages
from ticket_export.errors import RecipeError, StoreError, TrainError, WorkerDiedError
from ticket_export.pipeline import graph, nodes, plan, run, work, worker
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.store.key import sha256_of_file
from ticket_export.store.machine import machine_facts

SMOKE = Path(__file__).parent / "smoke.yaml"
RUN = f"""
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit that it is ignored
sys.path.append({str(Path(__file__).parent)!r})
import pipeline_fakes
pipeline_fakes.install()
from ticket_export.pipeline import run
from ticket_export.recipe.load import load_recipe
try:
    run(load_recipe({str(SMOKE)!r}, ["replicates=2"]), sys.argv[1], workers=int(sys.argv[2]), until="measure")
except KeyboardInterrupt:
    sys.exit(130)
"""
NUM_NODES = 53

Events = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (pipeline_fakes.SECONDS, pipeline_fakes.FAILS, pipeline_fakes.FULL, pipeline_fakes.BREAKS):
        monkeypatch.delenv(name, raising=False)
    steps, code = work.STEPS, worker._CODE
    pipeline_fakes.install()
    yield
    work.STEPS, worker._CODE = steps, code


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(SMOKE, ["replicates=2"])


@pytest.fixture
def go(recipe: Recipe, tmp_path: Path) -> Callable[..., Events]:
    def go_with(*, workers: int = 1, out: Path = tmp_path, until: str = "measure") -> Events:
        events: Events = []
        run(recipe, out, workers=workers, until=until, emit=lambda event: events.append(dict(event)))
        return events

    return go_with


def start(out: Path, *, workers: int, seconds: float) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(out), str(workers)],
        env={**os.environ, pipeline_fakes.SECONDS: str(seconds)},
        start_new_session=True,
    )


def texts(out: Path) -> dict[str, str]:
    """What was published: `stage/key` -> text."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": path.read_text()
        for path in out.glob(f"store/*/*/{pipeline_fakes.FILE}")
        if path.parent.suffix == ""
    }


def leftovers(out: Path) -> list[str]:
    return [path.name for path in (out / "store").glob("*/*") if path.suffix in (".lock", ".partial")]


def wait_until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_makes_every_result_once_and_the_next_skips_all(
    go: Callable[..., Events], tmp_path: Path, workers: int
) -> None:
    first = go(workers=workers)
    done = [event["key"] for event in first if event["event"] == "done"]
    assert len(done) == len(set(done)) == NUM_NODES
    assert len(texts(tmp_path)) == NUM_NODES
    assert leftovers(tmp_path) == []
    second = go(workers=workers)
    assert {event["event"] for event in second} == {"skip"}
    assert sorted(event["key"] for event in second) == sorted(done)


@pytest.mark.parametrize("workers", [1, 3])
def test_widths_are_timed_alone_between_what_they_read_and_what_reads_them(
    tmp_path: Path, workers: int
) -> None:
    recipe = load_recipe(SMOKE, ["replicates=2", "shrink.round_to=auto"])
    events: Events = []
    run(recipe, tmp_path, workers=workers, until="measure", emit=lambda event: events.append(dict(event)))
    made = graph.nodes_of(recipe, nodes.hash_inputs(recipe), machine_facts()["fingerprint"])
    timed = {node.key for node in made if node.is_timed}
    order = [(event["event"], event["key"]) for event in events if event["event"] in ("start", "done")]
    assert len([key for word, key in order if word == "done"]) == len(made)
    for place, (word, key) in enumerate(order):
        if key in timed and word == "start":
            assert order[place + 1] == ("done", key)
    parents = {key for key in texts(tmp_path) if key.startswith("shrink/")}
    assert {key.removeprefix("shrink/") for key in parents} == {k for k in timed if f"shrink/{k}" in parents}
    assert leftovers(tmp_path) == []


def test_the_number_of_workers_does_not_change_the_results(go: Callable[..., Events], tmp_path: Path) -> None:
    go(workers=1, out=tmp_path / "one")
    go(workers=3, out=tmp_path / "three")
    assert texts(tmp_path / "one") == texts(tmp_path / "three")


def test_a_finished_run_starts_no_process_and_loads_no_torch(
    go: Callable[..., Events], tmp_path: Path
) -> None:
    go()
    code = RUN.replace("try:", "import subprocess; subprocess.Popen = None\ntry:")
    code += "\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path), "4"], check=False).returncode == 0


def test_latencies_are_timed_last_and_by_the_parent(go: Callable[..., Events], tmp_path: Path) -> None:
    events = [event for event in go(workers=2) if event["event"] == "done"]
    assert events[-1]["kind"] == "latency"
    [manifest] = [
        found
        for found in map(
            json.loads, (path.read_text() for path in tmp_path.glob("store/measure/*/manifest.json"))
        )
        if found["item"]["kind"] == "latency"
    ]
    assert manifest["facts"]["made_by"] == os.getpid()


def test_events_name_their_node_and_are_logged(go: Callable[..., Events], tmp_path: Path) -> None:
    events = go(workers=2)
    [started] = [event for event in events if event["event"] == "start" and event.get("kind") == "latency"]
    assert started == {
        "event": "start",
        "stage": "measure",
        "subject": "all",
        "replicate": None,
        "key": started["key"],
        "kind": "latency",
        "runtime": "ort-cpu",
        "precision": "fp32",
        "batch": 1,
    }
    assert any(event["event"] == "progress" and event["epoch"] == 3 for event in events)
    done = [event for event in events if event["event"] == "done"]
    assert all(0 <= event["wall_s"] <= event["seconds"] for event in done)
    log = [json.loads(line) for line in (tmp_path / "runs" / "smoke" / "log.jsonl").read_text().splitlines()]
    assert [{name: value for name, value in line.items() if name != "time"} for line in log] == events


def test_the_run_holds_the_recipe_with_its_defaults(
    go: Callable[..., Events], tmp_path: Path, recipe: Recipe
) -> None:
    go(until="train")
    path = tmp_path / "runs" / "smoke" / "recipe.yaml"
    assert "tolerance: 1.0e-05" in path.read_text()
    assert load_recipe(path) == recipe


def test_until_stops_after_that_stage(go: Callable[..., Events], tmp_path: Path) -> None:
    go(until="find")
    assert {key.split("/")[0] for key in texts(tmp_path)} == {"train", "find"}
    go(until="export")
    assert {key.split("/")[0] for key in texts(tmp_path)} == {"train", "find", "shrink", "export"}


def test_an_unknown_stage_is_refused(go: Callable[..., Events]) -> None:
    with pytest.raises(
        RecipeError, match="'exprot' is not one of train, find, shrink, export, measure, report"
    ):
        go(until="exprot")


def test_no_workers_are_refused(go: Callable[..., Events]) -> None:
    with pytest.raises(RecipeError, match="workers is 0"):
        go(workers=0)


def test_a_plan_says_what_is_done_and_writes_nothing(
    go: Callable[..., Events], tmp_path: Path, recipe: Recipe
) -> None:
    before = plan(recipe, tmp_path / "fresh")
    assert [node.done for node in before] == [False] * NUM_NODES
    assert not (tmp_path / "fresh").exists()
    go(until="train")
    after = plan(recipe, tmp_path)
    assert {node.stage for node in after if node.done} == {"train", "find"}
    assert {node.stage for node in after if not node.done} == {"find", "shrink", "export", "measure"} - {
        "find"
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_step_is_told_and_what_was_made_stays(
    go: Callable[..., Events], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(pipeline_fakes.FAILS, "train ticket@1, replicate 1")
        with pytest.raises(TrainError, match="train ticket@1, replicate 1: the loss is nan") as caught:
            go(workers=workers)
    assert caught.value.hint == "lower train.lr"
    made = len(texts(tmp_path))
    assert 2 <= made < NUM_NODES
    events = go(workers=workers)
    assert sum(event["event"] == "skip" for event in events) == made
    assert len(texts(tmp_path)) == NUM_NODES


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_in_a_step_is_told(
    go: Callable[..., Events], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv(pipeline_fakes.FULL, "export dense, replicate 0")
    with pytest.raises(StoreError, match=r"store/export/.*No space left on device") as caught:
        go(workers=workers)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("free some space")


def test_a_bug_in_a_worker_shows_where_it_is(
    go: Callable[..., Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pipeline_fakes.BREAKS, "find ticket@1, replicate 0")
    with pytest.raises(RuntimeError, match=r"has a bug[\s\S]*pipeline_fakes.py"):
        go(workers=2)


def test_workers_of_another_version_end_the_run_instead_of_waiting_for_ever(
    go: Callable[..., Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = stages.STAGES["train"]
    newer = {**stages.STAGES, "train": replace(train, revision=train.revision + 1)}
    monkeypatch.setattr(graph, "STAGES", newer)  # here alone: the workers import their own
    with pytest.raises(WorkerDiedError, match="the package has changed since the run began"):
        go(workers=2)


def test_a_file_in_place_of_the_output_folder_is_told(go: Callable[..., Events], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="out/runs/smoke: Not a directory"):
        go(out=tmp_path / "out")


def test_a_damaged_result_is_named_and_made_again(go: Callable[..., Events], tmp_path: Path) -> None:
    go()
    before = texts(tmp_path)
    victim = next(tmp_path.glob("store/find/*")) / pipeline_fakes.FILE
    victim.write_text("x" * victim.stat().st_size)
    events = go()
    [damaged] = [event for event in events if event["event"] == "damaged"][:1]
    assert f"{victim.name} has changed since it was published" in damaged["reason"]
    assert [event["key"] for event in events if event["event"] == "done"] == [victim.parent.name]
    assert texts(tmp_path) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_all_processes_and_leaves_no_lock(tmp_path: Path, workers: int) -> None:
    process = start(tmp_path, workers=workers, seconds=0.5)
    wait_until(lambda: bool(texts(tmp_path)))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    wait_until(lambda: not any(name.endswith(".lock") for name in leftovers(tmp_path)))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, workers=2, seconds=60)
    wait_until(lambda: len(leftovers(tmp_path)) >= 4)
    process.kill()
    process.wait()

    def group_is_gone() -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(group_is_gone)


def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    code = RUN.replace(
        "except KeyboardInterrupt:", "except Exception as error:\n    print(error.exit_code, error)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "2"],
        env={**os.environ, pipeline_fakes.SECONDS: "60"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: bool(list(tmp_path.glob("store/*/*.lock"))))
        lock = next(tmp_path.glob("store/*/*.lock"))
        wait_until(lambda: lock.read_text().endswith("}"))
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
        said, _ = process.communicate(timeout=20)
    assert "3 a worker process was killed by SIGKILL" in said
    assert "--workers 1" in said


def test_two_runs_on_one_store_share_the_work(tmp_path: Path) -> None:
    first, second = (start(tmp_path, workers=1, seconds=0.05) for _ in range(2))
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert len(texts(tmp_path)) == NUM_NODES
    makers = [
        json.loads(path.read_text())["facts"]["made_by"] for path in tmp_path.glob("store/*/*/manifest.json")
    ]
    assert set(makers) == {first.pid, second.pid}
    assert leftovers(tmp_path) == []


def kill_until_done(out: Path, *, workers: int, rng: random.Random) -> int:
    """Start, kill the whole group at a random moment, and again, until a run ends; return the kills."""
    for kills in range(100):
        process = start(out, workers=workers, seconds=0.1)
        try:
            code = process.wait(rng.uniform(0.3, 2.0 + 0.2 * kills))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            continue
        assert code == 0
        return kills
    raise AssertionError("100 kills and no end")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_kills_at_any_moment_change_no_result(
    go: Callable[..., Events], tmp_path: Path, workers: int
) -> None:
    go(out=tmp_path / "calm")
    kills = kill_until_done(tmp_path / "killed", workers=workers, rng=random.Random(workers))
    assert kills >= 2
    assert texts(tmp_path / "killed") == texts(tmp_path / "calm")
    assert leftovers(tmp_path / "killed") == []


def test_a_run_folder_keeps_a_report_only_while_it_is_whole(recipe: Recipe, tmp_path: Path) -> None:
    from ticket_export.pipeline.runs import RunFolder

    with RunFolder(tmp_path, recipe) as folder:
        assert not folder.has_report("abc")
        page = folder.path / "report.html"
        page.write_text("page")
        folder.finish(key="abc", files=(page,), facts={})
        assert folder.has_report("abc")
        assert not folder.has_report("abd")
        assert json.loads((folder.path / "run.json").read_text())["report"]["files"] == {
            "report.html": sha256_of_file(page)
        }
        page.write_text("pagf")
        assert not folder.has_report("abc")
        page.unlink()
        assert not folder.has_report("abc")
