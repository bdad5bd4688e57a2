"""What the driver tells, by a scripted nvidia-ml-py; its names are checked against the real one."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from types import ModuleType

import pytest
from scripted_nvml import NVMLError, ScriptedNvml, install

from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.measure import nvml
from ticket_export.measure.nvml import USER_CLOCKS_BIT, GpuSample, open_gpu


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedNvml:
    return install(monkeypatch)


@pytest.fixture
def real() -> ModuleType:
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("nvidia-ml-py is not installed")
    import pynvml

    return pynvml


def test_the_scripted_module_has_the_names_numbers_and_arguments_of_the_real_one(real: ModuleType) -> None:
    for name in dir(ScriptedNvml):
        if name.startswith("nvml"):
            ours = list(inspect.signature(getattr(ScriptedNvml, name)).parameters)[1:]
            theirs = list(inspect.signature(getattr(real, name)).parameters)
            assert len(ours) == len(theirs), name
        elif name.startswith("NVML_"):
            assert getattr(ScriptedNvml, name) == getattr(real, name), name
    assert issubclass(real.NVMLError, Exception)
    assert callable(real.nvmlDeviceGetCurrentClocksThrottleReasons)


def test_the_throttle_bits_are_those_of_the_real_module(real: ModuleType) -> None:
    names = {
        "SwPowerCap": "power cap",
        "HwSlowdown": "hardware slowdown",
        "SwThermalSlowdown": "heat (software)",
        "HwThermalSlowdown": "heat (hardware)",
        "HwPowerBrakeSlowdown": "power brake",
        "BoardLimit": "board limit",
        "Reliability": "reliability limit",
    }
    bits = {getattr(real, f"nvmlClocksThrottleReason{name}"): word for name, word in names.items()}
    assert bits == nvml.THROTTLE_BITS
    assert real.nvmlClocksThrottleReasonApplicationsClocksSetting == USER_CLOCKS_BIT


def test_the_real_module_without_a_driver_is_refused_in_words(real: ModuleType) -> None:
    try:
        real.nvmlInit()
    except real.NVMLError:
        with pytest.raises(MissingDependency, match="the NVIDIA driver cannot be asked"), nvml.nvml():
            pass
    else:
        pytest.skip("there is a driver here; tests/gpu asks it")


def test_a_sample_has_units_and_reasons_in_words(scripted: ScriptedNvml) -> None:
    scripted.bits = 0x1 | 0x4 | 0x40
    with open_gpu("cuda:0") as gpu:
        assert (gpu.name, gpu.max_sm_clock_mhz, gpu.divided) == ("NVIDIA H200", 1980, False)
        assert gpu.sample() == GpuSample(
            sm_clock_mhz=1980,
            memory_clock_mhz=3201,
            temperature_c=41,
            power_w=350.0,
            throttles=("power cap", "heat (hardware)"),
            user_clocks=False,
        )
        scripted.energy_mj = 2_500
        assert gpu.energy_j() == 2.5
        scripted.utilisation = 37
        assert gpu.utilisation_fraction() == 0.37
    assert scripted.open == 0


def test_what_a_device_does_not_have_is_none(scripted: ScriptedNvml) -> None:
    missing = NVMLError("Not Supported")
    for name in ("sm_clock", "memory_clock", "max_sm_clock", "temperature", "power_mw", "energy_mj", "bits"):
        setattr(scripted, name, missing)
    scripted.utilisation = scripted.processes = missing
    with open_gpu("cuda") as gpu:
        sample = gpu.sample()
        assert (sample.sm_clock_mhz, sample.power_w, sample.throttles) == (None, None, ())
        told = (gpu.max_sm_clock_mhz, gpu.energy_j(), gpu.utilisation_fraction(), gpu.users())
        assert told == (None, None, None, None)


def test_an_old_driver_is_asked_by_the_old_name(
    scripted: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.bits = NVMLError("Function Not Found")
    monkeypatch.setattr(
        scripted, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda _handle: 0x80, raising=False
    )
    with open_gpu("cuda:0") as gpu:
        assert gpu.sample().throttles == ("power brake",)


def test_a_missing_module_or_driver_names_what_to_install(
    scripted: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    monkeypatch.setattr(scripted, "nvmlInit", fail)
    with pytest.raises(MissingDependency, match="cannot be asked: NVML Shared Library"), open_gpu("cuda:0"):
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingDependency, match="pip install nvidia-ml-py"), open_gpu("cuda:0"):
        pass


def test_the_device_is_found_by_its_place_on_the_bus_and_never_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = install(monkeypatch, place="0000:99:00.0")
    with pytest.raises(MeasureError, match="cuda:1: NVML does not know it: Not Found"), open_gpu("cuda:1"):
        pass
    scripted = install(monkeypatch, place=None)
    with open_gpu("cuda:0") as gpu:
        assert gpu.name == "NVIDIA H200"
    scripted.num_gpus = 2
    with (
        pytest.raises(MeasureError, match="cuda:0: CUDA does not tell which of several GPUs"),
        open_gpu("cuda:0"),
    ):
        pass
    assert scripted.open == 0


@pytest.mark.parametrize(
    ("pids", "in_container", "others", "certain", "num_others"),
    [
        ([], False, [], True, 0),
        (["own"], False, [], True, 0),
        (["own", 77], False, [77], True, 1),
        ([77], False, [77], True, 1),  # before this process has touched the device
        ([77], True, [77], False, 0),  # this process, under the host's number
        ([77, 78], True, [77, 78], False, 1),
        (["own", 77], True, [77], True, 1),  # a driver that translates the numbers
    ],
)
def test_users_leave_this_process_out_under_whichever_number(
    scripted: ScriptedNvml,
    monkeypatch: pytest.MonkeyPatch,
    pids: list[int | str],
    in_container: bool,
    others: list[int],
    certain: bool,
    num_others: int,
) -> None:
    monkeypatch.setattr(nvml, "_in_container", lambda: in_container)
    scripted.processes = [(os.getpid() if pid == "own" else pid, 1 << 20) for pid in pids]
    with open_gpu("cuda:0") as gpu:
        users = gpu.users()
        assert users is not None
        assert [process.pid for process in users.others] == others
        assert (users.certain, users.num_others) == (certain, num_others)
