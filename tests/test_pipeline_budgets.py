"""Budgets of latency and free channels through the real chain, by a table and timings that are scripted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chain import Chain, tiny_recipe, write_images
from torch import nn

from ticket_export.channels.graph import ChannelGroup
from ticket_export.channels.mask import Mask
from ticket_export.channels.sites import LayerSite, layer_sites
from ticket_export.errors import ShrinkError
from ticket_export.find.best import mask_from_widths
from ticket_export.measure.calibration import Calibration
from ticket_export.measure.latency_table import Cell, LatencyTable
from ticket_export.measure.profile import Timing
from ticket_export.pipeline import coordinate, work
from ticket_export.pipeline.budgets import scores_within
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.latency_costs import kind_of
from ticket_export.pipeline.nodes import Node, hash_inputs
from ticket_export.runtime.fake import FakeRunner
from ticket_export.runtime.runner import Runner, TensorSpec
from ticket_export.stages import Subject

STEP = 4  # channels of a stair
LATENCY = ("find.levels=1", "model.args={width: 16}", "measure.batches=[4, 1]")
EARLY_BIRD = (
    *("find.method=early_bird", "find.gamma_l1=1e-4", "find.window=2", "find.max_distance=0.5"),
    *("train.epochs=4", "model.args={width: 16}"),
)


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinate, "num_usable_cores", lambda: 1)
    monkeypatch.setattr(work, "STEPS", {**work.STEPS, "table": (__name__, "table_step")})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "quarters.npz")


def stairs(width_in: int, width_out: int) -> float:
    """Seconds that a layer takes: it computes in lines of four channels."""
    lines_in, lines_out = (-(-width // STEP) for width in (width_in, width_out))
    return 1e-6 * (1 + lines_in * lines_out)


def table_step(context: Context, node: Node, folder: Path, scratch: Path, progress: object) -> dict[str, Any]:
    """Write a table of `stairs` for every width of the network."""
    sites = sites_of(context)
    cells = {
        kind_of(site): {
            (a, b): Cell(seconds=stairs(a, b), low_s=0.0, high_s=1.0)
            for a in _widths(site.columns.fixed)
            for b in _widths(site.rows.fixed)
        }
        for site in sites
        if site.op != "norm"
    }
    table = LatencyTable(
        **{name: node.item[name] for name in ("runtime", "precision", "batch")},
        threads=1, scope="compute", machine={}, cells=cells,
        calibration=Calibration(offset_s=1e-6, scale=1.0, networks=(), errors=()),
    )  # fmt: skip
    (folder / "table.json").write_text(json.dumps(table.to_json()), encoding="utf-8")
    return {}


def _widths(fixed: int) -> tuple[int, ...]:
    return (fixed,) if fixed else tuple(range(1, 17))


def sites_of(context: Context) -> tuple[LayerSite, ...]:
    dense = context.fresh_network(0, Subject("dense"))
    return layer_sites(dense, context.example_inputs, context.groups)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Timing]:
    """What networks are opened for, on a machine that is just as its table says."""
    return script(monkeypatch, 1.0)


def script(monkeypatch: pytest.MonkeyPatch, power: float) -> list[Timing]:
    """Let a network take this power of what the table says."""
    asked: list[Timing] = []

    def opener(context: Context, timing: Timing, folder: Path) -> Callable[[str, nn.Module], Runner]:
        spec = TensorSpec(name="input", dtype="float32", shape=(None, *context.images.image_shape))

        def opened(name: str, network: nn.Module) -> Runner:
            asked.append(timing)
            layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
            table_s = 1e-6 + sum(stairs(layer.weight.shape[1], layer.weight.shape[0]) for layer in layers)
            seconds = 1e-3 * (1e3 * table_s) ** power
            return FakeRunner(lambda _: seconds, name=timing.runtime, precision="fp32", spec=spec)

        return opened

    monkeypatch.setattr("ticket_export.pipeline.share_timer.network_opener", opener)
    return asked


def chain(images: Path, out: Path, *overrides: str, without: tuple[str, ...] = ()) -> Chain:
    return Chain(tiny_recipe(images, *overrides, without=without), out, until="find")


def test_a_latency_budget_is_chosen_by_the_table_timed_and_corrected(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = script(monkeypatch, 0.5)  # the smaller a network, the more the table misses
    made = chain(images, tmp_path, *LATENCY, "find.budget.latency_fraction=0.7", "find.controls=[]")
    node, facts = made.node("find", "ticket@1"), made.facts("find", "ticket@1")
    assert node.parents["table"].item["kind"] == "table"
    assert node.item["choice"] == "knapsack"
    assert facts["target"] == {"latency_fraction": 0.7}
    tries = facts["tries"]
    assert 1 < len(tries) <= 3  # the script's times are not those of the table
    asked = [abs(one["measured"]["share"] - 0.7) for one in tries]
    assert (
        facts["reached"] == facts["measured"]["share"] == tries[asked.index(min(asked))]["measured"]["share"]
    )
    assert asked[-1] < asked[0]
    assert facts["measured"]["low"] <= facts["reached"] <= facts["measured"]["high"]
    assert 0 < facts["kept_importance"] <= 1
    assert all((timing.runtime, timing.batch) == ("ort-cpu", 4) for timing in timed)
    assert len(timed) == 2 * len(tries)  # each beside dense
    assert node.is_timed  # nothing else runs beside it
    elsewhere = {str(n): n.key for n in nodes_of(made.recipe, hash_inputs(made.recipe), "elsewhere")}
    assert elsewhere[str(node)] != node.key  # what was timed belongs to the machine


def test_a_table_that_is_right_is_believed_at_the_first_try(
    images: Path, tmp_path: Path, timed: list[Timing]
) -> None:
    made = chain(images, tmp_path, *LATENCY, "find.budget.latency_fraction=0.6", "find.controls=[]")
    facts = made.facts("find", "ticket@1")
    assert 0.5 < facts["predicted"] <= 0.6
    assert facts["reached"] == pytest.approx(facts["predicted"])
    assert len(timed) == 2
    widths = made.mask("ticket@1").kept_widths()
    assert all(width % STEP == 0 for name, width in widths.items() if name in ("stem", "conv1"))


def test_free_channels_fill_the_stairs_and_the_uniform_network_is_as_fast(
    images: Path, tmp_path: Path, timed: list[Timing]
) -> None:
    plain = chain(images, tmp_path, *LATENCY, "find.drop_fraction=0.4", "find.controls=[]")
    free = ("find.free_channels=true", "find.controls=[uniform_latency]", "find.drop_fraction=0.4")
    made = chain(images, tmp_path, *LATENCY, *free)
    assert "free_channels" not in plain.facts("find", "ticket@1")
    before, after = (one.mask("ticket@1") for one in (plain, made))
    facts = made.facts("find", "ticket@1")["free_channels"]
    for name in ("stem", "conv1"):
        kept = before.kept_widths()[name]
        assert after.kept_widths()[name] == -(-kept // STEP) * STEP
        assert not (before.keep_by_group[name] & ~after.keep_by_group[name]).any()
    assert facts["predicted"] == pytest.approx(1.0)
    assert facts["channels_after"] == sum(after.kept_widths().values()) > facts["channels_before"]
    assert facts["measured"]["share"] == pytest.approx(1.0)
    uniform = made.facts("find", "uniform_latency@1")
    assert uniform["predicted_of_ticket"] == pytest.approx(_predicted(made, after))
    assert uniform["predicted"] == pytest.approx(_predicted(made, made.mask("uniform_latency@1")))
    other = _predicted(made, Mask({n: torch.arange(16) < 4 for n in ("stem", "conv1")}))
    assert abs(uniform["predicted"] - uniform["predicted_of_ticket"]) <= abs(other - uniform["predicted"])
    assert made.node("find", "uniform_latency@1").parents["table"].key == (
        made.node("find", "ticket@1").parents["table"].key
    )


def _predicted(made: Chain, mask: Mask) -> float:
    def seconds(widths: Mapping[str, int]) -> float:
        return 1e-6 + sum(
            stairs(site.columns.width(widths), site.rows.width(widths))
            for site in sites_of(made.context)
            if site.op != "norm"
        )

    return seconds(mask.kept_widths()) / seconds({"stem": 16, "conv1": 16})


@pytest.mark.parametrize("kind", ["mac_fraction", "latency_fraction"])
def test_an_early_bird_is_searched_for_and_drawn_within_a_budget(
    images: Path, tmp_path: Path, timed: list[Timing], kind: str
) -> None:
    budget = (*EARLY_BIRD, f"find.budget.{kind}=0.6", "find.controls=[]")
    made = chain(images, tmp_path, *budget, without=("levels", "drop_fraction"))
    facts, search = made.facts("find", "ticket@1"), made.node("train", "search@1")
    assert facts["target"] == {kind: 0.6}
    assert search.item["target"] == {kind: 0.6}
    assert ("table" in search.parents) == (kind == "latency_fraction")
    assert facts["found_epoch"] == made.facts("train", "search@1")["found_epoch"]
    assert facts["predicted"] <= 0.6 + 1e-6
    if kind == "mac_fraction":
        assert facts["mac_density"] == pytest.approx(facts["reached"])
        assert 0.4 < facts["reached"] <= 0.6


def test_a_budget_is_in_the_keys_of_what_it_decides_on_alone(images: Path) -> None:
    def keys(*overrides: str) -> dict[str, str]:
        recipe = tiny_recipe(images, *overrides, "find.controls=[]")
        return {str(node): node.key for node in nodes_of(recipe, hash_inputs(recipe), "here")}

    plain, budget, free = keys(), keys("find.budget.mac_fraction=0.5"), keys("find.free_channels=true")
    for node in ("train dense", "find unstructured@2", "train unstructured@1"):
        name = f"{node}, replicate 0"
        assert plain[name] == budget[name] == free[name]
    name = "find ticket@2, replicate 0"
    assert len({plain[name], budget[name], free[name]}) == 3


def test_channels_that_are_gone_are_worth_nothing_and_stay_away() -> None:
    scores = {"a": torch.tensor([1.0, 9.0, 3.0])}
    within = Mask({"a": torch.tensor([True, False, True]), "b": torch.tensor([False, True])})
    assert scores_within(scores, within)["a"].tolist() == [1.0, 0.0, 3.0]
    groups = [ChannelGroup(name=n, width=w, members=(), pinned=None) for n, w in (("a", 3), ("b", 2))]
    mask = mask_from_widths({"a": 1}, scores, groups, within=within)
    assert mask.keep_by_group["a"].tolist() == [False, False, True]
    assert mask.keep_by_group["b"].tolist() == [False, True]


def test_a_latency_that_no_network_reaches_is_told(images: Path, tmp_path: Path, timed: list[Timing]) -> None:
    with pytest.raises(
        ShrinkError, match=r"the budget is 0\.010 of dense, and the narrowest network costs 0\."
    ):
        chain(images, tmp_path, *LATENCY, "find.budget.latency_fraction=0.01", "find.controls=[]")
