"""Reads a model repository the way Triton does: the server's own message types, its rules, its file names.

The rules are those of triton-inference-server/core, written anew: model_config_utils.cc (ValidateModelConfig,
ValidateIOShape), backend_model_instance.cc (GenerateWarmupData), model_repository_manager.cc.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from google.protobuf import text_format

PLATFORM_BY_BACKEND = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
DTYPE_BY_TYPE = {
    "TYPE_BOOL": "bool",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
}


def message_types() -> ModuleType:
    """Return tritonclient's compiled model_config.proto, without the client's own imports (gRPC, gevent)."""
    files = importlib.metadata.files("tritonclient")
    assert files is not None
    (path,) = (file.locate() for file in files if file.as_posix() == "tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TYPES = message_types()


class ServedByRules:
    """One model of a repository, after the checks that make the server refuse it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Any: ModelConfig is made at run time
        self.config: Any = text_format.Parse((folder / "config.pbtxt").read_text(), TYPES.ModelConfig())
        self._check()

    @property
    def versions(self) -> list[int]:
        """The versions that the policy serves."""
        numbers = sorted(
            int(p.name) for p in self.folder.iterdir() if p.name.isdecimal() and p.name[0] != "0"
        )
        policy = self.config.version_policy
        assert policy.WhichOneof("policy_choice") == "latest"
        return numbers[-policy.latest.num_versions :]

    def file(self, version: int, capability: str = "") -> Path:
        """Return what the backend opens: the file named for the GPU, else the default."""
        name = self.config.cc_model_filenames.get(capability, self.config.default_model_filename)
        return self.folder / str(version) / name

    def shape(self, tensor: Any, batch: int) -> list[int]:
        """Return the shape that the model file gets or gives."""
        dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        return [batch, *dims] if self.config.max_batch_size > 0 else dims

    def dtype(self, tensor: Any) -> str:
        return DTYPE_BY_TYPE[TYPES.DataType.Name(tensor.data_type)]

    def run(self, inputs: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[np.generic]]:
        """Run the newest served version on ONNX Runtime; return what the configuration names, by name."""
        assert self.config.backend == "onnxruntime"
        session = onnxruntime.InferenceSession(
            self.file(self.versions[-1]), providers=["CPUExecutionProvider"]
        )
        names = [tensor.name for tensor in self.config.output]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def infer(self, batch: int) -> dict[str, npt.NDArray[np.generic]]:
        """Run it with the inputs that the configuration names; check that the outputs are as it says."""
        generator = np.random.default_rng(batch)
        inputs = {
            tensor.name: generator.integers(0, 2, self.shape(tensor, batch)).astype(self.dtype(tensor))
            for tensor in self.config.input
        }
        outputs = self.run(inputs)
        for tensor in self.config.output:
            assert list(outputs[tensor.name].shape) == self.shape(tensor, batch)
            assert outputs[tensor.name].dtype.name == self.dtype(tensor)
        return outputs

    def _check(self) -> None:
        config = self.config
        assert config.name == self.folder.name
        assert config.platform == PLATFORM_BY_BACKEND[config.backend]
        assert config.max_batch_size >= 0
        for tensor in (*config.input, *config.output):
            assert tensor.name
            assert tensor.data_type != TYPES.DataType.Value("TYPE_INVALID")
            assert tensor.dims
            assert all(size >= 1 or size == -1 for size in tensor.dims)
            if tensor.HasField("reshape"):
                assert config.max_batch_size > 0 or tensor.reshape.shape
                assert np.prod(tensor.dims) == np.prod(list(tensor.reshape.shape))
        if config.HasField("dynamic_batching"):
            assert config.max_batch_size > 0
            assert all(1 <= n <= config.max_batch_size for n in config.dynamic_batching.preferred_batch_size)
        for group in config.instance_group:
            assert group.count >= 1
            assert not group.profile or config.backend == "tensorrt"
        for sample in config.model_warmup:
            assert 1 <= sample.batch_size <= max(1, config.max_batch_size)
            assert set(sample.inputs) == {tensor.name for tensor in config.input}
            for tensor in config.input:
                assert sample.inputs[tensor.name].data_type == tensor.data_type
                assert list(sample.inputs[tensor.name].dims) == list(tensor.dims)
                assert min(tensor.dims) > 0
        assert self.versions
