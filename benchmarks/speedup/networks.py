"""The networks whose speedups are measured, and the images that their norms and calibrations have seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from costs.shrink import torchvision_schemas
from torch import Tensor, nn

from ticket_export.models.load import build
from ticket_export.seeds import stream

# they last as long as the reference; who imports this may have declared them
TORCHVISION_SCHEMAS = (
    None
    if find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms")
    else torchvision_schemas()
)

# N images, C channels, H W pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network and the images that suit it."""

    builder: str
    image_shape: tuple[int, int, int]
    data: str
    num_classes: int
    args: Mapping[str, str]

    def built(self) -> nn.Module:
        """Return it with fresh weights, equal in every call, in evaluation mode."""
        return build(
            self.builder, self.args, num_classes=self.num_classes, image_shape=self.image_shape
        ).eval()


def _network(builder: str, size: int, **args: str) -> Network:
    data, num_classes = ("cifar10", 10) if size == 32 else ("tiny-imagenet-20", 1000)
    return Network(
        builder=builder, image_shape=(3, size, size), data=data, num_classes=num_classes, args=args
    )


NETWORKS: Mapping[str, Network] = {
    "resnet50": _network("torchvision:resnet50", 224),
    "resnet18-cifar": _network("zoo:resnet18", 32),
    "resnet20-cifar": _network("zoo:resnet20", 32, shortcut="projection"),
    "mobilenet_v2": _network("torchvision:mobilenet_v2", 224),
    "vgg16_bn": _network("torchvision:vgg16_bn", 224),
    "resnet18": _network("torchvision:resnet18", 224),
}


@cache
def images(network: str, count: int) -> tuple[Tensor, str]:
    """Return normalised images [N, C, H, W] at the network's resolution, and what they are, in words."""
    case = NETWORKS[network]
    folder = os.environ.get("TICKET_EXPORT_DATA")
    path = None if folder is None else Path(folder) / f"{case.data}.npz"
    if path is None or not path.is_file():
        reason = "TICKET_EXPORT_DATA is not set" if path is None else f"{path.name} is not there"
        noise = torch.randn(count, *case.image_shape, generator=stream(0, "noise"))
        return noise, f"{count} images of noise ({reason})"
    with np.load(path, allow_pickle=False) as held:
        pixels = held["train_x"]
    chosen = torch.randperm(len(pixels), generator=stream(0, "images"))[:count]
    x_NCHW = torch.from_numpy(pixels[chosen.numpy()]).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x_NCHW = (x_NCHW - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    size = case.image_shape[1:]
    words = f"{count} training images of {case.data}"
    if tuple(x_NCHW.shape[2:]) != size:
        words += f", upscaled from {x_NCHW.shape[-1]} to {size[-1]} pixels"
        x_NCHW = nn.functional.interpolate(x_NCHW, size=size, mode="bilinear", antialias=True)
    return x_NCHW, words


def with_statistics(model: nn.Module, x_NCHW: Tensor) -> nn.Module:
    """Give every BatchNorm the statistics of the images, so that signals keep their size."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(x_NCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
