"""What each result of a run was made from: which trainings a network needed, and for how long it learnt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ticket_export.errors import StoreError
from ticket_export.report.artefacts import Manifest

# The ticket gives these no more than its MACs or its latency, a number that needs no ticket
_TAKES_ONLY_COSTS = ("uniform", "uniform_latency", "depgraph")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The results of one run, each with those it was made from.

    Attributes:
        by_name: `<stage>/<key>` -> manifest.
        exports: of each measured subject and replicate one exported file, from which everything is reached.
    """

    by_name: Mapping[str, Manifest]
    exports: Mapping[tuple[str, int], Manifest]

    def training(self, subject: str, replicate: int) -> Manifest:
        """Return the training of a measured network.

        Raises:
            StoreError: the run lacks it.
        """
        network = self._parent(self.exports[subject, replicate], "network")
        return network if network["stage"] == "train" else self._parent(network, "trained")

    def shrink(self, subject: str, replicate: int) -> Manifest | None:
        """Return the shrink of a measured network; None where it is exported as it was trained."""
        network = self._parent(self.exports[subject, replicate], "network")
        return network if network["stage"] == "shrink" else None

    def finder(self, subject: str, replicate: int) -> Manifest | None:
        """Return the finder whose mask a measured network was trained under; None for dense."""
        training = self.training(subject, replicate)
        return self._parent(training, "mask") if "mask" in training["parents"] else None

    def trainings_behind(self, training: Manifest) -> list[tuple[Manifest, float]]:
        """Return all trainings that `training` depends on, through finders too, and itself last.

        Beside each stands for how many of its epochs it was needed: all, or those before the rewind point of
        a dense training that nothing else was taken from. A control that takes only a cost from the ticket
        does not depend on how the ticket was found; a table of latencies is of the machine, not trained.
        """
        found: dict[str, Manifest] = {}
        rewound: dict[str, Manifest] = {}
        self._collect(training, found, rewound)
        needed = [
            (dense, epochs)
            for name, dense in rewound.items()
            if name not in found and (epochs := _epochs_before_rewind(dense))
        ]
        trained = [manifest for manifest in found.values() if manifest["stage"] == "train"]
        return needed + [(manifest, num_epochs(manifest)) for manifest in trained]

    def num_epochs_learnt(self, training: Manifest) -> float:
        """Return for how many epochs the weights have learnt at the end, those before the start included."""
        own = num_epochs(training)
        if "weights" in training["parents"]:
            return own + self.num_epochs_learnt(self._parent(training, "weights"))
        if "start" in training["parents"]:
            return own + _rewind_epoch(self._parent(training, "start"))
        return own

    def _collect(self, manifest: Manifest, found: dict[str, Manifest], rewound: dict[str, Manifest]) -> None:
        """Add what `manifest` needs to `found`, parents first; to `rewound` what it takes a start from."""
        kind = manifest["facts"]["subject"].partition("@")[0]
        for role, name in manifest["parents"].items():
            if role == "table" or (role == "like" and kind in _TAKES_ONLY_COSTS):
                continue
            parent = self._parent(manifest, role)
            if role == "start":
                rewound[name] = parent
            elif name not in found:
                self._collect(parent, found, rewound)
        found[_name(manifest)] = manifest

    def _parent(self, manifest: Manifest, role: str) -> Manifest:
        name = manifest["parents"].get(role)
        if name not in self.by_name:
            facts = manifest["facts"]
            raise StoreError(
                f"{manifest['stage']} {facts['subject']}, replicate {facts['replicate']}: its parent "
                f"{role!r}, {name}, is not among the results of the run",
                hint="run the same command again; what is missing is then redone",
            )
        return self.by_name[name]


def lineage_from_manifests(manifests: Iterable[Manifest]) -> Lineage:
    """Return the lineage of a run's results, given in any order."""
    by_name: dict[str, Manifest] = {}
    exports: dict[tuple[str, int], Manifest] = {}
    for manifest in manifests:
        by_name[_name(manifest)] = manifest
        if manifest["stage"] == "export":
            facts = manifest["facts"]
            exports[facts["subject"], facts["replicate"]] = manifest
    return Lineage(by_name=by_name, exports=exports)


def method_of(lineage: Lineage, subjects: Iterable[tuple[str, int]]) -> str | None:
    """Return the method that found the tickets among `subjects`; None where there is no ticket."""
    for subject, replicate in subjects:
        finder = lineage.finder(subject, replicate) if subject.startswith("ticket@") else None
        if finder is not None:
            # the tickets of imp are its element masks themselves
            elements = finder["facts"]["subject"].startswith("unstructured@")
            method: str = "imp" if elements else finder["facts"]["method"]
            return method
    return None


def num_epochs(training: Manifest) -> float:
    """Return how many epochs were trained in this step."""
    facts = training["facts"]
    # stores of before hold the history alone
    epochs: float = facts["num_epochs"] if "num_epochs" in facts else len(facts["history"])
    return epochs


def _rewind_epoch(dense: Manifest) -> float:
    epoch: float = dense["sections"]["find"]["rewind_epoch"]
    return epoch


def _epochs_before_rewind(dense: Manifest) -> float:
    """Return how many epochs lead to the rewind point, one that was begun as a whole one."""
    has_step = "rewind_step" in dense["sections"]["find"]  # sections hold no defaults
    return _rewind_epoch(dense) + has_step


def _name(manifest: Manifest) -> str:
    return f"{manifest['stage']}/{manifest['key']}"
