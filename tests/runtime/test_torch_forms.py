from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from ticket_export.errors import DeviceError, MeasureError, MissingDependency
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.torch_eager import TorchRunner

IMAGES = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(6, 1, 2, 2)
COMPILER_WARNINGS = pytest.mark.filterwarnings("ignore")  # Inductor's own, of its own dependencies


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))


@pytest.fixture
def num_compiled() -> Iterator[list[int]]:
    """A list whose last entry is how many graphs TorchDynamo has compiled since the test began."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()

    class Live(list[int]):
        def __getitem__(self, index: object) -> int:  # type: ignore[override]
            return int(counters["stats"]["unique_graphs"])

    yield Live()
    torch._dynamo.reset()


@COMPILER_WARNINGS
def test_compiled_networks_compute_what_eager_ones_do_and_compile_once_per_shape(
    net: nn.Module, num_compiled: list[int]
) -> None:
    expected = copy.deepcopy(net).eval()(torch.from_numpy(IMAGES)).detach().numpy()
    with open_runner(net, "torch-compile", example_inputs=(IMAGES,)) as runner:
        assert (runner.name, runner.device, runner.precision) == ("torch-compile", "cpu", "fp32")
        assert runner.settings == {"layout": "contiguous", "compile_mode": "default"}
        np.testing.assert_allclose(runner.infer({"input": IMAGES})["logits"], expected, rtol=1e-5, atol=1e-6)
        assert num_compiled[-1] == 1
        runner.renew()
        for scope in ("compute", "end_to_end"):
            assert 0.0 < runner.time_once({"input": IMAGES}, scope) < 0.1
        np.testing.assert_allclose(runner.infer({"input": IMAGES})["logits"], expected, rtol=1e-5, atol=1e-6)
        assert num_compiled[-1] == 1
        runner.infer({"input": IMAGES[:2]})
        assert num_compiled[-1] == 2


@COMPILER_WARNINGS
def test_a_first_run_at_a_shape_compiles_before_the_clock_starts(net: nn.Module) -> None:
    with open_runner(net, "torch-compile", example_inputs=(IMAGES,)) as runner:
        assert runner.time_once({"input": IMAGES[:5]}, "compute") < 0.05
        assert runner.time_once({"input": IMAGES[:4]}, "end_to_end") < 0.05


@COMPILER_WARNINGS
def test_networks_of_one_class_do_not_use_up_each_others_compilations(num_compiled: list[int]) -> None:
    class Scale(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.flatten(1).sum(1, keepdim=True) * self.weight).sum(1, keepdim=True)

    # more networks than TorchDynamo may keep graphs of one piece of code
    for width in range(1, 5):
        with (
            torch._dynamo.config.patch(recompile_limit=2),
            open_runner(Scale(width), "torch-compile", example_inputs=(IMAGES,)) as runner,
        ):
            sums = IMAGES.reshape(6, -1).sum(1, keepdims=True)
            np.testing.assert_allclose(runner.infer({"input": IMAGES})["logits"], width * sums, rtol=1e-5)
    assert num_compiled[-1] == 4


@COMPILER_WARNINGS
def test_without_a_working_compiler_the_error_says_how_to_get_one(
    net: nn.Module,
) -> None:
    from torch._inductor import config

    with (
        config.patch({"force_disable_caches": True, "cpp.cxx": (None, "no-such-compiler")}),
        open_runner(net, "torch-compile", example_inputs=(IMAGES,)) as runner,
        pytest.raises(MissingDependency, match=r"C\+\+ compiler(.|\n)*apt install g\+\+"),
    ):
        runner.infer({"input": IMAGES})


def test_cuda_graphs_are_refused_on_a_cpu_and_without_a_cuda_device(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MeasureError, match=r"'torch-cudagraph' captures CUDA graphs, got device 'cpu'"):
        open_runner(net, "torch-cudagraph", device="cpu", example_inputs=(IMAGES,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for runtime in ("torch", "torch-compile", "torch-cudagraph"):
        with pytest.raises(MissingDependency, match=rf"'{runtime}': torch .* sees no CUDA device"):
            open_runner(net, runtime, device="cuda:0", example_inputs=(IMAGES,))


def test_a_choice_that_a_runtime_does_not_leave_is_refused(net: nn.Module) -> None:
    for runtime in ("torch", "torch-compile", "torch-cudagraph"):
        with pytest.raises(MeasureError, match=f"'{runtime}' leaves no choice of a CUDA graph, got True"):
            open_runner(net, runtime, example_inputs=(IMAGES,), cuda_graph=True)


class Failing(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), DeviceError, "torch: out of memory at batch 6"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), DeviceError, "out of memory at batch 6"),
        (RuntimeError("CUDA error: device-side assert"), DeviceError, "torch: the device failed: CUDA error"),
        (RuntimeError("mat1 and mat2 shapes"), MeasureError, "torch: failed: mat1 and mat2 shapes"),
    ],
)
def test_what_torch_says_becomes_an_error_of_the_right_kind(
    error: Exception, kind: type[MeasureError], words: str
) -> None:
    with TorchRunner(Failing(error), example_inputs=(IMAGES,)) as runner:
        for call in (runner.infer, lambda inputs: runner.time_once(inputs, "compute")):
            with pytest.raises(MeasureError, match=words) as caught:
                call({"input": IMAGES})
            assert type(caught.value) is kind
            assert caught.value.exit_code == (3 if kind is DeviceError else 2)


@COMPILER_WARNINGS
def test_two_compiled_networks_are_timed_side_by_side(net: nn.Module) -> None:
    runners = {
        name: open_runner(net, "torch-compile", example_inputs=(IMAGES,)) for name in ("dense", "same")
    }
    measured = measure_interleaved(runners, batch=3, protocol=Protocol(rounds=5, samples=5))
    assert measured["dense"].settings == {"layout": "contiguous", "compile_mode": "default"}
    # a compilation takes a second and more: none is in a sample
    assert max(float(np.max(each.samples_s)) for each in measured.values()) < 0.1
