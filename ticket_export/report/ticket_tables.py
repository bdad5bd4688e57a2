"""What finding tickets took and gave, as tables of text: early stops, costs, blocks."""

from __future__ import annotations

from ticket_export.report import words
from ticket_export.report.blocks import densities, whole_layers
from ticket_export.report.early_stop import Sooner, early_lines, sooner
from ticket_export.report.intervals import Spread
from ticket_export.report.rows import Report
from ticket_export.report.search_cost import cost_lines
from ticket_export.report.table import markdown_table

EARLY_HEADS = ("Subject", "Iteration", "Accuracy there", "Accuracy at the end")
SOONER_HEADS = (
    *("Ticket", "Against", "Sooner (95 %)", "Sooner: verdict"),
    *("Accuracy there (95 %)", "Accuracy: verdict"),
)
COST_HEADS = ("Subject", "Epochs trained", "Time", "Epochs times MACs")
BLOCK_HEADS = ("Subject", "Left by pruning", "Weights kept", "Weights held", "MACs executed")
LAYER_HEADS = ("Subject", "Replicate", "Layer", "Blocks", "Form", "MACs executed", "Why so")
WHOLE_HEADS = ("Layer", "Why it runs whole", "In")

EARLY_NOTE = (
    "Iteration of the lowest validation loss, found afterwards, as every training runs to its end: mean over "
    "replicates (lowest-highest). Iterations count from the start of the dense training, those before a "
    "rewind point included. Accuracies are on the test images. Sooner: iterations of the other over "
    "those of the ticket, paired by replicate, the interval over log ratios. Accuracy there: of the ticket "
    "less that of the other, in points."
)
COST_NOTE = (
    "Everything that had to be trained to find and train a network, its own training included, in units of "
    "the dense training of the same replicate: in time, and in epochs times MACs, which no machine disturbs "
    "(a teacher's own MACs are not in it). Mean over replicates (lowest-highest). Of a dense training that "
    "gives no more than the rewind point, the epochs before it count. A uniform or depgraph network takes "
    "only its MACs or its time from the ticket, so the ticket's search is not in its cost. Networks may "
    "train side by side, so times are costs, not measurements; - where they ran on other machines, threads "
    "or devices than dense."
)
BLOCK_NOTE = (
    "Blocks of rows and columns execute as small convolutions. Left by pruning: the share of the prunable "
    "weights before they were grouped. Shares of dense: weights kept, by the mask; weights held, by the "
    "network that runs, zeros included; MACs executed, by it. They differ, because a layer of few weights "
    "can have most of the MACs, and a layer without a block that pays runs whole."
)


def early_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `EARLY_HEADS` per subject that was validated within epochs."""
    return [
        (
            line.subject,
            f"{line.iteration.mean:,.0f} ({words.spread_range(line.iteration, line.num_replicates, 0)})",
            _accuracy(line.test_accuracy, line.num_replicates),
            _accuracy(line.end_accuracy, line.num_replicates),
        )
        for line in early_lines(report)
    ]


def _accuracy(found: Spread, num_replicates: int) -> str:
    return f"{words.percent(found.mean)} ({words.percent_range(found, num_replicates)})"


def sooner_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `SOONER_HEADS` per ticket and what it is set against."""
    return [
        (
            one.ticket,
            one.against,
            times_sooner(one),
            one.word,
            words.points(one.accuracy),
            words.verdict_words(one.accuracy),
        )
        for one in sooner(report)
    ]


def times_sooner(one: Sooner) -> str:
    """Write a ratio of iterations with its interval: `2.51x (2.10-3.00)`."""
    text = f"{one.ratio:.2f}x"
    return text if one.low is None or one.high is None else f"{text} ({one.low:.2f}-{one.high:.2f})"


def cost_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `COST_HEADS` per measured subject."""
    return [
        (
            line.subject,
            line.trained,
            "-" if line.times is None else _cost(line.times, line.num_replicates),
            _cost(line.macs, line.num_replicates),
        )
        for line in cost_lines(report.search_costs)
    ]


def _cost(found: Spread, num_replicates: int) -> str:
    return f"{words.dense_trainings(found.mean)} ({words.spread_range(found, num_replicates)})"


def block_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `BLOCK_HEADS` per subject that is executed in blocks."""
    return [
        (subject, "-" if left is None else words.percent(left), *map(words.percent, shares))
        for subject, (left, *shares) in densities(report.blocks).items()
    ]


def layer_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `LAYER_HEADS` per layer, subject and replicate."""
    return [
        (
            one.subject,
            str(one.replicate),
            layer.layer,
            str(layer.num_blocks),
            layer.form,
            words.percent(layer.executed_macs / layer.dense_macs),
            layer.reason,
        )
        for one in report.blocks
        for layer in one.layers
    ]


def whole_rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of `WHOLE_HEADS` per layer that runs whole, and reason."""
    everywhere = list(dict.fromkeys(one.subject for one in report.blocks))
    return [
        (layer, reason, "all" if subjects == everywhere else ", ".join(subjects))
        for layer, by_reason in whole_layers(report.blocks).items()
        for reason, subjects in by_reason.items()
    ]


def early_markdown(report: Report) -> list[str]:
    """Return the section on early stops; empty where nothing was validated within epochs."""
    rows, compared = early_rows(report), sooner_rows(report)
    if not rows:
        return []
    tables = [markdown_table(EARLY_HEADS, rows)]
    tables += [markdown_table(SOONER_HEADS, compared)] if compared else []
    return ["## At the lowest validation loss", EARLY_NOTE, *tables]


def cost_markdown(report: Report) -> list[str]:
    """Return the section on what finding cost; empty where no training is known."""
    rows = cost_rows(report)
    return ["## What finding it cost", COST_NOTE, markdown_table(COST_HEADS, rows)] if rows else []


def block_markdown(report: Report) -> list[str]:
    """Return the section on blocks; empty where nothing is executed in blocks."""
    if not report.blocks:
        return []
    parts = ["## Weights kept and MACs executed", BLOCK_NOTE, markdown_table(BLOCK_HEADS, block_rows(report))]
    whole = whole_rows(report)
    return [*parts, markdown_table(WHOLE_HEADS, whole)] if whole else parts
