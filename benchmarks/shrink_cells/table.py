"""The cells as Markdown, and what they say in sum."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shrink_cells.networks import ALL_LAWS_ON, NETWORKS, TIMM, TORCHVISION, ZOO, Cell
from tabulate import tabulate

# below this share of its size an output counts as one that does not depend on the input
STILL = 1e-6

Lines = Mapping[str, Mapping[str, Any]]  # Any: JSON


def summary(cells: Sequence[Cell], lines: Lines) -> str:
    """Return the sentences above the table."""
    told = [lines[cell.key] for cell in cells if cell.key in lines]
    done = [line for line in told if "rel_error" in line]
    status = Counter(line["status"] for line in told)
    still = sum(line["variation"] < STILL for line in done)
    two = sum(len({trial.split("x", 1)[1] for trial in line["trials"]}) > 1 for line in done)
    unknown = sorted({op for line in told for op in line.get("unknown_ops", ())})
    sentences = [
        f"{len(NETWORKS)} networks: {len(TORCHVISION)} of torchvision, {len(TIMM)} of timm, {len(ZOO)} of "
        f"the zoo; {len(told)} of {len(cells)} cells run.",
        "Cells: " + ", ".join(f"{count} {name}" for name, count in status.most_common()) + ".",
    ]
    for dtype in ("float32", "float64"):
        errors = [line["rel_error"] for line in done if line["dtype"] == dtype]
        if errors:
            sentences.append(
                f"Relative error in {dtype}: largest {max(errors):.2g}, "
                f"median {statistics.median(errors):.2g} over {len(errors)} cells."
            )
    sentences += [
        f"Compared at two resolutions in {two} cells; at one in {len(done) - two}, where the network takes "
        "no other.",
        f"The output does not depend on the input (changes below {STILL:g} of its size) in {still} cells.",
        f"Graph form in {sum(line['form'] == 'graph' for line in done)} cells, module form in the others.",
        f"Operations that the analysis does not know: {', '.join(unknown) if unknown else 'none'}.",
    ]
    return "\n".join(f"- {sentence}" for sentence in sentences)


def by_network(cells: Sequence[Cell], lines: Lines) -> str:
    """Return one line per network: its cells, its worst error, what stays of it."""
    rows = []
    for network in NETWORKS:
        told = [lines[cell.key] for cell in cells if cell.network == network and cell.key in lines]
        if not told:
            continue
        done = [line for line in told if "rel_error" in line]
        kept = lines.get(f"{network}|both|kept|float32", {})
        rows.append(
            {
                "network": network + (" (all laws)" if network in ALL_LAWS_ON else ""),
                "exact": f"{sum(line['status'] == 'exact' for line in told)} of {len(told)}",
                "worst fp32": _worst(done, "float32"),
                "fp64": _worst(done, "float64"),
                "parameters, `both`": _sizes(kept, "params"),
                "MACs kept": _share(kept, "macs"),
                "form": ", ".join(sorted({line["form"] for line in done})),
                "median s": f"{statistics.median(line['seconds'] for line in done):.1f}" if done else "",
            }
        )
    return _table(rows)


def every_cell(cells: Sequence[Cell], lines: Lines) -> str:
    """Return one line per cell."""
    rows = []
    for cell in cells:
        line = lines.get(cell.key)
        if line is None:
            continue
        rows.append(
            {
                "network": cell.network,
                "law": cell.law,
                "biases": cell.biases,
                "dtype": cell.dtype,
                "result": line["status"],
                "rel. error": f"{line['rel_error']:.1e}" if "rel_error" in line else "",
                "fp32 noise": f"{line['noise']:.1e}" if line.get("noise") else "",
                "scale": f"{line['scale']:.2g}" if "scale" in line else "",
                "varies": f"{line['variation']:.1g}" if "variation" in line else "",
                "parameters": _sizes(line, "params"),
                "form": line.get("form", ""),
                "unknown ops": ", ".join(op.removeprefix("aten.") for op in line.get("unknown_ops", ())),
                "s": f"{line['seconds']:.1f}" if "seconds" in line else "",
                "compared at": _trials(line),
            }
        )
    return _table(rows)


def problems(cells: Sequence[Cell], lines: Lines) -> str:
    """Return the cells that are not exact, with what was said."""
    told = [
        f"- `{cell.key}`: {line['status']}. {line.get('error') or _error_text(line)}"
        for cell in cells
        if (line := lines.get(cell.key)) is not None and line["status"] != "exact"
    ]
    return "\n".join(told) if told else "None."


def _error_text(line: Mapping[str, Any]) -> str:
    return f"relative error {line['rel_error']:.2g}" if "rel_error" in line else ""


def _worst(done: Sequence[Mapping[str, Any]], dtype: str) -> str:
    errors = [line["rel_error"] for line in done if line["dtype"] == dtype]
    return f"{max(errors):.1e}" if errors else ""


def _sizes(line: Mapping[str, Any], what: str) -> str:
    if what not in line:
        return ""
    return f"{line[f'{what}_dense']:,} -> {line[what]:,}"


def _share(line: Mapping[str, Any], what: str) -> str:
    return f"{100 * line[what] / line[f'{what}_dense']:.0f} %" if what in line else ""


def _trials(line: Mapping[str, Any]) -> str:
    by_size: dict[str, list[str]] = {}
    for trial in line.get("trials", ()):
        batch, _, size = trial.partition("x")
        by_size.setdefault(size, []).append(batch)
    return "; ".join(f"{size} at {' and '.join(sorted(batches))}" for size, batches in by_size.items())


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    return str(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
