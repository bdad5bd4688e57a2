"""Cores are held while a run lasts, by threads old and new, and given back however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ticket_export.measure import pinning
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.pinning import pinned, quietest_cores
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.fake import FakeRunner
from ticket_export.runtime.registry import open_runner
from ticket_export.store.process import busy_and_stolen_s, busy_s_by_core

needs_two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="this process may use one core only, or the system does not let it choose",
)


def cores_by_thread() -> dict[int, set[int]]:
    """Where every thread of this process may run, as the kernel tells it; sessions bind some of theirs."""
    tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    return {task: os.sched_getaffinity(task) for task in tasks}


@pytest.fixture
def idle_thread() -> Iterator[threading.Thread]:
    """A thread to start, which waits until the test is over, however that ends."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    yield thread
    over.set()
    if thread.ident is not None:
        thread.join()


@needs_two_cores
def test_threads_that_were_there_and_threads_that_start_are_held_and_given_back(
    idle_thread: threading.Thread,
) -> None:
    idle_thread.start()
    before = cores_by_thread()
    seen: list[set[int]] = []
    with pinned(1, "cpu") as cores:
        assert cores is not None
        assert len(cores) == 1
        assert len(cores_by_thread()) >= 2
        assert all(held == set(cores) for held in cores_by_thread().values())
        later = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        later.start()
        later.join()
    assert seen == [set(cores)]
    after = cores_by_thread()
    assert all(after[task] == before[task] for task in before.keys() & after.keys())
    assert idle_thread.native_id in before.keys() & after.keys()


@needs_two_cores
def test_cores_are_given_back_after_an_error_and_to_threads_that_started_meanwhile(
    idle_thread: threading.Thread,
) -> None:
    home, before = os.sched_getaffinity(0), cores_by_thread()

    def fail_midway() -> None:
        with pinned(1, "cpu"):
            idle_thread.start()
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    after = cores_by_thread()
    assert idle_thread.native_id is not None
    assert after[idle_thread.native_id] == home
    assert all(after[task] == before[task] for task in before.keys() & after.keys())


@needs_two_cores
def test_the_threads_of_an_open_session_obey(write_mlp: Callable[..., Path]) -> None:
    with open_runner(write_mlp("a.onnx"), "ort-cpu", threads=2) as runner, pinned(1, "cpu") as cores:
        assert cores is not None
        runner.renew()  # a new session starts threads of its own
        assert len(cores_by_thread()) >= 2
        assert all(held == set(cores) for held in cores_by_thread().values())


@needs_two_cores
def test_a_measurement_records_the_cores_it_was_held_to_and_the_machines_own_count() -> None:
    inside: list[int] = []

    def script(_call: int) -> float:
        inside.append(len(os.sched_getaffinity(0)))
        return 1e-3

    measured = measure_interleaved({"a": FakeRunner(script)}, batch=1, protocol=Protocol(rounds=5, samples=5))
    assert set(inside) == {1}
    assert measured["a"].cores is not None
    assert len(measured["a"].cores) == 1
    assert measured["a"].machine["num_usable_cores"] == len(os.sched_getaffinity(0)) > 1


def test_nothing_is_held_for_a_gpu() -> None:
    home = os.sched_getaffinity(0)
    with pinned(1, "cuda:0") as cores:
        assert cores is None
        assert os.sched_getaffinity(0) == home


def test_a_system_without_affinity_measures_unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pinned(1, "cpu") as cores:
        assert cores is None


Facts = dict[int, tuple[str, str, str]]  # socket, SMT siblings, capacity


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Facts, dict[int, float]], None]:
    """A machine of other cores, by what the kernel would tell of them."""

    def make(facts: Facts, busy: dict[int, float]) -> None:
        names = ("topology/physical_package_id", "topology/thread_siblings_list", "cpu_capacity")
        for core, values in facts.items():
            for name, value in zip(names, values, strict=True):
                path = tmp_path / f"cpu{core}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(value + "\n", encoding="ascii")
        monkeypatch.setattr(pinning, "_SYSTEM", tmp_path)
        monkeypatch.setattr(pinning, "_busy_by_core", lambda cores: {core: busy[core] for core in cores})
        monkeypatch.setattr(os, "sched_getaffinity", lambda _task: set(facts))

    return make


SOCKETS: Facts = {core: ("0" if core < 4 else "1", str(core), "1024") for core in range(8)}
SMT: Facts = {core: ("0", "0,2" if core % 2 == 0 else "1,3", "1024") for core in range(4)}
HYBRID: Facts = {core: ("0", str(core), "1024" if core < 2 else "420") for core in range(6)}
IDLE = dict.fromkeys(range(8), 0.0)


@pytest.mark.parametrize(
    ("facts", "busy", "threads", "cores"),
    [
        (SOCKETS, IDLE, 1, (0,)),
        (SOCKETS, IDLE | {0: 1.0, 1: 0.9}, 2, (2, 3)),
        (SOCKETS, IDLE | {0: 1.0, 1: 0.9, 2: 0.8}, 2, (4, 5)),  # one socket, not one core of each
        (SOCKETS, IDLE | {0: 1.0, 5: 1.0}, 6, (1, 2, 3, 4, 6, 7)),  # more than a socket has
        (SMT, IDLE, 2, (0, 1)),
        (SMT, IDLE | {1: 0.9}, 2, (0, 3)),
        (SMT, IDLE, 3, (0, 1, 2)),
        (HYBRID, IDLE | {0: 0.3}, 1, (1,)),  # a weak core is quieter on any phone
        (HYBRID, IDLE, 3, (0, 1, 2)),
        (HYBRID, IDLE, 6, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_the_quietest_cores_are_of_one_socket_strong_and_not_siblings(
    machine: Callable[[Facts, dict[int, float]], None],
    facts: Facts,
    busy: dict[int, float],
    threads: int,
    cores: tuple[int, ...],
) -> None:
    machine(facts, busy)
    assert quietest_cores(threads) == cores


def test_the_cores_together_are_as_busy_as_the_system() -> None:
    by_core, system = busy_s_by_core(), busy_and_stolen_s()
    assert system is not None
    assert len(by_core) == os.cpu_count()
    assert sum(by_core.values()) == pytest.approx(system[0], rel=0.01)
