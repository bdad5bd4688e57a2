"""What is in the files that a server shall open: their tensors, and which GPU an engine is for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ticket_export.errors import ExportError, MeasureError
from ticket_export.export.triton_config import TYPE_FROM_DTYPE, ServedModel
from ticket_export.runtime.onnx_file import load_graph
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.runtime.trt_sidecar import EngineFacts, read_facts, sha256_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFiles:
    """The files of one version of a model.

    Attributes:
        model: what Triton opens.
        sources: where each file of the version folder comes from, by its name there.
        max_batch: the largest batch the files were built for; None where any batch runs.
    """

    model: ServedModel
    sources: Mapping[str, Path]
    max_batch: int | None

    @property
    def told(self) -> str:
        """The sources as text."""
        return ", ".join(map(str, self.sources.values()))


def served_files(paths: Sequence[str | Path]) -> ServedFiles:
    """Return what one `.onnx` file, or TensorRT engines for different GPUs, look like in a version folder.

    Raises:
        ExportError: a file is missing, damaged, or cannot be served alone; an engine has no sidecar, or
            engines do not belong together.
        MissingDependency: onnx or onnxruntime is not installed.
    """
    files = [Path(path) for path in paths]
    for file in files or [Path()]:
        if not file.is_file():
            told = f"{file}: no such file" if files else "triton: no model is given"
            raise ExportError(told, hint="give an .onnx file or TensorRT engines")
    are_onnx = [file.suffix == ".onnx" for file in files]
    if any(are_onnx) and len(files) > 1:
        raise ExportError(
            f"triton: {', '.join(map(str, files))} cannot be one version of a model",
            hint="give one .onnx file, or engines of one network, one per kind of GPU",
        )
    try:
        served = _onnx(files[0]) if are_onnx[0] else _engines(files)
    except MeasureError as error:
        raise ExportError(f"{error.message}", hint=error.hint) from error
    for tensor in (*served.model.inputs, *served.model.outputs):
        if tensor.dtype not in TYPE_FROM_DTYPE:
            raise ExportError(
                f"{served.told}: {tensor.name!r} is {tensor.dtype}, which Triton does not serve"
            )
    return served


def _onnx(path: Path) -> ServedFiles:
    _require_one_file(path)
    with OrtCpuRunner(path) as runner:
        inputs, outputs = tuple(runner.input_specs.values()), tuple(runner.output_specs.values())
    model = ServedModel(
        backend="onnxruntime",
        platform="onnxruntime_onnx",
        default_filename="model.onnx",
        filename_by_capability={},
        inputs=inputs,
        outputs=outputs,
    )
    return ServedFiles(model=model, sources={"model.onnx": path}, max_batch=None)


def _require_one_file(path: Path) -> None:
    """Pass for an ONNX file that holds its weights: a version folder gets that file alone."""
    import onnx

    weights = load_graph(path).graph.initializer
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in weights):
        raise ExportError(
            f"{path}: keeps weights in another file",
            hint="onnx.save(onnx.load(path), path) joins them, below 2 GiB",
        )


def _engines(paths: Sequence[Path]) -> ServedFiles:
    facts_by_capability: dict[str, EngineFacts] = {}
    path_by_capability: dict[str, Path] = {}
    for path in paths:
        facts = read_facts(path)
        if sha256_of(path) != facts.engine_sha256:
            raise ExportError(f"{path}: its bytes are not the ones that were built", hint="build it again")
        capability = _capability(facts.gpu.sm, path)
        if capability in facts_by_capability:
            raise ExportError(
                f"triton: {path_by_capability[capability]} and {path} are both for {facts.gpu.sm}",
                hint="give one engine per kind of GPU",
            )
        facts_by_capability[capability], path_by_capability[capability] = facts, path
    first = facts_by_capability[next(iter(facts_by_capability))]
    for capability, facts in facts_by_capability.items():
        same = (facts.source_sha256, facts.inputs, facts.outputs, len(facts.profiles))
        if same != (first.source_sha256, first.inputs, first.outputs, len(first.profiles)):
            raise ExportError(
                f"triton: {path_by_capability[capability]} was built from another file than {paths[0]}",
                hint="build the engines of all GPUs from one .onnx file, with the same batches",
            )
    names = {capability: f"model_sm{capability.replace('.', '')}.plan" for capability in facts_by_capability}
    model = ServedModel(
        backend="tensorrt",
        platform="tensorrt_plan",
        default_filename=names[next(iter(names))],
        filename_by_capability=names,
        inputs=first.inputs,
        outputs=first.outputs,
        num_profiles=len(first.profiles),
    )
    return ServedFiles(
        model=model,
        sources={names[capability]: path for capability, path in path_by_capability.items()},
        max_batch=min(max(facts.batches) for facts in facts_by_capability.values()),
    )


def _capability(sm: str, path: Path) -> str:
    """Return "9.0" for "sm90": CUDA's major and minor number, the key that Triton looks an engine up by."""
    words = re.fullmatch(r"sm(\d+)(\d)", sm)
    if words is None:
        raise ExportError(f"{path}: its sidecar names no GPU generation, but {sm!r}", hint="build it again")
    return f"{words[1]}.{words[2]}"
