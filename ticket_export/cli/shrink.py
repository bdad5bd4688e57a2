"""The verb that cuts dead channels out of a network and writes the small one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticket_export.cli.accuracy import accuracy_text, labelled_images
from ticket_export.cli.images import calibration_images
from ticket_export.cli.inputs import InputSpec, builder_arguments
from ticket_export.cli.networks import built_network
from ticket_export.cli.widths import Widths, require_stable
from ticket_export.errors import ShrinkError, TicketExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ticket_export.cli.accuracy import LabelledImages

Builder = Annotated[str, typer.Argument(metavar="BUILDER", help="zoo:NAME, pkg.mod:fn, file.py:fn, ...")]
Weights = Annotated[Path, typer.Option(metavar="FILE", help=".safetensors, .pt (weights only) or .npz")]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input", metavar="SHAPE", help="such as 1x3x32x32, or 1x16:int64 for ids; one per input, in order"
    ),
]
OutFolder = Annotated[Path, typer.Option(metavar="DIR", help="where the bundle is written")]
Arguments = Annotated[
    list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="an argument of the builder")
]
ZeroBelow = Annotated[
    float | None,
    typer.Option(metavar="X", help="first set channels and gammas to zero that are nowhere above X"),
]
RoundTo = Annotated[
    str, typer.Option(metavar="N|auto", help="keep multiples of N; auto: what is fastest here")
]
ForRuntime = Annotated[str | None, typer.Option(metavar="NAME", help="of auto [default: ort-cpu]")]
ForPrecision = Annotated[str | None, typer.Option(metavar="NAME", help="of auto [default: fp32]")]
ForBatch = Annotated[
    str | None, typer.Option(metavar="SIZES", help="of auto, one or more, joined by commas [default: 1]")
]
Threads = Annotated[int | None, typer.Option(help="of auto: threads of the runtime, on a CPU [default: 1]")]
ResidualMode = Annotated[
    str, typer.Option(help="union: one width per stream; index: each layer takes its own rows")
]
PaddedConstants = Annotated[
    str | None,
    typer.Option(
        help="of zero-padded layers: carrier channel, added term, or auto: as round-to needs [default: auto]"
    ),
]
Data = Annotated[Path | None, typer.Option(metavar="FILE.npz", help="test_x, test_y: tell the accuracy too")]
Mean = Annotated[str | None, typer.Option(help="of the data, per channel: 0.49,0.48,0.44")]
Std = Annotated[str | None, typer.Option(help="of the data, per channel: 0.25,0.24,0.26")]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="of auto for int8: its train_x or x, as in export"),
]
Onnx = Annotated[bool, typer.Option("--onnx", help="export model.onnx beside the bundle")]
Verbose = Annotated[bool, typer.Option("--verbose", help="one line for every channel group")]


def shrink(
    builder: Builder,
    weights: Weights,
    inputs: Inputs,
    out: OutFolder,
    arguments: Arguments = None,
    zero_below: ZeroBelow = None,
    round_to: RoundTo = "1",
    for_runtime: ForRuntime = None,
    for_precision: ForPrecision = None,
    for_batch: ForBatch = None,
    threads: Threads = None,
    calibration: Calibration = None,
    residual: ResidualMode = "union",
    padded_constants: PaddedConstants = None,
    data: Data = None,
    mean: Mean = None,
    std: Std = None,
    onnx: Onnx = False,
    verbose: Verbose = False,
) -> None:
    """Cut dead channels out, same function, smaller file. The result is saved as a bundle.

    With --round-to auto several widths are timed: exits 1, bundle written, when a measurement is unstable.
    """
    widths = Widths.from_options(round_to, padded_constants, for_runtime, for_precision, for_batch, threads)
    widths.require_calibration(calibration)
    specs = [InputSpec.from_text(text) for text in inputs]
    plain_arguments = builder_arguments(arguments or ())
    images = _images(data, mean, std, specs, others=calibration)
    shown = None if calibration is None else calibration_images(calibration, mean, std)

    from ticket_export.report.shrunk import shrunk_text
    from ticket_export.report.widths import choice_text
    from ticket_export.shrink.bundle import save_bundle
    from ticket_export.store.store import disk_errors_told

    given = built_network(builder, plain_arguments, weights, specs)
    examples = tuple(spec.example(seed) for seed, spec in enumerate(specs))
    origin: dict[str, object] = {
        "builder": builder,
        "args": plain_arguments,
        "input_shapes": [list(spec.shape[1:]) for spec in specs],
        "input_kinds": [spec.kind for spec in specs],
    }
    networks, texts = _zeroed(given, examples, zero_below, origin)
    typer.echo(f"shrinking {builder}", err=True)
    shrunk, choice = widths.shrunk([*networks.values()][-1], examples, residual=residual, calibration=shown)
    if choice is not None:
        origin["widths_by_measurement"] = choice
        texts.append(choice_text(choice))
    with disk_errors_told(out):
        save_bundle(shrunk, out, origin=origin)
    typer.echo("\n\n".join([*texts, shrunk_text(shrunk.report, every_group=verbose)]))
    typer.echo(f"bundle: {out}")
    if images is not None:
        _tell_accuracy(networks | {"shrunk": shrunk.model}, images)
    if onnx:
        _export(shrunk.model, out, examples)
    require_stable(choice)


def _tell_accuracy(networks: dict[str, nn.Module], images: LabelledImages) -> None:
    typer.echo(f"counting right answers on {len(images.y):,} images", err=True)
    typer.echo(accuracy_text(networks, images))


def _zeroed(
    given: nn.Module, examples: tuple[Tensor, ...], threshold: float | None, origin: dict[str, object]
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the network by what it is, after it that with zeros where they are wanted, and what to tell."""
    if threshold is None:
        return {"given": given}, []
    from ticket_export.report.shrunk import near_zero_text
    from ticket_export.shrink.near_zero import zero_below

    zeroed = zero_below(given, examples, threshold)
    origin["near_zero"] = asdict(zeroed.report)
    name = f"with zeros below {zeroed.report.threshold:g}"
    return {"given": given, name: zeroed.model}, [near_zero_text(zeroed.report)]


def _images(
    data: Path | None, mean: str | None, std: str | None, specs: Sequence[InputSpec], *, others: Path | None
) -> LabelledImages | None:
    if data is None:
        if others is None and (mean is not None or std is not None):
            raise ShrinkError("--mean and --std belong to --data or --calibration, and neither is given")
        return None
    if len(specs) != 1:
        raise ShrinkError(
            f"--data holds one image per label, but --input is given {len(specs)} times",
            hint="leave --data out",
        )
    return labelled_images(data, mean, std, specs[0].shape[1:])


def _export(model: nn.Module, out: Path, examples: tuple[Tensor, ...]) -> None:
    from ticket_export.export.onnx import onnx_from_module
    from ticket_export.store.store import disk_errors_told

    with _bundle_is_there(out), disk_errors_told(out):
        typer.echo(f"onnx: {onnx_from_module(model, out / 'model.onnx', examples)}")


@contextmanager
def _bundle_is_there(out: Path) -> Iterator[None]:
    """Say beside an error of the export that the shrink itself is done."""
    try:
        yield
    except TicketExportError as error:
        error.message += f"\nthe bundle in {out} is written and complete; model.onnx is not there"
        raise
