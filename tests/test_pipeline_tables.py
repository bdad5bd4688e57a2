"""Latency tables in the pipeline: their nodes and keys, what they hold, and what they say of a network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import scripted_tables
import torch
from scripted_tables import network_seconds, table_of
from tiny_chain import tiny_recipe, write_images
from tiny_net import make

from ticket_export.channels.cost_models import network_cost
from ticket_export.channels.graph import channel_groups
from ticket_export.channels.sites import LayerSite, layer_sites
from ticket_export.errors import MeasureError
from ticket_export.measure.calibration import WholeNetwork, calibrated
from ticket_export.measure.probe import ends, sandwich
from ticket_export.pipeline.graph import nodes_of, table_nodes
from ticket_export.pipeline.latency_costs import LatencyCosts, kind_of, wanted_cells
from ticket_export.pipeline.nodes import Node, hash_inputs
from ticket_export.pipeline.profiling import (
    layers_seconds,
    module_from_probe,
    network_of_widths,
    random_widths,
)
from ticket_export.pipeline.tables import profile
from ticket_export.recipe.load import load_recipe

SMOKE = Path(__file__).parent / "smoke.yaml"
X = torch.zeros(2, 1, 8, 8)
WIDTH = 24
SCRIPTED = ("measure.runtimes=[torch]", f"model.args={{width: {WIDTH}}}")


def nodes(*overrides: str) -> tuple[Node, ...]:
    recipe = load_recipe(SMOKE, overrides)
    return table_nodes(recipe, hash_inputs(recipe), "here")


@pytest.fixture(scope="module")
def sites() -> tuple[LayerSite, ...]:
    network = make(WIDTH).eval()
    return layer_sites(network, X, channel_groups(network, X))


@pytest.fixture(scope="module")
def whole() -> dict[str, int]:
    return {group.name: group.width for group in channel_groups(make(WIDTH).eval(), X)}


@pytest.fixture
def costs(sites: tuple[LayerSite, ...], whole: dict[str, int]) -> LatencyCosts:
    """Of a machine whose networks take half of what their layers say, and 0.1 ms."""
    table = table_of(wanted_cells(sites, whole))
    networks = [WholeNetwork(name=str(n), layers_s=1e-4 * n, seconds=1e-4 + 0.5e-4 * n) for n in range(1, 6)]
    return LatencyCosts(dataclasses.replace(table, calibration=calibrated(networks)), sites)


def test_a_table_is_timed_alone_and_has_no_parents() -> None:
    [node] = nodes()
    assert (node.stage, node.subject, node.replicate, node.wave) == ("measure", "all", None, 0)
    assert node.item == {"kind": "table", "runtime": "ort-cpu", "precision": "fp32", "batch": 1}
    assert node.is_timed
    assert node.is_table
    assert not node.is_latency
    assert node.parents == {}


def test_there_is_a_table_for_each_runtime_precision_and_batch_that_runs() -> None:
    made = nodes(
        "measure.runtimes=[ort-cpu, torch]", "export.precisions=[fp32, int8]", "measure.batches=[1, 8]"
    )
    assert [(node.item["runtime"], node.item["precision"], node.item["batch"]) for node in made] == [
        ("ort-cpu", "fp32", 1),
        ("ort-cpu", "fp32", 8),
        ("ort-cpu", "int8", 1),
        ("ort-cpu", "int8", 8),
        ("torch", "fp32", 1),
        ("torch", "fp32", 8),
    ]


@pytest.mark.parametrize(
    ("override", "moves"),
    [
        ("train.lr=0.5", False),
        ("find.round_to=4", False),
        ("find.levels=3", False),
        ("model.args={}", True),
        ("measure.threads=2", True),
        ("measure.rounds=7", True),
    ],
)
def test_a_table_depends_on_the_network_and_on_how_is_measured_alone(override: str, moves: bool) -> None:
    assert (nodes(override)[0].key != nodes()[0].key) == moves


def test_symmetric_activations_have_tables_of_their_own() -> None:
    [uint8] = nodes("export.precisions=[int8]")
    [int8] = nodes("export.precisions=[int8]", "export.int8_activations=int8")
    assert uint8.key != int8.key


def test_a_run_without_a_latency_budget_makes_no_table() -> None:
    recipe = load_recipe(SMOKE)
    assert not [node for node in nodes_of(recipe, hash_inputs(recipe), "here") if node.is_table]


def test_the_price_of_a_network_is_its_calibrated_latency(
    costs: LatencyCosts, sites: tuple[LayerSite, ...], whole: dict[str, int]
) -> None:
    kept = {**whole, "stem": 8, "conv1": 12}
    layers_s = network_seconds(network_of_widths(make(WIDTH), channel_groups(make(WIDTH), X), kept))
    layers_s -= scripted_tables.RUN_S
    assert network_cost(costs, sites, kept) == pytest.approx(1e-4 + 0.5 * layers_s)
    assert (costs.name, costs.fixed()) == ("latency_fraction", pytest.approx(1e-4))


def test_norms_take_no_time_of_their_own(costs: LatencyCosts, sites: tuple[LayerSite, ...]) -> None:
    norms = [site for site in sites if site.op == "norm"]
    assert [costs.cost(site, 24, 24) for site in norms] == [0.0, 0.0, 0.0]


def test_groups_may_have_the_widths_that_were_measured(costs: LatencyCosts) -> None:
    assert costs.widths("stem", WIDTH) == (4, 8, 12, 16, 20, 24)
    assert costs.widths("conv1", WIDTH) == (4, 8, 12, 16, 20, 24)


def test_every_width_a_group_may_have_was_measured_on_all_its_layers(
    costs: LatencyCosts, sites: tuple[LayerSite, ...], whole: dict[str, int]
) -> None:
    for stem in costs.widths("stem", WIDTH):
        for inner in costs.widths("conv1", WIDTH):
            kept = {**whole, "stem": stem, "conv1": inner}
            for site in sites:
                if site.op != "norm":
                    pair = site.columns.width(kept), site.rows.width(kept)
                    assert pair in costs.table.cells[kind_of(site)]


def test_a_table_without_whole_networks_prices_none(
    sites: tuple[LayerSite, ...], whole: dict[str, int]
) -> None:
    with pytest.raises(MeasureError, match="no whole network was timed"):
        LatencyCosts(table_of(wanted_cells(sites, whole)), sites)


def test_a_table_of_another_network_is_refused_by_the_layer_it_lacks(costs: LatencyCosts) -> None:
    network = make(WIDTH).eval()
    larger = torch.zeros(2, 1, 16, 16)
    with pytest.raises(MeasureError, match="conv 3x3 at 16x16 was not measured"):
        LatencyCosts(costs.table, layer_sites(network, larger, channel_groups(network, larger)))


def test_random_networks_range_from_narrow_to_whole_on_the_tables_widths() -> None:
    groups = channel_groups(make(WIDTH).eval(), X)
    drawn = random_widths(groups, 9, seed=0)
    again = random_widths(groups, 9, seed=0)
    assert drawn == again != random_widths(groups, 9, seed=1)
    stems = [widths["stem"] for widths in drawn.values()]
    assert min(stems) <= 8
    assert max(stems) >= 20
    assert {width % 4 for widths in drawn.values() for name, width in widths.items() if name != "linear"} == {
        0
    }
    assert {widths["linear"] for widths in drawn.values()} == {4}


def test_branches_that_may_go_do_so_now_and_then() -> None:
    group = channel_groups(make(WIDTH).eval(), X)[1]
    branch = dataclasses.replace(group, branch="blocks.0.branches.k3")
    drawn = [widths[group.name] for widths in random_widths([branch], 40, seed=0).values()]
    assert 4 <= drawn.count(0) <= 20
    assert 0 not in [widths[group.name] for widths in random_widths([group], 40, seed=0).values()]


def test_probes_as_modules_have_the_probes_shapes(sites: tuple[LayerSite, ...]) -> None:
    for site in sites[:4]:
        for probe in (sandwich(kind_of(site), 8, 12), ends(site.op, site.in_size, 8)):
            image = torch.zeros(2, *probe.input_shape)
            assert module_from_probe(probe)(image).shape == (2, *probe.output_shape)


def test_a_profile_is_calibrated_stored_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = scripted_tables.install(monkeypatch)
    recipe = tiny_recipe(write_images(tmp_path / "images.npz"), *SCRIPTED)
    events: list[str] = []
    [made] = profile(recipe, tmp_path / "out", emit=lambda event: events.append(event["event"]))
    calibration = made.table.calibration
    assert calibration is not None
    assert (made.found, len(calibration.networks)) == (False, 10)
    assert calibration.largest_error < 1e-6
    # a layer that reads the image has one end alone, so it holds the other half of a run
    assert calibration.offset_s == pytest.approx(scripted_tables.RUN_S / 2)
    assert calibration.scale == pytest.approx(1.0)
    manifest = json.loads(made.path.with_name("manifest.json").read_text(encoding="utf-8"))
    assert manifest["facts"]["num_cells"] == made.table.num_cells > 0
    assert manifest["facts"]["kind"] == "table"
    assert sorted(path.name for path in made.path.parent.iterdir()) == ["manifest.json", "table.json"]
    opened.clear()
    [found] = profile(recipe, tmp_path / "out", emit=lambda event: events.append(event["event"]))
    assert (found.found, found.table, opened) == (True, made.table, [])
    assert (events[0], events[-2], events[-1]) == ("start", "done", "skip")


def test_a_killed_profile_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = scripted_tables.install(monkeypatch)
    recipe = tiny_recipe(write_images(tmp_path / "images.npz"), *SCRIPTED)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("ticket_export.pipeline.profiling.calibrated", killed)
        with pytest.raises(KeyboardInterrupt):
            profile(recipe, tmp_path / "out")
    assert len(opened) > 0
    opened.clear()
    [made] = profile(recipe, tmp_path / "out")
    assert made.table.num_cells > 0
    assert {name.partition("-")[0] for name in opened} == {"dense", "random"}


@pytest.mark.slow
def test_this_processor_gets_a_table_that_predicts_its_networks(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        write_images(tmp_path / "images.npz"),
        "model.args={width: 64}",
        "measure.rounds=10",
        "measure.samples=50",
    )
    [made] = profile(recipe, tmp_path / "out")
    calibration = made.table.calibration
    assert calibration is not None
    assert (
        calibration.median_error < 0.25
    )  # a busy machine; benchmarks/latency_table.py tells what a quiet one gives
    groups = channel_groups(make(64).eval(), X)
    sites = layer_sites(make(64).eval(), X, groups)
    whole = {group.name: group.width for group in groups}
    narrow = {**whole, "stem": 8, "conv1": 8}
    assert layers_seconds(made.table, sites, narrow) < 0.5 * layers_seconds(made.table, sites, whole)
