"""torch.compile: the module through TorchDynamo and Inductor.

Mode "default", one graph per shape (`dynamic=False`, `fullgraph=True`: a break would time Python). The modes
that time candidate kernels take minutes per network and shape, and "reduce-overhead" adds a CUDA graph, which
is a runtime of its own here. Compiling happens in the first run at a shape, never in a timed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import ClassVar

import torch

from ticket_export.errors import MissingDependency
from ticket_export.runtime.torch_eager import Outputs

MODE = "default"


class Compiled:
    """The module as torch.compile makes it, once per input shape."""

    settings: ClassVar[Mapping[str, str]] = {"compile_mode": MODE}

    def __init__(self, module: torch.nn.Module, device: torch.device) -> None:
        self._call = torch.compile(_own_function(module), mode=MODE, dynamic=False, fullgraph=True)
        self._device = device
        self._seen: set[tuple[torch.Size, ...]] = set()

    def ready(self, arguments: list[torch.Tensor]) -> Callable[[], Outputs]:
        """Return a call of the compiled module; compiles at a new shape.

        Raises:
            MissingDependency: there is no C++ compiler, or no Triton, to build the kernels with.
        """
        shapes = tuple(argument.shape for argument in arguments)
        if shapes not in self._seen:
            with _tools_told(self._device):
                self._call(*arguments)
            self._seen.add(shapes)
        return lambda: self._call(*arguments)

    def renew(self) -> None:
        """Pass: the compiled code takes the weights as arguments."""


def _own_function(module: torch.nn.Module) -> Callable[..., Outputs]:
    """Return a function that calls `module` and shares its code with no other.

    TorchDynamo keeps what it compiled by code object and gives up after eight entries: compared networks of
    one class would share them, be checked against each other's guards in every call, and run out of entries.
    """

    def forward(*arguments: torch.Tensor) -> Outputs:
        outputs: Outputs = module(*arguments)
        return outputs

    own: Callable[..., Outputs] = FunctionType(
        forward.__code__.replace(), forward.__globals__, forward.__name__, None, forward.__closure__
    )
    return own


@contextmanager
def _tools_told(device: torch.device) -> Iterator[None]:
    """Name the tool that is missing when the kernels cannot be built."""
    try:
        yield
    except Exception as error:  # Inductor's errors arrive wrapped in TorchDynamo's
        words = _words(error)
        if "InvalidCxxCompiler" in words or "No working C++ compiler" in words:
            raise MissingDependency(
                "runtime 'torch-compile' builds its kernels with a C++ compiler, and none works here",
                hint="apt install g++, or name one in the variable CXX",
            ) from error
        if "TritonMissing" in words or "Cannot find a working triton" in words:
            raise MissingDependency(
                f"runtime 'torch-compile' needs Triton on {device}", hint="pip install triton"
            ) from error
        raise


def _words(error: BaseException | None) -> str:
    """Return the types and texts of an error and of all that it was raised from."""
    words = []
    while error is not None:
        words.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(words)
