"""What is in the files that a server shall open: their tensors, and which GPU an engine is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ticket_export.errors import ExportError, MeasureError
from ticket_export.export.triton_config import TYPE_FROM_DTYPE, ServedModel
from ticket_export.runtime.onnx_file import load_graph
from ticket_export.runtime.ort import OrtCpuRunner


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
    if len(files) > 1:
        raise ExportError(
            f"triton: {', '.join(map(str, files))} cannot be one version of a model",
            hint="give one .onnx file",
        )
    try:
        served = _onnx(files[0])
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
