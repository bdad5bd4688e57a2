"""The mixed-integer program behind a choice of widths, and its solver."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ticket_export.errors import ShrinkError
from ticket_export.find.site_costs import SiteCosts

if TYPE_CHECKING:
    from scipy import sparse

REL_GAP = 1e-5  # of what is lost; the solver stops where no better choice can lose less by more than that


class WidthProgram:
    """One binary per group and width; for each pair of groups that layers join, a share per pair of widths.

    Those shares are continuous: sums over one side equal the other side's binaries, so they are 0 or 1 where
    the binaries are. That is the transport form, whose relaxation is tight.
    """

    def __init__(
        self,
        candidates: Mapping[str, Sequence[int]],
        worths: Mapping[str, npt.NDArray[np.float64]],
        site_costs: SiteCosts,
    ) -> None:
        self._candidates, self._site_costs = candidates, site_costs
        # What is lost, in numbers around 1: the solver's tolerances are absolute
        scale = max((float(np.ptp(worth)) for worth in worths.values()), default=0.0) or 1.0
        self._first: dict[str, int] = {}
        objective: list[npt.NDArray[np.float64]] = []
        costs: list[npt.NDArray[np.float64]] = []
        for group in candidates:
            self._first[group] = sum(map(len, objective))
            objective.append((worths[group].max() - worths[group]) / scale)
            costs.append(site_costs.by_group[group])
        self._num_binaries = sum(map(len, objective))
        for matrix in site_costs.by_pair.values():
            objective.append(np.zeros(matrix.size))
            costs.append(matrix.ravel())
        self._objective, self._costs = np.concatenate(objective), np.concatenate(costs)

    def solve(self, target: float, time_limit_s: float) -> tuple[dict[str, int], float] | None:
        """Return widths and the proven gap; None where no choice keeps to the target."""
        from scipy import sparse  # here: loading SciPy's solvers takes seconds, and most finders need none
        from scipy.optimize import Bounds, LinearConstraint, milp

        rows, values = self._equalities()
        left = target - self._site_costs.constant
        scale = max(abs(left), float(np.abs(self._costs).max(initial=0.0)), 1e-300)
        budget = LinearConstraint(sparse.csr_matrix(self._costs / scale), -np.inf, left / scale)
        with _stdout_to_stderr():
            found = milp(
                self._objective,
                integrality=(np.arange(len(self._objective)) < self._num_binaries).astype(int),
                bounds=Bounds(0.0, 1.0),
                constraints=[LinearConstraint(rows, values, values), budget],
                options={"time_limit": time_limit_s, "mip_rel_gap": REL_GAP},
            )
        if found.x is None:
            if found.status == 1:
                raise ShrinkError(
                    f"no widths were found within {time_limit_s:g} s",
                    hint="raise find.round_to: fewer widths",
                )
            return None
        widths = {
            group: int(widths[int(np.argmax(found.x[first : first + len(widths)]))])
            for (group, widths), first in zip(self._candidates.items(), self._first.values(), strict=True)
        }
        return widths, float(found.mip_gap or 0.0)

    def _equalities(self) -> tuple[sparse.csr_matrix, npt.NDArray[np.float64]]:
        """Return one row per group (one width each), and per pair and width of either side."""
        from scipy import sparse

        entries: list[tuple[int, int, float]] = []
        values: list[float] = []
        for group, first in self._first.items():
            entries += [(len(values), first + place, 1.0) for place in range(len(self._candidates[group]))]
            values.append(1.0)
        start = self._num_binaries
        for (left, right), matrix in self._site_costs.by_pair.items():
            places = start + np.arange(matrix.size).reshape(matrix.shape)
            start += matrix.size
            for group, lines in ((left, places), (right, places.T)):
                for place, line in enumerate(lines):
                    entries += [(len(values), int(variable), 1.0) for variable in line]
                    entries.append((len(values), self._first[group] + place, -1.0))
                    values.append(0.0)
        row, column, data = zip(*entries, strict=True)
        shape = (len(values), len(self._objective))
        return sparse.csr_matrix((data, (row, column)), shape=shape), np.array(values)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what the solver's own code prints to stderr: stdout is for data."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
