"""Which machine this is: what may change a measurement.

The standard library alone: a serving box measures too.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ticket_export.runtime.offers import installed
from ticket_export.store.key import key_from_content

# Packages whose version may change a measured number.
_MEASURING_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch")
_SYSTEM_CPU = Path("/sys/devices/system/cpu")
_NVIDIA = Path("/proc/driver/nvidia")
UNKNOWN = "unknown"
# Instruction sets that kernels choose between; a CPU lists some hundred other flags.
_ISA_PREFIXES = ("sse4", "avx", "fma", "amx", "f16c", "vnni", "neon", "asimd", "sve", "i8mm", "bf16", "fphp")


@functools.cache
def _facts() -> dict[str, Any]:  # Any: JSON values
    measuring = {
        "cpu": _cpu_model(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": num_usable_cores(),
        "isa": _instruction_sets(),
        "os": f"{platform.system()} {platform.machine()}",
        "packages": _versions(),
        **_gpu_facts(),
    }
    return {
        "fingerprint": key_from_content(measuring),
        **measuring,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def machine_facts() -> dict[str, Any]:  # Any: JSON values
    """Return what this machine is; `fingerprint` is equal where measurements may be compared.

    The fingerprint covers CPU model, cores, instruction sets, operating system, the packages that measure and
    the NVIDIA GPUs with their driver where there are any; not memory, kernel release or Python, nor what an
    administrator may switch (governor, SMT, turbo), which are told beside it.
    """
    return _facts() | cpu_switches()


def cpu_switches() -> dict[str, str]:
    """Return `governor`, `smt` and `turbo` as they are now; "unknown" where the system does not tell."""
    governors = {_text(path) for path in _SYSTEM_CPU.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    on_off = {"0": "off", "1": "on"}
    turbo = on_off.get(_text(_SYSTEM_CPU / "cpufreq" / "boost"))  # AMD and ACPI
    no_turbo = _text(_SYSTEM_CPU / "intel_pstate" / "no_turbo")
    if no_turbo in on_off:
        turbo = on_off["1" if no_turbo == "0" else "0"]
    return {
        "governor": ", ".join(sorted(governors)) or UNKNOWN,
        "smt": on_off.get(_text(_SYSTEM_CPU / "smt" / "active"), UNKNOWN),
        "turbo": turbo or UNKNOWN,
    }


def _gpu_facts() -> dict[str, Any]:  # Any: JSON values
    """Return models and driver of the NVIDIA GPUs as the kernel tells them; nothing where there are none."""
    models = [
        line.partition(":")[2].strip()
        for path in sorted(_NVIDIA.glob("gpus/*/information"))
        for line in _text(path).splitlines()
        if line.startswith("Model:")
    ]
    if not models:
        return {}
    driver = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _text(_NVIDIA / "version"))
    return {"gpus": models, "nvidia_driver": driver[0] if driver else UNKNOWN}


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def declared_packages() -> list[tuple[str, str, str]]:
    """Return each package this one declares, what needs it (`all` or `[extra]`), and its version or `-`."""
    packages = []
    for requirement in metadata.requires("ticket-export") or []:
        words = re.match(r"(?P<name>[\w.-]+)(?:.*extra == \"(?P<extra>\w+)\")?", requirement)
        assert words is not None, requirement
        if words["extra"] == "test":
            continue
        needed_for = f"[{words['extra']}]" if words["extra"] else "all"
        packages.append((words["name"], needed_for, installed(words["name"]) or "-"))
    return packages


def num_usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # the operating system does not say: one is surely there


def _cpuinfo(field: str) -> str | None:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    flags = _cpuinfo("flags") or _cpuinfo("Features") or ""
    return sorted({flag for flag in flags.split() if flag.startswith(_ISA_PREFIXES)})


def _versions() -> dict[str, str]:
    versions = {}
    for name in _MEASURING_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
