"""`shrink` on the command line: what it writes and prints, and every refusal with its value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

Told = tuple[int, str, str]

NET = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )
"""


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
        (("--input", "1x3x32x32", "--round-to", "nine"), "--round-to: 'nine' is no number of channels"),
        (
            ("--input", "1x3x32x32", "--for-batch", "8"),
            "--for-batch belongs to --round-to auto, got --round-to 1",
        ),
        (
            ("--input", "1x3x32x32", "--round-to", "8", "--threads", "2"),
            "--threads belongs to --round-to auto",
        ),
        (
            ("--input", "1x3x32x32", "--round-to", "auto", "--padded-constants", "term"),
            "--padded-constants term has no effect with --round-to auto",
        ),
        (("--input", "1x3x32x32", "--round-to", "auto", "--for-batch", "1,x"), "--for-batch: '1,x'"),
        (
            ("--input", "1x3x32x32", "--round-to", "auto", "--for-precision", "int8"),
            "--for-precision int8 needs images",
        ),
        (
            ("--input", "1x3x32x32", "--round-to", "auto", "--calibration", "c.npz"),
            "--calibration: c.npz is for --round-to auto with --for-precision int8 alone",
        ),
    ],
)
def test_shrink_refuses_wrong_input_with_its_value(
    words: tuple[str, ...], value: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    code, out, err = tell("shrink", "zoo:resnet20", "--weights", "w.npz", "--out", tmp_path / "b", *words)
    assert (code, out) == (2, "")
    assert value in err
    assert not (tmp_path / "b").exists()


def write_unread_channels(folder: Path) -> Callable[[], Any]:
    """Write net.py and w.npz, a network three of whose channels nobody reads; return its builder."""
    import torch

    (folder / "net.py").write_text(NET, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # classes of another draw may lie too close for INT8
        net = scope["net"]().eval()
    with torch.no_grad():
        net[2].weight[:, 5:] = 0.0
    np.savez(folder / "w.npz", **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
    return cast(Callable[[], Any], scope["net"])


def test_shrink_keeps_the_widths_that_are_the_fastest_here(tell: Callable[..., Told], tmp_path: Path) -> None:
    import ticket_export as te

    net = write_unread_channels(tmp_path)
    code, told, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.npz", "--input", "1x3x8x8"),
        *("--out", tmp_path / "b", "--round-to", "auto", "--for-runtime", "torch", "--for-batch", "1,2"),
    )
    assert code in (0, 1)  # 1 where this machine is too busy for stable timings
    assert ("unstable" in told) == (code == 1)
    assert "Kept: round_to" in told
    assert "timing 3 networks, torch, fp32, batch 2" in err
    origin = json.loads((tmp_path / "b" / "manifest.json").read_text())["origin"]
    choice = origin["widths_by_measurement"]
    assert [(c["round_to"], c["same_as"]) for c in choice["candidates"]] == [
        (1, []),
        (8, [[16, ""], [32, ""]]),
    ]
    assert choice["machine"]["cpu"]
    small = te.load_bundle(tmp_path / "b", net())
    assert small[0].out_channels == (5, 8)[choice["chosen"]]


def test_shrink_measures_widths_in_int8_with_images_to_calibrate_on(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    write_unread_channels(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", x=images)
    code, told, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.npz", "--input", "1x3x8x8"),
        *("--out", tmp_path / "b", "--round-to", "auto", "--for-precision", "int8"),
        *("--calibration", tmp_path / "c.npz", "--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3"),
    )
    assert code in (0, 1), err  # 1 where this machine is too busy for stable timings
    assert "Kept: round_to" in told
    choice = json.loads((tmp_path / "b" / "manifest.json").read_text())["origin"]["widths_by_measurement"]
    assert choice["precision"] == "int8"


def test_shrink_names_weights_that_are_not_there(tell: Callable[..., Told], tmp_path: Path) -> None:
    missing = tmp_path / "none.npz"
    code, out, err = tell(
        "shrink", "zoo:resnet20", "--weights", missing, "--input", "1x3x32x32", "--out", tmp_path / "b"
    )
    assert (code, out) == (2, "")
    assert str(missing) in err


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
    assert origin == {
        "builder": f"{tmp_path / 'net.py'}:net",
        "args": {},
        "input_shapes": [[3, 8, 8]],
        "input_kinds": ["float32"],
    }
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


def _saved_net(folder: Path, change: Callable[[Any], None]) -> tuple[Path, Any]:
    """Write NET as net.py and its weights, changed, as w.npz; return the weights' path and the network."""
    import torch

    (folder / "net.py").write_text(NET, encoding="utf-8")
    scope: dict[str, Any] = {}
    exec(NET, scope)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = scope["net"]().eval()
    with torch.no_grad():
        change(net)
    path = folder / "w.npz"
    np.savez(path, **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
    return path, net


def _words(folder: Path, *more: str | Path) -> tuple[str | Path, ...]:
    out = folder / "small"
    return (
        "shrink",
        f"{folder / 'net.py'}:net",
        "--weights",
        folder / "w.npz",
        "--input",
        "1x3x8x8",
        "--out",
        out,
        *more,
    )


def _nearly_zero(net: Any) -> None:
    net[0].weight[4:] *= 1e-6
    net[0].bias[4:] = 0.0


def test_nearly_zero_channels_go_with_what_that_moved(tell: Callable[..., Told], tmp_path: Path) -> None:
    _, net = _saved_net(tmp_path, _nearly_zero)
    code, before, _ = tell(*_words(tmp_path))
    assert code == 0
    assert "no group has a channel that may go" in before
    code, told, err = tell(*_words(tmp_path, "--zero-below", "1e-6"))
    assert (code, err) == (0, f"shrinking {tmp_path / 'net.py'}:net\n")
    largest = float(net[0].weight[4:].detach().abs().max())
    assert (
        f"nearly zero (at or below 1e-06): 4 rows and 0 gammas set to zero, the largest {largest:.2e}" in told
    )
    assert "on 8 random inputs, top-1 the same on 100.0 %" in told
    assert ["0.weight", "rows", "4", "of", "8"] in [line.split()[:5] for line in told.splitlines()]
    assert ["0", "8", "4"] in [line.split()[:3] for line in told.splitlines()]
    noted = json.loads((tmp_path / "small" / "manifest.json").read_text(encoding="utf-8"))["origin"][
        "near_zero"
    ]
    assert noted["threshold"] == 1e-6
    assert 0 < noted["moved"] < 1e-5
    assert [zeroed["num_zeroed"] for zeroed in noted["tensors"]] == [4]


def test_nothing_nearly_zero_is_said(tell: Callable[..., Told], tmp_path: Path) -> None:
    _saved_net(tmp_path, lambda net: None)
    code, told, _ = tell(*_words(tmp_path, "--zero-below", "1e-6"))
    assert code == 0
    assert told.startswith("nothing is nearly zero: no row or gamma lies between 0 and 1e-06\n")


@pytest.mark.parametrize("threshold", ["-1e-6", "nan", "inf"])
def test_a_threshold_that_makes_no_sense_is_refused(
    threshold: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    _saved_net(tmp_path, lambda net: None)
    code, out, err = tell(*_words(tmp_path, "--zero-below", threshold))
    assert (code, out) == (2, "")
    assert f"nearly zero channels is {float(threshold)}" in err
    assert not (tmp_path / "small").exists()


def test_accuracy_is_told_before_and_after(tell: Callable[..., Told], tmp_path: Path) -> None:
    import torch

    from ticket_export.train.evaluate import evaluate

    _, net = _saved_net(tmp_path, lambda net: _nearly_zero(net) or net[6 - 1].bias.zero_())
    x_NCHW = torch.randint(
        0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    y_N = torch.arange(20) % 4
    np.savez(tmp_path / "d.npz", test_x=x_NCHW.numpy(), test_y=y_N.numpy())
    accuracy = evaluate(net, x_NCHW, y_N, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    data = ("--data", tmp_path / "d.npz", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.1")
    code, told, _ = tell(*_words(tmp_path, "--zero-below", "1e-6", *data))
    assert code == 0
    share = f"{100 * accuracy:.2f} %"
    assert f"accuracy on 20 images: {share} given, {share} with zeros below 1e-06, {share} shrunk" in told
    code, told, _ = tell(*_words(tmp_path, *data))
    assert f"accuracy on 20 images: {share} given, {share} shrunk" in told


@pytest.mark.parametrize(
    ("arrays", "words", "text"),
    [
        ({"x": np.zeros(3)}, (), "lacks test_x, test_y; it holds [x]"),
        ({"test_x": np.zeros((2, 3, 8, 8))}, (), "test_x is float64 of shape (2, 3, 8, 8)"),
        ({"test_x": np.zeros((2, 3, 9, 8), np.uint8)}, (), "images are 3x9x8, --input says 3x8x8"),
        ({"test_y": np.zeros(3, np.int64)}, (), "test_y is int64 of shape (3,) for 2 images"),
        ({"test_y": np.zeros(2)}, (), "test_y is float64 of shape (2,)"),
        ({}, ("--mean", "0.5,x,0.5"), "--mean: '0.5,x,0.5' is not a list of numbers"),
        ({}, ("--mean", "0.5"), "3 channels, mean has 1 numbers"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_its_value(
    arrays: dict[str, Any], words: tuple[str, ...], text: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    _saved_net(tmp_path, lambda net: None)
    right = {"test_x": np.zeros((2, 3, 8, 8), np.uint8), "test_y": np.zeros(2, np.int64)}
    held = arrays if "x" in arrays else right | arrays
    np.savez(tmp_path / "d.npz", **held)
    code, _, err = tell(*_words(tmp_path, "--data", tmp_path / "d.npz", *words))
    assert code == 2
    assert text in err
    assert "Traceback" not in err


TWO_INPUTS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.ids, self.a, self.c = nn.Embedding(5, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.b = nn.Conv3d(2, 8, 1)

    def forward(self, ids, volume):
        hidden = torch.relu(self.a(self.ids(ids).mean(1)))
        return self.c(hidden * self.b(volume).mean((2, 3, 4)).sigmoid())

def net():
    return Two()
"""


def test_several_inputs_of_any_rank_and_kind_are_shrunk_and_exported(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    import onnxruntime
    import torch

    scope: dict[str, Any] = {}
    exec(TWO_INPUTS, scope)
    (tmp_path / "net.py").write_text(TWO_INPUTS, encoding="utf-8")
    net = scope["net"]().eval()
    with torch.no_grad():
        net.a.weight[::2] = 0.0
        net.a.bias[::2] = -1.0
    torch.save(
        {"state_dict": {f"module.{name}": t for name, t in net.state_dict().items()}}, tmp_path / "w.pt"
    )
    out = tmp_path / "small"
    code, told, err = tell(
        *("shrink", f"{tmp_path / 'net.py'}:net", "--weights", tmp_path / "w.pt", "--out", out, "--onnx"),
        *("--input", "1x4:int64", "--input", "1x2x3x3x3"),
    )
    assert code == 0, err
    assert "its weights are under 'state_dict'" in err
    assert "the prefix 'module.' of all 7 names is left off" in err
    assert ["a", "8", "4"] in [line.split()[:3] for line in told.splitlines()]
    origin = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["origin"]
    assert origin["input_shapes"] == [[4], [2, 3, 3, 3]]
    assert origin["input_kinds"] == ["int64", "float32"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randint(0, 5, (3, 4), generator=generator),
        torch.randn(3, 2, 3, 3, 3, generator=generator),
    ]
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})[0]
    expected = net(*inputs).detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_export_that_fails_says_that_the_bundle_is_there(
    tell: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import ticket_export as te

    _, net = _saved_net(tmp_path, lambda net: None)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, out, err = tell(*_words(tmp_path, "--onnx"))
    assert code == 3
    assert out.splitlines()[-1] == f"bundle: {tmp_path / 'small'}"
    assert "No space left on device" in err
    assert f"the bundle in {tmp_path / 'small'} is written and complete; model.onnx is not there" in err
    assert "Traceback" not in err
    assert te.load_bundle(tmp_path / "small", net) is not net


def test_verbose_lists_every_group_on_its_own_line(tell: Callable[..., Told], tmp_path: Path) -> None:
    _saved_net(tmp_path, lambda net: net[0].weight[:2].zero_())
    code, told, _ = tell(*_words(tmp_path))
    assert code == 0
    lines = [line.strip() for line in told.splitlines()]
    assert "unchanged: 2 groups" in lines
    assert "every channel is needed: 2 (6)" in lines
    assert "model output: 5 (4)" in lines
    code, told, _ = tell(*_words(tmp_path, "--verbose"))
    rows = [line.split()[:3] for line in told.splitlines()]
    assert rows.count(["2", "6", "6"]) == rows.count(["5", "4", "4"]) == 1
    assert "unchanged" not in told


@pytest.mark.parametrize(
    ("option", "name"), [("--residual", "residual"), ("--padded-constants", "padded_constants")]
)
def test_a_mode_that_does_not_exist_is_refused(
    option: str, name: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    _saved_net(tmp_path, lambda net: None)
    code, out, err = tell(*_words(tmp_path, option, "sum"))
    assert (code, out) == (2, "")
    assert f"{name} is 'sum'" in err
    assert not (tmp_path / "small").exists()


PADDED = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 4, 1))
"""


@pytest.mark.parametrize(
    ("mode", "width", "told"), [("carrier", 6, "1 carrier channel"), ("term", 5, "1 added term")]
)
def test_constants_of_a_padded_layer_go_where_they_are_told_to(
    mode: str, width: int, told: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    import torch

    scope: dict[str, Any] = {}
    exec(PADDED, scope)
    (tmp_path / "net.py").write_text(PADDED, encoding="utf-8")
    net = scope["net"]()
    with torch.no_grad():
        net[0].weight[5:] = 0.0
        net[0].bias[5:] = 0.5
    np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
    code, out, err = tell(*_words(tmp_path, "--padded-constants", mode))
    assert code == 0, err
    assert ["0", "8", str(width)] in [line.split()[:3] for line in out.splitlines()]
    assert told in out.splitlines()[-2]


def test_weights_of_a_failed_training_are_refused(tell: Callable[..., Told], tmp_path: Path) -> None:
    _saved_net(tmp_path, lambda net: net[2].weight[0, 0].fill_(float("nan")))
    code, out, err = tell(*_words(tmp_path))
    assert (code, out) == (2, "")
    assert "2.weight: 9 of 432 values are NaN or infinite" in err
