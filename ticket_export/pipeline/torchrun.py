"""What torchrun says of this process, and the process group in which trainings are shared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from ticket_export.errors import RecipeError, TrainError, WorkerDiedError

if TYPE_CHECKING:
    import torch

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_MEETING = timedelta(minutes=5)  # until all processes have started
_EXCHANGE = timedelta(hours=1)  # between two steps of a training: a compilation, a checkpoint on a slow disk
_meetings = count()  # what an earlier run of these processes wrote is not read again


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this process stands among those that share the trainings; alone it is the first of one.

    Attributes:
        rank: from 0, over all machines.
        local_rank: from 0, on this machine.
        num_processes: over all machines.
        num_here: on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    num_processes: int = 1
    num_here: int = 1


def place_in_torchrun() -> Place:
    """Return what torchrun says of this process; whoever was not started by it is alone.

    Raises:
        TrainError: torchrun's variables hold no numbers.
    """
    if any(name not in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        return Place()
    told = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if not all(value.isdecimal() for value in told.values()):
        raise TrainError(
            f"the environment holds {', '.join(f'{name}={value}' for name, value in told.items())}",
            hint="start the run by torchrun, which sets them to numbers, or unset them",
        )
    num_processes = int(told["WORLD_SIZE"])
    return Place(
        rank=int(told["RANK"]),
        local_rank=int(told["LOCAL_RANK"]),
        num_processes=num_processes,
        num_here=int(told["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in told else num_processes,
    )


def device_at(place: Place, name: str) -> str:
    """Return the device of one process: each takes the GPU of its own number.

    Raises:
        RecipeError: a device that several processes cannot train on together.
    """
    if place.num_processes == 1 or name == "cpu":
        return name
    if name != "cuda":
        raise RecipeError(
            f"device is {name}, and {place.num_processes} processes train together",
            hint="use --device cuda, where each takes the GPU of its own number, or --device cpu",
        )
    return f"cuda:{place.local_rank}"


class KeyStore(Protocol):
    """What torch.distributed calls a store: names and bytes, seen by all processes."""

    def set(self, key: str, value: str) -> None: ...  # noqa: D102 - torch's, also below
    def get(self, key: str) -> bytes: ...  # noqa: D102
    def check(self, keys: list[str]) -> bool: ...  # noqa: D102
    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes: ...  # noqa: D102


def meeting_place() -> KeyStore:
    """Return the store of this run, which all processes see; torchrun keeps it, or else the first process.

    Raises:
        WorkerDiedError: the other processes did not come.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=_MEETING))
    except (RuntimeError, ValueError) as error:
        raise WorkerDiedError(
            f"the processes that are to train together do not find each other: {error}",
            hint="start them by torchrun",
        ) from error
    ours: KeyStore = _prefixed(f"ticket_export-{next(_meetings)}", store)
    return ours


def _prefixed(prefix: str, store: Any) -> Any:  # Any: torch's stubs leave the class out
    from torch import distributed

    return distributed.PrefixStore(prefix, store)  # type: ignore[attr-defined]


@contextmanager
def process_group(place: Place, store: KeyStore, device: torch.device, threads: int) -> Iterator[None]:
    """Let accelerate find torchrun's variables and a process group inside; the group is kept for later."""
    import torch
    from torch import distributed

    values = (place.rank, place.local_rank, place.num_processes, place.num_here)
    told = {name: str(value) for name, value in zip(_VARIABLES, values, strict=True)}
    # Without it accelerate sets torch's threads as it likes
    with _variables({"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), **told}):
        if not distributed.is_initialized():
            is_gpu = device.type == "cuda"
            if is_gpu:
                torch.cuda.set_device(device)
            distributed.init_process_group(
                "nccl" if is_gpu else "gloo",
                store=_prefixed("group", store),
                rank=place.rank,
                world_size=place.num_processes,
                timeout=_EXCHANGE,
                device_id=device if is_gpu else None,
            )
        yield


def abort_group() -> None:
    """Free whoever waits for another's share on a GPU; where sockets carry it, their end does."""
    from torch import distributed

    if distributed.group.WORLD is not None:
        distributed.group.WORLD.abort()


def close_group() -> None:
    """Leave the process group, if there is one."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Hide torchrun's variables: accelerate would wait for the other processes."""
    with _variables(dict.fromkeys(_VARIABLES)):
        yield


@contextmanager
def _variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables, or remove them where the value is None, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
