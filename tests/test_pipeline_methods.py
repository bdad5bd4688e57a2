"""Every finder through the real chain on a tiny network: what it publishes, what its subjects start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_chain import Chain, published, tiny_recipe, write_images

from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError, TrainError
from ticket_export.find.early_bird import EarlyBird
from ticket_export.pipeline import coordinate, learn, run
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.networks import network_of, trained_network
from ticket_export.pipeline.nodes import hash_inputs

IMP = ("find.method=imp", "find.controls=[random, reinit, random_reinit]")
REGROUP = (
    *("find.method=regroup", "find.num_groups=2", "find.min_rows=4", "find.drop_fraction=0.6"),
    *("find.levels=1", "model.args={width: 16}"),
)
EARLY_BIRD = (
    *("find.method=early_bird", "find.drop_fraction=0.4", "find.gamma_l1=1e-4"),
    *("find.window=2", "find.max_distance=0.3", "train.epochs=4"),
)
RST = (
    *("find.method=rst", "find.drop_fraction=0.4", "find.criterion=random", "find.search_epochs=2"),
    *("find.search_lr=0.01", "find.penalty_step=0.1", "find.penalty_interval=1", "find.penalty_limit=1.0"),
)
NO_CHANNELS = ("scope", "round_to")  # what the smoke recipe has and imp does not


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinate, "num_usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "quarters.npz")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all methods, as their dense training is one."""
    return tmp_path_factory.mktemp("out")


def chain(
    images: Path, out: Path, *overrides: str, without: tuple[str, ...] = (), until: str = "shrink"
) -> Chain:
    return Chain(tiny_recipe(images, *overrides, without=without), out, until=until)


def test_imp_trains_single_weights_and_its_controls_keep_as_many_in_every_layer(
    images: Path, out: Path
) -> None:
    made = chain(images, out, *IMP, without=NO_CHANNELS)
    weights = load_file(made.file("train", "unstructured@2", "weights.safetensors"))
    kept = ElementMask.load(made.file("find", "unstructured@2", "elements.safetensors"))
    for name, keep in kept.keep_by_parameter.items():
        assert torch.equal(weights[name] != 0, keep)
    shuffled = ElementMask.load(made.file("find", "random@2", "elements.safetensors"))
    for name, keep in kept.keep_by_parameter.items():
        assert shuffled.keep_by_parameter[name].sum() == keep.sum()
        assert not torch.equal(shuffled.keep_by_parameter[name], keep)
    again = ElementMask.load(made.file("find", "random_reinit@2", "elements.safetensors"))
    assert all(
        torch.equal(keep, again.keep_by_parameter[n]) for n, keep in shuffled.keep_by_parameter.items()
    )
    facts = made.facts("shrink", "ticket@2")
    assert facts["param_density"] == made.facts("find", "unstructured@2")["param_density"] < 0.6


def test_refill_and_regroup_share_the_pruning_chain_of_imp(images: Path) -> None:
    def keys(*overrides: str, without: tuple[str, ...] = ()) -> dict[str, str]:
        recipe = tiny_recipe(images, *overrides, without=without)
        return {str(node): node.key for node in nodes_of(recipe, hash_inputs(recipe), "here")}

    imp, refill = keys(*IMP, without=NO_CHANNELS), keys()
    regroup = keys("find.method=regroup", "find.num_groups=2", "find.min_rows=4", without=("scope",))
    for node in ("train dense", "find unstructured@2", "train unstructured@1"):
        name = f"{node}, replicate 0"
        assert imp[name] == refill[name] == regroup[name]
    assert refill["find ticket@2, replicate 0"] != regroup["find ticket@2, replicate 0"]


def test_levels_in_the_loop_are_trained_small_and_get_smaller(images: Path, out: Path) -> None:
    made = chain(images, out, "find.method=channel_imp", "find.controls=[random]", "find.drop_fraction=0.5")
    one, two = made.facts("train", "ticket@1"), made.facts("train", "ticket@2")
    assert made.facts("train", "dense")["macs"] > one["macs"] > two["macs"]
    first, second = made.mask("ticket@1").keep_by_group, made.mask("ticket@2").keep_by_group
    assert all(not (second[name] & ~first[name]).any() for name in first)
    assert {node.subject for node in made.nodes if node.stage == "train"} == {
        *("dense", "ticket@1", "ticket@2", "random@2")
    }
    # what is read is the small network's own weights, and what it restarts from are the dense ones
    assert made.node("find", "ticket@2").parents["trained"] is made.node("train", "ticket@1")
    assert made.node("train", "ticket@2").parents["start"] is made.node("train", "dense")


def test_regroup_runs_in_blocks_what_it_trained_with_zeros(images: Path, out: Path) -> None:
    made = chain(images, out, *REGROUP, "find.controls=[]", without=("scope",))
    facts = made.facts("shrink", "ticket@1")
    assert facts["blocks"]["layers"]["conv1"]["form"] in ("blocks", "grouped")
    assert facts["macs"] < made.facts("train", "dense")["macs"]
    assert (
        facts["blocks"]["layers"]["conv1"]["executed_macs"] < facts["blocks"]["layers"]["conv1"]["dense_macs"]
    )
    masked = trained_network(made.context, made.node("train", "ticket@1")).eval()
    blocks = network_of(made.context, made.node("shrink", "ticket@1")).eval()
    x_NCHW = made.context.example_inputs
    with torch.no_grad():
        torch.testing.assert_close(blocks(x_NCHW), masked(x_NCHW), rtol=1e-4, atol=1e-5)


def test_early_bird_goes_on_from_the_epoch_it_was_found_in(images: Path, out: Path) -> None:
    made = chain(images, out, *EARLY_BIRD, "find.controls=[random]", without=("levels",))
    search, ticket = made.facts("train", "search@1"), made.facts("train", "ticket@1")
    assert search["found_epoch"] is not None
    assert search["num_epochs"] == search["found_epoch"] + 1 == search["end_epoch"]
    assert [record["epoch"] for record in ticket["history"]] == list(range(search["end_epoch"], 4))
    assert made.facts("find", "ticket@1")["channel_density"] == pytest.approx(0.6, abs=0.1)


def test_early_bird_that_never_settles_says_how_far_it_was(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restless(self: EarlyBird, epoch: int, model: torch.nn.Module) -> bool:
        keep_C = torch.arange(self._ranking.num_channels) % 2 == epoch % 2
        return self.note(epoch, keep_C)

    monkeypatch.setattr(EarlyBird, "after_epoch", restless)
    recipe = tiny_recipe(images, *EARLY_BIRD, "find.controls=[]", without=("levels",))
    with pytest.raises(TrainError, match=r"no Early-Bird ticket in 4 epochs: .* in 1\.000 of its channels"):
        run(recipe, tmp_path, until="train")


def test_early_bird_that_settles_in_the_last_epoch_leaves_none_to_train(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(self: EarlyBird, epoch: int, model: torch.nn.Module) -> bool:
        keep_C = torch.arange(self._ranking.num_channels) % 2 == min(epoch, 2) % 2
        return self.note(epoch, keep_C)

    monkeypatch.setattr(EarlyBird, "after_epoch", late)
    recipe = tiny_recipe(images, *EARLY_BIRD, "find.controls=[]", without=("levels",))
    with pytest.raises(TrainError, match="found after the last of 4 epochs; none is left to train it"):
        run(recipe, tmp_path, until="train")


def test_random_sparse_training_empties_what_it_drops(images: Path, out: Path) -> None:
    made = chain(images, out, *RST, "find.controls=[]", without=("levels",))
    mask = made.mask("ticket@1")
    name, keep_C = next((n, keep) for n, keep in mask.keep_by_group.items() if not keep.all())
    before = load_file(made.file("train", "dense", "rewind.safetensors"))[f"{name}.weight"].flatten(1)
    after = load_file(made.file("train", "search@1", "weights.safetensors"))[f"{name}.weight"].flatten(1)
    shrunk = after.norm(dim=1) / before.norm(dim=1)
    assert shrunk[~keep_C].max() < shrunk[keep_C].min()
    assert made.facts("train", "ticket@1")["num_epochs"] == 3


def test_rewinding_the_rate_alone_keeps_the_trained_weights(images: Path, out: Path) -> None:
    made = chain(
        images,
        out,
        "find.rewind=rate",
        "find.levels=1",
        "find.controls=[random]",
        "train.lr=1e-9",
        until="train",
    )
    trained = load_file(made.file("train", "dense", "weights.safetensors"))["stem.weight"]
    ticket = load_file(made.file("train", "ticket@1", "weights.safetensors"))["stem.weight"]
    mask = made.mask("ticket@1").keep_by_group["stem"]
    torch.testing.assert_close(ticket, trained[mask], rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", ["l2", "count", "gamma", "taylor", "tp_magnitude", "tp_hessian"])
def test_every_score_finds_a_ticket_of_the_same_widths(images: Path, out: Path, score: str) -> None:
    like = chain(images, out, "find.levels=1", "find.controls=[]", until="find")
    made = chain(images, out, f"find.score={score}", "find.levels=1", "find.controls=[]", until="find")
    assert made.mask("ticket@1").kept_widths() == like.mask("ticket@1").kept_widths()


@pytest.mark.parametrize("kind", ["param_fraction", "mac_fraction"])
@pytest.mark.parametrize("method", ["refill", "channel_imp"])
def test_a_budget_is_kept_and_nearly_used_up(images: Path, out: Path, method: str, kind: str) -> None:
    budget = (
        f"find.method={method}",
        f"find.budget.{kind}=0.5",
        "find.controls=[]",
        "model.args={width: 16}",
    )
    made = chain(images, out, *budget, until="find")
    density = {"param_fraction": "param_density", "mac_fraction": "mac_density"}[kind]
    one, two = made.facts("find", "ticket@1"), made.facts("find", "ticket@2")
    assert one["target"][kind] == pytest.approx(0.5**0.5, abs=1e-6)
    assert 0.6 < one[density] <= 0.5**0.5
    assert 0.4 < two[density] <= 0.5
    assert two["reached"] == pytest.approx(two[density])
    assert two["predicted"] == pytest.approx(two["reached"])
    assert 0 < two["kept_importance"] < 1


def test_a_budget_that_no_network_meets_is_told_with_what_was_reached(images: Path, out: Path) -> None:
    with pytest.raises(ShrinkError, match=r"the budget is 0\.001 .* narrowest .* costs 0\.\d+"):
        chain(
            images, out, "find.budget.mac_fraction=0.001", "find.levels=1", "find.controls=[]", until="find"
        )


def test_a_level_that_empties_a_layer_is_told(images: Path, out: Path) -> None:
    with pytest.raises(ShrinkError, match=r"level 1 keeps 0 of the \d+ weights of 'conv\d.weight'"):
        chain(images, out, *IMP, "find.drop_fraction=0.9999", without=NO_CHANNELS, until="find")


def test_distilled_subjects_have_dense_for_a_teacher(images: Path, out: Path) -> None:
    distill = "find.distill={weight: 0.5, temperature: 4.0}"
    made = chain(images, out, distill, "find.levels=1", "find.controls=[reinit]", until="train")
    plain = chain(images, out, "find.levels=1", "find.controls=[reinit]", until="train")
    for subject in ("ticket@1", "reinit@1"):
        assert made.node("train", subject).parents["teacher"].key == plain.node("train", "dense").key
        assert made.node("train", subject).key != plain.node("train", subject).key


def test_controls_stand_at_every_level_where_the_recipe_says_so(images: Path, out: Path) -> None:
    recipe = ("find.control_levels=every", "find.controls=[random, unstructured]")
    made = chain(images, out, *recipe, until="find")
    subjects = [node.subject for node in made.nodes if node.stage == "export"]
    assert subjects == [
        *("dense", "ticket@1", "ticket@2", "random@1", "unstructured@1", "random@2", "unstructured@2")
    ]


@pytest.mark.parametrize("method", ["refill", "channel_imp"])
def test_the_last_ticket_alone_is_compared_where_the_recipe_says_so(images: Path, method: str) -> None:
    def named(stage: str, *overrides: str) -> set[str]:
        recipe = tiny_recipe(images, f"find.method={method}", "find.controls=[random]", *overrides)
        nodes = nodes_of(recipe, hash_inputs(recipe), "here")
        return {node.subject for node in nodes if node.stage == stage}

    last = "find.ticket_levels=last"
    assert named("export", last) == {"dense", "ticket@2", "random@2"}
    chain_ = {"refill": {"unstructured@1"}, "channel_imp": {"ticket@1"}}[method]
    assert named("train", last) == {"dense", "ticket@2", "random@2"} | chain_


def test_the_lowest_validation_loss_is_looked_at_between_epochs(images: Path, out: Path) -> None:
    made = chain(images, out, "train.validate_steps=2", "find.levels=1", "find.controls=[]", until="train")
    early = made.facts("train", "ticket@1")["early_stop"]
    assert early["iteration"] % 2 == 0
    assert 0 <= early["test_accuracy"] <= 1
    assert early["val_loss"] == made.facts("train", "ticket@1")["min_val_loss"]


@pytest.mark.parametrize(
    ("overrides", "without"),
    [
        (("find.method=channel_imp",), ()),
        (EARLY_BIRD, ("levels",)),
        (RST, ("levels",)),
        (("find.distill={weight: 0.5, temperature: 4.0}", "find.levels=1"), ()),
    ],
    ids=["channel_imp", "early_bird", "rst", "distilled"],
)
def test_trainings_broken_off_after_every_epoch_end_bit_equal(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    without: tuple[str, ...],
) -> None:
    recipe = tiny_recipe(images, *overrides, "find.controls=[]", without=without)
    run(recipe, tmp_path / "calm", until="train")
    monkeypatch.setattr(learn, "train", partial(learn.train, checkpoint_interval_s=0.0))
    seen: set[tuple[str, float]] = set()

    def break_off(event: Mapping[str, Any]) -> None:
        """Stop once at the end of each epoch of each training, when its checkpoint is not yet written."""
        moment = (str(event.get("key")), float(event.get("epoch", 0.5)))
        if event["event"] == "progress" and moment[1] % 1 == 0 and moment not in seen:
            seen.add(moment)
            raise KeyboardInterrupt

    for _ in range(40):
        try:
            run(recipe, tmp_path / "broken", until="train", emit=break_off)
            break
        except KeyboardInterrupt:
            continue
    assert len(seen) >= 5
    assert published(tmp_path / "broken") == published(tmp_path / "calm")
