"""What a shrink did, as text for a terminal: costs before and after, each group and why it has its width."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ticket_export.report import words
from ticket_export.report.table import text_table

if TYPE_CHECKING:  # they know tensors; at run time this room does not
    from ticket_export.shrink.account import GroupChange, ShrinkReport
    from ticket_export.shrink.near_zero import NearZeroReport

_WHOLE = "kept whole: "  # how the report begins the reason of a group that must not shrink
_LINE = 110  # characters, after which a list of names is folded


def shrunk_text(report: ShrinkReport, *, every_group: bool = False) -> str:
    """Return costs, changed groups, groups that stayed with their reason, and the proof.

    Args:
        report: of a shrink.
        every_group: one line per group; else groups whose names differ in numbers alone, with the same widths
            for the same reason, share a line, and groups that stayed are listed by reason.
    """
    parts = [_costs(report)]
    changed = {name: change for name, change in report.widths.items() if change.after != change.before}
    shown = report.widths if every_group else changed
    if shown:
        parts.append(_changed_groups(shown, merged=not every_group))
    if not changed:
        parts.append("no group has a channel that may go")
    if not every_group:
        parts += _groups_that_stay(
            {name: change for name, change in report.widths.items() if name not in changed}
        )
    if report.unknown_ops:
        parts.append(f"unknown to the analysis, so that their channels stay: {', '.join(report.unknown_ops)}")
    parts.append(_proof(report))
    return "\n\n".join(parts)


def _proof(report: ShrinkReport) -> str:
    batch = "any batch" if report.dynamic_batch else "this batch only, as the network fixes it"
    size = "" if report.open_size else ", this size only"
    counts = (
        (report.num_carriers, "carrier channel"),
        (report.num_terms, "added term"),
        (report.num_folds, "fold"),
        (report.num_constants, "operand that became constant"),
    )
    told = [_number(count, what) for count, what in counts if count]
    return (
        f"checked: relative error {report.rel_error:.1e} (max|a-b| / max|b|), {batch}{size}\n"
        f"{', '.join([f'{report.form} form', *told])}"
    )


def _costs(report: ShrinkReport) -> str:
    pairs = [
        ("weights", report.params_dense, report.params),
        ("MACs per image", report.macs_dense, report.macs),
        ("bytes", report.bytes_dense, report.bytes),
    ]
    rows = [(name, f"{before:,}", f"{after:,}", _share(after, before)) for name, before, after in pairs]
    return text_table(("", "before", "after", "kept"), rows)


def _changed_groups(changes: Mapping[str, GroupChange], *, merged: bool) -> str:
    alike: dict[tuple[int, int, str], list[str]] = {}
    for name, change in changes.items():
        how = re.sub(r"\d+", "#", change.how)
        alike.setdefault((change.before, change.after, how), []).append(name)
    lines = [
        (names, before, after)
        for (before, after, _), members in alike.items()
        for names in (like_names(members) if merged else [[name] for name in members])
    ]
    places = {name: place for place, name in enumerate(changes)}
    rows = [
        (
            common_name(names),
            f"x{len(names)}" if len(names) > 1 else "",
            before,
            after,
            _spanned([changes[name].how for name in names]),
        )
        for names, before, after in sorted(lines, key=lambda line: places[line[0][0]])
    ]
    if not any(row[1] for row in rows):
        return text_table(("group", "before", "after", "how"), [(row[0], *row[2:]) for row in rows])
    return text_table(("group", "", "before", "after", "how"), rows)


def _spanned(texts: Sequence[str]) -> str:
    """Return texts that differ in numbers alone as one: `10-22 dead, 32 alive`."""
    pieces = [re.split(r"(\d+)", text) for text in texts]
    spans = []
    for place, same in enumerate(zip(*pieces, strict=True)):
        if place % 2:
            low, high = min(map(int, same)), max(map(int, same))
            spans.append(str(low) if low == high else f"{low}-{high}")
        else:
            spans.append(same[0])
    return "".join(spans)


def like_names(names: Sequence[str]) -> list[list[str]]:
    """Return the names in lists, each of names that differ in one number at the same place, or alone.

    `layer1.0.conv1` goes with `layer1.1.conv1`, not with `layer2.1.conv1` as well. The place is the one that
    leaves the fewest lists.
    """
    by_words: dict[tuple[str, ...], list[list[str]]] = {}
    for name in names:
        pieces = re.split(r"(\d+)", name)
        by_words.setdefault(tuple(pieces[::2]), []).append(pieces)
    found: list[list[str]] = []
    for words_between, alike in by_words.items():
        choices = [[["".join(pieces)] for pieces in alike]]
        for place in range(1, 2 * len(words_between) - 1, 2):
            lists: dict[tuple[str, ...], list[str]] = {}
            for pieces in alike:
                key = (*pieces[:place], *pieces[place + 1 :])
                lists.setdefault(key, []).append("".join(pieces))
            choices.append(list(lists.values()))
        fewest = min(choices, key=len)
        found += fewest
    return found


def common_name(names: Sequence[str]) -> str:
    """Return the name with `*` for each number that differs: `layer1.*.conv1`.

    Args:
        names: at least one; they differ in numbers alone.
    """
    pieces = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(same[0] if len(set(same)) == 1 else "*" for same in pieces)


def _groups_that_stay(changes: Mapping[str, GroupChange]) -> list[str]:
    """Return one paragraph with a line per reason, or none."""
    widths_by_reason: dict[str, dict[str, int]] = {}
    for name, change in changes.items():
        all_alive = change.how == f"{change.before} alive"
        reason = "every channel is needed" if all_alive else change.how.removeprefix(_WHOLE)
        widths_by_reason.setdefault(reason, {})[name] = change.before
    if not widths_by_reason:
        return []
    lines = [
        f"  {reason}: {_folded(widths, _LINE - len(reason))}" for reason, widths in widths_by_reason.items()
    ]
    return ["\n".join([f"unchanged: {_number(len(changes), 'group')}", *lines])]


def _folded(widths: Mapping[str, int], space: int) -> str:
    """List names with their width, those that differ in numbers alone as one, cut to about `space`."""
    by_width: dict[int, list[str]] = {}
    for name, width in widths.items():
        by_width.setdefault(width, []).append(name)
    items = [
        f"{common_name(names)} ({'' if len(names) == 1 else f'{len(names)} x '}{width})"
        for width, members in by_width.items()
        for names in like_names(members)
    ]
    num_shown, length = 0, 0
    while num_shown < len(items) and (num_shown == 0 or length + len(items[num_shown]) <= space):
        length += len(items[num_shown]) + 2
        num_shown += 1
    rest = len(items) - num_shown
    return ", ".join(items[:num_shown]) + (f" and {rest} more" if rest else "")


def near_zero_text(report: NearZeroReport) -> str:
    """Return what was set to zero because it was nearly zero, and how far that moved the outputs."""
    if not report.tensors:
        return f"nothing is nearly zero: no row or gamma lies between 0 and {report.threshold:g}"
    rows = [
        (zeroed.tensor, zeroed.kind, f"{zeroed.num_zeroed} of {zeroed.width}", f"{zeroed.largest:.2e}")
        for zeroed in report.tensors
    ]
    same = report.same_top1_fraction
    top1 = "" if same is None else f", top-1 the same on {words.percent(same)}"
    return (
        f"{text_table(('set to zero', 'kind', 'number', 'largest'), rows)}\n\n"
        f"nearly zero (at or below {report.threshold:g}): {_number(report.num_zeroed('rows'), 'row')} and "
        f"{_number(report.num_zeroed('gammas'), 'gamma')} set to zero, the largest {report.largest:.2e}\n"
        f"outputs moved by {report.moved:.1e} (max|a-b| / max|b|) on "
        f"{_number(report.num_samples, 'random input')}{top1}"
    )


def _number(count: int, what: str) -> str:
    noun, space, rest = what.partition(" that ")
    return f"{count:,} {noun}{'' if count == 1 else 's'}{space}{rest}"


def _share(after: int, before: int) -> str:
    return words.percent(after / before) if before else "-"
