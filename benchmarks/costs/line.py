"""A line of a table, the networks it speaks of, and a clock around a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.models.load import build

# N images, C channels, H W pixels
CIFAR, DIGITS, IMAGENET = (3, 32, 32), (1, 8, 8), (3, 224, 224)
NUM_EXAMPLES = 4  # images in the example batch, as in a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a table as it is `shown`, and the `raw` numbers behind it as JSON values."""

    shown: Mapping[str, str]
    raw: Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class Network:
    """What `build` needs; `args` as in a recipe's `model.args`."""

    builder: str
    image_shape: tuple[int, int, int]
    args: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its name in a table."""
        words = [self.builder.partition(":")[2], *self.args.values(), "x".join(map(str, self.image_shape))]
        return ", ".join(words)

    def built(self) -> nn.Module:
        """Return it with fresh weights, equal in every run."""
        num_classes = 10 if self.builder.startswith("zoo:") else None
        return build(self.builder, self.args, num_classes=num_classes, image_shape=self.image_shape)

    def examples(self) -> Tensor:
        """Return [N, C, H, W], equal in every run."""
        return torch.randn(NUM_EXAMPLES, *self.image_shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The seconds of several calls; the first, which pays for imports and first use, is told apart.

    Attributes:
        wall_s: what a user waits.
        cpu_s: of all threads of this process; it does not hold what a busy neighbour takes.
    """

    wall_s: Sequence[float]
    cpu_s: Sequence[float]

    @property
    def shown(self) -> dict[str, str]:
        """The columns of a table."""
        first_s, *later_s = self.wall_s
        return {
            "median, s": f"{statistics.median(later_s):.3g}",
            "lowest-highest": f"{min(later_s):.3g}-{max(later_s):.3g}",
            "CPU, s": f"{statistics.median(self.cpu_s[1:]):.3g}",
            "first call, s": f"{first_s:.3g}",
        }


def timed(call: Callable[[], object], num_rounds: int) -> Timing:
    """Call once, and then `num_rounds` times."""
    wall_s, cpu_s = [], []
    for _ in range(num_rounds + 1):
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        call()
        wall_s.append(time.perf_counter() - start_s)
        cpu_s.append(time.process_time() - cpu_start_s)
    return Timing(wall_s=wall_s, cpu_s=cpu_s)
