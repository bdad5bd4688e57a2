"""The page of accuracy against measured latency: every network, the fronts, the pairs."""

from __future__ import annotations

from statistics import fmean

from fronts.pairs import accuracy_words, latency_words
from fronts.reading import DENSE, Document, accuracies_of
from stability_section import stability

from ticket_export.report import words
from ticket_export.report.intervals import NUM_REPLICATES_NEEDED, Spread, mean_interval
from ticket_export.report.table import markdown_table
from ticket_export.report.verdict import paired_verdict

FRONT_NOTE = (
    "A network leaves the front only for another one that is shown to be faster (the interval of their "
    "speedup, from the same rounds) with a mean accuracy no lower, or that is shown to be more accurate "
    "(paired by replicate, 95 %) and is not shown to be slower."
)
PAIR_NOTE = (
    "Latency: how many times faster the first is, from the same rounds (95 %). Accuracy: of the first less "
    "that of the second, in points, paired by replicate (Student's 95 % interval, three replicates or more)."
)


def page(document: Document, command: str, load: str) -> str:
    """Return the Markdown.

    Args:
        document: what was measured.
        command: what makes it again.
        load: what else ran on the machine, in words.
    """
    parts = [
        f"# Accuracy against measured latency: {document['title']}",
        "\n".join(f"**{line}.**" + "  " for line in front_lines(document)).rstrip(),
        f"`{command}`",
        _head(document, load),
        _networks(document),
        _fronts(document),
        _pairs(document),
        stability(document["rows"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def names_of(document: Document) -> list[str]:
    """Return the names of all networks, dense first."""
    return list(dict.fromkeys(network["name"] for network in document["networks"]))


def front_lines(document: Document) -> list[str]:
    """Return the line that names the front of each batch."""
    return [batch["front_line"] for batch in document["batches"]]


def accuracy_interval(accuracies: list[float]) -> Spread:
    """Return the mean and its 95 % interval over replicates; below three of them, the mean alone."""
    mean = fmean(accuracies)
    enough = len(accuracies) >= NUM_REPLICATES_NEEDED
    low, high = mean_interval(accuracies) if enough else (mean, mean)
    return Spread(mean=mean, low=low, high=high)


def _head(document: Document, load: str) -> str:
    first = document["rows"][0]
    threads = "1 thread" if first["threads"] == 1 else f"{first['threads']} threads"
    samples = sorted({row["num_samples"] for row in document["rows"]})
    counts = f"{first['num_rounds']} x {' or '.join(map(str, samples))}"
    timed_by = document["accuracy_by"]
    return "\n".join(
        [
            *(f"- {name}: {value}" for name, value in words.machine_highlights(document["machine"])),
            f"- Load beside it: {load}",
            f"- Latency: {first['runtime']}, {first['precision']}, {first['scope']}, {threads}; all networks "
            f"of a batch in the same rounds, n = {counts} (rounds x samples)",
            f"- Accuracy: of {document['num_test_images']:,} test images, by {timed_by}, from the reports of "
            f"{words.listed(document['runs'])}",
            f"- Timed: {_timed(document)}",
            "",
            "The figure (.svg, .png) and the raw numbers (.json) lie beside this page under its name.",
        ]
    )


def _timed(document: Document) -> str:
    """Say of which networks one replicate stands for all."""
    keys = {(network["name"], network["timed_as"]) for network in document["networks"]}
    one = [name for name in names_of(document) if sum(key[0] == name for key in keys) == 1]
    several = [name for name in names_of(document) if name not in one]
    told = f"one replicate for all, as their widths are equal: {words.listed(one)}" if one else ""
    return ". ".join(filter(None, (told, f"Every replicate: {words.listed(several)}" if several else "")))


def _networks(document: Document) -> str:
    networks = document["networks"]
    heads = ("network", "accuracy (95 %)", "less dense, points (95 %)", "weights kept", "MACs kept")
    speeds = [
        head.format(batch["batch"])
        for batch in document["batches"]
        for head in ("batch {}: latency, ms (95 %)", "speedup (95 %)")
    ]
    rows = [
        (
            name,
            _accuracy(document, name),
            _less_dense(document, name),
            *(
                words.percent(fmean(each[field] for each in networks if each["name"] == name))
                for field in ("param_density", "mac_density")
            ),
            *(cell for batch in document["batches"] for cell in _speed(batch, name)),
        )
        for name in names_of(document)
    ]
    note = (
        "Dense is that of the first run, and the baseline of every speedup. A speedup over replicates of "
        "unequal widths is their geometric mean, in brackets the span of their intervals; `*` marks a "
        "timing with a reason to distrust it."
    )
    return "\n".join(["## Networks", "", note, "", markdown_table((*heads, *speeds), rows)])


def _accuracy(document: Document, name: str) -> str:
    accuracies = list(accuracies_of(document["networks"], name).values())
    held = accuracy_interval(accuracies)
    interval = f"{100 * held.low:.1f}-{100 * held.high:.1f}, " if held.low != held.high else ""
    return f"{words.percent(held.mean)} ({interval}n = {len(accuracies)})"


def _less_dense(document: Document, name: str) -> str:
    held = [(each, accuracies_of(document["networks"], each)) for each in (name, DENSE)]
    if name == DENSE or not held[0][1].keys() & held[1][1].keys():
        return "-"
    one_image = 1 / document["num_test_images"]
    verdict = paired_verdict(*held, runtime="", precision="", one_image=one_image)
    return f"{words.points(verdict)}, {verdict.word}"


def _speed(batch: Document, name: str) -> tuple[str, str]:
    held = next(each for each in batch["networks"] if each["name"] == name)
    latency = Spread(**held["latency_s"])
    low, high = words.milliseconds(latency.low), words.milliseconds(latency.high)
    mark = "" if held["stable"] else " *"
    return (
        f"{words.milliseconds(latency.mean)} ({low}-{high})",
        "baseline" + mark if name == DENSE else words.times(Spread(**held["speedup"])) + mark,
    )


def _fronts(document: Document) -> str:
    told = []
    for batch in document["batches"]:
        dominated = [f"{name} by {other}" for name, other in batch["front"]["dominated_by"].items()]
        told.append(f"- {batch['front_line']}. Dominated: {'; '.join(dominated) or 'none'}.")
    return "\n".join(["## Pareto fronts", "", FRONT_NOTE, "", *told])


def _pairs(document: Document) -> str:
    if not document["pairs"]:
        return ""
    rows = [
        (pair["one"], pair["other"], pair["batch"], latency_words(pair), accuracy_words(pair))
        for pair in document["pairs"]
    ]
    heads = ("network", "against", "batch", "latency", "accuracy, points (95 %)")
    return "\n".join(["## Pairs at equal measured latency", "", PAIR_NOTE, "", markdown_table(heads, rows)])
