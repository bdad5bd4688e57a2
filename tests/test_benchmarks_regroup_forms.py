"""The benchmark of Regroup's forms: all compute the dense convolution, and a small run fills its page."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import regroup_forms as benchmark

import ticket_export as te
from ticket_export.shrink.blocks import block_form


@pytest.mark.parametrize("form", benchmark.FORMS)
@pytest.mark.parametrize("groups", [1, 4])
def test_every_form_computes_the_convolutions_with_their_zeros(
    tmp_path: Path, form: str, groups: int
) -> None:
    layers = [
        benchmark.random_layer(8, groups, 0.4, whole_channels=form in benchmark.CHANNEL_FORMS, seed=seed)
        for seed in range(2)
    ]
    path = benchmark.write_network(tmp_path / "form.onnx", form, layers, size=5)
    dense = benchmark.write_network(tmp_path / "dense.onnx", "dense", layers, size=5)
    assert benchmark.largest_error(path, dense, 8, 5) < 1e-5
    layers[1] = benchmark.random_layer(8, groups, 0.4, whole_channels=True, seed=7)
    other = benchmark.write_network(tmp_path / "other.onnx", "dense", layers, size=5)
    assert benchmark.largest_error(path, other, 8, 5) > 1e-3


def test_density_is_the_share_of_weights() -> None:
    for whole_channels in (True, False):
        layer = benchmark.random_layer(16, 4, 0.25, whole_channels=whole_channels, seed=0)
        assert np.mean(layer.weight != 0) == pytest.approx(0.25)


def test_the_timed_blocks_are_those_that_the_block_form_exports(tmp_path: Path) -> None:
    layer = benchmark.random_layer(16, 2, 0.5, whole_channels=True, seed=0)
    stem, conv = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, bias=False)
    conv.weight.data = torch.from_numpy(layer.weight)
    found = block_form(nn.Sequential(stem, nn.ReLU(), conv, nn.ReLU()), torch.zeros(1, 3, 8, 8), min_rows=8)
    exported = te.onnx_from_module(found.model, tmp_path / "exported.onnx", torch.zeros(1, 3, 8, 8))
    written = benchmark.write_network(tmp_path / "written.onnx", "grouped", [layer], size=8)
    kinds = [Counter(node.op_type for node in onnx.load(path).graph.node) for path in (exported, written)]
    assert found.layers["2"].form == "grouped"
    assert kinds[0] - Counter({"Conv": 1, "Relu": 1}) == kinds[1] == {"Gather": 1, "Conv": 1, "Relu": 1}


def test_a_small_run_writes_its_page_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--shapes 8x4 --batches 1 --densities 0.5 --groups 2 --rounds 5 --block-s 0.001 --depth 1"
    out = ["--out", str(tmp_path), "--machine", "here"]
    monkeypatch.setattr(sys, "argv", ["regroup_forms.py", *out, *words.split()])
    benchmark.main()
    [numbers] = tmp_path.glob("regroup_forms_ort-cpu_here_*.json")
    document = json.loads(numbers.read_text())
    assert [cell["form"] for cell in document["cells"]] == ["blocks", "grouped", "taps", "taps_conv"]
    assert all(cell["speedup"]["baseline"] == "dense 1.0 1" for cell in document["cells"])
    assert words.split()[1] in document["command"]
    page = numbers.with_suffix(".md").read_text()
    assert "| 8 at 4x4 | 1       | 0.5       | 2 of 4 rows |" in page
    assert page.strip() in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["regroup_forms.py", *out, "--shapes", "9x4"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "9 channels are no multiple" in capsys.readouterr().err
