"""What the Python bindings of TensorRT have, read from the real ones on a machine without GPU.

    pip download --no-deps -d WHEELS tensorrt-bindings==8.6.1 tensorrt-cu12-bindings==10.12.0.36 \
        tensorrt-cu13-bindings==11.4.0.106
    python tests/tensorrt_api.py WHEELS > tests/tensorrt_api.json

The bindings' wheels are about 1 MB each, and the libraries they link some GB. Importing the bindings calls
none of the libraries' functions, so empty libraries with the right names stand in for them (needs gcc, and
the Python that the wheels are for). `tensorrt_api.json` is what the scripted TensorRT of the tests may have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

# the classes, enums and functions that this package, or Polygraphy on its behalf, touches
CLASSES = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "ITensor", "ILayer", "IOptimizationProfile"),
    *("OnnxParser", "Runtime", "ICudaEngine", "IExecutionContext", "EngineInspector", "IHostMemory"),
    *("ITimingCache", "IProfiler", "ILogger"),
)
ENUMS = (
    *("BuilderFlag", "DataType", "DeviceType", "LayerInformationFormat", "LayerType", "MemoryPoolType"),
    *("NetworkDefinitionCreationFlag", "PreviewFeature", "ProfilingVerbosity", "TacticSource"),
    *("TensorFormat", "TensorIOMode"),
)
DUMP = """
import json, sys
import tensorrt_bindings as trt
classes, enums = json.loads(sys.argv[1])
def members(cls):
    names = [name for name in dir(cls) if not name.startswith("_")]
    return [name for name in names if cls is not trt.INetworkDefinition or not name.startswith("add_")]
print(json.dumps({
    "version": trt.__version__,
    "functions": sorted(name for name in ("init_libnvinfer_plugins",) if hasattr(trt, name)),
    "classes": {name: members(getattr(trt, name)) for name in classes},
    "len": sorted(c for c in classes if hasattr(getattr(trt, c), "__len__")),
    "severities": {name: int(value) for name, value in trt.ILogger.Severity.__members__.items()},
    "enums": {e: {n: int(v) for n, v in getattr(trt, e).__members__.items()} for e in enums},
}))
"""


def api_from_wheel(wheel: Path) -> dict[str, Any]:
    """Return version, classes with their members, and enums with their values."""
    with tempfile.TemporaryDirectory() as folder:
        site, libraries = Path(folder, "site"), Path(folder, "lib")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        libraries.mkdir()
        _write_empty_libraries(site / "tensorrt_bindings" / "tensorrt.so", libraries)
        told = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DUMP, json.dumps([CLASSES, ENUMS])],
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(told.stdout)


def _write_empty_libraries(bindings: Path, folder: Path) -> None:
    """Write libraries of the names that the bindings need, whose functions return nothing."""
    needed = re.findall(r"NEEDED.*\[(libnv[^]]*)]", _output("readelf", "-d", str(bindings)))
    undefined = [line.split()[-1] for line in _output("nm", "-D", "-u", str(bindings)).splitlines()]
    pattern = re.compile(r"(create(Infer|NvOnnx)|get(Builder)?Plugin|getNvOnnx|initLibNv|_ZN1[14]nv)\w*")
    source = folder / "empty.c"
    source.write_text(
        "".join(f"void *{n}(void) {{ return 0; }}\n" for n in undefined if pattern.match(n)), "utf-8"
    )
    for name in needed:
        _output("gcc", "-shared", "-fPIC", "-o", str(folder / name), str(source), f"-Wl,-soname,{name}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    dumps = [api_from_wheel(wheel) for wheel in sorted(Path(sys.argv[1]).glob("tensorrt*bindings*.whl"))]
    print(json.dumps({dump["version"]: dump for dump in dumps}, indent=None, separators=(",", ":")))
