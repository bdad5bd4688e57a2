"""The few calls of Ray that are used, in this process: tasks run when waited for, the last one first."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class Queue:
    def __init__(self, actor_options: dict[str, Any]) -> None:
        assert actor_options == {"num_cpus": 0, "scheduling_strategy": "here"}
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put, self.size = self._events.put, self._events.qsize

    def get_nowait_batch(self, count: int) -> list[Any]:
        return [self._events.get_nowait() for _ in range(count)]


class ScriptedRay(ModuleType):
    """A cluster with the resources of `machines`.

    Attributes:
        told: calls in their order: submit, end, cancel and kill with a key; init and shutdown.
        options: of the tasks.
        broken: what a task does instead of its work, by key.
        peak: the most tasks that were submitted and had not ended.
    """

    def __init__(self, *machines: dict[str, float]) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.machines = machines or ({"CPU": 2.0},)
        self.told: list[tuple[str, ...]] = []
        self.options: dict[str, Any] = {}
        self.broken: dict[str, Callable[[], Any]] = {}
        self.peak = 0
        self.init_options: dict[str, Any] = {}
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self._connected = False
        self._open: dict[str, Callable[[], Any]] = {}
        self._ended: dict[str, Any] = {}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> ScriptedRay:
        strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        monkeypatch.setitem(sys.modules, "ray", self)
        monkeypatch.setitem(sys.modules, "ray.util.queue", SimpleNamespace(Queue=Queue))
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
        return self

    def is_initialized(self) -> bool:
        return self._connected

    def init(self, **options: Any) -> None:
        self._connected, self.init_options = True, options
        self.told.append(("init",))

    def shutdown(self) -> None:
        self._connected = False
        self.told.append(("shutdown",))

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
        return [{"Alive": True, "Resources": offer} for offer in self.machines] + [gone]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        self.options = options

        def wrap(function: Callable[..., Any]) -> Any:
            def submit(told: str, key: str, post: Any) -> str:
                assert self._connected
                self.told.append(("submit", key))
                self._open[key] = self.broken.get(key, lambda: function(told, key, post))
                self.peak = max(self.peak, len(self._open))
                return key

            return SimpleNamespace(remote=submit)

        return wrap

    def wait(
        self, keys: Sequence[str], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[str], list[str]]:
        if (
            num_returns > 1 or keys[-1] not in self._open
        ):  # at the end: what was cancelled does not end itself
            return [], list(keys)
        try:
            self._ended[keys[-1]] = self._open.pop(keys[-1])()
        except RayError as error:
            self._ended[keys[-1]] = error
        self.told.append(("end", keys[-1]))
        return [keys[-1]], list(keys[:-1])

    def get(self, key: str) -> Any:
        if isinstance(self._ended[key], RayError):
            raise self._ended[key]
        return self._ended[key]

    def cancel(self, key: str, *, force: bool = False) -> None:
        self.told.append(("kill" if force else "cancel", key))
