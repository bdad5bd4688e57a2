"""How to read a report: what each word and number in it means."""

from __future__ import annotations

from collections.abc import Mapping

from ticket_export.report.rows import Report

_SUBJECTS: Mapping[str, str] = {
    "dense": "dense is the network before anything is cut.",
    "ticket": "ticket@2 is the network that the second level of the method keeps, trained; its controls have "
    "the same level.",
    "search": "search is a training that only prepares its ticket: it is part of what the ticket cost, and "
    "is never measured.",
    "unstructured": "unstructured is the dense network with single weights at zero, as magnitude pruning "
    "left it, trained and unshrunk.",
    "searched": "searched is the network as its search left it, before the ticket trains on.",
    "no_reactivation": "no_reactivation comes from another search, in which channels set to zero never came "
    "back, and is then trained like the ticket.",
    "uniform_latency": "uniform_latency shrinks every layer alike, to the ticket's predicted latency, and "
    "has new weights.",
    "uniform": "uniform shrinks every layer alike, to the ticket's MACs, and has new weights.",
    "depgraph": "depgraph keeps the channels that torch-pruning's own pruner keeps of the trained dense "
    "network, at the pruning ratio whose MACs are nearest to the ticket's, and is then trained like the "
    "ticket: from the same weights, for as long.",
    "random": "random keeps as many {things} of every layer as the ticket, drawn by chance, and keeps their "
    "weights, as the ticket does.",
    "reinit": "reinit keeps the ticket's {things} with new weights.",
    "random_reinit": "random_reinit keeps as many {things} of every layer, drawn by chance, with new "
    "weights.",
}
_THINGS_BY_METHOD = {"imp": "single weights", "regroup": "blocks"}
_READING = (
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
        "never narrower than one test image to either side. A ticket wins where all of it lies above 0, and "
        "loses where all of it lies below. One that holds 0 is not resolved: it tells how far apart the two "
        "can at most be. Fewer than three replicates resolve nothing. Every interval stands alone: of "
        "twenty, one is expected to miss.",
    ),
    (
        "Pareto front",
        "The subjects that no other dominates. Another one does that is shown to be faster (their speedups' "
        "intervals do not meet) with a mean accuracy no lower, or that is shown to be more accurate (its "
        "verdict would be wins) and is not shown to be slower. So a subject may stay on the front because "
        "nothing is resolved.",
    ),
    ("Parity", "max|a-b| / max|b| of the exported file's outputs against the network it came from."),
)


def reading(report: Report) -> tuple[tuple[str, str], ...]:
    """Return what a reader must know, as (term, text): of the subjects those that the run has."""
    trained = (one.subject for cost in report.search_costs for one in cost.trained)
    kinds = {subject.partition("@")[0] for subject in (*report.subjects, *trained)}
    things = "channels" if report.method is None else _THINGS_BY_METHOD.get(report.method, "channels")
    told = [text.format(things=things) for kind, text in _SUBJECTS.items() if kind in kinds]
    return (("Subjects", " ".join(told)), *_READING)


PRECISION_NOTE = (
    "Both errors are max|a-b| / max|b| of a file's outputs: to torch, against the trained network it came "
    "from; to fp32, against the fp32 file of the same network, so that what a precision costs is apart from "
    "what export costs. Of fp16 it is the larger one of the file as it runs and of every value rounded to "
    "fp16, because ONNX Runtime on a CPU computes fp16 files in fp32. Class of fp32: the share of the "
    "calibration images, drawn from the training images, on which INT8 names the class that fp32 names. "
    "Accuracy is on the test images."
)
