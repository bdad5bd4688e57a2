"""Why a ticket is as fast as it is, in text, markdown and HTML: the sentence, and the layers it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticket_export.report.table import text_table

LAYER_HEADS = ("Layer", "Widths", "MACs kept", "Time kept", "GMAC/s", "Lost, ms", "Why")
NUM_LAYERS = 10
_WHY = {
    "fixed": "not shrunk",
    "widths": "off the grid of {grid}",
    "memory": "bound by memory",
    "kernels": "",
    "alone": "in one file only",
}

CauseJson = Mapping[str, Any]  # Any: JSON values, `measure.cause.Cause.to_json`


def layer_rows(found: CauseJson, limit: int = NUM_LAYERS) -> list[tuple[str, ...]]:
    """Return a row of `LAYER_HEADS` for the layers that lose most time, and one for what lies between."""
    evidence = found["evidence"]
    rows = [_layer_row(layer, evidence["grid"]) for layer in evidence.get("layers", ())[:limit]]
    rest = evidence.get("layers", ())[limit:]
    if rest:
        lost_ms = 1000 * sum(layer["lost_s"] for layer in rest)
        rows.append((f"{len(rest)} more layers", "", "", "", "", f"{lost_ms:+.3f}", ""))
    if "shares" in evidence:
        ticket_s = evidence["profiled_s"][1]
        own = {
            "reformat": "layouts and unfused layers",
            "launch": "between the kernels",
        }
        rows += [
            (name, "", "", "", "", f"{1000 * evidence['shares'][kind] * ticket_s:+.3f}", "")
            for kind, name in own.items()
        ]
    return rows


def cause_text(subject: str, runtime: str, batch: int, found: CauseJson) -> str:
    """Return the sentence and the table of layers for a terminal."""
    lines = [f"{subject}, {runtime}, batch {batch}: {found['sentence']}"]
    rows = layer_rows(found)
    if rows:
        lines += ["", text_table(LAYER_HEADS, rows), "", LAYER_NOTE]
    return "\n".join(lines)


LAYER_NOTE = (
    "dense > this model; widths are in-out. Lost: profiled time beyond dense's times the ratio of all MACs."
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
        f"{1000 * layer['lost_s']:+.3f}",
        _WHY[layer["kind"]].format(grid=grid),
    )


def _widths(layer: Mapping[str, Any], side: int) -> str:  # Any: JSON values
    width_in, width_out = layer["width_in"][side], layer["width_out"][side]
    return "-" if width_in is None else f"{width_in}-{width_out}"


def _rate(macs: int | None, seconds: float | None) -> str:
    return f"{macs / seconds / 1e9:.1f}" if macs and seconds else "-"


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:  # Any: JSON values
    """Return one line per explained subject: `ticket@2, ort-cpu, fp32, batch 64: 1.43x measured ...`."""
    return [
        f"{row['subject']}, {row['runtime']}, {row['precision']}, batch {row['batch']}: {row['sentence']}"
        for row in rows
    ]
