"""One ONNX file becomes the bytes of one engine: what the builder is told, in each generation of TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ticket_export.errors import MeasureError
from ticket_export.runtime.offers import PRECISIONS
from ticket_export.runtime.onnx_file import load_graph, precision_from_onnx
from ticket_export.runtime.trt_sidecar import sha256_of
from ticket_export.runtime.trt_version import failure, forget_messages, has_strong_types

if TYPE_CHECKING:
    import onnx

MAX_BATCH = 65536  # a larger one is a slip of the pen: TensorRT's sizes are 32-bit per tensor axis product
STANDARD = ("", "ai.onnx")  # the domain of the standard operators
FLOAT16 = 10  # onnx.TensorProto.DataType
# What the parser of TensorRT 8.6 is written for. From 18 on, ReduceMean has its axes as an input, which that
# parser's ReduceMean does not look at: it would average over all axes. (github.com/onnx/onnx-tensorrt)
OLD_PARSER_OPSET = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxSource:
    """What the builder has to know of an ONNX file.

    Attributes:
        path: the file.
        sha256: of its bytes.
        precision: "fp32", "fp16" or "int8".
        has_fp16: whether any of its tensors is fp16.
        opset: version of the standard operators.
        input_shapes: the shape of each input by name, None where free; only axis 0, the batch, may be.
    """

    path: Path
    sha256: str
    precision: str
    has_fp16: bool
    opset: int
    input_shapes: dict[str, tuple[int | None, ...]]

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the file is fixed at; None when it is free."""
        return next(iter(self.input_shapes.values()))[0]


class Built(NamedTuple):
    """A serialised engine, the timing cache after it, and whether the cache before it was taken."""

    engine_bytes: bytes
    timing_cache: bytes
    cache_loaded: bool


def read_source(path: Path) -> OnnxSource:
    """Return what the builder has to know of an ONNX file.

    Raises:
        MeasureError: the file is missing or no ONNX, computes in another precision, has weights beside it, or
            has a free axis other than the batch.
        MissingDependency: onnx is not installed.
    """
    precision = precision_from_onnx(path)
    if precision not in PRECISIONS:
        raise MeasureError(f"{path}: computes in {precision}, TensorRT engines in {', '.join(PRECISIONS)}")
    import onnx

    model = load_graph(path)
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in model.graph.initializer):
        raise MeasureError(
            f"{path}: its weights lie in other files, so its hash would not tell when they change",
            hint="save it as one file: onnx.save(onnx.load(path), path)",
        )
    _require_symmetric(model, path)
    weights = {weight.name for weight in model.graph.initializer}
    shapes = {value.name: _shape(value) for value in model.graph.input if value.name not in weights}
    for name, shape in shapes.items():
        if None in shape[1:] or not shape:
            raise MeasureError(
                f"{path}: input {name!r} is {list(shape)}, but the batch alone, axis 0, may be free"
            )
    if not shapes or len({shape[0] for shape in shapes.values()}) != 1:
        raise MeasureError(f"{path}: its inputs {shapes} have no batch in common")
    return OnnxSource(
        path=path,
        sha256=sha256_of(path),
        precision=precision,
        has_fp16=_has_fp16(model),
        opset=max(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1
        ),
        input_shapes=shapes,
    )


def checked_batches(batches: Sequence[int], source: OnnxSource) -> tuple[int, ...]:
    """Return the batches in ascending order, each once.

    Raises:
        MeasureError: none, one below 1 or above MAX_BATCH, or another than the one the file is fixed at.
    """
    found = tuple(sorted(set(batches)))
    if not found or not all(isinstance(batch, int) and 1 <= batch <= MAX_BATCH for batch in found):
        raise MeasureError(f"{source.path}: batches are {list(batches)}, but must be 1 to {MAX_BATCH}")
    fixed = source.fixed_batch
    if fixed is not None and found != (fixed,):
        raise MeasureError(
            f"{source.path}: the batch is fixed at {fixed}, so it cannot run {list(found)}",
            hint="export it with a free batch: te.onnx_from_module does",
        )
    return found


def profiles_from_batches(batches: Sequence[int], source: OnnxSource) -> tuple[dict[str, int], ...]:
    """Return one profile per batch: tuned for it ("opt"), and taking every size above the batch before it.

    So each listed batch runs where TensorRT tuned for exactly it, and any other up to the largest runs too.

    Args:
        batches: ascending.
        source: where a fixed batch makes the only profile.
    """
    if source.fixed_batch is not None:
        return ({"min": source.fixed_batch, "opt": source.fixed_batch, "max": source.fixed_batch},)
    lows = (1, *(batch + 1 for batch in batches[:-1]))
    return tuple({"min": low, "opt": batch, "max": batch} for low, batch in zip(lows, batches, strict=True))


def builder_flags(
    trt: Any,  # Any: the module has no type information
    source: OnnxSource,
    *,
    tf32: bool,
    optimization_level: int,
) -> dict[str, bool | int]:
    """Return what the builder is told, by name; the sidecar keeps it.

    With strong types the file decides everything. Without them (8.6) a file's fp16 tensors and Q/DQ pairs
    are only followed where the flags FP16 and INT8 allow it.
    """
    strong = has_strong_types(trt)
    return {
        "strongly_typed": strong,
        "fp16": not strong and source.has_fp16,
        "int8": not strong and source.precision == "int8",
        "tf32": tf32,
        "onnx_opset": source.opset if strong else min(source.opset, OLD_PARSER_OPSET),
        "builder_optimization_level": optimization_level,
    }


def engine_bytes_from_source(
    trt: Any,  # Any: the module has no type information
    source: OnnxSource,
    *,
    profiles: Sequence[dict[str, int]],
    flags: dict[str, bool | int],
    timing_cache: bytes,
) -> Built:
    """Return a serialised engine, and the timing cache after building it.

    Args:
        trt: the module `tensorrt`.
        source: the ONNX file.
        profiles: of `profiles_from_batches`.
        flags: of `builder_flags`.
        timing_cache: what was timed before; empty to time everything anew.

    Raises:
        MeasureError: TensorRT cannot parse the file or build an engine from it.
        DeviceError: memory ran out meanwhile.
    """
    from polygraphy.backend.trt import create_config, engine_bytes_from_network, network_from_onnx_bytes

    model_bytes = _parsable_bytes(source, opset=int(flags["onnx_opset"]))
    forget_messages()
    try:
        builder, network, _parser = network_from_onnx_bytes(
            model_bytes, strongly_typed=flags["strongly_typed"]
        )
        config = create_config(
            builder,
            network,
            profiles=[_polygraphy_profile(profile, source) for profile in profiles],
            tf32=flags["tf32"],
            fp16=flags["fp16"],
            int8=flags["int8"],
            builder_optimization_level=flags["builder_optimization_level"],
        )
        if hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):  # 11 always shares
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        loaded = timing_cache != b"" and _load_cache(config, timing_cache)
        serialized = engine_bytes_from_network((builder, network), config=config)
        return Built(bytes(memoryview(serialized)), _serialized_cache(config), loaded)
    except Exception as error:  # Polygraphy's own, or pybind11's TypeError where CUDA makes no builder
        raise failure(
            f"{source.path}: TensorRT {trt.__version__} cannot build an engine ({error})",
            hint="ort-cpu runs the file; the messages name the operator or tensor that TensorRT refuses",
        ) from error


def _parsable_bytes(source: OnnxSource, *, opset: int) -> bytes:
    """Return the file's bytes, rewritten in an older opset where the parser needs that."""
    if opset == source.opset:
        return source.path.read_bytes()
    import onnx
    import onnx.version_converter

    try:
        model = onnx.version_converter.convert_version(onnx.load(source.path), opset)
        for node in model.graph.node:
            if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
                # the converter makes the axes an attribute again, but leaves this one of opset 18
                kept = [entry for entry in node.attribute if entry.name != "noop_with_empty_axes"]
                del node.attribute[:]
                node.attribute.extend(kept)
        onnx.checker.check_model(model)
    except Exception as error:  # the converter's errors share no base class but Exception
        raise MeasureError(
            f"{source.path}: opset {source.opset} cannot be rewritten as {opset}, the newest that this "
            f"TensorRT reads: {error}",
            hint="TensorRT 10 or newer reads the file as it is",
        ) from error
    for node in model.graph.node:
        # only opset 18 on knows it; beside axes, which the converter has made an attribute, it says nothing
        kept = [attribute for attribute in node.attribute if attribute.name != "noop_with_empty_axes"]
        if len(kept) < len(node.attribute) and any(attribute.name == "axes" for attribute in kept):
            del node.attribute[:]
            node.attribute.extend(kept)
    return bytes(model.SerializeToString())


def _polygraphy_profile(profile: dict[str, int], source: OnnxSource) -> Any:  # Any: Polygraphy has no types
    from polygraphy.backend.trt import Profile

    shapes = Profile()
    for name, (_, *rest) in source.input_shapes.items():
        shapes.add(name, **{word: (profile[word], *rest) for word in ("min", "opt", "max")})
    return shapes


def _load_cache(config: Any, content: bytes) -> bool:  # Any: TensorRT's objects have no types
    """Give the builder a stored timing cache; one that is damaged or of another device it does not take."""
    cache = config.create_timing_cache(content)
    return cache is not None and bool(config.set_timing_cache(cache, ignore_mismatch=False))


def _serialized_cache(config: Any) -> bytes:  # Any: TensorRT's objects have no types
    cache = config.get_timing_cache()
    return b"" if cache is None else bytes(memoryview(cache.serialize()))


def _require_symmetric(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what TensorRT does on a GPU: it rounds to signed values around 0 ("Explicit Quantization")."""
    from onnx import TensorProto, numpy_helper

    constants = {weight.name: weight for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = constants.get(node.input[2])
        if zero is not None and (zero.data_type == TensorProto.UINT8 or numpy_helper.to_array(zero).any()):
            raise MeasureError(
                f"{path}: {node.op_type} {node.name!r} rounds to {TensorProto.DataType.Name(zero.data_type)} "
                f"around {numpy_helper.to_array(zero).ravel()[0]}, but TensorRT takes INT8 around 0",
                hint="ticket-export export ... --to tensorrt --precision int8 writes such a file",
            )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)


def _has_fp16(model: onnx.ModelProto) -> bool:
    kinds = {weight.data_type for weight in model.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    kinds |= {
        attribute.i
        for node in model.graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    return FLOAT16 in kinds
