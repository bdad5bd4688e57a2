from __future__ import annotations

import collections
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from ticket_export.errors import ExportError, ParityError
from ticket_export.export.onnx import onnx_from_module
from ticket_export.export.publish import metadata_of
from ticket_export.export.qdq import signed
from ticket_export.export.quantize import int8_from_onnx
from ticket_export.runtime.onnx_file import precision_from_onnx
from ticket_export.runtime.ort import OrtCpuRunner

MakeNet = Callable[[int], nn.Module]
X = np.random.default_rng(0).standard_normal((32, 1, 8, 8)).astype(np.float32)
CALIBRATION = {"input": X}


@pytest.fixture(scope="module")
def source(resnet20: MakeNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    return onnx_from_module(
        resnet20(8), folder / "net.onnx", torch.from_numpy(X[:2]), metadata={"recipe": "r"}
    )


@pytest.fixture(scope="module")
def quantised(source: Path) -> Path:
    found = int8_from_onnx(source, source.with_name("int8.onnx"), CALIBRATION, min_top1_agreement=0.5)
    return found.path


def run(path: Path, x_NCHW: np.ndarray) -> np.ndarray:
    with OrtCpuRunner(path) as runner:
        return np.asarray(runner.infer({"input": x_NCHW})["logits"])


def operators_as_run(path: Path) -> collections.Counter[str]:
    """Return what ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    optimised = path.with_name("optimised.onnx")
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def activation_pairs(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return scale and zero point of every activation, by the name of its scale."""
    values = constants(model)
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[1]: (values[node.input[1]], values[node.input[2]]) for node in nodes}


def test_every_convolution_and_residual_add_runs_in_8_bits(quantised: Path) -> None:
    kinds = operators_as_run(quantised)
    assert kinds["QLinearConv"] == 21
    assert kinds["QLinearAdd"] == 9
    assert kinds["Conv"] == kinds["FusedConv"] == kinds["Add"] == kinds["Relu"] == 0


def test_weights_are_8_bits_per_channel_and_symmetric_and_biases_fp32(source: Path, quantised: Path) -> None:
    model = onnx.load(quantised)
    values = constants(model)
    readers = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values]
    per_channel = [node for node in readers if values[node.input[1]].ndim == 1]
    assert len(per_channel) >= 21
    for node in readers:
        assert values[node.input[0]].dtype == np.int8
        assert not values[node.input[2]].any()
    biases = [values[n.input[2]] for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 3]
    assert len(biases) == 21
    assert all(bias.dtype == np.float32 for bias in biases)
    assert quantised.stat().st_size < 0.6 * source.stat().st_size


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_and_the_signature_stay(source: Path, quantised: Path, batch: int) -> None:
    with OrtCpuRunner(source) as before, OrtCpuRunner(quantised) as after:
        assert after.input_specs == before.input_specs
        assert after.output_specs == before.output_specs
        assert after.precision == "int8"
    expected = run(source, X[:batch])
    assert np.abs(run(quantised, X[:batch]) - expected).max() < 0.25 * np.abs(expected).max()


def test_the_file_is_one_valid_and_tells_what_was_done_and_no_path(source: Path, tmp_path: Path) -> None:
    found = int8_from_onnx(
        source, tmp_path / "q.onnx", CALIBRATION, min_top1_agreement=0.5, metadata={"key": "0a1b"}
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["q.onnx"]
    model = onnx.load(found.path)
    onnx.checker.check_model(model, full_check=True)
    texts = metadata_of(model)
    assert (texts["recipe"], texts["key"], texts["ticket_export.precision"]) == ("r", "0a1b", "int8")
    assert texts["ticket_export.calibration_images"] == "32"
    assert float(texts["ticket_export.top1_agreement"]) == pytest.approx(found.top1_agreement, abs=1e-4)
    assert 0.0 < float(texts["ticket_export.precision_rel_error"]) < 0.25
    assert json.loads(texts["ticket_export.fp32_layers"]) == []
    assert set(texts) == {"recipe", "key"} | {name for name in texts if name.startswith("ticket_export.")}
    content = found.path.read_bytes()
    assert b"/tmp" not in content
    assert str(Path(onnx.__file__).parent).encode() not in content
    assert {entry.domain for entry in model.opset_import} == {""}


def test_the_same_images_give_the_same_file(source: Path, tmp_path: Path) -> None:
    files = [
        int8_from_onnx(source, tmp_path / name, CALIBRATION, min_top1_agreement=0.0).path
        for name in ("a.onnx", "b.onnx")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_ranges_come_from_the_images(source: Path, tmp_path: Path) -> None:
    scales = []
    for factor in (1.0, 2.0):
        images = {"input": X * np.float32(factor)}
        found = int8_from_onnx(source, tmp_path / "q.onnx", images, min_top1_agreement=0.0)
        model = onnx.load(found.path)
        first = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "input")
        scales.append(float(constants(model)[first.input[1]]))
    assert scales[0] == pytest.approx((X.max() - X.min()) / 255, rel=1e-3)
    assert scales[1] == pytest.approx(2 * scales[0], rel=1e-3)


def test_for_tensorrt_activations_are_symmetric_with_the_same_ranges(source: Path, tmp_path: Path) -> None:
    unsigned = int8_from_onnx(source, tmp_path / "u.onnx", CALIBRATION, min_top1_agreement=0.5).path
    signed = int8_from_onnx(
        source, tmp_path / "s.onnx", CALIBRATION, min_top1_agreement=0.5, activations="int8"
    ).path
    pairs, before = activation_pairs(onnx.load(signed)), activation_pairs(onnx.load(unsigned))
    assert all(zero.dtype == np.int8 and not zero.any() for _, zero in pairs.values())
    assert all(zero.dtype == np.uint8 for _, zero in before.values())
    ranges = {
        name: max(int(zero), 255 - int(zero)) * float(scale) / 127 for name, (scale, zero) in before.items()
    }
    largest = max(float(scale) for scale, _ in pairs.values())
    assert largest == pytest.approx(max(ranges.values()), rel=1e-5)
    for name, (scale, _) in pairs.items():
        assert float(scale) == pytest.approx(ranges[name], rel=1e-5), name
    assert precision_from_onnx(signed) == "int8"
    expected = run(source, X)
    assert np.abs(run(signed, X) - expected).max() < 0.3 * np.abs(expected).max()


def test_for_tensorrt_a_residual_add_reads_its_own_layer_exact(source: Path, tmp_path: Path) -> None:
    path = int8_from_onnx(
        source, tmp_path / "s.onnx", CALIBRATION, min_top1_agreement=0.0, activations="int8"
    ).path
    model = onnx.load(path)
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    adds = [sorted(maker[name] for name in node.input) for node in model.graph.node if node.op_type == "Add"]
    assert adds == [["Conv", "DequantizeLinear"]] * 9
    again = signed(model)
    assert [list(node.input) for node in again.graph.node] == [list(node.input) for node in model.graph.node]
    rectified = [maker[node.input[0]] for node in model.graph.node if node.op_type == "Relu"]
    assert set(rectified) == {"Conv", "Add"}


def test_disagreement_and_lost_accuracy_are_refused_and_nothing_is_written(
    source: Path, tmp_path: Path
) -> None:
    classes = run(source, X).argmax(1)
    out = tmp_path / "q.onnx"
    with pytest.raises(ParityError, match=rf"{out}: INT8 names the class of fp32 on .* below 100\.1 %"):
        int8_from_onnx(source, out, CALIBRATION, min_top1_agreement=1.001)
    with pytest.raises(ParityError, match=r"INT8 loses -?\d+\.\d\d points of accuracy, above -200"):
        int8_from_onnx(
            source, out, CALIBRATION, labels=classes, min_top1_agreement=0.0, max_accuracy_drop=-2.0
        )
    assert list(tmp_path.iterdir()) == []
    found = int8_from_onnx(
        source, out, CALIBRATION, labels=classes, min_top1_agreement=0.5, max_accuracy_drop=0.5
    )
    assert found.accuracy_drop == pytest.approx(1.0 - found.top1_agreement)  # labelled by fp32 itself


def damaged(index: tuple[int, ...], value: float) -> np.ndarray:
    images = X.copy()
    images[index] = value
    return images


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({"x": X}, r"calibration: arrays are named \['x'\], but .*net\.onnx takes \['input'\]"),
        ({"input": X[:, :, :7]}, r"'input' is float32 \[32, 1, 7, 8\], but .* float32 \[N, 1, 8, 8\]"),
        ({"input": X[0]}, r"'input' is float32 \[1, 8, 8\]"),
        ({"input": X.astype(np.float64)}, r"'input' is float64"),
        ({"input": (X * 255).astype(np.uint8)}, r"'input' is uint8"),
        ({"input": X.tolist()}, r"'input' is list, not a NumPy array"),
        ({"input": X[:7]}, r"7 images are too few, at least 8"),
        ({"input": damaged((3, 0, 2, 2), np.nan)}, r"not finite, first in image 3"),
        ({"input": damaged((5, 0, 0, 0), np.inf)}, r"not finite, first in image 5"),
    ],
)
def test_unfit_calibration_images_are_one_clear_error(
    source: Path, tmp_path: Path, calibration: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        int8_from_onnx(source, tmp_path / "q.onnx", calibration)
    assert list(tmp_path.iterdir()) == []


def test_unfit_labels_layouts_and_sources_are_refused(source: Path, quantised: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    with pytest.raises(ExportError, match=r"labels: float64 \[32\], but the 32 judged images"):
        int8_from_onnx(source, out, CALIBRATION, labels=np.zeros(32))
    with pytest.raises(ExportError, match=r"labels: int64 \[3\]"):
        int8_from_onnx(source, out, CALIBRATION, labels=np.zeros(3, np.int64))
    with pytest.raises(ExportError, match=r"activations 'int4' is not one of uint8, int8"):
        int8_from_onnx(source, out, CALIBRATION, activations="int4")
    with pytest.raises(ExportError, match=r"int8\.onnx: its precision is int8"):
        int8_from_onnx(quantised, out, CALIBRATION)


def test_other_loggers_and_folders_are_left_alone(source: Path, tmp_path: Path) -> None:
    before = logging.getLogger().level
    int8_from_onnx(source, tmp_path / "q.onnx", CALIBRATION, min_top1_agreement=0.0)
    assert logging.getLogger().level == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["q.onnx"]


def test_a_module_becomes_int8_with_its_error_against_torch(resnet20: MakeNet, tmp_path: Path) -> None:
    net, images = resnet20(8).eval(), torch.from_numpy(X)
    path = onnx_from_module(
        net, tmp_path / "q.onnx", images[:2], precision="int8", calibration=images, min_top1_agreement=0.5
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["q.onnx"]
    texts = metadata_of(onnx.load(path))
    parity, apart = (float(texts[f"ticket_export.{name}_rel_error"]) for name in ("parity", "precision"))
    assert parity == pytest.approx(apart, rel=1e-2)  # what export itself costs is far less
    with torch.no_grad():
        expected = net(images[:8]).numpy()
    worst = np.abs(run(path, X[:8]) - expected).max() / np.abs(expected).max()
    assert worst == pytest.approx(parity, rel=1e-2)


def test_a_module_without_calibration_images_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="precision int8 needs calibration images"):
        onnx_from_module(nn.Linear(2, 2), tmp_path / "q.onnx", torch.ones(1, 2), precision="int8")
    with pytest.raises(ExportError, match=r"'input' is float32 \[9, 3\], but .* \[N, 2\]"):
        onnx_from_module(
            nn.Linear(2, 2),
            tmp_path / "q.onnx",
            torch.ones(1, 2),
            precision="int8",
            calibration=torch.ones(9, 3),
        )
    assert list(tmp_path.iterdir()) == []


def test_two_inputs_are_calibrated_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    images = {"input_1": X[:, 0, 0, :2].copy(), "input_0": X[:, 0, 0, :4].copy()}
    path = onnx_from_module(
        Two(),
        tmp_path / "two.onnx",
        (torch.ones(1, 4), torch.ones(1, 2)),
        precision="int8",
        calibration=images,
        min_top1_agreement=0.5,
    )
    kinds = [weight.data_type for weight in onnx.load(path).graph.initializer]
    assert kinds.count(TensorProto.INT8) >= 2


SCRIPT = """
import sys
for name in ("torch", "onnxscript", "sympy", "scipy", "matplotlib"):
    sys.modules[name] = None
import numpy as np
from ticket_export.export.precision import fp16_from_onnx
from ticket_export.export.quantize import int8_from_onnx
images = {"input": np.load(sys.argv[2])}
print(fp16_from_onnx(sys.argv[1], sys.argv[1] + ".fp16", check_inputs=images).precision_rel_error < 2e-2)
print(int8_from_onnx(sys.argv[1], sys.argv[1] + ".int8", images, min_top1_agreement=0.5).fp32_layers)
"""


def test_conversion_needs_no_torch(source: Path, tmp_path: Path) -> None:
    network = tmp_path / "net.onnx"
    network.write_bytes(source.read_bytes())
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(network), str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("True\n()\n", 0), done.stderr
