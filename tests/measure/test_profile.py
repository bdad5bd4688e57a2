"""Profiling: from probes to cells, in chunks that survive a kill, and never mixed with another table's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripted_probes import CONV, DEPTHWISE, LINEAR, STRIDED, ScriptedProbes

from ticket_export.errors import MeasureError
from ticket_export.measure import profile as profiling
from ticket_export.measure.latency_table import LatencyTable
from ticket_export.measure.probe import ends, reads_image, sandwich, write_probe
from ticket_export.measure.profile import PROBES_FILE, Timing, Wanted, profile
from ticket_export.runtime.registry import open_runner

TIMING = Timing(runtime="fake", precision="fp32", batch=1, rounds=5)
WIDTHS = (4, 8, 12, 16)
WANTED = (Wanted(kind=CONV, widths_in=WIDTHS, widths_out=WIDTHS),)


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted seconds never pass, so fewer of them say as much."""
    monkeypatch.setattr(profiling, "BLOCK_S", 1e-4)


def test_a_cell_is_the_layer_alone_whatever_the_run_and_the_ends_cost(tmp_path: Path) -> None:
    table = profile(WANTED, TIMING, folder=tmp_path, open_probe=ScriptedProbes())
    assert table.seconds(CONV, 16, 16) == pytest.approx(4e-6, rel=1e-6)
    assert table.seconds(CONV, 4, 8) == pytest.approx(1e-6, rel=1e-6)
    assert table.seconds(CONV, 12, 8) == pytest.approx(2e-6, rel=1e-6)
    assert (table.num_cells, table.grid(CONV)) == (16, (WIDTHS, WIDTHS))
    cell = table.cells[CONV][16, 16]
    assert cell.low_s == pytest.approx(cell.seconds) == pytest.approx(cell.high_s)


def test_what_two_sites_ask_for_is_measured_once(tmp_path: Path) -> None:
    probes = ScriptedProbes()
    other = Wanted(kind=CONV, widths_in=(3,), widths_out=WIDTHS)
    table = profile((*WANTED, other, *WANTED), TIMING, folder=tmp_path, open_probe=probes)
    assert len(set(probes.opened)) == 16 + 4 + 4  # cells, those of the image, ends
    assert len(probes.opened) == 2 * len(set(probes.opened))  # in either pass
    assert table.grid(CONV)[0] == (3, *WIDTHS)


def test_depthwise_strided_and_linear_layers_stand_beside_one_another(tmp_path: Path) -> None:
    wanted = (
        Wanted(kind=DEPTHWISE, widths_in=(8, 16), widths_out=(8, 16)),
        Wanted(kind=STRIDED, widths_in=(8,), widths_out=(16,)),
        Wanted(kind=LINEAR, widths_in=(8,), widths_out=(10,)),
    )
    table = profile(wanted, TIMING, folder=tmp_path, open_probe=ScriptedProbes())
    assert set(table.cells[DEPTHWISE]) == {(8, 8), (16, 16)}
    assert table.seconds(DEPTHWISE, 16, 16) == pytest.approx(2e-6, rel=1e-6)
    assert table.seconds(STRIDED, 8, 16) == pytest.approx(2e-6, rel=1e-6)
    assert (8, 10) in table.cells[LINEAR]


def test_a_killed_profile_goes_on_after_its_last_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "CHUNK", 4)
    killed = ScriptedProbes(fails_after=10)
    with pytest.raises(KeyboardInterrupt):
        profile(WANTED, TIMING, folder=tmp_path, open_probe=killed)
    rest = ScriptedProbes()
    told: list[tuple[int, int]] = []
    table = profile(
        WANTED, TIMING, folder=tmp_path, open_probe=rest, on_progress=lambda *done: told.append(done)
    )
    assert set(killed.opened[:8]).isdisjoint(rest.opened[:12])
    assert len(rest.opened) == 2 * 20 - 8
    assert told[:3] == [(12, 40), (16, 40), (20, 40)]
    assert told[-1] == (40, 40)
    again = ScriptedProbes()
    assert profile(WANTED, TIMING, folder=tmp_path, open_probe=again) == table
    assert again.opened == []


@pytest.mark.parametrize(
    ("change", "told"),
    [({"batch": 8}, "batch 1, not 8"), ({"precision": "int8"}, "precision 'fp32', not 'int8'")],
)
def test_chunks_of_another_table_are_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    profile(WANTED, TIMING, folder=tmp_path, open_probe=ScriptedProbes())
    with pytest.raises(MeasureError, match=told):
        profile(WANTED, replace(TIMING, **change), folder=tmp_path, open_probe=ScriptedProbes())  # type: ignore[arg-type]


def test_a_neighbour_who_is_busy_during_one_pass_does_not_move_the_table(tmp_path: Path) -> None:
    busy = ScriptedProbes(slower_after=20)
    table = profile(WANTED, TIMING, folder=tmp_path, open_probe=busy)
    assert len(busy.opened) == 40
    assert table.seconds(CONV, 16, 16) == pytest.approx(4e-6, rel=1e-6)
    cell = table.cells[CONV][16, 16]
    assert cell.high_s - cell.low_s > 4e-6  # the interval tells of it


def test_chunks_of_another_machine_are_refused(tmp_path: Path) -> None:
    profile(WANTED, TIMING, folder=tmp_path, open_probe=ScriptedProbes())
    path = tmp_path / PROBES_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
    with pytest.raises(MeasureError, match="machine 'another'"):
        profile(WANTED, TIMING, folder=tmp_path, open_probe=ScriptedProbes())


def test_a_damaged_file_of_chunks_is_refused(tmp_path: Path) -> None:
    (tmp_path / PROBES_FILE).write_text("{")
    with pytest.raises(MeasureError, match="not what a profile left"):
        profile(WANTED, TIMING, folder=tmp_path, open_probe=ScriptedProbes())


def test_a_table_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="no layer was asked for"):
        profile((), TIMING, folder=tmp_path, open_probe=ScriptedProbes())


def test_a_layer_that_reads_an_image_has_nothing_before_it() -> None:
    assert [len(sandwich(CONV, width, 8).layers) for width in (1, 3, 4)] == [2, 2, 3]
    assert reads_image(3)
    assert not reads_image(4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_probes_run_in_onnx_runtime_in_every_precision(tmp_path: Path, precision: str) -> None:
    positions = replace(LINEAR, in_size=(5, 1))
    probes = [sandwich(kind, 8, 8) for kind in (CONV, STRIDED, DEPTHWISE, LINEAR, positions)]
    for probe in [*probes, ends("conv", (8, 8), 4), sandwich(CONV, 3, 4)]:
        path = write_probe(probe, tmp_path / "probe.onnx", precision)
        with open_runner(path, "ort-cpu") as runner:
            assert runner.precision == precision
            dtype = "float16" if precision == "fp16" else "float32"
            image_NC = np.ones((2, *probe.input_shape), dtype)
            (output_NC,) = runner.infer({"input": image_NC}).values()
            assert output_NC.shape == (2, *probe.output_shape)


@pytest.mark.slow
@pytest.mark.usefixtures("real_machine")
def test_a_wider_convolution_takes_longer_on_this_processor(tmp_path: Path) -> None:
    kind = replace(CONV, in_size=(16, 16))
    wanted = (Wanted(kind=kind, widths_in=(8, 64), widths_out=(8, 64)),)
    table = profile(wanted, Timing(runtime="ort-cpu", precision="fp32", batch=1), folder=tmp_path)
    assert table.seconds(kind, 64, 64) > 4 * table.seconds(kind, 8, 8)
    assert LatencyTable.from_json(table.to_json()) == table
    assert sorted(path.name for path in tmp_path.iterdir()) == [PROBES_FILE]
