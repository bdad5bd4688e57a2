"""Recipe files: every problem is told at once, with its place, its value and a suggestion."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ticket_export.errors import RecipeError
from ticket_export.recipe.find_sections import SECTION_BY_METHOD, FindSection
from ticket_export.recipe.schema import Recipe, TrainSection, cross_problems
from ticket_export.recipe.strict_yaml import Plain, Problem, plain_from_yaml

_FIND: TypeAdapter[FindSection] = TypeAdapter(FindSection)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in `path` after `overrides`; nothing but that file is read.

    Args:
        path: a YAML file.
        overrides: `"find.levels=2"` replaces one value; the text after `=` is read like a value of the file.

    Raises:
        RecipeError: the file is missing or not YAML, or keys or values are wrong; the text holds them all.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such file", hint="recipes live in recipes/*.yaml") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from error
    return recipe_from_yaml(text, source=str(path), overrides=overrides)


def recipe_from_yaml(text: str, *, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe written in `text` after `overrides`.

    Args:
        text: a YAML document.
        source: what to call it in an error.
        overrides: as for `load_recipe`.

    Raises:
        RecipeError: as for `load_recipe`.
    """
    plain, problems = plain_from_yaml(text, source)
    if not isinstance(plain, dict):
        raise RecipeError(f"{source}: should hold keys and values, got {_shown(plain)}")
    problems += _apply(overrides, plain)
    try:
        recipe = Recipe.model_validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        problems += [problem for details in error.errors() for problem in _problems(details)]
        problems += [found for found in _cross_problems_alone(plain) if found not in problems]
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        raise RecipeError("\n  ".join([f"{source}: {len(problems)} {noun}", *map(str, problems)]))
    return recipe


def _apply(overrides: Sequence[str], plain: dict[str, Any]) -> list[Problem]:  # Any: as _put
    """Put each `a.b=value` into `plain`; whether the place exists is the schema's to say."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for override in overrides:
        place, equals, text = override.partition("=")
        if not equals or not all(place.split(".")):
            problems.append(Problem(f"--set {override}", "should read KEY=VALUE, for example find.levels=2"))
            continue
        if place in seen:
            problems.append(Problem(f"--set {place}", "is given twice"))
            continue
        seen.add(place)
        value, value_problems = plain_from_yaml(text, f"--set {override}")
        problems += value_problems + _put(place, value, plain)
    return problems


def _put(place: str, value: Plain, plain: dict[str, Any]) -> list[Problem]:  # Any: the schema checks
    *parents, last = place.split(".")
    section = plain
    for depth, name in enumerate(parents, start=1):
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            above = ".".join(parents[:depth])
            return [Problem(f"--set {place}", f"{above} holds {_shown(inner)}, not a section")]
        section = inner
    section[last] = value
    return []


def _cross_problems_alone(plain: Mapping[str, object]) -> list[Problem]:
    """Return what is wrong between sections that are right by themselves, though another section is not."""
    try:
        train = TrainSection.model_validate_json(json.dumps(plain.get("train")), strict=True)
        find = _FIND.validate_json(json.dumps(plain.get("find")), strict=True)
    except ValidationError:  # already told
        return []
    return [Problem(place, text) for place, text in cross_problems(train, find)]


def _problems(details: ErrorDetails) -> list[Problem]:
    if details["type"] == "recipe":  # the schema's own words
        found = details["ctx"]["problems"]
        loc, _ = _without_tag(details["loc"])
        return [Problem(_dotted((*loc, *filter(None, [place]))), text) for place, text in found]
    return [_problem(details)]


def _problem(details: ErrorDetails) -> Problem:
    """Say one of pydantic's findings in the words of a recipe."""
    loc, context = details["loc"], details.get("ctx", {})
    loc, tag = _without_tag(loc)
    given = details["input"]
    match details["type"]:
        case "extra_forbidden":
            known = _siblings(loc, tag)
            others = f"; {_dotted(loc[:-1]) or 'a recipe'} knows {', '.join(known)}" if known else ""
            return Problem(_dotted(loc), f"unknown key{_suggestion(str(loc[-1]), known) or others}")
        case "missing":
            return Problem(_dotted(loc), "is required")
        case "literal_error":
            choices = list(_choices(context["expected"]))
            text = f"{given!r} is not one of {', '.join(choices)}{_suggestion(given, choices)}"
            return Problem(_dotted(loc), text)
        case "union_tag_invalid":
            choices, given = list(SECTION_BY_METHOD), context["tag"]
            text = f"{given!r} is not one of {', '.join(choices)}{_suggestion(given, choices)}"
            return Problem(_dotted((*loc, "method")), text)
        case "union_tag_not_found":
            return Problem(_dotted((*loc, "method")), f"is required: one of {', '.join(SECTION_BY_METHOD)}")
        case "string_pattern_mismatch":
            text = f"{given!r} should hold letters, digits, '_', '-' and '.' alone, a letter or digit first"
            return Problem(_dotted(loc), text)
        case kind if kind in _WANTED:
            return Problem(_dotted(loc), f"should be {_WANTED[kind]}, got {_shown(given)}")
        case kind if kind in _BOUNDS:
            words, name = _BOUNDS[kind]
            return Problem(_dotted(loc), f"should be {words} {context[name]:g}, got {_shown(given)}")
        case _:
            return Problem(_dotted(loc), f"{details['msg']}, got {_shown(given)}")


_WANTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "model_attributes_type": "a section",
}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _dotted(loc: Sequence[int | str]) -> str:
    """Write a place as `find.controls[1]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _without_tag(loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], str | None]:
    """Return a place as the recipe's author knows it, and the method that pydantic put into it."""
    if len(loc) > 1 and loc[0] == "find" and loc[1] in SECTION_BY_METHOD:
        return (loc[0], *loc[2:]), str(loc[1])
    return loc, None


def _siblings(loc: Sequence[int | str], method: str | None) -> list[str]:
    """Return the keys that the section around `loc` knows; `find` is the one of a method."""
    model: type[BaseModel] = Recipe
    for part in loc[:-1]:
        inner: object
        if model is Recipe and part == "find" and method is not None:
            inner = SECTION_BY_METHOD[method]
        else:
            inner = _section_of(model, str(part))
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def _section_of(model: type[BaseModel], name: str) -> object:
    """Return the class of a section, also of one that may be left out."""
    if name not in model.model_fields:
        return None
    annotation = model.model_fields[name].annotation
    return next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)


def _suggestion(given: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _choices(expected: str) -> Iterator[str]:
    """Read pydantic's "'a', 'b' or 'c'"."""
    for piece in expected.replace(" or ", ", ").split(", "):
        yield piece.strip("'")


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case dict():
            return "a section"
        case list() | tuple():
            return f"the list {list(value)}"
        case _:
            return str(value)
