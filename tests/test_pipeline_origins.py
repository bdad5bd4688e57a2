"""What a run was made from is remembered: under one name, no other data, files or makers in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pipeline_fakes
import pytest

from ticket_export.errors import DataError, RecipeError, RevisionError, StoreError, TrainError
from ticket_export.pipeline import coordinate, graph, plan, run, work, worker
from ticket_export.pipeline.origins import ORIGINS_FILE
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.stages import STAGES, StageWord
from ticket_export.store.key import sha256_of_file

SMOKE = Path(__file__).parent / "smoke.yaml"


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(pipeline_fakes.FAILS, raising=False)
    steps, code = work.STEPS, worker._CODE
    pipeline_fakes.install()
    yield
    work.STEPS, worker._CODE = steps, code


@pytest.fixture
def images(tmp_path: Path) -> Callable[[int], Path]:
    """Writes an image file of the given seed, always to the same path."""

    def write(seed: int) -> Path:
        rng = np.random.default_rng(seed)
        x, y = rng.integers(0, 256, (20, 1, 8, 8), np.uint8), np.arange(20) % 2
        path = tmp_path / "images.npz"
        np.savez(path, train_x=x, train_y=y, test_x=x, test_y=y)
        return path

    return write


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(SMOKE, ["find.controls=[]", *overrides])


def made(recipe: Recipe, out: Path, until: str = "find") -> int:
    """Run, and count the results that were made."""
    events: list[str] = []
    run(recipe, out, until=until, emit=lambda event: events.append(event["event"]))
    return events.count("done")


def with_revision(monkeypatch: pytest.MonkeyPatch, stage: StageWord, revision: int) -> None:
    newer = {**STAGES, stage: replace(STAGES[stage], revision=revision)}
    monkeypatch.setattr(graph, "STAGES", newer)


def test_images_that_changed_are_refused_with_both_hashes_and_the_way_out(
    images: Callable[[int], Path], tmp_path: Path
) -> None:
    path, out = images(0), tmp_path / "out"
    recipe = recipe_of("data.source=arrays", f"data.path={path}")
    num_results = made(recipe, out)
    before, folder = sha256_of_file(path)[:12], out / "runs" / "smoke"
    since = json.loads((folder / ORIGINS_FILE).read_text())["files"][0]["since"]
    after = sha256_of_file(images(1))[:12]
    for asked in (lambda: made(recipe, out), lambda: plan(recipe, out)):
        with pytest.raises(DataError) as caught:
            asked()
        assert caught.value.message == (
            f"data: {path} has changed since {folder} was first run with it on {since}: "
            f"its hash was {before}, now it is {after}"
        )
        assert caught.value.hint == (
            f"add --set name=... to keep both, or remove {folder} to start anew; "
            "the results that were made stay in the store"
        )
    assert made(recipe_of("data.source=arrays", f"data.path={path}", "name=other"), out) == num_results
    assert sha256_of_file(images(0))[:12] == before
    assert made(recipe, out) == 0


def test_removing_the_folder_of_the_run_starts_anew_and_keeps_the_old_results(
    images: Callable[[int], Path], tmp_path: Path
) -> None:
    recipe = recipe_of("data.source=arrays", f"data.path={images(0)}")
    num_results = made(recipe, tmp_path)
    images(1)
    for path in (tmp_path / "runs" / "smoke").iterdir():
        path.unlink()
    assert made(recipe, tmp_path) == num_results
    assert len(list(tmp_path.glob("store/*/*/manifest.json"))) == 2 * num_results


def test_images_that_nothing_was_made_from_may_be_mended(
    images: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("data.source=arrays", f"data.path={images(0)}")
    with monkeypatch.context() as patch:
        patch.setenv(pipeline_fakes.FAILS, "train dense, replicate 0")
        with pytest.raises(TrainError):
            made(recipe, tmp_path)
    mended = sha256_of_file(images(1))
    assert made(recipe, tmp_path) > 0
    [file] = json.loads((tmp_path / "runs" / "smoke" / ORIGINS_FILE).read_text())["files"]
    assert file["digest"] == mended


def test_a_recipe_that_changed_itself_is_no_error(images: Callable[[int], Path], tmp_path: Path) -> None:
    words = ("data.source=arrays", f"data.path={images(0)}")
    made(recipe_of(*words), tmp_path)
    assert made(recipe_of(*words, "train.epochs=3"), tmp_path) > 0
    images(1)
    assert made(recipe_of(*words, "data.flip=true"), tmp_path) > 0
    with pytest.raises(DataError, match=r"images\.npz has changed"):
        made(recipe_of(*words), tmp_path)


def test_a_builders_file_and_weights_that_changed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinate, "_require_fit", lambda recipe, store: None)  # the files hold nothing real
    net, weights, out = tmp_path / "net.py", tmp_path / "weights.npz", tmp_path / "out"
    net.write_text("def make(): ...\n")
    weights.write_bytes(b"weights")
    recipe = recipe_of(f"model.builder={net}:make", f"model.weights={weights}", "model.args={}")
    assert made(recipe, out) > 0
    before = sha256_of_file(net)[:12]
    net.write_text("def make(): return 1\n")
    with pytest.raises(RecipeError, match=f"model.builder: {net} has changed since .*was {before}"):
        made(recipe, out)
    net.write_text("def make(): ...\n")
    assert made(recipe, out) == 0
    weights.write_bytes(b"other weights")
    now = sha256_of_file(weights)[:12]
    with pytest.raises(RecipeError, match=f"model.weights: {weights} has changed since .*it is {now}"):
        made(recipe, out)


def test_results_of_another_revision_are_counted_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = recipe_of(), tmp_path / "runs" / "smoke"
    num_results = made(recipe, tmp_path, until="shrink")
    before = STAGES["find"].revision
    with_revision(monkeypatch, "find", before + 1)
    # the dense training alone does not hang on a finder
    told = (
        f"{folder} was made by find revision {before}, this package makes revision {before + 1}: "
        f"{num_results - 1} results would be made again"
    )
    for asked in (lambda: made(recipe, tmp_path, until="shrink"), lambda: plan(recipe, tmp_path)):
        with pytest.raises(RevisionError) as caught:
            asked()
        assert caught.value.message == told
        assert caught.value.exit_code == 2
        assert caught.value.hint is not None
        assert "--set name=" in caught.value.hint
        assert str(folder) in caught.value.hint
    assert made(recipe_of("name=other"), tmp_path, until="shrink") == num_results - 1


def test_a_revision_of_what_was_never_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    made(recipe, tmp_path, until="find")
    with_revision(monkeypatch, "export", STAGES["export"].revision + 1)
    assert made(recipe, tmp_path, until="export") > 0


def test_a_memory_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    recipe = recipe_of()
    made(recipe, tmp_path)
    path = tmp_path / "runs" / "smoke" / ORIGINS_FILE
    path.write_text("{")
    with pytest.raises(StoreError, match=f"{path} cannot be read: JSONDecodeError") as caught:
        made(recipe, tmp_path)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("remove it")
    path.unlink()
    assert made(recipe, tmp_path) == 0
