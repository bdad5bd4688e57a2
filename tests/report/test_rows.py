"""Manifests become exactly the rows of the contract."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ticket_export.errors import StoreError
from ticket_export.report.order import subject_order
from ticket_export.report.rows import ROW_FIELDS, report_from_manifests

Manifest = dict[str, Any]


def test_report_json_has_one_row_per_subject_replicate_and_batch_with_the_contracts_fields(
    manifests: list[Manifest], machine: Manifest
) -> None:
    document = report_from_manifests("digits", machine, manifests).to_json()
    assert list(document)[:5] == ["schema", "name", "machine", "rows", "files"]
    assert list(document)[5:9] == ["tickets", "search_cost", "early_stop", "fronts"]
    assert list(document)[9:] == ["budgets", "free_channels", "searches"]
    assert (document["schema"], document["name"], document["machine"]) == (1, "digits", machine)
    assert len(document["rows"]) == 7 * 3 * 3
    assert all(tuple(row) == ROW_FIELDS for row in document["rows"])
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_row_joins_the_export_the_accuracy_and_the_latency_of_its_own_replicate(
    manifests: list[Manifest], machine: Manifest
) -> None:
    rows = report_from_manifests("digits", machine, manifests).rows
    (row,) = (r for r in rows if (r["subject"], r["replicate"], r["batch"]) == ("ticket@2", 1, 64))
    assert row["accuracy"] == 0.981
    assert row["macs"] == int(2_600_000 * 0.51)
    assert (row["param_density"], row["mac_density"]) == (0.48, 0.51)
    assert row["speedup"]["ratio"] == pytest.approx(1.62)
    assert row["speedup"]["baseline"] == "dense"
    assert row["latency_s"]["p50"] == pytest.approx((2.1e-4 + 9.4e-5 * 64) / 1.62)
    assert (row["num_rounds"], row["num_samples"], row["scope"], row["threads"]) == (10, 50, "compute", 1)
    assert row["parity_rel_error"] == 3.1e-7


def test_the_baseline_has_no_speedup(manifests: list[Manifest], machine: Manifest) -> None:
    rows = report_from_manifests("digits", machine, manifests).rows
    assert [row["speedup"] is None for row in rows] == [row["subject"] == "dense" for row in rows]


def test_the_order_of_the_manifests_does_not_matter(manifests: list[Manifest], machine: Manifest) -> None:
    forward = report_from_manifests("digits", machine, manifests)
    backward = report_from_manifests("digits", machine, list(reversed(manifests)))
    assert forward.to_json() == backward.to_json()
    assert forward.subjects == (
        "dense",
        "ticket@1",
        "ticket@2",
        "unstructured@2",
        "uniform@2",
        "random@2",
        "reinit@2",
    )


def test_ticket_10_comes_after_ticket_9() -> None:
    subjects = ["ticket@10", "random@2", "ticket@9", "peer@2", "random_reinit@2", "depgraph@2", "dense"]
    assert sorted(subjects, key=subject_order) == [
        "dense",
        "ticket@9",
        "ticket@10",
        "depgraph@2",
        "random@2",
        "random_reinit@2",
        "peer@2",
    ]


def test_eager_torch_has_no_file_and_no_parity(manifests: list[Manifest], machine: Manifest) -> None:
    for manifest in manifests:
        if manifest["stage"] == "measure":
            manifest["facts"]["runtime"] = "torch"
    row = report_from_manifests("digits", machine, manifests).rows[0]
    assert (row["runtime"], row["parity_rel_error"], row["file_bytes"]) == ("torch", None, None)


def _without(manifests: list[Manifest], drop: Callable[[Manifest], bool]) -> list[Manifest]:
    kept = [manifest for manifest in manifests if not drop(manifest)]
    assert len(kept) < len(manifests)
    return kept


def test_a_timed_network_without_accuracy_is_named(manifests: list[Manifest], machine: Manifest) -> None:
    def is_it(manifest: Manifest) -> bool:
        facts = manifest["facts"]
        return facts.get("kind") == "accuracy" and (facts["subject"], facts["replicate"]) == ("random@2", 1)

    with pytest.raises(StoreError, match=r"random@2, replicate 1, ort-cpu, fp32: .*accuracy"):
        report_from_manifests("digits", machine, _without(manifests, is_it))


def test_a_timed_network_without_export_is_named(manifests: list[Manifest], machine: Manifest) -> None:
    def is_it(manifest: Manifest) -> bool:
        return manifest["stage"] == "export" and manifest["facts"]["subject"] == "uniform@2"

    with pytest.raises(StoreError, match=r"uniform@2, replicate 0.*no export"):
        report_from_manifests("digits", machine, _without(manifests, is_it))


def test_a_run_that_timed_nothing_is_refused_by_name(manifests: list[Manifest], machine: Manifest) -> None:
    kept = _without(manifests, lambda manifest: manifest["facts"].get("kind") == "latency")
    with pytest.raises(StoreError, match="digits_half: no latency"):
        report_from_manifests("digits_half", machine, kept)


def test_accuracies_over_unequal_test_sets_are_refused(manifests: list[Manifest], machine: Manifest) -> None:
    accuracy = next(m for m in manifests if m["facts"].get("kind") == "accuracy")
    accuracy["facts"]["num_images"] = 10
    with pytest.raises(StoreError, match=r"\[10, 360\]"):
        report_from_manifests("digits", machine, manifests)


def test_the_report_room_loads_no_torch() -> None:
    code = (
        "import sys; from ticket_export.report import figure, page, rows, sentences, table, words, worth; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
