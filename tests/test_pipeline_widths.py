"""Widths by measurement: all candidates are one function, identical ones are timed once, the rule decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ticket_export as te
from ticket_export.errors import MeasureError, ShrinkError
from ticket_export.pipeline import widths
from ticket_export.pipeline.widths import Tried, WidthChoice, fastest_widths
from ticket_export.report.rows import Choice
from ticket_export.report.widths import choice_sentence, choice_text, summary_heads, summary_rows
from ticket_export.runtime.fake import FakeRunner
from ticket_export.runtime.runner import TensorSpec

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SPEC = TensorSpec(name="input", dtype="float32", shape=(None, 3, 8, 8))


def network(*, num_dead: int = 20, beta: float = 0.7) -> nn.Module:
    """Forty channels, of which `num_dead` emit a constant into a zero-padded layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40), nn.ReLU(),
        nn.Conv2d(40, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight[:num_dead] = 0.0
        net[1].bias[:num_dead] = beta
    return net.eval()


@pytest.fixture(scope="module")
def tried() -> list[Tried]:
    """All grids and forms of one network; shrinking them takes seconds."""
    options = {"mask": None, "residual": "union", "tolerance": 1e-5}
    return widths._tried(network(), (X,), (1, 8, 32), options, lambda line: None)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], None]:
    """Times networks by a script of the channels of their first layer."""

    def install(latency_s: Callable[[int], float]) -> None:
        def opened(source: nn.Module, runtime: str, **_: object) -> FakeRunner:
            seconds = latency_s(source.get_parameter("0.weight").shape[0])
            return FakeRunner(lambda call: seconds, name=runtime, spec=SPEC)

        monkeypatch.setattr(widths, "open_runner", opened)

    return install


def test_every_candidate_computes_the_same_and_identical_ones_are_tried_once(tried: list[Tried]) -> None:
    net = network()
    with torch.no_grad():
        expected = net(X)
        for one in tried:
            assert float((one.shrunk.model.eval()(X) - expected).abs().max() / expected.abs().max()) < 1e-5
    made_by = [one.made_by for one in tried]
    # 20 alive and 20 constant channels: a carrier makes 21, a term leaves 20; both fit into 24 and into 32
    assert made_by[0] == ((1, "carrier"), (1, "auto"))
    assert made_by[1] == ((1, "term"),)
    first_widths = [one.shrunk.model.get_parameter("0.weight").shape[0] for one in tried]
    assert first_widths[:2] == [21, 20]
    assert {24, 32} <= set(first_widths)
    plans = [one.shrunk.plan for one in tried]
    assert all(a != b for i, a in enumerate(plans) for b in plans[:i])
    tries = [pair for pairs in made_by for pair in pairs]
    assert len(tries) == len(set(tries)) == 9


@pytest.mark.parametrize(
    ("latency_s", "channels"),
    [
        (lambda channels: channels / 100, 20),  # fewer channels, less time: the term
        (lambda channels: 0.5 if channels % 8 else channels / 100, 24),
        (lambda channels: 0.5 if channels % 32 else 0.1, 32),
        (lambda channels: 0.1, 20),  # no difference: the smallest
    ],
)
def test_the_grid_that_a_machine_likes_is_chosen(
    latency_s: Callable[[int], float],
    channels: int,
    scripted: Callable[..., None],
    tried: list[Tried],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(latency_s)
    monkeypatch.setattr(widths, "_tried", lambda *_: tried)
    choice = fastest_widths(network(), X, runtime="torch", rounds=5, samples=5)
    assert choice.shrunk.model.get_parameter("0.weight").shape[0] == channels
    kept = latency_s(channels)
    assert choice.chosen.speedup.ratio == pytest.approx(latency_s(40) / kept)
    assert [(c.round_to, c.form) for c in choice.candidates] == [one.made_by[0] for one in tried]
    assert all(one.speedup.ratio <= choice.chosen.speedup.ratio + 1e-9 for one in choice.candidates)


def test_without_padded_constants_there_is_one_form_per_grid(scripted: Callable[..., None]) -> None:
    scripted(lambda channels: channels / 100)
    lines: list[str] = []
    choice = fastest_widths(
        network(beta=0.0),
        X,
        runtime="torch",
        candidates=(1, 8),
        rounds=5,
        samples=5,
        on_progress=lines.append,
    )
    assert [(c.round_to, c.form, c.same_as) for c in choice.candidates] == [(1, "", ()), (8, "", ())]
    assert lines[-1] == "timing 3 networks, torch, fp32, batch 1"


def test_a_network_with_nothing_to_remove_is_one_candidate(scripted: Callable[..., None]) -> None:
    scripted(lambda channels: 0.1)
    choice = fastest_widths(network(num_dead=0), X, runtime="torch", candidates=(1, 16), rounds=5, samples=5)
    assert choice.chosen.same_as == ((16, ""),)
    assert len(choice.candidates) == 1
    assert choice.chosen.speedup.verdict == "no difference shown"


def test_a_mask_is_shrunk_with_the_zeros(scripted: Callable[..., None]) -> None:
    scripted(lambda channels: channels / 100)
    net = network(num_dead=0)
    mask = te.Mask({te.channel_groups(net, X)[0].name: torch.arange(40) < 8})
    choice = fastest_widths(net, X, mask=mask, runtime="torch", candidates=(1,), rounds=5, samples=5)
    assert choice.shrunk.model.get_parameter("0.weight").shape[0] == 8


@pytest.fixture(scope="module")
def measured() -> WidthChoice:
    """A real one, by ONNX Runtime."""
    return fastest_widths(network(beta=0.0), X, batches=(1, 2), candidates=(1, 16), rounds=5, samples=5)


def test_files_are_timed_for_every_batch_on_this_machine(measured: WidthChoice) -> None:
    assert (measured.runtime, measured.precision, measured.batches) == ("ort-cpu", "fp32", (1, 2))
    assert [one.macs < measured.macs_dense for one in measured.candidates] == [True, True]
    for one in measured.candidates:
        assert one.file_bytes is not None
        assert one.file_bytes > 0
        assert set(one.by_batch) == {1, 2}
        assert one.speedup.low <= one.speedup.ratio <= one.speedup.high
        mean = float(np.exp(np.mean([np.log(ratio.ratio) for ratio in one.by_batch.values()])))
        assert one.speedup.ratio == pytest.approx(mean)
    assert [run["dense"].samples_s.shape for run in measured.runs] == [(5, 5), (5, 5)]


def test_the_choice_is_told_in_json_and_in_words(measured: WidthChoice) -> None:
    told = json.loads(json.dumps(measured.to_json()))
    assert told["machine"]["fingerprint"] == measured.machine["fingerprint"]
    assert told["candidates"][told["chosen"]]["round_to"] == measured.chosen.round_to
    text = choice_text(told)
    assert "dense" in text
    assert "baseline" in text
    assert f"Kept: round_to {measured.chosen.round_to}, " in text
    assert "batch 1, 2, geometric mean" in choice_sentence(told)
    assert "No other is shown to be faster." in text
    choices = [Choice(subject="ticket@1", replicate=0, told=told)]
    assert summary_heads(choices) == ("network", "for", "kept", "round_to 1", "round_to 16")
    [row] = summary_rows(choices)
    assert row[:2] == ("ticket@1, replicate 0", "ort-cpu, fp32")
    assert all("x (" in cell for cell in row[3:])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"runtime": "tensort"}, MeasureError, "runtime 'tensort' is not one of"),
        ({"batches": ()}, MeasureError, r"batches is \[\]"),
        ({"batches": (1, 1)}, MeasureError, r"batches is \[1, 1\]"),
        ({"candidates": (0,)}, MeasureError, r"candidates is \[0\]"),
        ({"threads": 4096}, MeasureError, "threads is 4096"),
        (
            {"runtime": "torch", "precision": "int8"},
            MeasureError,
            "'torch' runs the module itself, in fp32 or fp16, got int8",
        ),
        ({"residual": "indx", "runtime": "torch"}, ShrinkError, "residual is 'indx'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        fastest_widths(network(), X, rounds=5, samples=5, **options)


def test_shrink_itself_measures_nothing_and_says_who_does() -> None:
    with pytest.raises(ShrinkError, match="round_to is 'auto': shrink takes a number") as caught:
        te.shrink(network(), X, round_to="auto")  # type: ignore[arg-type]
    assert caught.value.hint is not None
    assert "te.fastest_widths" in caught.value.hint
