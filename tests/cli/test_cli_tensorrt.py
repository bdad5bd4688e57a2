"""`ticket-export measure` with TensorRT, on a scripted GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_tensorrt import VERSIONS, install

Told = tuple[int, str, str]


def test_measure_builds_an_engine_per_file_and_prints_rows_alone_on_stdout(
    tell: Callable[..., Told], models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = install(monkeypatch, VERSIONS[-1])
    script.latency_s = lambda build, batch: batch * (1e-3 if build < 3 else 5e-4)
    options = ("--runtime", "tensorrt", "--batch", "1,8", "--rounds", "5", "--samples", "5", "--json")
    _, out, err = tell("measure", *models, *options)
    rows = json.loads(out)["rows"]
    assert [(row["runtime"], row["batch"]) for row in rows] == [("tensorrt", 1)] * 2 + [("tensorrt", 8)] * 2
    assert [row["speedup"]["ratio"] for row in rows if row["speedup"]] == pytest.approx([2.0, 2.0], rel=1e-3)
    assert [row["latency_s"]["p50"] for row in rows] == pytest.approx([1e-3, 5e-4, 8e-3, 4e-3], rel=1e-3)
    assert err.count("building a TensorRT engine, 1 of 3") == 2  # one engine for both batches
    assert len(script.builder_flags) == 6


def test_measure_without_tensorrt_exits_3_with_the_command_that_installs_it(
    tell: Callable[..., Told], models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, out, err = tell("measure", *models, "--runtime", "tensorrt")
    assert (code, out) == (3, "")
    assert "pip install ticket-export[tensorrt]" in err
    assert "Traceback" not in err
