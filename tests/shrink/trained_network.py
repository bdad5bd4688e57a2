"""The trained CIFAR-10 ResNet-20 with whole filters at zero, for its test and its benchmark."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import channel_groups
from ticket_export.data.augment import normalise
from ticket_export.data.sources import Images
from ticket_export.export.onnx import onnx_from_module
from ticket_export.runtime.ort import OrtCpuRunner

# N images, C channels, H W pixels, K classes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 400  # larger activations are fetched from the system and given back in every layer
NUM_CALIBRATION = 2000


def zero_smallest_filters(net: nn.Module, rate: float, *, inner_only: bool) -> int:
    """Zero the filters of the smallest l1 norm, summed over a group's layers; return how many channels."""
    tensors, num_zeroed = net.state_dict(), 0
    for group in channel_groups(net, torch.zeros(2, 3, 32, 32)):
        if group.pinned is not None or (inner_only and not group.is_inner):
            continue
        l1_C = torch.zeros(group.width)
        for member in group.producers:
            rows = tensors[member.tensor].movedim(member.axis, 0).flatten(1).abs().sum(1)
            l1_C += rows[member.indices].sum(1)
        smallest = l1_C.argsort()[: int(rate * group.width)]
        num_zeroed += len(smallest)
        for member in group.producers:  # the betas stay: a dead channel emits a constant
            tensors[member.tensor].index_fill_(member.axis, member.indices[smallest].flatten(), 0.0)
    return num_zeroed


def measure_statistics_again(net: nn.Module, images: Images) -> None:
    """Take the running statistics from training images: with the old ones few classes are predicted."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the batches
        norm.train()
    logits(net, images.train_x[:NUM_CALIBRATION])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def logits(run: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    """Return [N, K] for uint8 images, batch by batch."""
    with torch.no_grad():
        return torch.cat([run(normalise(x, MEAN, STD)) for x in torch.split(x_NCHW, BATCH)])


def logits_in_onnxruntime(net: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return the logits of the network's exported file."""
    with tempfile.TemporaryDirectory() as folder:
        path = onnx_from_module(net, Path(folder) / "small.onnx", torch.zeros(2, 3, 32, 32))
        with OrtCpuRunner(path) as runner:
            (name,) = runner.input_specs
            return logits(
                lambda x: torch.from_numpy(np.asarray(*runner.infer({name: x.numpy()}).values())), x_NCHW
            )
