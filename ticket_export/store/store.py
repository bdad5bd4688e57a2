"""The store: `out/store/<stage>/<key>/` exists if and only if that result is complete.

A result is made in `<key>.partial/` under the lock `<key>.lock` and published by renaming. Its manifest holds
the sha256 of every file, so a result damaged later is seen, named and made again. A full disk, a folder that
cannot be written and the like are a StoreError everywhere.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ticket_export.errors import StoreError, UnknownKeyError
from ticket_export.store import lock as locks
from ticket_export.store.key import sha256_of_file
from ticket_export.store.machine import machine_facts
from ticket_export.store.manifest import FILE_NAME, Manifest, StoredFile, manifest_from_text

_SCRATCH = "scratch"
_POLL_S = 0.1
_MAX_NAMED = 8  # keys in one message
_HINTS: Mapping[int, str] = {
    errno.ENOSPC: "free some space, or choose another folder with --out, and run the same command again",
    errno.EDQUOT: "your quota is used up; choose another folder with --out and run the same command again",
    errno.EROFS: "choose a folder that can be written with --out",
    errno.EACCES: "choose a folder that you may write with --out",
    errno.EPERM: "choose a folder that you may write with --out",
    errno.ENOENT: "choose a folder that can be made with --out",
    errno.ENOTDIR: "a file stands where a folder should be; choose another folder with --out",
    errno.EEXIST: "a file stands where a folder should be; choose another folder with --out",
}
# What can only be said of the disk, wherever in a stage it shows.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@dataclass(frozen=True, slots=True)
class Damage:
    """A published result whose files are not what its manifest says."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def disk_errors_told(path: Path) -> Iterator[None]:
    """Turn every OSError inside into a StoreError that names the place and the next step."""
    try:
        yield
    except OSError as error:
        raise store_error(error, path) from error


def store_error(error: OSError, path: Path) -> StoreError:
    """Return the StoreError that tells `error`; `path` is named when the error names no file itself."""
    place = error.filename if isinstance(error.filename, str) else path
    hint = None if error.errno is None else _HINTS.get(error.errno)
    return StoreError(f"{place}: {error.strerror or error}", hint=hint)


class Claim:
    """The right to make one result: fill `folder`, then `publish`; leaving the block gives the right back."""

    def __init__(self, *, target: Path, lock: locks.Lock) -> None:
        self.target = target
        self.folder = _partial(target)
        self._lock = lock

    @property
    def scratch(self) -> Path:
        """Folder for what a killed process leaves to the next one, such as checkpoints; never published."""
        return self.folder / _SCRATCH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk_errors_told(self.folder):
            if self.folder.exists() and self._lock.is_held():
                self._leave_scratch_alone()
            self._lock.release()

    def _leave_scratch_alone(self) -> None:
        """Remove what was not published; on a full disk every byte counts."""
        _empty_but_scratch(self.folder)
        if self.scratch.exists() and any(self.scratch.iterdir()):
            return
        shutil.rmtree(self.folder)

    def publish(
        self,
        *,
        revision: int,
        item: Mapping[str, Any],  # Any: JSON values, also below
        parents: Mapping[str, str],
        sections: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> Manifest:
        """Make the filled folder the result: complete, hashed, and visible in one step.

        Raises:
            StoreError: the disk refuses, or another host took the lock over while this process was silent.
        """
        with disk_errors_told(self.folder):
            shutil.rmtree(self.scratch, ignore_errors=True)
            manifest = Manifest(
                stage=self.target.parent.name,
                key=self.target.name,
                revision=revision,
                item=item,
                parents=parents,
                sections=sections,
                files=_hashed_files(self.folder),
                facts=facts,
                machine=machine_facts(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            text = json.dumps(manifest.to_json(), indent=1, allow_nan=False)
            # No fsync: a power cut may lose the last bytes, and the hashes tell.
            (self.folder / FILE_NAME).write_text(text, encoding="utf-8")
            if not self._lock.is_held():
                raise StoreError(
                    f"{self.target}: another machine took this work over while this one was silent",
                    hint="run the same command again",
                )
            self.folder.rename(self.target)
        return manifest


class Store:
    """Results by stage and key, shared by any number of processes and machines."""

    def __init__(self, out: str | Path) -> None:
        self.folder = Path(out) / "store"
        self._intact: set[Path] = set()

    def path(self, stage: str, key: str) -> Path:
        """Return the folder of a result, whether it exists or not."""
        return self.folder / stage / key

    def look_up(self, stage: str, key: str) -> Manifest | Damage | None:
        """Return a result's manifest after checking its files, what is wrong with it, or None without one.

        Files are hashed once per process: what was intact then is taken to stay so.

        Raises:
            StoreError: the store cannot be read.
        """
        path = self.path(stage, key)
        with disk_errors_told(path):
            found = _read(path)
            if isinstance(found, Manifest) and path not in self._intact:
                reason = _damage_in(path, found)
                if reason is not None:
                    return Damage(path, reason)
                self._intact.add(path)
            return found

    def claim(self, stage: str, key: str) -> Claim | None:
        """Return the right to make a result, or None while it is complete or another process makes it.

        A damaged result is removed. Of what a dead process left, its scratch is kept.

        Raises:
            StoreError: the disk refuses.
        """
        target = self.path(stage, key)
        with disk_errors_told(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = locks.acquire(target.with_name(f"{target.name}.lock"))
            if lock is None:
                return None
            try:
                found = self.look_up(stage, key)
                if isinstance(found, Manifest):
                    lock.release()
                    return None
                if isinstance(found, Damage):
                    _remove(target)
                _prepare(target)
            except BaseException:
                lock.release()
                raise
        return Claim(target=target, lock=lock)

    @contextmanager
    def exclusively(self, name: str) -> Iterator[None]:
        """Wait until no other process is inside this block on this store under the same name, then enter.

        Raises:
            StoreError: the disk refuses.
        """
        path = self.folder / f"{name}.lock"
        with disk_errors_told(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            while (lock := locks.acquire(path)) is None:
                time.sleep(_POLL_S)
        try:
            yield
        finally:
            with disk_errors_told(path):
                lock.release()

    def find(self, prefix: str) -> dict[str, Any]:  # Any: JSON values
        """Return the manifest, as JSON values, of the one result whose key starts with `prefix`.

        Raises:
            UnknownKeyError: no key or several start so.
            StoreError: the result is damaged, or the disk refuses.
        """
        with disk_errors_told(self.folder):
            paths = sorted(path.parent for path in self.folder.glob(f"*/*/{FILE_NAME}"))
        paths = [path for path in paths if path.name.startswith(prefix) and path.suffix == ""]
        if len(paths) != 1:
            names = [f"{path.parent.name}/{path.name}" for path in paths[:_MAX_NAMED]]
            names += [f"{len(paths) - _MAX_NAMED} more"] if len(paths) > _MAX_NAMED else []
            raise UnknownKeyError(
                f"{self.folder}: {prefix!r} should start one key, got {', '.join(names) or 'nothing'}",
                hint="`ticket-export plan RECIPE` lists the keys; --out names another output folder",
            )
        found = self.look_up(paths[0].parent.name, paths[0].name)
        if not isinstance(found, Manifest):
            raise StoreError(f"damaged: {found}", hint="run its recipe again: what is damaged is made again")
        return found.to_json()


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _read(path: Path) -> Manifest | Damage | None:
    if not path.is_dir():
        return None
    try:
        return manifest_from_text((path / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Damage(path, f"{FILE_NAME} is missing")
    except ValueError as error:  # also text that is not UTF-8 or not JSON
        return Damage(path, f"{FILE_NAME} cannot be read: {error}")


def _damage_in(path: Path, manifest: Manifest) -> str | None:
    if (manifest.stage, manifest.key) != (path.parent.name, path.name):
        return f"{FILE_NAME} belongs to {manifest.stage}/{manifest.key}"
    for name, stored in manifest.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != stored.bytes:
            return f"{name} holds {file.stat().st_size} bytes, not {stored.bytes}"
        if sha256_of_file(file) != stored.sha256:
            return f"{name} has changed since it was published (its sha256 differs)"
    return None


def _hashed_files(folder: Path) -> dict[str, StoredFile]:
    return {
        path.relative_to(folder).as_posix(): StoredFile(
            sha256=sha256_of_file(path), bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / FILE_NAME
    }


def _prepare(target: Path) -> None:
    """Leave an empty folder to work in, but for the scratch of whoever died here."""
    for leftover in target.parent.glob(f"{target.name}.damaged-*"):
        _delete(leftover)
    folder = _partial(target)
    (folder / _SCRATCH).mkdir(parents=True, exist_ok=True)
    _empty_but_scratch(folder)


def _empty_but_scratch(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _SCRATCH:
            _delete(path)


def _remove(path: Path) -> None:
    """Delete a published folder so that nobody sees it half deleted."""
    aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex}")
    path.rename(aside)
    _delete(aside)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
