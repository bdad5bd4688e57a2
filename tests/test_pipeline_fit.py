"""A finder that cannot work on a foreign network is refused by `plan`, and by `run` before any training."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chain import tiny_recipe, write_images

from ticket_export.errors import ShrinkError
from ticket_export.pipeline import plan, run

NETWORKS = """
import torch
from torch import nn


def without_norms():
    convs = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def depthwise():
    stem = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*stem, nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(), nn.Linear(512, 4))


def grouped():
    convs = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU()
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def side_by_side():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
            self.join, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            x = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
            return self.head(torch.relu(self.join(x)).mean((2, 3)))

    return Joined()


def one_layer():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def nothing():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 4))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    return Bare()
"""
EARLY_BIRD = (
    *("find.method=early_bird", "find.drop_fraction=0.4", "find.gamma_l1=1e-4"),
    *("find.window=2", "find.max_distance=0.3"),
)
MAC_BUDGET = ("find.budget.mac_fraction=0.5",)
LATENCY_BUDGET = ("find.budget.latency_fraction=0.5",)
FREE_CHANNELS = ("find.free_channels=true",)
REGROUP = ("find.method=regroup", "find.num_groups=2", "find.min_rows=2")


@pytest.mark.parametrize(
    ("network", "overrides", "without", "told"),
    [
        ("without_norms", EARLY_BIRD, ("levels",), "Early-Bird without norms: Sequential has no norm scale"),
        ("without_norms", ("find.score=gamma",), (), "Sequential has no norm scale"),
        ("depthwise", REGROUP, ("scope",), "regroup cannot make blocks of '3': it has 8 groups"),
        ("one_layer", REGROUP, ("scope",), "Sequential has no two-dimensional convolution to regroup"),
        ("one_layer", (), (), r"no channel of Sequential can be dropped with scope coupled: all are pinned"),
        (
            "grouped",
            MAC_BUDGET,
            (),
            r"all are pinned \(grouped convolution 2\.weight",
        ),
        ("side_by_side", LATENCY_BUDGET, (), "join joins the groups left, right side by side"),
        ("side_by_side", FREE_CHANNELS, (), "join joins the groups left, right side by side"),
        ("nothing", ("find.method=imp",), ("scope", "round_to"), "Bare has no weights to prune"),
    ],
)
def test_what_does_not_fit_is_told_before_any_training(
    tmp_path: Path, network: str, overrides: tuple[str, ...], without: tuple[str, ...], told: str
) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS, encoding="utf-8")
    recipe = tiny_recipe(
        write_images(tmp_path / "images.npz"),
        f"model.builder={tmp_path / 'networks.py'}:{network}",
        "model.args={}",
        "find.controls=[]",
        *overrides,
        without=without,
    )
    with pytest.raises(ShrinkError, match=told):
        plan(recipe, tmp_path / "out")
    with pytest.raises(ShrinkError, match=told):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "store" / "train").exists()
