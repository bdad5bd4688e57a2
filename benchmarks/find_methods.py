"""Every finder on one network and data set: accuracy against measured latency, and what each search cost.

Run:  python benchmarks/find_methods.py --data cifar10.npz --out benchmarks/results --machine NAME

Each finder is a recipe made from recipes/cifar10_resnet20.yaml with another `find` section; all share one
store, so the dense network and the pruning chain are trained once. Accuracies, search costs and files come
from their reports; the latencies are then taken anew, all networks of a replicate in one interleaved run.
Killed, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from finding.figure import draw
from finding.page import page
from finding.variants import VARIANTS, Variant
from result_files import write_results

import ticket_export as te
from ticket_export.recipe.load import recipe_from_yaml
from ticket_export.store.machine import machine_facts

ROOT = Path(__file__).parents[1]
BASE = ROOT / "recipes" / "cifar10_resnet20.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One network of one replicate: what it reaches, what it costs, where its file is."""

    name: str
    replicate: int
    accuracy: float
    param_density: float
    mac_density: float
    time_ratio: float | None
    macs_ratio: float
    path: Path


def recipe_of(variant: Variant, arguments: argparse.Namespace) -> te.Recipe:
    """Return the base recipe with the variant's finder, at the size asked for."""
    plain = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    plain["name"] = f"methods_{variant.name}"
    plain["replicates"] = arguments.replicates
    plain["data"] |= {"path": str(arguments.data), "train_limit": arguments.train_limit}
    for name in ("milestones", "gamma"):  # one cycle reaches more in few epochs
        del plain["train"][name]
    plain["train"] |= {
        **{"epochs": arguments.epochs, "batch": 64, "schedule": "one_cycle", "warmup_epochs": 1},
        **{"precision": arguments.precision, "channels_last": True},
    }
    plain["find"] = {"rewind_epoch": 1, **variant.find}
    plain["measure"] |= {"batches": [1], "rounds": 5, "samples": 5}
    return recipe_from_yaml(yaml.safe_dump(plain), source=variant.name)


def run_variant(variant: Variant, arguments: argparse.Namespace) -> list[Found]:
    """Run one recipe, or what of it is not done, and return dense, its ticket and its controls."""

    def tell(event: Mapping[str, Any]) -> None:  # Any: JSON
        if event["event"] == "done" and event["stage"] in ("train", "report"):
            print(
                f"{variant.name}: {event['stage']} {event['subject']} #{event['replicate']}", file=sys.stderr
            )

    recipe = recipe_of(variant, arguments)
    report = te.run(recipe, arguments.work, workers=arguments.workers, emit=tell)
    assert report is not None  # it is run to the end
    costs = {(cost.subject, cost.replicate): cost for cost in report.search_costs}
    files = {(file.subject, file.replicate): file.path for file in report.exported}
    found = []
    for row in report.rows:
        name = variant.row_name(row["subject"])
        if name is not None:
            key = row["subject"], row["replicate"]
            found.append(
                Found(
                    name=name,
                    replicate=row["replicate"],
                    **{field: row[field] for field in ("accuracy", "param_density", "mac_density")},
                    time_ratio=costs[key].time_ratio,
                    macs_ratio=costs[key].macs_ratio,
                    path=Path(arguments.work) / "store" / files[key],
                )
            )
    return found


def timed(found: Sequence[Found], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Yield the rows of every replicate and batch, all of its subjects timed in one interleaved run."""
    for replicate in sorted({one.replicate for one in found}):
        own = [one for one in found if one.replicate == replicate]
        own.sort(key=lambda one: one.name != "dense")  # the first is the baseline
        for batch in arguments.batches:
            comparison = te.compare(
                {one.name: one.path for one in own}, batch=batch, samples=arguments.samples
            )
            for row in comparison.rows:
                yield {**row, "replicate": replicate}


def document_of(found: Sequence[Found], rows: Sequence[dict[str, Any]], machine: object) -> dict[str, Any]:
    """Return everything that was measured as JSON; paths are left out, they are the machine's."""
    networks = [{field: getattr(one, field) for field in Found.__slots__ if field != "path"} for one in found]
    return {"schema": 1, "machine": machine, "networks": networks, "rows": list(rows)}


def command_of(a: argparse.Namespace, chosen: Sequence[Variant]) -> str:
    """Return the command that makes these results again: every number is told, folders are not."""
    return (
        f"python benchmarks/find_methods.py --data {a.data.name} --out FOLDER --machine {a.machine} "
        f"--theme {a.theme} --train-limit {a.train_limit} --epochs {a.epochs} --replicates {a.replicates} "
        f"--workers {a.workers} --precision {a.precision} --only {' '.join(one.name for one in chosen)} "
        f"--batches {' '.join(map(str, a.batches))} --samples {a.samples}"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the .npz of CIFAR-10")
    parser.add_argument("--work", type=Path, default=Path("out/methods"), help="the store of all recipes")
    parser.add_argument("--out", type=Path, required=True, help="where the page goes")
    parser.add_argument("--machine", required=True, help="short, as in epyc-2core")
    parser.add_argument("--theme", default="find_methods_cifar10_resnet20", help="the page's name")
    parser.add_argument("--train-limit", type=int, default=10000, help="training images; 0 = all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--samples", type=int, default=20, help="timings per subject and round")
    parser.add_argument("--load", default="not told", help="what else ran, in words")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    chosen = [v for v in VARIANTS if arguments.only is None or v.name in arguments.only]
    found: dict[tuple[str, int], Found] = {}
    for variant in chosen:
        found |= {(one.name, one.replicate): one for one in run_variant(variant, arguments)}
    rows = list(timed(list(found.values()), arguments))
    document = document_of(list(found.values()), rows, machine_facts())
    text = page(document, command_of(arguments, chosen), arguments.load)
    written = write_results(arguments.out, arguments.theme, arguments.machine, text, document)
    for path in [written, *draw(document, written.with_suffix(""))]:
        print(path)


if __name__ == "__main__":
    main()
