"""The paper's table of CIFAR-10 ResNet-18 channel tickets at full size on one GPU, in pieces of minutes.

Run:  python benchmarks/gpu_tickets.py --data cifar10.npz --out benchmarks/results --machine h200
      ... --device cpu             a rehearsal: every part at toy size on a CPU
      ... --dry-run                the runs, what is left of them, and their commands

Each run is a `ticket-export run` in a process of its own, interrupted when the minutes are used up. The same
command goes on from there: what is finished is in the store below `--work`, which is to be kept between the
pieces. The page is written after every run from the reports that are finished, and names what is not. Exit
code: 0 when all is finished, 130 when the same command goes on, 1 when a run has failed.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from result_files import write_results
from step_processes import Outcome, Step, end_group, finish, start
from tickets.page import WISHED_EPOCH_S, page
from tickets.reading import Work, num_epochs_left
from tickets.recipes import FULL, PARTS, TOY, Run, runs_of

from ticket_export.errors import TicketExportError
from ticket_export.recipe.dump import yaml_from_recipe
from ticket_export.runtime.offers import READY, offer
from ticket_export.store.machine import machine_facts

PROGRAM = ("-m", "ticket_export", "run")
MINUTES = 8.5
STOPPED = 130  # what `ticket-export run` exits with after an interrupt, and this too when there is more to do
GRACE_S = 15.0  # an epoch's last kernels, locks given back
GPU_RUNTIMES = ("ort-cuda", "torch-cudagraph")
GO_ON = "the minutes are used up; the same command goes on from here"


def runtimes_here(device: str) -> list[str]:
    """Return what networks are timed in: what of the GPU's runtimes is installed, else the CPU's."""
    if device != "cpu":
        ready = [
            name for name in GPU_RUNTIMES if offer(name, has_gpu=True).state_by_precision["fp32"] == READY
        ]
        if ready:
            return ready
    return ["ort-cpu"]


def step_of(run: Run, arguments: argparse.Namespace) -> Step:
    """Return the process of a run."""
    words = (
        *PROGRAM, str(recipe_path(run, arguments)), "--out", str(arguments.work),
        "--device", arguments.device, "--workers", "1",
    )  # fmt: skip
    until = () if run.part.until == "report" else ("--until", run.part.until)
    return Step(
        name=run.name,
        words=(*words, *until),
        limit_s=math.inf,  # what is left of the minutes limits it
        stopped_code=STOPPED,
        grace_s=GRACE_S,
    )


def recipe_path(run: Run, arguments: argparse.Namespace) -> Path:
    """Return where the recipe of a run is written."""
    return Path(arguments.work) / "recipes" / f"{run.name}.yaml"


def write_recipes(work: Work, arguments: argparse.Namespace) -> None:
    """Write the recipe of every run, so that each can be run by hand too."""
    for run in work.runs:
        path = recipe_path(run, arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml_from_recipe(run.recipe), encoding="utf-8")


def run_all(work: Work, arguments: argparse.Namespace) -> dict[str, Outcome]:
    """Go on with the runs in order until the minutes are used up, and write the page after each."""
    begin_s = time.monotonic()
    logs = Path(arguments.work) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    for run in work.runs:
        if work.is_finished(run):
            continue
        passed_s = time.monotonic() - begin_s
        print(f"{passed_s:4.0f} s  {run.name}", file=sys.stderr, flush=True)
        outcome = go_on(run, 60.0 * arguments.minutes - passed_s, logs / f"{run.name}.log", arguments)
        outcomes[run.name] = outcome
        write_page(work, outcomes, arguments)
        if outcome.state in ("out of time", "skipped"):  # skipped: too little was left to begin
            break
    return outcomes


def go_on(run: Run, left_s: float, log: Path, arguments: argparse.Namespace) -> Outcome:
    """Go on with one run for as long as there is time."""
    started = start(step_of(run, arguments), left_s, log)
    if isinstance(started, Outcome):
        return started
    try:
        return finish(*started)
    finally:
        end_group(started[1], GRACE_S)


def write_page(work: Work, outcomes: Mapping[str, Outcome], arguments: argparse.Namespace) -> Path:
    """Write the page and its numbers of what is finished by now."""
    rehearsal = arguments.device == "cpu"
    document = {
        "schema": 1,
        "command": command_of(arguments),
        "rehearsal": rehearsal,
        "machine": machine_facts(),
        "runs": [work.told(run) | state_of(outcomes.get(run.name)) for run in work.runs],
    }
    for told in document["runs"]:
        if told["finished"]:
            told["state"] = "finished"
    theme = "gpu_tickets_rehearsal" if rehearsal else "gpu_tickets"
    out: Path = arguments.out
    return write_results(out, theme, arguments.machine, page(document), document)


def state_of(outcome: Outcome | None) -> dict[str, str]:
    """Return how a run stands after this piece, where it is not finished."""
    if outcome is None:
        return {"state": "not finished", "why": ""}
    if outcome.state == "failed":
        last = outcome.tail.splitlines()[-1:]
        return {"state": "failed", "why": "; ".join([outcome.why, *last])}
    return {"state": "not finished", "why": outcome.why}


def command_of(arguments: argparse.Namespace) -> str:
    """Return the command that makes the page again; folders are not told."""
    only = f" --only {' '.join(arguments.only)}" if arguments.only else ""
    return (
        f"python benchmarks/gpu_tickets.py --data {arguments.data.name} --out FOLDER --machine "
        f"{arguments.machine} --device {arguments.device} --runtimes {' '.join(arguments.runtimes)}{only}"
    )


def tell_plan(work: Work, arguments: argparse.Namespace) -> None:
    """Print every run with what is left of it."""
    seen: set[str] = set()
    total = 0
    for run in work.runs:
        nodes = work.nodes(run)
        num_epochs = num_epochs_left(work, run, seen)
        total += num_epochs
        done = sum(work.is_there(node) for node in nodes)
        print(f"{run.name}: {done} of {len(nodes)} results are there, {num_epochs} epochs to train")
        print(f"    python {shlex.join(step_of(run, arguments).words)}")
    hours = total * WISHED_EPOCH_S / 3600
    print(
        f"{total} epochs to train; at {WISHED_EPOCH_S:g} s each {hours:.1f} hours, without the measurements"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the .npz of CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("out/gpu_tickets"), help="the store of all runs")
    parser.add_argument("--out", type=Path, required=True, help="where the page goes")
    parser.add_argument("--machine", required=True, help="short, as in h200")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for this piece")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu rehearses at toy size")
    parser.add_argument("--runtimes", nargs="+", help="[default: what is here]")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts")
    parser.add_argument("--dry-run", action="store_true", help="tell what is left and run nothing")
    arguments = parser.parse_args()
    if arguments.runtimes is None:
        arguments.runtimes = runtimes_here(arguments.device)
    return arguments


def main() -> None:
    arguments = parsed()
    # A shell that starts this in the background has it ignore interrupts, and so would its runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    size = TOY if arguments.device == "cpu" else FULL
    try:
        work = Work(
            folder=arguments.work, runs=runs_of(size, arguments.data, arguments.runtimes, arguments.only)
        )
        if arguments.dry_run:
            tell_plan(work, arguments)
            return
        write_recipes(work, arguments)
        print(write_page(work, {}, arguments))
        outcomes = run_all(work, arguments)
    except TicketExportError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("stopped; nothing is lost: the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)
    failed = [name for name, outcome in outcomes.items() if outcome.state == "failed"]
    for name in failed:
        print(f"{name} failed: {outcomes[name].why}\n{outcomes[name].tail}", file=sys.stderr)
    unfinished = [run.name for run in work.runs if not work.is_finished(run)]
    if set(unfinished) - set(failed):
        print(f"{GO_ON}: {len(unfinished)} of {len(work.runs)} runs are not finished", file=sys.stderr)
        sys.exit(STOPPED)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
