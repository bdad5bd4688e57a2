"""The serving section of the README: its export is made, and its client is run against what was made.

The server is played by ONNX Runtime and the parsed configuration, the client package by what its own source
offers: only names that are in it are there.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any

import numpy as np
import pytest
import torch
from triton_reader import ServedByRules

from ticket_export.cli import main
from ticket_export.models.zoo import zoo_network

README = Path(__file__).parents[2] / "README.md"
# protocol names: triton-inference-server/server, user guide, "Datatypes"
TYPE_BY_PROTOCOL = {"FP32": "float32", "FP16": "float16", "INT64": "int64"}


def _block(language: str, word: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S)
    (block,) = [block for block in blocks if word in block]
    return block


def _client_source(file: str) -> ast.Module:
    files = importlib.metadata.files("tritonclient")
    assert files is not None
    (path,) = (path.locate() for path in files if path.as_posix() == f"tritonclient/http/{file}.py")
    return ast.parse(Path(str(path)).read_text(encoding="utf-8"))


def _methods(file: str, name: str) -> dict[str, list[str]]:
    """Return the methods of a class of the real client and the names of their arguments."""
    (found,) = (
        node for node in _client_source(file).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    return {
        node.name: [argument.arg for argument in node.args.args]
        for node in found.body
        if isinstance(node, ast.FunctionDef)
    }


class _InferInput:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.name, self.shape, self.datatype = name, shape, datatype

    def set_data_from_numpy(self, input_tensor: np.ndarray[Any, Any]) -> None:
        assert input_tensor.dtype.name == TYPE_BY_PROTOCOL[self.datatype]
        assert list(input_tensor.shape) == self.shape
        self.data = input_tensor


def _client_of(repository: Path) -> type:
    class InferenceServerClient:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8000"  # the server's own port for HTTP

        def __enter__(self) -> InferenceServerClient:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            pass

        def infer(self, model_name: str, inputs: Sequence[_InferInput]) -> Any:  # Any: InferResult
            served = ServedByRules(repository / model_name)
            by_name = {tensor.name: tensor for tensor in served.config.input}
            for tensor in inputs:
                wanted = by_name[tensor.name]
                assert served.dtype(wanted) == TYPE_BY_PROTOCOL[tensor.datatype]
                assert tensor.shape[1:] == list(wanted.dims)
                assert 1 <= tensor.shape[0] <= served.config.max_batch_size
            outputs = served.run({tensor.name: tensor.data for tensor in inputs})
            return SimpleNamespace(as_numpy=outputs.__getitem__)

    return InferenceServerClient


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs the README's export in an empty folder that holds what it names; the repository."""
    monkeypatch.chdir(tmp_path)
    model = zoo_network("resnet20", {}, num_classes=10, image_shape=(3, 32, 32))
    torch.save(model.state_dict(), "weights.pt")
    shrink = "shrink zoo:resnet20 --weights weights.pt --input 1x3x32x32 --out small"
    from safetensors.torch import save_file

    save_file(dict(model.state_dict()), "dense.safetensors")
    export, server = (shlex.split(line) for line in _block("bash", "tritonserver").splitlines())
    for words in (shlex.split(shrink), export[1:]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    flag, _, folder = server[1].partition("=")
    assert (server[0], flag) == ("tritonserver", "--model-repository")
    return Path(folder.replace("$PWD", str(tmp_path)))


def test_the_client_gets_its_answers_from_what_the_export_wrote(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = ModuleType("tritonclient.http")
    client.InferInput = _InferInput  # type: ignore[attr-defined]
    client.InferenceServerClient = _client_of(served)  # type: ignore[attr-defined]
    package = ModuleType("tritonclient")
    package.http = client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", client)
    capsys.readouterr()
    exec(compile(_block("python", "tritonclient"), "README.md", "exec"), {})
    dense, ticket = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"dense \[(\d ){7}\d\]", dense)
    assert ticket.removeprefix("ticket ") == dense.removeprefix(
        "dense "
    )  # nothing was zero: the same network


def test_the_client_uses_what_the_real_package_has() -> None:
    assert _methods("_infer_input", "InferInput")["__init__"] == ["self", "name", "shape", "datatype"]
    assert _methods("_infer_input", "InferInput")["set_data_from_numpy"][:2] == ["self", "input_tensor"]
    client = _methods("_client", "InferenceServerClient")
    assert client["__init__"][:2] == ["self", "url"]
    assert client["infer"][:3] == ["self", "model_name", "inputs"]
    assert {"__enter__", "__exit__"} <= set(client)
    assert _methods("_infer_result", "InferResult")["as_numpy"] == ["self", "name"]
