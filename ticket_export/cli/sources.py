"""What the verb `export` starts from: bundles, builders and ONNX files, each with its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ticket_export.cli.inputs import InputSpec
from ticket_export.errors import ExportError
from ticket_export.export.triton import require_model_name
from ticket_export.runtime.offers import PRECISIONS

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One network on the command line.

    Attributes:
        name: of its files, and of the model in a Triton repository.
        word: the bundle's folder, the ONNX file or the builder.
        kind: "bundle", "onnx" or "builder".
        weights: of a builder.
        builder: of a bundle, in place of the one in its manifest.
        arguments: of the builder.
        specs: the inputs; of a bundle, in place of those in its manifest.
    """

    name: str
    word: str
    kind: str
    weights: Path | None
    builder: str | None
    arguments: Mapping[str, object]
    specs: Sequence[InputSpec]

    def network(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return the network of a bundle or a builder in eval mode, and example inputs.

        Raises:
            TicketExportError: it cannot be built or reloaded.
        """
        from ticket_export.cli.networks import built_network, network_from_bundle

        assert self.kind != "onnx", "a file is read, not built"
        specs = self.specs
        if self.kind == "bundle":
            model, specs = network_from_bundle(
                Path(self.word), builder=self.builder, arguments=self.arguments, specs=specs
            )
        else:
            model = built_network(self.word, self.arguments, self.weights, specs)
        return model, tuple(spec.example(seed) for seed, spec in enumerate(specs))


def sources_from_words(
    words: Sequence[str],
    *,
    name: str | None,
    weights: Path | None,
    specs: Sequence[InputSpec],
    arguments: Mapping[str, object],
    builder: str | None,
) -> list[Source]:
    """Return the networks that words like `small`, `dense=zoo:resnet20` or `net.onnx` name.

    Raises:
        ExportError: a word names nothing, two have one name, or an option does not fit them.
    """
    if name is not None and len(words) > 1:
        raise ExportError(
            f"--name: {name!r} cannot name {len(words)} models", hint=f"write NAME=MODEL: {name}={words[0]}"
        )
    named = [_split(word) for word in words]
    kinds = [_kind(word) for _, word in named]
    _require_options_fit(kinds, words, weights=weights, specs=specs, arguments=arguments, builder=builder)
    sources: dict[str, Source] = {}
    for (given, word), kind in zip(named, kinds, strict=True):
        wished = name or given or _derived_name(word, kind)
        require_model_name(wished)
        unique, number = wished, 2
        while unique in sources:
            if given:
                raise ExportError(
                    f"the name {given!r} is given twice", hint="give each model a name of its own"
                )
            unique, number = f"{wished}-{number}", number + 1
        sources[unique] = Source(
            name=unique,
            word=word,
            kind=kind,
            weights=weights if kind == "builder" else None,
            builder=builder,
            arguments=arguments,
            specs=specs,
        )
    return list(sources.values())


def _split(word: str) -> tuple[str, str]:
    """Return the name, empty if none is given, and the model of `NAME=MODEL`."""
    name, equals, model = word.partition("=")
    if not equals or Path(word).exists() or not re.fullmatch(r"[^/:]+", name):
        return "", word
    if not model:
        raise ExportError(f"{word!r} names no model", hint="write NAME=MODEL")
    return name, model


def _kind(word: str) -> str:
    path = Path(word)
    if path.is_dir():
        return "bundle"
    if path.suffix == ".onnx":
        if not path.is_file():
            raise ExportError(f"{word}: no such file", hint="give the path of an exported .onnx file")
        return "onnx"
    if ":" in word:
        return "builder"
    raise ExportError(
        f"{word!r} is neither a bundle's folder nor an .onnx file nor a builder",
        hint="a builder is zoo:NAME, torchvision:NAME, timm:NAME, package.module:fn or file.py:fn",
    )


def _derived_name(word: str, kind: str) -> str:
    if kind == "bundle":
        text = Path(word).resolve().name
    elif kind == "onnx":
        text = re.sub(rf"\.({'|'.join(PRECISIONS)})$", "", Path(word).stem)
    else:
        module, _, function = word.rpartition(":")
        text = Path(module).stem if module.endswith(".py") else function.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)


def _require_options_fit(
    kinds: Sequence[str],
    words: Sequence[str],
    *,
    weights: Path | None,
    specs: Sequence[InputSpec],
    arguments: Mapping[str, object],
    builder: str | None,
) -> None:
    if weights is not None and kinds.count("builder") != 1:
        raise ExportError(
            f"--weights: {weights} belongs to one builder, but {kinds.count('builder')} are given",
            hint="export them one after the other, into the same --out",
        )
    if builder is not None and "bundle" not in kinds:
        raise ExportError(f"--builder: {builder!r} is for a bundle, but none is given")
    for option, given in (("--input", specs), ("--arg", arguments)):
        if given and set(kinds) == {"onnx"}:
            raise ExportError(f"{option} is for builders and bundles, but {words[0]} is an ONNX file")
    if "builder" in kinds and not specs:
        raise ExportError(
            f"{words[kinds.index('builder')]}: the shape of its input is not given",
            hint="--input 1x3x224x224",
        )
