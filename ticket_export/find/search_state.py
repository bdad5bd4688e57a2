"""A search on disk: the state after its last event, tensors and facts in one safetensors file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from ticket_export.channels.mask import Mask
from ticket_export.find.search_rules import SearchEvent
from ticket_export.find.sliced_state import Standing
from ticket_export.train.checkpoint import load_checkpoint, require_identity, save_checkpoint, under
from ticket_export.train.state import EpochRecord

_PARTS = ("weights", "average", "optimizer", "zeroed")


@dataclass(slots=True, kw_only=True)
class Search:
    """A search under way, between two of its parts.

    Attributes:
        standing: after the last event.
        identity: facts by name that a checkpoint must share, as JSON.
        events: those that were held.
        history: one record per epoch.
        num_processes: that shared the batches.
    """

    standing: Standing
    identity: dict[str, object]
    events: list[SearchEvent] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)
    num_processes: int = 1


def save_search(search: Search, folder: Path) -> None:
    """Replace the folder's checkpoint by the state after the last event.

    Raises:
        StoreError: it cannot be written.
    """
    standing = search.standing
    tensors = {
        f"{part}.{name}": tensor for part in _PARTS for name, tensor in getattr(standing, part).items()
    }
    facts = {
        "identity": search.identity,
        "mask": standing.structure.mask.to_json(),
        "events": [asdict(event) for event in search.events],
        "history": search.history,
        "num_processes": search.num_processes,
    }
    save_checkpoint(folder, tensors, facts)


def resume_search(search: Search, folder: Path) -> None:
    """Go on where the folder's checkpoint stands; without one nothing changes.

    Raises:
        TrainError: the checkpoint is damaged or of another search.
    """
    found = load_checkpoint(folder)
    if found is None:
        return
    tensors, facts = found
    require_identity(facts, search.identity, folder)
    search.standing = Standing(
        structure=replace(search.standing.structure, mask=Mask.from_json(facts["mask"])),
        weights=under("weights.", tensors),
        average=under("average.", tensors),
        optimizer=under("optimizer.", tensors),
        zeroed={name: value.to(torch.bool) for name, value in under("zeroed.", tensors).items()},
    )
    search.events = [SearchEvent(**event) for event in facts["events"]]
    search.history = list(facts["history"])
    search.num_processes = facts["num_processes"]
