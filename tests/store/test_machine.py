"""The machine's facts: stable, JSON, and different where measurements would be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ticket_export.store import machine
from ticket_export.store.machine import machine_facts


def test_another_process_on_this_machine_tells_the_same() -> None:
    code = "from ticket_export.store.machine import machine_facts; import json; "
    code += "print(json.dumps(machine_facts()))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(other.stdout) == machine_facts()


def test_the_facts_name_what_measures() -> None:
    facts = machine_facts()
    assert facts["num_cores"] >= facts["num_usable_cores"] >= 1
    assert facts["cpu"]
    assert {"numpy", "onnxruntime", "torch"} <= set(facts["packages"])
    assert facts["memory_bytes"] > 1 << 28


def test_another_cpu_is_another_machine_and_another_kernel_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine_facts()["fingerprint"]
    monkeypatch.setattr(machine.platform, "release", lambda: "another kernel")
    machine._facts.cache_clear()
    assert machine_facts()["fingerprint"] == here
    monkeypatch.setattr(machine, "_cpu_model", lambda: "another cpu")
    machine._facts.cache_clear()
    assert machine_facts()["fingerprint"] != here
    monkeypatch.undo()
    machine._facts.cache_clear()
    assert machine_facts()["fingerprint"] == here
