"""The latency staircase of convolutions: what one more channel costs, on this machine in one runtime.

    python benchmarks/layers.py --out benchmarks/results --machine NAME [--runtime ort-cpu --precision fp32]

Each network is a chain of equal convolutions, width to width, between two small 1x1 ones that fix what goes
in and out, so that all networks take the same images. All widths of a kernel are timed in the same
interleaved rounds. Beside the staircase stands what rounding up would give: the next multiple of 4, 8, 16, 32
of every width was timed too, so that "faster although it computes more" is a measurement.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_files import write_results
from tabulate import tabulate

from ticket_export.measure.latency import measure_interleaved
from ticket_export.measure.layer_kind import LayerKind
from ticket_export.measure.measurement import Measurement
from ticket_export.measure.probe import ENDS, Probe, ProbeLayer, write_probe
from ticket_export.measure.protocol import Protocol
from ticket_export.measure.speedup import mean_interval, speedup
from ticket_export.runtime.offers import PRECISIONS
from ticket_export.runtime.registry import open_runner
from ticket_export.store.machine import machine_facts

# N images, C channels, H W pixels

GRIDS = (4, 8, 16, 32)


def chain(*, width: int, kernel: int, size: int, depth: int) -> Probe:
    """Return 1x1, `depth` convolutions of `width` to `width` channels, and 1x1, each with ReLU."""

    def layer(width_in: int, width_out: int, side: int) -> ProbeLayer:
        kind = LayerKind(
            op="conv",
            kernel=(side, side),
            stride=(1, 1),
            padding=(side // 2, side // 2),
            in_size=(size, size),
        )
        return ProbeLayer(kind=kind, width_in=width_in, width_out=width_out)

    between = [layer(width, width, kernel)] * depth
    layers = (layer(ENDS, width, 1), *between, layer(width, ENDS, 1))
    return Probe(name=f"{depth} times {kernel}x{kernel}: {width}", layers=layers)


def timed(arguments: argparse.Namespace, kernel: int, widths: Sequence[int]) -> dict[int, Measurement]:
    """Return the measurement of every width, all timed in the same rounds."""
    protocol = Protocol(rounds=arguments.rounds, threads=arguments.threads, block_s=arguments.block_s)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runners = {}
        for width in widths:
            probe = chain(width=width, kernel=kernel, size=arguments.size, depth=arguments.depth)
            path = write_probe(probe, Path(folder) / f"{width}.onnx", arguments.precision)
            opened = open_runner(
                path, arguments.runtime, threads=arguments.threads, batches=(arguments.batch,)
            )
            runners[str(width)] = stack.enter_context(opened)
        found = measure_interleaved(runners, batch=arguments.batch, protocol=protocol)
    return {int(name): measurement for name, measurement in found.items()}


def cell(kernel: int, width: int, found: Mapping[int, Measurement], size: int, depth: int) -> dict[str, Any]:
    """Return one width's numbers: seconds per convolution with their interval over the rounds, and rates."""
    measured = found[width]
    center, half_width = mean_interval(np.log(measured.round_medians_s / depth))
    per_conv_s = float(np.exp(center))
    rounded = {}
    for grid in GRIDS:
        above = -(-width // grid) * grid
        if above != width and above in found:
            gain = speedup(measured, found[above])
            rounded[str(grid)] = {"width": above, "ratio": gain.ratio, "low": gain.low, "high": gain.high}
    return {
        "kernel": kernel,
        "width": width,
        "seconds": per_conv_s,
        "low_s": float(np.exp(center - half_width)),
        "high_s": float(np.exp(center + half_width)),
        "macs_per_s": measured.batch * width * width * kernel**2 * size**2 / per_conv_s,
        "rounded_up": rounded,  # speedup of the next multiple over this width: above 1 it is faster
        "stable": measured.stable,
        "reasons": list(measured.reasons),
    }


def grid_rows(cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return, per kernel and grid, how often the next multiple is faster, and by how much."""
    rows = []
    for kernel in dict.fromkeys(one["kernel"] for one in cells):
        for grid in GRIDS:
            gains = [
                one["rounded_up"][str(grid)]
                for one in cells
                if one["kernel"] == kernel and str(grid) in one["rounded_up"]
            ]
            if not gains:
                continue
            faster = sum(gain["low"] > 1.0 for gain in gains)
            slower = sum(gain["high"] < 1.0 for gain in gains)
            ratios = sorted(gain["ratio"] for gain in gains)
            rows.append(
                (
                    f"{kernel}x{kernel}",
                    str(grid),
                    str(len(gains)),
                    f"{faster} ({faster / len(gains):.0%})",
                    f"{slower} ({slower / len(gains):.0%})",
                    f"{ratios[len(ratios) // 2]:.2f}x ({ratios[0]:.2f}-{ratios[-1]:.2f})",
                )
            )
    return rows


def figure(cells: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return the staircases as SVG: time per convolution and MACs per second against the width."""
    kernels = list(dict.fromkeys(one["kernel"] for one in cells))
    with matplotlib.rc_context({"svg.hashsalt": "ticket_export", "font.size": 9, "axes.grid": True}):
        drawn = Figure(figsize=(9.0, 3.1 * len(kernels)), layout="constrained")
        axes = drawn.subplots(len(kernels), 2, squeeze=False)
        for row, kernel in zip(axes, kernels, strict=True):
            own = [one for one in cells if one["kernel"] == kernel]
            widths = [one["width"] for one in own]
            _draw_time(row[0], own, widths, kernel)
            rates = [one["macs_per_s"] / 1e9 for one in own]
            row[1].plot(widths, rates, color="#5b6470", linewidth=0.9)
            for grid, marker, color, label in (
                (1, ".", "#b35c00", "all others"),
                (4, "^", "#00796b", "multiples of 4"),
                (16, "s", "#0b5cad", "multiples of 16"),
            ):
                places = [i for i, width in enumerate(widths) if width % grid == 0]
                row[1].plot(
                    [widths[i] for i in places],
                    [rates[i] for i in places],
                    linestyle="none",
                    marker=marker,
                    color=color,
                    label=label,
                )
            row[1].set(xlabel="channels, in and out", ylabel="GMAC/s", ylim=(0, None))
            row[1].legend(loc="lower right", fontsize=8)
        drawn.suptitle(title)
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw_time(axes: Axes, own: Sequence[Mapping[str, Any]], widths: Sequence[int], kernel: int) -> None:
    axes.fill_between(
        widths, [1e3 * one["low_s"] for one in own], [1e3 * one["high_s"] for one in own],
        step="mid", color="#0b5cad", alpha=0.25, linewidth=0, label="95 % over the rounds",
    )  # fmt: skip
    axes.step(widths, [1e3 * one["seconds"] for one in own], where="mid", color="#0b5cad")
    axes.set_xticks([width for width in range(0, max(widths) + 1, 16) if width >= min(widths)])
    axes.set(xlabel="channels, in and out", ylabel=f"ms per {kernel}x{kernel} convolution", ylim=(0, None))
    axes.legend(loc="upper left", fontsize=8)


def written(cells: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> str:
    """Write the page, the numbers and the figure, and return the page."""
    facts = machine_facts()
    a = arguments
    command = (
        f"python benchmarks/layers.py --out FOLDER --runtime {a.runtime} --precision {a.precision} "
        f"--kernels {' '.join(map(str, a.kernels))} --widths {a.widths[0]}:{a.widths[-1]} --step {a.step} "
        f"--size {a.size} --batch {a.batch} --depth {a.depth} --rounds {a.rounds} --block-s {a.block_s} "
        f"--threads {a.threads} --machine {a.machine}"
    )
    theme = f"layers_{a.runtime}_{a.precision}"
    unstable = sum(not one["stable"] for one in cells)
    told = tabulate(
        grid_rows(cells),
        headers=("kernel", "rounded up to", "widths", "faster", "slower", "speedup: median (range)"),
        tablefmt="github",
        disable_numparse=True,
    )
    every = tabulate([_shown(one) for one in cells], headers="keys", tablefmt="github", disable_numparse=True)
    title = f"{a.runtime}, {a.precision}, batch {a.batch}, {a.size}x{a.size} pixels, {a.threads} thread(s)"
    page = (
        f"# Staircase of convolution widths: {title}\n\n`{command}`; {facts['cpu']}, "
        f"{facts['num_usable_cores']} cores; {', '.join(f'{k} {v}' for k, v in facts['packages'].items())}; "
        f"{a.rounds} interleaved rounds of all widths; {unstable} of {len(cells)} timings unstable.\n\n"
        "Does it pay to round a width up? Of the widths off each grid, how many run faster, and how many "
        "slower, as the next multiple (95 % interval over the rounds):\n\n"
        f"{told}\n\n![staircases](FIGURE)\n\n"
        f"A network is a 1x1 convolution from {ENDS} channels, {a.depth} convolutions, and a 1x1 back to "
        f"{ENDS}, each with ReLU; a time is the whole divided by {a.depth}.\n\n{every}\n"
    )
    path = write_results(a.out, theme, a.machine, page, {
        "schema": 1, "command": command, "machine": facts, "cells": list(cells),
    })  # fmt: skip
    drawing = path.with_suffix(".svg")
    drawing.write_text(figure(cells, title), encoding="utf-8")
    page = page.replace("FIGURE", drawing.name)
    path.write_text(page, encoding="utf-8")
    return page


def _shown(one: Mapping[str, Any]) -> dict[str, str]:
    gains = {
        f"at the next {grid}": (
            f"{gain['ratio']:.2f}x ({gain['low']:.2f}-{gain['high']:.2f})"
            if (gain := one["rounded_up"].get(str(grid)))
            else "-"
        )
        for grid in GRIDS
    }
    return {
        "kernel": f"{one['kernel']}x{one['kernel']}",
        "width": str(one["width"]),
        "ms": f"{1e3 * one['seconds']:.4f} ({1e3 * one['low_s']:.4f}-{1e3 * one['high_s']:.4f})",
        "GMAC/s": f"{one['macs_per_s'] / 1e9:.1f}",
        **gains,
        "stable": "yes" if one["stable"] else "NO",
    }


def _widths(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, for example 8:128")
    return int(first), int(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the page, the numbers, the figure"
    )
    parser.add_argument("--runtime", default="ort-cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--kernels", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--widths", type=_widths, default=(8, 128), metavar="FIRST:LAST")
    parser.add_argument("--step", type=int, default=1, help="between widths; multiples of 4 are always there")
    parser.add_argument("--size", type=int, default=14, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--depth", type=int, default=4, help="convolutions in a row")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-s", type=float, default=0.02, help="seconds per width and round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    arguments = parser.parse_args()
    first, last = arguments.widths
    widths = sorted({*range(first, last + 1, arguments.step), *range(-(-first // 4) * 4, last + 1, 4)})
    cells = []
    for kernel in arguments.kernels:
        print(f"timing {len(widths)} widths of a {kernel}x{kernel} convolution", flush=True)
        found = timed(arguments, kernel, widths)
        cells += [cell(kernel, width, found, arguments.size, arguments.depth) for width in widths]
    print(written(cells, arguments))


if __name__ == "__main__":
    main()
