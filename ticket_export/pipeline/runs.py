"""The folder of one run, `out/runs/<name>/`: what was asked, what it was made from, report, log of events."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ticket_export.pipeline.work import Event
from ticket_export.recipe.dump import yaml_from_recipe
from ticket_export.recipe.schema import Recipe
from ticket_export.store.key import sha256_of_file
from ticket_export.store.store import disk_errors_told

RUN_FILE = "run.json"


def run_folder(out: str | Path, recipe: Recipe) -> Path:
    """Return where the run of a recipe is told."""
    return Path(out) / "runs" / recipe.name


class RunFolder:
    """Writes the recipe at once, events as they come, and the outcome at the end."""

    def __init__(self, out: str | Path, recipe: Recipe) -> None:
        self.path = run_folder(out, recipe)
        self._recipe = recipe
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        with disk_errors_told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.write("recipe.yaml", yaml_from_recipe(self._recipe))
            self._log = (self.path / "log.jsonl").open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._log is not None
        self._log.close()

    def log(self, event: Event) -> None:
        """Append an event; two runs at once share the file, a line at a time."""
        assert self._log is not None
        with disk_errors_told(self.path / "log.jsonl"):
            self._log.write(json.dumps({"time": _now(), **event}) + "\n")
            self._log.flush()

    def write(self, name: str, text: str) -> None:
        """Replace one file of the folder; nobody ever sees half of it."""
        path = self.path / name
        fresh = path.with_name(f"{name}.{os.getpid()}.partial")
        with disk_errors_told(path):
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)

    def has_report(self, key: str) -> bool:
        """Return whether the report in the folder is the one of `key`, whole and unchanged."""
        path = self.path / RUN_FILE
        try:
            report = json.loads(path.read_text(encoding="utf-8"))["report"]
            files: Mapping[str, str] = report["files"]
            return report["key"] == key and all(
                sha256_of_file(self.path / name) == digest for name, digest in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not ours: write it anew
            return False

    def finish(
        self, *, key: str, files: tuple[Path, ...], facts: Mapping[str, Any]
    ) -> None:  # Any: JSON values
        """Record what the run made and from what, with the hashes of the report's files."""
        digests = {path.relative_to(self.path).as_posix(): sha256_of_file(path) for path in files}
        outcome = {"schema": 1, "finished": _now(), **facts, "report": {"key": key, "files": digests}}
        self.write(RUN_FILE, json.dumps(outcome, indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
