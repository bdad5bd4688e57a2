"""What a run tells while it runs."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ticket_export.report.progress import Progress, step_name

STEP: dict[str, Any] = {"stage": "train", "subject": "ticket@1", "replicate": 2, "key": "0" * 12}
EVENTS: tuple[dict[str, Any], ...] = (
    {"event": "start"},
    {"event": "progress", "epoch": 0.5, "epochs": 2, "loss": 1.25, "accuracy": 0.5, "eta_s": 3.0},
    {"event": "done", "seconds": 4.25},
    {"event": "skip"},
    {"event": "skip"},
)


def test_without_a_terminal_there_is_one_line_per_finished_step() -> None:
    told = StringIO()
    with Progress(Console(file=told, width=40), num_steps=12) as progress:
        for event in EVENTS:
            progress(STEP | event)
    assert told.getvalue() == " 1/12 train ticket@1 #2, 4.2 s\n"
    assert (progress.num_made, progress.num_skipped) == (1, 2)


def test_on_a_terminal_a_step_shows_loss_accuracy_and_time_left() -> None:
    told = StringIO()
    with Progress(Console(file=told, width=120, force_terminal=True), num_steps=12) as progress:
        for event in EVENTS[:2]:
            progress(STEP | event)
    for text in ("train ticket@1 #2", "loss 1.250, accuracy 50.0 %, 3 s left"):
        assert text in told.getvalue()


def test_a_first_epoch_without_a_loss_shows_the_time_left_alone() -> None:
    told = StringIO()
    with Progress(Console(file=told, width=120, force_terminal=True), num_steps=12) as progress:
        progress(STEP | {"event": "start"})
        progress(STEP | EVENTS[1] | {"loss": None, "accuracy": None})
    assert "3 s left" in told.getvalue()
    assert "loss" not in told.getvalue()


def test_damage_is_told_in_one_line_as_it_is() -> None:
    told = StringIO()
    with Progress(Console(file=told, width=20), num_steps=12) as progress:
        progress(STEP | {"event": "damaged", "reason": "store/train/ab [bold]: sha256 differs"})
    assert told.getvalue() == "damaged, made again: store/train/ab [bold]: sha256 differs\n"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "train ticket@1 #2"),
        (
            {"stage": "measure", "subject": "all", "replicate": None, "runtime": "ort-cpu", "batch": 8},
            "measure all ort-cpu batch 8",
        ),
    ],
)
def test_a_step_is_named_by_what_sets_it_apart(fields: dict[str, Any], name: str) -> None:
    assert step_name(STEP | fields) == name


def test_an_event_of_a_step_that_another_process_started_is_no_error() -> None:
    told = StringIO()
    with Progress(Console(file=told), num_steps=12) as progress:
        progress(STEP | {"event": "progress", "round": 3, "rounds": 10})
    assert told.getvalue() == ""
