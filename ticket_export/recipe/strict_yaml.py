"""YAML without surprises: `1e-3` is a number, `no` and `12:30` are texts, and a key is given once.

PyYAML's `safe_load` reads `1e-3` as text, `no` as False, `12:30` as 750 and keeps the last of two equal keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from ticket_export.errors import RecipeError

Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"

# The JSON number grammar plus a sign, a bare leading or trailing point: `08`, `1_000` and `0x10` stay texts.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_WORDS: Mapping[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `place` is the dotted path of a key, or empty for the whole text."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def plain_from_yaml(text: str, source: str) -> tuple[Plain, list[Problem]]:
    """Return the plain values of one YAML document and every key that is repeated or is not text.

    Args:
        text: the document.
        source: what to call it in an error, usually its path.

    Raises:
        RecipeError: the text is not YAML, holds several documents, or uses tags, anchors or aliases.
    """
    try:
        _refuse_shorthand(text, source)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        problems: list[Problem] = []
        return (None if node is None else _plain(node, "", problems)), problems
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: {_yaml_text(error)}") from error
    except RecursionError as error:
        raise RecipeError(f"{source}: is nested too deeply") from error


def _refuse_shorthand(text: str, source: str) -> None:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(
                f"{source}: line {line}: uses the alias *{event.anchor}", hint="write the value out"
            )
        tag = getattr(event, "tag", None)  # scalars and collections alone have one
        if tag is not None:
            raise RecipeError(f"{source}: line {line}: uses the tag {tag}", hint="write the plain value")


def _yaml_text(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem}"
    return f"not YAML: {error}"


def _plain(node: yaml.Node, place: str, problems: list[Problem]) -> Plain:
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, place, problems)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, f"{place}[{index}]", problems) for index, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)  # YAML has no fourth kind
    text: str = node.value
    return text if node.style else _scalar(text)  # a quoted scalar is a text


def _plain_mapping(node: yaml.MappingNode, place: str, problems: list[Problem]) -> dict[str, Plain]:
    line_by_key: dict[str, int] = {}
    values: dict[str, Plain] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(place, f"line {line}: a key should be a word"))
            continue
        key: str = key_node.value
        key_place = f"{place}.{key}" if place else key
        if key in line_by_key:
            problems.append(Problem(key_place, f"is given twice, in lines {line_by_key[key]} and {line}"))
            continue
        line_by_key[key] = line
        values[key] = _plain(value_node, key_place, problems)
    return values


def _scalar(text: str) -> bool | int | float | str | None:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not _LEADING_ZERO.match(text):
        return float(text)
    return text
