"""A Runner whose latencies are scripted: it computes nothing and takes no time. For tests of measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import numpy as np

from ticket_export.runtime.runner import Array, TensorSpec, require_inputs, require_scope

IMAGE_SPEC = TensorSpec(name="input", dtype="float32", shape=(None, 1, 2, 2))
LOGITS_SPEC = TensorSpec(name="logits", dtype="float32", shape=(None, 1))


class FakeRunner:
    """A runner whose n-th timed call takes `latency_s(n)` seconds, n counted from 0.

    Args:
        latency_s: seconds of the n-th call of `time_once`.
        name, device, precision, threads, settings, spec, output_spec: what it claims to be.
    """

    def __init__(
        self,
        latency_s: Callable[[int], float],
        *,
        name: str = "fake",
        device: str = "cpu",
        precision: str = "fp32",
        threads: int = 1,
        settings: Mapping[str, str] | None = None,
        spec: TensorSpec = IMAGE_SPEC,
        output_spec: TensorSpec = LOGITS_SPEC,
    ) -> None:
        self._latency_s = latency_s
        self.name = name
        self.device = device
        self.precision = precision
        self.threads = threads
        self.settings: dict[str, str] = dict(settings or {})
        self.input_specs = {spec.name: spec}
        self.output_specs = {output_spec.name: output_spec}
        self.num_calls = 0
        self.num_renewals = 0
        self.inputs_seen: list[Array] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the sum of every image's pixels as its only logit, [N, 1] float32."""
        require_inputs(self.name, self.input_specs, inputs)
        (array,) = inputs.values()
        sums = np.asarray(array, dtype=np.float32).reshape(len(array), -1).sum(axis=1, keepdims=True)
        return {"logits": sums}

    def time_once(self, inputs: Mapping[str, Array], scope: str) -> float:
        """Return the script's next latency in seconds and remember the inputs."""
        require_scope(scope)
        require_inputs(self.name, self.input_specs, inputs)
        self.inputs_seen.extend(array for array in inputs.values() if not self._saw(array))
        self.num_calls += 1
        return self._latency_s(self.num_calls - 1)

    def renew(self) -> None:
        """Count the call; nothing lies in memory."""
        self.num_renewals += 1

    def _saw(self, array: Array) -> bool:
        return bool(self.inputs_seen) and self.inputs_seen[-1] is array
