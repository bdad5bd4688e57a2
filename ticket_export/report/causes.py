"""Why a ticket is as fast as it is, in text, markdown and HTML: the sentence, and the layers it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ticket_export.report.rows import Report
from ticket_export.report.sections import typeset
from ticket_export.report.table import text_table

LAYER_HEADS = ("Layer", "Widths", "MACs kept", "Time kept", "GMAC/s", "Lost, ms", "Why")
NUM_LAYERS = 10
_WHY = {
    "widths": "off the grid of {grid}",
    "memory": "bound by memory",
    "kernels": "",
}

# `measure.cause.Cause.to_json` beside subject, runtime, precision and batch
CauseJson = Mapping[str, Any]  # Any: JSON values


def layer_rows(found: CauseJson, limit: int = NUM_LAYERS) -> list[tuple[str, ...]]:
    """Return a row of `LAYER_HEADS` for the layers that lose most time, and one for what lies between."""
    evidence = found["evidence"]
    layers = [layer for layer in evidence.get("layers", ()) if layer["kind"] not in ("fixed", "alone")]
    rows = [_layer_row(layer, evidence["grid"]) for layer in layers[:limit]]
    if layers[limit:]:
        rest_s = sum(layer["lost_s"] for layer in layers[limit:])
        rows.append((f"{len(layers[limit:])} more layers", "", "", "", "", _lost(rest_s), ""))
    if "seconds" not in evidence:
        return rows
    seconds = evidence["seconds"]
    layers_s = sum(layer["lost_s"] for layer in layers)
    kernels_s = sum(seconds[kind] for kind in ("widths", "memory", "kernels"))
    own = {
        "shrunk less than the network": seconds["floor"],
        "layers without MACs": kernels_s - layers_s,
        "layouts and unfused layers": seconds["reformat"],
        "between the kernels": seconds["launch"],
        "equal layers, unequal time": seconds["noise"],
        "in all": sum(seconds.values()),
    }
    return rows + [(name, "", "", "", "", _lost(lost_s), "") for name, lost_s in own.items()]


def _lost(seconds: float) -> str:
    return f"{1000 * seconds:+.3f}"


def cause_text(found: CauseJson) -> str:
    """Return the sentence and the table of layers for a terminal."""
    lines = [cause_line(found)]
    rows = layer_rows(found)
    if rows:
        lines += ["", text_table(LAYER_HEADS, rows), "", LAYER_NOTE]
    lines += _unmatched(found["evidence"])
    return "\n".join(lines)


LAYER_NOTE = (
    "dense > this model, widths in-out, from a profile apart from the timing. Lost: time beyond dense's "
    "times the share of MACs kept."
)


def _layer_row(layer: Mapping[str, Any], grid: int) -> tuple[str, ...]:  # Any: JSON values
    (macs, own_macs), (seconds, own_seconds) = layer["macs"], layer["seconds"]
    both = macs is not None and own_macs is not None
    return (
        layer["name"],
        f"{_widths(layer, 0)} > {_widths(layer, 1)}",
        f"{100 * own_macs / macs:.0f} %" if both and macs else "-",
        f"{100 * own_seconds / seconds:.0f} %" if both and seconds else "-",
        f"{_rate(macs, seconds)} > {_rate(own_macs, own_seconds)}",
        _lost(layer["lost_s"]),
        _WHY[layer["kind"]].format(grid=grid),
    )


def _widths(layer: Mapping[str, Any], side: int) -> str:  # Any: JSON values
    width_in, width_out = layer["width_in"][side], layer["width_out"][side]
    return "-" if width_in is None else f"{width_in}-{width_out}"


def _rate(macs: int | None, seconds: float | None) -> str:
    return f"{macs / seconds / 1e9:.1f}" if macs and seconds else "-"


def _unmatched(evidence: Mapping[str, Any]) -> list[str]:  # Any: JSON values
    """Name the layers that no kernel or no layer of the other network was found for."""
    alone = [layer["name"] for layer in evidence.get("layers", ()) if layer["kind"] == "alone"]
    dense, own = evidence.get("missing", ((), ()))
    told = {
        "no kernel found, dense": dense,
        "no kernel found, this model": own,
        "in one of the two only": alone,
    }
    return [f"{what}: {', '.join(names)}" for what, names in told.items() if names]


def cause_line(found: CauseJson) -> str:
    """Write one subject's cause: `ticket@2, ort-cpu, fp32, batch 64: 1.43x measured ...`."""
    return f"{found['subject']}, {_place(found)}: {found['sentence']}"


def shown_causes(report: Report) -> list[CauseJson]:
    """Return the causes a summary shows: every ticket at the largest batch of its runtime and precision."""
    largest: dict[tuple[str, str], int] = {}
    for found in report.causes:
        place = (found["runtime"], found["precision"])
        largest[place] = max(largest.get(place, 0), found["batch"])
    return [
        found
        for found in report.causes
        if found["subject"].startswith("ticket@")
        and found["batch"] == largest[found["runtime"], found["precision"]]
    ]


def markdown_causes(report: Report) -> str:
    """Return the causes that are shown as a list, in markdown; empty without any."""
    return "\n".join(f"- {cause_line(found)}" for found in shown_causes(report))


def section(report: Report) -> str:
    """Return the causes as a table, and those of every batch and control folded away; empty without any."""
    shown = shown_causes(report)
    if not shown:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escape(found["subject"])} <small>{escape(_place(found))}</small></th>'
        f"<td>{typeset(found['sentence'])}</td></tr>"
        for found in shown
    )
    rest = "".join(f"<li>{typeset(cause_line(found))}</li>" for found in report.causes)
    return (
        "<h2>Time against MACs</h2><p class='note'>From the runtime's own profile of every layer, "
        "in runs apart from the timing; replicate 0. The layers are in causes.json beside the timings.</p>"
        '<table class="plain"><thead><tr><th scope="col">Subject</th><th scope="col">Why</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
        f"<details><summary>All {len(report.causes)}, with every batch and control</summary>"
        f"<ul>{rest}</ul></details>"
    )


def _place(found: CauseJson) -> str:
    return f"{found['runtime']}, {found['precision']}, batch {found['batch']}"
