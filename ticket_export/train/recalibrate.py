"""Statistics of batch norms for weights that were never trained as they are: averaged or cut ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticket_export.data.augment import Augment
from ticket_export.data.batches import Batches, SeedPath
from ticket_export.data.sources import Images
from ticket_export.errors import TrainError


def recalibrate_norms(
    model: nn.Module,
    images: Images,
    *,
    augment: Augment,
    batch: int,
    num_batches: int,
    seed_path: SeedPath,
) -> int:
    """Give the batch norms of `model` its own statistics, in place, and return how many batches gave them.

    The statistics are forgotten and taken anew, each the plain mean over the batches; all else computes as in
    evaluation. The released code of SuperTickets (You et al. 2022, arXiv 2207.03677) takes 10 batches.

    Args:
        model: the network, where it computes; its modes stay as they are.
        images: training images are read, not augmented.
        augment: its mean and std alone are used.
        batch: images in a batch.
        num_batches: batches to take; fewer where the images are fewer.
        seed_path: root seed and path of the order of images.

    Raises:
        TrainError: no batch is asked for.
    """
    if num_batches < 1:
        raise TrainError(f"norms are recalibrated over {num_batches} batches", hint="at least 1, e.g. 10")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    batches = Batches(
        x=images.train_x.to(like.device),
        y=images.train_y.to(like.device),
        batch=batch,
        augment=Augment(mean=augment.mean, std=augment.std),
        seed_path=(*seed_path, "recalibrate"),
    )
    with _norms_averaging(model), torch.no_grad():
        for x_NCHW, _ in islice(batches.epoch(0), num_batches):
            model(x_NCHW.to(like.dtype))
    return min(num_batches, batches.num_batches)


@contextmanager
def _norms_averaging(model: nn.Module) -> Iterator[None]:
    """Put batch norms that have statistics, and them alone, into training with a cumulative average."""
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in modes if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
        norm.training = True
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
