"""Networks named on the command line: built from a builder, or reloaded from a bundle."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_export.cli.inputs import InputSpec
from ticket_export.cli.messages import log_told
from ticket_export.errors import ShrinkError

if TYPE_CHECKING:
    from torch import nn


def built_network(
    builder: str, arguments: Mapping[str, object], weights: Path | None, specs: Sequence[InputSpec]
) -> nn.Module:
    """Return the network of a builder in eval mode; what building logs or prints goes to stderr.

    Raises:
        ShrinkError: a network of the zoo is given an input that is no image.
        TicketExportError: what `build` raises.
    """
    from ticket_export.shrink.transfer import network_from_builder

    image_shape = _image_shape(builder, specs)
    with log_told(), redirect_stdout(sys.stderr):  # a foreign builder may print
        return network_from_builder(builder, arguments, weights, image_shape=image_shape).eval()


def network_from_bundle(
    folder: Path, *, builder: str | None, arguments: Mapping[str, object], specs: Sequence[InputSpec]
) -> tuple[nn.Module, list[InputSpec]]:
    """Return the small network of a bundle in eval mode, and its inputs.

    Args:
        folder: the bundle.
        builder: of the dense network, in place of the one in the manifest, whose arguments then count no
            more.
        arguments: of the builder; they come before those of the manifest.
        specs: the inputs, in place of those in the manifest.

    Raises:
        ShrinkError: the bundle is damaged, or its manifest names no builder or no inputs.
        TicketExportError: what `build` raises.
    """
    from ticket_export.models.load import num_classes_from
    from ticket_export.models.weights import weights_from_file
    from ticket_export.shrink.bundle import bundle_manifest, load_bundle
    from ticket_export.shrink.bundle_files import WEIGHTS
    from ticket_export.shrink.transfer import network_from_builder

    origin = bundle_manifest(folder)["origin"]
    assert isinstance(origin, dict)
    if builder is None:
        if "builder" not in origin:
            raise ShrinkError(
                f"{folder}: its manifest does not say how the dense network is built",
                hint="--builder zoo:resnet20, or pkg.mod:fn, file.py:fn, ... with --input 1x3x32x32",
            )
        builder, arguments = str(origin["builder"]), {**origin["args"], **arguments}
    inputs = list(specs) or _inputs_of(origin)
    if not inputs:
        raise ShrinkError(
            f"{folder}: its manifest does not hold the shapes of its inputs", hint="--input 1x3x32x32"
        )
    classes = None
    if builder.startswith("zoo:"):
        classes = num_classes_from(builder.removeprefix("zoo:"), weights_from_file(folder / WEIGHTS))
    image_shape = _image_shape(builder, inputs)
    with log_told(), redirect_stdout(sys.stderr):
        dense = network_from_builder(builder, arguments, num_classes=classes, image_shape=image_shape)
    return load_bundle(folder, dense).eval(), inputs


def _inputs_of(origin: Mapping[str, object]) -> list[InputSpec]:
    shapes, kinds = origin.get("input_shapes", []), origin.get("input_kinds")
    assert isinstance(shapes, list)
    if kinds is None:  # runs write none: they are trained on images
        kinds = ["float32"] * len(shapes)
    assert isinstance(kinds, list)
    words = ("x".join(map(str, [1, *shape])) for shape in shapes)
    return [InputSpec.from_text(f"{word}:{kind}") for word, kind in zip(words, kinds, strict=True)]


def _image_shape(builder: str, specs: Sequence[InputSpec]) -> tuple[int, int, int]:
    first = specs[0].shape[1:]
    if len(first) == 3:
        return first[0], first[1], first[2]
    if builder.startswith("zoo:"):
        raise ShrinkError(
            f"--input: {specs[0].text!r} is not batch x channels x height x width, which {builder} reads",
            hint="--input 1x3x32x32",
        )
    return 3, 32, 32  # nobody asks
