"""Penalties whose gradients are added between the backward pass and the optimiser's step.

Each is a function of the weights and the step alone, so that resuming needs no state, and none reads a value
back from the device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ticket_export.errors import TrainError
from ticket_export.train.checkpoint import fingerprint

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # _NormBase: of batches and of instances


class Penalty(Protocol):
    """Adds its gradients to those of the loss."""

    def add_gradients(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Add the penalty's gradient to `.grad` of what it concerns; a parameter without one is skipped.

        Args:
            parameters: all of the network, by every name they have.
            step: 0 for the first step of this training, resumed or not.

        Raises:
            TrainError: the penalty names what is no parameter, or has another shape.
        """

    def facts(self) -> Mapping[str, object]:
        """Return, as JSON, what a checkpoint must agree on to be resumed."""


def norm_scales(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all scales (gammas) of norms, in module order; a shared one is named once.

    The class of the module tells a norm's scale from other vectors of one number per channel.
    """
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        scale = getattr(module, "weight", None)
        if isinstance(module, _NORMS) and isinstance(scale, nn.Parameter):
            names.setdefault(id(scale), f"{path}.weight" if path else "weight")
    return tuple(names.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaL1:
    """Network slimming: `coefficient * sign(gamma)` is added to the gradients of norm scales.

    Source: Liu et al. 2017 (arXiv 1708.06519); Early-Bird tickets are drawn with 1e-4 (arXiv 1909.11957).

    Attributes:
        names: the scales, as `norm_scales` finds them.
        coefficient: at least 0.

    Raises:
        TrainError: the coefficient is negative.
    """

    names: tuple[str, ...]
    coefficient: float

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise TrainError(f"gamma_l1 is {self.coefficient}", hint="it must be at least 0")

    @torch.no_grad()
    def add_gradients(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Add the sub-gradient of `coefficient * sum |gamma|`, the same at every step."""
        chosen = _with_gradients(self.names, parameters)
        if chosen:
            signs = torch._foreach_sign(list(chosen.values()))
            torch._foreach_add_(_gradients(chosen.values()), signs, alpha=self.coefficient)

    def facts(self) -> Mapping[str, object]:
        """Return names and coefficient."""
        return {"penalty": "gamma_l1", "names": list(self.names), "coefficient": self.coefficient}


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedGammaL1:
    """Network slimming by cost: `coefficient(step) * price * sign(gamma)` is added to the scales' gradients.

    The coefficient rises linearly from zero. Source: the released code of SuperTickets (You et al. 2022,
    arXiv 2207.03677), where a price is what one channel costs over the mean of all, and the rise takes 25
    epochs.

    Attributes:
        price_by_name: scale -> price of each of its channels (`mean_prices`).
        limit: the coefficient after the rise; at least 0.
        ramp_steps: steps of the rise; 0 = none.
        first_step: steps that lie before the first one of this training, where it is a part of a search.

    Raises:
        TrainError: a number is negative.
    """

    price_by_name: Mapping[str, float]
    limit: float
    ramp_steps: int = 0
    first_step: int = 0

    def __post_init__(self) -> None:
        numbers = {"gamma_l1": self.limit, "ramp_steps": self.ramp_steps, "first_step": self.first_step}
        numbers |= {f"price of {name}": price for name, price in self.price_by_name.items()}
        for name, value in numbers.items():
            if not value >= 0:
                raise TrainError(f"the priced penalty's {name} is {value}", hint="it must be at least 0")

    def coefficient(self, step: int) -> float:
        """Return the coefficient at a step of this training."""
        if self.ramp_steps == 0:
            return self.limit
        return self.limit * min(1.0, (self.first_step + step) / self.ramp_steps)

    @torch.no_grad()
    def add_gradients(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Add the sub-gradient of `coefficient(step) * sum price * |gamma|`."""
        chosen = _with_gradients(self.price_by_name, parameters)
        coefficient = self.coefficient(step)
        if chosen and coefficient > 0:
            signs = torch._foreach_sign(list(chosen.values()))
            torch._foreach_mul_(signs, [self.price_by_name[name] for name in chosen])
            torch._foreach_add_(_gradients(chosen.values()), signs, alpha=coefficient)

    def facts(self) -> Mapping[str, object]:
        """Return prices and numbers."""
        numbers = {"limit": self.limit, "ramp_steps": self.ramp_steps, "first_step": self.first_step}
        return {"penalty": "priced_gamma_l1", "prices": dict(self.price_by_name), **numbers}


def mean_prices(cost_by_name: Mapping[str, float], widths: Mapping[str, int]) -> dict[str, float]:
    """Return the costs of one channel, scaled so that their mean over all channels is 1.

    Args:
        cost_by_name: scale -> what one of its channels costs, in any unit; at least 0.
        widths: scale -> its channels.

    Raises:
        TrainError: nothing costs anything.
    """
    total = sum(cost * widths[name] for name, cost in cost_by_name.items())
    if not total > 0:
        raise TrainError(f"the channels of {len(cost_by_name)} norms cost {total} together")
    mean = total / sum(widths[name] for name in cost_by_name)
    return {name: cost / mean for name, cost in cost_by_name.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowingL2:
    """An l2 penalty on chosen elements whose coefficient grows: `min(limit, delta * (step // interval))`.

    What the elements have learnt moves into the others before they are cut. Source: Bai et al. 2022 (arXiv
    2203.04248), where delta is 1e-4, interval 1 to 5 and limit 1.

    Attributes:
        keep: parameter name -> bool of its shape, True = keep; where it is False the weight is penalised.
        delta: what is added to the coefficient each time; above 0.
        interval: steps between two additions; at least 1.
        limit: the largest coefficient; above 0.

    Raises:
        TrainError: a number is out of range, or a mask is not bool.
    """

    keep: Mapping[str, Tensor]
    delta: float
    interval: int
    limit: float
    _dropped: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("delta", "interval", "limit"):
            if not getattr(self, name) > 0:
                raise TrainError(
                    f"the growing l2 penalty's {name} is {getattr(self, name)}", hint="it must be above 0"
                )
        for name, keep in self.keep.items():
            if keep.dtype != torch.bool:
                raise TrainError(f"the growing l2 penalty's mask of {name!r} is {keep.dtype}, not bool")

    def coefficient(self, step: int) -> float:
        """Return the coefficient at a step."""
        return min(self.limit, self.delta * (step // self.interval))

    @torch.no_grad()
    def add_gradients(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Add `coefficient(step) * w` to the gradients of the elements to be dropped."""
        coefficient = self.coefficient(step)
        chosen = _with_gradients(self.keep, parameters)
        if chosen and coefficient > 0:
            weights = list(chosen.values())
            masks = [self._mask(name, weight) for name, weight in chosen.items()]
            torch._foreach_addcmul_(_gradients(weights), weights, masks, value=coefficient)

    def facts(self) -> Mapping[str, object]:
        """Return the numbers and a hash of the masks."""
        numbers = {"delta": self.delta, "interval": self.interval, "limit": self.limit}
        return {"penalty": "growing_l2", **numbers, "keep": fingerprint(self.keep)}

    def _mask(self, name: str, weight: Tensor) -> Tensor:
        """Return 1 where the weight is penalised, of its type, on its device, in its memory order."""
        held = self._dropped.get(name)
        if held is None or (held.device, held.dtype, held.stride()) != (
            weight.device,
            weight.dtype,
            weight.stride(),
        ):
            if self.keep[name].shape != weight.shape:
                raise TrainError(
                    f"the growing l2 penalty's mask of {name!r} is {tuple(self.keep[name].shape)}, "
                    f"the parameter {tuple(weight.shape)}"
                )
            held = self._dropped[name] = torch.empty_like(weight).copy_(~self.keep[name])
        return held


def _with_gradients(names: Collection[str], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in names:
        if name not in parameters:
            raise TrainError(f"a penalty names {name!r}, which is no parameter of the network")
    return {name: parameters[name] for name in names if parameters[name].grad is not None}


def _gradients(parameters: Collection[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
