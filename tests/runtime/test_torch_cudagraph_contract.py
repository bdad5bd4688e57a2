"""The order of the calls that capture a CUDA graph, against a scripted torch.cuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from ticket_export.runtime.torch_cudagraph import WARMUP_RUNS, Graphed

CUDA = torch.device("cuda")


class Diary:
    """What was called, in order, and the stream or graph that was current for each run of the network."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.where = "main"


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    found = Diary()

    class Stream:
        def __init__(self, name: str = "side") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            found.calls.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            found.calls.append("replay")

    @contextmanager
    def within(name: str) -> Iterator[None]:
        before, found.where = found.where, name
        yield
        found.where = before

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: within("graph"))
    return found


class Doubled(nn.Module):
    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.diary.calls.append(f"run on {self.diary.where}")
        self.seen.append(x)
        return 2 * x


def test_a_shape_is_warmed_on_a_stream_of_its_own_then_captured_then_replayed(diary: Diary) -> None:
    network = Doubled(diary)
    form = Graphed(network, CUDA)
    x = torch.ones(2, 3)
    run = form.ready([x])
    captured = [
        "side waits for main", *["run on side"] * WARMUP_RUNS, "main waits for side", "run on graph",
    ]  # fmt: skip
    assert diary.calls == captured
    outputs = run()
    assert diary.calls == [*captured, "replay"]
    assert isinstance(outputs, torch.Tensor)
    assert torch.equal(outputs, 2 * x)
    form.ready([x])()
    assert diary.calls == [*captured, "replay", "replay"]
    form.ready([torch.ones(5, 3)])
    assert diary.calls[len(captured) + 2 :] == captured
    form.renew()
    form.ready([x])
    assert diary.calls.count("run on graph") == 3


def test_new_inputs_are_copied_to_where_the_graph_reads(diary: Diary) -> None:
    network = Doubled(diary)
    form = Graphed(network, CUDA)
    first, second = torch.ones(2, 3), torch.full((2, 3), 7.0)
    form.ready([first])
    buffer = network.seen[-1]
    assert buffer.data_ptr() != first.data_ptr()
    form.ready([second])
    assert torch.equal(buffer, second)
    assert torch.equal(first, torch.ones(2, 3))
