from __future__ import annotations

import math
import time
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import speedup
from ticket_export.models.load import build
from ticket_export.runtime.registry import open_runner
from ticket_export.shrink.surgery import small_from_mask

IMAGES = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)


def half_as_wide(dense: nn.Module) -> nn.Module:
    groups = channel_groups(dense, torch.from_numpy(IMAGES))
    return small_from_mask(
        dense,
        groups,
        Mask({g.name: torch.arange(g.width) < g.width // 2 for g in groups if g.pinned is None}),
    )


@pytest.mark.parametrize("scope", ["compute", "end_to_end"])
def test_the_torch_runtime_times_two_networks_on_the_gpu(device: torch.device, scope: str) -> None:
    dense = build("zoo:resnet20", num_classes=10, image_shape=(3, 32, 32))
    networks = {"dense": dense, "half": half_as_wide(dense)}
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(
                open_runner(network, "torch", device=str(device), example_inputs=(IMAGES,))
            )
            for name, network in networks.items()
        }
        measured = measure_interleaved(
            runners, batch=8, protocol=Protocol(rounds=5, samples=5, scope=scope, warmup_cap_s=0.2)
        )
    for measurement in measured.values():
        assert (measurement.runtime, measurement.device) == ("torch", str(device))
        assert measurement.samples_s.shape == (5, 5)
        assert ((measurement.samples_s > 0.0) & (measurement.samples_s < 10.0)).all()
    found = speedup(measured["dense"], measured["half"])
    assert 0.0 < found.low <= found.ratio <= found.high
    assert math.isfinite(found.high)


@pytest.mark.usefixtures("full_fp32")
def test_the_torch_runtime_computes_on_the_gpu_what_it_computes_on_the_cpu(device: torch.device) -> None:
    network = build("zoo:resnet20", num_classes=10, image_shape=(3, 32, 32))
    told = {}
    for place in ("cpu", str(device)):
        with open_runner(network, "torch", device=place, example_inputs=(IMAGES,)) as runner:
            told[place] = torch.from_numpy(runner.infer({"input": IMAGES})["logits"])
    on_cpu, on_gpu = told["cpu"], told[str(device)]
    assert float((on_gpu - on_cpu).abs().max() / on_cpu.abs().max()) < 1e-4
    assert next(network.parameters()).device.type == "cpu"  # the runner owns a copy


def test_a_longer_job_takes_longer_by_the_events_of_the_device(device: torch.device) -> None:
    class Repeated(nn.Module):
        def __init__(self, num_products: int) -> None:
            super().__init__()
            self.num_products = num_products
            self.weight = nn.Parameter(torch.eye(1024))

        def forward(self, x_NF: Tensor) -> Tensor:
            for _ in range(self.num_products):
                x_NF = x_NF @ self.weight
            return x_NF

    inputs = {"input": np.ones((1024, 1024), dtype=np.float32)}
    medians_s = []
    for num_products in (4, 64):
        module, samples_s = Repeated(num_products), []
        with open_runner(module, "torch", device=str(device), example_inputs=(inputs["input"],)) as runner:
            for _ in range(9):
                start_s = time.perf_counter()
                samples_s.append(runner.time_once(inputs, "compute"))
                assert 0.0 < samples_s[-1] < time.perf_counter() - start_s  # seconds, and of this call
        medians_s.append(float(np.median(samples_s)))
    assert medians_s[1] > 4 * medians_s[0]  # 16 times the work
