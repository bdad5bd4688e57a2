"""Networks of torchvision and timm are shrunk exactly, and the table of them tells what is not."""

from __future__ import annotations

import copy
import json
import operator
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("timm")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import shrink_coverage
from shrink_cells.networks import ALL_LAWS_ON, NETWORKS, Cell, cells
from shrink_cells.table import problems
from shrink_cells.trial import compared, facts_of

RESNET = "zoo:resnet20, projection"


def cell_of(network: str, law: str = "both", biases: str = "kept", dtype: str = "float32") -> Cell:
    return Cell(network=network, law=law, biases=biases, dtype=dtype)


# benchmarks/shrink_coverage.py runs every cell; these are the ones that told most
CELLS = [
    *(cell_of(name) for name in NETWORKS if not name.startswith("zoo:")),
    *(cell_of(name, "columns") for name in ALL_LAWS_ON),
    *(
        cell_of(f"torchvision:{name}", law, biases)
        for name in ("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0")
        for law in ("rows", "gammas", "layer", "one_left", "nothing", "elements")
        for biases in ("kept", "zero")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_the_shrunk_network_computes_the_same_on_images_it_has_not_seen(cell):
    facts = facts_of(cell)
    assert facts["status"] == "exact", facts
    assert facts["rel_error"] <= 1e-5
    assert facts["params"] <= facts["params_dense"]


# the instrument


def test_a_cell_tells_the_error_of_both_batches_and_resolutions_and_that_the_output_moves():
    facts = facts_of(cell_of(RESNET))
    assert facts["status"] == "exact"
    assert facts["trials"] == ["3x3x16x16", "1x3x16x16", "3x3x24x24", "1x3x24x24"]
    assert facts["variation"] > 0.01
    assert facts["params"] < facts["params_dense"] == 272_474


def test_the_comparison_sees_one_changed_weight():
    network = NETWORKS[RESNET]
    dense = network.built()
    changed = copy.deepcopy(dense)
    assert compared(changed, dense, network, torch.float32)["rel_error"] == 0.0
    next(m for m in changed.modules() if isinstance(m, nn.Linear)).weight.data[0, 0] += 0.1
    assert compared(changed, dense, network, torch.float32)["rel_error"] > 1e-5


def test_a_network_that_refuses_the_second_resolution_is_told_when_the_dense_one_takes_it():
    class OneSize(nn.Module):
        def __init__(self, dense: nn.Module) -> None:
            super().__init__()
            self.dense = dense

        def forward(self, x):
            if x.shape[-1] != 16:
                raise ValueError("16 pixels only")
            return self.dense(x)

    network = NETWORKS[RESNET]
    dense = network.built()
    assert compared(OneSize(dense), dense, network, torch.float32)["error"] == (
        "the small network at 3x3x24x24: ValueError: 16 pixels only"
    )


def test_every_network_has_its_cells_and_ten_have_all_laws():
    keys = [cell.key for cell in cells()]
    assert len(keys) == len(set(keys))
    for network in NETWORKS:
        own = [cell for cell in cells() if cell.network == network]
        assert len(own) == (2 * 8 + 1 if network in ALL_LAWS_ON else 3)


def test_a_cell_that_takes_too_long_is_a_cell_too():
    # a hundredth of a second is not enough for the imports of the process
    told = shrink_coverage.Worker(0.01).facts_of(cell_of(RESNET))
    assert told == {"status": "timeout", "error": "longer than 0.01 s"}


def test_a_cell_that_ends_its_process_is_a_cell_too(monkeypatch):
    monkeypatch.setattr(shrink_coverage, "serve", operator.methodcaller("close"))
    told = shrink_coverage.Worker(60.0).facts_of(cell_of(RESNET))
    assert told == {"status": "crash", "error": "its process ended with 0"}


def test_a_run_goes_on_after_a_line_cut_short_and_the_newest_line_counts(tmp_path):
    file = tmp_path / "cells.jsonl"
    lines = [
        {"key": "a", "status": "wrong"},
        {"key": "b", "status": "exact"},
        {"key": "a", "status": "exact"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    file.write_text(f'{text}\n{{"key": "b", "sta', encoding="utf-8")
    assert {key: line["status"] for key, line in shrink_coverage.read(file).items()} == {
        "a": "exact",
        "b": "exact",
    }


def test_what_is_not_exact_stands_at_the_head_of_the_page():
    cell = cell_of(RESNET)
    exact = {"status": "exact", "rel_error": 1e-7}
    assert problems([cell], {cell.key: exact}) == "None."
    wrong = {"status": "wrong", "rel_error": 0.25}
    assert problems([cell], {cell.key: wrong}) == f"- `{cell.key}`: wrong. relative error 0.25"
