"""A serving box has no torch: measuring, its runtimes and the parity check must not need it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# what a serving box lacks: it has numpy onnx onnxruntime pydantic pyyaml typer rich tabulate
ABSENT = ("torch", "onnxscript", "accelerate", "matplotlib", "safetensors", "sklearn", "scipy", "psutil")

BLOCK = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None  # import raises ModuleNotFoundError
"""

SCRIPT = """
import numpy as np
from pathlib import Path
import ticket_export.measure.speedup, ticket_export.measure.stability, ticket_export.runtime.fake
from ticket_export.errors import TicketExportError
from ticket_export.export.parity import check_parity
from ticket_export.measure.compare import compare
from ticket_export.measure.measurement import load_measurements, save_measurements
from ticket_export.runtime.registry import open_runner

path = Path(sys.argv[1])
comparison = compare({"a": path, "b": path}, rounds=5, samples=5, batch=2)
print(comparison.speedup("b").verdict in ("faster", "slower", "no difference shown"), len(comparison.rows))
save_measurements(path.with_suffix(".npz"), comparison.measurements)
print(list(load_measurements(path.with_suffix(".npz"))))
with open_runner(path, "ort-cpu") as runner:
    images = np.ones((4, 1, 8, 8), dtype=np.float32)
    outputs = runner.infer({"input": images})
print(check_parity(path, {"input": images}, outputs) <= 1e-6)
print([name for name in sys.modules if name.split(".")[0] in ("torch", "onnxscript") and sys.modules[name]])
"""


@pytest.mark.parametrize("blocked", [True, False], ids=["torch absent", "torch installed"])
def test_measuring_needs_no_torch_and_never_imports_it(write_mlp: Callable[..., Path], blocked: bool) -> None:
    script = (BLOCK if blocked else "import sys\n") + SCRIPT
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(write_mlp("a.onnx"))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True 2", "['a', 'b']", "True", "[]"]
