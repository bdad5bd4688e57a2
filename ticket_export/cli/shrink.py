"""The verb that cuts dead channels out of a network and writes the small one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticket_export.cli.accuracy import accuracy_text, labelled_images
from ticket_export.cli.inputs import InputSpec, builder_arguments
from ticket_export.cli.networks import built_network
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
RoundTo = Annotated[int, typer.Option(help="keep widths that are multiples of this")]
ResidualMode = Annotated[
    str, typer.Option(help="union: one width per stream; index: each layer takes its own rows")
]
PaddedConstants = Annotated[
    str, typer.Option(help="of zero-padded layers: carrier channel, added term, or auto: as round-to needs")
]
Data = Annotated[Path | None, typer.Option(metavar="FILE.npz", help="test_x, test_y: tell the accuracy too")]
Mean = Annotated[str | None, typer.Option(help="of the data, per channel: 0.49,0.48,0.44")]
Std = Annotated[str | None, typer.Option(help="of the data, per channel: 0.25,0.24,0.26")]
Onnx = Annotated[bool, typer.Option("--onnx", help="export model.onnx beside the bundle")]
Verbose = Annotated[bool, typer.Option("--verbose", help="one line for every channel group")]


def shrink(
    builder: Builder,
    weights: Weights,
    inputs: Inputs,
    out: OutFolder,
    arguments: Arguments = None,
    zero_below: ZeroBelow = None,
    round_to: RoundTo = 1,
    residual: ResidualMode = "union",
    padded_constants: PaddedConstants = "auto",
    data: Data = None,
    mean: Mean = None,
    std: Std = None,
    onnx: Onnx = False,
    verbose: Verbose = False,
) -> None:
    """Cut dead channels out, same function, smaller file. The result is saved as a bundle."""
    specs = [InputSpec.from_text(text) for text in inputs]
    plain_arguments = builder_arguments(arguments or ())
    images = _images(data, mean, std, specs)

    from ticket_export.report.shrunk import near_zero_text, shrunk_text
    from ticket_export.shrink.bundle import save_bundle
    from ticket_export.shrink.exact import shrink as shrink_network
    from ticket_export.shrink.near_zero import zero_below as set_zero
    from ticket_export.store.store import disk_errors_told

    given = built_network(builder, plain_arguments, weights, specs)
    examples = tuple(spec.example(seed) for seed, spec in enumerate(specs))
    origin = {
        "builder": builder,
        "args": plain_arguments,
        "input_shapes": [list(spec.shape[1:]) for spec in specs],
        "input_kinds": [spec.kind for spec in specs],
    }
    networks, texts = {"given": given}, []
    zeroed = None if zero_below is None else set_zero(given, examples, zero_below)
    if zeroed is not None:
        networks[f"with zeros below {zeroed.report.threshold:g}"] = zeroed.model
        origin["near_zero"] = asdict(zeroed.report)
        texts.append(near_zero_text(zeroed.report))
    typer.echo(f"shrinking {builder}", err=True)
    shrunk = shrink_network(
        given if zeroed is None else zeroed.model,
        examples,
        round_to=round_to,
        residual=residual,
        padded_constants=padded_constants,
    )
    with disk_errors_told(out):
        save_bundle(shrunk, out, origin=origin)
    typer.echo("\n\n".join([*texts, shrunk_text(shrunk.report, every_group=verbose)]))
    typer.echo(f"bundle: {out}")
    if images is not None:
        typer.echo(f"counting right answers on {len(images.y):,} images", err=True)
        typer.echo(accuracy_text(networks | {"shrunk": shrunk.model}, images))
    if onnx:
        _export(shrunk.model, out, examples)


def _images(
    data: Path | None, mean: str | None, std: str | None, specs: Sequence[InputSpec]
) -> LabelledImages | None:
    if data is None:
        if mean is not None or std is not None:
            raise ShrinkError("--mean and --std belong to --data, which is not given")
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
