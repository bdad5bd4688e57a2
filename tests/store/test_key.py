"""Keys never move: a stored result must be found by tomorrow's code."""

from __future__ import annotations

from pathlib import Path

import pytest

from ticket_export.store.key import canonical_json, key_from_content, sha256_of_file, sha256_of_tree


def test_this_key_never_changes() -> None:
    content = {"stage": "train", "revision": 1, "sections": {"train": {"lr": 0.1, "epochs": 4}}, "seed": 0}
    assert canonical_json(content) == (
        '{"revision":1,"sections":{"train":{"epochs":4,"lr":0.1}},"seed":0,"stage":"train"}'
    )
    assert key_from_content(content) == "3a308e49fe6f"


def test_the_order_of_names_is_in_no_key() -> None:
    assert key_from_content({"a": 1, "b": [2, 3]}) == key_from_content({"b": [2, 3], "a": 1})


@pytest.mark.parametrize(
    "other", [{"a": 2}, {"a": 1.0}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None}, {"a": True}]
)
def test_another_content_has_another_key(other: dict[str, object]) -> None:
    assert key_from_content(other) != key_from_content({"a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_has_no_key(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_from_content({"a": value})


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256_of_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_is_known_by_its_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"xy")
    before = sha256_of_tree(tmp_path)
    assert sha256_of_tree(tmp_path) == before
    (tmp_path / "a" / "2.png").write_bytes(b"xy")
    assert sha256_of_tree(tmp_path) != before
