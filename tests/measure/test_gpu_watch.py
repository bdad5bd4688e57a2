"""A GPU under watch: refused when busy, sampled and counted per block, its troubles in words."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_nvml import NVMLError, ScriptedNvml, install

from ticket_export.errors import BusyDeviceError
from ticket_export.measure import gpu as gpu_module
from ticket_export.measure import nvml
from ticket_export.measure.gpu import GpuBlock, GpuWatch
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement, load_measurements, save_measurements
from ticket_export.measure.nvml import open_gpu
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.stability import stability_reasons
from ticket_export.runtime.fake import FakeRunner

QUICK = Protocol(rounds=5, samples=5)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedNvml:
    monkeypatch.setattr(nvml, "_in_container", lambda: False)
    monkeypatch.setattr(gpu_module, "BUSY_WAIT_S", 0.05)
    return install(monkeypatch)


def measured(latency_s: float = 1e-3, **runners: FakeRunner) -> dict[str, Measurement]:
    named = runners or {"a": FakeRunner(lambda _: latency_s, device="cuda:0")}
    return measure_interleaved(named, batch=2, protocol=QUICK)


def test_every_round_has_a_block_with_clocks_heat_power_and_the_reasons(scripted: ScriptedNvml) -> None:
    scripted.bits = 0x4
    found = measured()["a"]
    assert len(found.gpu) == 5
    for block in found.gpu:
        assert (block.sm_clock_mhz, block.memory_clock_mhz, block.max_sm_clock_mhz) == (1980, 3201, 1980)
        assert (block.power_w, block.temperature_c) == (350.0, 41)
        assert block.throttled == {"power cap": block.num_samples}
        assert block.other_processes == 0
    assert found.cores is None  # a GPU's driver needs cores of its own
    assert found.reasons == ("the GPU held its clocks down: power cap in 100% of 5 samples (limit 10%)",)
    assert scripted.open == 0


def test_a_cpu_is_not_asked_for_a_gpu(scripted: ScriptedNvml) -> None:
    found = measured(a=FakeRunner(lambda _: 1e-3))["a"]
    assert found.gpu == ()
    assert scripted.asked == []


def test_a_long_block_is_sampled_by_the_thread_too(
    scripted: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "SAMPLE_HZ", 200.0)
    clocks = itertools.cycle([1000, 2000])
    with open_gpu("cuda:0") as gpu:
        watch = GpuWatch(gpu)
        scripted.sm_clock = lambda: next(clocks)
        watch.start()
        time.sleep(0.2)
        block = watch.stop()
        asked = len(scripted.asked)
        time.sleep(0.05)
        assert len(scripted.asked) == asked  # between blocks nothing is asked
        watch.close()
    assert block.num_samples > 5
    assert block.sm_clock_mhz == pytest.approx(1500, abs=100)
    assert block.wall_s == pytest.approx(0.2, abs=0.1)


def test_energy_is_booked_on_the_subject_that_ran(scripted: ScriptedNvml) -> None:
    def runner(power_w: float) -> FakeRunner:
        def script(_call: int) -> float:
            time.sleep(0.02)
            scripted.energy_mj += 1e3 * power_w * 0.02
            return 0.02

        return FakeRunner(script, device="cuda:0")

    found = measured(dense=runner(400.0), ticket=runner(100.0))
    # 25 timed calls of 2 images: 0.02 s each at 400 and at 100 W; warm-up and first calls are not counted
    assert found["dense"].energy_per_image_j == pytest.approx(4.0)
    assert found["ticket"].energy_per_image_j == pytest.approx(1.0)


def test_blocks_shorter_than_the_counters_refresh_tell_no_energy_per_image() -> None:
    block = GpuBlock(
        num_samples=1, sm_clock_mhz=None, memory_clock_mhz=None, power_w=None, max_sm_clock_mhz=None,
        temperature_c=None, energy_j=3.0, wall_s=0.2,
    )  # fmt: skip
    short = dataclasses.replace(block, wall_s=0.01)
    unknown = dataclasses.replace(block, energy_j=None)
    found = measured(a=FakeRunner(lambda _: 1e-3))["a"]
    told = [
        dataclasses.replace(found, gpu=blocks).energy_per_image_j
        for blocks in ((block,) * 5, (block, *(short,) * 4), (short,) * 5, (*(block,) * 4, unknown), ())
    ]
    assert told == [15.0 / 50, None, None, None, None]


def test_a_device_without_a_counter_has_no_energy(scripted: ScriptedNvml) -> None:
    scripted.energy_mj = NVMLError("Not Supported")
    found = measured()["a"]
    assert {block.energy_j for block in found.gpu} == {None}
    assert found.energy_per_image_j is None
    assert found.stable


def test_another_process_is_refused_before_anything_is_timed(scripted: ScriptedNvml) -> None:
    scripted.processes = [(4242, 3 << 30), (4243, None)]
    runner = FakeRunner(lambda _: 1e-3, device="cuda:0")
    words = r"cuda:0 \(NVIDIA H200\) is in use by pid 4242 \(3,072 MiB\), pid 4243\nhint: stop it"
    with pytest.raises(BusyDeviceError, match=words) as refused:
        measured(a=runner)
    assert refused.value.exit_code == 3
    assert runner.num_calls == 0
    assert scripted.open == 0


def test_work_of_a_process_that_the_container_hides_is_refused(scripted: ScriptedNvml) -> None:
    scripted.utilisation = 97
    with pytest.raises(BusyDeviceError, match=r"is 97% busy while nothing is timed \(limit 10%\)"):
        measured()


def test_in_a_container_that_hides_which_process_is_ours_an_idle_one_is_a_reason_and_work_is_refused(
    scripted: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "_in_container", lambda: True)
    scripted.processes = [(77, 1 << 20)]
    assert measured()["a"].stable
    scripted.processes = [(77, 1 << 20), (78, 2 << 20)]
    assert measured()["a"].reasons[-1] == (
        "busy neighbour not ruled out: pid 77 (1 MiB), pid 78 (2 MiB) hold cuda:0, and one of them may be "
        "this process"
    )
    scripted.utilisation = 50
    with pytest.raises(BusyDeviceError, match=r"is 50% busy .*; among pid 77 \(1 MiB\), pid 78"):
        measured()


def test_the_end_of_our_own_loading_is_waited_for(
    scripted: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = itertools.chain([80, 30], itertools.repeat(0))
    scripted.utilisation = lambda: next(shares)
    monkeypatch.setattr(gpu_module, "BUSY_WAIT_S", 5.0)
    assert measured()["a"].stable


def test_a_process_that_comes_while_we_measure_is_a_reason(scripted: ScriptedNvml) -> None:
    turns = itertools.count()
    scripted.processes = lambda: [(4242, 1 << 30)] if next(turns) > 2 else []
    reasons = measured()["a"].reasons
    assert reasons == ("busy neighbour: another process held the GPU in 3 of 5 rounds (limit 0)",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"mig": [1, 1]},
            "busy neighbour not ruled out: cuda:0 is a slice (MIG), the others share its clocks",
        ),
        (
            {"processes": NVMLError("No Permission"), "utilisation": NVMLError("Not Supported")},
            "busy neighbour not ruled out: the driver does not tell who uses cuda:0",
        ),
    ],
)
def test_what_cannot_be_ruled_out_is_a_reason(
    scripted: ScriptedNvml, changes: dict[str, Any], words: str
) -> None:
    for name, value in changes.items():
        setattr(scripted, name, value)
    assert measured()["a"].reasons == (words,)


def test_without_nvidia_ml_py_a_gpu_is_measured_and_called_unstable_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    found = measured()["a"]
    assert found.gpu == ()
    assert found.reasons == (
        "clocks and other users of cuda:0 are unknown: nvidia-ml-py is not installed "
        "(pip install nvidia-ml-py)",
    )


def _reasons(blocks: list[GpuBlock]) -> tuple[str, ...]:
    return stability_reasons(
        np.full((len(blocks), 5), 1e-3),
        warmup_drift_fraction=0.0,
        drift_limit=0.01,
        loads=measured(a=FakeRunner(lambda _: 1e-3))["a"].loads,
        threads=1,
        num_cores=2,
        gpu=blocks,
    )


def test_a_fallen_clock_is_named_with_its_round_and_a_set_one_is_not() -> None:
    block = GpuBlock(
        num_samples=10, sm_clock_mhz=1980.0, memory_clock_mhz=None, power_w=None, max_sm_clock_mhz=1980.0,
        temperature_c=None,
    )  # fmt: skip
    low = dataclasses.replace(block, sm_clock_mhz=1200.0)
    assert _reasons([block] * 5) == ()
    assert _reasons([block, block, low, block, block]) == (
        "the SM clock fell to 1200 MHz in round 3, 61% of its maximum (limit 75%)",
    )
    assert _reasons([dataclasses.replace(low, user_clocks=True)] * 5) == ()
    once = dataclasses.replace(block, throttled={"power cap": 5})
    assert _reasons([once, block, block, block, block]) == ()  # 5 of 50 samples
    assert _reasons([once, once, block, block, block]) == (
        "the GPU held its clocks down: power cap in 20% of 50 samples (limit 10%)",
    )


def test_blocks_and_cores_come_back_from_the_file(scripted: ScriptedNvml, tmp_path: Path) -> None:
    scripted.bits = 0x20
    written = measured()
    save_measurements(tmp_path / "samples.npz", written)
    read = load_measurements(tmp_path / "samples.npz")["a"]
    assert read.gpu == written["a"].gpu
    assert read.gpu[0].throttled == {"heat (software)": 1}
