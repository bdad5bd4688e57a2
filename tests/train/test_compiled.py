"""Training through torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import equal, interrupted, net, settings, still, timeless, trained
from torch import Tensor, nn

from ticket_export.errors import MissingDependency
from ticket_export.train import compiled as module
from ticket_export.train.compiled import compiled

COMPILER_WARNINGS = pytest.mark.filterwarnings("ignore")  # Inductor's own, of its own dependencies


def test_what_is_compiled_is_the_step_and_names_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def eager(function: Any, **options: Any) -> Any:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", eager)
    monkeypatch.setattr(module, "offer", lambda *_, **__: type("Ready", (), {"commands": ()}))
    model = net()
    result = trained(model, settings(compile=True))
    assert asked == [{"dynamic": False}]
    assert list(result.weights) == list(net().state_dict())
    assert equal(result.weights, trained().weights)


def test_each_training_has_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchDynamo counts what it compiled by code object, and falls back to slow Python after eight."""
    functions: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: functions.append(function) or function)
    monkeypatch.setattr(module, "offer", lambda *_, **__: type("Ready", (), {"commands": ()}))
    for _ in range(2):
        call = compiled(nn.Linear(2, 2), torch.device("cpu"))
        assert call(torch.zeros(1, 2)).shape == (1, 2)
    first, second = functions
    assert first.__code__ is not second.__code__


def test_a_missing_compiler_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependency, match=r"train\.compile needs what builds kernels for cpu") as error:
        trained(made=settings(compile=True))
    assert error.value.hint == (
        "apt install g++, or name a C++ compiler in the variable CXX; or set train.compile to false"
    )


@COMPILER_WARNINGS
@pytest.mark.slow
def test_a_compiled_training_learns_what_the_plain_one_learns_and_resumes(tmp_path: Path) -> None:
    made = settings(compile=True, momentum=0.0, nesterov=False)
    whole = trained(still(), made)
    plain = trained(still(), settings(momentum=0.0, nesterov=False))
    assert whole.weights.keys() == plain.weights.keys()
    for name, value in plain.weights.items():
        torch.testing.assert_close(whole.weights[name], value, rtol=1e-3, atol=1e-4)
    interrupted(tmp_path, settings(compile=True), 3)
    resumed = trained(net(9), settings(compile=True), checkpoint_folder=tmp_path)
    again = trained(net(), settings(compile=True))
    assert equal(resumed.weights, again.weights)
    assert timeless(resumed) == timeless(again)


@COMPILER_WARNINGS
@pytest.mark.slow
def test_nine_compiled_trainings_in_one_process_all_run_compiled_code() -> None:
    calls = 0

    class Counted(nn.Module):
        """Counts how often Python runs its forward: while compiling, and in validations."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.ReLU(), nn.Linear(width, 3))

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return self.body(x_NCHW)

    from torch._dynamo.utils import counters

    for width in range(4, 13):
        counters.clear()
        trained(Counted(width), settings(compile=True, epochs=1))
        calls += counters["stats"]["unique_graphs"]
    assert calls == 9  # one graph each, the ninth too
