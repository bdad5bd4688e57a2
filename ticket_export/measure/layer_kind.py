"""What two layers must share for one staircase of latencies over widths to hold for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ticket_export.errors import MeasureError

OPS = ("conv", "linear")
MAX_WIDTHS = 16  # on one side of a layer: cells grow with the square of it


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LayerKind:
    """A layer but for its widths.

    Attributes:
        op: "conv" or "linear".
        kernel, stride, padding: height, width; (1, 1), (1, 1), (0, 0) for a linear layer.
        in_size: height and width of the input map; positions of one image and 1 for a linear layer.
        depthwise: every channel is convolved by itself, so both widths are one.
    """

    op: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    in_size: tuple[int, int]
    depthwise: bool = False

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output map; padding is equal on both sides."""
        height, width = (
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(
                self.in_size, self.padding, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    def __str__(self) -> str:
        if self.op == "linear":
            return "linear" if self.in_size == (1, 1) else f"linear, {self.in_size[0]} positions"
        word = "depthwise" if self.depthwise else "conv"
        stride = "" if self.stride == (1, 1) else f", stride {_times(self.stride)}"
        same = tuple(kernel // 2 for kernel in self.kernel)
        padding = "" if self.padding == same else f", padding {_times(self.padding)}"
        return (
            f"{word} {'x'.join(map(str, self.kernel))}{stride}{padding} at {'x'.join(map(str, self.in_size))}"
        )

    def to_json(self) -> dict[str, Any]:  # Any: JSON values
        """Return JSON values that `from_json` reads."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerKind:  # Any: JSON values
        """Return the kind that `to_json` described.

        Raises:
            MeasureError: it is none.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or sorted(value) != sorted(names):
            raise MeasureError(f"latency table: a layer kind holds {', '.join(names)}, got {value!r}")
        pairs = ("kernel", "stride", "padding", "in_size")
        fits = all(
            isinstance(value[name], list)
            and len(value[name]) == 2
            and all(type(n) is int for n in value[name])
            for name in pairs
        )
        if not fits or value["op"] not in OPS or type(value["depthwise"]) is not bool:
            raise MeasureError(f"latency table: {dict(value)!r} is no layer kind")
        return cls(
            op=value["op"],
            depthwise=value["depthwise"],
            **{name: (value[name][0], value[name][1]) for name in pairs},
        )


def table_widths(width: int, max_widths: int = MAX_WIDTHS) -> tuple[int, ...]:
    """Return the widths of a side that are measured, rising; the last is `width`.

    Multiples of 4 up to 32 channels, of 8 above, and as many times that as keep them at `max_widths`: kernels
    work in lines of 4, 8 or 16 channels, and what lies between two widths is priced as the wider one.
    """
    step = 4 if width <= 32 else 8
    while -(-width // step) > max_widths:
        step *= 2
    return (*range(step, width, step), width)


def _times(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
