"""The report as files: `report.json`, `report.md` and one self-contained `report.html`."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from ticket_export.errors import StoreError
from ticket_export.report import (
    budget_tables,
    causes,
    front,
    search_tables,
    sections,
    sentences,
    table,
    ticket_sections,
    ticket_tables,
    widths,
    words,
)
from ticket_export.report.reading import PRECISION_NOTE, reading
from ticket_export.report.rows import Report
from ticket_export.report.style import CSS
from ticket_export.report.verdict import subject_lines, verdicts
from ticket_export.report.worth import first_worths


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write `report.json`, `report.md` and `report.html` into `folder`, each in one step.

    Raises:
        StoreError: the folder cannot be written.
    """
    texts = {
        "report.json": json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": page(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = folder / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        raise StoreError(
            f"{folder}: the report cannot be written: {error.strerror}", hint="name another folder with --out"
        ) from error
    return tuple(folder / name for name in texts)


def markdown(report: Report) -> str:
    """Return `report.md`: the summary, a table per setting, the verdicts, the files, the machine."""
    parts = [f"# {report.name}", sentences.headline(report)]
    parts += [sentences.tickets_sentence(report), sentences.mattered_sentence(report)]
    parts += [sentences.control_sentence(report), sentences.unstructured_sentence(report)]
    parts += [sentences.measured_by(report)]
    reasons = sentences.unstable_reasons(report)
    if reasons:
        parts += [
            "**Unstable timings: read their speedups with care.**",
            "\n".join(f"- {r}" for r in reasons),
        ]
    for setting, found_front in front.fronts(report):
        parts += [f"## {words.setting_words(setting)}", table.subject_table(subject_lines(report, setting))]
        parts += [f"{front.setting_front_line(setting, found_front)}."]
    if report.causes:
        parts += ["## Time against MACs", causes.markdown_causes(report)]
    parts += ticket_tables.block_markdown(report)
    found = first_worths(report)
    if found:
        parts += ["## What the ticket is worth", ticket_sections.WORTH_NOTE]
        parts += ["\n".join(f"- {sentences.worth_sentence(worth)}" for worth in found)]
        parts += ["## Verdicts", table.verdict_table(verdicts(report))]
    parts += budget_tables.markdown(report.budgets)
    parts += search_tables.markdown(report.searches)
    parts += [*ticket_tables.early_markdown(report), *ticket_tables.cost_markdown(report)]
    if report.choices:
        parts += ["## Widths by measurement", widths.summary_table(report.choices)]
    if report.trainings:
        parts += ["## Training", table.training_table(report)]
    if table.precision_rows(report):
        parts += ["## Precisions", PRECISION_NOTE, table.precision_table(report)]
    parts += ["## Exported files", table.exported_table(report)]
    parts += ["## Machine", table.machine_table(report.machine)]
    parts += ["## How to read this", "\n".join(f"- **{term}.** {text}" for term, text in reading(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def page(report: Report) -> str:
    """Return `report.html`: one file that fetches nothing, summary first, made for phones and grey too."""
    body = "\n".join(
        part
        for part in (
            sections.summary(report),
            sections.facts(report),
            sections.side_by_side(report),
            causes.section(report),
            ticket_sections.blocks(report),
            ticket_sections.worth(report),
            budget_tables.section(report.budgets),
            search_tables.section(report.searches),
            ticket_sections.early_stop(report),
            ticket_sections.search_cost(report),
            sections.figures(report),
            widths.section(report.choices),
            sections.precisions(report),
            sections.training(report),
            sections.exported(report),
            sections.every_row(report),
            sections.reading(report),
            sections.machine(report),
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.name)}: ticket_export report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
