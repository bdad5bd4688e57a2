"""The runs behind the table: recipes made from recipes/cifar10_resnet18.yaml, one for each part and seed.

A replicate is a run with a seed of its own, not one of a run's replicates: its report is there as soon as it
is done, and a timing of all networks at once, which cannot be resumed within, stays short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ticket_export.recipe.load import recipe_from_yaml
from ticket_export.recipe.schema import Recipe
from ticket_export.recipe.strict_yaml import plain_from_yaml

BASE = Path(__file__).parents[2] / "recipes" / "cifar10_resnet18.yaml"
Length: TypeAlias = Literal["timed", "short", "full"]
_EVERY = {"control_levels": "every"}
_OTHER_MASKS = ["random", "uniform", "reinit", "depgraph"]
_BLOCKS = {"method": "regroup", "num_groups": 8, "min_rows": 16, "round_to": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large everything is.

    Attributes:
        prefix: of the names of its runs.
        builder: the network.
        epochs: of the trainings, by the length of a part; the rate drops at 50 and 75 %, as in the paper.
        seeds: replicates, by the length of a part.
        levels: rounds of pruning.
        train: what of the recipe's `train` it changes.
        train_limit: training images; 0 is all.
        precisions: of the exported files.
        batches: that are timed.
        compiles: whether torch.compile is timed.
    """

    prefix: str
    builder: str
    epochs: Mapping[Length, int]
    seeds: Mapping[Length, int]
    levels: int
    train: Mapping[str, Any]  # Any: YAML
    train_limit: int
    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    compiles: bool


FULL = Size(
    prefix="",
    builder="zoo:resnet18",
    epochs={"timed": 3, "short": 30, "full": 160},
    seeds={"timed": 1, "short": 3, "full": 1},
    levels=5,
    train={"precision": "bf16", "channels_last": True},
    train_limit=0,
    precisions=("fp32", "fp16"),
    batches=(1, 64, 256),
    compiles=True,
)
TOY = Size(
    prefix="toy_",
    builder="zoo:resnet20",
    epochs={"timed": 3, "short": 4, "full": 6},
    seeds={"timed": 1, "short": 1, "full": 1},
    levels=1,
    train={"batch": 16, "channels_last": True},  # bf16 needs a CPU that computes in it
    train_limit=64,
    precisions=("fp32",),
    batches=(1, 2),
    compiles=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the table.

    Attributes:
        name: of the part, in the names of its runs.
        about: what it is, in words.
        length: how long its networks train.
        find: what tells its `find` section from the others.
        paper: whose columns of the paper stand beside it.
        only_dense: it ends when the dense network is trained.
        compile: it trains through torch.compile.
    """

    name: str
    about: str
    length: Length
    find: Mapping[str, Any]  # Any: YAML
    paper: Literal["refill", "regroup"] | None = None
    only_dense: bool = False
    compile: bool = False

    @property
    def until(self) -> Literal["find", "report"]:
        """Return the stage its runs stop after; to find needs the dense training and no other."""
        return "find" if self.only_dense else "report"


def _refill(scope: str, controls: Sequence[str], *, round_to: int) -> dict[str, Any]:  # Any: YAML
    kept = {"method": "refill", "scope": scope, "round_to": round_to}
    return {**kept, **_EVERY, "controls": [*controls]} if controls else kept


_DENSE_ALONE = {**_refill("coupled", [], round_to=8), "levels": 1}
_LAYER = _refill("layer", ["reinit"], round_to=1)
_COUPLED = "Refill on whole channel groups, widths in multiples of 8: all that it drops is removed"
PARTS = (
    Part(
        name="epoch", about="the dense training", length="timed", find=_DENSE_ALONE, only_dense=True,
    ),
    Part(
        name="epoch_compiled", about="the dense training through torch.compile", length="timed",
        find=_DENSE_ALONE, only_dense=True, compile=True,
    ),
    Part(
        name="short_layer", about="the paper's Refill: the rows of each layer by themselves",
        length="short", find=_LAYER, paper="refill",
    ),
    Part(
        name="short_coupled", about=_COUPLED, length="short",
        find=_refill("coupled", _OTHER_MASKS, round_to=8), paper="refill",
    ),
    Part(
        name="full_layer", about="the paper's Refill at the paper's epochs", length="full", find=_LAYER,
        paper="refill",
    ),
    Part(
        name="full_coupled", about=f"{_COUPLED}; at the paper's epochs", length="full",
        find=_refill("coupled", ["reinit"], round_to=8), paper="refill",
    ),
    Part(
        name="channel_imp", about="in-loop Refill: every level is cut out before the next one trains",
        length="short", find={"method": "channel_imp", "scope": "coupled", "round_to": 8},
    ),
    Part(
        name="regroup", about="Regroup: dense blocks of rows and input channels", length="short",
        find=_BLOCKS, paper="regroup",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One part with one seed."""

    part: Part
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Return the name of its recipe."""
        return self.recipe.name


def runs_of(size: Size, data: Path, runtimes: Sequence[str], only: Sequence[str] | None = None) -> list[Run]:
    """Return every run in the order of value.

    Args:
        size: how large they are.
        data: the .npz of CIFAR-10.
        runtimes: that the exported networks are timed in.
        only: names of parts; None is all that the size has.
    """
    return [
        _run(part, seed, size, data, runtimes)
        for part in PARTS
        if (only is None or part.name in only) and (size.compiles or not part.compile)
        for seed in range(size.seeds[part.length])
    ]


def _run(part: Part, seed: int, size: Size, data: Path, runtimes: Sequence[str]) -> Run:
    epochs = size.epochs[part.length]
    plain: Any = plain_from_yaml(BASE.read_text(encoding="utf-8"), BASE.name)[0]  # Any: YAML
    plain |= {"name": f"{size.prefix}{part.name}_seed{seed}", "seed": seed, "replicates": 1}
    plain["data"] |= {"path": str(data), "train_limit": size.train_limit}
    plain["model"] = {"builder": size.builder}
    plain["train"] |= {"epochs": epochs, "milestones": [epochs // 2, 3 * epochs // 4], **size.train}
    if part.compile:
        plain["train"]["compile"] = True
    rounds = {"levels": size.levels, "drop_fraction": 0.2, "rewind_epoch": max(1, round(0.05 * epochs))}
    plain["find"] = {**rounds, **part.find}
    plain["export"]["precisions"] = [*size.precisions]
    plain["measure"] |= {"runtimes": [*runtimes], "batches": [*size.batches]}
    recipe = recipe_from_yaml(json.dumps(plain), source=plain["name"])  # JSON is YAML
    return Run(part=part, seed=seed, recipe=recipe)
