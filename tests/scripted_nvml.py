"""A stand-in for nvidia-ml-py: one made-up GPU, the real module's names, and a say in what it answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest


class NVMLError(Exception):
    """As in nvidia-ml-py: every failure is a kind of it."""


class ScriptedNvml:
    """Answers like a quiet H200; set an attribute to a value, or to an error to have it raised.

    Attributes are the answers of the functions that `answers` names.
    """

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.open = 0
        self.asked: list[str] = []
        self.num_gpus = 1
        self.name: Any = "NVIDIA H200"
        self.sm_clock: Any = 1980
        self.memory_clock: Any = 3201
        self.max_sm_clock: Any = 1980
        self.temperature: Any = 41
        self.power_mw: Any = 350_000
        self.bits: Any = 0
        self.energy_mj: Any = 0
        self.utilisation: Any = 0
        self.processes: Any = []
        self.mig: Any = NVMLError("Not Supported")
        self.driver: Any = "580.82.07"
        self.cuda: Any = 13000

    def _tell(self, name: str, value: Any) -> Any:
        self.asked.append(name)
        if isinstance(value, Exception):
            raise value
        return value() if callable(value) else value

    def nvmlInit(self) -> None:  # noqa: N802 - the real module's name, as all below
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.num_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        assert 0 <= index < self.num_gpus
        return f"gpu-{index}"

    def nvmlDeviceGetHandleByPciBusId(self, place: str) -> str:  # noqa: N802
        if place != "0000:3B:00.0":
            raise NVMLError("Not Found")
        return "gpu-0"

    def nvmlDeviceGetName(self, _handle: str) -> Any:  # noqa: N802
        return self._tell("name", self.name)

    def nvmlDeviceGetMaxClockInfo(self, _handle: str, kind: int) -> Any:  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return self._tell("max", self.max_sm_clock)

    def nvmlDeviceGetClockInfo(self, _handle: str, kind: int) -> Any:  # noqa: N802
        return self._tell("clock", self.sm_clock if kind == self.NVML_CLOCK_SM else self.memory_clock)

    def nvmlDeviceGetTemperature(self, _handle: str, sensor: int) -> Any:  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._tell("temperature", self.temperature)

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> Any:  # noqa: N802
        return self._tell("power", self.power_mw)

    def nvmlDeviceGetCurrentClocksEventReasons(self, _handle: str) -> Any:  # noqa: N802
        return self._tell("reasons", self.bits)

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> Any:  # noqa: N802
        return self._tell("energy", self.energy_mj)

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self._tell("utilisation", self.utilisation), memory=0)

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> Any:  # noqa: N802
        told = self._tell("processes", self.processes)
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in told]

    def nvmlDeviceGetMigMode(self, _handle: str) -> Any:  # noqa: N802
        return self._tell("mig", self.mig)

    def nvmlSystemGetDriverVersion(self) -> Any:  # noqa: N802
        return self._tell("driver", self.driver)

    def nvmlSystemGetCudaDriverVersion(self) -> Any:  # noqa: N802
        return self._tell("cuda", self.cuda)


def install(monkeypatch: pytest.MonkeyPatch, *, place: str | None = "0000:3B:00.0") -> ScriptedNvml:
    """Put a scripted GPU where `import pynvml` and CUDA find it; `place` is CUDA's word for where it is."""
    scripted = ScriptedNvml()
    monkeypatch.setitem(__import__("sys").modules, "pynvml", scripted)  # type: ignore[arg-type]
    monkeypatch.setattr("ticket_export.measure.nvml._pci_place", lambda _ordinal: place)
    return scripted
