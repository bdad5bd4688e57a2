"""`export` on the command line: what it writes from each kind of model, and every refusal with its value."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from scripted_tensorrt import VERSIONS, install

from ticket_export.cli import main
from ticket_export.runtime.trt_sidecar import read_facts

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


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of the network with three of its eight filters cut out, and its fp32 file."""
    import torch

    folder = tmp_path_factory.mktemp("made")
    (folder / "net.py").write_text(NET, encoding="utf-8")
    model = _network().eval()
    with torch.no_grad():
        model[0].weight[5:] = 0.0
        model[0].bias[5:] = 0.0
    np.savez(folder / "w.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    words = ("--weights", folder / "w.npz", "--input", "1x3x8x8", "--out", folder / "small")
    for verb in (
        ("shrink", f"{folder / 'net.py'}:net", *words),
        ("export", folder / "small", "--out", folder),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in verb])
        assert ended.value.code == 0
    return folder


@pytest.fixture
def bundle(made_once: Path, net: str, tmp_path: Path) -> Path:
    """The bundle, copied, its builder beside it."""
    shutil.copytree(made_once / "small", tmp_path / "small")
    manifest = tmp_path / "small" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f"{made_once / 'net.py'}:net", net), encoding="utf-8")
    return tmp_path / "small"


@pytest.fixture
def fp32_file(made_once: Path, tmp_path: Path) -> Path:
    return shutil.copy(made_once / "small.fp32.onnx", tmp_path / "given.onnx")


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
    net: str, fp32_file: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    words = ("--to", "triton", "--out", tmp_path / "out")
    assert tell("export", f"net={fp32_file}", *words)[1].endswith("version 1\n")
    assert tell("export", f"net={fp32_file}", *words)[1].endswith("version 1\n")
    builder = (f"net={net}", "--input", "1x3x8x8", "--arg", "width=4")
    assert tell("export", *builder, *words)[1].endswith("version 2\n")
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


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    images = np.random.default_rng(1).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", train_x=images)
    return tmp_path / "c.npz"


def test_every_precision_of_a_bundle_is_told_with_its_error(
    bundle: Path, calibration: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("--calibration", calibration, "--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3", "--to", "triton")
    code, told, err = tell("export", bundle, "--precision", "int8,fp32,fp16", *words, "--out", out)
    assert code == 0, err
    lines = told.splitlines()
    for line, precision in zip(lines[:3], ("fp32", "fp16", "int8"), strict=True):
        path = out / f"small.{precision}.onnx"
        assert line.startswith(f"{path}: {precision}, {path.stat().st_size:,} bytes, parity error ")
    assert [" against its fp32 file" in line for line in lines[:3]] == [False, True, True]
    assert "calibrated on 40 images" in lines[2]
    served = sorted(path.name for path in (out / "triton").iterdir())
    assert served == ["small-fp16", "small-fp32", "small-int8"]
    exact = _logits(out / "small.fp32.onnx", IMAGES)
    for precision, tolerance in (("fp16", 2e-2), ("int8", 0.5)):
        error = np.abs(_logits(out / f"small.{precision}.onnx", IMAGES) - exact).max()
        assert 0 < error <= tolerance * np.abs(exact).max()


def test_an_onnx_file_is_converted_where_there_is_no_torch(
    fp32_file: Path, calibration: Path, tell: Callable[..., Told], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["export", fp32_file, "--precision", "fp16,int8", "--calibration", calibration, "--out", out]
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from ticket_export.cli import main\n"
        f"main({[str(word) for word in words]!r})\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert sorted(path.name for path in out.iterdir()) == ["given.fp16.onnx", "given.int8.onnx"]
    code_again, _, err = tell("export", out / "given.fp16.onnx", "--precision", "fp32", "--out", out)
    assert code_again == 2
    assert "fp32 is made from a network, not from a file of less precision" in err


def test_a_file_is_never_overwritten_by_its_own_conversion(
    relu_model: Callable[..., Path], tell: Callable[..., Told], tmp_path: Path
) -> None:
    path = relu_model("net.fp16")  # computes in fp32, whatever its name says
    before = path.read_bytes()
    code, _, err = tell("export", path, "--precision", "fp16", "--out", tmp_path)
    assert code == 2
    assert f"{path}: would be overwritten by its fp16 file" in err
    assert path.read_bytes() == before


def test_without_tensorrt_everything_else_is_written_first(
    relu_model: Callable[..., Path],
    bundle: Path,
    tell: Callable[..., Told],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = tmp_path / "out"
    words = ("--to", "tensorrt,triton,onnx", "--out", out)
    code, told, err = tell("export", relu_model("dense"), f"ticket={bundle}", *words)
    assert code == 3
    assert "pip install ticket-export[tensorrt]" in err
    assert "what is told above is written and complete" in err
    assert len(told.splitlines()) == 4
    for name in ("dense", "ticket"):
        assert (out / "triton" / name / "1" / "model.onnx").is_file()
    assert list(out.rglob("*.engine")) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_are_served_beside_their_onnx_twins(
    version: str,
    fp32_file: Path,
    calibration: Path,
    tell: Callable[..., Told],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, version)
    out = tmp_path / "out"
    words = ("--precision", "fp32,int8", "--calibration", calibration, "--out", out)
    code, told, err = tell("export", fp32_file, "--to", "onnx,tensorrt,triton", *words)
    assert code == 0, err
    for precision, source in (("fp32", "given"), ("int8", "given.int8-trt")):
        engine = out / f"given.{precision}.engine"
        facts = read_facts(engine)
        told_of_it = next(line for line in told.splitlines() if line.startswith(f"{engine}: "))
        assert f"{engine.stat().st_size:,} bytes, error " in told_of_it
        assert f"against {source}.onnx, {facts.gpu.name} ({facts.gpu.sm}), TensorRT {version}" in told_of_it
        assert facts.source == f"{source}.onnx"
        plan = out / "triton" / f"given-{precision}-trt" / "1" / f"model_{facts.gpu.sm}.plan"
        assert plan.read_bytes() == engine.read_bytes()
    assert "max_batch_size: 8" in (out / "triton" / "given-int8-trt" / "config.pbtxt").read_text()
    served = sorted(path.name for path in (out / "triton").iterdir())
    assert served == ["given-fp32", "given-fp32-trt", "given-int8", "given-int8-trt"]
    zeros = {  # TensorRT takes no zero points, ONNX Runtime on x86 is slow without
        name: {
            onnx.numpy_helper.to_array(weight).dtype.name
            for weight in onnx.load(out / f"given.{name}.onnx").graph.initializer
            if "zero_point" in weight.name and weight.data_type != onnx.TensorProto.INT32
        }
        for name in ("int8", "int8-trt")
    }
    assert "uint8" in zeros["int8"]
    assert zeros["int8-trt"] == {"int8"}


@pytest.mark.parametrize(
    ("arrays", "words", "text"),
    [
        ({"y": np.zeros(3)}, (), "holds [y], neither train_x nor x"),
        ({"x": np.zeros((9, 3, 8, 8))}, (), "x of "),
        ({"x": np.zeros((9, 192), np.uint8)}, (), "is uint8 of shape (9, 192)"),
        ({"x": np.zeros((9, 3, 8, 8), np.float32)}, ("--mean", "0.5"), "would be applied twice"),
        (
            {"x": np.zeros((9, 3, 8, 8), np.uint8)},
            ("--mean", "0.5"),
            "--mean: 1 numbers, but the images have 3",
        ),
        ({"x": np.zeros((9, 3, 8, 8), np.uint8)}, ("--std", "1,0,1"), "--std: '1,0,1'"),
        ({"x": np.zeros((9, 3, 9, 9), np.uint8)}, (), "[9, 3, 9, 9]"),
    ],
)
def test_calibration_images_that_do_not_fit_are_refused(
    arrays: dict[str, Any],
    words: tuple[str, ...],
    text: str,
    fp32_file: Path,
    tell: Callable[..., Told],
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    given = ("--precision", "int8", "--calibration", tmp_path / "c.npz")
    code, told, err = tell("export", fp32_file, *given, *words, "--out", tmp_path / "out")
    assert (code, told) == (2, "")
    assert text in err
    assert "Traceback" not in err


def test_calibration_images_are_fed_as_in_training_and_taken_evenly(tmp_path: Path) -> None:
    import torch

    from ticket_export.cli.images import calibration_images
    from ticket_export.data.augment import normalise

    x_NCHW = np.random.default_rng(0).integers(0, 256, (1021, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "c.npz", train_x=x_NCHW)
    found = calibration_images(tmp_path / "c.npz", "0.5,0.4,0.3", "0.2,0.3,0.1")
    assert found.shape == (256, 3, 4, 4)
    expected = normalise(torch.from_numpy(x_NCHW[::4]), (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)).numpy()
    assert np.abs(found - expected).max() < 1e-5
