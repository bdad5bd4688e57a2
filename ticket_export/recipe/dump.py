"""A recipe back as the text that would load it."""

from __future__ import annotations

import re

import yaml

from ticket_export.recipe.schema import Recipe

_SURELY_TEXT = re.compile(r"[A-Za-z_/](?:[\w./:-]*[\w/])?")
_WORDS = frozenset({"null", "true", "false"})


def yaml_from_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe, defaults included; `recipe_from_yaml` of it gives an equal recipe."""
    values = recipe.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that our reader, but not PyYAML's own, takes for numbers."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _SURELY_TEXT.fullmatch(text) and text not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)
