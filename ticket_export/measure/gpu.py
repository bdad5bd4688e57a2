"""A GPU under watch while subjects are timed on it: refused when busy, sampled per block, its energy counted.

A block is one subject's timed calls in one round. Within it a thread asks the driver `SAMPLE_HZ` times a
second, and once more at its end, so that the shortest block has a sample. See `GpuWatch` for what that costs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from ticket_export.errors import BusyDeviceError, MeasureError, MissingDependency
from ticket_export.measure.nvml import Gpu, GpuSample, open_gpu

SAMPLE_HZ = 10.0
BUSY_LIMIT = 0.10  # utilisation of a device on which nobody computes; a desktop's drawing stays below
_BUSY_HINT = "stop it, wait, or take another device (CUDA_VISIBLE_DEVICES)"
BUSY_WAIT_S = 2.0  # the driver's sample period is up to 1 s, and loading the subjects kept the device busy


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBlock:
    """What the GPU did while one subject was timed in one round. None: the device does not tell.

    Attributes:
        num_samples: how often it was asked, at least once.
        sm_clock_mhz, memory_clock_mhz, power_w: means over the samples; power is the board's, which most
            devices average over a second, so that short blocks share it.
        max_sm_clock_mhz: how high the SM clock may rise.
        temperature_c: the highest.
        throttled: samples by the reason that held the clocks down, of `nvml.THROTTLE_BITS`.
        user_clocks: whether someone has set the clocks.
        energy_j: difference of the board's energy counter over the block, host excluded. The counter moves
            every 20 to 100 ms, so a single short block says little; see `Measurement.energy_per_image_j`.
        wall_s: seconds between the two readings of the counter.
        other_processes: how many processes beside this one held the device at the end of the block.
    """

    num_samples: int
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    max_sm_clock_mhz: float | None
    temperature_c: float | None
    throttled: dict[str, int] = field(default_factory=dict)
    user_clocks: bool = False
    energy_j: float | None = None
    wall_s: float = 0.0
    other_processes: int | None = None


class GpuWatch:
    """Samples one GPU between `start` and `stop`.

    The thread sleeps on a lock between its samples and lets go of Python's lock inside every driver call; the
    device's own clock, the CUDA event, does not see it. A clock of the host hardly does: five calls of 0.1 ms
    at 10 and at 100 Hz moved the median of a 0.40 ms inference by +0.4 +- 0.8 % and -0.2 +- 0.6 % (95 %, 60
    pairs of blocks, two busy cores). Energy and other processes are asked for outside the timed calls.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._samples: list[GpuSample] | None = None
        self._energy_j: float | None = None
        self._start_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Begin a block."""
        self._start_s, self._energy_j = time.perf_counter(), self._gpu.energy_j()
        self._samples = []

    def stop(self) -> GpuBlock:
        """End the block and return what was seen in it."""
        assert self._samples is not None
        samples, self._samples = self._samples, None
        samples.append(self._gpu.sample())
        energy_j, wall_s = self._gpu.energy_j(), time.perf_counter() - self._start_s
        known = energy_j is not None and self._energy_j is not None and not self._gpu.divided
        users = self._gpu.users()
        words = [word for sample in samples for word in sample.throttles]
        return GpuBlock(
            num_samples=len(samples),
            sm_clock_mhz=_mean([sample.sm_clock_mhz for sample in samples]),
            memory_clock_mhz=_mean([sample.memory_clock_mhz for sample in samples]),
            power_w=_mean([sample.power_w for sample in samples]),
            max_sm_clock_mhz=self._gpu.max_sm_clock_mhz,
            temperature_c=max(
                (s.temperature_c for s in samples if s.temperature_c is not None), default=None
            ),
            throttled={word: words.count(word) for word in sorted(set(words))},
            user_clocks=any(sample.user_clocks for sample in samples),
            energy_j=energy_j - self._energy_j if known else None,  # type: ignore[operator]  # both known
            wall_s=wall_s,
            other_processes=None if users is None or self._gpu.divided else users.num_others,
        )

    def close(self) -> None:
        """End the thread; one that waits for a driver that hangs is left behind."""
        self._ended.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._ended.wait(1.0 / SAMPLE_HZ):
            block = self._samples
            if block is not None:
                block.append(self._gpu.sample())


@contextmanager
def watched(device: str) -> Iterator[tuple[GpuWatch | None, str | None]]:
    """Yield a watch over `device` and the reason why there is none; neither for a CPU.

    Raises:
        BusyDeviceError: another process computes on the device.
    """
    if not device.startswith("cuda"):
        yield None, None
        return
    with ExitStack() as stack:
        watch, unknown = None, None
        try:
            gpu = stack.enter_context(open_gpu(device))
        except (MissingDependency, MeasureError) as error:
            hint = f" ({error.hint})" if error.hint else ""
            unknown = f"clocks and other users of {device} are unknown: {error.message}{hint}"
        else:
            unknown = require_quiet(gpu, device)
            watch = GpuWatch(gpu)
            stack.callback(watch.close)
        yield watch, unknown


def require_quiet(gpu: Gpu, device: str) -> str | None:
    """Return None when nobody else computes on the device, or the reason why that is not known.

    Raises:
        BusyDeviceError: another process holds it, with its pid and memory; or it is at work though this
            process is not, which is how a container shows processes that it hides. Where this process cannot
            be told from the others, they are not refused for being there: that is a reason only.
    """
    if gpu.divided:
        return f"busy neighbour not ruled out: {device} is a slice (MIG), the others share its clocks"
    users = gpu.users()
    told = "" if users is None else ", ".join(map(str, users.others))
    if users is not None and users.certain and users.others:
        raise BusyDeviceError(f"measure: {device} ({gpu.name}) is in use by {told}", hint=_BUSY_HINT)
    until_s = time.monotonic() + BUSY_WAIT_S
    while (share := gpu.utilisation_fraction()) is not None and share > BUSY_LIMIT:
        if time.monotonic() > until_s:
            who = f"among {told}" if told else "the process is hidden from this one"
            raise BusyDeviceError(
                f"measure: {device} ({gpu.name}) is {share:.0%} busy while nothing is timed "
                f"(limit {BUSY_LIMIT:.0%}); {who}",
                hint=_BUSY_HINT,
            )
        time.sleep(0.1)
    if users is None and share is None:
        return f"busy neighbour not ruled out: the driver does not tell who uses {device}"
    if users is not None and users.num_others > 0:
        return f"busy neighbour not ruled out: {told} hold {device}, and one of them may be this process"
    return None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
