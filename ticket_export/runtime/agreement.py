"""How far two networks' outputs are apart: the one number of every parity check."""

from __future__ import annotations

import numpy as np

from ticket_export.runtime.runner import Array


def relative_error(actual: Array, reference: Array) -> float:
    """Return max|actual - reference| / max|reference|: 0 if both are zero, NaN if either is not finite."""
    a, b = np.asarray(actual, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    difference = float(np.max(np.abs(a - b), initial=0.0))
    scale = float(np.max(np.abs(b), initial=0.0))
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0.0 else float("inf")
