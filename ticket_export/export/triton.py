"""A Triton model repository from exported files: complete or not there, hashed, and never overwritten.

Layout (triton-inference-server/server, docs/user_guide/model_repository.md): `<name>/config.pbtxt` and one
folder per version, `<name>/1/model.onnx`. Triton reads no other file of a model's folder, so
`<name>/checksums.sha256` stands beside them: `sha256sum -c checksums.sha256` checks a copy. Imports no torch.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ticket_export.errors import ExportError, MeasureError
from ticket_export.export.served import ServedFiles, served_files
from ticket_export.export.triton_config import KINDS, Serving, config_text
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.store.key import sha256_of_file
from ticket_export.store.store import disk_errors_told

CONFIG, CHECKSUMS = "config.pbtxt", "checksums.sha256"
_PARTIAL = ".partial"
# one segment of the server's URLs (/v2/models/NAME/infer) and of its folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# what every version of a model has in common; the rest of the configuration may change with a new version
_SHARED = ("platform", "backend", "default_model_filename", "cc_model_filenames", "input", "output")


def triton_repository(
    models: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    name: str,
    max_batch: int | None = None,
    batches: Sequence[int] = (1, 8),
    queue_delay_us: int = 100,
    kind: str | None = None,
    instances: int = 1,
    num_versions: int = 1,
) -> Path:
    """Write a model into a Triton repository, as its first or its next version; return the version's folder.

    A model's or a version's folder appears complete or not at all. A version that is there is never changed:
    a further export becomes the next one, and the same files once more become none.

    Args:
        models: one `.onnx` file, or TensorRT engines with their sidecars, one per kind of GPU.
        folder: the repository; made if it does not exist. Work in progress stands beside it, in its parent.
        name: of the model: letters, digits, `_`, `.` and `-`.
        max_batch: the largest batch Triton may form, or 0 for a file without a free batch axis; None takes
            the largest of `batches`.
        batches: sizes that are formed where possible, and warmed up before the first request.
        queue_delay_us: microseconds that a request may wait for others to join its batch.
        kind: where it runs: "cpu", "gpu", or "auto": a GPU where the server has one; None is "gpu" for
            engines, else "auto".
        instances: how many run side by side on each device.
        num_versions: how many of the newest versions are served; older ones stay on the disk.

    Raises:
        ExportError: a value above is out of range, the files cannot be served, or a different model, or one
            that was changed by hand, has this name.
        StoreError: the disk refuses.
    """
    require_model_name(name)
    files = served_files([models] if isinstance(models, str | Path) else models)
    serving = _serving(
        files, max_batch, tuple(batches), queue_delay_us, kind, instances=instances, num_versions=num_versions
    )
    if files.model.backend == "onnxruntime":
        _require_batches_run(files.sources[files.model.default_filename], serving)
    text = config_text(name, files.model, serving)
    target = Path(folder) / name
    with disk_errors_told(target):
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            return _next_version(target, files, text)
        return _first_version(target, files, text)


def require_model_name(name: str) -> None:
    """Pass for a name that a model, its folder and its URL can have.

    Raises:
        ExportError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ExportError(
            f"{name!r} cannot name a model",
            hint="1 to 128 letters, digits, '_', '.' and '-', a letter or digit first",
        )


def _serving(
    files: ServedFiles,
    max_batch: int | None,
    batches: tuple[int, ...],
    queue_delay_us: int,
    kind: str | None,
    *,
    instances: int,
    num_versions: int,
) -> Serving:
    """Return the checked options.

    Raises:
        ExportError: one of them is out of range or does not fit the files.
    """
    if not batches or any(batch < 1 for batch in batches):
        raise ExportError(f"triton: batches are {list(batches)}, but a batch holds at least 1 image")
    largest = max(batches) if max_batch is None else max_batch
    for option, value, least in (
        ("max_batch", largest, 0),
        ("queue_delay_us", queue_delay_us, 0),
        ("instances", instances, 1),
        ("num_versions", num_versions, 1),
    ):
        if value < least:
            raise ExportError(f"triton: {option} is {value}, but at least {least} is needed")
    if kind is None:
        kind = "gpu" if files.model.backend == "tensorrt" else "auto"
    if kind not in KINDS or (files.model.backend == "tensorrt" and kind == "cpu"):
        able = [known for known in KINDS if files.model.backend != "tensorrt" or known != "cpu"]
        raise ExportError(f"triton: kind {kind!r} is not one of {', '.join(able)}")
    _require_batch_axis(files, largest)
    return Serving(
        max_batch=largest,
        batches=tuple(sorted({batch for batch in batches if batch <= largest})),
        queue_delay_us=queue_delay_us,
        kind=kind,
        instances=instances,
        num_versions=num_versions,
    )


def _require_batch_axis(files: ServedFiles, max_batch: int) -> None:
    tensors = (*files.model.inputs, *files.model.outputs)
    fixed = [tensor for tensor in tensors if not tensor.shape or tensor.shape[0] is not None]
    if max_batch > 0 and fixed:
        raise ExportError(
            f"{files.told}: {fixed[0].name!r} has the shape {list(fixed[0].shape)}, whose batch is not free",
            hint="export it with a free batch, or serve it as it is: max_batch 0",
        )
    scalars = [tensor.name for tensor in tensors if not tensor.shape]
    if scalars:
        raise ExportError(f"{files.told}: {scalars[0]!r} is a single number, which Triton does not serve")
    if files.max_batch is not None and max_batch > files.max_batch:
        raise ExportError(
            f"{files.told}: built for batches up to {files.max_batch}, max_batch is {max_batch}",
            hint="build the engine with that batch too",
        )


def _require_batches_run(path: Path, serving: Serving) -> None:
    """Run what Triton will warm up: a file may declare a free batch and fix it inside.

    Raises:
        ExportError: ONNX Runtime cannot open the file, or cannot run it at batch 1 or at the largest.
    """
    try:
        with OrtCpuRunner(path) as runner:
            specs = runner.input_specs.values()
            if any(None in spec.shape[1:] for spec in specs):
                return  # nobody said which sizes are legal there
            for batch in sorted({1, max(1, serving.max_batch)}):
                runner.infer(
                    {
                        spec.name: np.zeros([size or batch for size in spec.shape], dtype=spec.dtype)
                        for spec in specs
                    }
                )
    except MeasureError as error:
        raise ExportError(f"{path} cannot be served: {error.message}", hint=error.hint) from error


def _first_version(target: Path, files: ServedFiles, text: str) -> Path:
    """Make the model's folder with its version 1."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _staged(target) as staged:
        _copy(files.sources, staged / "1")
        (staged / CONFIG).write_text(text, encoding="utf-8")
        (staged / CHECKSUMS).write_text(_checksums(staged), encoding="utf-8")
        staged.rename(target)
    return target / "1"


def _next_version(target: Path, files: ServedFiles, text: str) -> Path:
    """Add a version to a model that is there, unless its newest one holds these very files.

    Every step leaves a repository that Triton can read: the version first, then the configuration, then the
    checksums of all.
    """
    _require_same_model(target, text)
    newest = max(_versions(target))
    held = {path.name: sha256_of_file(path) for path in (target / str(newest)).iterdir()}
    if held == {file: sha256_of_file(source) for file, source in files.sources.items()}:
        version = target / str(newest)
    else:
        with _staged(target) as staged:
            _copy(files.sources, staged)
            version = _renamed_to_next(staged, target, newest + 1)
    if (target / CONFIG).read_text(encoding="utf-8") != text:
        _replace(target / CONFIG, text)
    _replace(target / CHECKSUMS, _checksums(target))
    return version


def _renamed_to_next(staged: Path, target: Path, number: int) -> Path:
    while (version := target / str(number)).exists():  # another export was faster
        number += 1
    staged.rename(version)
    return version


def _versions(target: Path) -> list[int]:
    # as Triton: folders named by a number that does not start with 0
    return [int(path.name) for path in target.iterdir() if re.fullmatch(r"[1-9]\d*", path.name)]


def _require_same_model(target: Path, text: str) -> None:
    """Pass when `target` is a model of ours, intact, with the backend, inputs and outputs of `text`.

    Raises:
        ExportError: it is another model, or files of it were changed or lost.
    """
    if not (target / CHECKSUMS).is_file() or not _versions(target):
        raise ExportError(
            f"{target} is there and not an export of ticket-export: it has no {CHECKSUMS}",
            hint="choose another name, or move it away; nothing was changed",
        )
    for line in (target / CHECKSUMS).read_text(encoding="utf-8").splitlines():
        expected, _, file = line.partition("  ")
        path = target / file
        found = sha256_of_file(path) if path.is_file() else "no file"
        if file == CONFIG and path.is_file() and path.read_text(encoding="utf-8") == text:
            continue  # what a run killed before the checksums left: the configuration it was to write
        if found != expected:
            raise ExportError(
                f"{path} has changed since it was exported: sha256 {found[:12]}, {CHECKSUMS} says "
                f"{expected[:12]}",
                hint="choose another name, or move the folder away; nothing was changed",
            )
    old, new = (_shared_fields(config) for config in ((target / CONFIG).read_text(encoding="utf-8"), text))
    if old != new:
        told = "; ".join(sorted(set(old) ^ set(new)))
        raise ExportError(
            f"{target} serves a different model: {told}",
            hint="versions of one model share backend, inputs and outputs; choose another name",
        )


def _shared_fields(text: str) -> list[str]:
    """Return the top-level fields of a configuration that its versions share, each as one line."""
    fields = re.findall(r"^(\w+)(: .*| \{\n(?: .*\n)*\})$", text, flags=re.M)
    return [" ".join(f"{name}{value}".split()) for name, value in fields if name in _SHARED]


def _copy(sources: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for file, source in sources.items():
        shutil.copyfile(source, folder / file)


def _checksums(model: Path) -> str:
    """Return a line per file below `model`, as `sha256sum` writes and checks them."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.suffix != _PARTIAL)
    names = [path.relative_to(model).as_posix() for path in files]
    return "".join(f"{sha256_of_file(model / name)}  {name}\n" for name in names if name != CHECKSUMS)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Give an empty folder on the repository's disk, outside of it where that is possible.

    Triton takes every folder of a repository for a model, and a server does not start where one is
    incomplete (core, model_repository_manager.cc); a killed export must not leave one there.
    """
    repository = target.parent
    beside = repository.absolute().parent
    if beside.stat().st_dev != repository.stat().st_dev:  # a mounted repository: renaming works inside alone
        beside = repository
    private = Path(tempfile.mkdtemp(prefix=f".{repository.name}-{target.name}-", suffix=_PARTIAL, dir=beside))
    try:
        staged = private / "staged"  # with the usual rights: mkdtemp's folder is its maker's alone
        staged.mkdir()
        yield staged
    finally:
        shutil.rmtree(private)
