"""Products of two activations: matmul, bmm and scaled dot-product attention, in both passes.

The elements of one leading index (one attention head, say) are mixed with each other, so they form one
class: a head goes as a whole, when nothing reads it or when what it emits is constant.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from ticket_export.channels import ops
from ticket_export.channels.classes import ChannelClasses
from ticket_export.channels.compact import broadcast, core
from ticket_export.channels.known import Known
from ticket_export.channels.trace import Trace

ATTENTION = "scaled_dot_product_attention"
EINSUM = "einsum"
PRODUCTS = frozenset({"matmul", "bmm", "addmm", EINSUM, ATTENTION})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a contraction reads its tensors.

    Attributes:
        source, weight, bias: its arguments; `bias` is None or whatever stands there.
        row_axis, column_axis: axes of the weight that hold output and input channels.
        source_axis: of the input; `result_axis` is that of the output, where it is another.
        is_padded: whether zeros are added around the input.
    """

    source: Node
    weight: Node
    bias: object
    row_axis: int
    column_axis: int
    source_axis: int
    result_axis: int | None = None
    is_padded: bool = False


def is_parameter(argument: object) -> bool:
    """Return whether an argument is a parameter or buffer, not something computed."""
    return isinstance(argument, Node) and argument.op == "get_attr"


def parameter_reading(node: Node, trace: Trace) -> Reading | None:
    """Return how a product with a matrix of parameters reads it: a linear layer written out; else None."""
    name = ops.op_name(node)
    if name == "matmul":
        source, weight, bias = node.args[0], node.args[1], None
    elif name == "addmm" and ops.argument(node, "alpha") == 1 and ops.argument(node, "beta") == 1:
        bias, source, weight = node.args
    elif name == EINSUM and isinstance(node.args[1], list | tuple) and len(node.args[1]) == 2:
        return _einsum_reading(node, trace)
    else:
        return None
    if not _is_matrix(weight, trace) or is_parameter(source):
        return None
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    return Reading(source=source, weight=weight, bias=bias, row_axis=1, column_axis=0, source_axis=-1)


def _einsum_reading(node: Node, trace: Trace) -> Reading | None:
    operands = list(node.args[1])  # type: ignore[arg-type]
    spelt = _terms(
        str(node.args[0]),
        [
            operand.meta["val"].dim() if "val" in operand.meta else trace.tensor(str(operand.target)).dim()
            for operand in operands
        ],
    )
    if spelt is None:
        return None
    terms, output = spelt
    if is_parameter(operands[0]):
        terms, operands = terms[::-1], operands[::-1]
    source, weight = operands
    if not _is_matrix(weight, trace) or is_parameter(source):
        return None
    rows = [letter for letter in terms[1] if letter in output and letter not in terms[0]]
    columns = [letter for letter in terms[1] if letter in terms[0] and letter not in output]
    plain = set(terms[0]) - set(columns) | set(rows) == set(output) and len(output) == len(terms[0])
    if len(rows) != 1 or len(columns) != 1 or not plain:
        return None
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    return Reading(
        source=source, weight=weight, bias=None,
        row_axis=terms[1].index(rows[0]), column_axis=terms[1].index(columns[0]),
        source_axis=terms[0].index(columns[0]), result_axis=output.index(rows[0]),
    )  # fmt: skip


def _is_matrix(argument: object, trace: Trace) -> bool:
    if not isinstance(argument, Node) or argument.op != "get_attr":
        return False
    tensor = trace.tensor(str(argument.target))
    return tensor.dim() == 2 and tensor.is_floating_point()


def _terms(equation: str, num_axes: Sequence[int]) -> tuple[list[str], str] | None:
    """Return the letters of each factor and of the result, an ellipsis spelt out in capital letters."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "->" not in equation or len(terms) != len(num_axes):
        return None
    spare = [letter for letter in string.ascii_uppercase if letter not in equation]
    widest = ""
    for position, (term, count) in enumerate(zip(terms, num_axes, strict=True)):
        if "..." in term:
            hidden = "".join(spare[: count - len(term) + 3][::-1])  # aligned from the right
            terms[position] = term.replace("...", hidden)
            widest = max(widest, hidden, key=len)
    if any(len(set(term)) < len(term) for term in terms):
        return None
    return terms, output.replace("...", widest)


def label_einsum(
    classes: ChannelClasses, equation: str, factors: list[Tensor], shape: torch.Size
) -> Tensor | None:
    """Return the labels of an einsum after uniting what each index of its shared letters mixes.

    A letter that every factor and the result hold is an index (a head, say); all other letters are summed
    or spread over, so what they hold together goes as a whole.

    Returns:
        None for an equation without a result or with a repeated letter.
    """
    spelt = _terms(equation, [labels.dim() for labels in factors])
    if spelt is None:
        return None
    terms, output = spelt
    shared = [letter for letter in output if all(letter in term for term in terms)]
    heads: list[Tensor] = []
    for term, labels in zip(terms, factors, strict=True):
        order = [term.index(letter) for letter in shared]
        order += [axis for axis, letter in enumerate(term) if letter not in shared]
        stored = core(labels).permute(order)
        lines = stored.reshape(*stored.shape[: len(shared)], -1)
        classes.unite(lines, lines[..., :1])
        heads.append(lines[..., 0])
    for head in heads[1:]:
        classes.unite(heads[0], head)
    joined = heads[0]
    for head in heads[1:]:
        joined = torch.maximum(*broadcast(joined, head))
    joined = classes.roots(joined)
    placed = joined.reshape(*joined.shape, *([1] * (len(output) - len(shared))))
    letters = [*shared, *(letter for letter in output if letter not in shared)]
    return placed.permute([letters.index(letter) for letter in output]).expand(shape)


def label_product(classes: ChannelClasses, factors: list[Tensor], shape: torch.Size) -> Tensor:
    """Return the labels of a product [..., M, N] after uniting all factors of each leading index.

    Args:
        classes: the classes to unite in.
        factors: labels of the tensors that meet, each [..., rows, columns]; an attention mask is one of them.
            One that is the same for every leading index ties none of them.
        shape: of the product.
    """
    heads: list[Tensor] = []
    for labels in factors:
        if heads and labels.shape[:-2].numel() == 1:
            classes.pin(labels, "one factor of all heads of a product")
            continue
        stored = core(labels)
        lines = stored.reshape(*stored.shape[:-2], -1)
        classes.unite(lines, lines[..., :1])
        heads.append(lines[..., :1])
    for head in heads[1:]:
        classes.unite(heads[0], head)
    joined = heads[0]
    for head in heads[1:]:
        joined = torch.maximum(*broadcast(joined, head))  # FREE is the smallest label
    return classes.roots(joined[..., None]).expand(shape)


def known_product(a: Known, b: Known, product: Callable[[Tensor, Tensor], Tensor]) -> Known:
    """Return a product's known values: an exactly zero factor cancels what it meets.

    A sum that is not zero may count places, and then changes with the resolution: only zeros are known.

    Args:
        a: the first factor.
        b: the second.
        product: of two tensors of their shapes, linear in both.
    """
    reads_a, reads_b = ((factor.value != 0) | factor.taint for factor in (a, b))
    return Known.of(torch.zeros(()), product(reads_a.double(), reads_b.double()) != 0)


def known_attention(v: Known, shape: torch.Size) -> Known:
    """Return an attention's known values: rows of a softmax sum to 1, so a `v` equal over tokens passes."""
    token_axis = v.value.dim() - 2
    value, taint = v.value.narrow(token_axis, 0, 1), v.taint.any(dim=token_axis, keepdim=True)
    changes = (v.value != value).any(dim=token_axis, keepdim=True)
    return Known.of(value.expand(shape), (taint | changes).expand(shape))
