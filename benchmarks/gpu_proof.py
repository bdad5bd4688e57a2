"""Everything that needs a GPU, in one command of at most nine minutes, all results in one folder.

Run:  python benchmarks/gpu_proof.py --out FOLDER --machine h200          on the machine with the GPU
      python benchmarks/gpu_proof.py --out FOLDER --device cpu            a rehearsal: the same steps on a CPU
      python benchmarks/gpu_proof.py --out FOLDER --dry-run               the steps, their limits and commands

Each step is a process with a time limit of its own, most valuable first. What is missing is skipped with the
reason; what fails is told and the next step goes on. Finished cells stay in the folder and engines in the
cache, so running the command again goes on where it ended. `gpu_proof_<machine>_<yyyy-mm>.md` tells every
step; the pages of the steps and the figure lie beside it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from result_files import write_results
from step_processes import Outcome, Started, Step, end_group, finish, start

HERE = Path(__file__).parent
TOTAL_S = 540.0


def steps_of(arguments: argparse.Namespace) -> list[Step]:
    """Return the steps for a GPU, or their rehearsal on a CPU."""
    on_cpu = arguments.device == "cpu"
    networks = ("resnet20-cifar",) if on_cpu else ("resnet18-cifar", "resnet50")
    batches = ("1", "8") if on_cpu else ("1", "8", "64", "256")
    precisions = ("fp32", "fp16", "int8")
    pair = ("dense", "ticket-r16")
    place = ("--out", str(arguments.out), "--cache", str(arguments.cache), "--machine", arguments.machine)
    quick = ("--rounds", "5", "--block-s", "0.05", "--engine-builds", "1", "--cell-limit-s", "120")
    sweep = (str(HERE / "speedup_sweep.py"), *place, *quick, "--subjects", *pair)
    torch_device = () if on_cpu else ("--device", "cuda:0")

    def swept(
        name: str, runtime: str, network: str, kinds: Sequence[str], sizes: Sequence[str], limit_s: float,
        needs: tuple[str, ...],
    ) -> Step:  # fmt: skip
        words = (
            *sweep, *torch_device, "--networks", network, "--runtimes", runtime,
            "--precisions", *kinds, "--batches", *sizes, "--engine-batches", *batches,
        )  # fmt: skip
        return Step(name=name, words=words, limit_s=limit_s, needs=needs)

    trt, ort = ("tensorrt", "polygraphy"), ("onnxruntime",)
    build = Step(
        name="build the networks",
        words=(str(HERE / "subjects.py"), str(arguments.cache), "--networks", *networks, "--subjects", *pair,
               "--forms", "fp32", "fp16", "int8" if on_cpu else "int8-symmetric"),
        limit_s=150, beside=True,
    )  # fmt: skip
    tests = Step(
        name="tests on the GPU",
        words=("-m", "pytest", "-q", "-x" if on_cpu else "-ra", str(HERE.parent / "tests" / "gpu")),
        limit_s=120,
        needs=("pytest",),
        environment={} if on_cpu else {"REQUIRE_GPU": "1"},
    )
    doctor = Step(name="what the machine offers", words=("-m", "ticket_export", "doctor"), limit_s=30)
    first, last = networks[0], networks[-1]
    if on_cpu:
        measured = [
            swept("ONNX Runtime", "ort-cpu", first, precisions, batches, 120, ort),
            swept("torch, eager", "torch", first, ("fp32",), batches, 60, ("torch",)),
            swept("torch.compile", "torch-compile", first, ("fp32",), ("1",), 90, ("torch",)),
        ]
        paper = _paper(place, first, "cpu", batch="1", rounds="3", limit_s=60)
        return [
            doctor,
            build,
            tests,
            *measured,
            paper,
            _pages(sweep, arguments, networks, precisions, batches),
        ]
    some = ("1", "64")
    measured = [
        swept("TensorRT fp16, ResNet-50", "tensorrt", last, ("fp16",), batches, 110, trt),
        swept("TensorRT, ResNet-18", "tensorrt", first, precisions, batches, 110, trt),
        swept("TensorRT int8, fp32, ResNet-50", "tensorrt", last, ("int8", "fp32"), batches, 150, trt),
        swept("ONNX Runtime CUDA, ResNet-50", "ort-cuda", last, ("fp16", "fp32"), batches, 60, ort),
        swept(
            "torch CUDA graph, ResNet-50", "torch-cudagraph", last, ("fp16", "fp32"), batches, 60, ("torch",)
        ),
        swept("torch eager, ResNet-50", "torch", last, ("fp16", "fp32"), batches, 60, ("torch",)),
        _paper(place, first, "cuda:0", batch="64", rounds="10", limit_s=60),
        swept("ONNX Runtime CUDA, ResNet-18", "ort-cuda", first, precisions, batches, 50, ort),
        swept("torch eager, ResNet-18", "torch", first, ("fp16", "fp32"), batches, 40, ("torch",)),
        swept(
            "torch CUDA graph, ResNet-18", "torch-cudagraph", first, ("fp16", "fp32"), batches, 40, ("torch",)
        ),
        swept("torch.compile, ResNet-18", "torch-compile", first, ("fp16",), some, 60, ("torch", "triton")),
        swept("torch.compile, ResNet-50", "torch-compile", last, ("fp16",), some, 120, ("torch", "triton")),
        swept("ONNX Runtime CUDA int8, ResNet-50", "ort-cuda", last, ("int8",), batches, 60, ort),
    ]
    return [doctor, build, tests, *measured, _pages(sweep, arguments, networks, precisions, batches)]


def _paper(
    place: Sequence[str], network: str, device: str, *, batch: str, rounds: str, limit_s: float
) -> Step:
    words = (
        str(HERE / "paper_protocol.py"), *place, "--network", network, "--device", device,
        "--batch", batch, "--rounds", rounds,
    )  # fmt: skip
    return Step(name="the protocol of the paper", words=words, limit_s=limit_s, needs=("torch",))


def _pages(
    sweep: Sequence[str],
    arguments: argparse.Namespace,
    networks: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[str],
) -> Step:
    on_cpu = arguments.device == "cpu"
    runtimes = ("torch", "torch-compile") if on_cpu else ("torch", "torch-compile", "torch-cudagraph")
    runtimes = ("ort-cpu", *runtimes) if on_cpu else ("tensorrt", "ort-cuda", *runtimes)
    words = (
        *sweep, "--page-only", "--networks", *networks, "--runtimes", *runtimes, "--precisions", *precisions,
        "--batches", *batches,
    )  # fmt: skip
    return Step(name="one page of all cells", words=words, limit_s=30)


def run_all(
    steps: Sequence[Step], total_s: float, folder: Path, arguments: argparse.Namespace
) -> list[Outcome]:
    """Run the steps in order within the total time, and write the page after each."""
    begin_s = time.monotonic()
    outcomes: list[Outcome] = []
    beside: list[Started] = []
    reserve_s = steps[-1].limit_s  # the page of all cells is always written
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        for number, step in enumerate(steps):
            passed_s = time.monotonic() - begin_s
            print(f"{passed_s:4.0f} s  {step.name}", file=sys.stderr, flush=True)
            left_s = total_s - passed_s - (0.0 if step is steps[-1] else reserve_s)
            started = start(step, left_s, logs / f"{number:02}_{_slug(step.name)}.log")
            if isinstance(started, Outcome):
                outcomes.append(started)
            else:
                beside.append(started)
                if step.beside:
                    continue
            while beside:  # timings begin when nothing else runs
                outcomes.append(finish(*beside[-1]))
                beside.pop()
            _write(outcomes, steps, arguments)
    finally:
        for _, process, *_ in beside:
            end_group(process)
    return outcomes


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def _write(outcomes: Sequence[Outcome], steps: Sequence[Step], arguments: argparse.Namespace) -> Path:
    kind = "rehearsal on a CPU" if arguments.device == "cpu" else f"run on {arguments.device}"
    lines = [
        f"# Proof on a GPU: {kind}\n",
        f"`python benchmarks/gpu_proof.py --out FOLDER --device {arguments.device} "
        f"--machine {arguments.machine}`\n",
        f"{sum(outcome.state == 'done' for outcome in outcomes)} of {len(steps)} steps done. "
        "The pages of the steps lie beside this one; whole outputs are in `logs/`.\n",
        "| step | state | s | why |",
        "|---|---|---|---|",
        *(f"| {one.name} | {one.state} | {one.seconds:.0f} | {one.why} |" for one in outcomes),
    ]
    for one in outcomes:
        if one.tail and (one.state != "done" or one.name in ("what the machine offers", "tests on the GPU")):
            lines += ["", f"## {one.name}: {one.state}", "", "```", one.tail, "```"]
    document = {
        "schema": 1,
        "steps": [
            {"name": one.name, "state": one.state, "seconds": one.seconds, "why": one.why} for one in outcomes
        ],
    }
    theme = "gpu_proof_rehearsal" if arguments.device == "cpu" else "gpu_proof"
    return write_results(arguments.out, theme, arguments.machine, "\n".join(lines) + "\n", document)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all results")
    parser.add_argument("--cache", type=Path, default=Path("out/subjects"), help="folder of built networks")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--total-s", type=float, default=TOTAL_S, help="seconds for everything")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and run none")
    arguments = parser.parse_args()
    steps = steps_of(arguments)
    if arguments.dry_run:
        for step in steps:
            missing = [name for name in step.needs if find_spec(name) is None]
            print(f"{step.name}: at most {step.limit_s:g} s" + (f", lacks {missing}" if missing else ""))
            print(f"    python {shlex.join(step.words)}")
        return
    outcomes = run_all(steps, arguments.total_s, arguments.out, arguments)
    print(json.dumps({one.name: one.state for one in outcomes}, indent=1))
    sys.exit(0 if all(one.state in ("done", "skipped") for one in outcomes) else 1)


if __name__ == "__main__":
    main()
