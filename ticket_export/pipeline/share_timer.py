"""Latencies of networks that masks leave, as shares of one another, timed in the same rounds."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ticket_export.channels.mask import Mask
from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.profile import Timing
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import speedup
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.profiling import network_opener, timing_of
from ticket_export.shrink.surgery import small_from_mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A measured latency as a share of another network's, with its 95 % interval over the rounds."""

    share: float
    low: float
    high: float


class ShareTimer:
    """Times what masks leave of a dense network in one runtime, precision and batch; files are kept."""

    def __init__(self, context: Context, dense: nn.Module, timing: Timing, folder: Path) -> None:
        """Open nothing yet.

        Args:
            context: of the run; its recipe says rounds and samples.
            dense: the network.
            timing: runtime, precision, batch, threads and scope.
            folder: where networks are exported.
        """
        self._context, self._dense, self._timing = context, dense.eval(), timing
        folder.mkdir(parents=True, exist_ok=True)
        self._opened = network_opener(context, timing, folder)

    def share_of_dense(self, mask: Mask) -> Share:
        """Return the latency of what a mask leaves as a share of that of dense."""
        return self._share("dense", self._dense, mask)

    def share(self, mask: Mask, other: Mask) -> Share:
        """Return the latency of what a mask leaves as a share of what another one leaves."""
        return self._share(self._name(other), self._cut(other), mask)

    def _share(self, name: str, baseline: nn.Module, mask: Mask) -> Share:
        measure = self._context.recipe.measure
        protocol = Protocol(
            rounds=measure.rounds,
            samples=measure.samples,
            scope=self._timing.scope,
            threads=self._timing.threads,
        )
        with ExitStack() as stack:
            runners = {
                "baseline": stack.enter_context(self._opened(name, baseline)),
                "candidate": stack.enter_context(self._opened(self._name(mask), self._cut(mask))),
            }
            measured = measure_interleaved(runners, batch=self._timing.batch, protocol=protocol)
        found = speedup(measured["baseline"], measured["candidate"])
        return Share(share=1 / found.ratio, low=1 / found.high, high=1 / found.low)

    def _cut(self, mask: Mask) -> nn.Module:
        return small_from_mask(self._dense, self._context.groups, mask).eval()

    @staticmethod
    def _name(mask: Mask) -> str:
        """Return a name that tells the widths apart: latency does not depend on which channels stay."""
        widths = ",".join(f"{name}={width}" for name, width in mask.kept_widths().items())
        return f"widths-{hashlib.sha256(widths.encode()).hexdigest()[:12]}"


def timer_of(context: Context, node: Node, dense: nn.Module, scratch: Path) -> ShareTimer:
    """Return the timer of a finder that is timed."""
    return ShareTimer(context, dense, timing_of(context, node), scratch / "networks")
