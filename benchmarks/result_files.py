"""How a benchmark writes its results: a page for people and the numbers beside it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path


def write_results(folder: Path, theme: str, machine: str, page: str, document: Mapping[str, object]) -> Path:
    """Write `<theme>_<machine>_<yyyy-mm>.md` and `.json` into the folder and return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{theme}_{machine}_{datetime.datetime.now(datetime.UTC):%Y-%m}"
    path = folder / f"{stem}.md"
    path.write_text(page, encoding="utf-8")
    (folder / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
