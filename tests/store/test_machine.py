"""The machine's facts: stable, JSON, and different where measurements would be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")


@pytest.mark.parametrize(
    ("files", "switches"),
    [
        ({}, ("unknown", "unknown", "unknown")),
        ({"smt/active": "0", "cpufreq/boost": "1"}, ("unknown", "off", "on")),
        (
            {
                "smt/active": "1",
                "intel_pstate/no_turbo": "1",
                "cpu0/cpufreq/scaling_governor": "powersave",
                "cpu1/cpufreq/scaling_governor": "performance",
            },
            ("performance, powersave", "on", "off"),
        ),
        ({"intel_pstate/no_turbo": "0"}, ("unknown", "unknown", "on")),
    ],
)
def test_switches_are_told_where_the_system_tells_and_change_no_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    files: dict[str, str],
    switches: tuple[str, str, str],
) -> None:
    here = machine_facts()["fingerprint"]
    for name, text in files.items():
        write(tmp_path / name, text)
    monkeypatch.setattr(machine, "_SYSTEM_CPU", tmp_path)
    facts = machine_facts()
    assert (facts["governor"], facts["smt"], facts["turbo"]) == switches
    assert facts["fingerprint"] == here


def test_another_gpu_or_driver_is_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def told(model: str | None, driver: str) -> tuple[str, object, object]:
        if model is not None:
            write(tmp_path / "gpus" / "0000:3b:00.0" / "information", f"Model: \t\t {model}\nIRQ: 16")
            write(tmp_path / "version", f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed")
        facts = machine._facts.__wrapped__()
        return facts["fingerprint"], facts.get("gpus"), facts.get("nvidia_driver")

    monkeypatch.setattr(machine, "_NVIDIA", tmp_path)
    none = told(None, "")
    assert none == (machine_facts()["fingerprint"], None, None)
    first = told("NVIDIA H200", "550.54.15")
    assert first[1:] == (["NVIDIA H200"], "550.54.15")
    second, third = told("NVIDIA H200", "580.82.07"), told("NVIDIA L4", "580.82.07")
    assert len({none[0], first[0], second[0], third[0]}) == 4
