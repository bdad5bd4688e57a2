"""The tables of the comparison, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from peers.cell import Cell
from peers.masks import MASKS
from peers.networks import NETWORKS
from peers.tools import EQUAL, TOOLS
from tabulate import tabulate

MASK_TITLES: Mapping[str, str] = {
    "general": "half of all filters and half of all gammas zero",
    "groups": "torch-pruning's own groups, all four zero",
    "groups_beta": "the same with the betas kept",
}


def is_equal(cell: Cell) -> bool:
    """Return whether the tool's network computes what the masked one computes, where both were compared."""
    error = cell.get("rel_error")
    return cell["outcome"] == "result" and error is not None and error <= EQUAL


def is_crash(cell: Cell) -> bool:
    """Return whether nothing can be compared: the tool raised, took too long, or its result cannot run."""
    return cell["outcome"] in ("crash", "timeout") or (
        cell["outcome"] == "result" and cell["rel_error"] is None
    )


def fails_elsewhere(cell: Cell) -> bool:
    """Return whether a network that is equal at its own size is not at a second one."""
    if not is_equal(cell) or not {"other_rel_error", "other_rel_error_failure"} & cell.keys():
        return False
    return cell["other_rel_error"] is None or cell["other_rel_error"] > EQUAL


def full_table(cells: Sequence[Cell]) -> str:
    """Return every cell: relative error, what is left, seconds; or what went wrong."""
    by_place = {(cell["network"], cell["mask"], cell["tool"]): cell for cell in cells}
    rows = [
        [network, mask, *(_shown(by_place.get((network, mask, tool))) for tool in TOOLS)]
        for network in NETWORKS
        for mask in MASKS
        if any((network, mask, tool) in by_place for tool in TOOLS)
    ]
    return tabulate(rows, headers=["network", "zeros", *TOOLS], tablefmt="github", disable_numparse=True)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "not run"
    if cell["outcome"] == "no mask":
        return f"no mask: {_escaped(cell['error'])}"
    if cell["outcome"] == "timeout":
        return f"longer than {cell['limit_s']:.0f} s"
    if cell["outcome"] == "crash":
        return f"crash: {_escaped(cell['error'])}"
    left = f"{100 * cell['values_left']:.1f} %, {cell['seconds']:.2g} s"
    if cell["rel_error"] is None:
        return f"cannot run: {_escaped(cell['rel_error_failure'])} ({left})"
    error = f"{cell['rel_error']:.1e}"
    text = f"{error if is_equal(cell) else f'**{error}**'}, {left}"
    if fails_elsewhere(cell):
        other = cell["other_rel_error"]
        size = NETWORKS[cell["network"]].other_size
        text += f"; {'cannot run' if other is None else f'**{other:.1e}**'} at {size} px"
    return text


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")


def short_table(cells: Sequence[Cell]) -> str:
    """Return counts per kind of zeros and tool, short enough for a README."""
    rows = []
    for mask in MASKS:
        of_mask = [cell for cell in cells if cell["mask"] == mask and cell["outcome"] != "no mask"]
        by_tool = {tool: [cell for cell in of_mask if cell["tool"] == tool] for tool in TOOLS}
        rows.append([f"**{MASK_TITLES[mask]}**: equal networks", *map(_count_equal, by_tool.values())])
        rows.append(["worst relative error", *map(_worst, by_tool.values())])
        rows.append(["crash, too slow, or a result that cannot run", *map(_count_crashes, by_tool.values())])
        rows.append(
            ["left of the equal ones, median", *(_left(of, by_tool["ours"]) for of in by_tool.values())]
        )
    rows.append(["equal at one image size only", *(_count_elsewhere(cells, tool) for tool in TOOLS)])
    return tabulate(rows, headers=["", *TOOLS], tablefmt="github", disable_numparse=True)


def _count_equal(cells: Sequence[Cell]) -> str:
    return f"{sum(map(is_equal, cells))} of {len(cells)}"


def _worst(cells: Sequence[Cell]) -> str:
    errors = [cell["rel_error"] for cell in cells if cell.get("rel_error") is not None]
    return f"{max(errors):.1e}" if errors else "-"


def _count_crashes(cells: Sequence[Cell]) -> str:
    return str(sum(map(is_crash, cells)))


def _left(cells: Sequence[Cell], ours: Sequence[Cell]) -> str:
    """Return what a tool leaves where it is right, and what we leave of the same networks."""
    equal = {cell["network"]: cell["values_left"] for cell in cells if is_equal(cell)}
    same = [cell["values_left"] for cell in ours if is_equal(cell) and cell["network"] in equal]
    if not equal:
        return "-"
    text = f"{100 * statistics.median(equal.values()):.0f} %"
    return text if cells is ours or not same else f"{text} (ours: {100 * statistics.median(same):.0f} %)"


def _count_elsewhere(cells: Sequence[Cell], tool: str) -> str:
    if tool == "onnxsim":
        return "not tried"  # the file it is given has one size
    return str(sum(fails_elsewhere(cell) for cell in cells if cell["tool"] == tool))
