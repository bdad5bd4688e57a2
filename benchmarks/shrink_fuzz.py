"""Random networks under the exact shrink, thousands of them: what is in them, the worst error, what fails.

Run:  python benchmarks/shrink_fuzz.py --out FOLDER [--num 5000] [--minutes M] [--results benchmarks/results]

A seed gives a network, its zeros and its inputs (tests/shrink/random_networks.py). It is shrunk, and run
beside the given one in float64 on inputs that the shrink has not seen, at batch 1 and 3 and at a second
resolution where the network accepts one. Every network is a line of FOLDER/networks.jsonl as soon as it is
done; run again, and the seeds that are missing follow. `--retry` runs those again that failed. `--results`
writes `shrink_fuzz_<machine>_<yyyy-mm>.md` and `.json` there, over the lines of this commit; with
`--any-commit` those of other commits count too, and the page tells how many each has.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import io
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shrink"))

from random_networks import BAR, check, random_network

from ticket_export.store.machine import machine_facts

Row = dict[str, Any]  # Any: JSON


def facts_of(seed: int) -> Row:
    """Return what the check of one network saw; whatever it raises is a failure of that network."""
    start_s = time.perf_counter()
    drawn = random_network(seed)
    row: Row = {"seed": seed, "kinds": list(drawn.kinds), "num_params": _num_params(drawn.net)}
    row["options"] = drawn.options
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch prints the graph of a failing forward there
            outcome = check(drawn.net, drawn.inputs, seed=seed, **drawn.options)
    except Exception as error:
        row |= {"status": "failed", "error": _words(error), "network": drawn.words()}
    else:
        report = outcome.shrunk.report
        row |= {
            "status": "exact",
            "form": report.form,
            "rel_error": outcome.error,
            "num_trials": outcome.num_trials,
            "num_params_small": report.params,
            "num_folds": report.num_folds,
            "num_carriers": report.num_carriers,
            "num_terms": report.num_terms,
            "open_size": report.open_size,
            "unknown_ops": list(report.unknown_ops),
        }
    row["wall_s"] = round(time.perf_counter() - start_s, 4)
    return row


def _num_params(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _words(error: Exception) -> str:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "ticket_export" in frame.filename]
    place = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}{place}: {error}"


def commit() -> str:
    """Return the commit the code stands at, with a mark where tracked files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def read(file: Path, at_commit: str | None) -> dict[int, Row]:
    """Return the newest row of every seed, made at a commit or at any; a line cut short is not counted."""
    rows: dict[int, Row] = {}
    if file.is_file():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(text)
            except json.JSONDecodeError:
                continue
            if at_commit in (None, row["commit"]):
                earlier = rows.get(row["seed"])
                if earlier is not None and earlier["status"] != "exact":
                    row["failed_before"] = f"{earlier['error'].splitlines()[0]} (at {earlier['commit']})"
                rows[row["seed"]] = row
    return rows


def run(file: Path, seeds: Iterable[int], at_commit: str, ends_s: float) -> None:
    """Append a row per seed to the file until the seeds or the time are used up."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # tracing makes millions of short-lived objects: collecting often takes a third of the time
    gc.freeze()
    gc.disable()
    with file.open("a", encoding="utf-8") as stream:
        for num_done, seed in enumerate(seeds):
            if time.monotonic() > ends_s:
                return
            row = facts_of(seed) | {"commit": at_commit}
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            if row["status"] != "exact":
                print(f"seed {seed}: {row['error'].splitlines()[0][:150]}", flush=True)
            if num_done % 20 == 19:
                gc.collect()
            if num_done % 100 == 99:
                print(f"{num_done + 1} networks", flush=True)


# ---------------------------------------------------------------------- results


def summary(rows: list[Row], command: str) -> Row:
    """Return the whole run as JSON: what was in the networks, what came out, and every failure."""
    exact = [row for row in rows if row["status"] == "exact"]
    failed = [row for row in rows if row["status"] != "exact"]
    kinds = Counter(kind for row in rows for kind in row["kinds"])
    containing = Counter(kind for row in rows for kind in set(row["kinds"]))
    errors, walls_s = [row["rel_error"] for row in exact], [row["wall_s"] for row in rows]
    return {
        "schema": 1,
        "command": command,
        "commits": dict(Counter(row["commit"] for row in rows)),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": machine_facts(),
        "versions": {name: metadata.version(name) for name in ("torch", "ticket-export")}
        | {"python": platform.python_version()},
        "num_networks": len(rows),
        "seeds": [min(row["seed"] for row in rows), max(row["seed"] for row in rows)],
        "num_exact": len(exact),
        "num_trials": sum(row["num_trials"] for row in exact),
        "bar": BAR,
        "rel_error_max": max(errors, default=None),
        "rel_error_median": statistics.median(errors) if errors else None,
        "forms": dict(Counter(row["form"] for row in exact)),
        "num_smaller": sum(row["num_params_small"] < row["num_params"] for row in exact),
        "params_dense": sum(row["num_params"] for row in exact),
        "params_small": sum(row["num_params_small"] for row in exact),
        "num_with_folds": sum(row["num_folds"] > 0 for row in exact),
        "num_with_carriers": sum(row["num_carriers"] > 0 for row in exact),
        "num_with_terms": sum(row["num_terms"] > 0 for row in exact),
        "num_with_one_size": sum(not row["open_size"] for row in exact),
        "options": dict(Counter(f"{k}={v}" for row in rows for k, v in row["options"].items())),
        "unknown_ops": dict(Counter(name for row in exact for name in row["unknown_ops"])),
        "layers": {kind: [kinds[kind], containing[kind]] for kind, _ in kinds.most_common()},
        "wall_s": {"sum": round(sum(walls_s), 1), "median": statistics.median(walls_s), "max": max(walls_s)},
        "failures": [{key: row[key] for key in ("seed", "error", "network")} for row in failed],
        "failed_before": {str(row["seed"]): row["failed_before"] for row in exact if "failed_before" in row},
        "largest_errors": sorted(((row["rel_error"], row["seed"]) for row in exact), reverse=True)[:10],
    }


def page(facts: Row) -> str:
    """Return the summary as Markdown."""
    machine = facts["machine"]
    lines = [
        "# Random networks under the exact shrink",
        "",
        f"{facts['num_exact']:,} of {facts['num_networks']:,} random networks are shrunk exactly; "
        f"{len(facts['failures'])} fail. Seeds {facts['seeds'][0]} to {facts['seeds'][1]}, {facts['date']}; "
        + ", ".join(f"{count:,} at commit {name}" for name, count in facts["commits"].items()),
        "",
        f"- Command: `{facts['command']}`",
        f"- Machine: {machine.get('cpu', platform.processor())}, one thread, other work beside it; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"- Bar: max|a - b| / max|b| <= {facts['bar']:g} in float64, over {facts['num_trials']:,} trials at "
        "batch 1 and 3 and, where the network accepts it, a second resolution",
        f"- Largest error: {facts['rel_error_max']:.2g}; median {facts['rel_error_median']:.2g}",
        "- Form: " + ", ".join(f"{form} {count:,}" for form, count in facts["forms"].items()),
        f"- {facts['num_smaller']:,} networks became smaller; all together {facts['params_dense']:,} -> "
        f"{facts['params_small']:,} parameters; {facts['num_with_folds']:,} with folded constants, "
        f"{facts['num_with_carriers']:,} with a carrier, {facts['num_with_terms']:,} with an added term",
        "- Options of the shrink: none but in "
        + ", ".join(f"{count:,} `{option}`" for option, count in sorted(facts["options"].items())),
        f"- {facts['num_with_one_size']:,} results say that they take the given height and width alone",
        f"- Seconds per network: median {facts['wall_s']['median']:.2f}, "
        f"largest {facts['wall_s']['max']:.1f}, {facts['wall_s']['sum'] / 60:.0f} minutes in all",
        "- Operations the analysis does not know (their channels stay): "
        + (", ".join(f"{name} {count}" for name, count in sorted(facts["unknown_ops"].items())) or "none"),
        "",
        "## What was in them",
        "",
        tabulate(
            [[kind, *counts] for kind, counts in facts["layers"].items()],
            headers=["kind", "layers", "networks with it"],
            tablefmt="github",
        ),
        "",
        "## Failures",
        "",
    ]
    lines += [
        f"- seed {failure['seed']}: {failure['error'].splitlines()[0]}" for failure in facts["failures"]
    ] or ["None."]
    if facts["failed_before"]:
        lines += ["", "Exact now, and a failure at an earlier commit of this run:", ""]
        lines += [f"- seed {seed}: {error}" for seed, error in facts["failed_before"].items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Run the seeds that are missing, then write the results where they are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no network after these")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--any-commit", action="store_true", help="count what other commits did too")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--machine", default="epyc-2core")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file, at_commit = arguments.out / "networks.jsonl", commit()
    counted = None if arguments.any_commit else at_commit
    wanted = range(arguments.first, arguments.first + arguments.num)
    known = read(file, counted)
    done = {seed for seed, row in known.items() if row["status"] == "exact" or not arguments.retry}
    missing = [seed for seed in wanted if seed not in done]
    run(file, missing, at_commit, time.monotonic() + 60 * arguments.minutes)
    rows = [row for seed, row in sorted(read(file, counted).items()) if seed in wanted]
    command = f"python benchmarks/shrink_fuzz.py --num {arguments.num} --first {arguments.first}"
    command += " --any-commit --retry" if arguments.any_commit else ""
    facts = summary(rows, command)
    print(page(facts))
    if arguments.results is not None:
        stem = arguments.results / f"shrink_fuzz_{arguments.machine}_{facts['date'][:7]}"
        stem.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(page(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
