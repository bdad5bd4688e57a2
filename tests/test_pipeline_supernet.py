"""The chain of a supernet: what hangs on what, and a run from the recipe to the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chain import Chain, write_images

from ticket_export.errors import RecipeError
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.nodes import InputHashes, Node
from ticket_export.recipe.load import recipe_from_yaml
from ticket_export.recipe.schema import Recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "digits_supernet.yaml"


def recipe(*overrides: str) -> Recipe:
    return recipe_from_yaml(
        RECIPE.read_text(encoding="utf-8"), source="supernet", overrides=["replicates=1", *overrides]
    )


def nodes(*overrides: str) -> dict[str, Node]:
    found = nodes_of(recipe(*overrides), InputHashes(data=None, weights=None, builder=None), "machine")
    names = (f"{node.stage} {node.subject} {node.item.get('reactivation', '')}".strip() for node in found)
    return dict(zip(names, found, strict=True))


def test_the_ticket_and_the_searched_network_share_one_search_and_no_reactivation_has_its_own() -> None:
    made = nodes()
    search, other = made["train search@1"], made["train search@1 False"]
    assert made["find ticket@1"].parents == {"trained": search}
    assert made["train ticket@1"].parents["weights"] is search
    assert made["shrink searched@1"].parents == {"trained": search, "mask": made["find ticket@1"]}
    assert made["find no_reactivation@1"].parents == {"trained": other}
    assert made["train no_reactivation@1"].parents["weights"] is other
    assert "weights" not in made["train reinit@1"].parents


def test_a_budget_of_latency_gives_the_search_and_uniform_latency_one_table() -> None:
    made = nodes(
        "find.drop_fraction=null",
        "find.budget={latency_fraction: 0.5}",
        "find.drop_step=0.2",
        "find.controls=[uniform_latency]",
    )
    table = made["train search@1"].parents["table"]
    assert table.item["kind"] == "table"
    assert made["find uniform_latency@1"].parents["table"] is table
    assert made["train search@1"].item["target"] == {"latency_fraction": 0.5}


def test_a_search_without_prices_by_latency_needs_no_table() -> None:
    assert "table" not in nodes()["train search@1"].parents


@pytest.mark.parametrize("change", ["find.gamma_l1=1e-4", "find.ramp_epochs=1", "find.price=weights"])
def test_what_a_search_is_told_is_in_its_key_and_not_in_that_of_dense(change: str) -> None:
    before, after = nodes(), nodes(change)
    assert before["train search@1"].key != after["train search@1"].key
    assert before["train dense"].key == after["train dense"].key


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("find.event_epochs=5", "does not divide train.epochs"),
        ("find.drop_step=0.1", "4 events reach 0.4 of 0.6"),
        ("find.budget={mac_fraction: 0.5}", "stands in place of budget"),
        ("find.reactivation=false", "no_reactivation is the ticket itself"),
        ("find.controls=[uniform_latency]", "needs a budget of latency_fraction or price latency"),
        ("model.builder=zoo:resnet20", "has none"),
    ],
)
def test_what_does_not_fit_a_search_is_told(override: str, told: str) -> None:
    without = ["model.args={}"] if override.startswith("model") else []
    with pytest.raises(RecipeError, match=told):
        recipe(override, *without)


@pytest.mark.slow
def test_a_supernet_is_searched_cut_trained_on_and_measured(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images.npz")
    chain = Chain(
        recipe(
            *("data.source=arrays", f"data.path={images}", "train.epochs=2", "find.event_epochs=1"),
            *("find.drop_step=0.3", "find.retrain_epochs=1", "train.warmup_epochs=0", "find.ramp_epochs=0"),
            *("measure.batches=[1]", "measure.rounds=5", "measure.samples=5"),
        ),
        tmp_path / "out",
    )
    assert chain.report is not None
    subjects = {row["subject"]: row for row in chain.report.rows}
    assert set(subjects) == {
        *("dense", "ticket@1", "searched@1", "no_reactivation@1", "reinit@1", "uniform@1"),
    }
    # 60 % of the hidden channels are gone; the same network before and after it trained on
    facts = chain.facts("train", "search@1")
    hidden = 3 * (3 * 16 + 16 + 2 * 32 + 32 + 2 * 64)
    assert facts["events"][-1]["kept_channels"] == hidden - int(0.6 * hidden)
    assert facts["events"][-1]["rel_error"] <= 1e-5
    assert subjects["ticket@1"]["macs"] == subjects["searched@1"]["macs"] == subjects["reinit@1"]["macs"]
    assert subjects["ticket@1"]["macs"] < subjects["dense"]["macs"]
    costs = {cost.subject: cost for cost in chain.report.search_costs}
    assert 0.5 < costs["searched@1"].macs_ratio < 1.0  # the second epoch trained a smaller network
