"""Accuracy against measured latency: all networks of several runs, timed anew in the same rounds, one figure.

Run:  python benchmarks/frontier.py --runs out/runs/A out/runs/B --out benchmarks/results --machine NAME
      ... --runs refill=out/runs/A supernet=out/runs/B --pair supernet:ticket@1 refill:ticket@1

Accuracies and files come from the runs' reports and the stores beside them; a network that runs share is one.
All networks are timed in one interleaved run per batch, the dense one of the first run as the baseline. Where
the replicates of a network have equal widths, one of them is timed for all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fronts.figure import draw
from fronts.page import names_of, page
from fronts.pairs import pair_json, pair_line
from fronts.reading import DENSE, Collected, Source, accuracies_of, collect
from fronts.timing import Timed, label_of, representatives
from result_files import write_results

import ticket_export as te
from ticket_export.errors import MeasureError, TicketExportError
from ticket_export.report.front import Point, front_line, front_of
from ticket_export.report.intervals import Spread
from ticket_export.report.verdict import paired_verdict


def timed(collected: Collected, batch: int, arguments: argparse.Namespace) -> Timed:
    """Return the timings of all networks at a batch, taken in the same rounds."""
    stands_for = representatives(collected.networks)
    paths = {(network.name, network.replicate): network.path for network in collected.networks}
    chosen = sorted(dict.fromkeys(stands_for.values()), key=lambda key: key[0] != DENSE)  # the baseline first
    comparison = te.compare(
        {label_of(key): paths[key] for key in chosen},
        runtime=arguments.runtime,
        batch=batch,
        scope=arguments.scope,
        threads=arguments.threads,
        rounds=arguments.rounds,
        samples=arguments.samples,
        on_round=lambda done, rounds: print(f"batch {batch}: round {done} of {rounds}", file=sys.stderr),
    )
    return Timed(comparison=comparison, timed=stands_for)


def batch_json(document: Mapping[str, Any], of_batch: Timed, batch: int) -> dict[str, Any]:  # Any: JSON
    """Return what one batch shows: latencies, speedups over dense, the front."""
    rows = [row for row in document["rows"] if row["batch"] == batch]
    points = [
        Point(
            subject=name,
            accuracies=accuracies_of(document["networks"], name),
            latency_s=of_batch.latency_of(name),
        )
        for name in names_of(document)
    ]
    front = front_of(points, of_batch.speedup_of, one_image=1 / document["num_test_images"])
    where = f"{document['runtime']}, {document['precision']}, batch {batch}"
    return {
        "batch": batch,
        "networks": [
            {
                "name": point.subject,
                "latency_s": spread_json(point.latency_s),
                "speedup": spread_json(of_batch.speedup_of(point.subject, DENSE)),
                "stable": all(row["stable"] for row in rows if row["subject"] == point.subject),
            }
            for point in points
        ],
        "front": front.to_json(),
        "front_line": front_line(where, front),
    }


def spread_json(spread: Spread) -> dict[str, float]:
    """Return a spread as JSON values."""
    return {end: getattr(spread, end) for end in ("mean", "low", "high")}


def document_of(
    collected: Collected, by_batch: Mapping[int, Timed], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return everything that was measured as JSON; paths are left out, they are the machine's."""
    first = next(iter(by_batch.values()))
    fields = ("name", "kind", "dense", "replicate", "accuracy", "param_density", "mac_density")
    baseline = first.comparison.measurements[first.comparison.baseline]
    machine = first.comparison.machine
    document: dict[str, Any] = {  # Any: JSON
        "schema": 1,
        "title": arguments.title,
        "machine": dict(machine),
        "device": machine["cpu"] if baseline.device == "cpu" else ", ".join(machine["gpus"]),
        "runtime": baseline.runtime,
        "precision": baseline.precision,
        "accuracy_by": arguments.accuracy_by,
        "num_test_images": collected.num_test_images,
        "runs": list(folders_of(arguments)),
        "networks": [
            {field: getattr(network, field) for field in fields}
            | {"timed_as": first.timed[network.name, network.replicate][1]}
            for network in collected.networks
        ],
        "rows": [row for of_batch in by_batch.values() for row in of_batch.rows()],
    }
    document["batches"] = [batch_json(document, of_batch, batch) for batch, of_batch in by_batch.items()]
    document["pairs"] = pairs_json(document, collected, by_batch, arguments.pair)
    return document


def pairs_json(
    document: Mapping[str, Any],  # Any: JSON
    collected: Collected,
    by_batch: Mapping[int, Timed],
    pairs: Sequence[tuple[str, str]],
) -> list[dict[str, Any]]:
    """Return every asked comparison at every batch."""
    found = []
    for one, other in pairs:
        names = [collected.name_of(given) for given in (one, other)]
        verdict = paired_verdict(
            *[(name, accuracies_of(document["networks"], name)) for name in names],
            runtime="",
            precision="",
            one_image=1 / collected.num_test_images,
        )
        found += [pair_json(of_batch, verdict, batch) for batch, of_batch in by_batch.items()]
    return found


def folders_of(arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of the runs by what they are called: a given name, or that of the folder.

    Raises:
        MeasureError: two are called the same.
    """
    found: dict[str, Path] = {}
    for text in arguments.runs:
        name, equals, path = text.rpartition("=")
        folder = Path(path)
        name = name if equals else folder.name
        if name in found:
            raise MeasureError(
                f"two runs are called {name!r}: {found[name]} and {folder}", hint="name them: NAME=FOLDER"
            )
        found[name] = folder
    return found


def command_of(a: argparse.Namespace) -> str:
    """Return the command that makes these results again: every number is told, folders are not."""
    runs = " ".join(f"{name}=OUT/runs/{folder.name}" for name, folder in folders_of(a).items())
    pairs = "".join(f" --pair {one} {other}" for one, other in a.pair)
    samples = "" if a.samples is None else f" --samples {a.samples}"
    return (
        f"python benchmarks/frontier.py --runs {runs} --out FOLDER --machine {a.machine} --theme {a.theme} "
        f"--title '{a.title}' --runtime {a.runtime} --precision {a.precision} --accuracy-by {a.accuracy_by} "
        f"--batches {' '.join(map(str, a.batches))} --scope {a.scope} --threads {a.threads} "
        f"--rounds {a.rounds}{samples}{pairs}"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--runs", nargs="+", required=True, metavar="[NAME=]OUT/runs/NAME", help="finished runs"
    )
    parser.add_argument(
        "--pair", nargs=2, action="append", default=[], metavar=("RUN:SUBJECT", "RUN:SUBJECT")
    )
    parser.add_argument("--out", type=Path, required=True, help="where the page goes")
    parser.add_argument("--machine", required=True, help="short, as in epyc-2core")
    parser.add_argument("--theme", default="frontier", help="the page's name")
    parser.add_argument("--title", default="all networks of the runs", help="data set and network, in words")
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "int8"))
    parser.add_argument(
        "--accuracy-by", help="the runtime that the reports' accuracies are by; --runtime if not told"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--scope", default="compute", choices=("compute", "end_to_end"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--samples", type=int, help="timings per network and round; about 12 s of rounds if not told"
    )
    parser.add_argument("--load", default="not told", help="what else ran, in words")
    arguments = parser.parse_args()
    arguments.accuracy_by = arguments.accuracy_by or arguments.runtime
    return arguments


def run(arguments: argparse.Namespace) -> None:
    source = Source(
        runtime=arguments.runtime, precision=arguments.precision, accuracy_by=arguments.accuracy_by
    )
    collected = collect(folders_of(arguments), source)
    for pair in arguments.pair:
        for given in pair:
            collected.name_of(given)  # refused before minutes of timing
    by_batch = {batch: timed(collected, batch, arguments) for batch in sorted(set(arguments.batches))}
    document = document_of(collected, by_batch, arguments)
    text = page(document, command_of(arguments), arguments.load)
    written = write_results(arguments.out, arguments.theme, arguments.machine, text, document)
    for batch in document["batches"]:
        print(batch["front_line"])
    for pair in document["pairs"]:
        print(pair_line(pair))
    for path in [written, *draw(document, written.with_suffix(""))]:
        print(path)


def main() -> int:
    try:
        run(parsed())
    except TicketExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
