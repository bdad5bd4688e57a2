"""The real chain on a tiny foreign network: every stage, every control, and what each one published."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_chain import Chain, published, tiny_recipe, write_images

from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import ElementMask
from ticket_export.errors import DataError, MissingDependency, RecipeError, ShrinkError
from ticket_export.find.depgraph import depgraph_mask
from ticket_export.pipeline import coordinate, plan, run
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.networks import network_of, scattered, small_elements, trained_network
from ticket_export.recipe.dump import yaml_from_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.runtime.registry import open_runner
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.stages import Subject
from ticket_export.store.store import Store


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "quarters.npz")


@pytest.fixture(scope="module", autouse=True)
def _one_core() -> Iterator[None]:
    """Train with one thread: on networks this small a second one only waits, on a busy machine for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinate, "num_usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def chain(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tiny_recipe(images), tmp_path_factory.mktemp("chain"))


def test_every_subject_is_in_the_report(chain: Chain) -> None:
    assert chain.report is not None
    assert chain.report.subjects == (
        "dense",
        "ticket@1",
        "ticket@2",
        "unstructured@2",
        "uniform@2",
        "depgraph@2",
        "random@2",
        "reinit@2",
    )
    folder = chain.out / "runs" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        "inputs.json",
        "log.jsonl",
        "recipe.yaml",
        "report.html",
        "report.json",
        "report.md",
        "run.json",
    }
    rows = json.loads((folder / "report.json").read_text())["rows"]
    assert len(rows) == 8
    assert all(row["accuracy"] is not None and row["parity_rel_error"] < 1e-4 for row in rows)
    assert [row["speedup"] is None for row in rows] == [True] + [False] * 7


def test_a_measurement_made_again_is_reported_again(chain: Chain) -> None:
    path = chain.out / "runs" / "tiny" / "report.json"
    before = json.loads(path.read_text())["rows"]
    for node in chain.nodes:
        if node.is_latency:
            shutil.rmtree(chain.out / "store" / "measure" / node.key)
    report = run(chain.recipe, chain.out)
    assert report is not None
    after = json.loads(path.read_text())["rows"]
    assert [row["latency_s"] for row in after] != [row["latency_s"] for row in before]
    assert [row["latency_s"] for row in after] == [row["latency_s"] for row in report.to_json()["rows"]]


def test_the_dense_network_learns_and_its_rewind_point_lies_before(chain: Chain) -> None:
    trained = load_file(chain.file("train", "dense", "weights.safetensors"))
    rewind = load_file(chain.file("train", "dense", "rewind.safetensors"))
    assert trained.keys() == rewind.keys()
    assert not torch.equal(trained["conv1.weight"], rewind["conv1.weight"])
    assert int(rewind["stem_norm.num_batches_tracked"]) == 4  # whole batches of 32 in 144 images
    assert int(trained["stem_norm.num_batches_tracked"]) == 12
    facts = chain.facts("train", "dense")
    assert len(facts["history"]) == 3
    assert facts["params"] == 1308
    assert facts["device"] == "cpu"


def test_a_ticket_is_trained_for_the_epochs_after_the_rewind_point(chain: Chain) -> None:
    assert len(chain.facts("train", "ticket@1")["history"]) == 2
    assert len(chain.facts("train", "random@2")["history"]) == 2
    assert len(chain.facts("train", "uniform@2")["history"]) == 3
    assert len(chain.facts("train", "reinit@2")["history"]) == 3


def test_each_level_keeps_less_and_never_what_was_dropped(chain: Chain) -> None:
    paths = [chain.file("find", f"unstructured@{level}", "elements.safetensors") for level in (1, 2)]
    masks = [ElementMask.load(path) for path in paths]
    assert masks[0].element_density == pytest.approx(0.6, abs=1e-3)
    assert masks[1].element_density == pytest.approx(0.36, abs=1e-3)
    for name, keep in masks[1].keep_by_parameter.items():
        assert not (keep & ~masks[0].keep_by_parameter[name]).any()
    assert set(masks[0].keep_by_parameter) == {
        "conv1.weight",
        "conv2.weight",
    }  # neither stem nor classifier
    assert chain.mask("ticket@2").channel_density < chain.mask("ticket@1").channel_density


def test_random_keeps_the_tickets_widths_and_other_channels(chain: Chain) -> None:
    ticket, other = chain.mask("ticket@2"), chain.mask("random@2")
    assert other.kept_widths() == ticket.kept_widths()
    assert any(
        not torch.equal(keep_C, other.keep_by_group[name]) for name, keep_C in ticket.keep_by_group.items()
    )


def test_uniform_comes_near_the_tickets_macs(chain: Chain) -> None:
    ticket, uniform = (chain.facts("find", name)["mac_density"] for name in ("ticket@2", "uniform@2"))
    assert uniform == pytest.approx(ticket, abs=0.15)


def test_torch_prunings_channels_restart_from_the_tickets_rewind_point(chain: Chain) -> None:
    ticket, depgraph = (chain.facts("find", name)["mac_density"] for name in ("ticket@2", "depgraph@2"))
    assert depgraph == pytest.approx(ticket, abs=0.05)
    assert len(chain.facts("train", "depgraph@2")["history"]) == len(
        chain.facts("train", "ticket@2")["history"]
    )
    assert chain.node("train", "depgraph@2").parents["start"] == chain.node("train", "dense")
    dense = trained_network(chain.context, chain.node("train", "dense"))
    again = depgraph_mask(
        dense, chain.context.example_inputs, chain.context.groups,
        target_macs=chain.facts("find", "ticket@2")["macs"],
    )  # fmt: skip
    assert again.kept_widths() == chain.mask("depgraph@2").kept_widths()


def test_a_foreign_network_that_torch_pruning_cannot_prune_is_refused_by_the_plan(
    images: Path, tmp_path: Path
) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "from ticket_export.models.resnet import CifarResNet\n\n"
        "def make():\n"
        "    return CifarResNet((8, 16), (1, 1), num_classes=4, in_channels=1, shortcut='pad')\n"
    )
    recipe = tiny_recipe(images, f"model.builder={net}:make", "model.args={}")
    with pytest.raises(ShrinkError, match="torch-pruning"):
        plan(recipe, tmp_path / "out")
    without = tiny_recipe(images, f"model.builder={net}:make", "model.args={}", "find.controls=[]")
    assert plan(without, tmp_path / "out")


def test_widths_are_chosen_by_measurement_where_the_recipe_says_so(images: Path, chain: Chain) -> None:
    recipe = tiny_recipe(
        images, "shrink.round_to=auto", "find.controls=[unstructured]", "measure.runtimes=[torch]",
        "measure.batches=[1, 2]",
    )  # fmt: skip
    auto = Chain(recipe, chain.out)
    assert auto.report is not None
    assert [(c.subject, c.told["runtime"]) for c in auto.report.choices] == [
        ("ticket@1", "torch"),
        ("ticket@2", "torch"),
    ]
    facts = auto.facts("shrink", "ticket@2")
    told = facts["choice"]
    assert told["batches"] == [1, 2]
    kept = told["candidates"][told["chosen"]]
    assert (kept["params"], kept["macs"]) == (facts["params"], facts["macs"])
    assert {grid for one in told["candidates"] for grid, _ in [(one["round_to"], ""), *one["same_as"]]} == {
        1, 8, 16, 32,
    }  # fmt: skip
    assert auto.file("shrink", "ticket@2", "samples_batch_2.npz").is_file()
    bundle = json.loads((auto.file("shrink", "ticket@2", "bundle") / "manifest.json").read_text())
    assert bundle["origin"]["widths_by_measurement"] == told
    x_NCHW = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    small = trained_network(auto.context, auto.node("train", "ticket@2")).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            network_of(auto.context, auto.node("shrink", "ticket@2")).eval()(x_NCHW), small(x_NCHW)
        )
    page = (auto.out / "runs" / "tiny" / "report.html").read_text()
    assert "Widths by measurement" in page
    assert "ticket@2, replicate 0" in (auto.out / "runs" / "tiny" / "report.md").read_text()


def test_widths_are_filled_up_with_exact_dead_channels(images: Path, chain: Chain) -> None:
    recipe = tiny_recipe(images, "shrink.round_to=8", "find.controls=[]")
    filled = Chain(recipe, chain.out, until="shrink").facts("shrink", "ticket@2")
    free = [width for name, width in filled["widths"].items() if name != "linear"]
    assert [width["after"] for width in free] == [8, 8]
    assert any("kept for the width" in width["how"] for width in free)
    assert chain.facts("shrink", "ticket@2")["params"] < filled["params"]


def test_unstructured_training_holds_its_zeros(chain: Chain) -> None:
    weights = load_file(chain.file("train", "unstructured@2", "weights.safetensors"))
    elements = ElementMask.load(chain.file("find", "unstructured@2", "elements.safetensors"))
    for name, keep in elements.keep_by_parameter.items():
        assert torch.equal(weights[name] != 0, keep)
    exported = chain.facts("export", "unstructured@2")
    assert exported["params"] == chain.facts("export", "dense")["params"]
    assert exported["mac_density"] == exported["channel_density"] == 1.0
    assert exported["param_density"] == pytest.approx(1 - 0.64 * 1152 / 1308, abs=2e-3)


def test_what_is_exported_is_what_was_trained_cut_to_the_mask(chain: Chain) -> None:
    for subject in ("ticket@1", "ticket@2", "random@2", "uniform@2", "depgraph@2"):
        exported = chain.facts("export", subject)
        widths = {name: width["after"] for name, width in exported["widths"].items()}
        assert widths == chain.mask(subject).kept_widths()
        assert chain.facts("shrink", subject)["rel_error"] < 1e-5
        assert exported["params"] < chain.facts("export", "dense")["params"]
    assert chain.facts("export", "reinit@2")["widths"] == chain.facts("export", "ticket@2")["widths"]


def test_the_shrunk_network_computes_what_the_trained_small_one_does(chain: Chain) -> None:
    x_NCHW = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    small = trained_network(chain.context, chain.node("train", "ticket@2")).eval()
    shrunk = network_of(chain.context, chain.node("shrink", "ticket@2")).eval()
    with torch.no_grad():
        torch.testing.assert_close(shrunk(x_NCHW), small(x_NCHW))


def test_a_small_network_scattered_back_computes_the_same(chain: Chain) -> None:
    dense = chain.context.fresh_network(0, Subject("dense"))
    mask = chain.mask("ticket@2")
    small = trained_network(chain.context, chain.node("train", "ticket@2")).eval()
    masked = scattered(small, dense, chain.context.groups, mask).eval()
    x_NCHW = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(masked(x_NCHW), small(x_NCHW))
    assert count_costs(masked, x_NCHW).params == count_costs(dense, x_NCHW).params
    back = small_from_mask(masked, chain.context.groups, mask).state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in small.state_dict().items())


def test_an_element_mask_is_cut_with_the_network(chain: Chain) -> None:
    dense = chain.context.fresh_network(0, Subject("dense"))
    mask = chain.mask("ticket@1")
    elements = ElementMask.load(chain.file("find", "unstructured@1", "elements.safetensors"))
    cut = small_elements(elements, dense, chain.context.groups, mask)
    rows, columns = (mask.keep_by_group[name] for name in ("conv1", "stem"))
    assert torch.equal(cut["conv1.weight"], elements.keep_by_parameter["conv1.weight"][rows][:, columns])


def test_accuracies_are_those_of_the_exported_files(chain: Chain) -> None:
    from ticket_export.train.evaluate import evaluate

    assert chain.report is not None
    accuracies = {row["subject"]: row["accuracy"] for row in chain.report.rows}
    context = chain.context
    for subject, stage in (("dense", "train"), ("ticket@2", "shrink")):
        network = network_of(context, chain.node(stage, subject))
        expected = evaluate(
            network, context.images.test_x, context.images.test_y, mean=context.mean, std=context.std
        )
        assert accuracies[subject] == expected


def test_a_bundle_says_where_its_network_came_from(chain: Chain) -> None:
    origin = json.loads(chain.file("shrink", "ticket@1", "bundle/manifest.json").read_text())["origin"]
    assert origin["builder"].endswith("tiny_net.py:make")
    assert origin["args"] == {"width": 8}
    assert origin["input_shapes"] == [[1, 8, 8]]
    assert origin["trained"] == f"train/{chain.node('train', 'ticket@1').key}"


def test_the_same_recipe_elsewhere_gives_bit_equal_files(chain: Chain, tmp_path: Path) -> None:
    again = published(Chain(chain.recipe, tmp_path, until="train").out)
    assert len(again) >= 14
    first = published(chain.out)
    assert {name: first[name] for name in again} == again


@pytest.mark.parametrize("scope", ["layer", "inner", "coupled"])
@pytest.mark.parametrize("form", ["small", "masked"])
def test_every_scope_and_form_ends_in_an_exact_shrink(
    images: Path, tmp_path: Path, scope: str, form: str
) -> None:
    recipe = tiny_recipe(
        images,
        f"find.scope={scope}",
        f"find.form={form}",
        "find.levels=1",
        "find.controls=[reinit]",
        "train.epochs=2",
    )
    made = Chain(recipe, tmp_path, until="shrink")
    for subject in ("ticket@1", "reinit@1"):
        facts = made.facts("shrink", subject)
        assert facts["rel_error"] < 1e-5
        assert {name: width["after"] for name, width in facts["widths"].items()}["stem"] <= 8
        assert facts["params"] < facts["params_dense"] or scope == "layer"
        kept = made.mask("ticket@1").kept_widths()
        assert all(facts["widths"][name]["after"] <= width for name, width in kept.items())
    assert (made.mask("ticket@1").kept_widths()["stem"] == 8) == (scope == "inner" or scope == "layer")


def test_small_and_masked_training_agree(images: Path, tmp_path: Path) -> None:
    options = ("find.levels=1", "find.controls=[]", "train.lr=0.01")
    small = Chain(tiny_recipe(images, *options), tmp_path, until="train")
    masked = Chain(tiny_recipe(images, *options, "find.form=masked"), tmp_path, until="train")
    cut = small_from_mask(
        trained_network(masked.context, masked.node("train", "ticket@1")),
        masked.context.groups,
        masked.mask("ticket@1"),
    ).state_dict()
    for name, tensor in trained_network(small.context, small.node("train", "ticket@1")).state_dict().items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "runtime",
    ["torch", pytest.param("torch-compile", marks=pytest.mark.slow)],  # compiling takes a minute
)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # Inductor's own
def test_the_torch_runtimes_measure_the_source_itself(images: Path, tmp_path: Path, runtime: str) -> None:
    recipe = tiny_recipe(
        images,
        "find.levels=1",
        "find.controls=[]",
        "train.epochs=2",
        f"measure.runtimes=[{runtime}, ort-cpu]",
    )
    report = Chain(recipe, tmp_path).report
    assert report is not None
    accuracies = {(row["subject"], row["runtime"]): row["accuracy"] for row in report.rows}
    assert set(accuracies) == set(product(("dense", "ticket@1"), (runtime, "ort-cpu")))
    assert all(accuracies[name, runtime] == accuracies[name, "ort-cpu"] for name in ("dense", "ticket@1"))
    assert all((row["file_bytes"] is None) == (row["runtime"] == runtime) for row in report.rows)


def test_an_engine_is_built_for_the_recipes_batches_and_given_no_more_images(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, tuple[int, ...]]] = []
    sizes: set[int] = set()

    def scripted(path: Path, runtime: str, *, threads: int, batches: tuple[int, ...]) -> object:
        """ONNX Runtime in the place of TensorRT."""
        opened.append((runtime, batches))
        runner = open_runner(path, "ort-cpu", threads=threads)
        runner.name = "tensorrt"  # type: ignore[misc]
        infer = runner.infer

        def watched(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            sizes.update(len(array) for array in inputs.values())
            return infer(inputs)

        runner.infer = watched  # type: ignore[method-assign]
        return runner

    monkeypatch.setattr("ticket_export.pipeline.timing.open_runner", scripted)
    monkeypatch.setattr("ticket_export.runtime.offers.installed", lambda name: "1.0")
    options = ("find.levels=1", "find.controls=[]", "train.epochs=2", "measure.batches=[1, 7]")
    report = Chain(tiny_recipe(images, *options, "measure.runtimes=[tensorrt]"), tmp_path).report
    assert report is not None
    assert {(row["subject"], row["runtime"], row["batch"]) for row in report.rows} == set(
        product(("dense", "ticket@1"), ("tensorrt",), (1, 7))
    )
    assert set(opened) == {("tensorrt", (1, 7))}
    assert max(sizes) == 7
    assert all(row["parity_rel_error"] is not None for row in report.rows)


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (
            ("data.mean=[0.5, 0.5]", "data.std=[0.5, 0.5]"),
            DataError,
            "data.mean holds 2 values, but the images",
        ),
        (("model.args={height: 3}",), RecipeError, "height"),
    ],
)
def test_what_shows_only_with_the_images_is_told_before_training(
    images: Path, tmp_path: Path, overrides: tuple[str, ...], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        run(tiny_recipe(images, *overrides), tmp_path, until="train")


@pytest.mark.parametrize(
    ("device", "told"), [("cuda:7", "'cuda:7': this machine offers"), ("gpu", "'gpu' is not known to torch")]
)
def test_a_device_that_is_not_there_is_told(images: Path, tmp_path: Path, device: str, told: str) -> None:
    with pytest.raises(MissingDependency, match=told):
        run(tiny_recipe(images), tmp_path, device=device, until="train")


def test_the_callers_number_of_threads_comes_back(images: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with Context(tiny_recipe(images), Store(tmp_path), device="cpu", threads=before + 1) as context:
        assert context.device == torch.device("cpu")
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def start_again(recipe: Recipe, out: Path) -> subprocess.Popen[bytes]:
    """Run the recipe up to the exported files with two workers, in a process group of its own."""
    (out / "asked.yaml").write_text(yaml_from_recipe(recipe))
    words = ["run", out / "asked.yaml", "--out", out, "--workers", "2", "--until", "export"]
    return subprocess.Popen(
        [sys.executable, "-m", "ticket_export", *words], start_new_session=True, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_kills_at_any_moment_leave_bit_equal_files(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, "train.epochs=6", "find.controls=[random, reinit]", "replicates=2")
    calm_out, killed_out = tmp_path / "calm", tmp_path / "killed"
    calm_out.mkdir()
    killed_out.mkdir()
    assert start_again(recipe, calm_out).wait() == 0
    rng = random.Random(0)
    for kills in range(40):
        process = start_again(recipe, killed_out)
        try:
            assert process.wait(rng.uniform(1.5, 3 + kills)) == 0  # the whole run takes about ten seconds
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert kills >= 2
    calm, killed = published(calm_out), published(killed_out)
    assert len(calm) > 50
    assert killed == calm
