"""Numbers in words: how a percentage, a ratio, an interval and a time are written, everywhere the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticket_export.report.intervals import NOT_RESOLVED, NUM_REPLICATES_NEEDED, Spread
from ticket_export.report.verdict import Setting, SubjectLine, Verdict, speed_word


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
    return percent_range(line.accuracy, line.num_replicates)


def percent_range(fractions: Spread, num_replicates: int) -> str:
    """Write the lowest and the highest of fractions as percentages, and how many they are."""
    if num_replicates == 1:
        return "n = 1"
    return f"{100 * fractions.low:.1f}-{100 * fractions.high:.1f}, n = {num_replicates}"


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


def verdict_words(verdict: Verdict) -> str:
    """Write a verdict; where nothing is resolved, with what is known: `not resolved, at most 0.48 apart`."""
    if verdict.word != NOT_RESOLVED:
        return verdict.word
    if verdict.apart is None:
        return f"{verdict.word} below {NUM_REPLICATES_NEEDED} replicates"
    return f"{verdict.word}, at most {100 * verdict.apart:.2f} apart"


def difference(verdict: Verdict) -> str:
    """Write a difference in points, its interval and what that leaves open: `+0.63, 95 %: +0.05 to +1.2`."""
    text = f"{100 * verdict.difference:+.2f}"
    if verdict.low is None or verdict.high is None or verdict.apart is None:
        return text
    text = f"{text}, 95 %: {100 * verdict.low:+.2f} to {100 * verdict.high:+.2f}"
    return f"{text}, at most {100 * verdict.apart:.2f} apart" if verdict.word == NOT_RESOLVED else text


def listed(names: Sequence[str]) -> str:
    """Write names as a list: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def dense_trainings(ratio: float) -> str:
    """Write a cost in units of one dense training: `3.2 dense trainings`."""
    return f"{ratio:.1f} dense training{'' if f'{ratio:.1f}' == '1.0' else 's'}"


def spread_range(spread: Spread, num_replicates: int, digits: int = 1) -> str:
    """Write the lowest and the highest of several replicates, and how many they are: `2.1-2.4, n = 3`."""
    low, high = f"{spread.low:,.{digits}f}", f"{spread.high:,.{digits}f}"
    return f"n = {num_replicates}" if low == high else f"{low}-{high}, n = {num_replicates}"


def energy_words(energy_per_image_j: Mapping[str, float]) -> str:
    """Write what an image costs on a GPU, by subject: `dense 1.24 mJ, ticket 0.81 mJ per image`."""
    told = ", ".join(f"{name} {1000 * energy_j:.3g} mJ" for name, energy_j in energy_per_image_j.items())
    return f"{told} per image (the GPU's board, host excluded)"


def setting_words(setting: Setting) -> str:
    """Write the conditions of a measurement: `ort-cpu, fp32, batch 64, compute, 1 thread`."""
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    return f"{setting.runtime}, {setting.precision}, batch {setting.batch}, {setting.scope}, {threads}"
