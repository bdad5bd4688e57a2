"""te.engine_from_onnx on a scripted GPU, from the torch module to the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scripted_tensorrt import VERSIONS, Script, install
from tiny_net import make

import ticket_export as te
from ticket_export.runtime.registry import open_runner


@pytest.fixture(params=VERSIONS)
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Script:
    return install(monkeypatch, request.param)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.fixture(scope="module")
def exported(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    return te.onnx_from_module(network, path, torch.zeros(1, 1, 8, 8))


def test_an_engine_of_an_exported_network_computes_what_the_module_computes(
    script: Script, network: torch.nn.Module, exported: Path, tmp_path: Path
) -> None:
    path = te.engine_from_onnx(str(exported), str(tmp_path / "tiny.engine"), batches=[1, 4], builds=2)
    assert path == tmp_path / "tiny.engine"
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 1, 8, 8)).astype(np.float32))
    with open_runner(path, "tensorrt") as runner, torch.no_grad():
        logits = runner.infer({"input": x.numpy()})["logits"]
    np.testing.assert_allclose(logits, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    # the exporter writes opset 20, which the parser of 8.6 does not read
    assert set(script.opsets) == {17 if script.trt_version.startswith("8.") else 20}
    assert onnx.load(exported).opset_import[0].version == 20


def test_the_arguments_reach_the_builder_and_the_sidecar(
    script: Script, exported: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    path = te.engine_from_onnx(
        exported,
        tmp_path / "tiny.plan",
        batches=(2,),
        builds=1,
        tf32=False,
        optimization_level=5,
        device="cuda:0",
        tolerance=0.25,
        on_progress=told.append,
    )
    facts = json.loads(path.with_name("tiny.plan.json").read_text(encoding="utf-8"))
    assert (facts["batches"], len(facts["builds"]), facts["spread_fraction"]) == ([2], 1, None)
    assert facts["flags"]["tf32"] is False
    assert facts["flags"]["builder_optimization_level"] == script.levels[0] == 5
    assert facts["parity"]["tolerance"] == 0.25
    assert len(told) == 2


def test_a_name_that_no_runtime_would_take_for_an_engine_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(te.ExportError, match=r"tiny\.onnx: an engine's name ends with \.engine or \.plan"):
        te.engine_from_onnx(exported, tmp_path / "tiny.onnx")
