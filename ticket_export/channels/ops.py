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
        "repeat", "narrow", "index", "tile", "repeat_interleave", "slice_scatter",
    }
)  # fmt: skip

# the same elements in the same places; layout and dtype arguments do not matter to a label
COPIES = frozenset(
    {"clone", "contiguous", "alias", "detach", "_to_copy", "to", "lift_fresh_copy", "dropout", "type_as"}
)

# one value everywhere, in the shape of the first argument; None: the value is the second argument
FILLS: dict[str, float | None] = {
    "zeros_like": 0.0, "zero": 0.0, "ones_like": 1.0, "full_like": None, "fill": None,
}  # fmt: skip

# new tensors that take no more than type and device from their argument
CREATIONS = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})

# element-wise, though torch does not tag them so
_POINTWISE = frozenset(
    {"hardswish", "log_sigmoid", "where", "lerp", "rsub", "masked_fill", "addcmul", "addcdiv"}
)

# name -> number of trailing axes that are pooled, each channel on its own
POOLS = {
    "max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3, "max_pool2d_with_indices": 2,
    "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3,
    "adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3,
    "adaptive_max_pool1d": 1, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3,
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3,
    "_upsample_nearest_exact1d": 1, "_upsample_nearest_exact2d": 2, "_upsample_nearest_exact3d": 3,
    "upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_trilinear3d": 3, "upsample_bicubic2d": 2,
    "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2,
}  # fmt: skip

PADS = frozenset({"constant_pad_nd", "pad"})

REDUCTIONS = frozenset(
    {"mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "prod", "logsumexp", "max", "min"}
)

# of a constant that is equal along the reduced axes, these give the same for any number of elements
SIZE_FREE_REDUCTIONS = frozenset({"mean", "amax", "amin", "max", "min"})

# the normalised or compared axes mix their channels
SOFTMAXES = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax"})
LAYER_NORMS = frozenset({"layer_norm", "rms_norm"})
MIXERS = SOFTMAXES | LAYER_NORMS | {"group_norm"}


def op_name(node: Node) -> str:
    """Return the operation's name without namespace and overload, e.g. `conv2d`; "" for no ATen operation."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    return target._schema.name.rpartition("::")[2]


def is_pointwise(node: Node) -> bool:
    """Return whether every output element depends on the input elements in its own place alone."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or op_name(node) in _POINTWISE


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
