"""The graph of stages in words: what each stage is called, its revision, and what its results depend on.

    train(dense) -> find(ticket@1) -> train(ticket@1)         -> shrink -> export -> measure -> report
         |               ^
         |     find(unstructured@1) -> train(unstructured@1) -> find(unstructured@2) -> ...
         +-> export

That is Refill's graph; `pipeline.chains` holds the one of every method.

Nothing here knows a tensor, a file or a recipe's values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

StageWord: TypeAlias = Literal["train", "find", "shrink", "export", "measure", "report"]
SubjectKind: TypeAlias = Literal[
    "dense",
    "ticket",
    "random",
    "uniform",
    "uniform_latency",
    "reinit",
    "random_reinit",
    "unstructured",
    "depgraph",
    "search",
    "searched",
    "no_reactivation",
]

STAGE_WORDS: Final[tuple[StageWord, ...]] = get_args(StageWord)
SUBJECT_KINDS: Final[tuple[SubjectKind, ...]] = get_args(SubjectKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of the chain.

    Attributes:
        word: the recipe section, the subpackage, the store folder and the heading in the report.
        revision: raised when the stage's code gives other results for the same inputs.
        parents: the stages whose results it reads.
        on_machine: its results belong to the machine they were made on.
    """

    word: StageWord
    revision: int
    parents: tuple[StageWord, ...]
    on_machine: bool = False


STAGES: Final[Mapping[StageWord, Stage]] = {
    "train": Stage(word="train", revision=1, parents=("train", "find")),
    "find": Stage(word="find", revision=1, parents=("train", "find")),
    "shrink": Stage(word="shrink", revision=2, parents=("train", "find")),
    "export": Stage(word="export", revision=1, parents=("train", "shrink")),
    "measure": Stage(word="measure", revision=2, parents=("export",), on_machine=True),
    "report": Stage(word="report", revision=7, parents=("train", "find", "shrink", "export", "measure")),
}

# What a result depends on beside its parents: whole sections, or single fields where the rest of a section
# matters to other results alone. How many results a recipe asks for (levels, controls, replicates, targets,
# precisions, runtimes, batches) is in no key: one more level leaves everything before it in place. A file is
# in a key by its content, never by its path.
_TRAINED: Final = ("data", "model", "train")
_REWOUND: Final = ("find.rewind_epoch", "find.rewind_step", "find.rewind")
_PRUNED: Final = (
    *("find.drop_fraction", "find.conv_drop_fraction", "find.classifier_drop_fraction"),
    "find.magnitude_scope",
)
_BLOCKS: Final = ("find.num_groups", "find.min_rows", "find.columns", "find.equal_blocks")
_SEARCHED: Final = (
    *("find.method", "find.drop_fraction", "find.scope", "find.round_to"),
    *("find.gamma_l1", "find.window", "find.max_distance"),
    *("find.search_epochs", "find.search_lr"),
    *("find.penalty_step", "find.penalty_interval", "find.penalty_limit"),
    *("find.event_epochs", "find.drop_step", "find.ramp_epochs", "find.price", "find.gamma_threshold"),
    *("find.reactivation", "find.zeroes", "find.ema_decay", "find.norm_batches"),
)
_FOUND: Final = (
    *("find.method", "find.scope", "find.round_to", "find.score", "find.extra_fraction", "find.criterion"),
    "find.free_channels",
    *_BLOCKS,
)
_FRESH: Final = (*_TRAINED, "find.form", "find.distill", "find.retrain_epochs")
_FROM_REWOUND: Final = (*_FRESH, *_REWOUND)
_SHRUNK: Final = ("find.round_to", "shrink")
HASHED: Final[Mapping[tuple[StageWord, SubjectKind], tuple[str, ...]]] = {
    ("train", "dense"): (*_TRAINED, "find.rewind_epoch", "find.rewind_step"),
    ("train", "unstructured"): (*_TRAINED, *_REWOUND),
    ("train", "search"): (*_TRAINED, "find.rewind_epoch", "find.rewind_step", *_SEARCHED),
    ("train", "ticket"): _FROM_REWOUND,
    ("train", "random"): _FROM_REWOUND,
    ("train", "depgraph"): _FROM_REWOUND,
    ("train", "uniform"): _FRESH,
    ("train", "uniform_latency"): _FRESH,
    ("train", "no_reactivation"): _FROM_REWOUND,
    ("train", "reinit"): _FRESH,
    ("train", "random_reinit"): _FRESH,
    ("find", "unstructured"): _PRUNED,
    ("find", "ticket"): (*_FOUND, *_PRUNED),
    ("find", "random"): ("find.method",),
    ("find", "random_reinit"): ("find.method",),
    ("find", "uniform"): ("find.method", "find.round_to"),
    ("find", "uniform_latency"): ("find.method", "find.round_to"),
    ("find", "no_reactivation"): ("find.method",),
    ("find", "depgraph"): ("find.method", "find.scope", "find.round_to"),
    ("shrink", "ticket"): (*_SHRUNK, *_BLOCKS),
    ("shrink", "random"): (*_SHRUNK, *_BLOCKS),
    ("shrink", "reinit"): (*_SHRUNK, *_BLOCKS),
    ("shrink", "random_reinit"): _SHRUNK,
    ("shrink", "uniform"): _SHRUNK,
    ("shrink", "uniform_latency"): _SHRUNK,
    ("shrink", "searched"): _SHRUNK,
    ("shrink", "no_reactivation"): _SHRUNK,
    ("shrink", "depgraph"): _SHRUNK,
}
NOT_HASHED: Final = frozenset({"data.path", "data.workers", "model.weights"})
LATENCY_HASHED: Final = ("measure.scope", "measure.threads", "measure.rounds", "measure.samples")

_SUBJECT = re.compile(r"(?P<kind>[a-z_]+)(?:@(?P<level>[1-9][0-9]*))?")


@dataclass(frozen=True, slots=True)
class Subject:
    """One network of the comparison; `level` counts rounds of pruning from 1, and is None for dense."""

    kind: SubjectKind
    level: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SUBJECT_KINDS or (self.kind == "dense") != (self.level is None):
            raise ValueError(f"{self.kind!r} at level {self.level} is no subject; like dense or ticket@2")

    def __str__(self) -> str:
        return self.kind if self.level is None else f"{self.kind}@{self.level}"


def subject_from_text(text: str) -> Subject:
    """Return the subject that is written `dense` or `ticket@2`.

    Raises:
        ValueError: the text names no subject.
    """
    match = _SUBJECT.fullmatch(text)
    if match is None or match["kind"] not in SUBJECT_KINDS:
        raise ValueError(
            f"{text!r} is no subject; known are {', '.join(SUBJECT_KINDS)}, all but dense with @LEVEL"
        )
    kind = next(kind for kind in SUBJECT_KINDS if kind == match["kind"])
    return Subject(kind, None if match["level"] is None else int(match["level"]))
