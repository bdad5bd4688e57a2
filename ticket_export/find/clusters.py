"""Rows that read alike, in clusters of equal size: balanced k-means.

Chen et al. 2022 (arXiv 2202.04736) partition a hypergraph of rows and columns with hMETIS, which is closed.
Here the centres are k-means', and each round of assignments is the cheapest one in which every cluster has
its size, found exactly by the Hungarian method.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

NUM_STARTS = 4  # of k-means; the best is kept
MAX_ROUNDS = 10  # of balanced assignment; on masks of real networks it settles in three to six


def balanced_clusters(points_ND: Tensor, num_clusters: int, *, seed: int) -> list[Tensor]:
    """Return the row positions of each cluster, ascending; sizes differ by at most one.

    Rows are scaled to length 1, so that a distance tells which columns two rows share, as Jaccard's does, and
    not how many they have. Rows of zeros fill up the clusters. Equal arguments give equal clusters.

    Args:
        points_ND: at least 0 everywhere, e.g. the number of surviving weights of row n in column d.
        num_clusters: at least 1; at most the number of rows that are not all zero, unless it is 1.
        seed: of the starting centres, at least 0 and below 2**32.

    Returns:
        The clusters in the order of their first rows.
    """
    if num_clusters == 1:
        return [torch.arange(len(points_ND))]
    unit_ND = points_ND.double() / points_ND.double().norm(dim=1, keepdim=True).clamp_min(1e-30)
    live_ND = unit_ND[points_ND.any(dim=1)]
    assert num_clusters <= len(live_ND), "more clusters than rows with weights"
    centers_KD, counts_K = _centers(live_ND, num_clusters, seed)
    sizes = _sizes(len(unit_ND), counts_K)
    label_N = _assigned(unit_ND, centers_KD, sizes)
    for _ in range(MAX_ROUNDS):
        centers_KD = torch.stack([unit_ND[label_N == k].mean(dim=0) for k in range(num_clusters)])
        again_N = _assigned(unit_ND, centers_KD, sizes)
        if torch.equal(again_N, label_N):
            break
        label_N = again_N
    clusters = [torch.nonzero(label_N == k).flatten() for k in range(num_clusters)]
    return sorted(clusters, key=lambda rows: int(rows[0]))


def _centers(points_ND: Tensor, num_clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return k-means' centres, and how many points are nearest to each."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():  # two threads would add in an order of their own
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: centres coincide, sizes part them
        found = KMeans(num_clusters, n_init=NUM_STARTS, random_state=seed).fit(points_ND.numpy())
    counts_K = torch.bincount(torch.from_numpy(found.labels_).long(), minlength=num_clusters)
    return torch.from_numpy(found.cluster_centers_), counts_K


def _sizes(num_rows: int, counts_K: Tensor) -> list[int]:
    """Return balanced sizes; where they cannot be equal, the fullest clusters are one larger."""
    small, num_larger = divmod(num_rows, len(counts_K))
    larger = set(torch.sort(counts_K, descending=True, stable=True).indices[:num_larger].tolist())
    return [small + (k in larger) for k in range(len(counts_K))]


def _assigned(points_ND: Tensor, centers_KD: Tensor, sizes: list[int]) -> Tensor:
    """Return the cluster of each row: the assignment of least squared distance with these sizes."""
    from scipy.optimize import linear_sum_assignment

    cost_NK: npt.NDArray[Any] = (centers_KD.square().sum(dim=1) - 2 * points_ND @ centers_KD.T).numpy()
    cluster_of_place = np.repeat(np.arange(len(sizes)), sizes)
    _, places = linear_sum_assignment(cost_NK[:, cluster_of_place])
    return torch.from_numpy(cluster_of_place[places])
