"""A recipe becomes a graph of nodes, each with the key of its result: no torch, no training, no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ticket_export.errors import DataError, RecipeError
from ticket_export.recipe.schema import Recipe
from ticket_export.runtime.registry import MODULE_PRECISIONS, MODULE_RUNTIMES
from ticket_export.stages import HASHED, LATENCY_HASHED, NOT_HASHED, STAGES, StageWord, Subject
from ticket_export.store.key import key_from_content, sha256_of_file, sha256_of_tree

# What a step costs beside the others, to start the longest chain first; seconds of ResNet-20 on the digits.
_COST: Mapping[StageWord, float] = {"train": 10.0, "find": 1.0, "shrink": 3.0, "export": 3.0, "measure": 0.5}
EVERY_SUBJECT = "all"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One result to be made.

    Attributes:
        stage: the stage that makes it.
        subject: of the comparison; `all` for a latency, which times every subject in one run.
        replicate: from 0; None for a latency.
        key: of the result in the store.
        revision: of the stage's code.
        item: what tells this result from the stage's others, JSON values.
        sections: the recipe's values it depends on, without defaults.
        parents: role -> the node whose result is read.
    """

    stage: StageWord
    subject: str
    replicate: int | None
    key: str
    revision: int
    item: Mapping[str, Any]  # Any: JSON values, also below
    sections: Mapping[str, Any]
    parents: Mapping[str, Node] = field(repr=False)

    @property
    def is_latency(self) -> bool:
        """Return whether the node times every subject beside the others."""
        return self.item.get("kind") == "latency"

    @property
    def is_timed(self) -> bool:
        """Return whether the node times networks, which nothing else may disturb: a latency, or widths."""
        return self.is_latency or (self.stage == "shrink" and "runtime" in self.item)

    @property
    def wave(self) -> int:
        """Return how many timed nodes lie one behind another before this one."""
        return max((parent.wave + parent.is_timed for parent in self.parents.values()), default=0)

    def __str__(self) -> str:
        replicate = "" if self.replicate is None else f", replicate {self.replicate}"
        return f"{self.stage} {self.subject}{replicate}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputHashes:
    """The contents of the files a recipe reads, which stand in keys for their paths; None = no file."""

    data: str | None
    weights: str | None
    builder: str | None


def hash_inputs(recipe: Recipe) -> InputHashes:
    """Return the hashes of the recipe's input files.

    Raises:
        DataError: the images are missing.
        RecipeError: the weights or the builder's file are missing.
    """
    return InputHashes(
        data=_data_hash(recipe.data.path),
        weights=_file_hash("model.weights", recipe.model.weights),
        builder=_file_hash("model.builder", _builder_file(recipe.model.builder)),
    )


def _data_hash(path: str | None) -> str | None:
    if path is None:
        return None
    if not Path(path).exists():
        raise DataError(f"data.path: {path} does not exist", hint="set it with --set data.path=...")
    try:
        return sha256_of_tree(Path(path)) if Path(path).is_dir() else sha256_of_file(Path(path))
    except OSError as error:
        raise DataError(f"data.path: {path} cannot be read: {error.strerror}") from error


def _file_hash(place: str, path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return sha256_of_file(Path(path))
    except OSError as error:
        raise RecipeError(f"{place}: {path} cannot be read: {error.strerror}") from error


def _builder_file(builder: str) -> str | None:
    file = builder.rpartition(":")[0]
    return file if file.endswith(".py") else None


def nodes_of(recipe: Recipe, inputs: InputHashes, machine: str) -> tuple[Node, ...]:
    """Return every result the recipe asks for, parents before children.

    Args:
        recipe: what to do.
        inputs: of `hash_inputs`.
        machine: this machine's fingerprint; measured results belong to it.
    """
    graph = _Graph(recipe, inputs, machine)
    ends = [end for replicate in range(recipe.replicates) for end in graph.add_replicate(replicate)]
    graph.add_measures(ends)
    return tuple(graph.nodes)


def nodes_until(nodes: Sequence[Node], until: StageWord) -> tuple[Node, ...]:
    """Return the nodes of stage `until` and all they need, in the same order; `report` needs everything."""
    if until == "report":
        return tuple(nodes)
    wanted: set[Node] = set()
    for node in reversed(nodes):
        if node.stage == until or node in wanted:
            wanted.add(node)
            wanted.update(node.parents.values())
    return tuple(node for node in nodes if node in wanted)


def longest_chain_first(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes ordered so that what most still hangs on comes first; equal ones keep their order."""
    rest = dict.fromkeys(nodes, 0.0)
    for node in reversed(nodes):
        rest[node] += _COST[node.stage]
        for parent in node.parents.values():
            if parent in rest:
                rest[parent] = max(rest[parent], rest[node])
    return tuple(sorted(nodes, key=lambda node: -rest[node]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """A subject ready to be measured: by runtime and precision, the node that holds what is run."""

    subject: Subject
    replicate: int
    sources: Mapping[tuple[str, str], Node]


class _Graph:
    """Collects nodes; each method adds what its name says and returns the last node."""

    def __init__(self, recipe: Recipe, inputs: InputHashes, machine: str) -> None:
        self.nodes: list[Node] = []
        self._recipe = recipe
        self._machine = machine
        self._values = _hashed_values(recipe, inputs)

    def add_replicate(self, replicate: int) -> list[_End]:
        """Add one replicate's chain up to the exported files."""
        find = self._recipe.find
        dense = self._add("train", Subject("dense"), replicate, {})
        ends = [self._add_export(Subject("dense"), replicate, dense)]
        trained, elements, ticket = dense, None, None
        for level in range(1, find.levels + 1):
            loose = Subject("unstructured", level)
            read = {"trained": trained} if elements is None else {"trained": trained, "previous": elements}
            elements = self._add("find", loose, replicate, read)
            ticket = self._add(
                "find", Subject("ticket", level), replicate, {"elements": elements, "trained": trained}
            )
            ends.append(self._add_small(Subject("ticket", level), replicate, mask=ticket, start=dense))
            if level < find.levels or "unstructured" in find.controls:
                trained = self._add("train", loose, replicate, {"mask": elements, "start": dense})
        assert ticket is not None  # the schema has at least one level
        for kind in find.controls:
            control = Subject(kind, find.levels)
            if kind == "unstructured":
                ends.append(self._add_export(control, replicate, trained))
            elif kind == "reinit":
                ends.append(self._add_small(control, replicate, mask=ticket, start=None))
            else:
                read = {"like": ticket, "trained": dense} if kind == "depgraph" else {"like": ticket}
                mask = self._add("find", control, replicate, read)
                start = None if kind == "uniform" else dense
                ends.append(self._add_small(control, replicate, mask=mask, start=start))
        return ends

    def add_measures(self, ends: Sequence[_End]) -> None:
        """Add the accuracy of every subject and the latencies, which time all of them together."""
        measure = self._recipe.measure
        for runtime in measure.runtimes:
            for precision in self._recipe.export.precisions:
                if runtime in MODULE_RUNTIMES and precision not in MODULE_PRECISIONS:
                    continue
                sources = [(end, end.sources[runtime, precision]) for end in ends]
                for end, source in sources:
                    item = {"kind": "accuracy", "runtime": runtime, "precision": precision}
                    self._add("measure", end.subject, end.replicate, {"network": source}, item)
                for batch in measure.batches:
                    self._add_latency(sources, {"runtime": runtime, "precision": precision, "batch": batch})

    def _add_small(self, subject: Subject, replicate: int, *, mask: Node, start: Node | None) -> _End:
        parents = {"mask": mask} if start is None else {"mask": mask, "start": start}
        trained = self._add("train", subject, replicate, parents)
        read = {"trained": trained, "mask": mask}
        if self._recipe.shrink.round_to != "auto":
            return self._add_export(subject, replicate, self._add("shrink", subject, replicate, read))
        sources: dict[tuple[str, str], Node] = {}
        for execution in self._executions:
            shrunk = self._add_widths(subject, replicate, read, execution)
            sources |= self._add_export(subject, replicate, shrunk, execution).sources
        return _End(subject=subject, replicate=replicate, sources=sources)

    @property
    def _executions(self) -> list[tuple[str, str]]:
        precisions = self._recipe.export.precisions
        return [(runtime, precision) for runtime in self._recipe.measure.runtimes for precision in precisions]

    def _add_widths(
        self, subject: Subject, replicate: int, read: Mapping[str, Node], execution: tuple[str, str]
    ) -> Node:
        """Add the shrink that times several widths for one runtime and precision, on this machine."""
        runtime, precision = execution
        item = {
            "subject": str(subject),
            "replicate": replicate,
            "runtime": runtime,
            "precision": precision,
            "batches": list(self._recipe.measure.batches),
            **self._int8_item(precision),
        }
        sections = self._sections((*HASHED["shrink", subject.kind], *LATENCY_HASHED))
        return self._append("shrink", item, sections, read, on_machine=True)

    def _add_export(
        self, subject: Subject, replicate: int, network: Node, execution: tuple[str, str] | None = None
    ) -> _End:
        """Add the files of a network: one per precision, or the one of a single runtime and precision."""
        executions = self._executions if execution is None else [execution]
        runtime_item = {} if execution is None else {"runtime": execution[0]}
        exports: dict[str, Node] = {
            precision: self._add(
                "export",
                subject,
                replicate,
                {"network": network},
                {"target": target, "precision": precision, **runtime_item, **self._int8_item(precision)},
            )
            for target in self._recipe.export.targets
            for precision in dict.fromkeys(precision for _, precision in executions)
        }
        sources = {
            (runtime, precision): network if runtime in MODULE_RUNTIMES else exports[precision]
            for runtime, precision in executions
        }
        return _End(subject=subject, replicate=replicate, sources=sources)

    def _int8_item(self, precision: str) -> dict[str, str]:
        """Return how an INT8 file differs from the default one."""
        activations = self._recipe.export.int8_activations
        return {"activations": activations} if (precision, activations) == ("int8", "int8") else {}

    def _add_latency(
        self, sources: Sequence[tuple[_End, Node]], item: Mapping[str, Any]
    ) -> None:  # Any: JSON
        parents = {f"{end.subject}#{end.replicate}": source for end, source in sources}
        self._append("measure", {"kind": "latency", **item}, self._sections(LATENCY_HASHED), parents)

    def _add(
        self,
        stage: StageWord,
        subject: Subject,
        replicate: int,
        parents: Mapping[str, Node],
        item: Mapping[str, Any] | None = None,  # Any: JSON values
    ) -> Node:
        whole_item = {"subject": str(subject), "replicate": replicate, **(item or {})}
        return self._append(stage, whole_item, self._sections(HASHED.get((stage, subject.kind), ())), parents)

    def _append(
        self,
        stage: StageWord,
        item: Mapping[str, Any],  # Any: JSON values, also below
        sections: Mapping[str, Any],
        parents: Mapping[str, Node],
        on_machine: bool = False,
    ) -> Node:
        content = {
            "stage": stage,
            "revision": STAGES[stage].revision,
            "seed": self._recipe.seed,
            "item": item,
            "sections": sections,
            "parents": {role: f"{parent.stage}/{parent.key}" for role, parent in parents.items()},
            **({"machine": self._machine} if on_machine or STAGES[stage].on_machine else {}),
        }
        node = Node(
            stage=stage,
            subject=item.get("subject", EVERY_SUBJECT),
            replicate=item.get("replicate"),
            key=key_from_content(content),
            revision=STAGES[stage].revision,
            item=item,
            sections=sections,
            parents=parents,
        )
        self.nodes.append(node)
        return node

    def _sections(self, names: Sequence[str]) -> dict[str, Any]:  # Any: JSON values
        """Return the named sections and fields, nested as in the recipe."""
        sections: dict[str, Any] = {}
        for name in names:
            section, _, one_field = name.partition(".")
            values = self._values.get(section, {})
            kept = sections.setdefault(section, {})
            kept.update(
                {one_field: values[one_field]} if one_field in values else {} if one_field else values
            )
        return {section: values for section, values in sections.items() if values}


def _hashed_values(recipe: Recipe, inputs: InputHashes) -> dict[str, dict[str, Any]]:  # Any: JSON values
    """Return the recipe's values without defaults, with the contents of files in place of their paths."""
    dumped = recipe.model_dump(mode="json", exclude_defaults=True)
    values = {
        section: {name: value for name, value in fields.items() if f"{section}.{name}" not in NOT_HASHED}
        for section, fields in dumped.items()
        if isinstance(fields, dict)
    }
    for section, name, digest in (
        ("data", "sha256", inputs.data),
        ("model", "weights_sha256", inputs.weights),
        ("model", "builder_sha256", inputs.builder),
    ):
        if digest is not None:
            values[section][name] = digest
    return values
