"""The networks of the comparison: fresh weights, norms with a history, no constant that is zero by luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ticket_export.models.load import build

# N images, C channels, H W pixels
CALIBRATION_IMAGES = 8
LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where a network comes from and at which sizes it is run.

    Attributes:
        size: height and width of the images it is shrunk and compared at.
        other_size: the second resolution; equal to `size` where the network has one only.
        args: keywords of its torchvision builder.
    """

    size: int = 64
    other_size: int = 96
    args: Mapping[str, Any] = field(default_factory=dict)  # Any: what the builder takes


NETWORKS: Mapping[str, Network] = {
    "zoo:resnet20": Network(size=32, other_size=40),
    "resnet18": Network(),
    "resnet50": Network(),
    "resnext50_32x4d": Network(),
    "vgg11_bn": Network(),
    "squeezenet1_0": Network(),
    "googlenet": Network(args={"aux_logits": False, "init_weights": False}),
    "densenet121": Network(),
    "mobilenet_v2": Network(),
    "mobilenet_v3_large": Network(),
    "efficientnet_b0": Network(),
    "regnet_x_400mf": Network(),
    "shufflenet_v2_x0_5": Network(),
    "convnext_tiny": Network(),
    "vit_b_16": Network(other_size=64, args={"image_size": 64}),
    "swin_t": Network(),
}


def built(name: str, seed: int = 0) -> nn.Module:
    """Return the dense network: weights at random, and none of its parameters a constant 0 or 1e-6."""
    torch.manual_seed(seed)
    network = NETWORKS[name]
    if name.startswith("zoo:"):
        model = build(name, {}, num_classes=10, image_shape=(3, network.size, network.size), seed=seed)
    else:
        import torchvision

        model = getattr(torchvision.models, name)(weights=None, **network.args)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LAYERS) and module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        for key, parameter in model.named_parameters():
            if key.endswith("layer_scale"):  # 1e-6 in a fresh ConvNeXt: its blocks would not matter
                nn.init.uniform_(parameter, 0.5, 1.5)
            if key.endswith("class_token"):
                nn.init.normal_(parameter, std=0.1)
        head = [module for module in model.modules() if isinstance(module, LAYERS)][-1]
        usual_std = head.weight[0].numel() ** -0.5
        if (
            head.weight.std() < 0.3 * usual_std
        ):  # zero in a fresh ViT, 0.01 in SqueezeNet: its bias would rule
            nn.init.normal_(head.weight, std=usual_std)
    return model.eval()


def images(num_images: int, size: int, seed: int) -> Tensor:
    """Return [N, 3, size, size], standard normal, the same for the same seed."""
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def calibrate(model: nn.Module, size: int) -> nn.Module:
    """Give every norm the statistics of one batch; channels without variance get some at random.

    It is done after masking, so that signals reach the output of a deep network with three quarters of its
    channels dead. In a network without norms the convolutions are scaled instead.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not any(isinstance(module, nn.BatchNorm2d | nn.LayerNorm) for module in model.modules()):
        _scale_convolutions(model, size)
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images(CALIBRATION_IMAGES, size, 1))
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.momentum = 0.1
            dead = norm.running_var < 1e-6
            norm.running_mean[dead] += torch.randn(int(dead.sum())) * 0.2
            norm.running_var[dead] = torch.rand(int(dead.sum())) + 0.5
    return model.eval()


def _scale_convolutions(model: nn.Module, size: int) -> None:
    """Scale each weight so that what its layer adds to its bias differs by 1 from image to image."""

    def scale(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        bias = layer.bias[:, None, None]
        factor = 1.0 / (output - output.mean(0)).std()
        layer.weight *= factor
        return (output - bias) * factor + bias

    handles = [m.register_forward_hook(scale) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(images(CALIBRATION_IMAGES, size, 1))
    for handle in handles:
        handle.remove()


def half(count: int) -> Tensor:
    """Return int64 [count // 2]: which positions are dropped, from the global generator."""
    return torch.randperm(count)[: count // 2]
