"""What each runtime needs and whether it is here: packages and builds, read without importing any of them."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ticket_export.errors import MissingDependency

PRECISIONS = ("fp32", "fp16", "int8")  # of exported files, in the order they are told
READY, MISSING, NO_GPU, NEVER = "ready", "missing", "no GPU", "-"
# docs.nvidia.com/deploy/cuda-compatibility, minor version compatibility: the oldest driver of each major
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
# both packages install the folder `onnxruntime`; the one for the CPU goes first, then the files are put back
ONLY_GPU_ORT = 'pip uninstall -y onnxruntime && pip install --force-reinstall "onnxruntime-gpu[cuda,cudnn]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a runtime needs.

    Attributes:
        packages: what to install for it, by the name pip knows, with the command for each.
        gpu: whether it runs on an NVIDIA GPU only.
        precisions: what it can run at all; torch runs modules, which have no int8 form here.
        compiles: whether it builds kernels: with Triton on a GPU, with a C++ compiler on a CPU.
    """

    packages: dict[str, str]
    gpu: bool
    precisions: tuple[str, ...] = PRECISIONS
    compiles: bool = False


_ONNX = {"onnx": "pip install onnx"}
_TORCH = {"torch": "pip install torch"}
NEEDS = {
    "ort-cpu": Needs(packages=_ONNX | {"onnxruntime": "pip install onnxruntime"}, gpu=False),
    "ort-cuda": Needs(packages=_ONNX | {"onnxruntime-gpu": ONLY_GPU_ORT}, gpu=True),
    "tensorrt": Needs(
        packages=_ONNX | dict.fromkeys(("tensorrt", "polygraphy"), 'pip install "ticket-export[tensorrt]"'),
        gpu=True,
    ),
    "torch": Needs(packages=_TORCH, gpu=False, precisions=("fp32", "fp16")),
    "torch-compile": Needs(packages=_TORCH, gpu=False, precisions=("fp32", "fp16"), compiles=True),
    "torch-cudagraph": Needs(packages=_TORCH, gpu=True, precisions=("fp32", "fp16")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a runtime can do here.

    Attributes:
        runtime: its registered name.
        state_by_precision: READY, MISSING, NO_GPU or NEVER for each of `PRECISIONS`.
        commands: what installs what is missing, each once; none where there is no GPU for it.
    """

    runtime: str
    state_by_precision: dict[str, str]
    commands: tuple[str, ...]


def offer(runtime: str, *, has_gpu: bool) -> Offer:
    """Return what `runtime` can do here.

    Args:
        runtime: a key of `NEEDS`.
        has_gpu: whether there is an NVIDIA GPU with a working driver.
    """
    needs = NEEDS[runtime]
    commands = [command for name, command in needs.packages.items() if installed(name) is None]
    if needs.compiles and has_gpu and installed("triton") is None:
        commands.append("pip install triton")
    if needs.compiles and not has_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        commands.append("apt install g++, or name a C++ compiler in the variable CXX")
    state = NO_GPU if needs.gpu and not has_gpu else MISSING if commands else READY
    return Offer(
        runtime=runtime,
        state_by_precision={
            precision: state if precision in needs.precisions else NEVER for precision in PRECISIONS
        },
        commands=tuple(dict.fromkeys(commands)) if state == MISSING else (),
    )


def require_installed(runtime: str) -> None:
    """Pass when every package that `runtime` needs is installed; whether its device works is told on opening.

    Raises:
        MissingDependency: one is missing, with what installs it.
    """
    needs = NEEDS[runtime].packages
    missing = [name for name in needs if installed(name) is None]
    if missing:
        raise MissingDependency(
            f"runtime {runtime!r} needs {' and '.join(missing)}, not installed here",
            hint="; ".join(dict.fromkeys(needs[name] for name in missing)),
        )


def installed(name: str) -> str | None:
    """Return the version of a package; None when it is missing. onnxruntime-gpu runs on the CPU too."""
    names = (name, "onnxruntime-gpu") if name == "onnxruntime" else (name,)
    for each in names:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(each)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """An installed package that brings CUDA code; `cuda` is what it was built for, e.g. (12, 8), if any."""

    package: str
    version: str
    cuda: tuple[int, int] | None


def cuda_builds() -> list[Build]:
    """Return the builds of torch, ONNX Runtime and TensorRT that are installed, in that order."""
    found = []
    if (version := installed("torch")) is not None:
        text = _module_file("torch", "version.py")
        found.append(Build(package="torch", version=version, cuda=_cuda(text, r"^cuda\b[^=]*= *'")))
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(metadata.PackageNotFoundError):
            text = _module_file("onnxruntime", "capi", "build_and_package_info.py")
            cuda = _cuda(text, r"^cuda_version *= *['\"]") if package.endswith("gpu") else None
            found.append(Build(package=package, version=metadata.version(package), cuda=cuda))
    if (version := installed("tensorrt")) is not None:
        majors = [major for major in OLDEST_DRIVER if installed(f"tensorrt-cu{major}") is not None]
        found.append(Build(package="tensorrt", version=version, cuda=(majors[-1], 0) if majors else None))
    return found


def onnxruntime_in_use() -> str | None:
    """Return which package's files lie in the folder `onnxruntime`: of two, the one written last."""
    found = re.search(
        r"^package_name *= *['\"]([\w-]+)",
        _module_file("onnxruntime", "capi", "build_and_package_info.py"),
        re.MULTILINE,
    )
    return None if found is None else found[1]


def _cuda(text: str, before: str) -> tuple[int, int] | None:
    found = re.search(before + r"(\d+)\.(\d+)", text, re.MULTILINE)
    return None if found is None else (int(found[1]), int(found[2]))


def _module_file(module: str, *parts: str) -> str:
    """Return the text of a file of an installed package, which is not imported for it; "" without one."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    with suppress(OSError):
        return Path(spec.origin).parent.joinpath(*parts).read_text(encoding="utf-8", errors="replace")
    return ""
