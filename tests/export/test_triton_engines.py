"""Engines in a repository: each GPU gets the plan that was built for it, and no unknown one is served."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from triton_reader import TYPES, ServedByRules

from ticket_export.errors import ExportError
from ticket_export.export.triton import triton_repository
from ticket_export.runtime.runner import TensorSpec
from ticket_export.runtime.trt_cuda import Gpu
from ticket_export.runtime.trt_sidecar import EngineFacts, sidecar_path, write_facts

INPUT = TensorSpec(name="input", dtype="float32", shape=(None, 3, 32, 32))
LOGITS = TensorSpec(name="logits", dtype="float16", shape=(None, 10))


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Path]:
    """Writes bytes that stand for an engine, and the sidecar that a build of it leaves."""

    def write(name: str, sm: str, **changed: Any) -> Path:  # Any: fields of EngineFacts
        path = tmp_path / f"{name}.engine"
        path.write_bytes(f"ftrt {name}".encode())
        facts: dict[str, Any] = {
            "engine_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "source": "net.onnx",
            "source_sha256": "a" * 64,
            "precision": "fp16",
            "batches": (1, 8),
            "profiles": ({"min": 1, "opt": 1, "max": 1}, {"min": 2, "opt": 8, "max": 8}),
            "inputs": (INPUT,),
            "outputs": (LOGITS,),
            "gpu": Gpu(name=f"GPU {sm}", sm=sm, driver="570.1", cuda_driver="12.8", cuda_runtime="12.8"),
            "tensorrt": "10.12.0",
            "polygraphy": "0.49.26",
            "flags": {},
            "builds": (),
            "build_seconds": 1.0,
            "spread_fraction": None,
            "parity": {"rel_error": 1e-3},
            "layers": {},
        }
        write_facts(path, EngineFacts(**(facts | changed)))
        return path

    return write


def test_each_gpu_opens_the_plan_that_was_built_for_it(engine: Callable[..., Path], tmp_path: Path) -> None:
    hopper, ampere = engine("h200", "sm90"), engine("a100", "sm80")
    version = triton_repository([hopper, ampere], tmp_path / "models", name="net")
    served = ServedByRules(version.parent)
    assert dict(served.config.cc_model_filenames) == {"9.0": "model_sm90.plan", "8.0": "model_sm80.plan"}
    assert served.file(1, "9.0").read_bytes() == hopper.read_bytes()
    assert served.file(1, "8.0").read_bytes() == ampere.read_bytes()
    assert sorted(path.name for path in version.iterdir()) == ["model_sm80.plan", "model_sm90.plan"]
    assert served.file(1, "7.5").is_file()  # TensorRT itself refuses a plan of another GPU


def test_the_configuration_is_that_of_the_engine(engine: Callable[..., Path], tmp_path: Path) -> None:
    version = triton_repository(engine("net", "sm120"), tmp_path / "models", name="net")
    config = ServedByRules(version.parent).config
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert list(config.cc_model_filenames) == ["12.0"]
    assert config.max_batch_size == 8
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[3, 32, 32], [10]]
    assert config.output[0].data_type == TYPES.DataType.Value("TYPE_FP16")
    (group,) = config.instance_group
    assert group.kind == TYPES.ModelInstanceGroup.Kind.Value("KIND_GPU")
    assert list(group.profile) == ["0", "1"]  # one per batch that the engine is tuned for
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]


def test_an_engine_of_one_profile_names_none(engine: Callable[..., Path], tmp_path: Path) -> None:
    one = engine("net", "sm90", batches=(4,), profiles=({"min": 1, "opt": 4, "max": 4},))
    version = triton_repository(one, tmp_path / "models", name="net", batches=(4,))
    assert list(ServedByRules(version.parent).config.instance_group[0].profile) == []


def test_an_engine_that_nothing_is_known_of_is_refused(engine: Callable[..., Path], tmp_path: Path) -> None:
    alone = engine("alone", "sm90")
    sidecar_path(alone).unlink()
    changed = engine("changed", "sm90")
    changed.write_bytes(b"ftrt something else")
    for path, text in (
        (alone, "alone.engine.json is missing"),
        (changed, "changed.engine: its bytes are not the ones that were built"),
        (engine("odd", "gfx942"), "names no GPU generation, but 'gfx942'"),
    ):
        with pytest.raises(ExportError) as refused:
            triton_repository(path, tmp_path / "models", name="net")
        assert text in str(refused.value)
    assert not (tmp_path / "models").exists()


def test_engines_that_do_not_belong_together_are_refused(engine: Callable[..., Path], tmp_path: Path) -> None:
    first = engine("first", "sm90")
    onnx = tmp_path / "net.onnx"
    onnx.write_bytes(b"whatever")
    for other, text in (
        (engine("twin", "sm90"), "are both for sm90"),
        (engine("other", "sm80", source_sha256="b" * 64), "was built from another file than"),
        (engine("few", "sm80", batches=(8,), profiles=({"min": 1, "opt": 8, "max": 8},)), "another file"),
        (onnx, "cannot be one version of a model"),
    ):
        with pytest.raises(ExportError) as refused:
            triton_repository([first, other], tmp_path / "models", name="net")
        assert text in str(refused.value)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_batch": 64}, "built for batches up to 8, max_batch is 64"),
        ({"batches": (1, 16)}, "built for batches up to 8, max_batch is 16"),
        ({"kind": "cpu"}, "kind 'cpu' is not one of auto, gpu"),
    ],
)
def test_more_than_the_engine_can_is_refused(
    options: dict[str, Any], text: str, engine: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as refused:
        triton_repository(engine("net", "sm90"), tmp_path / "models", name="net", **options)
    assert text in str(refused.value)


def test_the_next_version_is_for_the_same_gpus(engine: Callable[..., Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    triton_repository(engine("net", "sm90"), models, name="net")
    with pytest.raises(ExportError, match=r"serves a different model: .*cc_model_filenames"):
        triton_repository(engine("other", "sm80"), models, name="net")
    assert sorted(path.name for path in (models / "net" / "1").iterdir()) == ["model_sm90.plan"]
