"""A repository is what Triton reads: parsed by its own message types, and its model run by what they say."""

from __future__ import annotations

import errno
import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from triton_reader import TYPES, ServedByRules

from ticket_export.errors import ExportError, StoreError
from ticket_export.export.triton import triton_repository


@pytest.fixture
def linear(tmp_path: Path) -> Callable[..., Path]:
    """Writes flatten(x) @ w, [N, 3, 4, 4] -> [N / rows, classes], as NAME.onnx."""

    def write(
        name: str, *, classes: int = 5, dtype: str = "float32", batch: int | str = "batch", rows: int = 1
    ) -> Path:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        weight = np.random.default_rng(len(name)).normal(size=(48 * rows, classes)).astype(dtype)
        shape = np.array([-1, 48 * rows], dtype=np.int64)
        graph = helper.make_graph(
            [
                helper.make_node("Reshape", ["input", "shape"], ["flat"]),
                helper.make_node("MatMul", ["flat", "w"], ["logits"]),
            ],
            "linear",
            [helper.make_tensor_value_info("input", kind, [batch, 3, 4, 4])],
            [helper.make_tensor_value_info("logits", kind, [batch, classes])],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(shape, "shape")],
        )
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        return path

    return write


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_model_runs_by_its_configuration_at_batch_one_and_at_the_largest(
    dtype: str, linear: Callable[..., Path], tmp_path: Path
) -> None:
    path = linear("ticket", dtype=dtype)
    version = triton_repository(path, tmp_path / "models", name="ticket", batches=(1, 8))
    assert version == tmp_path / "models" / "ticket" / "1"
    assert (version / "model.onnx").read_bytes() == path.read_bytes()
    served = ServedByRules(version.parent)
    assert [list(tensor.dims) for tensor in (*served.config.input, *served.config.output)] == [[3, 4, 4], [5]]
    for batch in (1, served.config.max_batch_size):
        (logits,) = served.infer(batch).values()
        assert logits.shape == (batch, 5)
        assert np.isfinite(logits).all()
        assert np.abs(logits).max() > 0


def test_every_option_arrives_where_the_server_looks_for_it(
    linear: Callable[..., Path], tmp_path: Path
) -> None:
    options = {"queue_delay_us": 250, "kind": "gpu", "instances": 3, "num_versions": 2}
    version = triton_repository(
        linear("net"), tmp_path / "models", name="net", max_batch=32, batches=(16, 4, 1, 4), **options
    )
    config = ServedByRules(version.parent).config
    assert (config.name, config.backend, config.platform) == ("net", "onnxruntime", "onnxruntime_onnx")
    assert config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (group,) = config.instance_group
    assert (group.kind, group.count) == (TYPES.ModelInstanceGroup.Kind.Value("KIND_GPU"), 3)
    assert config.version_policy.latest.num_versions == 2
    assert [sample.batch_size for sample in config.model_warmup] == [1, 4, 16, 32]
    assert all(sample.inputs["input"].zero_data for sample in config.model_warmup)


def test_dense_and_ticket_stand_side_by_side(linear: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("dense", "ticket"):
        triton_repository(linear(name), tmp_path / "models", name=name)
    served = {path.name: ServedByRules(path) for path in (tmp_path / "models").iterdir()}
    assert sorted(served) == ["dense", "ticket"]
    answers = {name: model.infer(2)["logits"] for name, model in served.items()}
    assert not np.array_equal(answers["dense"], answers["ticket"])


def test_a_free_size_beside_the_batch_is_served_and_not_warmed_up(tmp_path: Path) -> None:
    values = [
        helper.make_tensor_value_info(name, kind, ["batch", *sizes])
        for name, kind, sizes in (("ids", TensorProto.INT64, ["length"]), ("score", TensorProto.FLOAT, []))
    ]
    nodes = [
        helper.make_node("Cast", ["ids"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["score"], keepdims=0),
    ]
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), "axes")
    graph = helper.make_graph(nodes, "sums", values[:1], values[1:], [axes])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        tmp_path / "sums.onnx",
    )
    version = triton_repository(tmp_path / "sums.onnx", tmp_path / "models", name="sums")
    config = ServedByRules(version.parent).config
    assert list(config.input[0].dims) == [-1]
    assert list(config.output[0].dims) == [1]  # one number per image: the request sees [N, 1]
    assert config.output[0].HasField("reshape")
    assert list(config.output[0].reshape.shape) == []
    assert list(config.model_warmup) == []


def test_a_file_of_a_fixed_batch_is_served_as_it_is(linear: Callable[..., Path], tmp_path: Path) -> None:
    path = linear("net", batch=2)
    with pytest.raises(ExportError, match=r"'input' has the shape \[2, 3, 4, 4\], whose batch is not free"):
        triton_repository(path, tmp_path / "models", name="net")
    assert not (tmp_path / "models").exists()
    version = triton_repository(path, tmp_path / "models", name="net", max_batch=0)
    served = ServedByRules(version.parent)
    assert served.config.max_batch_size == 0
    assert list(served.config.input[0].dims) == [2, 3, 4, 4]
    assert not served.config.HasField("dynamic_batching")
    assert [sample.batch_size for sample in served.config.model_warmup] == [1]
    assert served.infer(0)["logits"].shape == (2, 5)


def test_a_batch_that_is_declared_free_and_fixed_inside_is_refused(
    linear: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"net\.onnx cannot be served: .*cannot be reshaped"):
        triton_repository(linear("net", rows=2), tmp_path / "models", name="net")
    assert not (tmp_path / "models").exists()


def test_a_second_export_is_the_next_version_and_the_same_files_are_none(
    linear: Callable[..., Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    first, second = linear("first"), linear("another")
    assert triton_repository(first, models, name="net").name == "1"
    before = _files(models)
    assert triton_repository(first, models, name="net").name == "1"
    assert _files(models) == before
    assert triton_repository(second, models, name="net").name == "2"
    after = _files(models)
    assert after["net/1/model.onnx"] == first.read_bytes()
    assert after["net/2/model.onnx"] == second.read_bytes()
    assert after["net/config.pbtxt"] == before["net/config.pbtxt"]
    served = ServedByRules(models / "net")
    assert served.versions == [2]
    session = onnx.load(served.file(2))
    assert session.SerializeToString() == second.read_bytes()
    triton_repository(second, models, name="net", num_versions=2)
    assert ServedByRules(models / "net").versions == [1, 2]


def test_checksums_are_those_of_every_file_and_the_usual_tool_reads_them(
    linear: Callable[..., Path], tmp_path: Path
) -> None:
    model = triton_repository(linear("first"), tmp_path / "models", name="net").parent
    triton_repository(linear("another"), tmp_path / "models", name="net")
    files = _files(model)
    listed = dict(line.split("  ")[::-1] for line in files.pop("checksums.sha256").decode().splitlines())
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert sorted(listed) == ["1/model.onnx", "2/model.onnx", "config.pbtxt"]
    told = subprocess.run(
        ["sha256sum", "-c", "checksums.sha256"], cwd=model, capture_output=True, check=False
    )
    assert told.returncode == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "a/b"}, "'a/b' cannot name a model"),
        ({"name": ""}, "'' cannot name a model"),
        ({"name": ".."}, "'..' cannot name a model"),
        ({"name": "my net"}, "'my net' cannot name a model"),
        ({"batches": ()}, "batches are []"),
        ({"batches": (0, 8)}, "batches are [0, 8]"),
        ({"max_batch": -1}, "max_batch is -1"),
        ({"queue_delay_us": -5}, "queue_delay_us is -5"),
        ({"instances": 0}, "instances is 0"),
        ({"num_versions": 0}, "num_versions is 0"),
        ({"kind": "tpu"}, "kind 'tpu' is not one of auto, cpu, gpu"),
    ],
)
def test_what_triton_refuses_is_refused_here(
    options: dict[str, Any], text: str, linear: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as refused:
        triton_repository(linear("net"), tmp_path / "models", **({"name": "net"} | options))
    assert text in str(refused.value)
    assert not (tmp_path / "models").exists()


def test_files_that_cannot_be_served_are_named(linear: Callable[..., Path], tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.onnx", tmp_path / "none.onnx"
    broken.write_bytes(linear("net").read_bytes()[:60])
    beside = linear("beside")
    onnx.save(onnx.load(beside), beside, save_as_external_data=True, location="w.bin", size_threshold=0)
    for paths, text in (
        (broken, "broken.onnx: not an ONNX file"),
        (missing, "none.onnx: no such file"),
        (beside, "beside.onnx: keeps weights in another file"),
        ([], "no model is given"),
        ([linear("net"), linear("ticket")], "cannot be one version of a model"),
    ):
        with pytest.raises(ExportError) as refused:
            triton_repository(paths, tmp_path / "models", name="net")
        assert text in str(refused.value)
    assert not (tmp_path / "models").exists()


def test_a_different_model_of_that_name_is_kept(linear: Callable[..., Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    triton_repository(linear("net"), models, name="net")
    before = _files(models)
    with pytest.raises(ExportError) as refused:
        triton_repository(linear("wide", classes=7), models, name="net")
    assert "net serves a different model" in str(refused.value)
    assert "dims: [5]" in str(refused.value)
    assert "dims: [7]" in str(refused.value)
    assert _files(models) == before


@pytest.mark.parametrize("file", ["config.pbtxt", "1/model.onnx"])
def test_what_was_changed_by_hand_is_never_overwritten(
    file: str, linear: Callable[..., Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    triton_repository(linear("net"), models, name="net")
    (models / "net" / file).write_bytes((models / "net" / file).read_bytes() + b"\n")
    before = _files(models)
    with pytest.raises(ExportError, match=rf"{file} has changed since it was exported"):
        triton_repository(linear("another"), models, name="net")
    assert _files(models) == before


def test_a_folder_of_somebody_else_is_left_alone(linear: Callable[..., Path], tmp_path: Path) -> None:
    theirs = tmp_path / "models" / "net" / "1"
    theirs.mkdir(parents=True)
    (theirs / "model.onnx").write_bytes(b"theirs")
    with pytest.raises(ExportError, match=r"not an export of ticket-export: it has no checksums\.sha256"):
        triton_repository(linear("net"), tmp_path / "models", name="net")
    assert _files(tmp_path / "models") == {"net/1/model.onnx": b"theirs"}


@pytest.mark.parametrize("already_there", [False, True])
def test_a_full_disk_leaves_the_repository_as_it_was(
    already_there: bool, linear: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    if already_there:
        triton_repository(linear("net"), models, name="net")
    before = _files(tmp_path) if already_there else {}
    second = linear("another")

    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StoreError, match="No space left on device"):
        triton_repository(second, models, name="net")
    after = _files(tmp_path)
    del after["another.onnx"]
    assert after == before
    assert [path.name for path in models.iterdir()] == (["net"] if already_there else [])


def test_an_export_that_was_killed_before_its_checksums_goes_on(
    linear: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, second = tmp_path / "models", linear("another")
    triton_repository(linear("net"), models, name="net")

    def killed(path: Path, text: str) -> None:
        if path.name == "checksums.sha256":
            raise KeyboardInterrupt
        path.write_text(text, encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr("ticket_export.export.triton._replace", killed)
        with pytest.raises(KeyboardInterrupt):
            triton_repository(second, models, name="net", instances=2)
    assert ServedByRules(models / "net").versions == [2]
    assert triton_repository(second, models, name="net", instances=2).name == "2"
    assert "2/model.onnx" in (models / "net" / "checksums.sha256").read_text()
    assert ServedByRules(models / "net").config.instance_group[0].count == 2
