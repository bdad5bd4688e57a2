"""From the sum over a table's layers to the latency of a whole network, and by how much that errs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ticket_export.errors import MeasureError

MIN_NETWORKS = 4
MIN_SPREAD = 0.01  # of the sums: where they all are one, no line through them has a slope


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNetwork:
    """A network that was timed as a whole.

    Attributes:
        name: of the network.
        layers_s: the sum of its layers' seconds in the table.
        seconds: of one inference, measured.
    """

    name: str
    layers_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """seconds(network) = offset_s + scale * the sum over its layers.

    Attributes:
        offset_s: what no layer of the table stands for; below 0 where the table counts too much.
        scale: what the layers of a network take, over what the table says.
        networks: the ones it was fitted on.
        errors: predicted / measured - 1 of each, by the fit of all others.
    """

    offset_s: float
    scale: float
    networks: tuple[WholeNetwork, ...]
    errors: tuple[float, ...]

    def seconds(self, layers_s: float) -> float:
        """Return the seconds of a network from the sum over its layers."""
        return self.offset_s + self.scale * layers_s

    @property
    def median_error(self) -> float:
        """The median of the errors without their signs."""
        return float(np.median(np.abs(self.errors)))

    @property
    def largest_error(self) -> float:
        """The largest of the errors without their signs."""
        return float(np.max(np.abs(self.errors)))

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return JSON values that `from_json` reads."""
        networks = [asdict(network) for network in self.networks]
        return {
            "offset_s": self.offset_s,
            "scale": self.scale,
            "networks": networks,
            "errors": [*self.errors],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:  # Any: JSON values
        """Return the calibration that `to_json` described.

        Raises:
            MeasureError: it is none.
        """
        try:
            found = cls(
                offset_s=float(value["offset_s"]),
                scale=float(value["scale"]),
                networks=tuple(WholeNetwork(**network) for network in value["networks"]),
                errors=tuple(float(error) for error in value["errors"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MeasureError(f"latency table: its calibration cannot be read: {error!r}") from error
        if found.to_json() != value:
            raise MeasureError("latency table: its calibration holds fields that this version does not know")
        return found


def calibrated(networks: Sequence[WholeNetwork]) -> Calibration:
    """Return the line through the networks with the least relative errors, and the error of each left out.

    Args:
        networks: at least 4, of different sums.

    Raises:
        MeasureError: too few networks, or networks that do not get slower with their layers.
    """
    if len(networks) < MIN_NETWORKS:
        raise MeasureError(
            f"latency table: {len(networks)} whole networks were timed, a calibration needs {MIN_NETWORKS}"
        )
    layers_s = np.array([network.layers_s for network in networks])
    seconds = np.array([network.seconds for network in networks])
    offset_s, scale = _line(layers_s, seconds)
    if not scale > 0.0:
        raise MeasureError(
            f"latency table: networks of more layer time are not slower (slope {scale:.3g}), so the layers "
            "tell nothing of whole networks here",
            hint="measure again while nothing else runs on this machine",
        )
    errors = []
    for index, network in enumerate(networks):
        others = np.arange(len(networks)) != index
        offset_without_s, scale_without = _line(layers_s[others], seconds[others])
        errors.append((offset_without_s + scale_without * network.layers_s) / network.seconds - 1.0)
    return Calibration(offset_s=offset_s, scale=scale, networks=tuple(networks), errors=tuple(errors))


def _line(
    layers_s: np.ndarray[tuple[int], np.dtype[np.float64]],
    seconds: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[float, float]:
    """Return offset and slope of the line with the least squares of relative errors.

    Networks on one stair have equal sums: the layers are then taken at their word, a slope of 1.
    """
    if np.ptp(layers_s) <= MIN_SPREAD * np.max(layers_s):
        return float(np.average(seconds - layers_s, weights=seconds**-2.0)), 1.0
    rows = np.stack([np.ones_like(layers_s), layers_s], axis=1) / seconds[:, None]
    (offset_s, scale), *_ = np.linalg.lstsq(rows, np.ones_like(seconds), rcond=None)
    return float(offset_s), float(scale)
