"""The sections of `report.html`, each a piece of HTML; a section with nothing to say is empty."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape

from ticket_export.report import figure, sentences, table, words
from ticket_export.report.front import fronts, setting_front_line
from ticket_export.report.reading import PRECISION_NOTE
from ticket_export.report.reading import reading as terms_of
from ticket_export.report.rows import ROW_FIELDS, Report
from ticket_export.report.verdict import (
    Setting,
    SubjectLine,
    last_ticket,
    settings,
    speed_word,
    subject_lines,
)

_MAX_REASONS = 8  # the box warns; all of them stand beside every measurement


def summary(report: Report) -> str:
    """Return the title, the summary with its first sentence large, and a box when a row is unstable."""
    lead = re.sub(r"\(([^()]*)\)", r"<small>(\1)</small>", typeset(sentences.headline(report)))
    parts = [
        f"<h1>ticket_export report &middot; <b>{escape(report.name)}</b></h1>",
        f'<p class="lead">{lead}</p>',
    ]
    told = (
        " ".join(filter(None, (sentences.tickets_sentence(report), sentences.mattered_sentence(report)))),
        sentences.control_sentence(report),
        sentences.unstructured_sentence(report),
    )
    parts += [f"<p>{typeset(text)}</p>" for text in told if text]
    reasons = sentences.unstable_reasons(report)
    if reasons:
        num_unstable = sum(not row["stable"] for row in report.rows)
        items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons[:_MAX_REASONS])
        if len(reasons) > _MAX_REASONS:
            items += f"<li>and {len(reasons) - _MAX_REASONS} more, beside every measurement below</li>"
        parts.append(
            f'<div class="warning" role="note"><b>{num_unstable} of {len(report.rows)} timings are unstable: '
            f"read their speedups with care.</b><ul>{items}</ul></div>"
        )
    return "\n".join(parts)


def facts(report: Report) -> str:
    """Return the conditions at a glance: machine, versions, protocol, n."""
    row, found = report.rows[0], settings(report)
    num_stable = sum(row["stable"] for row in report.rows)
    batches = sorted({setting.batch for setting in found})
    pairs = [
        *words.machine_highlights(report.machine),
        ("Runtime", ", ".join(dict.fromkeys(f"{s.runtime} {s.precision}" for s in found))),
        ("Scope", f"{row['scope']}, threads: {row['threads']}, batch {', '.join(map(str, batches))}"),
        ("Timed", f"{row['num_rounds']} interleaved rounds x {row['num_samples']} samples"),
        ("Replicates", str(len({row["replicate"] for row in report.rows}))),
        ("Test images", f"{report.num_test_images:,}"),
        ("Stable timings", f"{num_stable} of {len(report.rows)}"),
    ]
    items = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in pairs)
    return f'<dl class="facts">{items}</dl>'


def side_by_side(report: Report) -> str:
    """Return one table per runtime and precision: a row per subject, a column per batch size."""
    parts = ["<h2>Side by side</h2>"]
    for runtime, precision in _executions(report):
        by_batch = _lines_by_batch(report, runtime, precision)
        batches = sorted(by_batch)
        heads = "".join(f'<th scope="col">Batch {batch}</th>' for batch in batches)
        rows = "".join(_subject_row(i, line, by_batch, report) for i, line in enumerate(by_batch[batches[0]]))
        parts.append(
            f'<table class="cards"><caption>{escape(runtime)}, {escape(precision)}. Each batch: speedup over '
            "dense, its 95&nbsp;% interval, and the median latency. n = replicates.</caption><thead><tr>"
            '<th scope="col">Subject</th><th scope="col">Accuracy</th><th scope="col">Weights kept</th>'
            f'<th scope="col">MACs kept</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        )
        parts += [
            f"<p class='note'>{typeset(setting_front_line(setting, front))}.</p>"
            for setting, front in fronts(report)
            if (setting.runtime, setting.precision) == (runtime, precision)
        ]
    return "\n".join(parts)


def figures(report: Report) -> str:
    """Return the figures: accuracy against latency, latency against batch, what is kept, widths per layer."""
    parts = ["<h2>Figures</h2>"]
    front_by_setting = dict(fronts(report))
    for runtime, precision in _executions(report):
        by_batch = _lines_by_batch(report, runtime, precision)
        largest = max(by_batch)
        where = f"{runtime}, {precision}"
        front = front_by_setting[by_batch[largest][0].setting]
        drawn = [
            _figure(
                "Accuracy against measured latency",
                f"{where}, batch {largest}. Up and left is better; bars span the replicates. "
                f"On pale green: the Pareto front, {words.listed(front.subjects)}.",
                figure.accuracy_against_latency(by_batch[largest], front),
            ),
        ]
        if any(line.speedup is not None for line in by_batch[largest]):
            drawn.append(
                _figure(
                    "Weights, MACs and time kept",
                    f"{where}, batch {largest}. Time kept is 1 / speedup, with its 95 % interval.",
                    figure.kept_fractions(by_batch[largest]),
                )
            )
        if len(by_batch) > 1:
            drawn.append(
                _figure(
                    "Latency against batch",
                    f"{where}. Medians, mean over replicates, per image; both scales logarithmic.",
                    figure.latency_against_batch(by_batch),
                )
            )
        parts.append(f'<div class="figures">{"".join(drawn)}</div>')
    ticket = last_ticket(report)
    cut = [width for own in report.widths.get(ticket or "", {}).values() for width in own]
    if ticket is not None and any(width.after != width.before for width in cut):
        widths = _figure(
            f"Channels kept per group, {ticket}",
            "Filled: kept, mean over replicates; bars span them. Outlined: dense.",
            figure.layer_widths(report, ticket),
        )
        # the last cell of the grid above is free when latency is drawn against batch
        parts[-1] = parts[-1].removesuffix("</div>") + widths + "</div>"
    return "\n".join(parts)


def precisions(report: Report) -> str:
    """Return what fp16 and INT8 cost, file by file, where there are such files."""
    rows = table.precision_rows(report)
    if not rows:
        return ""
    return (
        f"<h2>Precisions</h2><p class='note'>{typeset(PRECISION_NOTE)}</p>"
        f"{cards(table.PRECISION_HEADS, rows, last_ticket(report))}"
    )


def training(report: Report) -> str:
    """Return what training cost, beside the MACs."""
    rows = table.training_rows(report)
    if not rows:
        return ""
    return (
        "<h2>What training cost</h2><p class='note'>Median seconds of an epoch, mean over replicates, on the "
        "threads named. Networks may train side by side, so these are costs, not measurements.</p>"
        f"{cards(table.TRAINING_HEADS, rows, last_ticket(report))}"
    )


def cards(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: str | None = None) -> str:
    """Return a table with a row per subject, its name first, one marked; on a phone rows become cards."""
    body = "".join(
        f'<tr{row_class(subject, marked)}><th scope="row">{escape(subject)}</th>'
        + "".join(
            f'<td data-label="{head}"><span>{typeset(cell)}</span></td>'
            for head, cell in zip(heads[1:], cells, strict=True)
        )
        + "</tr>"
        for subject, *cells in rows
    )
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f'<table class="cards"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def exported(report: Report) -> str:
    """Return where every exported network lies, folded away."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in table.EXPORTED_HEADS)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for cells in table.exported_rows(report)
    )
    return (
        f"<h2>Exported files</h2><details><summary>All {len(report.exported)} files</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def every_row(report: Report) -> str:
    """Return every row of `report.json`, folded away."""
    heads = "".join(f'<th scope="col">{field}</th>' for field in ROW_FIELDS)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(table.plain_value(row[field]))}</td>' for field in ROW_FIELDS)}</tr>"
        for row in report.rows
    )
    return (
        f"<h2>Every measurement</h2><details><summary>All {len(report.rows)} rows of report.json</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def reading(report: Report) -> str:
    """Return how to read the page."""
    terms = "".join(f"<p><b>{escape(term)}.</b> {typeset(text)}</p>" for term, text in terms_of(report))
    return f"<h2>How to read this</h2>{terms}"


def machine(report: Report) -> str:
    """Return every fact of the machine that measured."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in words.machine_pairs(report.machine)
    )
    return (
        "<footer><details><summary>Machine and versions</summary>"
        f'<div class="scroll" tabindex="0"><table><tbody>{rows}</tbody></table></div></details></footer>'
    )


def _subject_row(
    place: int, line: SubjectLine, by_batch: Mapping[int, Sequence[SubjectLine]], report: Report
) -> str:
    cells: list[tuple[str, str, tuple[str, ...]]] = [
        ("Accuracy", words.percent(line.accuracy.mean), (words.accuracy_range(line),)),
        ("Weights kept", words.percent(line.param_density), (f"{line.params:,.0f}",)),
        ("MACs kept", words.percent(line.mac_density), (f"{line.macs / 1e6:,.2f} M",)),
    ]
    for batch in sorted(by_batch):
        timed = by_batch[batch][place]
        latency = f"{words.milliseconds(timed.latency_s.mean)} ms" + ("" if timed.stable else ", unstable")
        if timed.speedup is None:
            cells.append((f"Batch {batch}", "1 (baseline)", (latency,)))
            continue
        word = speed_word(timed.speedup)
        interval = f"{timed.speedup.low:.2f}-{timed.speedup.high:.2f}"
        notes = (interval, latency) if word == "faster" else (interval, word, latency)
        cells.append((f"Batch {batch}", f"{timed.speedup.mean:.2f}x", notes))
    body = "".join(
        f'<td data-label="{head}"><span>{typeset(value)} {" ".join(map(_small, notes))}</span></td>'
        for head, value, notes in cells
    )
    marked = row_class(line.subject, last_ticket(report))
    return f'<tr{marked}><th scope="row">{escape(line.subject)}</th>{body}</tr>'


def row_class(subject: str, marked: str | None) -> str:
    """Return the attribute of a subject's row, which stands out where it is the marked one."""
    return ' class="ticket"' if subject == marked else ""


def _small(text: str) -> str:
    return f"<small>{typeset(text)}</small>"


def several_executions(report: Report) -> bool:
    """Return whether there is more than one runtime and precision, so that each must be named."""
    return len(_executions(report)) > 1


def _executions(report: Report) -> list[tuple[str, str]]:
    return list(dict.fromkeys((setting.runtime, setting.precision) for setting in settings(report)))


def _lines_by_batch(report: Report, runtime: str, precision: str) -> dict[int, tuple[SubjectLine, ...]]:
    def wanted(setting: Setting) -> bool:
        return (setting.runtime, setting.precision) == (runtime, precision)

    return {s.batch: subject_lines(report, s) for s in settings(report) if wanted(s)}


def _figure(title: str, note: str, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    alt = escape(f"{title}. {note}", quote=True)
    return (
        f"<figure><figcaption>{escape(title)}<span>{typeset(note)}</span></figcaption>"
        f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def typeset(text: str) -> str:
    """Escape text and give its numbers true signs: times, minus, ranges, and no break within `95 %`."""
    text = escape(text)
    text = re.sub(r"(?<=\d)x\b", "&times;", text)
    text = re.sub(r"(?<=\d) x (?=\d)", " &times; ", text)
    text = re.sub(r"(?<=\d)-(?=\d)", "&ndash;", text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "&minus;", text)
    return text.replace(" %", "&nbsp;%").replace("n = ", "n&nbsp;=&nbsp;")
