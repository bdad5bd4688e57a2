"""What the label pass leaves: a label for every element of every value, and every use of a weight."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import Node

from ticket_export.channels.classes import ChannelClasses
from ticket_export.channels.trace import Trace

Labels = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """One use of a weight that mixes input channels into output channels.

    Attributes:
        node: the graph node.
        source: the node whose channels are consumed.
        weight: name of the weight; `bias`: name of the bias or None.
        row_axis, column_axis: axes of the weight that hold output and input channels.
        rows [O], columns [I]: labels.
        source_axis: the axis of the source that holds its channels.
        is_padded: whether zeros are added around the input before the kernel sees it.
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
    is_padded: bool


@dataclass(slots=True, kw_only=True)
class LabelledGraph:
    """What the label pass found: the labels of every value, the contractions, and the labelled parameters."""

    trace: Trace
    classes: ChannelClasses = field(default_factory=ChannelClasses)
    values: dict[Node, Labels] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    weight_rows: dict[str, tuple[int, Tensor]] = field(default_factory=dict)  # name -> (axis, labels)
    weight_columns: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    depthwise: set[str] = field(default_factory=set)  # weights whose rows stay within their channel
    leaves: dict[str, Tensor] = field(default_factory=dict)  # parameters used element by element
    unknown_ops: set[str] = field(default_factory=set)
