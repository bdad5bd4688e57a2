"""Networks of finished runs: accuracies by replicate and their files; what runs share is one network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ticket_export.errors import MeasureError, StoreError
from ticket_export.report.order import subject_order
from ticket_export.store.key import sha256_of_file

Document: TypeAlias = Mapping[str, Any]  # Any: JSON
Key: TypeAlias = tuple[str, int]
DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is read of every run.

    Attributes:
        runtime: whose files are timed.
        precision: of the files, and of the accuracies.
        accuracy_by: the runtime that the accuracies were computed by.
    """

    runtime: str
    precision: str
    accuracy_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One replicate of one network.

    Attributes:
        name: `refill:ticket@1`, or `dense` for that of the first run.
        kind: the subject's own name, as `ticket@1`.
        dense: the name of the dense network that it comes from.
        path: its exported file.
    """

    name: str
    kind: str
    dense: str
    replicate: int
    accuracy: float
    param_density: float
    mac_density: float
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The networks of all runs.

    Attributes:
        networks: dense first, then run by run.
        names: `RUN:SUBJECT` -> the name of that network; several where runs share it.
        num_test_images: how many images each accuracy was computed on.
    """

    networks: tuple[Network, ...]
    names: Mapping[str, str]
    num_test_images: int

    def name_of(self, given: str) -> str:
        """Return the name of a network that is given as `RUN:SUBJECT` or by its name.

        Raises:
            MeasureError: there is none.
        """
        if given not in self.names and given not in self.names.values():
            raise MeasureError(
                f"{given!r} is no network of these runs", hint=f"known are {', '.join(sorted(self.names))}"
            )
        return self.names.get(given, given)


def collect(folders: Mapping[str, Path], source: Source) -> Collected:
    """Return every network of the runs that has an accuracy and a file.

    Args:
        folders: `OUT/runs/NAME` by what the run is called.
        source: what to read.

    Raises:
        StoreError: a run has no report, or its report names no such accuracy or file.
        MeasureError: accuracies were computed on unequal numbers of images, or the first run has no dense.
    """
    images = {run: _num_test_images(folder) for run, folder in folders.items()}
    if len(set(images.values())) != 1:
        told = ", ".join(f"{run}: {number:,}" for run, number in images.items())
        raise MeasureError(
            f"accuracies are of unequal numbers of test images ({told})", hint="give runs of one test set"
        )
    networks: list[Network] = []
    names: dict[str, str] = {}
    hashes: dict[str, dict[int, str]] = {}
    for run, folder in folders.items():
        networks += _new_networks(run, folder, source, names, hashes)
    if not any(network.name == DENSE for network in networks):
        raise MeasureError(
            f"{next(iter(folders))}: the first run has no dense network, the baseline",
            hint="name a run first that measured dense",
        )
    order = [DENSE, *names.values()]
    networks.sort(key=lambda network: (order.index(network.name), network.replicate))
    return Collected(networks=tuple(networks), names=names, num_test_images=next(iter(images.values())))


def _new_networks(
    run: str, folder: Path, source: Source, names: dict[str, str], hashes: dict[str, dict[int, str]]
) -> list[Network]:
    """Return the networks of a run that are not known yet; `names` and `hashes` grow by all of them."""
    report = _json(folder / "report.json")
    rows = _rows(folder, report, source)
    paths = {key: _path(folder, report, key, source) for key in rows}
    own = {key: sha256_of_file(path) for key, path in paths.items()}
    known = {name: dict(each) for name, each in hashes.items()}
    found: list[Network] = []
    for subject in sorted({subject for subject, _ in rows}, key=subject_order):
        by_replicate = {replicate: own[of, replicate] for of, replicate in rows if of == subject}
        first = subject == DENSE and DENSE not in known
        name = _same(by_replicate, known) or (DENSE if first else f"{run}:{subject}")
        names[f"{run}:{subject}"] = name
        fresh = [replicate for replicate in by_replicate if replicate not in known.get(name, {})]
        hashes.setdefault(name, {}).update(by_replicate)
        found += [
            Network(
                name=name,
                kind=subject,
                dense=names.get(f"{run}:{DENSE}", DENSE),
                replicate=replicate,
                path=paths[subject, replicate],
                **{
                    field: rows[subject, replicate][field]
                    for field in ("accuracy", "param_density", "mac_density")
                },
            )
            for replicate in sorted(fresh)
        ]
    return found


def _same(by_replicate: Mapping[int, str], known: Mapping[str, Mapping[int, str]]) -> str | None:
    """Return the network of another run whose files are the same wherever both have the replicate."""
    for name, other in known.items():
        shared = by_replicate.keys() & other.keys()
        if shared and all(by_replicate[replicate] == other[replicate] for replicate in shared):
            return name
    return None


def _rows(folder: Path, report: Document, source: Source) -> dict[Key, Document]:
    """Return a row of each subject and replicate; rows of other batches say the same of it."""
    wanted = (source.accuracy_by, source.precision)
    found = {
        (row["subject"], row["replicate"]): row
        for row in report["rows"]
        if (row["runtime"], row["precision"]) == wanted
    }
    if not found:
        had = sorted({f"{row['runtime']} {row['precision']}" for row in report["rows"]})
        raise StoreError(
            f"{folder}: no accuracy by {' '.join(wanted)} is reported, only by {', '.join(had)}",
            hint="name one of these with --accuracy-by and --precision",
        )
    return found


def _path(folder: Path, report: Document, key: Key, source: Source) -> Path:
    """Return the exported file of a network: the one of the runtime's own widths, or the one for all."""
    paths = {
        file["runtime"]: file["path"]
        for file in report["files"]
        if (file["subject"], file["replicate"], file["precision"]) == (*key, source.precision)
    }
    told = paths.get(source.runtime, paths.get(None))
    path = None if told is None else _store(folder) / str(told)
    if path is None or not path.is_file():
        raise StoreError(
            f"{folder}: {key[0]}, replicate {key[1]}: its {source.precision} file for {source.runtime} "
            f"({told}) is not there",
            hint="run its recipe again; what is missing is then made anew",
        )
    return path


def _num_test_images(folder: Path) -> int:
    """Return on how many images the accuracies of a run were computed, from its stored results."""
    told = _json(folder / "run.json")["results"]
    for result in (_store(folder) / name for name in told if name.startswith("measure/")):
        facts = _json(result / "manifest.json")["facts"]
        if facts["kind"] == "accuracy":
            number: int = facts["num_images"]
            return number
    raise StoreError(f"{folder}: none of its results is an accuracy", hint="give a run that measured")


def _store(folder: Path) -> Path:
    return folder.resolve().parents[1] / "store"


def _json(path: Path) -> Document:
    try:
        found: Document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}", hint="give OUT/runs/NAME of a run that is finished"
        ) from error
    return found


def accuracies_of(networks: Sequence[Document], name: str) -> dict[int, float]:
    """Return the accuracies of one network of a document by replicate."""
    return {network["replicate"]: network["accuracy"] for network in networks if network["name"] == name}
