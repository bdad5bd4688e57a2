"""Measured speedup against MAC ratio for every cell of a sweep, the ideal line, each point with its cause.

Run:  python benchmarks/speedup_figure.py RESULT.json [RESULT.json ...] --out FIGURE [--title WORDS]

Reads what speedup_sweep.py wrote and writes FIGURE.svg and FIGURE.png. Of several sweeps over one cell the
first is drawn; the baseline and its control (dense against itself) are not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speedup.plots import Point, speedup_against_macs, write_figure

MANY_SUBJECTS = 3  # above, a panel holds one batch and points are labelled by subject


def points_of(documents: Sequence[dict[str, Any]]) -> list[Point]:  # Any: JSON
    """Return the points of all cells that were measured, sweep 1 alone."""
    rows = [
        (document["cell"], row)
        for document in documents
        if document["state"] == "done" and document["cell"]["turn"] == 1
        for row in document["rows"]
        if row["speedup"] is not None and row["subject"] != "dense-again"
    ]
    many = len({row["subject"] for _, row in rows}) > MANY_SUBJECTS
    points = []
    for cell, row in rows:
        panel = f"{cell['network']}, {cell['runtime']}, {cell['precision']}"
        size = f"batch {cell['batch']}"
        points.append(
            Point(
                panel=f"{panel}, {size}" if many else panel,
                subject=row["subject"],
                label=row["subject"].removeprefix("ticket-") if many else size,
                macs_ratio=row["macs_ratio"],
                ratio=row["speedup"]["ratio"],
                low=row["speedup"]["low"],
                high=row["speedup"]["high"],
                cause=(row.get("cause") or {}).get("kind", "unknown"),
            )
        )
    return points


def draw(
    documents: Sequence[dict[str, Any]], stem: Path, title: str | None = None
) -> list[Path]:  # Any: JSON
    """Write the figure of all measured cells as `stem`.svg and .png and return the paths, if any."""
    points = points_of(documents)
    if not points:
        return []
    document = next(document for document in documents if document["state"] == "done")
    machine, where = document["machine"], document["device"]
    figure = speedup_against_macs(
        points,
        title or f"{machine['cpu']}, {machine['num_usable_cores']} cores, measured on {where}",
        "r8: kept widths are multiples of 8; bar: 95 % interval; colour: cause, by the runtime's own profile",
    )
    return write_figure(figure, stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="path of the figure without its ending")
    parser.add_argument("--title", help="[default: the machine]")
    arguments = parser.parse_args()
    documents = [
        document
        for path in arguments.results
        for document in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    paths = draw(documents, arguments.out, arguments.title)
    if not paths:
        print(f"{', '.join(map(str, arguments.results))}: no cell is measured", file=sys.stderr)
        sys.exit(1)
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
