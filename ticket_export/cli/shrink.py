"""The verb that cuts dead channels out of a network and writes the small one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from ticket_export.errors import ShrinkError


def shrink(
    builder: Annotated[str, typer.Argument(metavar="BUILDER", help="zoo:NAME, pkg.mod:fn, file.py:fn, ...")],
    weights: Annotated[Path, typer.Option(metavar="FILE", help=".safetensors, .pt (weights only) or .npz")],
    input_shape: Annotated[str, typer.Option("--input", metavar="SHAPE", help="such as 1x3x32x32")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="where the bundle is written")],
    arguments: Annotated[
        list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="an argument of the builder")
    ] = None,
    round_to: Annotated[int, typer.Option(help="keep widths that are multiples of this")] = 1,
    onnx: Annotated[bool, typer.Option("--onnx", help="export model.onnx beside the bundle")] = False,
) -> None:
    """Cut dead channels out, same function, smaller file. The result is saved as a bundle."""
    shape, builder_arguments = _shape(input_shape), _plain_arguments(arguments or ())
    import torch

    from ticket_export.models.load import build
    from ticket_export.report.table import shrunk_table
    from ticket_export.shrink.bundle import save_bundle
    from ticket_export.shrink.exact import shrink as shrink_network
    from ticket_export.store.store import disk_errors_told

    with redirect_stdout(sys.stderr):  # a foreign builder may print
        model = build(builder, builder_arguments, weights, image_shape=shape[1:]).eval()
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shrunk = shrink_network(model, (example,), round_to=round_to)
    with disk_errors_told(out):
        origin = {"builder": builder, "args": builder_arguments, "input_shapes": [list(shape[1:])]}
        save_bundle(shrunk, out, origin=origin)
    typer.echo(shrunk_table(shrunk.report))
    if onnx:
        from ticket_export.export.onnx import onnx_from_module

        typer.echo(f"onnx: {onnx_from_module(shrunk.model, out / 'model.onnx', (example,))}")
    typer.echo(f"bundle: {out}")


def _shape(text: str) -> tuple[int, int, int, int]:
    sizes = [int(size) if size.isdecimal() else 0 for size in text.lower().split("x")]
    if len(sizes) != 4 or 0 in sizes:
        raise ShrinkError(
            f"--input: {text!r} is not batch x channels x height x width", hint="--input 1x3x32x32"
        )
    num_images, channels, height, width = sizes
    return num_images, channels, height, width


def _plain_arguments(words: Sequence[str]) -> dict[str, object]:
    from ticket_export.recipe.strict_yaml import plain_from_yaml

    for word in words:
        if not re.fullmatch(r"\w+=.+", word):
            raise ShrinkError(f"--arg: {word!r} is not KEY=VALUE", hint="for example --arg shortcut=pad")
    plain, problems = plain_from_yaml("\n".join(word.replace("=", ": ", 1) for word in words), "--arg")
    if problems:
        raise ShrinkError(f"--arg: {problems[0]}")
    return dict(plain) if isinstance(plain, dict) else {}
