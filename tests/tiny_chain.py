"""The real chain on a tiny foreign network and images made here; tests share how it is set up and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ticket_export.channels.mask import Mask
from ticket_export.pipeline import run
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.graph import nodes_of
from ticket_export.pipeline.nodes import Node, hash_inputs
from ticket_export.recipe.load import recipe_from_yaml
from ticket_export.recipe.schema import Recipe
from ticket_export.report.rows import Report
from ticket_export.store.machine import machine_facts
from ticket_export.store.store import Store

TESTS = Path(__file__).parent


def write_images(path: Path) -> Path:
    """Write and return four classes of 8x8 images that differ in which quarter is bright."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 160), ("test", 80)):
        y_N = np.arange(count) % 4
        x_NCHW = generator.integers(0, 120, (count, 1, 8, 8))
        for index, label in enumerate(y_N):
            row, column = 4 * (label // 2), 4 * (label % 2)
            x_NCHW[index, 0, row : row + 4, column : column + 4] += 60
        arrays |= {f"{part}_x": x_NCHW.astype(np.uint8), f"{part}_y": y_N.astype(np.int64)}
    np.savez(path, **arrays)
    return path


def tiny_recipe(images: Path, *overrides: str, without: Sequence[str] = ()) -> Recipe:
    """Return the smoke recipe on the tiny network; `without` names fields of `find` that its method lacks."""
    values = {
        "name": "tiny",
        "data.source": "arrays",
        "data.path": str(images),
        "model.builder": f"{TESTS / 'tiny_net.py'}:make",
        "model.args": "{width: 8}",
        "train.epochs": "3",
        "train.batch": "32",
        "find.levels": "2",
        "find.round_to": "1",
        "find.controls": "[random, uniform, reinit, unstructured, depgraph]",
    }
    own = dict(override.split("=", 1) for override in overrides)
    values |= own
    plain = yaml.safe_load((TESTS / "smoke.yaml").read_text(encoding="utf-8"))
    for name in without:
        del plain["find"][name]
        values = {key: value for key, value in values.items() if key != f"find.{name}" or key in own}
    text = yaml.safe_dump(plain)
    return recipe_from_yaml(
        text, source="tiny", overrides=[f"{key}={value}" for key, value in values.items()]
    )


class Chain:
    """A finished run with its nodes by name."""

    def __init__(self, recipe: Recipe, out: Path, until: str | None = None) -> None:
        self.recipe, self.out = recipe, out
        self.report: Report | None = run(recipe, out, until=until)
        self.store = Store(out)
        self.nodes = nodes_of(recipe, hash_inputs(recipe), machine_facts()["fingerprint"])
        self.context = Context(recipe, self.store, device="cpu", threads=1)

    def node(self, stage: str, subject: str) -> Node:
        return next(node for node in self.nodes if (node.stage, node.subject) == (stage, subject))

    def facts(self, stage: str, subject: str) -> dict[str, Any]:
        return dict(self.context.result(self.node(stage, subject)).facts)

    def file(self, stage: str, subject: str, name: str) -> Path:
        return self.context.file(self.node(stage, subject), name)

    def mask(self, subject: str) -> Mask:
        return Mask.from_json(json.loads(self.file("find", subject, "mask.json").read_text()))


def published(out: Path) -> dict[str, str]:
    """The sha256 of every published file but measured samples, by stage, key and name."""
    found = {}
    for path in out.glob("store/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["stage"] != "measure":
            for name, stored in manifest["files"].items():
                found[f"{manifest['stage']}/{manifest['key']}/{name}"] = stored["sha256"]
    return found
