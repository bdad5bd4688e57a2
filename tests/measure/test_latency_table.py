"""A latency table: what it says of a width, of a whole network, and of a file that is not one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from scripted_probes import CONV, DEPTHWISE, LINEAR, STRIDED

from ticket_export.errors import MeasureError
from ticket_export.measure.calibration import WholeNetwork, calibrated
from ticket_export.measure.latency_table import Cell, LatencyTable, load_table
from ticket_export.measure.layer_kind import LayerKind, table_widths
from ticket_export.measure.staircase import staircase


def make_table(
    seconds: dict[tuple[int, int], float], kind: LayerKind = CONV, spread: float = 0.1
) -> LatencyTable:
    cells = {
        pair: Cell(seconds=s, low_s=s * (1 - spread), high_s=s * (1 + spread)) for pair, s in seconds.items()
    }
    return LatencyTable(
        runtime="fake",
        precision="fp32",
        batch=1,
        threads=1,
        scope="compute",
        machine={"cpu": "one"},
        cells={kind: cells},
    )


def networks(count: int, *, offset_s: float, scale: float) -> list[WholeNetwork]:
    return [
        WholeNetwork(name=f"n{i}", layers_s=1e-3 * (i + 1), seconds=offset_s + scale * 1e-3 * (i + 1))
        for i in range(count)
    ]


def test_a_width_between_two_measured_ones_costs_what_the_wider_costs() -> None:
    table = make_table({(8, 8): 1.0, (8, 16): 2.0, (16, 8): 3.0, (16, 16): 5.0})
    assert table.seconds(CONV, 8, 8) == 1.0
    assert table.seconds(CONV, 8, 9) == 2.0
    assert table.seconds(CONV, 9, 1) == 3.0
    assert table.seconds(CONV, 15, 15) == 5.0


def test_where_the_next_pair_was_not_measured_the_cheapest_wider_one_is_the_price() -> None:
    table = make_table({(8, 64): 3.0, (64, 8): 4.0, (64, 64): 9.0})
    assert table.seconds(CONV, 4, 4) == 3.0
    assert table.seconds(CONV, 60, 60) == 9.0


def test_a_layer_without_channels_takes_nothing() -> None:
    assert make_table({(8, 8): 1.0}).seconds(CONV, 0, 8) == 0.0


def test_a_width_above_all_measured_ones_is_refused_with_both() -> None:
    with pytest.raises(MeasureError, match=r"up to 8 channels in and 16 out, asked for 9 and 16"):
        make_table({(8, 16): 1.0}).seconds(CONV, 9, 16)


def test_a_kind_that_was_not_measured_is_named() -> None:
    with pytest.raises(
        MeasureError, match=r"conv 3x3, stride 2 at 8x8 was not measured; it holds conv 3x3 at 8x8"
    ):
        make_table({(8, 8): 1.0}).seconds(STRIDED, 8, 8)


def test_grids_are_the_measured_widths_of_each_side() -> None:
    assert make_table({(16, 8): 1.0, (4, 8): 1.0, (4, 32): 1.0}).grid(CONV) == ((4, 16), (8, 32))


def test_widths_to_measure_are_at_most_16_and_end_with_the_whole() -> None:
    assert table_widths(16) == (4, 8, 12, 16)
    assert table_widths(10) == (4, 8, 10)
    assert table_widths(64) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert table_widths(512)[:2] == (32, 64)
    assert all(len(table_widths(width)) <= 16 and table_widths(width)[-1] == width for width in range(1, 700))


def test_kinds_are_told_in_words() -> None:
    kinds = (CONV, STRIDED, DEPTHWISE, LINEAR)
    assert [str(kind) for kind in kinds] == [
        "conv 3x3 at 8x8", "conv 3x3, stride 2 at 8x8", "depthwise 3x3 at 8x8", "linear",
    ]  # fmt: skip
    assert STRIDED.out_size == (4, 4)


def test_calibration_finds_offset_and_scale_and_errs_by_nothing_on_a_line() -> None:
    found = calibrated(networks(6, offset_s=2e-4, scale=0.9))
    assert (found.offset_s, found.scale) == (pytest.approx(2e-4), pytest.approx(0.9))
    assert found.largest_error < 1e-9
    assert found.seconds(1e-2) == pytest.approx(9.2e-3)


def test_the_error_of_a_network_is_that_of_the_fit_without_it() -> None:
    line = networks(5, offset_s=0.0, scale=1.0)
    odd = WholeNetwork(name="odd", layers_s=3e-3, seconds=6e-3)
    found = calibrated([*line, odd])
    assert found.errors[-1] == pytest.approx(-0.5)  # the others say 3 ms, it took 6
    assert abs(found.seconds(3e-3) / 6e-3 - 1) < 0.5  # the fit of all has moved towards it
    assert found.largest_error >= 0.5 > found.median_error


def test_three_networks_are_too_few() -> None:
    with pytest.raises(MeasureError, match=r"3 whole networks were timed, a calibration needs 4"):
        calibrated(networks(3, offset_s=0.0, scale=1.0))


def test_networks_that_do_not_slow_down_with_their_layers_are_refused() -> None:
    flat = [WholeNetwork(name=f"n{i}", layers_s=1e-3 * (i + 1), seconds=1e-3 / (i + 1)) for i in range(5)]
    with pytest.raises(MeasureError, match="are not slower"):
        calibrated(flat)


def test_networks_on_one_stair_are_priced_by_the_layers_own_seconds() -> None:
    equal = [WholeNetwork(name=f"n{i}", layers_s=1e-4, seconds=3e-4) for i in range(5)]
    found = calibrated(equal)
    assert (found.offset_s, found.scale) == (pytest.approx(2e-4), 1.0)


def test_a_table_without_whole_networks_predicts_none() -> None:
    with pytest.raises(MeasureError, match="no whole network was timed"):
        make_table({(8, 8): 1.0}).network_seconds(1.0)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = dataclasses.replace(
        make_table({(8, 8): 1.0, (8, 16): 2.5}), calibration=calibrated(networks(5, offset_s=1e-4, scale=1.1))
    )
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table.to_json()), encoding="utf-8")
    assert load_table(path) == table


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"batch": 1.5}, "batch should be int, got 1.5"),
        ({"extra": 1}, "fields extra are missing or not known"),
        ({"kinds": [{"kind": {}}]}, "holds no kind"),
        ({"kinds": [{"kind": {"op": "pool"}, "cells": [[1, 1, 1, 1, 1]]}]}, "a layer kind holds op"),
        ({"kinds": [{"kind": CONV.to_json(), "cells": [[8, 8, "1", 1, 1]]}]}, "two widths and three times"),
        ({"calibration": {"offset_s": 1}}, "calibration cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_what_is_wrong(change: dict[str, object], told: str) -> None:
    value = make_table({(8, 8): 1.0}).to_json() | change
    with pytest.raises(MeasureError, match=told):
        LatencyTable.from_json(value)


def test_stairs_end_where_the_next_interval_lies_above() -> None:
    seconds = {8: 1.0, 16: 1.05, 24: 2.0, 32: 2.1, 40: 3.0}
    table = make_table({(64, width): s for width, s in seconds.items()} | {(8, 8): 0.1}, spread=0.05)
    found = staircase(table, CONV)
    assert (found.width_in, found.stairs) == (64, (16, 32, 40))
    assert found.seconds == tuple(seconds.values())


def test_stairs_of_a_depthwise_layer_run_along_equal_widths() -> None:
    table = make_table({(8, 8): 1.0, (16, 16): 1.0, (24, 24): 2.0}, DEPTHWISE)
    assert staircase(table, DEPTHWISE).stairs == (16, 24)
