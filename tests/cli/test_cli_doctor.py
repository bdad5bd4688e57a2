"""`doctor`: what it finds on machines of all kinds, in words, and when it exits 3."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from scripted_nvml import NVMLError, ScriptedNvml, install

from ticket_export.measure import nvml
from ticket_export.measure.load import Load
from ticket_export.runtime import offers, registry
from ticket_export.store import machine

Told = tuple[int, str, str]
ALL_RUNTIMES = dict.fromkeys(offers.NEEDS)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticket_export.cli.doctor.LOAD_S", 0.0)
    set_load(monkeypatch, 0.05)
    monkeypatch.setattr("ticket_export.measure.load.num_cores", lambda: 4)


def set_load(monkeypatch: pytest.MonkeyPatch, other_cores: float | None) -> None:
    load = Load(other_cores=other_cores, steal_cores=0.0)
    monkeypatch.setattr("ticket_export.measure.load.LoadMeter.stop", lambda _meter: load)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have other packages: a version by name, None for one that is missing."""

    def change(**versions: str | None) -> None:
        def version(name: str, *, found: Callable[[str], str] = metadata.version) -> str:
            wanted = versions.get(name.replace("-", "_"), "as it is")
            if wanted is None:
                raise metadata.PackageNotFoundError(name)
            return found(name) if wanted == "as it is" else wanted

        monkeypatch.setattr(metadata, "version", version)

    return change


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the files of torch and onnxruntime say of their builds."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(offers, "_module_file", lambda module, *_parts: texts.get(module, ""))
    return texts


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedNvml:
    """An H200 that kernel and driver know."""
    folder = tmp_path / "nvidia" / "gpus" / "0000:3b:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   16\n", encoding="ascii")
    (tmp_path / "nvidia" / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n",
        encoding="ascii",
    )
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "nvidia")
    monkeypatch.setattr(machine, "_facts", machine._facts.__wrapped__)
    monkeypatch.setattr(nvml, "_in_container", lambda: False)
    return install(monkeypatch)


def checks(out: str) -> dict[str, str]:
    """The table of verdicts: what it says, by what it is about, without the line breaks."""
    _, _, table = out.partition("\ncheck ")
    body = table.split("\n\n")[0].splitlines()[2:]
    found: dict[str, str] = {}
    about = ""
    for line in body:
        first, *rest = re.split(r"  +", line)
        about = first or about
        found[about] = " ".join([*([found[about]] if not first else []), *rest])
    return found


def states(out: str) -> dict[str, list[str]]:
    """The table of runtimes: the cells of each."""
    _, _, table = out.partition("\nruntime ")
    rows = [re.split(r"  +", line.rstrip()) for line in table.split("\n\n")[0].splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def commands(out: str) -> list[tuple[str, str]]:
    """The table of what is missing: runtime and command."""
    _, found, table = out.partition("\nmissing ")
    rows = [line.split(maxsplit=1) for line in table.split("\n\n")[0].splitlines()[2:]] if found else []
    return [(runtime, command) for runtime, command in rows]


def test_doctor_tells_machine_packages_runtimes_checks_and_a_verdict(tell: Callable[..., Told]) -> None:
    code, out, err = tell("doctor")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert "cpu" in rows
    assert rows["memory"][1] == "GiB"
    assert rows["onnxruntime"][0] == "all"
    assert rows["onnxruntime"][1][0].isdigit()
    assert rows["polygraphy"][0] == "[tensorrt]"
    assert states(out)["ort-cpu"] == ["ready", "ready", "ready"]
    assert states(out)["torch"] == ["ready", "ready", "-"]
    assert list(checks(out))[:5] == ["cpu load", "governor", "turbo", "threads", "gpu"]
    assert out.splitlines()[-1].startswith("ready to run ort-cpu, ")
    assert max(map(len, out.splitlines())) <= 110


def test_every_runtime_has_its_needs_told() -> None:
    assert set(registry.RUNTIMES) <= set(offers.NEEDS)


def test_without_a_gpu_its_runtimes_have_no_hardware_and_no_command(
    tell: Callable[..., Told], packages: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RUNTIMES", ALL_RUNTIMES)
    packages(tensorrt=None, polygraphy=None, onnxruntime_gpu=None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    _, out, _ = tell("doctor")
    found = states(out)
    assert found["tensorrt"] == found["ort-cuda"] == ["no GPU"] * 3
    assert found["torch-cudagraph"] == ["no GPU", "no GPU", "-"]
    assert commands(out) == []


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_what_is_installed_is_ready_and_what_is_not_is_missing(
    tell: Callable[..., Told],
    packages: Callable[..., None],
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "RUNTIMES", ALL_RUNTIMES)
    packages(tensorrt="10.12.0", tensorrt_cu12="10.12.0", onnxruntime_gpu=None, torch="2.13.0")
    files["torch"] = "__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\n"
    code, out, _ = tell("doctor")
    assert code == 0
    assert states(out)["tensorrt"] == ["ready", "ready", "ready"]
    assert states(out)["ort-cuda"] == ["missing"] * 3
    assert ("ort-cuda", offers.ONLY_GPU_ORT) in commands(out)
    assert states(out)["torch-cudagraph"] == ["ready", "ready", "-"]
    found = checks(out)
    assert found["gpu 0"] == "ok NVIDIA H200, quiet (0%)"
    assert "torch 2.13.0 (CUDA 12.8)" in found["builds"]
    assert "tensorrt 10.12.0 (CUDA 12.0)" in found["builds"]
    assert out.splitlines()[-1].endswith("fit to measure on")


@pytest.mark.usefixtures("gpu")
def test_each_command_is_told_once(
    tell: Callable[..., Told], packages: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RUNTIMES", ALL_RUNTIMES)
    packages(tensorrt=None, polygraphy=None, onnxruntime_gpu="1.31.1", triton=None)
    assert commands(tell("doctor")[1]) == [
        ("tensorrt", 'pip install "ticket-export[tensorrt]"'),
        ("torch-compile", "pip install triton"),
    ]


def test_compiling_for_a_cpu_needs_a_compiler(
    tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "RUNTIMES", ALL_RUNTIMES)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("CXX", sys.executable)  # any program that is there
    assert states(tell("doctor")[1])["torch-compile"] == ["ready", "ready", "-"]
    monkeypatch.setenv("CXX", "/absent/g++")
    _, out, _ = tell("doctor")
    assert states(out)["torch-compile"] == ["missing", "missing", "-"]
    assert commands(out)[0][1].startswith("apt install g++")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (
            {"processes": [(4242, 3 << 30)]},
            "LOOK NVIDIA H200, in use by pid 4242 (3,072 MiB): measuring there is refused until it ends",
        ),
        ({"utilisation": 88}, "LOOK NVIDIA H200, busy with a process that is hidden from this one (88%)"),
        ({"processes": [(os.getpid(), 1 << 20)]}, "ok NVIDIA H200, quiet (0%)"),
        (
            {"utilisation": NVMLError("Not Supported")},
            "LOOK NVIDIA H200, but the driver does not tell whether it is quiet",
        ),
    ],
)
def test_a_busy_gpu_is_told_with_who_uses_it(
    tell: Callable[..., Told], gpu: ScriptedNvml, changes: dict[str, Any], verdict: str
) -> None:
    for name, value in changes.items():
        setattr(gpu, name, value)
    code, out, _ = tell("doctor")
    assert (code, checks(out)["gpu 0"]) == (0, verdict)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_cannot_be_asked_is_told_with_the_command(
    tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told = checks(tell("doctor")[1])["gpu"]
    assert told == "LOOK NVIDIA H200, but nvidia-ml-py is not installed: pip install nvidia-ml-py"


def test_a_lost_gpu_is_told(
    tell: Callable[..., Told], gpu: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_index: int) -> str:
        raise NVMLError("GPU is lost")

    monkeypatch.setattr(gpu, "nvmlDeviceGetHandleByIndex", lost)
    told = checks(tell("doctor")[1])["gpu"]
    assert told.startswith("LOOK NVIDIA H200, but the NVIDIA driver fails: GPU is lost")
    assert gpu.open == 0


@pytest.mark.usefixtures("gpu")
def test_builds_that_do_not_fit_the_driver_or_one_another_are_told(
    tell: Callable[..., Told], packages: Callable[..., None], files: dict[str, str], gpu: ScriptedNvml
) -> None:
    gpu.driver = "535.183.01"
    packages(torch="2.13.0", onnxruntime="1.31.1", onnxruntime_gpu="1.31.1", tensorrt=None)
    files["torch"] = "cuda: Optional[str] = '13.0'\n"
    files["onnxruntime"] = "package_name = 'onnxruntime-gpu'\ncuda_version = '12.8'\n"
    _, out, _ = tell("doctor")
    found = checks(out)
    assert found["driver"] == (
        "LOOK 535.183.01 is too old for torch 2.13.0 (CUDA 13.0): update the driver to 580 or newer, or "
        "install a build for an older CUDA"
    )
    assert found["onnxruntime"] == (
        "LOOK onnxruntime and onnxruntime-gpu share one folder, and onnxruntime-gpu was written last; "
        f"ort-cuda needs the GPU's alone: {offers.ONLY_GPU_ORT}"
    )
    assert found["cuda"].startswith(
        "LOOK builds for different CUDA majors: torch for 13, onnxruntime-gpu for 12: install builds of one"
    )
    assert out.splitlines()[-1].endswith("look at onnxruntime, driver, cuda")


@pytest.mark.usefixtures("gpu")
def test_a_torch_without_cuda_beside_a_gpu_is_told(
    tell: Callable[..., Told], packages: Callable[..., None], files: dict[str, str]
) -> None:
    packages(torch="2.13.0+cpu", tensorrt=None, onnxruntime_gpu=None)
    files["torch"] = "cuda: Optional[str] = None\n"
    told = checks(tell("doctor")[1])["torch"]
    assert told.startswith(
        "LOOK torch 2.13.0+cpu is built without CUDA and will not see the GPU: pip install"
    )


@pytest.mark.parametrize(
    ("other_cores", "verdict"),
    [
        (0.05, "ok quiet: others use 0.05 of 4 cores"),
        (0.6, "ok others use 0.60 of 4 cores: measure with up to 3 threads"),
        (2.9, "ok others use 2.90 of 4 cores: measure with 1 thread"),
        (3.6, "LOOK busy: others use 3.60 of 4 cores: measure when it is quieter"),
        (None, "LOOK this system does not tell the load of others"),
    ],
)
def test_the_load_says_how_many_threads_can_be_timed(
    tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, other_cores: float | None, verdict: str
) -> None:
    set_load(monkeypatch, other_cores)
    assert checks(tell("doctor")[1])["cpu load"] == verdict


def test_a_containers_limit_is_told(tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ticket_export.store.process.quota_cores", lambda: 1.5)
    assert checks(tell("doctor")[1])["cpu limit"] == (
        "LOOK this container is held to 1.5 of 4 cores by stopping it now and then: give it whole cores "
        "instead (docker run --cpuset-cpus)"
    )


@pytest.mark.parametrize(
    ("switches", "about", "verdict"),
    [
        (
            {"governor": "powersave"},
            "governor",
            "LOOK powersave: clocks climb while it is timed: sudo cpupower frequency-set -g performance",
        ),
        ({"governor": "performance"}, "governor", "ok performance"),
        (
            {"smt": "on", "num_usable_cores": 8},
            "threads",
            "ok 1 is the steadiest; at most 4 of 8 usable cores (SMT is on: two of them share one physical "
            "core)",
        ),
        ({"turbo": "on"}, "turbo", "ok on"),
    ],
)
def test_switches_of_the_processor_are_told_with_advice(
    tell: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
    switches: dict[str, Any],
    about: str,
    verdict: str,
) -> None:
    facts = machine.machine_facts() | switches
    monkeypatch.setattr(machine, "machine_facts", lambda: facts)
    assert checks(tell("doctor")[1])[about] == verdict


def test_doctor_exits_3_when_a_needed_package_is_missing(
    tell: Callable[..., Told], packages: Callable[..., None]
) -> None:
    packages(accelerate=None)
    code, out, err = tell("doctor")
    assert code == 3
    assert "ready to run" in out
    assert "not installed: accelerate" in err
    assert "hint: pip install accelerate" in err


def test_on_a_serving_box_what_is_missing_is_said_not_to_be_needed_there(
    tell: Callable[..., Told], packages: Callable[..., None]
) -> None:
    packages(torch=None, matplotlib=None)
    code, out, err = tell("doctor")
    assert code == 3
    assert out.splitlines()[-1].startswith("ready to run ort-cpu;")
    assert "not installed: matplotlib, torch (measuring exported files needs none of them)" in err
    packages(tabulate=None)
    assert "not installed: matplotlib, tabulate, torch\n" in tell("doctor")[2]


def test_onnxruntime_for_gpus_serves_as_onnxruntime(
    tell: Callable[..., Told], packages: Callable[..., None]
) -> None:
    packages(onnxruntime=None, onnxruntime_gpu="1.31.1")
    code, out, _ = tell("doctor")
    assert code == 0
    assert states(out)["ort-cpu"][0] == "ready"


def test_doctor_works_without_torch_and_never_imports_it() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'pynvml', 'onnxscript', 'matplotlib', 'sklearn', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from ticket_export.cli import main\n"
        "try:\n    main(['doctor'])\nexcept SystemExit as stopped:\n    print(stopped.code)\n"
        "print([name for name in ('torch', 'onnxruntime') if sys.modules.get(name)])\n"
    )
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stderr == ""
    assert told.stdout.splitlines()[-2:] == ["0", "[]"]


def test_without_the_packages_that_print_the_missing_ones_are_named(packages: Callable[..., None]) -> None:
    code = (
        "import sys\nfrom importlib import metadata\nsys.modules['tabulate'] = None\n"
        "found = metadata.version\n"
        "def version(name):\n"
        "    if name == 'tabulate':\n        raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.version = version\n"
        "from ticket_export.cli import main\nmain(['doctor'])\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 3
    assert "not installed: tabulate\nhint: pip install tabulate" in told.stderr
