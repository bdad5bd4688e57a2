"""What a run showed, in sentences: numbers with their n and interval, and the verdicts they allow."""

from __future__ import annotations

from collections.abc import Sequence

from ticket_export.report.intervals import LOSES, NOT_RESOLVED, NUM_REPLICATES_NEEDED, VERDICTS, WINS
from ticket_export.report.rows import Report
from ticket_export.report.verdict import (
    SubjectLine,
    Verdict,
    last_ticket,
    settings,
    speed_word,
    subject_lines,
    verdicts,
)
from ticket_export.report.words import difference, listed, percent, verdict_words
from ticket_export.report.worth import NOT_WINNING, WINNING, Answer, Worth, first_worths


def headline(report: Report) -> str:
    """Say in one sentence what the last ticket keeps, how fast and how accurate it is, with intervals."""
    ticket = last_ticket(report)
    if ticket is None:
        return f"{report.name}: no ticket was measured, so there is nothing to compare with dense."
    lines = [line for line in _first_runtime_lines(report) if line.subject == ticket]
    against_dense = [verdict for verdict in verdicts(report) if verdict.ticket == ticket]
    shown = lines if len(lines) < 2 else [lines[0], lines[-1]]
    speed = " and ".join(f"{_speed(line)} at batch {line.setting.batch}" for line in shown)
    return (
        f"{ticket} keeps {percent(lines[0].mac_density)} of the MACs and "
        f"{percent(lines[0].param_density)} of the weights, is {speed}, "
        f"and reaches {_accuracy(lines[0], against_dense)}."
    )


def control_sentence(report: Report) -> str:
    """Say in one sentence how the last ticket's accuracy stands against each control of its level."""
    ticket = last_ticket(report)
    if ticket is None:
        return ""
    setting = settings(report)[0]
    found = [
        verdict
        for verdict in verdicts(report)
        if verdict.ticket == ticket
        and verdict.against != "dense"
        and verdict.runtime == setting.runtime
        and verdict.precision == setting.precision
    ]
    if not found:
        return f"No control of {ticket} was measured: if a plain small network does as well is not resolved."
    return f"Against its controls, in points, n = {found[0].num_replicates}: {ticket} {_against(found)}."


def _against(found: Sequence[Verdict]) -> str:
    """Write verdicts on one ticket, alike ones together: `wins over a (...) and b (...); loses to c ...`."""
    phrases = {
        (WINS, True): "wins over",
        (LOSES, True): "loses to",
        (NOT_RESOLVED, True): "is not resolved against",
        (NOT_RESOLVED, False): f"is not resolved below {NUM_REPLICATES_NEEDED} replicates against",
    }
    parts = []
    for (word, has_interval), phrase in phrases.items():
        others = [
            f"{verdict.against} ({difference(verdict)})"
            for verdict in found
            if verdict.word == word and (verdict.low is not None) == has_interval
        ]
        if others:
            parts.append(f"{phrase} {listed(others)}")
    return "; ".join(parts)


def tickets_sentence(report: Report) -> str:
    """Say in one sentence which tickets are winning tickets, the smallest first; empty without a ticket."""
    found = first_worths(report)
    if not found:
        return ""
    smallest = next((worth for worth in found if worth.is_smallest), None)
    first = (
        "No ticket is shown not to lose to dense"
        if smallest is None
        else f"The smallest ticket that is shown not to lose to dense is {smallest.ticket}, with "
        f"{percent(smallest.param_density)} of the weights and {percent(smallest.mac_density)} of the MACs"
        + _unequal_epochs(smallest)
    )
    named = {
        "winning tickets too": [w.ticket for w in found if w.word == WINNING and not w.is_smallest],
        "not resolved": [w.ticket for w in found if w.word == NOT_RESOLVED],
        "shown to lose": [w.ticket for w in found if w.word == NOT_WINNING],
    }
    return "; ".join([first, *(f"{what}: {listed(names)}" for what, names in named.items() if names)]) + "."


def mattered_sentence(report: Report) -> str:
    """Say in one sentence what of the last ticket mattered; empty where no control tells."""
    last = [worth for worth in first_worths(report) if worth.ticket == last_ticket(report)]
    if not last or not last[0].answers:
        return ""
    questions_by_word: dict[str, list[str]] = {}
    for answer in last[0].answers:
        questions_by_word.setdefault(answer.word, []).append(answer.question)
    told = [_mattered(questions_by_word[word], word) for word in VERDICTS if word in questions_by_word]
    return f"{last[0].ticket}: {'; '.join(told)}."


def worth_sentence(worth: Worth) -> str:
    """Say in sentences what one ticket is worth, with every number."""
    verdict = worth.against_dense
    told = f"{worth.ticket} is {worth.word}"
    if worth.word == NOT_RESOLVED:
        told = f"Whether {worth.ticket} is a winning ticket is {worth.word}"
    if verdict.low is None:
        told = f"{told} below {NUM_REPLICATES_NEEDED} replicates"
    number, comma, interval = difference(verdict).partition(", ")
    numbers = f"{number} points against dense ({interval}{comma}n = {verdict.num_replicates})"
    first = f"{told}: {numbers}{_unequal_epochs(worth)}."
    return " ".join([first, *(_answer_sentence(answer) for answer in worth.answers)])


def _unequal_epochs(worth: Worth) -> str:
    if worth.extra_epochs < 1:
        return ""
    return f", but not at equal epochs: its weights have learnt for up to {worth.extra_epochs:g} more"


def _answer_sentence(answer: Answer) -> str:
    words, against = _mattered([answer.question], answer.word), f"it {_against(answer.verdicts)}"
    notes = [f"{listed(answer.missing)} was not measured"] if answer.missing else []
    told = "; ".join(["", *notes, *unequal_notes(answer)])
    return f"{words[0].upper()}{words[1:]}: {against.removeprefix(f'it is {NOT_RESOLVED} ')}{told}."


def unequal_notes(answer: Answer) -> list[str]:
    """Say of each control why its verdict decides nothing: it costs more or less than the ticket."""
    return [
        f"{against} {_costs(against, ratio)}, so {'losing to' if ratio > 1 else 'winning over'} it "
        "decides nothing"
        for against, ratio in answer.unequal.items()
    ]


def _costs(against: str, ratio: float) -> str:
    is_timed = against.startswith("uniform_latency@")
    return f"takes {ratio:.2f}x the time" if is_timed else f"executes {ratio:.2f}x the MACs"


def _mattered(questions: Sequence[str], word: str) -> str:
    if word == NOT_RESOLVED:
        return f"whether its {' or its '.join(questions)} mattered is {NOT_RESOLVED}"
    return f"its {' and its '.join(questions)} {'mattered' if word == WINS else 'did harm'}"


def unstructured_sentence(report: Report) -> str:
    """Say in one sentence how fast the unshrunk network with single weights at zero is; empty without one."""
    found = [line for line in _first_runtime_lines(report) if line.subject.startswith("unstructured@")]
    lines = [line for line in found if line.subject == found[-1].subject]  # of the last level
    if not lines:
        return ""
    shown = lines if len(lines) < 2 else [lines[0], lines[-1]]
    speed = " and ".join(f"{_speed(line)} at batch {line.setting.batch}" for line in shown)
    return (
        f"{lines[0].subject} has {percent(lines[0].param_density)} of the weights left and every channel: "
        f"it is {speed}."
    )


def measured_by(report: Report) -> str:
    """Say in one sentence how the latencies were measured."""
    setting, row = settings(report)[0], report.rows[0]
    rest = "" if len(settings(report)) == 1 else "; every batch and runtime is in the table"
    return (
        f"Measured by {setting.runtime}, {setting.precision}, {setting.scope}, threads: {setting.threads}, "
        f"{row['num_rounds']} interleaved rounds of {row['num_samples']} samples{rest}."
    )


def summary(report: Report) -> str:
    """Return the summary of a report: headline, verdicts, how it was measured, what was unstable."""
    sentences = [
        headline(report),
        tickets_sentence(report),
        mattered_sentence(report),
        control_sentence(report),
        unstructured_sentence(report),
        measured_by(report),
        unstable_sentence(report),
    ]
    return "\n".join(sentence for sentence in sentences if sentence)


def unstable_sentence(report: Report) -> str:
    """Say how many timings are unstable and why the first is; empty when all are stable."""
    reasons = unstable_reasons(report)
    if not reasons:
        return ""
    num_unstable = sum(not row["stable"] for row in report.rows)
    rest = "" if len(reasons) == 1 else f" (and {len(reasons) - 1} more in the report)"
    return f"{num_unstable} of {len(report.rows)} timings are unstable: {reasons[0]}{rest}."


def unstable_reasons(report: Report) -> list[str]:
    """Return each reason once, with the runtime, batch and subjects it holds for."""
    subjects_by_place: dict[tuple[str, int, str], dict[str, None]] = {}
    for row in report.rows:
        for reason in row["reasons"]:
            place = (row["runtime"], row["batch"], reason)
            subjects_by_place.setdefault(place, {})[row["subject"]] = None
    return [
        f"{runtime}, batch {batch}, "
        + ("all subjects" if len(subjects) == len(report.subjects) else ", ".join(subjects))
        + f": {reason}"
        for (runtime, batch, reason), subjects in subjects_by_place.items()
    ]


def _first_runtime_lines(report: Report) -> list[SubjectLine]:
    first = settings(report)[0]
    return [
        line
        for setting in settings(report)
        if (setting.runtime, setting.precision) == (first.runtime, first.precision)
        for line in subject_lines(report, setting)
    ]


def _speed(line: SubjectLine) -> str:
    if line.speedup is None:
        return "the baseline"
    word = speed_word(line.speedup)
    notes = [f"95 %: {line.speedup.low:.2f}-{line.speedup.high:.2f}"]
    notes += [] if word == "faster" else [word]
    notes += [] if line.stable else ["unstable"]
    return f"{line.speedup.mean:.2f}x as fast as dense ({', '.join(notes)})"


def _accuracy(line: SubjectLine, found: list[Verdict]) -> str:
    own = f"{percent(line.accuracy.mean)} accuracy"
    dense = [
        verdict for verdict in found if verdict.against == "dense" and verdict.runtime == line.setting.runtime
    ]
    if not dense:
        return f"{own} (n = {line.num_replicates})"
    verdict = dense[0]
    interval = ""
    if verdict.low is not None and verdict.high is not None:
        interval = f"95 %: {100 * verdict.low:+.2f} to {100 * verdict.high:+.2f}, "
    told = f"n = {verdict.num_replicates}: {verdict_words(verdict)}"
    return (
        f"{own} against {percent(line.accuracy.mean - verdict.difference)} "
        f"({100 * verdict.difference:+.2f} points, {interval}{told})"
    )
