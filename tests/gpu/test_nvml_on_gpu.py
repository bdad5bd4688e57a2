"""What the real driver tells of a real GPU, and that a device in use is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from ticket_export.errors import BusyDeviceError
from ticket_export.measure.gpu import GpuBlock, GpuWatch
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.nvml import Gpu, open_gpu
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.registry import open_runner

pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: pip install nvidia-ml-py")

IMAGES = np.zeros((64, 2048), dtype=np.float32)
OCCUPY = (
    "import sys, torch; x = torch.zeros(1 << 26, device='cuda'); print('up', flush=True); sys.stdin.read()"
)


@pytest.fixture
def gpu(device: torch.device) -> Iterator[Gpu]:
    torch.zeros(1, device=device)  # this process has a context of its own, as when it measures
    with open_gpu(str(device)) as opened:
        yield opened


def work_for(seconds: float, device: torch.device) -> None:
    a = torch.randn(4096, 4096, device=device)
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for _ in range(10):
            a = (a @ a).clamp(-1, 1)
        torch.cuda.synchronize(device)


def test_the_device_is_the_one_that_cuda_means(gpu: Gpu, device: torch.device) -> None:
    assert gpu.name == torch.cuda.get_device_name(device)


def test_a_sample_is_in_the_units_it_says(gpu: Gpu, device: torch.device) -> None:
    work_for(0.5, device)
    sample = gpu.sample()
    assert sample.sm_clock_mhz is not None
    assert gpu.max_sm_clock_mhz is not None
    assert 100 < sample.sm_clock_mhz <= gpu.max_sm_clock_mhz < 5000
    assert sample.temperature_c is not None
    assert 10 < sample.temperature_c < 110
    assert sample.power_w is not None
    assert 5.0 < sample.power_w < 2000.0


def test_work_costs_more_energy_than_rest(gpu: Gpu, device: torch.device) -> None:
    if gpu.energy_j() is None:
        pytest.skip(f"{gpu.name} has no energy counter")
    watch = GpuWatch(gpu)
    blocks: list[GpuBlock] = []
    for step in (lambda: work_for(2.0, device), lambda: time.sleep(2.0)):
        watch.start()
        step()
        blocks.append(watch.stop())
    watch.close()
    powers_w = [block.energy_j / block.wall_s for block in blocks if block.energy_j is not None]
    assert len(powers_w) == 2
    assert powers_w[0] > 1.2 * powers_w[1] > 0.0
    assert all(block.num_samples > 10 for block in blocks)


def linear(device: torch.device) -> dict[str, object]:
    return {"source": nn.Linear(2048, 2048), "runtime": "torch", "device": str(device)}


def test_a_measurement_on_the_gpu_holds_a_block_per_round(gpu: Gpu, device: torch.device) -> None:
    protocol = Protocol(rounds=5, samples=200, warmup_cap_s=0.2)
    with open_runner(**linear(device), example_inputs=(IMAGES,)) as runner:  # type: ignore[arg-type]
        found = measure_interleaved({"a": runner}, batch=64, protocol=protocol)["a"]
    assert found.cores is None
    assert len(found.gpu) == 5
    assert all(block.num_samples >= 1 and block.sm_clock_mhz for block in found.gpu)
    assert not any("unknown" in reason for reason in found.reasons)


def test_a_device_in_use_is_refused(gpu: Gpu, device: torch.device) -> None:
    users = gpu.users()
    if gpu.divided or users is None or not users.certain:
        pytest.skip("this driver or container does not tell who uses the device")
    command = [sys.executable, "-c", OCCUPY]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
        open_runner(**linear(device), example_inputs=(IMAGES,)) as runner,  # type: ignore[arg-type]
    ):
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        with pytest.raises(BusyDeviceError, match=r"in use by .*pid \d+"):
            measure_interleaved({"a": runner}, batch=64, protocol=Protocol(rounds=5, samples=5))
        other.stdin.close()
