"""torch with CUDA graphs: the eager module captured once per input shape, then launched as one.

Shows what is left of a latency when the host's launching of kernels is taken out of it: a small network that
gains much here is bound by launches, not by its MACs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ticket_export.errors import MeasureError
from ticket_export.runtime.torch_eager import Outputs

# runs before the capture, on a stream of their own, as torch's notes on CUDA graphs ask: libraries set
# themselves up and cuDNN searches its algorithms, none of which may be captured
WARMUP_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Capture:
    graph: torch.cuda.CUDAGraph
    arguments: list[torch.Tensor]  # what the graph reads
    outputs: Outputs  # what it writes


class Graphed:
    """The module as a CUDA graph per input shape, reading and writing buffers that stay in place."""

    settings: ClassVar[Mapping[str, str]] = {"cuda_graph": "on"}

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        if device.type != "cuda":
            raise MeasureError(
                f"runtime 'torch-cudagraph' captures CUDA graphs, got device {str(device)!r}",
                hint="give it a CUDA device, or measure with torch or torch-compile on a CPU",
            )
        self._module = module
        self._captures: dict[tuple[torch.Size, ...], _Capture] = {}

    def ready(self, arguments: list[torch.Tensor]) -> Callable[[], Outputs]:
        """Return a replay of the graph with `arguments` copied into its buffers; captures at a new shape.

        The outputs are the graph's own buffers: the next replay overwrites them.
        """
        shapes = tuple(argument.shape for argument in arguments)
        if shapes not in self._captures:
            self._captures[shapes] = self._captured(arguments)
        capture = self._captures[shapes]
        for buffer, argument in zip(capture.arguments, arguments, strict=True):
            buffer.copy_(argument)
        return lambda: _replayed(capture)

    def renew(self) -> None:
        """Give the captures up: they hold the addresses that the weights had."""
        self._captures.clear()

    def _captured(self, arguments: list[torch.Tensor]) -> _Capture:
        buffers = [argument.clone() for argument in arguments]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                self._module(*buffers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs: Outputs = self._module(*buffers)
        return _Capture(graph=graph, arguments=buffers, outputs=outputs)


def _replayed(capture: _Capture) -> Outputs:
    capture.graph.replay()
    return capture.outputs
