"""What the paper prints for CIFAR-10 and ResNet-18, of one seed, without the accuracy of the dense network.

Source: Chen et al. 2022 (arXiv 2202.04736), tables A3 and A4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CITED = "Chen et al. 2022 (arXiv 2202.04736), tables A3 and A4"


@dataclass(frozen=True, slots=True)
class Printed:
    """One level, in per cent: weights that remain, accuracy of the ticket and of its re-initialisation."""

    remaining: float
    ticket: float
    reinit: float


PRINTED: Mapping[str, tuple[Printed, ...]] = {
    "refill": (
        Printed(80.29, 94.14, 94.04),
        Printed(64.49, 94.24, 93.96),
        Printed(51.43, 94.45, 94.20),
        Printed(41.24, 94.16, 93.98),
        Printed(32.97, 93.86, 93.53),
    ),
    "regroup": (
        Printed(80.00, 94.48, 94.19),
        Printed(72.95, 94.75, 93.42),
        Printed(69.37, 94.29, 93.58),
        Printed(67.12, 94.62, 93.84),
        Printed(58.54, 94.32, 93.76),
    ),
}
