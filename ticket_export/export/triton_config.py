"""The text of a Triton model configuration (`config.pbtxt`): what is served, and how.

Field names and their meaning: `model_config.proto` of triton-inference-server/common, and the server's user
guide (model_configuration.md, batcher.md). The text is written without Triton's own packages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from ticket_export.runtime.runner import TensorSpec

KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}  # auto: a GPU where the server has one
TYPE_FROM_DTYPE = {  # user guide, "Datatypes"
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What Triton opens.

    Attributes:
        backend: "onnxruntime" or "tensorrt".
        platform: what Triton pairs with that backend: "onnxruntime_onnx" or "tensorrt_plan".
        default_filename: the file in a version folder that is opened when none is named for the GPU.
        filename_by_capability: for plans, the file per CUDA compute capability such as "9.0"; else empty.
        inputs: in the model's order.
        outputs: in the model's order.
        num_profiles: optimisation profiles of the plans; 0 for other files.

    Axis 0 of every input and output is the batch.
    """

    backend: str
    platform: str
    default_filename: str
    filename_by_capability: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_profiles: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How Triton runs it.

    Attributes:
        max_batch: the largest batch Triton forms; 0 for a model without a free batch axis.
        batches: sizes that the batcher prefers to form and that are warmed up, at most `max_batch`.
        queue_delay_us: microseconds that a request may wait for others to join its batch.
        kind: a key of KINDS: where instances run.
        instances: how many run side by side, per GPU or on the CPU.
        num_versions: how many of the newest versions are served.
    """

    max_batch: int
    batches: tuple[int, ...]
    queue_delay_us: int
    kind: str
    instances: int
    num_versions: int


class _Word(str):
    """A text that stands without quotes: an enum's value."""

    __slots__ = ()


# a field's value is a text, a _Word, a number, a tuple of numbers, or a list of fields: a message
_Fields: TypeAlias = list[tuple[str, object]]


def config_text(name: str, model: ServedModel, serving: Serving) -> str:
    """Return the `config.pbtxt` of a model: protobuf text of Triton's ModelConfig.

    Args:
        name: of the model and of its folder.
        model: what is opened.
        serving: how it is run. Axis 0 of every tensor is left out of `dims` when `max_batch` is above 0.
    """
    fields: _Fields = [
        ("name", name),
        ("platform", model.platform),
        ("backend", model.backend),
        ("default_model_filename", model.default_filename),
    ]
    fields += [
        ("cc_model_filenames", [("key", capability), ("value", file)])
        for capability, file in sorted(model.filename_by_capability.items())
    ]
    fields += [
        ("max_batch_size", serving.max_batch),
        ("version_policy", [("latest", [("num_versions", serving.num_versions)])]),
    ]
    fields += [("input", _tensor(tensor, serving)) for tensor in model.inputs]
    fields += [("output", _tensor(tensor, serving)) for tensor in model.outputs]
    if serving.max_batch > 0:
        fields.append(("dynamic_batching", _batching(serving)))
    fields.append(("instance_group", _instances(model, serving)))
    fields += [("model_warmup", sample) for sample in _warm_up(model, serving)]
    return "\n".join(_lines(fields, "")) + "\n"


def _dims(tensor: TensorSpec, serving: Serving) -> tuple[int, ...]:
    """Return the tensor's shape as a request gives it: without the batch that Triton adds, -1 where free."""
    shape = tensor.shape[1:] if serving.max_batch > 0 else tensor.shape
    return tuple(-1 if size is None else size for size in shape)


def _tensor(tensor: TensorSpec, serving: Serving) -> _Fields:
    dims = _dims(tensor, serving)
    fields: _Fields = [
        ("name", tensor.name),
        ("data_type", _Word(TYPE_FROM_DTYPE[tensor.dtype])),
        ("dims", dims or (1,)),
    ]
    if not dims:  # one number per image: `dims` may not be empty, so [N, 1] is what clients see
        fields.append(("reshape", [("shape", ())]))
    return fields


def _batching(serving: Serving) -> _Fields:
    preferred = tuple(batch for batch in serving.batches if batch > 1)
    fields: _Fields = [("preferred_batch_size", preferred)] if preferred else []
    return [*fields, ("max_queue_delay_microseconds", serving.queue_delay_us)]


def _instances(model: ServedModel, serving: Serving) -> _Fields:
    fields: _Fields = [("kind", _Word(KINDS[serving.kind])), ("count", serving.instances)]
    if model.num_profiles > 1:  # Triton then picks, per batch, the profile that fits it best
        fields += [("profile", str(profile)) for profile in range(model.num_profiles)]
    return fields


def _warm_up(model: ServedModel, serving: Serving) -> list[_Fields]:
    """Return one sample per batch size; none where a free axis leaves Triton without a size to warm up.

    Zeros, because Triton's `random_data` are random bytes: as floats also NaN and denormals, as ids out of
    every table (core, backend_model_instance.cc, GenerateWarmupData).
    """
    dims = [_dims(tensor, serving) or (1,) for tensor in model.inputs]
    if any(-1 in sizes for sizes in dims):
        return []
    inputs: _Fields = [
        (
            "inputs",
            [
                ("key", tensor.name),
                (
                    "value",
                    [
                        ("data_type", _Word(TYPE_FROM_DTYPE[tensor.dtype])),
                        ("dims", sizes),
                        ("zero_data", _Word("true")),
                    ],
                ),
            ],
        )
        for tensor, sizes in zip(model.inputs, dims, strict=True)
    ]
    batches = sorted({1, *serving.batches, serving.max_batch}) if serving.max_batch > 0 else [1]
    return [[("name", f"batch-{batch}"), ("batch_size", batch), *inputs] for batch in batches]


def _lines(fields: _Fields, indent: str) -> list[str]:
    """Return protobuf text, a line per field; a message is indented between its braces."""
    lines = []
    for name, value in fields:
        if isinstance(value, list):
            lines += [f"{indent}{name} {{", *_lines(value, f"{indent}  "), f"{indent}}}"]
        elif isinstance(value, tuple):
            lines.append(f"{indent}{name}: [{', '.join(map(str, value))}]")
        elif isinstance(value, str) and not isinstance(value, _Word):
            lines.append(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}")
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines
