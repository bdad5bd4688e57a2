"""`export` on the command line: what it writes from each kind of model, and every refusal with its value."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

Told = tuple[int, str, str]

NET = """
import torch
from torch import nn

def net(width=8):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return f"{tmp_path / 'net.py'}:net"


@pytest.fixture
def bundle(net: str, tmp_path: Path, tell: Callable[..., Told]) -> Path:
    """A bundle of the network with three of its eight filters cut out."""
    model = _network().eval()
    import torch

    with torch.no_grad():
        model[0].weight[5:] = 0.0
        model[0].bias[5:] = 0.0
    weights = tmp_path / "w.npz"
    np.savez(weights, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    code, _, err = tell(
        *("shrink", net, "--weights", weights, "--input", "1x3x8x8", "--out", tmp_path / "small")
    )
    assert code == 0, err
    return tmp_path / "small"


def _network(width: int = 8) -> Any:  # Any: what exec made
    import torch

    scope: dict[str, Any] = {}
    exec(NET, scope)
    with torch.random.fork_rng(devices=[]):
        return scope["net"](width)


def _logits(path: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images})[0])


IMAGES = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


def test_a_bundle_becomes_an_onnx_file_that_computes_the_same(
    bundle: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    import torch

    import ticket_export as te

    code, told, err = tell("export", bundle, "--out", tmp_path / "out")
    assert code == 0, err
    path = tmp_path / "out" / "small.fp32.onnx"
    assert told.startswith(f"{path}: fp32, {path.stat().st_size:,} bytes, parity error ")
    small = te.load_bundle(bundle, _network()).eval()
    assert small[0].out_channels == 5
    expected = small(torch.from_numpy(IMAGES)).detach().numpy()
    assert np.abs(_logits(path, IMAGES) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_bundle_of_the_zoo_needs_no_word_about_its_classes(
    tell: Callable[..., Told], tmp_path: Path
) -> None:
    import torch

    from ticket_export.models.zoo import zoo_network

    model = zoo_network("conv2", {}, num_classes=7, image_shape=(1, 8, 8))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    words = ("--weights", tmp_path / "w.pt", "--input", "1x1x8x8", "--out", tmp_path / "small")
    assert tell("shrink", "zoo:conv2", *words)[0] == 0
    code, _, err = tell("export", tmp_path / "small", "--out", tmp_path / "out", "--name", "seven")
    assert code == 0, err
    images = np.ones((2, 1, 8, 8), dtype=np.float32)
    assert _logits(tmp_path / "out" / "seven.fp32.onnx", images).shape == (2, 7)


def test_dense_and_ticket_go_into_one_repository_side_by_side(
    net: str, bundle: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, told, err = tell(
        *("export", f"dense={net}", f"ticket={bundle}", "--input", "1x3x8x8", "--arg", "width=8"),
        *("--to", "onnx,triton", "--batches", "1,4", "--max-batch", "16", "--instances", "2", "--out", out),
    )
    assert code == 0, err
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.onnx")) == [
        "dense/dense.fp32.onnx",
        "ticket/ticket.fp32.onnx",
        "triton/dense/1/model.onnx",
        "triton/ticket/1/model.onnx",
    ]
    assert told.splitlines()[2:] == [
        f"{out}/triton/{name}/1: {name}.fp32.onnx, served as '{name}', version 1"
        for name in ("dense", "ticket")
    ]
    config = (out / "triton" / "ticket" / "config.pbtxt").read_text()
    assert "max_batch_size: 16" in config
    assert "preferred_batch_size: [4]" in config
    assert "count: 2" in config


def test_the_same_export_again_adds_no_version_and_another_network_adds_one(
    net: str, tell: Callable[..., Told], tmp_path: Path
) -> None:
    words = ("export", f"net={net}", "--input", "1x3x8x8", "--to", "triton", "--out", tmp_path / "out")
    assert tell(*words)[1].endswith("version 1\n")
    assert tell(*words)[1].endswith("version 1\n")
    assert tell(*words, "--arg", "width=4")[1].endswith("version 2\n")
    versions = sorted(path.name for path in (tmp_path / "out" / "triton" / "net").iterdir())
    assert versions == ["1", "2", "checksums.sha256", "config.pbtxt"]


def test_an_onnx_file_is_served_where_there_is_no_torch(
    relu_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = relu_model("ticket.fp32")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from ticket_export.cli import main\n"
        f"main(['export', {str(path)!r}, '--to', 'triton', '--out', {str(tmp_path / 'out')!r}])\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    served = tmp_path / "out" / "triton" / "ticket" / "1" / "model.onnx"
    assert served.read_bytes() == path.read_bytes()
    assert f"{path}: fp32, {path.stat().st_size:,} bytes\n" in told.stdout


def test_another_builder_takes_the_place_of_the_bundles_own(
    net: str, bundle: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    (tmp_path / "net.py").rename(tmp_path / "moved.py")
    out = tmp_path / "out"
    code, _, err = tell("export", bundle, "--out", out)
    assert code == 2
    assert f"{tmp_path / 'net.py'} does not exist" in err
    assert not out.exists()
    code, _, err = tell("export", bundle, "--builder", f"{tmp_path / 'moved.py'}:net", "--out", out)
    assert code == 0, err
    assert (out / "small.fp32.onnx").is_file()


@pytest.mark.parametrize("file", ["weights.safetensors", "plan.json"])
def test_a_damaged_bundle_is_refused_before_anything_is_written(
    file: str, bundle: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    content = bytearray((bundle / file).read_bytes())
    content[-2] ^= 1
    (bundle / file).write_bytes(content)
    code, told, err = tell("export", bundle, "--out", tmp_path / "out")
    assert (code, told) == (2, "")
    assert f"{bundle / file} is damaged: sha256" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_names_no_builder_says_what_to_give(
    bundle: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"builder"', '"was"'), encoding="utf-8")
    code, _, err = tell("export", bundle, "--out", tmp_path / "out")
    assert code == 2
    assert "does not say how the dense network is built" in err
    assert "--builder zoo:resnet20" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("net.onnx", "--to", "coreml"), "--to: 'coreml' is not one of onnx, "),
        (("net.onnx", "--to", ","), "--to: ',' is not one of onnx, "),
        (("net.onnx", "--precision", "fp8"), "--precision: 'fp8' is not one of fp32, fp16, int8"),
        (("net.onnx", "--precision", "int8"), "int8 needs images"),
        (("net.onnx", "--calibration", "c.npz"), "--calibration: c.npz is for int8"),
        (("net.onnx", "--mean", "0.5"), "--mean and --std belong to --calibration"),
        (("net.onnx", "--batches", "1,0"), "--batches: '1,0' is not a list of sizes"),
        (("net.onnx", "--weights", "w.pt"), "--weights: w.pt belongs to one builder, but 0 are given"),
        (("net.onnx", "--builder", "zoo:conv2"), "--builder: 'zoo:conv2' is for a bundle"),
        (("net.onnx", "--input", "1x3x8x8"), "--input is for builders and bundles"),
        (("net.onnx", "--name", "a/b"), "'a/b' cannot name a model"),
        (("a=net.onnx", "a=net.onnx"), "the name 'a' is given twice"),
        (("net.onnx", "net.onnx", "--name", "a"), "--name: 'a' cannot name 2 models"),
        (("a=",), "'a=' names no model"),
        (("none.onnx",), "none.onnx: no such file"),
        (("folder",), "'folder' is neither a bundle's folder nor an .onnx file nor a builder"),
        (("zoo:conv2",), "zoo:conv2: the shape of its input is not given"),
        (("net.onnx", "--to", "triton", "--kind", "tpu"), "kind 'tpu' is not one of auto, cpu, gpu"),
        (("net.onnx", "--to", "triton", "--instances", "0"), "instances is 0"),
    ],
)
def test_wrong_words_are_refused_with_their_value(
    words: tuple[str, ...],
    text: str,
    relu_model: Callable[..., Path],
    tell: Callable[..., Told],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relu_model("net")
    monkeypatch.chdir(tmp_path)
    code, _, err = tell("export", *words, "--out", "out")
    assert code == 2
    assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_out_folder_that_cannot_be_is_told(net: str, tell: Callable[..., Told], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    code, told, err = tell("export", net, "--input", "1x3x8x8", "--out", taken)
    assert (code, told) == (3, "")
    assert str(taken) in err
    assert "choose another folder with --out" in err


def test_a_different_model_of_that_name_keeps_its_place_and_the_file_is_there(
    net: str, relu_model: Callable[..., Path], tell: Callable[..., Told], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    served = ("--to", "triton", "--name", "net", "--out", out)
    assert tell("export", relu_model("relu"), *served)[0] == 0
    before = (out / "triton" / "net" / "config.pbtxt").read_bytes()
    code, told, err = tell("export", net, "--input", "1x3x8x8", *served)
    assert code == 2
    assert "serves a different model" in err
    assert "what is told above is written and complete" in err
    assert told.startswith(f"{out / 'net.fp32.onnx'}: fp32")
    onnx.checker.check_model(out / "net.fp32.onnx")
    assert (out / "triton" / "net" / "config.pbtxt").read_bytes() == before
    assert [path.name for path in (out / "triton" / "net").iterdir() if path.is_dir()] == ["1"]
