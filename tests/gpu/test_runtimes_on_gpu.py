from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ticket_export as te
from ticket_export.errors import DeviceError, MeasureError, MissingDependency
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol
from ticket_export.models.load import build
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import Array, Runner

IMAGES = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
# TF32 rounds what is multiplied to 10 bits, and a ResNet-20 adds that up over 20 layers
TF32_ERROR = 2e-2
FP32_ERROR = 1e-4


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build("zoo:resnet20", num_classes=10, image_shape=(3, 32, 32)).eval()


@pytest.fixture(scope="module")
def onnx_file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "resnet20.onnx"
    return te.onnx_from_module(network, path, (torch.from_numpy(IMAGES),))


@pytest.fixture(scope="module")
def expected(network: nn.Module) -> Array:
    """What the network says on the CPU, in full fp32."""
    with torch.no_grad():
        return network(torch.from_numpy(IMAGES)).numpy()


Open = Callable[..., Runner]


@pytest.fixture
def opened(network: nn.Module, onnx_file: Path) -> Iterator[Open]:
    """Open runners of the network by runtime name; ort-cuda is skipped where it is not installed."""
    with ExitStack() as stack:

        def opener(runtime: str, **kwargs: bool) -> Runner:
            try:
                if runtime == "ort-cuda":
                    return stack.enter_context(open_runner(onnx_file, runtime, device="cuda:0", **kwargs))
                return stack.enter_context(
                    open_runner(network, runtime, device="cuda:0", example_inputs=(IMAGES,), **kwargs)
                )
            except MissingDependency as error:
                pytest.skip(str(error))

        yield opener


def error_against(expected: Array, runner: Runner, images: Mapping[str, Array]) -> float:
    (logits,) = runner.infer(images).values()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def named(runner: Runner, array: Array) -> dict[str, Array]:
    (name,) = runner.input_specs
    return {name: array}


@pytest.mark.usefixtures("full_fp32")
@pytest.mark.parametrize("runtime", ["torch", "torch-compile", "torch-cudagraph"])
@pytest.mark.filterwarnings("ignore")  # Inductor's own
def test_every_form_of_torch_computes_on_the_gpu_what_the_network_does_on_the_cpu(
    opened: Open, expected: Array, runtime: str
) -> None:
    runner = opened(runtime)
    assert error_against(expected, runner, named(runner, IMAGES)) < FP32_ERROR
    assert runner.settings["layout"] == "channels_last"
    assert runner.settings["tf32"] == "off"


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_onnx_runtime_computes_on_the_gpu_what_the_network_does_on_the_cpu(
    opened: Open, expected: Array, cuda_graph: bool
) -> None:
    runner = opened("ort-cuda", cuda_graph=cuda_graph)
    assert error_against(expected, runner, named(runner, IMAGES)) < TF32_ERROR
    for part in (slice(0, 1), slice(2, 7)):  # other batches, other graphs
        assert error_against(expected[part], runner, named(runner, IMAGES[part])) < TF32_ERROR


def test_without_tf32_onnx_runtime_is_as_exact_on_the_gpu_as_on_the_cpu(
    onnx_file: Path, expected: Array
) -> None:
    from ticket_export.runtime.ort_cuda import OrtCudaRunner

    try:
        runner = OrtCudaRunner(onnx_file, tf32=False)
    except MissingDependency as error:
        pytest.skip(str(error))
    with runner:
        assert error_against(expected, runner, named(runner, IMAGES)) < FP32_ERROR


def test_a_graph_of_torch_follows_new_inputs_and_renewed_weights(opened: Open) -> None:
    eager, graph = opened("torch"), opened("torch-cudagraph")
    for turn in range(3):
        images = named(eager, np.roll(IMAGES, turn, axis=0) * (turn + 1))
        np.testing.assert_allclose(
            graph.infer(images)["logits"], eager.infer(images)["logits"], rtol=1e-2, atol=1e-2
        )
        graph.renew()


def test_a_graph_of_onnx_runtime_follows_new_inputs_and_new_buffers(opened: Open) -> None:
    plain, graph = opened("ort-cuda", cuda_graph=False), opened("ort-cuda", cuda_graph=True)
    for turn in range(3):
        images = named(plain, np.roll(IMAGES, turn, axis=0) * (turn + 1))
        (ours,), (theirs,) = graph.infer(images).values(), plain.infer(images).values()
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)
        graph.renew()


@pytest.mark.parametrize("runtime", ["torch", "torch-compile", "torch-cudagraph", "ort-cuda"])
@pytest.mark.filterwarnings("ignore")  # Inductor's own
@pytest.mark.parametrize("scope", ["compute", "end_to_end"])
def test_every_runtime_times_a_pair_on_the_gpu(opened: Open, runtime: str, scope: str) -> None:
    runners = {"one": opened(runtime), "two": opened(runtime)}
    protocol = Protocol(rounds=5, samples=5, scope=scope, warmup_cap_s=0.2)
    measured = measure_interleaved(runners, batch=8, protocol=protocol)
    for measurement in measured.values():
        assert (measurement.runtime, measurement.device) == (runtime, "cuda:0")
        assert ((measurement.samples_s > 0.0) & (measurement.samples_s < 0.5)).all()


def test_a_network_of_many_small_kernels_gains_by_a_graph(device: torch.device) -> None:
    network = nn.Sequential(*[layer for _ in range(50) for layer in (nn.Linear(16, 16), nn.ReLU())])
    x = np.ones((1, 16), np.float32)
    medians_s = {}
    for runtime in ("torch", "torch-cudagraph"):
        with open_runner(network, runtime, device="cuda:0", example_inputs=(x,)) as runner:
            runner.time_once({"input": x}, "compute")
            medians_s[runtime] = np.median([runner.time_once({"input": x}, "compute") for _ in range(50)])
    assert medians_s["torch-cudagraph"] < 0.7 * medians_s["torch"]


def test_memory_that_runs_out_is_told_with_the_batch_and_the_next_run_works(device: torch.device) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.ones(1, 1 << 22))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.row).sum(1, keepdim=True)

    with open_runner(
        Outer(), "torch", device="cuda:0", example_inputs=(np.ones((2, 1), np.float32),)
    ) as runner:
        with pytest.raises(DeviceError, match=f"torch: out of memory at batch {1 << 20}"):
            runner.infer({"input": np.ones((1 << 20, 1), np.float32)})  # 16 TB
        assert runner.infer({"input": np.ones((1, 1), np.float32)})["logits"] == pytest.approx(1 << 22)


def test_a_device_that_is_not_there_is_refused(network: nn.Module, onnx_file: Path) -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises((MeasureError, MissingDependency), match=r"cuda|CUDA|device"):
        open_runner(onnx_file, "ort-cuda", device=absent)
    with pytest.raises((MeasureError, MissingDependency), match=absent):
        open_runner(network, "torch", device=absent, example_inputs=(IMAGES,))
