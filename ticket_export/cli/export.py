"""The verb that writes networks for serving: ONNX files, TensorRT engines, a Triton repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ticket_export.cli.images import calibration_images
from ticket_export.cli.inputs import InputSpec, builder_arguments, each_of, sizes_from_text
from ticket_export.cli.sources import Source, sources_from_words
from ticket_export.errors import ExportError, TicketExportError
from ticket_export.runtime.offers import PRECISIONS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

TARGETS = ("onnx", "tensorrt", "triton")
FOR_ENGINES = "-trt"  # of an int8 file beside the one that ONNX Runtime runs
MAX_NAMED = 8  # layers in one line
Tell: TypeAlias = Callable[[str], None]

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME=]MODEL...", help="a bundle's folder, an .onnx file, zoo:NAME, file.py:fn, ..."
    ),
]
OutFolder = Annotated[Path, typer.Option(metavar="DIR", help="where everything is written")]
To = Annotated[str, typer.Option(metavar="TARGETS", help="of onnx, tensorrt, triton; joined by commas")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES", help="of fp32, fp16, int8; joined by commas [default: fp32, or the file's]"
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="of a builder: .safetensors, .pt (weights only) or .npz")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SHAPE", help="such as 1x3x32x32; one per input [default: the bundle's]"),
]
Arguments = Annotated[
    list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="an argument of the builder")
]
Builder = Annotated[str | None, typer.Option(help="of a bundle, in place of the one in its manifest")]
Calibration = Annotated[
    Path | None, typer.Option(metavar="FILE.npz", help="train_x or x: images that show int8 its ranges")
]
Mean = Annotated[str | None, typer.Option(help="of the images, per channel: 0.49,0.48,0.44")]
Std = Annotated[str | None, typer.Option(help="of the images, per channel: 0.25,0.24,0.26")]
Batches = Annotated[str, typer.Option(metavar="SIZES", help="engines are tuned for them, Triton forms them")]
Name = Annotated[str | None, typer.Option(help="of the one model [default: as its folder, file or builder]")]
MaxBatch = Annotated[
    int | None, typer.Option(help="Triton: the largest batch; 0: it is fixed [default: of --batches]")
]
QueueDelay = Annotated[
    int, typer.Option(metavar="MICROSECONDS", help="Triton: how long a request may wait for others")
]
Kind = Annotated[
    str | None, typer.Option(help="Triton: cpu, gpu or auto [default: gpu for engines, else auto]")
]
Instances = Annotated[int, typer.Option(help="Triton: how many run side by side on each device")]


def export(
    models: Models,
    out: OutFolder,
    to: To = "onnx",
    precision: Precision = None,
    weights: Weights = None,
    inputs: Inputs = None,
    arguments: Arguments = None,
    builder: Builder = None,
    calibration: Calibration = None,
    mean: Mean = None,
    std: Std = None,
    batches: Batches = "1,8",
    name: Name = None,
    max_batch: MaxBatch = None,
    queue_delay: QueueDelay = 100,
    kind: Kind = None,
    instances: Instances = 1,
) -> None:
    """Write networks for serving: ONNX files of several precisions, engines, a Triton model repository."""
    sources = sources_from_words(
        models,
        name=name,
        weights=weights,
        specs=[InputSpec.from_text(text) for text in inputs or ()],
        arguments=builder_arguments(arguments or ()),
        builder=builder,
    )
    precisions = [] if precision is None else each_of("--precision", precision, PRECISIONS)
    wanted = _Wanted(
        targets=each_of("--to", to, TARGETS),
        precisions=precisions,
        out=out,
        batches=sizes_from_text("--batches", batches),
        max_batch=max_batch,
        queue_delay_us=queue_delay,
        kind=kind,
        instances=instances,
        images=_images(calibration, mean, std, precisions),
        alone=len(sources) == 1,
    )
    with _what_is_done_stays() as tell:
        _write(sources, wanted, tell)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What is written of every network; `images` are those of int8, float32 [N, C, H, W]."""

    targets: Sequence[str]
    precisions: Sequence[str]
    out: Path
    batches: tuple[int, ...]
    max_batch: int | None
    queue_delay_us: int
    kind: str | None
    instances: int
    images: npt.NDArray[np.float32] | None
    alone: bool

    def activations(self, precision: str) -> str:
        """Return the integers of int8: TensorRT takes no zero points, ONNX Runtime on x86 is slow without."""
        for_engines = precision.endswith(FOR_ENGINES) or "onnx" not in self.targets
        return "int8" if for_engines and "tensorrt" in self.targets else "uint8"

    def calibration(
        self, precision: str, names: Sequence[str], source: Source
    ) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return the images of int8 by the name of the network's one input; None for other precisions."""
        if self.images is None or not precision.startswith("int8"):
            return None
        if len(names) != 1:
            raise ExportError(
                f"{source.word}: has {len(names)} inputs, but --calibration holds the images of one",
                hint="te.onnx_from_module(..., precision='int8', calibration={name: array, ...})",
            )
        return {names[0]: self.images}

    def path(self, source: Source, precision: str, suffix: str) -> Path:
        folder = self.out if self.alone else self.out / source.name
        return folder / f"{source.name}.{precision}{suffix}"


def _images(
    path: Path | None, mean: str | None, std: str | None, precisions: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    if path is None:
        if "int8" in precisions:
            raise ExportError(
                "--precision: int8 needs images that show it the ranges of the activations",
                hint="--calibration FILE.npz with --mean and --std of the training",
            )
        if mean is not None or std is not None:
            raise ExportError("--mean and --std belong to --calibration, which is not given")
        return None
    if "int8" not in precisions:
        raise ExportError(f"--calibration: {path} is for int8, which --precision does not name")
    return calibration_images(path, mean, std)


@contextmanager
def _what_is_done_stays() -> Iterator[Tell]:
    """Give what tells a finished file; say beside an error that what was told is whole."""
    num_told = 0

    def tell(line: str) -> None:
        nonlocal num_told
        num_told += 1
        typer.echo(line)

    try:
        yield tell
    except TicketExportError as error:
        if num_told:
            error.message += "\nwhat is told above is written and complete"
        raise


def _write(sources: Sequence[Source], wanted: _Wanted, tell: Tell) -> None:
    """Write the ONNX files of every network, then what serves them; engines, which need a GPU, come last."""
    files = {source.name: _onnx_files(source, wanted, tell) for source in sources}
    jobs = [(source, precision, path) for source in sources for precision, path in files[source.name].items()]
    engines = "tensorrt" in wanted.targets
    if "triton" in wanted.targets and (not engines or "onnx" in wanted.targets):
        for source, precision, path in jobs:
            _serve(path, _served_name(source, precision, files, ""), wanted, tell)
    for source, precision, path in jobs if engines else ():
        onnx_path = _engine_source(source, precision, path, wanted, tell)
        engine_path = _made_place(source, precision, wanted, suffix=".engine")
        engine = _engine(onnx_path, engine_path, wanted, tell)
        if "triton" in wanted.targets:
            suffix = "-trt" if "onnx" in wanted.targets else ""
            _serve(engine, _served_name(source, precision, files, suffix), wanted, tell)


def _served_name(source: Source, precision: str, files: Mapping[str, Mapping[str, Path]], suffix: str) -> str:
    """Return the model's name: with its precision where there are several, and -trt beside its ONNX twin."""
    alone = len(files[source.name]) == 1
    return f"{source.name}{'' if alone else f'-{precision}'}{suffix}"


def _onnx_files(source: Source, wanted: _Wanted, tell: Tell) -> dict[str, Path]:
    """Write the ONNX files of one network; return them by precision.

    A file is converted without torch, and taken as it is in its own precision.
    """
    files = {}
    if source.kind == "onnx":
        from ticket_export.runtime.onnx_file import precision_from_onnx

        given = Path(source.word)
        own = precision_from_onnx(given)
        for precision in wanted.precisions or (own,):
            path = given if precision == own else _converted(source, precision, wanted)
            files[precision] = path
            tell(_onnx_line(path))
        return files
    network, examples = source.network()
    for precision in wanted.precisions or ("fp32",):
        files[precision] = _exported(source, network, examples, precision, wanted)
        tell(_onnx_line(files[precision]))
    return files


def _exported(
    source: Source, network: nn.Module, examples: tuple[Tensor, ...], precision: str, wanted: _Wanted
) -> Path:
    from ticket_export.export.onnx import onnx_from_module
    from ticket_export.runtime.torch_eager import input_names

    return onnx_from_module(
        network,
        _made_place(source, precision, wanted),
        examples,
        precision=precision.removesuffix(FOR_ENGINES),
        calibration=wanted.calibration(precision, input_names(len(examples)), source),
        activations=wanted.activations(precision),
    )


def _converted(source: Source, precision: str, wanted: _Wanted) -> Path:
    from ticket_export.export.precision import fp16_from_onnx
    from ticket_export.export.quantize import int8_from_onnx
    from ticket_export.runtime.ort import OrtCpuRunner

    given = Path(source.word)
    path = _made_place(source, precision, wanted)
    if path.resolve() == given.resolve():
        raise ExportError(f"{given}: would be overwritten by its {precision} file", hint="--name another")
    with OrtCpuRunner(given) as runner:
        names = list(runner.input_specs)
    images = wanted.calibration(precision, names, source)
    if images is not None:
        int8_from_onnx(given, path, images, activations=wanted.activations(precision))
    elif precision == "fp16":
        fp16_from_onnx(given, path)
    else:
        raise ExportError(f"{given}: {precision} is made from a network, not from a file of less precision")
    return path


def _made_place(source: Source, precision: str, wanted: _Wanted, *, suffix: str = ".onnx") -> Path:
    """Return where a file goes, in a folder that is there."""
    from ticket_export.store.store import disk_errors_told

    path = wanted.path(source, precision, suffix)
    with disk_errors_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(f"writing {path}", err=True)
    return path


def _serve(path: Path, name: str, wanted: _Wanted, tell: Tell) -> None:
    from ticket_export.export.triton import triton_repository

    version = triton_repository(
        path,
        wanted.out / "triton",
        name=name,
        max_batch=wanted.max_batch,
        batches=wanted.batches,
        queue_delay_us=wanted.queue_delay_us,
        kind=wanted.kind,
        instances=wanted.instances,
    )
    tell(f"{version}: {path.name}, served as {name!r}, version {version.name}")


def _engine_source(source: Source, precision: str, path: Path, wanted: _Wanted, tell: Tell) -> Path:
    """Return the ONNX file that an engine is built from: for int8 a second one."""
    if precision != "int8" or wanted.activations(precision) == "int8" or path == Path(source.word):
        return path
    if source.kind == "onnx":
        path = _converted(source, precision + FOR_ENGINES, wanted)
    else:
        path = _exported(source, *source.network(), precision + FOR_ENGINES, wanted)
    tell(_onnx_line(path))
    return path


def _engine(onnx_path: Path, path: Path, wanted: _Wanted, tell: Tell) -> Path:
    from ticket_export.export.engine import engine_from_onnx
    from ticket_export.runtime.trt_sidecar import read_facts

    engine_from_onnx(
        onnx_path, path, batches=wanted.batches, on_progress=lambda text: typer.echo(text, err=True)
    )
    facts = read_facts(path)
    tell(
        f"{path}: {facts.precision}, {path.stat().st_size:,} bytes, "
        f"error {facts.parity['rel_error']:.1e} against {onnx_path.name}, "
        f"{facts.gpu.name} ({facts.gpu.sm}), TensorRT {facts.tensorrt}"
    )
    return path


def _onnx_line(path: Path) -> str:
    """Return what the file says of itself: precision, size, errors, and what stayed in fp32."""
    from ticket_export.runtime.onnx_file import load_graph, precision_from_onnx

    texts = {entry.key: entry.value for entry in load_graph(path).metadata_props}
    words = [f"{path}: {precision_from_onnx(path)}", f"{path.stat().st_size:,} bytes"]
    for key, told in (
        ("parity_rel_error", "parity error {} against its torch source"),
        ("precision_rel_error", "{} against its fp32 file"),
        ("top1_agreement", "top-1 agreement {} with it"),
        ("calibration_images", "calibrated on {} images"),
    ):
        if (value := texts.get(f"ticket_export.{key}")) is not None:
            words.append(told.format(value))
    kept = json.loads(texts.get("ticket_export.fp32_layers", "[]"))
    if kept:
        more = f" and {len(kept) - MAX_NAMED} more" if len(kept) > MAX_NAMED else ""
        words.append(f"kept in fp32: {' '.join(kept[:MAX_NAMED])}{more}")
    return ", ".join(words)
