"""Stages and subjects: words that everything else relies on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ticket_export.stages import HASHED, STAGE_WORDS, STAGES, Subject, subject_from_text


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("dense", Subject("dense")),
        ("ticket@2", Subject("ticket", 2)),
        ("random@10", Subject("random", 10)),
        ("unstructured@1", Subject("unstructured", 1)),
    ],
)
def test_a_subject_and_its_text_name_each_other(text: str, subject: Subject) -> None:
    assert subject_from_text(text) == subject
    assert str(subject) == text


@pytest.mark.parametrize(
    "text", ["", "ticket", "dense@1", "ticket@0", "ticket@01", "ticket@-1", "tickets@1", "ticket@1 "]
)
def test_what_names_no_subject_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no subject"):
        subject_from_text(text)


def test_stages_stand_in_the_order_of_the_chain() -> None:
    assert STAGE_WORDS == ("train", "find", "shrink", "export", "measure", "report")
    assert tuple(STAGES) == STAGE_WORDS
    assert all(STAGES[word].word == word for word in STAGE_WORDS)


def test_how_many_results_are_asked_for_is_in_no_key() -> None:
    fan_out = {"find", "find.levels", "find.controls", "replicates", "export", "measure"}
    assert not fan_out & {field for fields in HASHED.values() for field in fields}


def test_stages_load_no_torch() -> None:
    code = "import sys, ticket_export.stages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
