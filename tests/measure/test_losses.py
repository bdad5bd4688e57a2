"""The ticket's time is split without a rest, and every part is named by what the layers did."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_layers import Scripted, network

from ticket_export.measure.losses import losses, off_grid, width_grid


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_and_the_share_of_macs_add_up_to_the_time(seed: int) -> None:
    random = np.random.default_rng(seed)

    def some(names: list[str]) -> list[Scripted]:
        return [
            Scripted(name, *random.integers(1, 65, 2).tolist(), *random.uniform(0.1, 9.0, 3))
            for name in names
        ]

    def others() -> list[tuple[str, str, float]]:
        ops = random.choice(["Add", "MaxPool", "ReorderInput", "Relu"], 3)
        return [(f"k{i}", str(op), float(random.uniform(0.1, 2.0))) for i, op in enumerate(ops)]

    dense = network(some(["a", "b", "c", "d"]), others(), between_ms=random.uniform(0, 2))
    ticket = network(some(["a", "c", "d", "e"]), others(), between_ms=random.uniform(0, 2))
    found = losses(dense, ticket, grid=16)
    parts_s = sum(found.seconds_by_kind.values())
    assert found.mac_fraction * dense.whole_s + parts_s == pytest.approx(ticket.whole_s, rel=1e-9)


def test_layers_that_scale_with_their_macs_lose_nothing() -> None:
    dense = network([Scripted("a", 64, 64, 100, 2.0), Scripted("b", 64, 64, 100, 2.0)])
    ticket = network([Scripted("a", 32, 64, 50, 1.0), Scripted("b", 64, 32, 50, 1.0)])
    found = losses(dense, ticket, grid=16)
    assert found.seconds_by_kind == dict.fromkeys(found.seconds_by_kind, pytest.approx(0.0, abs=1e-12))


def test_a_slower_kernel_off_the_grid_is_the_widths_and_on_it_is_not() -> None:
    dense = network([Scripted("a", 64, 64, 100, 2.0)])
    off = losses(dense, network([Scripted("a", 64, 33, 50, 1.5)]), grid=16)
    on = losses(dense, network([Scripted("a", 64, 32, 50, 1.5)]), grid=16)
    assert off.seconds_by_kind["widths"] == pytest.approx(0.0005)
    assert on.seconds_by_kind["widths"] == 0.0
    assert on.seconds_by_kind["kernels"] == pytest.approx(0.0005)


def test_widths_that_dense_had_off_the_grid_already_do_not_count() -> None:
    dense = network([Scripted("stem", 3, 64, 100, 2.0)])
    (loss,) = losses(dense, network([Scripted("stem", 3, 32, 50, 1.5)]), grid=16).layers
    assert not off_grid(loss.pair, 16)


def test_a_kernel_that_moves_more_than_it_multiplies_is_bound_by_memory() -> None:
    dense = network([Scripted("fast", 64, 64, 1000, 5.0, 1.0), Scripted("wide", 64, 64, 10, 5.0, 50.0)])
    ticket = network([Scripted("fast", 32, 64, 500, 2.5, 1.0), Scripted("wide", 32, 64, 5, 4.0, 40.0)])
    found = losses(dense, ticket, grid=16)
    assert [pair.name for pair in found.of_kind("memory")] == ["wide"]
    assert found.seconds_by_kind["memory"] == pytest.approx(0.0015)


def test_layers_that_do_not_shrink_are_the_floor_in_proportion_to_what_others_shrank() -> None:
    dense = network([Scripted("stem", 3, 64, 100, 6.0), Scripted("a", 64, 64, 100, 2.0)])
    ticket = network([Scripted("stem", 3, 64, 100, 6.0), Scripted("a", 64, 16, 20, 0.4)])
    found = losses(dense, ticket, grid=16)
    assert found.mac_fraction == pytest.approx(0.6)
    # (1 - 0.6) x 6 ms + (0.2 - 0.6) x 2 ms
    assert found.seconds_by_kind["floor"] == pytest.approx(0.0016)
    assert found.bound == pytest.approx(8.0 / 6.4)


def test_layers_that_only_the_ticket_runs_by_themselves_count_as_reformats() -> None:
    dense = network([Scripted("a", 64, 64, 100, 4.0)], [("pool", "MaxPool", 1.0)])
    ticket = network(
        [Scripted("a", 32, 64, 50, 2.0)],
        [("pool", "MaxPool", 1.0), ("add", "Add", 0.3), ("r", "ReorderInput", 0.2)],
    )
    found = losses(dense, ticket, grid=16)
    assert found.seconds_by_kind["reformat"] == pytest.approx(0.0005)
    assert found.seconds_by_kind["memory"] == pytest.approx(0.0005)  # MaxPool should have halved


def test_equal_layers_in_unequal_time_are_noise() -> None:
    dense = network([Scripted("stem", 3, 64, 100, 4.0), Scripted("a", 64, 64, 100, 4.0)])
    ticket = network([Scripted("stem", 3, 64, 100, 5.0), Scripted("a", 32, 64, 50, 2.0)])
    assert losses(dense, ticket, grid=16).seconds_by_kind["noise"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("runtime", "device", "precision", "instruction_sets", "grid"),
    [
        ("ort-cpu", "cpu", "fp32", ("avx2", "avx512f"), 16),
        ("ort-cpu", "cpu", "fp32", ("avx2",), 8),
        ("ort-cpu", "cpu", "int8", ("avx512f",), 4),
        ("torch", "cpu", "fp32", ("avx512f",), 1),
        ("ort-cuda", "cuda:0", "fp32", ("avx512f",), 4),
        ("tensorrt", "cuda:0", "fp16", (), 8),
        ("tensorrt", "cuda:0", "int8", (), 32),
        ("ort-cuda", "cuda:0", "int8", (), 16),
    ],
)
def test_the_grid_is_that_of_the_kernels(
    runtime: str, device: str, precision: str, instruction_sets: tuple[str, ...], grid: int
) -> None:
    found = width_grid(runtime, device=device, precision=precision, instruction_sets=instruction_sets)
    assert found == grid
