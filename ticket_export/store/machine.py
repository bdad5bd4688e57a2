"""Which machine this is: what may change a measurement, and nothing that changes by itself.

The standard library alone: a serving box measures too.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from ticket_export.store.key import key_from_content

# Packages whose version may change a measured number.
_MEASURING_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch")
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

    The fingerprint covers CPU model, cores, instruction sets, operating system and the packages that measure;
    not memory, kernel release or Python, which are told beside it.
    """
    return dict(_facts())


def declared_packages() -> list[tuple[str, str, str]]:
    """Return each package this one declares, what needs it (`all` or `[extra]`), and its version or `-`."""
    packages = []
    for requirement in metadata.requires("ticket-export") or []:
        words = re.match(r"(?P<name>[\w.-]+)(?:.*extra == \"(?P<extra>\w+)\")?", requirement)
        assert words is not None, requirement
        if words["extra"] == "test":
            continue
        try:
            found = metadata.version(words["name"])
        except metadata.PackageNotFoundError:
            found = "-"
        packages.append((words["name"], f"[{words['extra']}]" if words["extra"] else "all", found))
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
