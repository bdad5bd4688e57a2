"""Runs under torchrun: trainings are shared, all else is the first process's, whoever fails ends them all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pipeline_fakes
import pytest

from ticket_export.errors import DataError, MissingDependency, RecipeError, TrainError
from ticket_export.pipeline import run, together, work
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.torchrun import Place, alone, device_at, place_in_torchrun
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe

SMOKE = Path(__file__).parent / "smoke.yaml"
TOLD = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SECOND = Place(rank=1, local_rank=1, num_processes=2, num_here=2)

Step = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(pipeline_fakes.FAILS, raising=False)
    monkeypatch.setattr(work, "STEPS", dict.fromkeys(work.STEPS, ("pipeline_fakes", "fake_step")))


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(SMOKE, ["find.controls=[]"])


@pytest.fixture
def in_torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Step], None]]:
    """Makes this thread the first of two processes, and another thread, with steps of its own, the second."""
    from torch import distributed

    store = distributed.PrefixStore("test", distributed.HashStore())  # type: ignore[attr-defined]
    for name, value in TOLD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(together, "meeting_place", lambda: store)
    monkeypatch.setattr(together, "process_group", lambda *_: nullcontext())
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # which only a main thread may call
    main = threading.current_thread()  # threads share the environment: the first process alone changes it
    monkeypatch.setattr(
        together, "alone", lambda: alone() if threading.current_thread() is main else nullcontext()
    )
    threads: list[threading.Thread] = []
    codes: list[int | str | None] = []

    def follow() -> None:
        try:
            together.follow(SECOND)
        except SystemExit as ended:
            codes.append(ended.code)

    def start(step: Step) -> None:
        monkeypatch.setattr(together, "step_of", lambda node: step)
        threads.append(threading.Thread(target=follow, daemon=True))
        threads[0].start()

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()  # the first one's end is the others'
    assert set(codes) <= {0}


def step_beside(context: Any, node: Node, folder: Path, scratch: Path, progress: Any) -> dict[str, Any]:
    """A fake in a scratch of its own: two in one process would write over each other's."""
    own = folder.with_name(f"{folder.name}-scratch")
    own.mkdir()
    return pipeline_fakes.fake_step(context, node, folder, own, progress)


def test_torchruns_variables_say_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_in_torchrun() == Place(rank=0, local_rank=0, num_processes=1, num_here=1)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a scheduler's: no torchrun
    assert place_in_torchrun().num_processes == 1
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert place_in_torchrun() == Place(rank=3, local_rank=1, num_processes=4, num_here=2)
    with alone():
        assert place_in_torchrun().num_processes == 1
    assert place_in_torchrun().rank == 3
    monkeypatch.setenv("RANK", "three")
    with pytest.raises(TrainError, match="the environment holds RANK=three, LOCAL_RANK=1, WORLD_SIZE=4"):
        place_in_torchrun()


def test_each_process_takes_the_gpu_of_its_own_number() -> None:
    assert device_at(SECOND, "cuda") == "cuda:1"
    assert device_at(SECOND, "cpu") == "cpu"
    assert device_at(Place(), "cuda:3") == "cuda:3"
    for name in ("cuda:1", "mps"):
        with pytest.raises(RecipeError, match=f"device is {name}, and 2 processes train together"):
            device_at(SECOND, name)


def test_every_training_is_shared_and_nothing_else(
    in_torchrun: Callable[[Step], None], recipe: Recipe, tmp_path: Path
) -> None:
    shared: list[str] = []

    def step(context: Any, node: Node, folder: Path, scratch: Path, progress: Any) -> dict[str, Any]:
        shared.append(node.key)
        assert scratch.is_dir()
        assert tmp_path not in folder.parents
        return step_beside(context, node, folder, scratch, progress)

    in_torchrun(step)
    made: list[tuple[str, str]] = []

    def emit(event: Any) -> None:
        if event["event"] == "done":
            made.append((event["stage"], event["key"]))
            assert os.environ.get("RANK") is None  # what trains now trains alone

    run(recipe, tmp_path, until="export", emit=emit)
    assert {stage for stage, _ in made} == {"train", "find", "shrink", "export"}
    assert shared == [key for stage, key in made if stage == "train"]
    assert len(shared) == 2
    assert place_in_torchrun().num_processes == 2


def test_a_run_that_has_all_results_shares_nothing(
    in_torchrun: Callable[[Step], None], recipe: Recipe, tmp_path: Path
) -> None:
    with alone():
        run(recipe, tmp_path, until="find")
    in_torchrun(lambda *_: pytest.fail("nothing is left to train"))
    events: list[str] = []
    run(recipe, tmp_path, until="find", emit=lambda event: events.append(event["event"]))
    assert set(events) == {"skip"}


def test_processes_that_end_with_different_weights_are_told(
    in_torchrun: Callable[[Step], None], recipe: Recipe, tmp_path: Path
) -> None:
    def step(context: Any, node: Node, folder: Path, *_: Any) -> dict[str, Any]:
        (folder / pipeline_fakes.FILE).write_text("others")
        return {}

    in_torchrun(step)
    told = "train dense, replicate 0: processes 0 and 1 trained together and ended with different text"
    with pytest.raises(TrainError, match=told) as caught:
        run(recipe, tmp_path, until="train")
    assert caught.value.hint is not None
    assert "without torchrun" in caught.value.hint
    assert list(tmp_path.glob("store/train/*/manifest.json")) == []


def test_what_another_process_fails_with_is_raised_by_the_first(
    in_torchrun: Callable[[Step], None], recipe: Recipe, tmp_path: Path
) -> None:
    def step(*_: Any) -> dict[str, Any]:
        raise DataError("the second machine has no images", hint="copy them")

    in_torchrun(step)
    with pytest.raises(DataError, match="the second machine has no images") as caught:
        run(recipe, tmp_path, until="train")
    assert caught.value.hint == "copy them"


def test_a_device_that_another_process_lacks_is_told_before_anyone_waits_for_it(
    in_torchrun: Callable[[Step], None], recipe: Recipe, tmp_path: Path
) -> None:
    in_torchrun(step_beside)
    with pytest.raises(MissingDependency, match="device 'cuda:1': this machine offers 0"):
        run(recipe, tmp_path, until="train", device="cuda")


def test_what_the_first_fails_with_between_trainings_is_its_own_and_ends_the_others(
    in_torchrun: Callable[[Step], None], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pipeline_fakes.FAILS, "find ticket@1, replicate 0")
    in_torchrun(step_beside)
    with pytest.raises(TrainError, match="find ticket@1, replicate 0: the loss is nan"):
        run(recipe, tmp_path, until="train")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workers": 2}, "workers is 2, and torchrun started 2 processes that train together"),
        ({"device": "cuda:0"}, "device is cuda:0, and 2 processes train together"),
        ({"until": "exprot"}, "'exprot' is not one of train"),
    ],
)
def test_what_does_not_fit_several_processes_is_refused_and_ends_them(
    in_torchrun: Callable[[Step], None],
    recipe: Recipe,
    tmp_path: Path,
    options: dict[str, Any],
    told: str,
) -> None:
    in_torchrun(step_beside)
    with pytest.raises(RecipeError, match=told):
        run(recipe, tmp_path, **options)
    assert not (tmp_path / "runs").exists()


# In real processes: the fakes meet in a barrier, as trainings do, and one of them may fail before it.
PROCESS = f"""
import os, sys
sys.path.append({str(Path(__file__).parent)!r})
import pipeline_fakes
from ticket_export.errors import TrainError
alone = pipeline_fakes.fake_step
def fake_step(context, node, folder, scratch, progress):
    if node.stage == "train":
        from torch import distributed
        if os.environ["RANK"] == os.environ.get("FAILING_RANK"):
            raise TrainError("there is no memory left", hint="take a smaller batch")
        distributed.barrier()
    else:
        assert "RANK" not in os.environ
    return alone(context, node, folder, scratch, lambda event: None)
pipeline_fakes.fake_step = fake_step
pipeline_fakes.install()
from ticket_export.cli import main
main(sys.argv[1:])
"""


def torchrun(folder: Path, *words: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start two processes that run fakes, in a process group of their own."""
    script = folder / "process.py"
    script.write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launch, str(script), *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def texts(out: Path) -> dict[str, str]:
    return {
        path.parent.name: path.read_text()
        for path in out.glob(f"store/*/*/{pipeline_fakes.FILE}")
        if path.parent.suffix == ""
    }


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_whichever_process_fails_in_a_training_all_end_and_one_tells(tmp_path: Path, rank: str) -> None:
    words = ("run", SMOKE, "--out", tmp_path / "out", "--until", "train")
    said, told = torchrun(tmp_path, *words, FAILING_RANK=rank).communicate(timeout=120)
    assert said == ""
    assert told.count("error: there is no memory left\nhint: take a smaller batch\n") == 1
    assert "[rank" not in told  # torch's mark on the trace of a process
    assert "exitcode  : 2" in told


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path, recipe: Recipe) -> None:
    with alone():
        run(load_recipe(SMOKE), tmp_path / "calm", until="shrink")
    words = ("run", SMOKE, "--out", tmp_path / "out", "--until", "shrink")
    killed = torchrun(tmp_path, *words, **{pipeline_fakes.SECONDS: "10"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/store/train/*.lock")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lock = next(tmp_path.glob("out/store/train/*.lock"))
    scratch = lock.with_suffix(".partial") / "scratch"
    while not list(scratch.glob("part-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    _, told = killed.communicate(timeout=60)
    assert killed.returncode != 0
    assert "SIGKILL" in told
    assert list(scratch.glob("part-*")) != []
    again = torchrun(tmp_path, *words)
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert texts(tmp_path / "out") == texts(tmp_path / "calm")


@pytest.mark.slow
def test_two_processes_train_a_recipe_to_its_report(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ticket_export"]
    words = ["run", str(SMOKE), "--out", str(tmp_path), "--set", "find.controls=[]"]
    done = subprocess.run(
        [*launch, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert done.stderr.count(" train dense #0, ") == 1
    rows = json.loads((tmp_path / "runs" / "smoke" / "report.json").read_text())["rows"]
    assert [row["subject"] for row in rows] == ["dense", "ticket@1"]
    manifests = [
        json.loads(path.read_text()) for path in sorted(tmp_path.glob("store/train/*/manifest.json"))
    ]
    assert [manifest["facts"]["processes"] for manifest in manifests] == [2, 2]
    assert all(manifest["facts"]["val_accuracy"] > 0.1 for manifest in manifests)
    # processes 0 and 1 ended with equal weights, or nothing would be published; what they are stays one run's
    with alone():
        events: list[str] = []
        run(
            load_recipe(SMOKE, ["find.controls=[]"]),
            tmp_path,
            until="train",
            emit=lambda event: events.append(event["event"]),
        )
    assert set(events) == {"skip"}
