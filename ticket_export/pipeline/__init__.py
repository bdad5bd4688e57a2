"""The bridge: the only place where recipe and store meet the tensor side.

It stays torch-free at import, like everything it imports at the top; the steps load torch when there is work.
"""

from __future__ import annotations

from ticket_export.pipeline.coordinate import PlannedNode, plan, run
from ticket_export.pipeline.worker import worker_main

__all__ = ["PlannedNode", "plan", "run", "worker_main"]
