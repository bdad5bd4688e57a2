"""What the command line gives to a network: its example inputs, and the arguments of its builder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticket_export.errors import ExportError, ShrinkError, TicketExportError

if TYPE_CHECKING:
    from torch import Tensor

_KINDS = ("float32", "int64", "int32", "bool")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a network: its text, its shape, batch first, and what kind of numbers it takes."""

    text: str
    shape: tuple[int, ...]
    kind: str

    @classmethod
    def from_text(cls, text: str) -> InputSpec:
        """Return the input that `1x3x32x32` or `1x16:int64` describes.

        Raises:
            ShrinkError: the text is no shape, or the kind is unknown.
        """
        shape, colon, kind = text.lower().partition(":")
        sizes = [int(size) if size.isdecimal() else 0 for size in shape.split("x")]
        if 0 in sizes:
            raise ShrinkError(
                f"--input: {text!r} is no shape", hint="sizes joined by x, batch first: --input 1x3x32x32"
            )
        if colon and kind not in _KINDS:
            raise ShrinkError(
                f"--input: {text!r}: {kind!r} is not one of {', '.join(_KINDS)}",
                hint="for tokens --input 1x16:int64",
            )
        return cls(text, tuple(sizes), kind or _KINDS[0])

    def example(self, seed: int) -> Tensor:
        """Return a tensor of this shape: normal numbers, or integers 0 and 1, which every table holds."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        if self.kind == "float32":
            return torch.randn(self.shape, generator=generator)
        return torch.randint(0, 2, self.shape, generator=generator).to(getattr(torch, self.kind))


def builder_arguments(words: Sequence[str]) -> dict[str, object]:
    """Return the arguments that words like `shortcut=pad` describe, read as the values of a recipe are.

    Raises:
        ShrinkError: a word is not KEY=VALUE, or its value cannot be read.
    """
    from ticket_export.recipe.strict_yaml import plain_from_yaml

    for word in words:
        if not re.fullmatch(r"\w+=.+", word):
            raise ShrinkError(f"--arg: {word!r} is not KEY=VALUE", hint="for example --arg shortcut=pad")
    plain, problems = plain_from_yaml("\n".join(word.replace("=", ": ", 1) for word in words), "--arg")
    if problems:
        raise ShrinkError(f"--arg: {problems[0]}")
    return dict(plain) if isinstance(plain, dict) else {}


def each_of(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Return the words joined by commas, each of them known, in the order of `known`, each once.

    Raises:
        ExportError: there is no word, or one that is unknown.
    """
    words = comma_list(text)
    wrong = [word for word in words if word not in known]
    if wrong or not words:
        raise ExportError(f"{option}: {(wrong or [text])[0]!r} is not one of {', '.join(known)}")
    return [word for word in known if word in words]


def sizes_from_text(option: str, text: str) -> tuple[int, ...]:
    """Return the sizes joined by commas, ascending, each once.

    Raises:
        ExportError: a word is no whole number above 0, or there is none.
    """
    return tuple(sorted(set(sizes_as_given(option, text, ExportError))))


def sizes_as_given(
    option: str, text: str, kind: type[TicketExportError], *, example: str = "1,8,64"
) -> list[int]:
    """Return the sizes joined by commas, in their order.

    Raises:
        TicketExportError: of the given kind: a word is no whole number above 0, or there is none.
    """
    words = comma_list(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise kind(f"{option}: {text!r} is not a list of sizes", hint=f"for example {option} {example}")
    return [int(word) for word in words]


def comma_list(text: str) -> list[str]:
    """Return the words joined by commas, without the spaces around them."""
    return [word.strip() for word in text.split(",") if word.strip()]
