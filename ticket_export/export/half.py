"""fp32 models rewritten to compute in fp16, node by node as the schema of each operator allows.

ONNX Runtime has a converter of its own (onnxruntime.transformers.float16, as of 1.31). It is not used: the
nodes it keeps in fp32 pass values to one another through fp16, so that a value above 65504 overflows between
them, and two kept nodes that read one tensor make its cast twice, which no checker accepts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from ticket_export.errors import ExportError

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)  # 6e-8
# their outputs' type stands in an attribute, not in their inputs
_TYPED_BY_ATTRIBUTE = frozenset(
    {"Bernoulli", "EyeLike", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike", "SequenceEmpty"}
)
# they read no values, so they take a tensor in the type it has
_WITHOUT_VALUES = frozenset({"Shape", "Size"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Which float inputs and outputs of a node become fp16, by position; none in a node that stays fp32."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


class HalfGraph:
    """An fp32 model made ready: its functions inlined, constants as weights, nodes named, values typed."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else _copy(model)
        graph = self.model.graph
        for node in graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ExportError(
                    f"{path}: {node.op_type} holds a graph of its own, which is not converted to fp16",
                    hint="export a network whose forward does not branch on values",
                )
        _move_constants(graph)
        _name_nodes(graph)
        try:
            typed = onnx.shape_inference.infer_shapes(self.model, check_type=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise ExportError(f"{path}: its types cannot be inferred: {error}") from error
        values = (*typed.input, *typed.output, *typed.value_info)
        self.floats = {
            value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self.weights = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT}
        self.floats |= set(self.weights)
        opsets = {"ai.onnx" if o.domain == "" else o.domain: o.version for o in self.model.opset_import}
        multiplied = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
        self.slots = {
            node.name: Slots() if _kills_onnxruntime(node, multiplied) else self._slots(node, opsets)
            for node in graph.node
        }

    def _slots(self, node: onnx.NodeProto, opsets: Mapping[str, int]) -> Slots:
        domain = node.domain or "ai.onnx"
        try:
            schema = onnx.defs.get_schema(node.op_type, opsets[domain], "" if domain == "ai.onnx" else domain)
        except (onnx.defs.SchemaError, KeyError):
            return Slots()  # a runtime's own operator: nobody says that it takes fp16
        if node.op_type in _TYPED_BY_ATTRIBUTE | _WITHOUT_VALUES:
            return Slots()
        inputs = self._half_places(node.input, schema.inputs)
        outputs = self._half_places(node.output, schema.outputs)
        if outputs and not inputs and node.op_type not in ("Cast", "ConstantOfShape"):
            return Slots()
        return Slots(inputs=inputs, outputs=outputs)

    def _half_places(
        self, names: Iterable[str], formals: Collection[onnx.defs.OpSchema.FormalParameter]
    ) -> frozenset[int]:
        listed = list(formals)
        return frozenset(
            place
            for place, name in enumerate(names)
            if name in self.floats and "tensor(float16)" in listed[min(place, len(listed) - 1)].types
        )

    @property
    def without_half_form(self) -> frozenset[str]:
        """The nodes that compute on floats and have no fp16 form, by name."""
        return frozenset(
            node.name
            for node in self.model.graph.node
            if not self.slots[node.name]
            and node.op_type not in _WITHOUT_VALUES | {"Transpose"}
            and self.floats & {*node.input, *node.output}
        )

    def converted(self, fp32_nodes: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with weights and activations in fp16 but those of `fp32_nodes`, by node name.

        Inputs and outputs keep their types; values that pass between nodes in fp32 stay fp32.
        """
        return _Conversion(self, frozenset(fp32_nodes)).model()

    def rounded(self, fp32_nodes: Collection[str] = ()) -> onnx.ModelProto:
        """Return an fp32 model in which every value that `converted` holds in fp16 is rounded to fp16.

        It shows what any runtime rounds. ONNX Runtime on the CPU runs a converted model in fp32 from end to
        end: it takes away the casts it put between the operators itself, but none that a file asks for.
        """
        slots = {name: Slots() if name in fp32_nodes else own for name, own in self.slots.items()}
        nodes = self.model.graph.node
        made = {node.output[place] for node in nodes for place in slots[node.name].outputs}
        rounding = _Rounding(self, already=made)
        for node in nodes:
            exact = rounding.reading_rounded(node, slots[node.name], node.name)
            for place in slots[node.name].outputs:
                exact.output[place] = f"{node.output[place]}/exact"
            rounding.nodes.append(exact)
            for place in sorted(slots[node.name].outputs):
                rounding.add(exact.output[place], node.output[place])
        return rounding.model(())

    def locally_rounded(self) -> tuple[onnx.ModelProto, dict[str, list[tuple[str, str]]]]:
        """Return a model that computes each node twice from exact inputs: in fp32 and rounded to fp16.

        Also returns, for every node that can be fp16, the pairs of outputs (exact, rounded) to compare; all
        are outputs of the model.
        """
        rounding = _Rounding(self, already=frozenset())
        pairs: dict[str, list[tuple[str, str]]] = {}
        for node in self.model.graph.node:
            rounding.nodes.append(node)
            slots = self.slots[node.name]
            if not slots.outputs:
                continue
            shadow = rounding.reading_rounded(node, slots, f"{node.name}/shadow")
            for place, name in enumerate(node.output):
                shadow.output[place] = f"{name}/shadow" if name else ""
            rounding.nodes.append(shadow)
            pairs[node.name] = [(node.output[p], f"{node.output[p]}/compared") for p in sorted(slots.outputs)]
            for name, compared in pairs[node.name]:
                rounding.add(f"{name}/shadow", compared)
        return rounding.model(name for found in pairs.values() for pair in found for name in pair), pairs


class _Rounding:
    """Nodes of an fp32 model that read or give values rounded to fp16 by a pair of casts."""

    def __init__(self, source: HalfGraph, *, already: Collection[str]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._source = source
        self._weights: list[onnx.TensorProto] = []
        self._rounded = {name: name for name in already}  # original name -> where its value lies rounded

    def add(self, name: str, rounded: str) -> None:
        """Add the casts that make `rounded` out of `name`."""
        self.nodes.append(_cast(name, f"{rounded}/fp16", TensorProto.FLOAT16))
        self.nodes.append(_cast(f"{rounded}/fp16", rounded, TensorProto.FLOAT))

    def reading_rounded(self, node: onnx.NodeProto, slots: Slots, name: str) -> onnx.NodeProto:
        """Return a copy of the node that reads rounded values where it would read fp16."""
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.name = name
        for place in slots.inputs:
            copied.input[place] = self._rounded_name(node.input[place])
        return copied

    def _rounded_name(self, name: str) -> str:
        if name not in self._rounded:
            self._rounded[name] = f"{name}/rounded"
            if name in self._source.weights:
                half = half_from_array(numpy_helper.to_array(self._source.weights[name]))
                self._weights.append(numpy_helper.from_array(half.astype(np.float32), f"{name}/rounded"))
            else:
                self.add(name, f"{name}/rounded")
        return self._rounded[name]

    def model(self, shown: Iterable[str]) -> onnx.ModelProto:
        """Return the model of the nodes, with the named values as outputs beside its own."""
        model = _copy(self._source.model)
        del model.graph.node[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self._weights)
        own = {value.name for value in model.graph.output}
        for name in dict.fromkeys(shown):
            if name not in own:
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return model


class _Conversion:
    """One pass over the nodes: each reads its inputs in its own type, through a cast where they differ."""

    def __init__(self, source: HalfGraph, fp32_nodes: frozenset[str]) -> None:
        self._source = source
        self._slots = {name: Slots() if name in fp32_nodes else slots for name, slots in source.slots.items()}
        graph = source.model.graph
        self._outputs = {value.name for value in graph.output}
        self._read_half = {node.input[p] for node in graph.node for p in self._slots[node.name].inputs}
        self._read_full = {
            name
            for node in graph.node
            for place, name in enumerate(node.input)
            if place not in self._slots[node.name].inputs and node.op_type not in _WITHOUT_VALUES
        }
        self._nodes: list[onnx.NodeProto] = []
        self._half_names: dict[str, str] = {}  # original name -> where its value lies in fp16
        self._full_names: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        model = _copy(self._source.model)
        for value in model.graph.input:
            self._full_names[value.name] = value.name
        weights = [kept for w in model.graph.initializer for kept in self._weight(w)]
        for node in self._source.model.graph.node:
            self._add(node)
        for name in self._outputs & set(self._half_names) - set(self._full_names):
            self._in_full(name)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self._nodes)
        model.graph.initializer.extend(weights)
        return model

    def _weight(self, weight: onnx.TensorProto) -> list[onnx.TensorProto]:
        """Return a weight in the types it is read in; one read in both keeps its name in fp32."""
        name = weight.name
        if name not in self._source.weights:
            return [weight]
        kept = []
        if name in self._read_full or name not in self._read_half:
            self._full_names[name] = name
            kept.append(weight)
        if name in self._read_half:
            self._half_names[name] = f"{name}/fp16" if kept else name
            kept.append(_half_tensor(weight, self._half_names[name]))
        return kept

    def _add(self, node: onnx.NodeProto) -> None:
        slots = self._slots[node.name]
        half = _half_node(node, slots, node.name)
        for place, name in enumerate(node.input):
            if name in self._source.floats and node.op_type in _WITHOUT_VALUES:
                half.input[place] = self._full_names.get(name) or self._half_names[name]
            elif name in self._source.floats:
                half.input[place] = self._in_half(name) if place in slots.inputs else self._in_full(name)
        for place, name in enumerate(node.output):
            if place in slots.outputs:
                half.output[place] = f"{name}/fp16" if name in self._outputs else name
                self._half_names[name] = half.output[place]
            elif name in self._source.floats:
                self._full_names[name] = name
        self._nodes.append(half)

    def _in_half(self, name: str) -> str:
        if name not in self._half_names:
            self._half_names[name] = f"{name}/fp16"
            self._nodes.append(_cast(self._full_names[name], f"{name}/fp16", TensorProto.FLOAT16))
        return self._half_names[name]

    def _in_full(self, name: str) -> str:
        if name not in self._full_names:
            self._full_names[name] = name if name in self._outputs else f"{name}/fp32"
            self._nodes.append(_cast(self._half_names[name], self._full_names[name], TensorProto.FLOAT))
        return self._full_names[name]


def _kills_onnxruntime(node: onnx.NodeProto, multiplied: Collection[str]) -> bool:
    """Return whether the node in fp16 ends the process that opens the file in ONNX Runtime 1.31 on the CPU.

    Attention as torch writes it moves the batch axis right before a product; as fp16, ONNX Runtime's layout
    pass dies on it (segmentation fault at session creation, with files of its own converter too).
    """
    moved = [attribute.ints[0] != 0 for attribute in node.attribute if attribute.name == "perm"]
    return node.op_type == "Transpose" and any(moved) and node.output[0] in multiplied


def half_from_array(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return fp16 values of which none that was finite is infinite, and none that was not zero is zero.

    Masks of -3e38 stay finite, and an epsilon of 1e-12 keeps a division from a zero; where the change
    matters to the outputs, the parity gate finds it.
    """
    size = np.clip(np.abs(array), SMALLEST, LARGEST)
    moved = np.where(np.isfinite(array) & (array != 0), np.copysign(size, array), array)
    return moved.astype(np.float16)


def _half_tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(half_from_array(numpy_helper.to_array(tensor)), name)


def _half_node(node: onnx.NodeProto, slots: Slots, name: str) -> onnx.NodeProto:
    """Return a copy whose own type, where an attribute holds it, is fp16."""
    half = onnx.NodeProto()
    half.CopyFrom(node)
    half.name = name
    if slots.outputs and node.op_type == "Cast":
        for attribute in half.attribute:
            if attribute.name == "to":
                attribute.i = TensorProto.FLOAT16
    if slots.outputs and node.op_type == "ConstantOfShape":
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        del half.attribute[:]
        half.attribute.append(helper.make_attribute("value", _half_tensor((values or [zero])[0], "")))
    return half


def _cast(name: str, cast_name: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [cast_name], name=f"cast_{cast_name}", to=kind)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _move_constants(graph: onnx.GraphProto) -> None:
    """Make every Constant node a weight, so that one rule converts them all."""
    constants = [node for node in graph.node if node.op_type == "Constant" and not node.domain]
    for node in constants:
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        if attribute.name == "sparse_value" or attribute.name.startswith("value_string"):
            continue
        kind = np.float32 if "float" in attribute.name else np.int64
        tensor = onnx.TensorProto()
        tensor.CopyFrom(
            value if attribute.name == "value" else numpy_helper.from_array(np.array(value, kind))
        )
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
        taken.add(node.name)
