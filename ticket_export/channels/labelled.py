"""What the label pass leaves: a label for every element of every value, and every use of a weight."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from ticket_export.channels.classes import ChannelClasses
from ticket_export.channels.trace import Trace

Labels = Tensor | tuple[Tensor, ...]


def parts_of(labels: Labels) -> tuple[Tensor, ...]:
    """Return the labels of each tensor of a value; most values are one tensor."""
    return labels if isinstance(labels, tuple) else (labels,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """One use of a weight that mixes input channels into output channels.

    Attributes:
        node: the graph node.
        source: the node whose channels are consumed.
        weight: name of the weight; `bias`: name of the bias or None.
        row_axis, column_axis: axes of the weight that hold output and input channels.
        rows [O], columns [I]: labels; a column for every input channel, also where groups share them.
        source_axis, result_axis: the axes of input and output that hold their channels.
        groups: row o reads only the columns of its own group.
        is_padded: whether zeros are added around the input before the kernel sees it.
        has_computed_bias: whether the layer adds a bias that is no parameter.
    """

    node: Node
    source: Node
    weight: str
    bias: str | None
    row_axis: int
    column_axis: int
    rows: Tensor
    columns: Tensor
    source_axis: int
    result_axis: int
    groups: int = 1
    is_padded: bool = False
    has_computed_bias: bool = False


@dataclass(slots=True, kw_only=True)
class LabelledGraph:
    """What the label pass found: the labels of every value, the contractions, and the labelled parameters."""

    trace: Trace
    classes: ChannelClasses = field(default_factory=ChannelClasses)
    values: dict[Node, Labels] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    weight_rows: dict[str, tuple[int, Tensor]] = field(default_factory=dict)  # name -> (axis, labels)
    weight_columns: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    grouped_columns: dict[str, tuple[int, Tensor]] = field(default_factory=dict)  # name -> (groups, labels)
    equal_counts: list[tuple[Tensor, str]] = field(default_factory=list)  # labels a mask may not choose among
    depthwise: set[str] = field(default_factory=set)  # weights whose rows stay within their channel
    leaves: dict[str, Tensor] = field(default_factory=dict)  # parameters used element by element
    unknown_ops: set[str] = field(default_factory=set)
