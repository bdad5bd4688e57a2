"""What an ATen operation does to channels, by kind.

Only the kinds matter to the two passes (`labels`, `constants`); an operation that has none pins its channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
TRANSPOSED_CONVOLUTIONS = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
BATCH_NORMS = frozenset({"_native_batch_norm_legit_no_training", "batch_norm"})

# the result holds elements of the first argument (or of its list), moved: the op is applied to the labels
# themselves
MOVEMENTS = frozenset(
    {
        "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "expand", "slice", "select", "split",
        "split_with_sizes", "chunk", "unbind", "cat", "stack", "unsqueeze", "squeeze", "flip", "roll",
        "flatten", "unflatten", "index_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
        "repeat", "narrow", "index",
    }
)  # fmt: skip

# the same elements in the same places; layout and dtype arguments do not matter to a label
COPIES = frozenset(
    {"clone", "contiguous", "alias", "detach", "_to_copy", "to", "lift_fresh_copy", "dropout", "type_as"}
)

# name -> number of trailing axes that are pooled, each channel on its own
POOLS = {
    "max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3, "max_pool2d_with_indices": 2,
    "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3,
    "adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3,
    "adaptive_max_pool2d": 2,
    "upsample_nearest2d": 2, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2,
}  # fmt: skip

PADS = frozenset({"constant_pad_nd", "pad"})

REDUCTIONS = frozenset({"mean", "sum", "amax", "amin"})

# the normalised or compared axes mix their channels
MIXERS = frozenset(
    {"layer_norm", "group_norm", "softmax", "_softmax", "log_softmax", "_log_softmax", "instance_norm"}
)


def op_name(node: Node) -> str:
    """Return the operation's name without namespace and overload, e.g. `conv2d`; "" for no ATen operation."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    return target._schema.name.rpartition("::")[2]


def is_pointwise(node: Node) -> bool:
    """Return whether every output element depends on the input elements in its own place alone."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def argument(node: Node, name: str) -> Any:  # Any: whatever the schema holds there
    """Return the argument `name` of an ATen call: as given, else its default, else None."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, formal in enumerate(node.target._schema.arguments):
        if formal.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, formal.default_value if formal.has_default_value() else None)
    return None


def numbers(value: object) -> list[int]:
    """Return one number or a list of them as a list."""
    values = value if isinstance(value, list | tuple) else [value]
    return [number for number in values if isinstance(number, int)]


def pad_mode(node: Node) -> str:
    """Return how a pad fills its border: "constant", "reflect", "replicate" or "circular"."""
    return str(argument(node, "mode") or "constant")


def adds_zeros(node: Node) -> bool:
    """Return whether a convolution or pool adds zeros (or "same" padding) around its input."""
    padding = argument(node, "padding")
    return padding == "same" if isinstance(padding, str) else any(numbers(padding))
