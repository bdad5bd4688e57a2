"""A run in all three precisions: what is exported, measured and reported of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from ticket_export.export.publish import metadata_of
from ticket_export.pipeline import coordinate, run
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.deploy import _calibration_images
from ticket_export.recipe.load import load_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.report.rows import Report
from ticket_export.store.store import Store

SMOKE = Path(__file__).parent / "smoke.yaml"
OVERRIDES = (
    "find.controls=[]",
    "export.precisions=[int8, fp32, fp16]",
    "export.int8_min_agreement=0.6",  # two epochs of training leave margins thin
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe(SMOKE, (*OVERRIDES, *overrides))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def report(out: Path) -> Iterator[Report]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinate, "num_usable_cores", lambda: 1)
        yield run(recipe(), out=out)


@pytest.mark.slow
def test_every_subject_has_a_row_per_precision_fp32_first(report: Report) -> None:
    found = [(row["subject"], row["precision"]) for row in report.rows]
    precisions = ("fp32", "fp16", "int8")
    assert found == [(subject, kind) for subject in ("dense", "ticket@1") for kind in precisions]
    assert all(0.0 <= row["accuracy"] <= 1.0 for row in report.rows)
    assert report.summary.count("fp32") == 1  # the summary speaks of the first precision


@pytest.mark.slow
def test_the_report_tells_what_each_precision_costs(report: Report, out: Path) -> None:
    folder = out / "runs" / "smoke"
    files: list[dict[str, Any]] = json.loads((folder / "report.json").read_text(encoding="utf-8"))["files"]
    by_kind = {file["precision"]: file for file in files if file["subject"] == "dense"}
    assert by_kind["fp32"]["precision_rel_error"] is None
    assert by_kind["fp32"]["parity_rel_error"] < 1e-5 < by_kind["fp16"]["precision_rel_error"] < 2e-2
    assert by_kind["fp16"]["top1_agreement"] is None
    assert 0.6 <= by_kind["int8"]["top1_agreement"] <= 1.0
    assert by_kind["int8"]["file_bytes"] < by_kind["fp16"]["file_bytes"] < by_kind["fp32"]["file_bytes"]
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for text in ("## Precisions", "Error to fp32", "Kept in fp32", "| dense     | 0           | int8 "):
        assert text in markdown
    assert "<h2>Precisions</h2>" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_files_of_every_precision_name_their_key_and_source(report: Report, out: Path) -> None:
    for file in report.exported:
        texts = metadata_of(onnx.load(out / "store" / file.path))
        assert texts["ticket_export.key"] == Path(file.path).parent.name
        assert texts["ticket_export.precision"] == file.precision
        assert texts["ticket_export.subject"] == file.subject


def test_calibration_images_are_training_images_drawn_by_the_seed(tmp_path: Path) -> None:
    def drawn(*overrides: str) -> tuple[torch.Tensor, Context]:
        context = Context(recipe(*overrides), Store(tmp_path), device="cpu", threads=1)
        return _calibration_images(context), context

    images, context = drawn()
    assert images.shape == (512, 1, 8, 8)
    assert torch.equal(images, drawn()[0])
    assert not torch.equal(images, drawn("seed=1")[0])
    pixels = {row.tobytes() for row in context.images.train_x.numpy()}
    back = np.rint((images.numpy() * 0.38 + 0.3) * 255).astype(np.uint8)
    assert all(row.tobytes() in pixels for row in back)
