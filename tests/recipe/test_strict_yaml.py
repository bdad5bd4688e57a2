"""The YAML reader: numbers as people write them, no surprising words, no shorthand."""

from __future__ import annotations

import pytest

from ticket_export.errors import RecipeError
from ticket_export.recipe.strict_yaml import plain_from_yaml


def value_of(text: str) -> object:
    plain, problems = plain_from_yaml(f"key: {text}", "test")
    assert problems == []
    assert isinstance(plain, dict)
    return plain["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("0.1", 0.1),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_plain_values_become_what_they_look_like(text: str, value: object) -> None:
    read = value_of(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "True",
        "12:30",
        "08",
        "-01",
        "00.5",
        "1_000",
        "0x10",
        ".inf",
        ".nan",
        "2026-11-20",
        "<<",
    ],
)
def test_what_other_readers_twist_stays_text(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize("text", ['"1"', "'true'", '""'])
def test_quoted_values_are_texts(text: str) -> None:
    assert value_of(text) == text[1:-1]


def test_a_repeated_key_is_told_with_both_lines() -> None:
    plain, problems = plain_from_yaml("a: 1\ns:\n  b: 2\n  c: 3\n  b: 4\n", "test")
    assert [str(problem) for problem in problems] == ["s.b: is given twice, in lines 3 and 5"]
    assert plain == {"a": 1, "s": {"b": 2, "c": 3}}


def test_a_key_that_is_a_list_is_told() -> None:
    _, problems = plain_from_yaml("? [a, b]\n: 1\n", "test")
    assert [str(problem) for problem in problems] == ["line 1: a key should be a word"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2", "line 2, column 2: not YAML"),
        ("a: &x 1\nb: *x", "line 2: uses the alias *x"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "uses the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !!str 1", "uses the tag tag:yaml.org,2002:str"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("a: \x00", "not YAML"),
        ("[" * 1000 + "]" * 1000, "nested too deeply"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plain_from_yaml(text, "some.yaml")
    assert str(caught.value).startswith("some.yaml: ")
    assert told in str(caught.value)


def test_an_empty_document_is_nothing() -> None:
    assert plain_from_yaml("# only a comment\n", "test") == (None, [])
