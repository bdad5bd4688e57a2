"""The graph of nodes: what hangs on what, and which change of a recipe moves which key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ticket_export.errors import DataError, RecipeError
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.nodes import Node, hash_inputs, longest_chain_first, nodes_until
from ticket_export.recipe.load import load_recipe

SMOKE = Path(__file__).parent / "smoke.yaml"
ALL_CONTROLS = "find.controls=[random, uniform, reinit, unstructured]"


def nodes(*overrides: str, machine: str = "here") -> tuple[Node, ...]:
    recipe = load_recipe(SMOKE, overrides)
    return nodes_of(recipe, hash_inputs(recipe), machine)


def keys(*overrides: str, machine: str = "here") -> dict[str, str]:
    return {
        f"{node} {node.item.get('batch', '')}".strip(): node.key
        for node in nodes(*overrides, machine=machine)
    }


def changed(*overrides: str) -> set[str]:
    """The nodes of the smoke recipe whose key moves."""
    before, after = keys(), keys(*overrides)
    return {name for name, key in before.items() if after.get(name) != key}


def node_named(name: str, *overrides: str) -> Node:
    [found] = [node for node in nodes(*overrides) if str(node) == f"{name}, replicate 0"]
    return found


def parents(name: str, *overrides: str) -> dict[str, str]:
    return {
        role: str(parent).removesuffix(", replicate 0")
        for role, parent in node_named(name, *overrides).parents.items()
    }


def test_this_key_never_changes() -> None:
    assert node_named("train dense").key == "5b4143bfdd6a"


def test_a_level_goes_on_from_the_unstructured_network_of_the_one_before() -> None:
    two = "find.levels=2"
    assert parents("find unstructured@1", two) == {"trained": "train dense"}
    assert parents("find ticket@1", two) == {"elements": "find unstructured@1", "trained": "train dense"}
    assert parents("train unstructured@1", two) == {"mask": "find unstructured@1", "start": "train dense"}
    assert parents("find unstructured@2", two) == {
        "trained": "train unstructured@1",
        "previous": "find unstructured@1",
    }
    assert parents("find ticket@2", two) == {
        "elements": "find unstructured@2",
        "trained": "train unstructured@1",
    }


def test_tickets_restart_from_the_rewind_point_and_fresh_controls_do_not() -> None:
    assert parents("train ticket@1") == {"mask": "find ticket@1", "start": "train dense"}
    assert parents("train random@1") == {"mask": "find random@1", "start": "train dense"}
    assert parents("train uniform@1") == {"mask": "find uniform@1"}
    assert parents("train reinit@1") == {"mask": "find ticket@1"}


def test_torch_pruning_reads_the_trained_dense_network_and_restarts_as_the_ticket_does() -> None:
    peer = ("find.controls=[depgraph]", "model.args={}")
    assert parents("find depgraph@1", *peer) == {"like": "find ticket@1", "trained": "train dense"}
    assert parents("train depgraph@1", *peer) == {"mask": "find depgraph@1", "start": "train dense"}
    assert parents("shrink depgraph@1", *peer)["mask"] == "find depgraph@1"


def test_dense_and_unstructured_networks_are_exported_unshrunk() -> None:
    assert parents("export dense") == {"network": "train dense"}
    assert parents("export unstructured@1") == {"network": "train unstructured@1"}
    assert parents("export ticket@1") == {"network": "shrink ticket@1"}
    shrunk = {node.subject for node in nodes() if node.stage == "shrink"}
    assert shrunk == {"ticket@1", "random@1", "uniform@1", "reinit@1"}


def test_controls_stand_at_the_last_level_alone() -> None:
    subjects = [node.subject for node in nodes("find.levels=3") if node.stage == "export"]
    assert subjects == [
        "dense",
        "ticket@1",
        "ticket@2",
        "ticket@3",
        "random@3",
        "uniform@3",
        "reinit@3",
        "unstructured@3",
    ]


def test_the_last_unstructured_network_is_trained_only_where_it_is_a_control() -> None:
    trained = {node.subject for node in nodes("find.controls=[]", "find.levels=2") if node.stage == "train"}
    assert trained == {"dense", "ticket@1", "unstructured@1", "ticket@2"}


def test_every_subject_has_an_accuracy_and_a_place_in_each_latency() -> None:
    made = nodes("replicates=2", "measure.batches=[1, 4]", "measure.runtimes=[ort-cpu, torch]")
    accuracies = [node for node in made if node.item.get("kind") == "accuracy"]
    latencies = [node for node in made if node.is_latency]
    assert len(accuracies) == 6 * 2 * 2
    assert len(latencies) == 2 * 2
    assert all(len(node.parents) == 6 * 2 for node in latencies)
    assert {parent.stage for parent in latencies[0].parents.values()} == {"export"}
    assert {parent.stage for parent in latencies[-1].parents.values()} == {"train", "shrink"}


def test_parents_come_before_children_and_no_key_stands_twice() -> None:
    made = nodes("replicates=3", "find.levels=3")
    seen: set[Node] = set()
    for node in made:
        assert set(node.parents.values()) <= seen
        seen.add(node)
    assert len({(node.stage, node.key) for node in made}) == len(made)


def test_more_of_anything_keeps_what_is_there() -> None:
    before = keys("find.controls=[]", "replicates=2")
    more = (
        "find.levels=4",
        ALL_CONTROLS,
        "replicates=5",
        "measure.batches=[1, 2]",
        "measure.runtimes=[ort-cpu, torch]",
        "export.precisions=[fp32, fp16, int8]",
        "export.int8_min_agreement=0.5",
    )
    after = {node.key for node in nodes(*more)}
    latencies = {name for name in before if "all" in name}
    assert {name for name, key in before.items() if key not in after} == latencies


def test_each_precision_is_a_file_with_an_accuracy_and_a_latency_of_its_own() -> None:
    made = nodes("find.controls=[]", "export.precisions=[fp32, fp16, int8]")
    for kind in ("export", "accuracy", "latency"):
        found = [n.item["precision"] for n in made if kind in (n.stage, n.item.get("kind"))]
        num_subjects = 1 if kind == "latency" else 2
        assert sorted(found) == sorted(["fp32", "fp16", "int8"] * num_subjects)


def test_symmetric_activations_make_other_int8_files_and_move_no_other() -> None:
    precisions = "export.precisions=[fp32, int8]"
    before = {(str(n), n.item["precision"]): n.key for n in nodes(precisions) if n.stage == "export"}
    symmetric = nodes(precisions, "export.int8_activations=int8")
    after = {(str(n), n.item["precision"]): n.key for n in symmetric if n.stage == "export"}
    assert {name for name, key in before.items() if after[name] != key} == {
        name for name in before if name[1] == "int8"
    }


def test_a_name_is_in_no_key() -> None:
    assert changed("name=other") == set()


def test_a_default_written_out_is_in_no_key() -> None:
    assert (
        changed("find.form=small", "data.flip=false", "shrink.tolerance=1e-5", "measure.threads=1") == set()
    )


def test_rounding_moves_the_masks_and_not_the_pruning() -> None:
    moved = changed("find.round_to=4")
    assert {"find ticket@1, replicate 0", "shrink reinit@1, replicate 0"} <= moved
    kept = {
        "train dense",
        "find unstructured@1",
        "train unstructured@1",
        "export dense",
        "export unstructured@1",
    }
    assert not {f"{name}, replicate 0" for name in kept} & moved


def test_the_protocol_moves_the_latencies_alone() -> None:
    assert changed("measure.samples=6") == {"measure all 1"}


def test_another_machine_measures_anew_and_trains_nothing() -> None:
    here, there = keys(), keys(machine="there")
    assert {name.split()[0] for name in here if here[name] != there[name]} == {"measure"}
    assert all(here[name] != there[name] for name in here if name.startswith("measure"))


@pytest.mark.parametrize(
    "override", ["seed=1", "train.lr=0.2", "data.flip=true", "model.args={}", "find.rewind_epoch=0"]
)
def test_what_training_depends_on_moves_everything(override: str) -> None:
    assert changed(override) == set(keys())


def test_images_are_known_by_content_and_not_by_path(tmp_path: Path) -> None:
    for name, content in (("a.npz", b"one"), ("b.npz", b"one"), ("c.npz", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (keys("data.source=arrays", f"data.path={tmp_path}/{name}.npz") for name in "abc")
    assert a == b
    assert set(a.values()).isdisjoint(c.values())


def test_a_builder_and_its_weights_are_known_by_content(tmp_path: Path) -> None:
    net, weights = tmp_path / "net.py", tmp_path / "w.npz"
    net.write_text("one")
    weights.write_text("one")
    overrides = (f"model.builder={net}:make", "model.args={}", f"model.weights={weights}")
    first = keys(*overrides)
    net.write_text("two")
    second = keys(*overrides)
    weights.write_text("two")
    third = keys(*overrides)
    assert len({tuple(found.values()) for found in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (
            ("data.source=arrays", "data.path=/no/such.npz"),
            DataError,
            "data.path: /no/such.npz does not exist",
        ),
        (("data.source=folder", "data.path=/no/such"), DataError, "data.path: /no/such does not exist"),
        (("model.weights=/no/w.pt",), RecipeError, "model.weights: /no/w.pt cannot be read: No such file"),
        (
            ("model.builder=/no/net.py:make", "model.args={}"),
            RecipeError,
            "model.builder: /no/net.py cannot be read",
        ),
    ],
)
def test_a_missing_input_is_told_before_anything_runs(
    overrides: tuple[str, ...], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        nodes(*overrides)


AUTO = ("shrink.round_to=auto", "measure.runtimes=[ort-cpu, torch]")


def test_widths_by_measurement_are_one_shrink_and_one_file_per_runtime() -> None:
    made = nodes(*AUTO)
    shrinks = [node for node in made if (node.stage, node.subject) == ("shrink", "ticket@1")]
    assert [node.item["runtime"] for node in shrinks] == ["ort-cpu", "torch"]
    assert all(node.item["batches"] == [1] and node.is_timed and node.wave == 0 for node in shrinks)
    for node in made:
        if node.is_latency:
            source = node.parents["ticket@1#0"]
            shrunk = source if source.stage == "shrink" else source.parents["network"]
            assert shrunk.item["runtime"] == node.item["runtime"]
            assert node.wave == 1
    assert {node.wave for node in made if node.subject == "dense"} == {0}
    assert {node.wave for node in nodes()} == {0}


def test_chosen_widths_belong_to_the_machine_and_the_protocol_and_fixed_ones_do_not() -> None:
    def shrinks(*overrides: str, machine: str = "here") -> set[str]:
        return {node.key for node in nodes(*overrides, machine=machine) if node.stage == "shrink"}

    chosen = shrinks(*AUTO)
    assert chosen.isdisjoint(shrinks(*AUTO, machine="there"))
    assert chosen.isdisjoint(shrinks(*AUTO, "measure.samples=6"))
    assert chosen.isdisjoint(shrinks(*AUTO, "measure.batches=[1, 2]"))
    fixed = shrinks("shrink.round_to=16")
    assert fixed == shrinks("shrink.round_to=16", "measure.samples=6", machine="there")
    assert fixed.isdisjoint(shrinks())


def test_until_a_stage_takes_what_it_needs_and_no_more() -> None:
    made = nodes("find.levels=2")
    found = {str(node).removesuffix(", replicate 0") for node in nodes_until(made, "find")}
    assert found == {
        "train dense",
        "find unstructured@1",
        "find ticket@1",
        "train unstructured@1",
        "find unstructured@2",
        "find ticket@2",
        "find random@2",
        "find uniform@2",
    }
    assert {node.stage for node in nodes_until(made, "train")} == {"train", "find"}
    assert {node.stage for node in nodes_until(made, "shrink")} == {"train", "find", "shrink"}
    assert nodes_until(made, "report") == made


def test_the_longest_chain_starts_first() -> None:
    order = [str(node) for node in longest_chain_first(nodes("replicates=2", "find.levels=2"))]
    assert order[:2] == ["train dense, replicate 0", "train dense, replicate 1"]
    assert order.index("train unstructured@1, replicate 1") < order.index("train ticket@1, replicate 0")
    assert order.index("train reinit@2, replicate 1") < order.index("export dense, replicate 0")


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys; from ticket_export.pipeline import plan; "
        "from ticket_export.recipe.load import load_recipe; "
        f"assert len(plan(load_recipe({str(SMOKE)!r}))) > 20; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
