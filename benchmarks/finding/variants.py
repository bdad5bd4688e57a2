"""The finders that are compared: for each, its `find` section and what its subjects are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_ROUNDS: Mapping[str, Any] = {"levels": 3, "drop_fraction": 0.36, "ticket_levels": "last"}  # Any: YAML
_ONE_SHOT = 1 - (1 - 0.36) ** 3  # as many weights go at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One recipe.

    Attributes:
        name: what its ticket is called.
        about: how it finds, in words.
        find: its `find` section without the rewind point.
        controls: which of its controls are shown, by their kind.
    """

    name: str
    about: str
    find: Mapping[str, Any]  # Any: YAML
    controls: tuple[str, ...] = field(default=())

    def row_name(self, subject: str) -> str | None:
        """Return what a subject of its report is called here; None leaves it out."""
        kind = subject.partition("@")[0]
        if kind == "dense":
            return "dense"
        return self.name if kind == "ticket" else kind if kind in self.controls else None


CONTROLS: Mapping[str, str] = {  # by kind: what it is, in words
    "random": "the widths of coupled, its channels drawn by chance",
    "uniform": "one width multiplier for all groups, at the MACs of coupled, freshly initialised",
    "reinit": "the channels of coupled with new initial weights",
    "depgraph": "torch-pruning's choice of channels in the trained dense network, at the MACs of coupled",
}
VARIANTS = (
    Variant(
        name="coupled",
        about="masked IMP, then Refill on whole channel groups, residual streams among them",
        find={
            **{"method": "refill", "scope": "coupled", "round_to": 8, **_ROUNDS},
            "controls": [*CONTROLS],
        },
        controls=tuple(CONTROLS),
    ),
    Variant(
        name="channel_imp",
        about="the same choice made in every level, which the next level trains cut out",
        find={"method": "channel_imp", "scope": "coupled", "round_to": 8, **_ROUNDS},
    ),
    Variant(
        name="inner",
        about="masked IMP, then Refill on the inner channels of blocks; residual streams stay whole",
        find={"method": "refill", "scope": "inner", "round_to": 8, **_ROUNDS},
    ),
    Variant(
        name="early_bird",
        about="channels by the norms' scales, as soon as the masks of epochs agree",
        find={
            **{"method": "early_bird", "scope": "coupled", "round_to": 8, "drop_fraction": 0.5},
            **{"gamma_l1": 1e-4, "window": 2, "max_distance": 0.15},
        },
    ),
    Variant(
        name="one_shot",
        about="Refill as coupled, after one level that drops as many weights as three",
        find={
            **{"method": "refill", "scope": "coupled", "round_to": 8},
            **{"levels": 1, "drop_fraction": _ONE_SHOT},
        },
    ),
    Variant(
        name="imp",
        about="single weights, three levels with rewinding; only channels that died go",
        find={"method": "imp", **_ROUNDS},
    ),
    Variant(
        name="regroup",
        about="masked IMP, then dense blocks of rows and input channels",
        find={"method": "regroup", "num_groups": 4, "min_rows": 16, "round_to": 8, **_ROUNDS},
    ),
    Variant(
        name="coupled_distilled",
        about="coupled, its training taught by the dense network too",
        find={
            **{"method": "refill", "scope": "coupled", "round_to": 8, **_ROUNDS},
            "distill": {"weight": 0.9, "temperature": 4.0},
        },
    ),
    Variant(
        name="rst",
        about="channels of small l1 norm, what they learnt moved into the others by a growing penalty",
        find={
            **{"method": "rst", "scope": "coupled", "round_to": 8, "drop_fraction": 0.5, "criterion": "l1"},
            **{"search_epochs": 2, "search_lr": 0.01},
            **{"penalty_step": 0.01, "penalty_interval": 1, "penalty_limit": 1.0},
        },
    ),
    Variant(
        name="layer",
        about="masked IMP, then Refill on the rows of each layer by itself",
        find={"method": "refill", "scope": "layer", "round_to": 8, **_ROUNDS},
    ),
)
