"""Numbers in words: how a percentage, a ratio, an interval and a time are written, everywhere the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ticket_export.report.rows import Report
from ticket_export.report.verdict import (
    NUM_REPLICATES_NEEDED,
    Setting,
    Spread,
    SubjectLine,
    Verdict,
    last_ticket,
    settings,
    speed_word,
    subject_lines,
    verdicts,
)

READING = (
    (
        "Subjects",
        "dense is the network before anything is cut; ticket@2 is what two rounds of pruning left. Its "
        "controls have the same level: random keeps as many channels, drawn by chance; uniform shrinks every "
        "layer alike; reinit keeps the ticket's channels with new weights; unstructured is the element mask, "
        "unshrunk; depgraph keeps the channels that torch-pruning's own pruner keeps of the trained dense "
        "network, at the pruning ratio whose MACs are nearest to the ticket's, and is then trained like the "
        "ticket: from the same rewound weights, for as long.",
    ),
    (
        "Accuracy",
        "Share of the test images classified right by the exported file in the named runtime: the mean over "
        "replicates, with the lowest and the highest. The test images picked nothing.",
    ),
    ("Weights, MACs, time", "Three different numbers, each a share of dense. One MAC is one multiply-add."),
    (
        "Speedup",
        "Dense divided by the subject of the same replicate, both timed in the same interleaved rounds. Each "
        "replicate has a 95 % t interval over the log ratios of its rounds; the interval shown spans those "
        "of all replicates around their geometric mean. One that holds 1 shows no difference.",
    ),
    (
        "Verdicts",
        "Differences of accuracy are paired by replicate, with a 95 % t interval over the replicates that is "
        "never narrower than one test image to either side. Fewer than three replicates resolve nothing.",
    ),
    ("Parity", "max|a-b| / max|b| of the exported file's outputs against the network it came from."),
)

PRECISION_NOTE = (
    "Both errors are max|a-b| / max|b| of a file's outputs: to torch, against the trained network it came "
    "from; to fp32, against the fp32 file of the same network, so that what a precision costs is apart from "
    "what export costs. Of fp16 it is the larger one of the file as it runs and of every value rounded to "
    "fp16, because ONNX Runtime on a CPU computes fp16 files in fp32. Class of fp32: the share of the "
    "calibration images, drawn from the training images, on which INT8 names the class that fp32 names. "
    "Accuracy is on the test images."
)


def percent(fraction: float) -> str:
    """Write a fraction of 0 to 1 as a percentage with one digit: `48.1 %`."""
    return f"{100 * fraction:.1f} %"


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds, to three digits or to the microsecond: `0.142`, `3.07`, `41.5`."""
    value = 1000 * seconds
    num_digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{num_digits}f}"


def accuracy_range(line: SubjectLine) -> str:
    """Write how many replicates an accuracy is the mean of, and the lowest and highest of several."""
    if line.num_replicates == 1:
        return "n = 1"
    return f"{100 * line.accuracy.low:.1f}-{100 * line.accuracy.high:.1f}, n = {line.num_replicates}"


def times(speedup: Spread | None) -> str:
    """Write a speedup and its interval: `1.62x (1.55-1.71)`, or `1.01x (0.98-1.04), no difference shown`."""
    if speedup is None:
        return "baseline"
    text = f"{speedup.mean:.2f}x ({speedup.low:.2f}-{speedup.high:.2f})"
    word = speed_word(speedup)
    return text if word == "faster" else f"{text}, {word}"


def ratio(speedup: Mapping[str, Any] | None) -> str:  # Any: JSON
    """Write the `speedup` of one row."""
    if speedup is None:
        return "baseline"
    return times(Spread(mean=speedup["ratio"], low=speedup["low"], high=speedup["high"]))


def machine_highlights(machine: Mapping[str, Any]) -> list[tuple[str, str]]:  # Any: JSON
    """Return what a reader asks first about a machine: processor, system, versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        ("Machine", f"{machine['cpu']}, {machine['num_usable_cores']} usable cores"),
        ("System", f"{machine['os']}, Python {machine['python']}"),
        ("Versions", versions),
    ]


def machine_pairs(machine: Mapping[str, Any]) -> list[tuple[str, str]]:  # Any: JSON
    """Return every fact of a machine as (name, text), nested ones by a dotted name."""
    pairs = []
    for key, value in machine.items():
        if isinstance(value, Mapping):
            pairs += [(f"{key}.{inner}", text) for inner, text in machine_pairs(value)]
        elif isinstance(value, list | tuple):
            pairs.append((key, ", ".join(map(str, value))))
        else:
            pairs.append((key, str(value)))
    return pairs


def points(verdict: Verdict) -> str:
    """Write a difference of accuracies in percentage points with its interval where there is one."""
    text = f"{100 * verdict.difference:+.2f}"
    if verdict.low is None or verdict.high is None:
        return text
    return f"{text} ({100 * verdict.low:+.2f} to {100 * verdict.high:+.2f})"


def energy_words(energy_per_image_j: Mapping[str, float]) -> str:
    """Write what an image costs on a GPU, by subject: `dense 1.24 mJ, ticket 0.81 mJ per image`."""
    told = ", ".join(f"{name} {1000 * energy_j:.3g} mJ" for name, energy_j in energy_per_image_j.items())
    return f"{told} per image (the GPU's board, host excluded)"


def setting_words(setting: Setting) -> str:
    """Write the conditions of a measurement: `ort-cpu, fp32, batch 64, compute, 1 thread`."""
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    return f"{setting.runtime}, {setting.precision}, batch {setting.batch}, {setting.scope}, {threads}"


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
    phrases = {
        "wins": f"{ticket} wins over",
        "loses": f"{ticket} loses to",
        "no difference shown": "no difference shown to",
        "not resolved": f"not resolved below {NUM_REPLICATES_NEEDED} replicates against",
    }
    parts = []
    for word, phrase in phrases.items():
        others = [f"{verdict.against} ({_difference(verdict)})" for verdict in found if verdict.word == word]
        if others:
            parts.append(f"{phrase} {' and '.join(filter(None, (', '.join(others[:-1]), others[-1])))}")
    text = "; ".join(parts)
    return f"Against its controls, in points, n = {found[0].num_replicates}: {text}."


def unstructured_sentence(report: Report) -> str:
    """Say in one sentence how fast the unshrunk network with single weights at zero is; empty without one."""
    lines = [line for line in _first_runtime_lines(report) if line.subject.startswith("unstructured@")]
    if not lines:
        return ""
    shown = lines if len(lines) < 2 else [lines[0], lines[-1]]
    speed = " and ".join(f"{_speed(line)} at batch {line.setting.batch}" for line in shown)
    return (
        f"{lines[0].subject} has {percent(lines[0].param_density)} of the weights left and every channel: "
        f"it is {speed}."
    )


def _difference(verdict: Verdict) -> str:
    text = f"{100 * verdict.difference:+.2f}"
    if verdict.low is None or verdict.high is None:
        return text
    return f"{text}, 95 %: {100 * verdict.low:+.2f} to {100 * verdict.high:+.2f}"


def measured_by(report: Report) -> str:
    """Say in one sentence how the latencies were measured."""
    setting, row = settings(report)[0], report.rows[0]
    rest = "" if len(settings(report)) == 1 else "; every batch and runtime is in the table"
    return (
        f"Measured by {setting.runtime}, {setting.precision}, {setting.scope}, threads: {setting.threads}, "
        f"{row['num_rounds']} interleaved rounds of {row['num_samples']} samples{rest}."
    )


def summary(report: Report) -> str:
    """Return the summary of a report: headline, controls, how it was measured, what was unstable."""
    sentences = [
        headline(report),
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
    word = {"wins": "higher", "loses": "lower"}.get(verdict.word, verdict.word)
    return (
        f"{own} against {percent(line.accuracy.mean - verdict.difference)} "
        f"({100 * verdict.difference:+.2f} points, {interval}n = {verdict.num_replicates}: {word})"
    )
