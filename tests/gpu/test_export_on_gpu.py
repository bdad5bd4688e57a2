"""`export` on a GPU: engines of every precision compute what their ONNX files do, and Triton gets those."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ticket_export.cli import main
from ticket_export.errors import MissingDependency
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.trt_sidecar import read_facts
from ticket_export.runtime.trt_version import require_tensorrt

NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )
"""
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1e-1}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX files, engines and a repository of one network, or the end of these tests."""
    try:
        require_tensorrt()
    except MissingDependency as missing:
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail(f"REQUIRE_GPU=1, but {missing}")
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("export")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)
    np.savez(folder / "c.npz", x=images)
    words = ["export", f"{folder / 'net.py'}:net", "--input", "1x3x16x16", "--to", "onnx,tensorrt,triton"]
    words += ["--precision", "fp32,fp16,int8", "--calibration", str(folder / "c.npz"), "--batches", "1,8"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--out", str(folder / "out")])
    assert ended.value.code == 0
    return folder / "out"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_computes_what_its_onnx_file_does(precision: str, out: Path) -> None:
    source = out / f"net.{'int8-trt' if precision == 'int8' else precision}.onnx"
    engine = out / f"net.{precision}.engine"
    images = {"input": np.random.default_rng(1).random((8, 3, 16, 16), dtype=np.float32)}
    with OrtCpuRunner(source) as runner:
        (expected,) = runner.infer(images).values()
    with open_runner(engine, "tensorrt") as runner:
        (found,) = runner.infer(images).values()
    error = np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_repository_serves_that_engine_to_this_kind_of_gpu(precision: str, out: Path) -> None:
    model = out / "triton" / f"net-{precision}-trt"
    engine = out / f"net.{precision}.engine"
    sm = read_facts(engine).gpu.sm
    assert (model / "1" / f"model_{sm}.plan").read_bytes() == engine.read_bytes()
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    assert f'key: "{sm[2:-1]}.{sm[-1]}"' in config
    assert 'profile: "1"' in config
