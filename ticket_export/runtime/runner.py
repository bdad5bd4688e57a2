"""What every runtime offers: named inputs in, named outputs out, and its own clock.

A Runner owns one executable form of one network on one device. Measuring never looks inside: it asks
`time_once`, because only the runtime knows which clock is honest for its device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from ticket_export.errors import MeasureError

Array: TypeAlias = npt.NDArray[np.generic]

SCOPES = ("compute", "end_to_end")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a network.

    Attributes:
        name: the name `infer` expects, or answers with.
        dtype: a NumPy dtype name, e.g. "float32".
        shape: one entry per axis, None where the axis is free. Axis 0 is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Runner(Protocol):
    """One network, ready to run on one device; a context manager that frees it at the end."""

    @property
    def name(self) -> str:
        """The runtime's registered name, e.g. "ort-cpu"."""

    @property
    def device(self) -> str:
        """Where it runs, e.g. "cpu" or "cuda:0"."""

    @property
    def precision(self) -> str:
        """What it computes in: "fp32", "fp16", "bf16", "fp64" or "int8"."""

    @property
    def threads(self) -> int:
        """How many CPU threads one inference uses."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What else decides how fast it runs, in words: memory layout, TF32, search of algorithms, graph."""

    @property
    def input_specs(self) -> dict[str, TensorSpec]:
        """The inputs in the network's own order, by name."""

    @property
    def output_specs(self) -> dict[str, TensorSpec]:
        """The outputs in the network's own order, by name."""

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name for `inputs` by name (arrays [N, ...] of the specs' dtypes)."""

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the seconds of one inference by the device's own clock.

        Args:
            inputs: arrays [N, ...] by input name.
            scope: "compute" (inputs and outputs lie where the device reads and writes them; no copy is
                timed) or "end_to_end" (from host arrays to host arrays).
        """

    def renew(self) -> None:
        """Place weights and buffers anew in memory, as a fresh process would.

        Where they happen to lie decides about 1 % of a small network's latency, as long as they lie there.
        """

    def __enter__(self) -> Self:
        """Return the runner itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the network and its buffers."""


def require_scope(scope: str) -> None:
    """Pass for a known scope.

    Raises:
        MeasureError: `scope` is not one of SCOPES.
    """
    if scope not in SCOPES:
        raise MeasureError(f"measure: scope {scope!r} is not one of {', '.join(SCOPES)}")


def require_threads(threads: int) -> None:
    """Pass for a positive thread count.

    Raises:
        MeasureError: `threads` is below 1.
    """
    if threads < 1:
        raise MeasureError(f"measure: threads is {threads}, but an inference needs at least 1")


def cuda_index(owner: str, device: str | None) -> int:
    """Return the index in "cuda:<index>"; 0 for "cuda" and None.

    Args:
        owner: the runtime that asks, for the error's text.
        device: what the caller named.

    Raises:
        MeasureError: it names no CUDA device.
    """
    kind, _, index = ("cuda" if device is None else device).partition(":")
    if kind != "cuda" or not (index.isdecimal() or device in (None, "cuda")):
        raise MeasureError(
            f"runtime {owner!r} runs on a CUDA device, got {device!r}", hint="name it cuda or cuda:0"
        )
    return int(index or "0")


def require_inputs(owner: str, specs: Mapping[str, TensorSpec], inputs: Mapping[str, Array]) -> None:
    """Pass when `inputs` holds exactly the named arrays that `specs` describe.

    Args:
        owner: who asks, for the error's text.
        specs: what the network accepts.
        inputs: what it is given.

    Raises:
        MeasureError: a name is missing or unknown, or an array has another dtype or shape.
    """
    if set(inputs) != set(specs):
        raise MeasureError(f"{owner}: inputs are {sorted(inputs)}, but the network takes {sorted(specs)}")
    for name, spec in specs.items():
        array = inputs[name]
        fits = array.ndim == len(spec.shape) and all(
            size in (None, given) for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits:
            raise MeasureError(
                f"{owner}: input {name!r} is {array.dtype.name} {list(array.shape)}, "
                f"but the network takes {spec.dtype} {shape_text(spec.shape)}"
            )


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Return a shape as text, with N for a free first axis and ? for any other free axis."""
    free = ["N"] + ["?"] * len(shape)
    words = [free[axis] if size is None else str(size) for axis, size in enumerate(shape)]
    return f"[{', '.join(words)}]"
