from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ticket_export.errors import MeasureError
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import TensorSpec


@pytest.fixture
def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9)).train()


IMAGES = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(5, 1, 2, 2)


def test_infer_computes_the_module_in_eval_mode_and_leaves_it_alone(module: nn.Module) -> None:
    expected = copy.deepcopy(module).eval()(torch.from_numpy(IMAGES)).detach().numpy()
    before = copy.deepcopy(module.state_dict())
    with open_runner(module, "torch", example_inputs=(IMAGES[:1],)) as runner:
        np.testing.assert_array_equal(runner.infer({"input": IMAGES})["logits"], expected)
        runner.renew()
        np.testing.assert_array_equal(runner.infer({"input": IMAGES})["logits"], expected)
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("scope", ["compute", "end_to_end"])
def test_timing_returns_seconds_and_puts_the_thread_count_back(module: nn.Module, scope: str) -> None:
    before = torch.get_num_threads()
    with open_runner(module, "torch", threads=before + 1, example_inputs=(IMAGES,)) as runner:
        assert 0.0 < runner.time_once({"input": IMAGES}, scope) < 1.0
    assert torch.get_num_threads() == before


def test_inference_runs_on_the_threads_asked_for() -> None:
    seen: list[int] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x

    threads = torch.get_num_threads() + 1
    with open_runner(Spy(), "torch", threads=threads, example_inputs=(IMAGES,)) as runner:
        runner.infer({"input": IMAGES})
        runner.time_once({"input": IMAGES}, "compute")
    assert seen == [threads, threads]


def test_several_inputs_and_outputs_are_numbered() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a - b

    ones = np.ones((2, 3), dtype=np.float32)
    with open_runner(Two(), "torch", example_inputs=(ones, ones)) as runner:
        outputs = runner.infer({"input_0": 3 * ones, "input_1": ones})
        specs = runner.output_specs
    assert {name: float(array[0, 0]) for name, array in outputs.items()} == {"output_0": 4.0, "output_1": 2.0}
    assert specs == {
        name: TensorSpec(name=name, dtype="float32", shape=(None, 3)) for name in ("output_0", "output_1")
    }


def test_precision_is_the_dtype_of_the_parameters(module: nn.Module) -> None:
    expected = copy.deepcopy(module).eval()(torch.from_numpy(IMAGES)).detach().numpy()
    names = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16"}
    for dtype, name in names.items():
        with open_runner(copy.deepcopy(module).to(dtype), "torch", example_inputs=(IMAGES,)) as runner:
            assert runner.precision == name
            half = runner.infer({"input": IMAGES})["logits"].astype(np.float32)
            np.testing.assert_allclose(half, expected, atol=0.02)
    module[1].bias.data = module[1].bias.data.double()
    with pytest.raises(MeasureError, match=r"torch\.float32.*torch\.float64"):
        open_runner(module, "torch", example_inputs=(IMAGES,))


def test_a_file_a_module_for_ort_and_missing_examples_are_refused(module: nn.Module) -> None:
    with pytest.raises(MeasureError, match=r"got the file net\.onnx"):
        open_runner(Path("net.onnx"), "torch")
    with pytest.raises(MeasureError, match="got a Sequential"):
        open_runner(module, "ort-cpu")
    with pytest.raises(MeasureError, match="needs example_inputs"):
        open_runner(module, "torch")
    with (
        open_runner(module, "torch", example_inputs=(IMAGES,)) as runner,
        pytest.raises(MeasureError, match=r"float64 \[5, 1, 2, 2\]"),
    ):
        runner.infer({"input": IMAGES.astype(np.float64)})
