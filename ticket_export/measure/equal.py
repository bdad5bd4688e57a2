"""What must be equal, and sound, before the first timing: runners, inputs, and what comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ticket_export.errors import DeviceError, MeasureError
from ticket_export.measure.protocol import Protocol
from ticket_export.runtime.runner import Array, Runner, TensorSpec, shape_text

# drawing normal noise holds float64 beside the input's own type, and a runner copies the input once
DRAW_BYTES_PER_ELEMENT = 8


def require_equal_runners(runners: Mapping[str, Runner], protocol: Protocol) -> list[TensorSpec]:
    """Return the inputs that all runners share.

    Raises:
        MeasureError: no runners, or the first difference between two of them with both values: threads,
            runtime, device, precision, settings, inputs or outputs. Names of tensors may differ.
    """
    if not runners:
        raise MeasureError("measure: no models were given")
    first_name, first = next(iter(runners.items()))
    for name, runner in runners.items():
        pair = f"cannot compare {name!r} against {first_name!r}"
        if runner.threads != protocol.threads:
            raise MeasureError(
                f"measure: {name!r} runs on {runner.threads} threads, the protocol says {protocol.threads}"
            )
        for field in ("name", "device", "precision", "settings"):
            ours, theirs = getattr(runner, field), getattr(first, field)
            if ours != theirs:
                word = "runtime" if field == "name" else field
                raise MeasureError(f"{pair}: {word} is {ours!r} against {theirs!r}")
        ours, theirs = _specs_text(runner.input_specs), _specs_text(first.input_specs)
        if ours != theirs:
            raise MeasureError(
                f"{pair}: inputs are {ours} against {theirs}", hint="both networks must take the same images"
            )
        if not _same_outputs(list(runner.output_specs.values()), list(first.output_specs.values())):
            ours, theirs = _specs_text(runner.output_specs), _specs_text(first.output_specs)
            raise MeasureError(
                f"{pair}: outputs are {ours} against {theirs}", hint="both networks must do the same task"
            )
    return list(first.input_specs.values())


def require_sound_outputs(
    runners: Mapping[str, Runner], inputs_for: Callable[[Runner], dict[str, Array]]
) -> None:
    """Pass when every runner answers the same inputs with finite numbers in equal shapes.

    Args:
        runners: by subject name.
        inputs_for: the same arrays under the given runner's input names.

    Raises:
        DeviceError: memory runs out, or a device is lost.
        MeasureError: a runner fails, an output holds a value that is not finite, or two subjects answer in
            unequal types or shapes.
    """
    first_name, first_text = "", ""
    for name, runner in runners.items():
        try:
            outputs = runner.infer(inputs_for(runner))
        except MemoryError as error:  # numpy's, for the inputs
            raise DeviceError(
                f"{name!r}: out of memory for the inputs: {error}", hint="measure a smaller batch"
            ) from error
        for output, array in outputs.items():
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                bad = int(np.count_nonzero(~np.isfinite(array)))
                raise MeasureError(
                    f"{name!r}: output {output!r} holds {bad} of {array.size} values that are not finite",
                    hint="a network that gives NaN or infinity is not worth timing: check the export",
                )
        text = ", ".join(f"{array.dtype.name} {list(array.shape)}" for array in outputs.values())
        first_name, first_text = first_name or name, first_text or text
        if text != first_text:
            raise MeasureError(
                f"cannot compare {name!r} against {first_name!r}: outputs are {text} against {first_text}"
            )


def require_inputs_fit(shapes: list[tuple[int, ...]], batch: int) -> None:
    """Pass when random inputs of `shapes` fit the free memory of the host, where the system tells it.

    Raises:
        DeviceError: they do not, with the batch and both sizes.
    """
    free = _free_bytes()
    needed = DRAW_BYTES_PER_ELEMENT * 2 * sum(_num_elements(shape) for shape in shapes)
    if free is not None and needed > free:
        raise DeviceError(
            f"measure: inputs of batch {batch} need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            hint="measure a smaller batch",
        )


def _num_elements(shape: tuple[int, ...]) -> int:
    product = 1  # of Python integers, which do not overflow at an absurd batch
    for size in shape:
        product *= size
    return product


def _free_bytes(root: Path = Path("/")) -> int | None:
    """Return what Linux says can be had, of the machine and of the container; None on another system."""
    meminfo, group = root / "proc/meminfo", root / "sys/fs/cgroup"
    free = []
    if meminfo.is_file():
        lines = meminfo.read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        free.append(int(text) - int(used.read_text(encoding="ascii")))
    return min(free) if free else None


def _same_outputs(ours: list[TensorSpec], theirs: list[TensorSpec]) -> bool:
    """Return whether counts, types and shapes fit; a free axis fits any size until there are outputs."""
    return len(ours) == len(theirs) and all(
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(
            None in (size, given) or size == given for size, given in zip(one.shape, other.shape, strict=True)
        )
        for one, other in zip(ours, theirs, strict=True)
    )


def _specs_text(specs: Mapping[str, TensorSpec]) -> str:
    """Return dtypes and shapes in order; names may differ between exporters."""
    return ", ".join(f"{spec.dtype} {shape_text(spec.shape)}" for spec in specs.values())
