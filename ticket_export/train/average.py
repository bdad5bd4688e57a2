"""The exponential moving average of a training's weights: a smoother network than the one that is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticket_export.errors import TrainError
from ticket_export.train.checkpoint import fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """After every step the average moves by `1 - decay` of the way to the weights.

    Parameters and floating buffers are averaged; other buffers are the network's own.

    Attributes:
        decay: in [0, 1); released SuperTickets code takes 0.9999 a step.
        initial: the average to start from, by state-dict name; None = the first weights.

    Raises:
        TrainError: the decay is out of range.
    """

    decay: float
    initial: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise TrainError(
                f"the average's decay is {self.decay}", hint="it must be at least 0 and below 1, e.g. 0.999"
            )

    def facts(self) -> Mapping[str, object]:
        """Return, as JSON, what a checkpoint must agree on to be resumed."""
        initial = None if self.initial is None else fingerprint(self.initial)
        return {"decay": self.decay, "initial": initial}

    def start(self, model: nn.Module) -> Averaged:
        """Return the average of `model`, where it is, before the first step.

        Raises:
            TrainError: the initial average is of another network.
        """
        live = {name: value.detach() for name, value in model.state_dict().items()}
        averaged = Averaged(
            decay=self.decay,
            live=live,
            values={name: value.clone() for name, value in live.items() if value.is_floating_point()},
        )
        if self.initial is not None:
            averaged.restore(self.initial)
        return averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """The average of a training under way.

    Attributes:
        decay: what stays of it in each step.
        live: the network's own tensors, which its training changes in place.
        values: the averages, by name, each in the memory order of what it averages.
    """

    decay: float
    live: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    @torch.no_grad()
    def step(self) -> None:
        """Move the average towards the weights; nothing is read back from the device."""
        weights = [self.live[name] for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """Return the state dict of the averaged network, on the device."""
        return {name: self.values.get(name, value) for name, value in self.live.items()}

    def buffers(self, names: Iterable[str]) -> list[Tensor]:
        """Return the averages of those of the named buffers that have one."""
        return [self.values[name] for name in names if name in self.values]

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises:
            TrainError: names or shapes are not those of the network.
        """
        wrong = [
            f"{name}: {tuple(state[name].shape) if name in state else 'missing'}"
            for name, value in self.values.items()
            if name not in state or state[name].shape != value.shape
        ]
        wrong += [f"{name}: unknown" for name in state if name not in self.live]
        if wrong:
            raise TrainError(
                f"the average to start from does not fit the network: {'; '.join(wrong[:5])}",
                hint="give the state dict of a network of the same sizes",
            )
        for name, value in self.values.items():
            value.copy_(state[name])
