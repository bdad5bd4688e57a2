"""A TensorRT without a GPU, in three generations: the names of the real bindings, the work of ONNX Runtime.

Every class has those scripted members that the real class of that version has (tensorrt_api.json), every enum
the real members with their real values: code that uses what a version lacks fails here as it would there. An
engine's bytes are a header and the ONNX file; running it runs ONNX Runtime on the device memory of
`scripted_cudart` and moves the device's clock on by the build's latency.
"""

from __future__ import annotations

import enum
import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from scripted_cudart import ScriptedCuda
from scripted_engine import running

API: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8")
)
VERSIONS = tuple(sorted(API, key=lambda version: [int(word) for word in version.split(".")]))


@dataclass
class Script:
    """What the scripted TensorRT does, and what it was told.

    Attributes:
        latency_s: seconds of one inference, by number of the build and batch.
        bias: what the n-th build's outputs are off by.
        fail: "builder", "parse", "build", "memory", "load", "context", "capture",
            "run" or "lost": what goes wrong.
        interrupt_build: number of the build in which the user presses Ctrl-C.
    """

    cuda: ScriptedCuda
    trt_version: str = VERSIONS[-1]
    latency_s: Callable[[int, int], float] = lambda build, batch: 1e-4 * batch
    bias: Callable[[int], float] = lambda build: 0.0
    fail: str | None = None
    interrupt_build: int | None = None
    network_flags: list[int] = field(default_factory=list)
    builder_flags: list[set[str]] = field(default_factory=list)
    preview: list[set[str]] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    profiles: list[list[dict[str, tuple[tuple[int, ...], ...]]]] = field(default_factory=list)
    caches_in: list[bytes] = field(default_factory=list)
    opsets: list[int] = field(default_factory=list)
    deserialized: int = 0


class HostMemory(bytes):
    """A buffer, as the real one is."""


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> Script:
    """Return the script of a GPU and a TensorRT that the package finds until the test ends."""
    from ticket_export.runtime import trt_cuda

    script = Script(cuda=ScriptedCuda(), trt_version=version)
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)  # it remembers the tensorrt that it has seen first
    monkeypatch.setitem(sys.modules, "tensorrt", scripted_tensorrt(version, script))
    monkeypatch.setattr(trt_cuda, "_cudart", lambda: trt_cuda._declared(script.cuda))
    return script


def scripted_tensorrt(version: str, script: Script) -> ModuleType:
    """Return a module that stands in for `tensorrt` of that version."""
    api = API[version]
    trt = ModuleType("tensorrt")
    trt.__version__ = version  # type: ignore[attr-defined]
    for name, members in api["enums"].items():
        setattr(trt, name, enum.IntEnum(name, members))
    classes = {**_logging(api), **_building(trt, script), **running(trt, script)}
    for name, cls in classes.items():
        if name in api["classes"]:
            _keep_real_members(cls, set(api["classes"][name]))
        setattr(trt, name, cls)
    trt.init_libnvinfer_plugins = lambda logger, namespace: True  # type: ignore[attr-defined]
    return trt


def _keep_real_members(cls: type, real: set[str]) -> None:
    for name in [name for name in vars(cls) if not name.startswith("_") and name not in real]:
        assert any(name in API[v]["classes"][cls.__name__] for v in VERSIONS), (cls.__name__, name)
        delattr(cls, name)
    if cls.__name__ in ("IProfiler", "ILogger"):  # made to be subclassed
        return
    slots = {name for name in cls.__dict__.get("_assignable", ()) if name in real}
    cls.__setattr__ = _only(slots)  # type: ignore[assignment, method-assign]


def _only(names: set[str]) -> Callable[[object, str, Any], None]:
    def assign(self: object, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in names:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} to assign")
        object.__setattr__(self, name, value)

    return assign


def _logging(api: dict[str, Any]) -> dict[str, type]:
    severity = enum.IntEnum("Severity", api["severities"])

    class ILogger:
        Severity = severity

        def __init__(self) -> None:
            pass

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    ILogger.__init__.__doc__ = "as the real one, to be called by subclasses"
    logger = type("Logger", (ILogger,), dict(severity.__members__))
    return {"ILogger": ILogger, "Logger": logger}


def _building(trt: Any, script: Script) -> dict[str, type]:
    class ITensor:
        _assignable = ()

        def __init__(self, value: onnx.ValueInfoProto) -> None:
            dims = value.type.tensor_type.shape.dim
            self._name = value.name
            self._shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)

        name = property(lambda self: self._name)
        shape = property(lambda self: self._shape)
        dtype = property(lambda self: trt.DataType.FLOAT)
        is_shape_tensor = property(lambda self: False)

    class ILayer:
        def __init__(self, node: onnx.NodeProto) -> None:
            self._node = node

        name = property(lambda self: self._node.name)
        precision_is_set = property(lambda self: False)

        @property
        def type(self) -> Any:
            kinds = {"QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE"}
            return trt.LayerType[kinds.get(self._node.op_type, "CONVOLUTION")]

    class INetworkDefinition:
        def __init__(self) -> None:
            self._model: onnx.ModelProto | None = None

        def __iter__(self) -> Iterator[ILayer]:
            assert self._model is not None
            return iter([ILayer(node) for node in self._model.graph.node])

        @property
        def num_inputs(self) -> int:
            return len(self._inputs())

        def get_input(self, index: int) -> ITensor:
            return ITensor(self._inputs()[index])

        def get_flag(self, flag: Any) -> bool:
            return bool(script.network_flags[-1] & (1 << int(flag)))

        def _inputs(self) -> list[onnx.ValueInfoProto]:
            assert self._model is not None
            weights = {weight.name for weight in self._model.graph.initializer}
            return [value for value in self._model.graph.input if value.name not in weights]

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network, self._logger, self._errors = network, logger, 0

        num_errors = property(lambda self: self._errors)

        def get_error(self, index: int) -> str:
            return "In node 0: unsupported operator"

        def parse(self, model: bytes) -> bool:
            if script.fail == "parse":
                self._errors = 1
                return False
            self._network._model = onnx.load_from_string(model)
            script.opsets.append(self._network._model.opset_import[0].version)
            return True

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

        def __bool__(self) -> bool:
            return bool(self._shapes)

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> HostMemory:
            return HostMemory(self._content)

    class IBuilderConfig:
        _assignable = ("profiling_verbosity", "builder_optimization_level")
        profiling_verbosity = None
        builder_optimization_level = 3
        engine_capability = default_device_type = 0
        DLA_core = -1

        def __init__(self) -> None:
            self._flags = {"TF32"}  # on by default in the real one
            self._preview: set[str] = set()
            self._profiles: list[IOptimizationProfile] = []
            self._cache: ITimingCache | None = None

        num_optimization_profiles = property(lambda self: len(self._profiles))

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag.name)

        def get_flag(self, flag: Any) -> bool:
            return flag.name in self._flags

        def set_preview_feature(self, feature: Any, enable: bool) -> None:
            (self._preview.add if enable else self._preview.discard)(feature.name)

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            return ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class Builder:
        def __init__(self, logger: Any) -> None:
            if script.fail == "builder":
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            script.network_flags.append(flags)
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> HostMemory | None:
            number = len(script.builder_flags)
            if number == script.interrupt_build:
                raise KeyboardInterrupt
            script.builder_flags.append(set(config._flags))
            script.preview.append(set(config._preview))
            script.levels.append(config.builder_optimization_level)
            script.profiles.append([profile._shapes for profile in config._profiles])
            assert config._cache is not None
            script.caches_in.append(config._cache._content)
            config._cache._content += b"timed by build %d;" % number
            if script.fail in ("build", "memory"):
                word = "Cuda Runtime (out of memory)" if script.fail == "memory" else "no implementation"
                self._logger.log(trt.Logger.ERROR, f"[builder.cpp::build::1] Error: {word}")
                return None
            assert network._model is not None
            header = json.dumps({"number": number, "profiles": script.profiles[-1]}).encode()
            content = network._model.SerializeToString()
            return HostMemory(struct.pack("<I", len(header)) + header + content)

    kinds = (ITensor, ILayer, INetworkDefinition, OnnxParser, IOptimizationProfile, ITimingCache)
    return {cls.__name__: cls for cls in (*kinds, IBuilderConfig, Builder)}
