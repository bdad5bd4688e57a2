"""One NVIDIA GPU as its driver tells of it: clocks, heat, power, energy, who else computes on it.

Everything is read, nothing is set. A number the device or the driver does not have is None.
Source of names and units: NVML API reference (docs.nvidia.com/deploy/nvml-api) and nvidia-ml-py.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticket_export.errors import MeasureError, MissingDependency

if TYPE_CHECKING:
    from types import ModuleType

# nvml.h, nvmlClocksEventReason*: the bits never change, their names in the Python module did
THROTTLE_BITS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
    0x200: "board limit",
    0x400: "reliability limit",
}
USER_CLOCKS_BIT = 0x2
_HOST_PID_NAMESPACE = 4026531836  # PROC_PID_INIT_INO in the kernel: outside every container
_PCI_TEXT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """What a GPU did at one moment.

    Attributes:
        sm_clock_mhz, memory_clock_mhz: clocks now.
        temperature_c: of the chip.
        power_w: of the board; most devices average it over the last second.
        throttles: why the clocks are lower than they could be, of `THROTTLE_BITS`.
        user_clocks: whether someone has set the clocks.
    """

    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    throttles: tuple[str, ...]
    user_clocks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds a compute context on the GPU; `memory_bytes` is None where that is not told."""

    pid: int
    memory_bytes: int | None

    def __str__(self) -> str:
        if self.memory_bytes is None:
            return f"pid {self.pid}"
        return f"pid {self.pid} ({self.memory_bytes / 2**20:,.0f} MiB)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """Who computes on the GPU beside this process.

    Attributes:
        others: every process that holds a context, this one left out.
        certain: False in a container that shows the numbers of the host, under which this process cannot find
            itself: one of `others` may then be this one.
    """

    others: tuple[GpuProcess, ...]
    certain: bool

    @property
    def num_others(self) -> int:
        """How many surely are not this process."""
        return len(self.others) if self.certain else max(len(self.others) - 1, 0)


class Gpu:
    """An open NVML handle."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:  # Any: an opaque pointer of nvidia-ml-py
        self._nvml, self._handle = nvml, handle
        name = self._told("nvmlDeviceGetName")
        self.name = name.decode() if isinstance(name, bytes) else str(name or "NVIDIA GPU")
        self.max_sm_clock_mhz: float | None = self._told("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
        mode = self._told("nvmlDeviceGetMigMode")
        self.divided = bool(mode and mode[0])  # MIG: other tenants share clocks and power

    def sample(self) -> GpuSample:
        """Return the state now: five calls into the driver."""
        bits = self._told("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 know it by its old name only
            bits = self._told("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        power_mw = self._told("nvmlDeviceGetPowerUsage")
        return GpuSample(
            sm_clock_mhz=self._told("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._told("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM),
            temperature_c=self._told("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / 1e3,
            throttles=tuple(word for bit, word in THROTTLE_BITS.items() if bits & bit),
            user_clocks=bool(bits & USER_CLOCKS_BIT),
        )

    def energy_j(self) -> float | None:
        """Return the board's energy since the driver was loaded (Volta and newer), host excluded."""
        energy_mj = self._told("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy_mj is None else energy_mj / 1e3

    def utilisation_fraction(self) -> float | None:
        """Return the share of the driver's last sample period (1/6 to 1 s) in which a kernel ran."""
        rates = self._told("nvmlDeviceGetUtilizationRates")
        return None if rates is None else rates.gpu / 100.0

    def users(self) -> Users | None:
        """Return the processes that compute here; None where the driver does not tell."""
        found = self._told("nvmlDeviceGetComputeRunningProcesses")
        if found is None:
            return None
        everyone = [GpuProcess(pid=each.pid, memory_bytes=each.usedGpuMemory) for each in found]
        others = tuple(process for process in everyone if process.pid != os.getpid())
        return Users(others=others, certain=len(others) < len(everyone) or not _in_container())

    def _told(self, name: str, *arguments: Any) -> Any:  # Any: whatever that call takes and returns
        """Return what the driver says, None where this driver, module or device does not know it."""
        call = getattr(self._nvml, name, None)
        if call is None:
            return None
        try:
            return call(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


@contextmanager
def nvml() -> Iterator[ModuleType]:
    """Yield nvidia-ml-py, ready to be asked, and let go of the driver at the end.

    Raises:
        MissingDependency: nvidia-ml-py is not installed, or there is no NVIDIA driver that answers.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingDependency("nvidia-ml-py is not installed", hint="pip install nvidia-ml-py") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MissingDependency(
            f"the NVIDIA driver cannot be asked: {error}",
            hint="install the driver, or give the container its utility capability",
        ) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:  # a device that is lost, for one
        raise MissingDependency(
            f"the NVIDIA driver fails: {error}", hint="look at nvidia-smi and dmesg"
        ) from error
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def open_gpu(device: str) -> Iterator[Gpu]:
    """Yield the GPU that CUDA calls `device`, e.g. "cuda:1".

    CUDA may number its devices in another order than NVML and leave some out (CUDA_VISIBLE_DEVICES), so the
    two are matched by their place on the PCI bus.

    Raises:
        MissingDependency: nvidia-ml-py or the driver is missing.
        MeasureError: NVML has no such device, or several and CUDA does not tell which one is meant.
    """
    ordinal = int(device.partition(":")[2] or 0)
    with nvml() as module:
        place = _pci_place(ordinal)
        try:
            if place is not None:
                handle = module.nvmlDeviceGetHandleByPciBusId(place)
            elif module.nvmlDeviceGetCount() == 1:
                handle = module.nvmlDeviceGetHandleByIndex(0)
            else:
                raise MeasureError(f"{device}: CUDA does not tell which of several GPUs it is")
        except module.NVMLError as error:
            raise MeasureError(f"{device}: NVML does not know it: {error}") from error
        yield Gpu(module, handle)


def driver_version(module: ModuleType) -> str:
    """Return the driver's version, e.g. "580.82.07".

    Args:
        module: as `nvml` yields it.
    """
    told = module.nvmlSystemGetDriverVersion()
    return told.decode() if isinstance(told, bytes) else str(told)


def all_gpus(module: ModuleType) -> list[Gpu]:
    """Return every GPU that NVML lists, in its order.

    Args:
        module: as `nvml` yields it.
    """
    return [Gpu(module, module.nvmlDeviceGetHandleByIndex(i)) for i in range(module.nvmlDeviceGetCount())]


def _pci_place(ordinal: int) -> str | None:
    """Return the PCI bus id of CUDA's device `ordinal`, e.g. "0000:3B:00.0"; None when CUDA has none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, text = ctypes.c_int(), ctypes.create_string_buffer(_PCI_TEXT_BYTES)
    failed = (  # CUDA_SUCCESS is 0; the first failure ends it
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), ctypes.c_int(ordinal))
        or cuda.cuDeviceGetPCIBusId(text, ctypes.c_int(_PCI_TEXT_BYTES), device)
    )
    return None if failed else text.value.decode("ascii")


def _in_container() -> bool:
    """Return whether this process sees process numbers of its own; True also where that cannot be known."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino != _HOST_PID_NAMESPACE
    except OSError:
        return True
