"""Steps that take no time and no torch: each writes a text that follows from its key and its parents."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from ticket_export.errors import TrainError
from ticket_export.pipeline import work, worker
from ticket_export.pipeline.context import Context
from ticket_export.pipeline.nodes import Node
from ticket_export.pipeline.work import Emit

FILE = "text"
# What a fake does beside writing, by environment so that worker processes know it too.
SECONDS, FAILS, FULL, BREAKS = "FAKE_SECONDS", "FAKE_FAILS", "FAKE_FULL", "FAKE_BREAKS"


def fake_step(context: Context, node: Node, folder: Path, scratch: Path, progress: Emit) -> dict[str, Any]:
    """Resume from scratch in five parts, so that a kill leaves something to go on from."""
    if str(node) == os.environ.get(FAILS):
        raise TrainError(f"{node}: the loss is nan", hint="lower train.lr")
    if str(node) == os.environ.get(FULL):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / FILE))
    if str(node) == os.environ.get(BREAKS):
        raise ZeroDivisionError(f"{node} has a bug")
    for part in range(5):
        done = scratch / f"part-{part}"
        if not done.exists():
            time.sleep(float(os.environ.get(SECONDS, "0")) / 5)
            fresh = scratch / f"fresh-{os.getpid()}"
            fresh.write_text(str(part))
            fresh.replace(done)
        progress({"epoch": part + 1, "epochs": 5})
    texts = [context.file(parent, FILE).read_text() for parent in node.parents.values()]
    parts = [(scratch / f"part-{part}").read_text() for part in range(5)]
    (folder / FILE).write_text(hashlib.sha256("".join([node.key, *texts, *parts]).encode()).hexdigest())
    return {"made_by": os.getpid()}


def install() -> None:
    """Make every step of this process and of its workers a fake."""
    work.STEPS = dict.fromkeys(work.STEPS, ("pipeline_fakes", "fake_step"))
    worker._CODE = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r}); "
        "import pipeline_fakes; pipeline_fakes.install(); " + worker._CODE
    )
