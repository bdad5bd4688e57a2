"""What group-wise zeros gain in one layer: blocks of whole channels, grouped, and kernel taps, beside dense.

    python benchmarks/regroup_forms.py --out benchmarks/results --machine NAME

Each network is a chain of 3x3 convolutions with ReLU, width to width, whose weights are zero outside of
blocks: the rows in G equal groups, each with its own share of the columns. It is written in four forms that
compute the same:

- `dense`: the convolution with its zeros; zeros cost what weights cost, so one is timed for all densities.
- `blocks`: for each group a Gather of its input channels and a Conv, then Concat.
- `grouped`: one Gather of the channels of all groups, one grouped Conv.
- `taps`: the columns are single kernel taps. Pad and Slice unfold the image, Gather takes the taps of each
  group, and a batched MatMul (`taps`) or a grouped 1x1 Conv (`taps_conv`) multiplies.

All forms of one shape and batch are timed in the same interleaved rounds, after each was found equal to the
convolution with its zeros.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from regroup_graphs import CHANNEL_FORMS, FORMS, TAP_FORMS, random_layer, write_network
from result_files import write_results
from tabulate import tabulate

from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import mean_interval, speedup
from ticket_export.runtime.registry import open_runner
from ticket_export.runtime.runner import Runner
from ticket_export.store.machine import machine_facts

TOLERANCE = 1e-4  # of fp32 sums in another order


def checked_networks(
    arguments: argparse.Namespace, width: int, size: int, folder: Path
) -> dict[tuple[str, float, int], Path]:
    """Write every form at every density and number of groups, each found equal to the dense convolution."""
    paths = {}
    for density in arguments.densities:
        for groups in arguments.groups:
            for form in FORMS:
                layers = [
                    random_layer(width, groups, density, whole_channels=form in CHANNEL_FORMS, seed=seed)
                    for seed in range(arguments.depth)
                ]
                path = folder / f"{form}_{density}_{groups}.onnx"
                write_network(path, form, layers, size=size)
                dense = write_network(folder / "dense.onnx", "dense", layers, size=size)
                error = largest_error(path, dense, width, size)
                if not error <= TOLERANCE:
                    raise SystemExit(
                        f"{path.stem} at {width}x{size}x{size} differs from dense by {error:.2e}"
                    )
                paths[form, density, groups] = path
    paths["dense", 1.0, 1] = folder / "dense.onnx"
    return paths


def largest_error(path: Path, dense: Path, width: int, size: int) -> float:
    """Return max|a - b| / max|b| of two networks on two images of noise."""
    x = np.random.default_rng(0).standard_normal((2, width, size, size)).astype(np.float32)
    with open_runner(path, "ort-cpu") as a, open_runner(dense, "ort-cpu") as b:
        got, expected = a.infer({"input": x})["logits"], b.infer({"input": x})["logits"]
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def timed(
    arguments: argparse.Namespace, paths: Mapping[tuple[str, float, int], Path], batch: int
) -> dict[tuple[str, float, int], Measurement]:
    """Return the measurement of every network, all timed in the same rounds."""
    protocol = Protocol(rounds=arguments.rounds, threads=arguments.threads, block_s=arguments.block_s)
    with ExitStack() as stack:
        runners: dict[str, Runner] = {
            " ".join(map(str, subject)): stack.enter_context(
                open_runner(path, arguments.runtime, threads=arguments.threads, batches=(batch,))
            )
            for subject, path in paths.items()
        }
        found = measure_interleaved(runners, batch=batch, protocol=protocol)
    return {subject: found[" ".join(map(str, subject))] for subject in paths}


def cells_of(
    found: Mapping[tuple[str, float, int], Measurement], *, width: int, size: int, batch: int, depth: int
) -> list[dict[str, Any]]:  # Any: JSON
    """Return the numbers of every form: seconds of a layer, and how much faster than dense."""
    dense = found["dense", 1.0, 1]
    cells = []
    for (form, density, groups), measured in found.items():
        if form == "dense":
            continue
        gain = speedup(dense, measured)
        cell = {
            "width": width, "size": size, "batch": batch, "density": density, "groups": groups, "form": form,
            "seconds": seconds_of(measured) / depth, "dense_seconds": seconds_of(dense) / depth,
            "speedup": gain.to_json(), "stable": measured.stable and dense.stable,
            "reasons": sorted({*measured.reasons, *dense.reasons}),
        }  # fmt: skip
        if form in TAP_FORMS:
            cell["over_channels"] = {
                other: speedup(found[other, density, groups], measured).to_json() for other in CHANNEL_FORMS
            }
        cells.append(cell)
    return cells


def seconds_of(measured: Measurement) -> float:
    """Return the geometric mean of the rounds' medians."""
    return float(np.exp(mean_interval(np.log(measured.round_medians_s))[0]))


def summary(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return for each form and density how often it is faster than dense, and than both channel forms."""
    rows = []
    for density in dict.fromkeys(cell["density"] for cell in cells):
        for form in FORMS:
            own = [cell for cell in cells if (cell["form"], cell["density"]) == (form, density)]
            ratios = sorted(cell["speedup"]["ratio"] for cell in own)
            beats = "-"
            if form in TAP_FORMS:
                num = sum(all(gain["low"] > 1 for gain in cell["over_channels"].values()) for cell in own)
                beats = f"{num} of {len(own)}"
            rows.append(
                (
                    f"{density:g}",
                    form,
                    f"{sum(cell['speedup']['low'] > 1 for cell in own)} of {len(own)}",
                    f"{sum(cell['speedup']['high'] < 1 for cell in own)} of {len(own)}",
                    f"{float(np.median(ratios)):.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                    beats,
                )
            )
    return rows


def shown(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows of the whole table: one for each shape, batch, density and number of groups."""
    rows: dict[tuple[object, ...], dict[str, str]] = {}
    for cell in cells:
        place = tuple(cell[name] for name in ("width", "size", "batch", "density", "groups"))
        row = rows.setdefault(
            place,
            {
                "layer": f"{cell['width']} at {cell['size']}x{cell['size']}",
                "batch": str(cell["batch"]),
                "density": f"{cell['density']:g}",
                "groups": f"{cell['groups']} of {cell['width'] // cell['groups']} rows",
                "dense ms": f"{1e3 * cell['dense_seconds']:.3f}",
            },
        )
        gain = cell["speedup"]
        mark = "" if cell["stable"] else " !"
        row[cell["form"]] = f"{gain['ratio']:.2f}x ({gain['low']:.2f}-{gain['high']:.2f}){mark}"
    return list(rows.values())


def page_of(
    cells: Sequence[Mapping[str, Any]], command: str, arguments: argparse.Namespace, load: str
) -> str:
    """Return the page."""
    facts = machine_facts()
    told = tabulate(
        summary(cells),
        headers=(
            *("density", "form", "faster than dense", "slower", "speedup: median (range)"),
            "faster than both channel forms",
        ),
        tablefmt="github",
        disable_numparse=True,
    )
    every = tabulate(shown(cells), headers="keys", tablefmt="github", disable_numparse=True)
    unstable = sum(not cell["stable"] for cell in cells)
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"# Regroup in one layer: {arguments.runtime}, fp32, {arguments.threads} thread(s)\n\n"
        f"`{command}`; {facts['cpu']}, {facts['num_usable_cores']} cores; {versions}; {arguments.rounds} "
        f"interleaved rounds of all forms of a shape and batch; {unstable} of {len(cells)} timings unstable; "
        f"load average {load}.\n\n"
        f"A network is a chain of {arguments.depth} 3x3 convolutions with ReLU. Density is the share of the "
        "weights, and of the MACs that a form executes: at d they promise 1/d. Speedups are over the dense "
        "convolution, 95 % over the rounds. In how many cells is a form faster, and how much:\n\n"
        f"{told}\n\nEvery cell (`!`: an unstable timing):\n\n{every}\n"
    )


def _shape(text: str) -> tuple[int, int]:
    width, _, size = text.partition("x")
    if not (width.isdecimal() and size.isdecimal() and int(width) > 0 and int(size) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxSIZE, for example 64x32")
    return int(width), int(size)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the page and the numbers")
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument(
        "--shapes", type=_shape, nargs="+", metavar="WIDTHxSIZE",
        default=[(64, 32), (128, 16), (256, 8), (512, 4), (256, 14)],
    )  # fmt: skip
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--depth", type=int, default=2, help="layers in a row")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-s", type=float, default=0.02, help="seconds per form and round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    arguments = parser.parse_args()
    for width, _ in arguments.shapes:
        if any(width % groups for groups in arguments.groups):
            parser.error(f"--shapes: {width} channels are no multiple of every number of --groups")
    return arguments


def command_of(a: argparse.Namespace) -> str:
    """Return the command that makes these results again."""
    return (
        f"python benchmarks/regroup_forms.py --out FOLDER --runtime {a.runtime} "
        f"--shapes {' '.join(f'{width}x{size}' for width, size in a.shapes)} "
        f"--batches {' '.join(map(str, a.batches))} --densities {' '.join(map(str, a.densities))} "
        f"--groups {' '.join(map(str, a.groups))} --depth {a.depth} --rounds {a.rounds} "
        f"--block-s {a.block_s} --threads {a.threads} --machine {a.machine}"
    )


def main() -> None:
    arguments = parsed()
    load = f"{os.getloadavg()[0]:.1f} before"
    cells: list[dict[str, Any]] = []
    for width, size in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            paths = checked_networks(arguments, width, size, Path(folder))
            for batch in arguments.batches:
                print(f"timing {len(paths)} networks: {width} at {size}x{size}, batch {batch}", flush=True)
                found = timed(arguments, paths, batch)
                cells += cells_of(found, width=width, size=size, batch=batch, depth=arguments.depth)
    load += f", {os.getloadavg()[0]:.1f} after"
    command = command_of(arguments)
    page = page_of(cells, command, arguments, load)
    document = {"schema": 1, "command": command, "machine": machine_facts(), "load": load, "cells": cells}
    write_results(arguments.out, f"regroup_forms_{arguments.runtime}", arguments.machine, page, document)
    print(page)


if __name__ == "__main__":
    main()
