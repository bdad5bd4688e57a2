"""What hangs on what, method by method: the trainings and finders of one replicate.

Every chain starts at the trained dense network and yields its tickets level by level; controls are made from
what a level found, and are the same for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ticket_export.pipeline.nodes import Node
from ticket_export.recipe.find_sections import (
    ChannelImpSection,
    EarlyBirdSection,
    FindSection,
    ImpSection,
    RefillPlusSection,
    RefillSection,
    RegroupSection,
    RstSection,
    WidthsSection,
)
from ticket_export.recipe.supernet_section import SupernetSection
from ticket_export.stages import StageWord, Subject

Parents = Mapping[str, Node]
_Leveled = ImpSection | RefillSection | RefillPlusSection | RegroupSection | ChannelImpSection


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A subject ready to be measured: by runtime and precision, the node that holds what is run."""

    subject: Subject
    replicate: int
    sources: Mapping[tuple[str, str], Node]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One ticket, and what its controls are made from.

    Attributes:
        level: from 1.
        ticket: the ticket, ready to be measured.
        mask: the finder whose mask the controls copy.
        start: what the training of rewound controls starts from, as parents of their training.
        unstructured: trained under the element mask of the level; None where nothing asks for it.
        own: controls that the method alone can make, by their kind; each adds its nodes when it is called.
    """

    level: int
    ticket: End
    mask: Node
    start: Parents
    unstructured: Node | None = None
    own: Mapping[str, Callable[[], End]] = field(default_factory=dict)


class Builder(Protocol):
    """Adds nodes to the graph of one replicate."""

    def add(
        self,
        stage: StageWord,
        subject: Subject,
        parents: Parents,
        item: Mapping[str, Any] | None = None,  # Any: JSON values
    ) -> Node:
        """Add a node and return it."""

    def add_ticket_finder(self, level: int, parents: Parents, find: WidthsSection | None) -> Node:
        """Add the finder of a ticket, which keeps to the budget of its level."""

    def add_early_bird_search(self, find: EarlyBirdSection) -> Node:
        """Add the training that an Early-Bird ticket is drawn from."""

    def add_table(self) -> Node:
        """Add the table of latencies that finders read."""

    def add_search(self, find: SupernetSection, *, reactivation: bool) -> Node:
        """Add the training of a supernet that is pruned and shrunk meanwhile."""

    def add_training(self, subject: Subject, *, mask: Node, start: Parents) -> Node:
        """Add the training of a subject."""

    def add_subject(self, subject: Subject, *, mask: Node, start: Parents) -> tuple[Node, End]:
        """Add the training, shrink and export of a subject; return the training and the end."""

    def add_trained(self, subject: Subject, *, mask: Node, trained: Node) -> End:
        """Add the shrink and export of what is trained already."""

    def add_unshrunk(self, subject: Subject, trained: Node) -> End:
        """Add the export of a trained network as it is."""


def ends_of(builder: Builder, find: FindSection) -> list[End]:
    """Add one replicate up to its exported files, and return every subject to be measured."""
    dense = builder.add("train", Subject("dense"), {})
    ends = [builder.add_unshrunk(Subject("dense"), dense)]
    levels = list(_CHAINS[find.method](builder, find, dense))
    ends += [level.ticket for level in levels]
    for level in levels if find.control_levels == "every" else levels[-1:]:
        ends += [_control(builder, Subject(kind, level.level), level, dense) for kind in find.controls]
    return ends


def _control(builder: Builder, control: Subject, level: Level, dense: Node) -> End:
    if control.kind in level.own:
        return level.own[control.kind]()
    if control.kind == "unstructured":
        assert level.unstructured is not None  # the chain trains it where it is a control
        return builder.add_unshrunk(control, level.unstructured)
    if control.kind == "reinit":
        return builder.add_subject(control, mask=level.mask, start={})[1]
    read = {"like": level.mask}
    if control.kind == "depgraph":
        read["trained"] = dense
    if control.kind == "uniform_latency":
        read["table"] = builder.add_table()
    mask = builder.add("find", control, read)
    fresh = control.kind in ("uniform", "uniform_latency", "random_reinit")
    return builder.add_subject(control, mask=mask, start={} if fresh else level.start)[1]


def _pruned_levels(
    builder: Builder, find: ImpSection | RefillSection | RefillPlusSection | RegroupSection, dense: Node
) -> Iterator[tuple[int, Node, Node, Parents, Callable[[], Node]]]:
    """Yield per level: its number, the element mask, what was scored, the start, and how to train under it.

    The training is added when it is called for: at the latest by the next level, which scores it.
    """
    # With distillation the tickets of imp are trained otherwise than the chain that others share
    own = find.method == "imp" and find.distill is not None
    trained, elements = dense, None
    for level in range(1, find.levels + 1):
        read = {"trained": trained} if elements is None else {"trained": trained, "previous": elements}
        elements = builder.add("find", Subject("unstructured", level), read)
        start = {"start": dense} if find.rewind == "weights" else {"weights": trained}
        added: list[Node] = []

        def train(
            level: int = level, mask: Node = elements, start: Parents = start, added: list[Node] = added
        ) -> Node:
            if not added:
                subject = Subject("ticket" if own else "unstructured", level)
                teacher = {"teacher": dense} if own else {}
                added.append(builder.add("train", subject, {"mask": mask, **start, **teacher}))
            return added[0]

        yield level, elements, trained, start, train
        if level < find.levels:
            trained = train()


def _imp(builder: Builder, find: ImpSection, dense: Node) -> Iterator[Level]:
    for level, elements, _, start, train in _pruned_levels(builder, find, dense):
        if not _is_compared(find, level):
            continue
        ticket = builder.add_trained(Subject("ticket", level), mask=elements, trained=train())
        yield Level(level=level, ticket=ticket, mask=elements, start=start)


def _structured(
    builder: Builder, find: RefillSection | RefillPlusSection | RegroupSection, dense: Node
) -> Iterator[Level]:
    widths = None if find.method == "regroup" else find  # it chooses blocks
    for level, elements, scored, start, train in _pruned_levels(builder, find, dense):
        if not _is_compared(find, level):
            continue
        mask = builder.add_ticket_finder(level, {"elements": elements, "trained": scored}, widths)
        _, ticket = builder.add_subject(Subject("ticket", level), mask=mask, start=start)
        controlled = find.control_levels == "every" or level == find.levels
        unstructured = train() if controlled and "unstructured" in find.controls else None
        yield Level(level=level, ticket=ticket, mask=mask, start=start, unstructured=unstructured)


def _channel_imp(builder: Builder, find: ChannelImpSection, dense: Node) -> Iterator[Level]:
    trained, mask = dense, None
    for level in range(1, find.levels + 1):
        read = {"trained": trained} if mask is None else {"trained": trained, "previous": mask}
        mask = builder.add_ticket_finder(level, read, find)
        start = {"start": dense} if find.rewind == "weights" else {"weights": trained}
        subject = Subject("ticket", level)
        if _is_compared(find, level):
            trained, ticket = builder.add_subject(subject, mask=mask, start=start)
            yield Level(level=level, ticket=ticket, mask=mask, start=start)
        else:
            trained = builder.add_training(subject, mask=mask, start=start)


def _is_compared(find: _Leveled, level: int) -> bool:
    return find.ticket_levels == "every" or level == find.levels


def _early_bird(builder: Builder, find: EarlyBirdSection, dense: Node) -> Iterator[Level]:
    search = builder.add_early_bird_search(find)
    mask = builder.add_ticket_finder(1, {"trained": search}, find)
    start = {"weights": search}
    _, ticket = builder.add_subject(Subject("ticket", 1), mask=mask, start=start)
    yield Level(level=1, ticket=ticket, mask=mask, start=start)


def _rst(builder: Builder, find: RstSection, dense: Node) -> Iterator[Level]:
    mask = builder.add_ticket_finder(1, {"start": dense}, find)
    search = builder.add("train", Subject("search", 1), {"mask": mask, "start": dense})
    _, ticket = builder.add_subject(Subject("ticket", 1), mask=mask, start={"weights": search})
    # Other channels than the kept ones were emptied by the search: controls start where it did
    yield Level(level=1, ticket=ticket, mask=mask, start={"start": dense})


def _supernet(builder: Builder, find: SupernetSection, dense: Node) -> Iterator[Level]:
    def add(subject: Subject, search: Node) -> tuple[Node, End]:
        mask = builder.add("find", subject, {"trained": search})
        return mask, builder.add_subject(subject, mask=mask, start={"weights": search})[1]

    def searched() -> End:
        return builder.add_trained(Subject("searched", 1), mask=mask, trained=search)

    def no_reactivation() -> End:
        return add(Subject("no_reactivation", 1), builder.add_search(find, reactivation=False))[1]

    search = builder.add_search(find, reactivation=find.reactivation)
    mask, ticket = add(Subject("ticket", 1), search)
    own = {"searched": searched, "no_reactivation": no_reactivation}
    yield Level(level=1, ticket=ticket, mask=mask, start={}, own=own)


_CHAINS: Mapping[str, Callable[..., Iterator[Level]]] = {
    "imp": _imp,
    "refill": _structured,
    "refill_plus": _structured,
    "regroup": _structured,
    "channel_imp": _channel_imp,
    "early_bird": _early_bird,
    "rst": _rst,
    "supernet": _supernet,
}
