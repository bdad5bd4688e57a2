"""The sections of `report.html` about tickets: what they are worth, how fast they learn, what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ticket_export.report import ticket_tables, words
from ticket_export.report.intervals import LOSES, NOT_RESOLVED, WINS
from ticket_export.report.rows import Report
from ticket_export.report.sections import cards, row_class, several_executions, typeset
from ticket_export.report.sentences import unequal_notes
from ticket_export.report.verdict import Verdict, last_ticket, settings, verdicts
from ticket_export.report.worth import NOT_WINNING, WINNING, Answer, Worth, first_worths, questions

_CLASS_BY_WORD = {
    WINS: "wins",
    WINNING: "wins",
    LOSES: "loses",
    NOT_WINNING: "loses",
    NOT_RESOLVED: "open",
}
_MAX_VERDICTS = 12  # more are folded away: the table above them holds what they say
WORTH_NOTE = (
    "A winning ticket is not less accurate than dense at equal epochs: the 95 % interval of their difference "
    "ends no more than one test image below 0. Whether something mattered is told by the controls that "
    "change just that: new weights (reinit), or another choice of what is kept (random, and uniform at equal "
    "MACs or latency where whole channels are kept: the ticket must win over all)."
)


def worth(report: Report) -> str:
    """Return what each ticket is worth, and every verdict it rests on; empty without a ticket."""
    found = first_worths(report)
    if not found:
        return ""
    first = settings(report)[0]
    asked = [question for question in questions(report) if any(_answer(one, question) for one in found)]
    heads = ("Ticket", "Winning ticket?", *(f"Did its {question} matter?" for question in asked))
    body = "".join(
        f'<tr{row_class(one.ticket, last_ticket(report))}><th scope="row">{escape(one.ticket)}</th>'
        + _winning_cell(one, heads[1])
        + "".join(
            _answer_cell(_answer(one, question), head)
            for question, head in zip(asked, heads[2:], strict=True)
        )
        + "</tr>"
        for one in found
    )
    return (
        f"<h2>What the ticket is worth</h2><p class='note'>{typeset(WORTH_NOTE)}</p>"
        f'<table class="cards worth"><caption>{escape(first.runtime)}, {escape(first.precision)}. '
        "Differences of accuracy in percentage points, paired by replicate.</caption><thead><tr>"
        + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        + f"</tr></thead><tbody>{body}</tbody></table>{_every_verdict(report)}"
    )


def _answer(one: Worth, question: str) -> Answer | None:
    return next((answer for answer in one.answers if answer.question == question), None)


def _winning_cell(one: Worth, head: str) -> str:
    verdict = one.against_dense
    notes = [f"{words.difference(verdict)}, n = {verdict.num_replicates}"]
    notes += [f"{words.percent(one.param_density)} of the weights"]
    if one.extra_epochs >= 1:
        notes += [f"not at equal epochs: up to {one.extra_epochs:g} more"]
    word = {WINNING: "yes", NOT_WINNING: "no"}.get(one.word, one.word)
    return _word_cell(one.word, f"{word}, the smallest" if one.is_smallest else word, notes, head)


def _answer_cell(answer: Answer | None, head: str) -> str:
    if answer is None:
        return f'<td data-label="{escape(head)}"><span>no control measured</span></td>'
    notes = [f"{verdict.against}: {words.difference(verdict)}" for verdict in answer.verdicts]
    notes += [f"{kind} was not measured" for kind in answer.missing]
    notes += unequal_notes(answer)
    return _word_cell(answer.word, answer.word, notes, head)


def _word_cell(word: str, shown: str, notes: Sequence[str], head: str) -> str:
    small = "".join(f"<small>{typeset(note)}</small>" for note in notes)
    return (
        f'<td data-label="{escape(head)}"><span>'
        f'<b class="word {_CLASS_BY_WORD[word]}">{escape(shown)}</b>{small}</span></td>'
    )


def _every_verdict(report: Report) -> str:
    found = verdicts(report)
    several = several_executions(report)
    rows = "".join(_verdict_row(verdict, name_runtime=several) for verdict in found)
    table = (
        '<table class="plain"><thead><tr><th scope="col">Compared</th><th scope="col">Difference</th>'
        f'<th scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    if len(found) <= _MAX_VERDICTS:
        return f"<h3>Against dense and every control</h3>{table}"
    return f"<details><summary>All {len(found)} verdicts</summary>{table}</details>"


def _verdict_row(verdict: Verdict, *, name_runtime: bool) -> str:
    other = verdict.against + (f", {verdict.runtime} {verdict.precision}" if name_runtime else "")
    interval = "too few replicates"
    if verdict.low is not None and verdict.high is not None:
        interval = f"95 %: {100 * verdict.low:+.2f} to {100 * verdict.high:+.2f}"
    word, _, open_words = words.verdict_words(verdict).partition(", ")
    small = f"<small>{typeset(open_words)}</small>" if open_words else ""
    return (
        f'<tr><th scope="row">{escape(verdict.ticket)} <small>less {escape(other)}</small></th>'
        f"<td>{typeset(f'{100 * verdict.difference:+.2f}')} points "
        f"<small>{typeset(f'{interval}, n = {verdict.num_replicates}')}</small></td>"
        f'<td><b class="word {_CLASS_BY_WORD[verdict.word]}">{word}</b>{small}</td></tr>'
    )


def early_stop(report: Report) -> str:
    """Return where the validation loss was lowest; empty where nothing was validated within epochs."""
    rows, compared = ticket_tables.early_rows(report), ticket_tables.sooner_rows(report)
    if not rows:
        return ""
    tables = cards(ticket_tables.EARLY_HEADS, rows, last_ticket(report))
    if compared:
        tables += cards(ticket_tables.SOONER_HEADS, compared)
    return (
        f"<h2>At the lowest validation loss</h2><p class='note'>{typeset(ticket_tables.EARLY_NOTE)}</p>"
        f"{tables}"
    )


def search_cost(report: Report) -> str:
    """Return what finding each network cost; empty where no training is known."""
    rows = ticket_tables.cost_rows(report)
    if not rows:
        return ""
    return (
        f"<h2>What finding it cost</h2><p class='note'>{typeset(ticket_tables.COST_NOTE)}</p>"
        f"{cards(ticket_tables.COST_HEADS, rows, last_ticket(report))}"
    )


def blocks(report: Report) -> str:
    """Return weights kept beside MACs executed, and the layers that run whole; empty without blocks."""
    if not report.blocks:
        return ""
    parts = [
        f"<h2>Weights kept and MACs executed</h2><p class='note'>{typeset(ticket_tables.BLOCK_NOTE)}</p>",
        cards(ticket_tables.BLOCK_HEADS, ticket_tables.block_rows(report), last_ticket(report)),
    ]
    whole = ticket_tables.whole_rows(report)
    if whole:
        parts.append(cards(ticket_tables.WHOLE_HEADS, whole))
    layers = ticket_tables.layer_rows(report)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ticket_tables.LAYER_HEADS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in layers)
    parts.append(
        f"<details><summary>All {len(layers)} layers</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )
    return "\n".join(parts)
