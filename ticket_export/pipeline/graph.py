"""A recipe becomes a graph of nodes, each with the key of its result: no torch, no training, no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticket_export.models.facts import BUNDLE_PREFIX
from ticket_export.pipeline.chains import End, Parents, ends_of
from ticket_export.pipeline.nodes import EVERY_SUBJECT, InputHashes, Node
from ticket_export.recipe.find_sections import EarlyBirdSection, WidthsSection
from ticket_export.recipe.schema import Recipe
from ticket_export.recipe.supernet_section import SupernetSection
from ticket_export.runtime.registry import MODULE_PRECISIONS, MODULE_RUNTIMES
from ticket_export.stages import HASHED, LATENCY_HASHED, NOT_HASHED, STAGES, StageWord, Subject
from ticket_export.store.key import key_from_content


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


def table_nodes(recipe: Recipe, inputs: InputHashes, machine: str) -> tuple[Node, ...]:
    """Return the latency tables of every runtime, precision and batch that the recipe measures.

    Args:
        recipe: what to do.
        inputs: of `hash_inputs`.
        machine: this machine's fingerprint.
    """
    graph = _Graph(recipe, inputs, machine)
    for runtime, precision in graph.executions:
        if runtime not in MODULE_RUNTIMES or precision in MODULE_PRECISIONS:
            for batch in recipe.measure.batches:
                graph.add_table((runtime, precision), batch)
    return tuple(graph.nodes)


class _Graph:
    """Collects nodes; each method adds what its name says and returns the last node."""

    def __init__(self, recipe: Recipe, inputs: InputHashes, machine: str) -> None:
        self.nodes: list[Node] = []
        self._recipe = recipe
        self._machine = machine
        self._values = _hashed_values(recipe, inputs)

    def add_replicate(self, replicate: int) -> list[End]:
        """Add one replicate's chain up to the exported files."""
        return ends_of(_Replicate(self, replicate), self._recipe.find)

    def add_measures(self, ends: Sequence[End]) -> None:
        """Add the accuracy of every subject and the latencies, which time all of them together."""
        measure = self._recipe.measure
        for runtime in measure.runtimes:
            for precision in self._recipe.export.precisions:
                if runtime in MODULE_RUNTIMES and precision not in MODULE_PRECISIONS:
                    continue
                sources = [(end, end.sources[runtime, precision]) for end in ends]
                for end, source in sources:
                    item = {"kind": "accuracy", "runtime": runtime, "precision": precision}
                    self.add("measure", end.subject, end.replicate, {"network": source}, item)
                for batch in measure.batches:
                    self._add_latency(sources, {"runtime": runtime, "precision": precision, "batch": batch})

    def add_shrunk(self, subject: Subject, replicate: int, *, mask: Node, trained: Node) -> End:
        """Add the shrink of a trained subject and its files."""
        read = {"trained": trained, "mask": mask}
        if self._recipe.shrink.round_to != "auto":
            return self.add_export(subject, replicate, self.add("shrink", subject, replicate, read))
        sources: dict[tuple[str, str], Node] = {}
        for execution in self.executions:
            shrunk = self._add_widths(subject, replicate, read, execution)
            sources |= self.add_export(subject, replicate, shrunk, execution).sources
        return End(subject=subject, replicate=replicate, sources=sources)

    def teacher(self, dense: Node) -> Parents:
        """Return the parent that the training of every subject but dense has where the recipe distils."""
        return {} if self._recipe.find.distill is None else {"teacher": dense}

    def add_ticket_finder(
        self, level: int, replicate: int, parents: Parents, find: WidthsSection | None
    ) -> Node:
        """Add a ticket's finder, with the share of dense that its network may cost and the prices."""
        subject = Subject("ticket", level)
        if find is None:
            return self.add("find", subject, replicate, parents)
        item = self._target_item(find, level)
        if not find.needs_table:
            return self.add("find", subject, replicate, parents, item)
        runtime, precision = self.executions[0]
        timed = {"runtime": runtime, "precision": precision, "batch": self._recipe.measure.batches[0]}
        whole_item = {"subject": str(subject), "replicate": replicate, **item, **timed}
        sections = self._sections((*HASHED["find", "ticket"], *LATENCY_HASHED))
        read = {**parents, "table": self.add_table()}
        return self._append("find", whole_item, sections, read, on_machine=True)

    def add_early_bird_search(self, find: EarlyBirdSection, replicate: int) -> Node:
        """Add the training that ends when the masks agree that it would keep."""
        has_latency = find.budget is not None and find.budget.kind == "latency_fraction"
        parents = {"table": self.add_table()} if has_latency else {}
        return self.add("train", Subject("search", 1), replicate, parents, self._target_item(find, 1))

    def _target_item(self, find: WidthsSection, level: int) -> dict[str, Any]:  # Any: JSON values
        if find.budget is None:
            return {}
        share = round(find.budget.target(level, self._recipe.find.levels), 6)
        return {"target": {find.budget.kind: share}, "choice": "knapsack"}

    def add_search(self, find: SupernetSection, replicate: int, *, reactivation: bool) -> Node:
        """Add the training of a supernet that is pruned and shrunk meanwhile, and the table it reads."""
        item: dict[str, Any] = {} if reactivation else {"reactivation": False}  # Any: JSON values
        if find.budget is not None:
            item["target"] = {find.budget.kind: find.budget.target(1, 1)}
        else:
            item["drop_fraction"] = find.drop_fraction
        parents = {"table": self.add_table()} if find.needs_table else {}
        return self.add("train", Subject("search", 1), replicate, parents, item)

    def add_table(self, execution: tuple[str, str] | None = None, batch: int | None = None) -> Node:
        """Add the table of layer latencies, by default for the first of each; what is there is returned."""
        runtime, precision = self.executions[0] if execution is None else execution
        item = {
            "kind": "table",
            "runtime": runtime,
            "precision": precision,
            "batch": self._recipe.measure.batches[0] if batch is None else batch,
            **self._int8_item(precision),
        }
        for node in self.nodes:
            if node.item == item:
                return node
        return self._append("measure", item, self._sections(("data", "model", *LATENCY_HASHED)), {})

    @property
    def executions(self) -> list[tuple[str, str]]:
        """Every runtime with every precision."""
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

    def add_export(
        self, subject: Subject, replicate: int, network: Node, execution: tuple[str, str] | None = None
    ) -> End:
        """Add the files of a network: one per precision, or the one of a single runtime and precision."""
        executions = self.executions if execution is None else [execution]
        runtime_item = {} if execution is None else {"runtime": execution[0]}
        exports: dict[str, Node] = {
            precision: self.add(
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
        return End(subject=subject, replicate=replicate, sources=sources)

    def _int8_item(self, precision: str) -> dict[str, str]:
        """Return how an INT8 file differs from the default one."""
        activations = self._recipe.export.int8_activations
        return {"activations": activations} if (precision, activations) == ("int8", "int8") else {}

    def _add_latency(self, sources: Sequence[tuple[End, Node]], item: Mapping[str, Any]) -> None:  # Any: JSON
        parents = {f"{end.subject}#{end.replicate}": source for end, source in sources}
        self._append("measure", {"kind": "latency", **item}, self._sections(LATENCY_HASHED), parents)

    def add(
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


class _Replicate:
    """Adds the nodes of one replicate to a graph."""

    def __init__(self, graph: _Graph, replicate: int) -> None:
        self._graph = graph
        self._replicate = replicate
        self._teacher: Parents = {}

    def add(
        self,
        stage: StageWord,
        subject: Subject,
        parents: Parents,
        item: Mapping[str, Any] | None = None,  # Any: JSON values
    ) -> Node:
        """Add a node and return it."""
        node = self._graph.add(stage, subject, self._replicate, parents, item)
        if subject.kind == "dense" and stage == "train":
            self._teacher = self._graph.teacher(node)
        return node

    def add_ticket_finder(self, level: int, parents: Parents, find: WidthsSection | None) -> Node:
        """Add the finder of a ticket, which keeps to the budget of its level."""
        return self._graph.add_ticket_finder(level, self._replicate, parents, find)

    def add_early_bird_search(self, find: EarlyBirdSection) -> Node:
        """Add the training that an Early-Bird ticket is drawn from."""
        return self._graph.add_early_bird_search(find, self._replicate)

    def add_table(self) -> Node:
        """Add the table of latencies that finders read."""
        return self._graph.add_table()

    def add_search(self, find: SupernetSection, *, reactivation: bool) -> Node:
        """Add the training of a supernet that is pruned and shrunk meanwhile."""
        return self._graph.add_search(find, self._replicate, reactivation=reactivation)

    def add_training(self, subject: Subject, *, mask: Node, start: Parents) -> Node:
        """Add the training of a subject."""
        return self.add("train", subject, {"mask": mask, **start, **self._teacher})

    def add_subject(self, subject: Subject, *, mask: Node, start: Parents) -> tuple[Node, End]:
        """Add the training, shrink and export of a subject; return the training and the end."""
        trained = self.add_training(subject, mask=mask, start=start)
        return trained, self.add_trained(subject, mask=mask, trained=trained)

    def add_trained(self, subject: Subject, *, mask: Node, trained: Node) -> End:
        """Add the shrink and export of what is trained already."""
        return self._graph.add_shrunk(subject, self._replicate, mask=mask, trained=trained)

    def add_unshrunk(self, subject: Subject, trained: Node) -> End:
        """Add the export of a trained network as it is."""
        return self._graph.add_export(subject, self._replicate, trained)


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
    if recipe.model.builder.startswith(BUNDLE_PREFIX):
        values["model"]["builder"] = BUNDLE_PREFIX  # its folder may move
    return values
