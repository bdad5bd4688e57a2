from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from ticket_export.errors import ExportError, ParityError, StoreError
from ticket_export.export import onnx as export_onnx
from ticket_export.export import publish
from ticket_export.export.onnx import onnx_from_module
from ticket_export.measure.compare import compare
from ticket_export.runtime.registry import open_runner

MakeNet = Callable[[int], nn.Module]
IMAGES = torch.linspace(-1.0, 1.0, 64).reshape(1, 1, 8, 8)


class Small(nn.Module):
    """conv-norm-relu and a classifier for [N, 1, 8, 8]; quick to export."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(resnet20: MakeNet, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    net = resnet20(16)
    folder = tmp_path_factory.mktemp("export")
    metadata = {"recipe": "digits", "key": "0a1b"}
    return net, onnx_from_module(net, str(folder / "dense.onnx"), IMAGES, metadata=metadata)


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_the_file_computes_what_the_module_computes_at_every_batch(
    exported: tuple[nn.Module, Path], batch: int
) -> None:
    net, path = exported
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(x).numpy()
    with open_runner(path, "ort-cpu") as runner:
        logits = runner.infer({"input": x.numpy()})["logits"]
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5


def test_the_batch_alone_is_dynamic_and_the_names_are_fixed(exported: tuple[nn.Module, Path]) -> None:
    graph = onnx.load(exported[1]).graph
    (entry,), (result,) = graph.input, graph.output
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (entry, result)
    }
    assert shapes == {"input": ["batch", 1, 8, 8], "logits": ["batch", 10]}


def test_it_is_one_checked_file_and_nothing_beside_it(exported: tuple[nn.Module, Path]) -> None:
    net, path = exported
    assert [entry.name for entry in path.parent.iterdir()] == ["dense.onnx"]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    weight_bytes = 4 * sum(parameter.numel() for parameter in net.parameters())
    assert weight_bytes * 0.97 < path.stat().st_size < weight_bytes * 1.2


def test_the_module_is_left_as_it_was(resnet20: MakeNet, tmp_path: Path) -> None:
    net = Small().train()
    net.bn.eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    collecting, random = gc.isenabled(), torch.random.get_rng_state()
    onnx_from_module(net, tmp_path / "small.onnx", IMAGES)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert gc.isenabled() is collecting
    assert torch.equal(torch.random.get_rng_state(), random)


def test_metadata_names_the_source_the_error_and_no_path_of_this_machine(
    exported: tuple[nn.Module, Path],
) -> None:
    model = onnx.load(exported[1])
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert (texts["recipe"], texts["key"]) == ("digits", "0a1b")
    assert texts["ticket_export.precision"] == "fp32"
    assert 0.0 < float(texts["ticket_export.parity_rel_error"]) < 1e-5
    content = exported[1].read_bytes()
    assert b"conftest.py" not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_norms_are_folded_into_their_convolutions(exported: tuple[nn.Module, Path]) -> None:
    kinds = [node.op_type for node in onnx.load(exported[1]).graph.node]
    assert kinds.count("BatchNormalization") == 0
    assert kinds.count("Conv") == 21


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_example_inputs_may_have_any_number_of_rows_bare_or_in_a_tuple(tmp_path: Path, rows: int) -> None:
    images = torch.ones(rows, 1, 8, 8)
    path = onnx_from_module(Small(), tmp_path / "s.onnx", images if rows == 1 else (images,))
    with open_runner(path, "ort-cpu") as runner:
        assert runner.input_specs["input"].shape == (None, 1, 8, 8)


def test_several_inputs_and_outputs_are_numbered_and_integers_stay_valid(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)

        def forward(self, tokens: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embedding(tokens) * scale[:, :, None]
            return x.sum(1), x.mean((1, 2))

    path = onnx_from_module(Two(), tmp_path / "two.onnx", (torch.tensor([[4, 0]]), torch.ones(1, 2)))
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["input_0", "input_1"]
    assert [value.name for value in graph.output] == ["output_0", "output_1"]


def test_unknown_precision_and_other_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="precision 'bf16' is not one of fp32, fp16, int8"):
        onnx_from_module(Small(), tmp_path / "s.onnx", IMAGES, precision="bf16")
    with pytest.raises(ExportError, match=r"parameter 'conv\.weight' is torch\.float64"):
        onnx_from_module(Small().double(), tmp_path / "s.onnx", IMAGES.double())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((), r"got shapes \[\]"),
        (torch.ones(0, 1, 8, 8), r"\[\[0, 1, 8, 8\]\]"),
        (torch.tensor(1.0), r"\[\[\]\]"),
    ],
)
def test_example_inputs_without_rows_are_refused(tmp_path: Path, inputs: Any, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        onnx_from_module(Small(), tmp_path / "s.onnx", inputs)


class Branching(nn.Module):
    """Asks for a value, which a traced graph does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class FixedBatch(nn.Module):
    """Knows its batch, so the batch cannot be free."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2 if len(x) == 2 else 8, 64)


class WithoutBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class Dictionary(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Branching(), "Branching cannot be exported"),
        (FixedBatch(), r"axes \[\] of 'input' are dynamic, but it must be axis 0 alone"),
        (WithoutBatch(), r"axes \[\] of 'logits' are dynamic, but it must be axis 0 alone"),
        (Dictionary(), "returns dict, not a tensor"),
    ],
)
def test_networks_that_cannot_be_exported_are_refused_and_nothing_is_written(
    tmp_path: Path, module: nn.Module, words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        onnx_from_module(module, tmp_path / "s.onnx", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_its_source_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = export_onnx._traced

    def damaged(*args: Any) -> onnx.ModelProto:
        proto = traced(*args)
        bias = next(weight for weight in proto.graph.initializer if weight.name == "linear.bias")
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return proto

    old = tmp_path / "s.onnx"
    old.write_bytes(b"the file before")
    monkeypatch.setattr(export_onnx, "_traced", damaged)
    with pytest.raises(ParityError, match=rf"{old}: relative error \d\.\d+e-0\d against its source is above"):
        onnx_from_module(Small(), old, IMAGES)
    assert old.read_bytes() == b"the file before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.onnx"]


def test_a_file_that_fails_the_checker_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = export_onnx._traced

    def damaged(*args: Any) -> onnx.ModelProto:
        proto = traced(*args)
        proto.graph.node[0].op_type = "NoSuchOperator"
        return proto

    monkeypatch.setattr(export_onnx, "_traced", damaged)
    with pytest.raises(ExportError, match="NoSuchOperator"):
        onnx_from_module(Small(), tmp_path / "s.onnx", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_one_file_are_refused_with_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MAX_BYTES", 100)
    with pytest.raises(ExportError, match=r"\d{3,} bytes do not fit one ONNX file \(limit 100\)"):
        onnx_from_module(Small(), tmp_path / "s.onnx", IMAGES)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"absent/s\.onnx: cannot be written: No such file"):
        onnx_from_module(Small(), tmp_path / "absent" / "s.onnx", IMAGES)


def test_half_the_width_is_measured_faster_than_dense(
    exported: tuple[nn.Module, Path], resnet20: MakeNet, tmp_path: Path
) -> None:
    narrow = onnx_from_module(resnet20(8), tmp_path / "narrow.onnx", IMAGES)
    # calls of a fraction of a millisecond: a busy test machine interrupts few, and no median sees those
    told = compare({"dense": exported[1], "narrow": narrow}, batch=4, samples=100).speedup("narrow")
    assert told.verdict == "faster"
    assert 1.3 < told.ratio < 3.0
