"""The device and the processes of a training, through accelerate; and its random states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def accelerated(device: torch.device) -> Iterator[Any]:  # Any: accelerate carries no types
    """Yield an Accelerator for `device` that is this training's own.

    accelerate keeps device and precision once per process: the first training would decide for all later
    ones, and an Accelerator of the caller would decide for ours. What was there before is put back
    afterwards.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    states = (AcceleratorState._shared_state, PartialState._shared_state)
    before = [dict(state) for state in states]
    try:
        for state in states:
            state.clear()
        # Precision "no": the loop itself casts, and scales the loss, so that fp16 works on every device alike
        yield Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    finally:
        for state, held in zip(states, before, strict=True):
            state.clear()
            state.update(held)


@contextmanager
def own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) for the block; the old states come back."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global generators: `rng.cpu`, and `rng.device` where it is another."""
    states = {"rng.cpu": torch.default_generator.get_state()}
    if device.type != "cpu":
        states["rng.device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_states` returned."""
    torch.default_generator.set_state(states["rng.cpu"])
    if "rng.device" in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["rng.device"], device)


def is_main_process() -> bool:
    """Return whether this process writes for all that share a training; alone it does."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
