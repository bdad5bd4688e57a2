"""`shrink` on the command line: what it writes and prints, and every refusal with its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Told = tuple[int, str, str]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("--input", "3x32x32"), "'3x32x32' is not batch x channels x height x width"),
        (("--input", ""), "--input: '' is no shape"),
        (("--input", "1x16:int63"), "'1x16:int63': 'int63' is not one of float32, int64"),
        (("--input", "1x3x32x32", "--mean", "0.5"), "--mean and --std belong to --data"),
        (("--input", "1x3x8x8", "--input", "1x4", "--data", "d.npz"), "--input is given 2 times"),
        (("--input", "1x3x32x32", "--data", "none.npz"), "none.npz cannot be read"),
        (("--input", "1x3x32xbig"), "'1x3x32xbig'"),
        (("--input", "1x3x0x32"), "'1x3x0x32'"),
        (("--input", "1x3x32x32", "--arg", "shortcut"), "'shortcut'"),
    ],
)
def test_shrink_refuses_wrong_input_with_its_value(
    words: tuple[str, ...], value: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    code, out, err = tell("shrink", "zoo:resnet20", "--weights", "w.npz", "--out", tmp_path / "b", *words)
    assert (code, out) == (2, "")
    assert value in err
    assert not (tmp_path / "b").exists()


def test_shrink_names_weights_that_are_not_there(tell: Callable[..., Told], tmp_path: Path) -> None:
    missing = tmp_path / "none.npz"
    code, out, err = tell(
        "shrink", "zoo:resnet20", "--weights", missing, "--input", "1x3x32x32", "--out", tmp_path / "b"
    )
    assert (code, out) == (2, "")
    assert str(missing) in err


NET = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )
"""


def test_shrink_saves_a_smaller_network_that_computes_the_same(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    import onnxruntime
    import torch

    import ticket_export as te

    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    net = scope["net"]().eval()
    with torch.no_grad():
        net[0].weight[5:] = 0.0  # three filters that emit their bias alone
        net[0].bias[5:] = torch.tensor([0.5, -0.5, 0.25])
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
    out = tmp_path / "small"
    code, told, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.npz"),
        *("--input", "1x3x8x8", "--out", out, "--onnx"),
    )
    assert code == 0, err
    num_dense = sum(parameter.numel() for parameter in net.parameters())
    num_kept = int(
        next(line for line in told.splitlines() if line.startswith("weights")).split()[2].replace(",", "")
    )
    assert num_kept < num_dense
    origin = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["origin"]
    assert origin == {"builder": f"{tmp_path / 'net.py'}:net", "args": {}, "input_shapes": [[3, 8, 8]]}
    small = te.load_bundle(out, scope["net"]())
    assert sum(parameter.numel() for parameter in small.parameters()) == num_kept
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = net(images).detach().numpy()
    logits = onnxruntime.InferenceSession(out / "model.onnx").run(None, {"input": images.numpy()})[0]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(small.eval()(images).detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_bundle_that_cannot_be_written_is_told(tell: Callable[..., Told], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("print('hello')\n" + NET, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    np.savez(tmp_path / "w.npz", **{n: tensor.numpy() for n, tensor in scope["net"]().state_dict().items()})
    taken = tmp_path / "taken"
    taken.touch()
    code, out, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.npz"),
        *("--input", "1x3x8x8", "--out", taken),
    )
    assert (code, out) == (3, "")
    assert err.startswith("hello\n")  # what a builder prints is no data
    assert str(taken) in err
    assert "choose another folder with --out" in err
