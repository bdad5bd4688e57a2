from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ticket_export.errors import MeasureError, StoreError
from ticket_export.measure.load import Load
from ticket_export.measure.measurement import ARRAYS, Measurement, load_measurements, save_measurements

Make = Callable[..., Measurement]


def pair(measurement: Make) -> dict[str, Measurement]:
    random = np.random.default_rng(0)
    loads = tuple(Load(other_cores=0.25 * r, steal_cores=0.0) for r in range(5))
    facts = {"loads": loads, "reasons": ("because",), "warmup_s": random.uniform(size=9)}
    return {
        name: measurement(random.uniform(1e-3, 2e-3, (5, 7)), name=name, **facts)
        for name in ("dense", "ticket@2/0")
    }


def test_every_raw_sample_and_fact_comes_back_bit_equal(measurement: Make, tmp_path: Path) -> None:
    written = pair(measurement)
    save_measurements(tmp_path / "samples.npz", written)
    read = load_measurements(tmp_path / "samples.npz")
    assert list(read) == list(written)
    for name, before in written.items():
        for field in dataclasses.fields(Measurement):
            old, new = getattr(before, field.name), getattr(read[name], field.name)
            if field.name in ARRAYS:
                np.testing.assert_array_equal(old, new)
            else:
                assert old == new
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]


def test_damaged_missing_and_foreign_files_are_refused_by_name(measurement: Make, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    with pytest.raises(MeasureError, match=r"samples\.npz"):
        load_measurements(path)
    save_measurements(path, pair(measurement))
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(MeasureError, match=r"samples\.npz: not a file of measurements"):
            load_measurements(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(MeasureError, match="facts"):
        load_measurements(path)


def test_a_folder_that_is_not_there_is_named(measurement: Make, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"absent/samples\.npz: cannot be written: No such file"):
        save_measurements(tmp_path / "absent" / "samples.npz", pair(measurement))


def test_another_schema_is_refused(measurement: Make) -> None:
    one = measurement(np.ones((5, 5)))
    arrays = {name: getattr(one, name) for name in ARRAYS}
    with pytest.raises(MeasureError, match="schema is 2, this version reads 1"):
        Measurement.from_json({**one.facts_json(), "schema": 2}, arrays)


def test_percentiles_are_of_all_samples_and_p99_needs_a_thousand(measurement: Make) -> None:
    hundred = measurement(np.arange(1.0, 101.0).reshape(10, 10))
    assert (hundred.p50_s, hundred.p90_s, hundred.p99_s) == (50.5, 90.0, None)
    thousand = measurement(np.arange(1.0, 1001.0).reshape(10, 100))
    assert (thousand.p50_s, thousand.p90_s, thousand.p99_s) == (500.5, 900.0, 990.0)


def test_throughput_is_all_images_over_all_seconds(measurement: Make) -> None:
    samples_s = np.array([[1.0, 1.0, 1.0, 1.0, 6.0]] * 5)
    assert measurement(samples_s, batch=4).throughput_per_s == pytest.approx(4 * 25 / 50.0)


def test_a_file_from_before_cores_and_gpus_were_recorded_is_read(measurement: Make) -> None:
    one = measurement(np.ones((5, 5)), cores=(1,))
    arrays = {name: getattr(one, name) for name in ARRAYS}
    facts = one.facts_json()
    assert Measurement.from_json(facts, arrays).cores == (1,)
    old = Measurement.from_json({k: v for k, v in facts.items() if k not in ("cores", "gpu")}, arrays)
    assert (old.cores, old.gpu, old.energy_per_image_j) == (None, (), None)


def test_fields_of_a_newer_version_are_refused_by_name(measurement: Make, tmp_path: Path) -> None:
    one = measurement(np.ones((5, 5)))
    arrays = {name: getattr(one, name) for name in ARRAYS}
    with pytest.raises(MeasureError, match="unknown fields moon\nhint: it was written by a newer version"):
        Measurement.from_json({**one.facts_json(), "moon": "full"}, arrays)
    protocol = {**one.facts_json()["protocol"], "moon": "full"}
    stored = {f"0/{name}": array for name, array in arrays.items()}
    facts = json.dumps([{**one.facts_json(), "protocol": protocol}])
    np.savez(tmp_path / "newer.npz", facts=np.array(facts), **stored)
    with pytest.raises(MeasureError, match=r"newer\.npz: not a file of measurements: .*moon"):
        load_measurements(tmp_path / "newer.npz")
