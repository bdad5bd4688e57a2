"""What a run left beside its measurements: widths, files and choices, read from manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ticket_export.report.order import precision_order, subject_order

Manifest = Mapping[str, Any]  # Any: a manifest is JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """One channel group before and after: how many channels the dense network has and how many are kept."""

    group: str
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One exported network and what its precision costs.

    Attributes:
        subject: whose network it is.
        replicate: from 0.
        precision: fp32, fp16 or int8.
        runtime: whose widths it has; None where all runtimes share a file.
        path: starts at the store, as `export/<key>/model.onnx`.
        file_bytes: its size.
        parity_rel_error: max|a-b| / max|b| of its outputs against the trained network in torch.
        precision_rel_error: the same against its own fp32 file; None for that file itself.
        fp32_layers: the layers that stay in fp32.
        top1_agreement: share of the calibration images on which it names the class of fp32; int8 only.
    """

    subject: str
    replicate: int
    precision: str
    runtime: str | None
    path: str
    file_bytes: int
    parity_rel_error: float
    precision_rel_error: float | None = None
    fp32_layers: tuple[str, ...] = ()
    top1_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the widths of one network were chosen from, as JSON values; see `pipeline.widths`."""

    subject: str
    replicate: int
    told: Mapping[str, Any]  # Any: JSON


def widths_from_facts(exports: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, tuple[Width, ...]]]:
    """Return subject -> replicate -> its channel groups, from the facts of exports."""
    widths: dict[str, dict[int, tuple[Width, ...]]] = {}
    for facts in sorted(exports, key=lambda facts: (subject_order(facts["subject"]), facts["replicate"])):
        widths.setdefault(facts["subject"], {})[facts["replicate"]] = tuple(
            Width(group=group, before=width["before"], after=width["after"])
            for group, width in facts["widths"].items()
        )
    return widths


def exported_from_manifests(manifests: Iterable[Manifest]) -> tuple[ExportedFile, ...]:
    """Return every exported file in the order of the rows, from the manifests of exports."""
    files = [
        ExportedFile(
            subject=manifest["facts"]["subject"],
            replicate=manifest["facts"]["replicate"],
            precision=manifest["facts"]["precision"],
            runtime=manifest["facts"].get("runtime"),
            path=f"export/{manifest['key']}/{manifest['facts']['file']}",
            file_bytes=manifest["facts"]["file_bytes"],
            parity_rel_error=manifest["facts"]["parity_rel_error"],
            **_precision_facts(manifest["facts"]),
        )
        for manifest in manifests
    ]
    return tuple(
        sorted(
            files,
            key=lambda f: (
                subject_order(f.subject),
                f.replicate,
                precision_order(f.precision),
                f.runtime or "",
            ),
        )
    )


def _precision_facts(facts: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    """Return what fp16 and int8 files have beside an fp32 one."""
    if facts["precision"] == "fp32":
        return {}
    found = {"precision_rel_error": facts["precision_rel_error"], "fp32_layers": tuple(facts["fp32_layers"])}
    return found | ({"top1_agreement": facts["top1_agreement"]} if facts["precision"] == "int8" else {})


def choices_from_facts(shrunk: Iterable[Mapping[str, Any]]) -> tuple[Choice, ...]:
    """Return what every choice of widths was made from, from the facts of shrinks."""
    choices = [
        Choice(subject=facts["subject"], replicate=facts["replicate"], told=facts["choice"])
        for facts in shrunk
        if "choice" in facts
    ]
    return tuple(sorted(choices, key=lambda c: (subject_order(c.subject), c.replicate, c.told["runtime"])))
