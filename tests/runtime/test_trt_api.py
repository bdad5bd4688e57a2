"""Every name of TensorRT that this package uses is in the real bindings of the versions it is written for."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
import tensorrt_api
from scripted_cudart import ScriptedCuda
from scripted_tensorrt import API, VERSIONS, Script, scripted_tensorrt

from ticket_export.runtime import trt_session

WHEELS = os.environ.get("TICKET_EXPORT_TENSORRT_WHEELS")
# what our own code asks of each object; what Polygraphy asks on its behalf, the scripted classes have
USED = {
    "EngineInspector": ["get_engine_information"],
    "IBuilderConfig": ["create_timing_cache", "get_timing_cache", "set_preview_feature", "set_timing_cache"],
    "ICudaEngine": [
        *("create_engine_inspector", "create_execution_context", "get_tensor_dtype", "get_tensor_mode"),
        *("get_tensor_name", "get_tensor_profile_shape", "get_tensor_shape", "num_io_tensors"),
        "num_optimization_profiles",
    ],
    "IExecutionContext": [
        *("enqueue_emits_profile", "execute_async_v3", "get_tensor_shape", "profiler"),
        *("report_to_profiler", "set_input_shape", "set_optimization_profile_async", "set_tensor_address"),
    ],
    "IProfiler": ["report_layer_time"],
    "ITimingCache": ["serialize"],
}


def attributes_of(*names: str) -> set[str]:
    """Return every attribute that runtime/trt*.py reads or writes of a variable or member so called."""
    found = set()
    for file in Path(trt_session.__file__).parent.glob("trt*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
                if name in names:
                    found.add(node.attr)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "names"), USED.items())
def test_the_real_bindings_have_what_is_used(version: str, kind: str, names: list[str]) -> None:
    assert [name for name in names if name not in API[version]["classes"][kind]] == []


def test_what_is_used_is_all_that_the_code_uses() -> None:
    assert attributes_of("engine") == set(USED["ICudaEngine"])
    assert attributes_of("context") == set(USED["IExecutionContext"])
    assert attributes_of("inspector") == set(USED["EngineInspector"])
    assert attributes_of("config") == set(USED["IBuilderConfig"])
    assert attributes_of("trt", "_trt") - {"__version__"} == {
        *("IProfiler", "LayerInformationFormat", "NetworkDefinitionCreationFlag", "PreviewFeature"),
        "TensorIOMode",
    }


def test_the_generations_differ_where_the_code_says_they_do() -> None:
    old, middle, new = (API[version]["enums"] for version in VERSIONS)
    strong = ["STRONGLY_TYPED" in enums["NetworkDefinitionCreationFlag"] for enums in (old, middle, new)]
    assert strong == [False, True, True]
    weak = [{"FP16", "INT8"} <= set(enums["BuilderFlag"]) for enums in (old, middle, new)]
    assert weak == [True, True, False]
    shared = ["PROFILE_SHARING_0806" in enums["PreviewFeature"] for enums in (old, middle, new)]
    assert shared == [True, True, False]
    assert all("TF32" in enums["BuilderFlag"] for enums in (old, middle, new))
    for enums in (old, middle, new):
        known = set(trt_session.DTYPE_FROM_TENSORRT)
        assert known - {"INT64"} <= set(enums["DataType"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_scripted_module_lacks_what_the_real_one_lacks(version: str) -> None:
    trt = scripted_tensorrt(version, Script(cuda=ScriptedCuda()))
    assert dict(trt.BuilderFlag.__members__) == API[version]["enums"]["BuilderFlag"]
    assert hasattr(trt.ILayer, "precision_is_set") is (version != VERSIONS[-1])
    with pytest.raises(AttributeError, match="max_workspace_size"):
        trt.IBuilderConfig().max_workspace_size = 1 << 30
    with pytest.raises(AttributeError, match="execute_async_v2"):
        _ = trt.IExecutionContext.execute_async_v2


@pytest.mark.skipif(
    WHEELS is None,
    reason="TICKET_EXPORT_TENSORRT_WHEELS is not set to the bindings' wheels (see tests/tensorrt_api.py)",
)
def test_the_list_of_names_is_what_the_real_bindings_say() -> None:
    tag = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    wheels = [
        wheel for wheel in sorted(Path(str(WHEELS)).glob("tensorrt*bindings*.whl")) if tag in wheel.name
    ]
    assert wheels, f"no wheel of the bindings for {tag.strip('-')} in {WHEELS}"
    for wheel in wheels:
        api = tensorrt_api.api_from_wheel(wheel)
        assert API[api["version"]] == api
