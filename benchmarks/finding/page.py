"""The page of a comparison of finders, for a reader who has seen nothing else of it."""

from __future__ import annotations

from statistics import fmean

from finding.reading import (
    Document,
    batches_of,
    cost_of,
    cost_ratio,
    names_of,
    rows_of,
    speedup_of,
    tickets_of,
    values_of,
)
from finding.variants import CONTROLS, VARIANTS
from stability_section import stability

from ticket_export.report import words
from ticket_export.report.intervals import spread
from ticket_export.report.table import markdown_table
from ticket_export.report.verdict import Verdict, paired_verdict

NUM_TEST_IMAGES = 10_000  # of CIFAR-10
ABOUT = {
    "dense": "the network itself, the baseline of every ratio",
    **{variant.name: variant.about for variant in VARIANTS},
    **CONTROLS,
}
CHAINS = ("imp", "coupled")  # what channel_imp's cost is set against


def page(document: Document, command: str, load: str) -> str:
    """Return the Markdown.

    Args:
        document: what was measured.
        command: what makes it again.
        load: what else ran on the machine, in words.
    """
    parts = [
        "# Ways to find a ticket: CIFAR-10, ResNet-20",
        "What each finder's network reaches and how fast it runs, and what the search for it costs.",
        f"`{command}`",
        _head(document, load),
        _networks(document),
        _costs(document),
        _against_controls(document),
        _against_finders(document),
        stability(document["rows"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(document: Document, load: str) -> str:
    facts = [f"- {name}: {value}" for name, value in words.machine_highlights(document["machine"])]
    first = document["rows"][0]
    threads = "1 thread" if first["threads"] == 1 else f"{first['threads']} threads"
    samples = sorted({row["num_samples"] for row in document["rows"]})
    counts = f"{first['num_rounds']} x {' or '.join(map(str, samples))}"
    return "\n".join(
        [
            *facts,
            f"- Load beside it: {load}",
            f"- Latency: {first['runtime']}, {first['precision']}, {first['scope']}, {threads}; all networks "
            f"of a replicate in the same rounds, n = {counts} (rounds x samples)",
            f"- Replicates: {_num_replicates(document)}, each with its own seed; epochs and training images "
            f"are in the command; accuracies are of the {NUM_TEST_IMAGES:,} test images",
            "",
            "The figure (.svg, .png) and the raw numbers (.json) lie beside this page under its name.",
        ]
    )


def _num_replicates(document: Document) -> int:
    return len({network["replicate"] for network in document["networks"]})


def _networks(document: Document) -> str:
    names, batches = names_of(document), batches_of(document)
    heads = ("network", "accuracy (lowest-highest)", "less dense, points (95 %)", "weights kept", "MACs kept")
    told = [f"- **{name}**: {ABOUT[name]}" for name in names]
    rows = [
        (
            name,
            _accuracy(document, name),
            "-" if name == "dense" else _difference(document, name, "dense"),
            *[_mean_percent(document, name, field) for field in ("param_density", "mac_density")],
            *[_speed(document, name, batch) for batch in batches],
            *[_cost(document, name, field) for field in ("time_ratio", "macs_ratio")],
        )
        for name in names
    ]
    speeds = [f"batch {batch}: speedup (95 %)" for batch in batches]
    costs = ("search cost by time", "by epochs x MACs")
    note = (
        "A difference is paired by replicate, with Student's 95 % interval over three replicates or "
        "more. A speedup is "
        "measured against the dense network of the same replicate and rounds: the geometric mean over the "
        "replicates, in brackets the span of their 95 % intervals; `*` marks a timing with a reason to "
        "distrust it, and the reasons stand at the end. A search cost counts every training that the network "
        "needed, its own among them, in dense trainings (lowest-highest); `-` by time where one ran on other "
        "threads or another machine than the dense one."
    )
    table = markdown_table((*heads, *speeds, *costs), rows)
    return "\n".join(["## Networks", "", *told, "", note, "", table])


def _accuracy(document: Document, name: str) -> str:
    accuracies = list(values_of(document, name, "accuracy").values())
    held = spread(accuracies)
    return f"{words.percent(held.mean)} ({words.percent_range(held, len(accuracies))})"


def _mean_percent(document: Document, name: str, field: str) -> str:
    return words.percent(fmean(values_of(document, name, field).values()))


def _speed(document: Document, name: str, batch: int) -> str:
    rows = rows_of(document, name, batch)
    if not rows:
        return "-"
    mark = "" if all(row["stable"] for row in rows) else " *"
    if name == "dense":
        return f"baseline, {words.milliseconds(fmean(row['latency_s']['p50'] for row in rows))} ms{mark}"
    return f"{words.times(speedup_of(rows))}{mark}"


def _cost(document: Document, name: str, field: str) -> str:
    held = cost_of(document, name, field)
    if held is None:
        return "-"
    low, high = f"{held.low:.2f}", f"{held.high:.2f}"
    return low if low == high else f"{held.mean:.2f} ({low}-{high})"


def _costs(document: Document) -> str:
    told = [
        f"- over {chain}: {_ratio(document, chain, 'time_ratio')} of the time, "
        f"{_ratio(document, chain, 'macs_ratio')} of the epochs x MACs"
        for chain in CHAINS
        if cost_ratio(document, ("channel_imp", chain), "macs_ratio") is not None
    ]
    if not told:
        return ""
    words_of = (
        "The whole search for channel_imp, which trains every level cut out, over the whole search of masked "
        "levels (mean, lowest-highest of the replicates):"
    )
    return "\n".join(["## What levels cost that are cut out", "", words_of, "", *told])


def _ratio(document: Document, chain: str, field: str) -> str:
    found = cost_ratio(document, ("channel_imp", chain), field)
    if found is None:
        return "-"
    held, num_replicates = found
    return f"{held.mean:.2f}x ({words.spread_range(held, num_replicates, 2)})"


def _against_controls(document: Document) -> str:
    controls = [name for name in names_of(document) if name in CONTROLS]
    if not controls:
        return ""
    rows = [
        (ticket, *[_difference(document, ticket, control) for control in controls])
        for ticket in tickets_of(document)
    ]
    note = (
        "Accuracy of the ticket less the control's, in points, paired by replicate (95 %). The controls have "
        "the MACs of coupled; tickets of other sizes are no match for them at equal cost."
    )
    heads = ("ticket", *[f"less {control}" for control in controls])
    return "\n".join(["## Tickets against controls", "", note, "", markdown_table(heads, rows)])


def _against_finders(document: Document) -> str:
    others = [ticket for ticket in tickets_of(document) if ticket != "coupled"]
    if not others or "coupled" not in tickets_of(document):
        return ""
    rows = [
        (other, _difference(document, "coupled", other), _mean_percent(document, other, "mac_density"))
        for other in others
    ]
    note = (
        "Accuracy of coupled less the other's, in points, paired by replicate (95 %); coupled keeps "
        f"{_mean_percent(document, 'coupled', 'mac_density')} of the MACs."
    )
    heads = ("finder", "coupled less it", "MACs it keeps")
    return "\n".join(["## Coupled against the other finders", "", note, "", markdown_table(heads, rows)])


def verdict_of(document: Document, name: str, other: str) -> Verdict | None:
    """Return the verdict on the accuracies of two networks; None where they share no replicate."""
    held = [(each, values_of(document, each, "accuracy")) for each in (name, other)]
    if not held[0][1].keys() & held[1][1].keys():
        return None
    # the exported files in fp32, all of them by the same runtime
    return paired_verdict(*held, runtime="", precision="fp32", one_image=1 / NUM_TEST_IMAGES)


def _difference(document: Document, name: str, other: str) -> str:
    verdict = verdict_of(document, name, other)
    if verdict is None:
        return "-"
    of_all = verdict.num_replicates == _num_replicates(document)
    count = "" if of_all else f", n = {verdict.num_replicates}"
    return f"{words.points(verdict)}, {verdict.word}{count}"
