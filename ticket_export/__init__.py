"""From a lottery ticket to a faster engine, with proof.

The names below are loaded on first use, so `import ticket_export` is instant and needs no torch. `shrink` is
both the function everybody wants and a subpackage: `ticket_export.shrink` is always the function, and the
subpackage is reached by `from ticket_export.shrink.<file> import <name>`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ticket_export.errors import (
    DataError,
    DeviceError,
    DivergedError,
    ExportError,
    MeasureError,
    MissingDependency,
    ParityError,
    RecipeError,
    ShrinkError,
    StoreError,
    TicketExportError,
    TrainError,
)

if TYPE_CHECKING:
    from ticket_export.channels.graph import ChannelGroup, channel_groups
    from ticket_export.channels.mask import ElementMask, Mask
    from ticket_export.export.engine import engine_from_onnx
    from ticket_export.export.onnx import onnx_from_module
    from ticket_export.find.magnitude import magnitude_mask
    from ticket_export.find.refill import refill
    from ticket_export.find.ticket import Ticket
    from ticket_export.measure.compare import Comparison, compare
    from ticket_export.pipeline import run
    from ticket_export.pipeline.widths import WidthChoice, fastest_widths
    from ticket_export.recipe.load import load_recipe
    from ticket_export.recipe.schema import Recipe
    from ticket_export.report.rows import Report
    from ticket_export.shrink.bundle import load_bundle, save_bundle
    from ticket_export.shrink.exact import Shrunk, shrink
    from ticket_export.train.evaluate import evaluate

    __version__: str

__all__ = [
    "ChannelGroup",
    "Comparison",
    "DataError",
    "DeviceError",
    "DivergedError",
    "ElementMask",
    "ExportError",
    "Mask",
    "MeasureError",
    "MissingDependency",
    "ParityError",
    "Recipe",
    "RecipeError",
    "Report",
    "ShrinkError",
    "Shrunk",
    "StoreError",
    "Ticket",
    "TicketExportError",
    "TrainError",
    "WidthChoice",
    "__version__",
    "channel_groups",
    "compare",
    "engine_from_onnx",
    "evaluate",
    "fastest_widths",
    "load_bundle",
    "load_recipe",
    "magnitude_mask",
    "onnx_from_module",
    "refill",
    "run",
    "save_bundle",
    "shrink",
]

_MODULE_BY_NAME = {
    "ChannelGroup": "ticket_export.channels.graph",
    "Comparison": "ticket_export.measure.compare",
    "ElementMask": "ticket_export.channels.mask",
    "Mask": "ticket_export.channels.mask",
    "Recipe": "ticket_export.recipe.schema",
    "Report": "ticket_export.report.rows",
    "Shrunk": "ticket_export.shrink.exact",
    "Ticket": "ticket_export.find.ticket",
    "WidthChoice": "ticket_export.pipeline.widths",
    "channel_groups": "ticket_export.channels.graph",
    "compare": "ticket_export.measure.compare",
    "engine_from_onnx": "ticket_export.export.engine",
    "evaluate": "ticket_export.train.evaluate",
    "fastest_widths": "ticket_export.pipeline.widths",
    "load_bundle": "ticket_export.shrink.bundle",
    "load_recipe": "ticket_export.recipe.load",
    "magnitude_mask": "ticket_export.find.magnitude",
    "onnx_from_module": "ticket_export.export.onnx",
    "refill": "ticket_export.find.refill",
    "run": "ticket_export.pipeline",
    "save_bundle": "ticket_export.shrink.bundle",
}


def __getattr__(name: str) -> Any:  # Any: each public name has its own type, given to checkers above
    if name == "__version__":
        from importlib.metadata import version

        return version("ticket-export")
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    # Importing the subpackage binds it to the name `shrink` here and would hide the function; a data
    # descriptor outranks that binding. (Python's reference, "Customizing module attribute access".)
    @property
    def shrink(self) -> Any:  # Any: checkers see the function's own type above
        return import_module("ticket_export.shrink.exact").shrink

    @shrink.setter
    def shrink(self, subpackage: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
