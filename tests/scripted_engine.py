"""The half of the scripted TensorRT that runs engines, by ONNX Runtime on the scripted GPU's memory."""

from __future__ import annotations

import json
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

if TYPE_CHECKING:
    from scripted_tensorrt import Script

DTYPES = {1: "FLOAT", 3: "INT8", 6: "INT32", 9: "BOOL", 10: "HALF"}
NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "BOOL": "bool"}


def running(trt: Any, script: Script) -> dict[str, type]:
    """Return the classes that load, inspect and run engines."""

    class EngineInspector:
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine

        def get_engine_information(self, format: Any) -> str:
            assert format == trt.LayerInformationFormat.JSON
            layers = [
                {"Name": node.name or node.op_type, "LayerType": node.op_type}
                for node in self._engine._model.graph.node
            ]
            layers.append({"Name": "Reformatting CopyNode for Output Tensor 0", "LayerType": "Reformat"})
            io_key = "I/O Tensors" if trt.__version__.startswith("11.") else "Bindings"
            return json.dumps({"Layers": layers, io_key: self._engine._names})

    class ICudaEngine:
        def __init__(self, content: bytes) -> None:
            (length,) = struct.unpack_from("<I", content)
            header = json.loads(content[4 : 4 + length])
            self._number: int = header["number"]
            self._profiles = header["profiles"]
            self._model = onnx.load_from_string(content[4 + length :])
            self._session = onnxruntime.InferenceSession(
                self._model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            weights = {weight.name for weight in self._model.graph.initializer}
            inputs = [value for value in self._model.graph.input if value.name not in weights]
            self._values = {value.name: value for value in (*inputs, *self._model.graph.output)}
            self._names = list(self._values)
            self._inputs = [value.name for value in inputs]

        num_io_tensors = property(lambda self: len(self._names))
        num_optimization_profiles = property(lambda self: len(self._profiles))

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[DTYPES[self._values[name].type.tensor_type.elem_type]]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            dims = self._values[name].type.tensor_type.shape.dim
            return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            return [tuple(shape) for shape in self._profiles[profile_index][name]]

        def create_execution_context(self) -> IExecutionContext | None:
            return None if script.fail == "context" else IExecutionContext(self)

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self)

    class IExecutionContext:
        _assignable = ("profiler", "enqueue_emits_profile")
        profiler = None
        enqueue_emits_profile = True

        def __init__(self, engine: ICudaEngine) -> None:
            self._engine, self._profile, self._pending = engine, 0, False
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            assert script.cuda.live[stream_handle] == "stream"
            self._profile = profile_index
            return profile_index < len(self._engine._profiles)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self._engine._profiles[self._profile][name]
            self._shapes[name] = tuple(shape)
            return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self._shapes.values()))[0]
            known = self._shapes.get(name) or self._engine.get_tensor_shape(name)
            return tuple(batch if size < 0 else size for size in known)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return script.cuda.live.get(memory) == "device"

        def execute_async_v3(self, stream_handle: int) -> bool:
            if script.fail == "lost":
                words = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
                sys.modules["polygraphy.backend.trt.util"].get_trt_logger().log(trt.Logger.ERROR, words)
                return False
            if script.fail == "run" or (script.fail == "capture" and script.cuda.capturing):
                return False
            script.cuda.queue(stream_handle, self._work)
            self._pending = self.profiler is not None
            return True

        def report_to_profiler(self) -> bool:
            reported, self._pending = self._pending and not self.enqueue_emits_profile, False
            for node in self._engine._model.graph.node:
                self.profiler.report_layer_time(node.name or node.op_type, 0.25)
            return reported

        def _work(self) -> None:
            engine = self._engine

            def memory(name: str) -> np.ndarray[Any, Any]:
                kind = NUMPY[engine.get_tensor_dtype(name).name]
                return script.cuda.array(self._addresses[name], self.get_tensor_shape(name), kind)

            feed = {name: memory(name) for name in engine._inputs}
            outputs = [name for name in engine._names if name not in engine._inputs]
            for name, answer in zip(outputs, engine._session.run(outputs, feed), strict=True):
                memory(name)[...] = answer + np.asarray(script.bias(engine._number), answer.dtype)
            batch = self._shapes[engine._inputs[0]][0]
            script.cuda.clock_s += script.latency_s(engine._number, batch)

    class Runtime:
        _assignable = ("engine_host_code_allowed",)
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            script.deserialized += 1
            return None if script.fail == "load" else ICudaEngine(bytes(serialized_engine))

    class IProfiler:
        def __init__(self) -> None:
            pass

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    kinds = (EngineInspector, ICudaEngine, IExecutionContext, Runtime)
    return {**{cls.__name__: cls for cls in kinds}, "IProfiler": IProfiler}
