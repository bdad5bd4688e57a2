"""What is wrong with a machine for measuring, in words: one line for each finding, with what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ticket_export.runtime import offers
from ticket_export.runtime.offers import Build

QUIET_SLACK_CORES = 0.15  # what an idle desktop takes
TEXT_WIDTH = 88


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A GPU as `doctor` finds it.

    Attributes:
        name: its model.
        users: the processes that compute on it, each in words; None where the driver does not tell.
        busy_fraction: its utilisation now, 0 to 1; None where the driver does not tell.
    """

    name: str
    users: tuple[str, ...] | None
    busy_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One verdict: `good` or not, in words, and the command or step that mends it."""

    about: str
    good: bool
    text: str
    mend: str = ""

    @property
    def line(self) -> tuple[str, str, str]:
        """Return the row of a table."""
        text = f"{self.text}: {self.mend}" if self.mend else self.text
        return self.about, "ok" if self.good else "LOOK", wrapped(text)


def wrapped(text: str) -> str:
    """Return `text` in lines that fit a terminal beside a short first column; commands stay whole words."""
    return textwrap.fill(text, TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)


def offer_rows(found: Sequence[offers.Offer]) -> list[tuple[str, ...]]:
    """Return a row per runtime: its state at each precision."""
    return [
        (each.runtime, *(each.state_by_precision[precision] for precision in offers.PRECISIONS))
        for each in found
    ]


def command_rows(found: Sequence[offers.Offer]) -> list[tuple[str, str]]:
    """Return a row per command that gets a missing runtime, unbroken, to be copied."""
    return [(each.runtime, command) for each in found for command in each.commands]


def verdict(found: Sequence[offers.Offer], findings: Sequence[Finding]) -> str:
    """Say in one sentence what the machine can run, and what to look at first."""
    ready = [each.runtime for each in found if offers.READY in each.state_by_precision.values()]
    look = list(dict.fromkeys(finding.about for finding in findings if not finding.good))
    can = f"ready to run {', '.join(ready)}" if ready else "no runtime is ready"
    return f"{can}; {'look at ' + ', '.join(look) if look else 'fit to measure on'}"


def load_finding(other_cores: float | None, num_cores: int) -> Finding:
    """Say whether the CPU is quiet.

    Args:
        other_cores: cores that other processes keep busy; None when the system does not tell.
        num_cores: logical cores of the machine.
    """
    if other_cores is None:
        return Finding(about="cpu load", good=False, text="this system does not tell the load of others")
    told = f"others use {other_cores:.2f} of {num_cores} cores"
    free = int(num_cores + QUIET_SLACK_CORES - other_cores)
    if free >= num_cores:
        return Finding(about="cpu load", good=True, text=f"quiet: {told}")
    if free >= 1:
        threads = "1 thread" if free == 1 else f"up to {free} threads"
        return Finding(about="cpu load", good=True, text=f"{told}: measure with {threads}")
    return Finding(about="cpu load", good=False, text=f"busy: {told}", mend="measure when it is quieter")


def quota_findings(cores: float | None, num_cores: int) -> list[Finding]:
    """Say that a container stops its processes to keep them to `cores`; nothing where it does not."""
    if cores is None or cores >= num_cores:
        return []
    text = f"this container is held to {cores:g} of {num_cores} cores by stopping it now and then"
    mend = "give it whole cores instead (docker run --cpuset-cpus)"
    return [Finding(about="cpu limit", good=False, text=text, mend=mend)]


def switch_findings(machine: Mapping[str, Any]) -> list[Finding]:  # Any: JSON values
    """Say what the switches of the processor mean for a measurement, and how many threads it bears."""
    governor, smt, turbo = machine["governor"], machine["smt"], machine["turbo"]
    steady = governor in ("performance", "unknown")
    found = [
        Finding(
            about="governor",
            good=steady,
            text={"unknown": "unknown, as in most VMs"}.get(governor, governor),
            mend=""
            if steady
            else "clocks climb while it is timed: sudo cpupower frequency-set -g performance",
        ),
        Finding(about="turbo", good=True, text=turbo),
    ]
    cores = machine["num_usable_cores"]
    physical = cores // 2 if smt == "on" else cores
    text = f"1 is the steadiest; at most {max(1, physical)} of {cores} usable cores"
    if smt == "on":
        text += " (SMT is on: two of them share one physical core)"
    return [*found, Finding(about="threads", good=True, text=text)]


def gpu_findings(gpus: Sequence[GpuState], unknown: str | None) -> list[Finding]:
    """Say whether each GPU is quiet.

    Args:
        gpus: what the driver tells.
        unknown: why it tells nothing, with the command that mends it; None when it tells.
    """
    if unknown is not None:
        return [Finding(about="gpu", good=False, text=unknown)]
    found = []
    for index, gpu in enumerate(gpus):
        about = f"gpu {index}"
        if gpu.users:
            mend = "measuring there is refused until it ends"
            text = f"{gpu.name}, in use by {', '.join(gpu.users)}"
            found.append(Finding(about=about, good=False, text=text, mend=mend))
        elif gpu.users is None or gpu.busy_fraction is None:
            text = f"{gpu.name}, but the driver does not tell whether it is quiet"
            found.append(Finding(about=about, good=False, text=text))
        else:
            good = gpu.busy_fraction <= 0.1
            word = "quiet" if good else "busy with a process that is hidden from this one"
            found.append(
                Finding(about=about, good=good, text=f"{gpu.name}, {word} ({gpu.busy_fraction:.0%})")
            )
    return found or [Finding(about="gpu", good=True, text="none: the CPU's runtimes only")]


def build_findings(builds: Sequence[Build], *, driver: str | None, in_use: str | None) -> list[Finding]:
    """Say which builds do not fit the driver or one another.

    Args:
        builds: as `offers.cuda_builds` gives them.
        driver: version of the NVIDIA driver, e.g. "580.82.07"; None without a GPU.
        in_use: as `offers.onnxruntime_in_use` gives it.
    """
    found = []
    version_by_package = {build.package: build.version for build in builds}
    if {"onnxruntime", "onnxruntime-gpu"} <= set(version_by_package):
        found.append(
            Finding(
                about="onnxruntime",
                good=False,
                text=f"onnxruntime and onnxruntime-gpu share one folder, and {in_use or 'one of them'} "
                "was written last; ort-cuda needs the GPU's alone",
                mend=offers.ONLY_GPU_ORT,
            )
        )
    with_cuda = [build for build in builds if build.cuda is not None]
    told = ", ".join(map(_build_words, builds)) or "none of torch, onnxruntime and tensorrt"
    found.insert(0, Finding(about="builds", good=True, text=told))
    if driver is not None:
        found += [finding for build in with_cuda if (finding := _driver_finding(build, driver)) is not None]
        if "torch" in version_by_package and "torch" not in {build.package for build in with_cuda}:
            text = f"torch {version_by_package['torch']} is built without CUDA and will not see the GPU"
            found.append(Finding(about="torch", good=False, text=text, mend=offers.CUDA_TORCH))
    majors = {build.package: build.cuda[0] for build in with_cuda if build.cuda is not None}
    if len(set(majors.values())) > 1:
        told = ", ".join(f"{package} for {major}" for package, major in majors.items())
        mend = "install builds of one major, or the CUDA libraries of both"
        found.append(
            Finding(about="cuda", good=False, text=f"builds for different CUDA majors: {told}", mend=mend)
        )
    return found


def _build_words(build: Build) -> str:
    cuda = "no CUDA" if build.cuda is None else f"CUDA {build.cuda[0]}.{build.cuda[1]}"
    return f"{build.package} {build.version} ({cuda})"


def _driver_finding(build: Build, driver: str) -> Finding | None:
    assert build.cuda is not None
    needed = offers.OLDEST_DRIVER.get(build.cuda[0])
    if needed is None or not driver[:3].isdecimal() or int(driver[:3]) >= needed:
        return None
    return Finding(
        about="driver",
        good=False,
        text=f"{driver} is too old for {_build_words(build)}",
        mend=f"update the driver to {needed} or newer, or install a build for an older CUDA",
    )
