"""The residual networks: ResNet-20/32/44/56 for CIFAR and ResNet-18 with the CIFAR stem."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class PadShortcut(nn.Module):
    """Takes every second pixel and adds zero channels, half before and half behind: option A.

    It has no parameters. The zero channels are buffers outside the `state_dict`, one element per channel, so
    that whatever cuts channels of the stream cuts them too.
    Source: He et al. 2016 (arXiv 1512.03385), section 4.2.
    """

    zeros_before: Tensor
    zeros_behind: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        num_before = (out_channels - in_channels) // 2
        num_behind = out_channels - in_channels - num_before
        self.register_buffer("zeros_before", torch.zeros(num_before, 1, 1), persistent=False)
        self.register_buffer("zeros_behind", torch.zeros(num_behind, 1, 1), persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the subsampled input between its zero channels."""
        thinned_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        num_images, _, height, width = thinned_NCHW.shape
        before, behind = (
            zeros.to(thinned_NCHW.dtype).expand(num_images, len(zeros), height, width)
            for zeros in (self.zeros_before, self.zeros_behind)
        )
        return torch.cat([before, thinned_NCHW, behind], dim=1)


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: str) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Adds two 3x3 convolutions to their input: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        return functional.relu(y_NCHW + self.shortcut(x_NCHW))


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (each stage after the first halves the image), mean, linear.

    The names in its `state_dict` are conv1, bn1, layer{1,2,...}.{i}.{conv1,bn1,conv2,bn2[,shortcut]}, linear.
    It accepts images of any height and width.

    Args:
        widths: channels of each stage; the stem has the first of them.
        num_blocks: basic blocks in each stage.
        num_classes: width of the output.
        in_channels: channels of the image.
        shortcut: `projection` (1x1 convolution and batch norm) or `pad` where a stage changes the shape.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_blocks: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        shortcut: str,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.num_stages = len(widths)
        width = widths[0]
        for stage, (out_width, depth) in enumerate(zip(widths, num_blocks, strict=True), start=1):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(BasicBlock(width, out_width, stride=stride, shortcut=shortcut))
                width = out_width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(width, num_classes)
        _initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        x_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        for stage in range(1, self.num_stages + 1):
            x_NCHW = cast(Tensor, self.get_submodule(f"layer{stage}")(x_NCHW))
        return cast(Tensor, self.linear(x_NCHW.mean((2, 3))))


def _initialise_he(model: nn.Module) -> None:
    # Kaiming-normal fan_out, norms 1 and 0, as the papers' code does (the linear layer keeps torch's default)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def cifar_resnet(depth: int, *, num_classes: int, in_channels: int, shortcut: str) -> CifarResNet:
    """Return the CIFAR ResNet of `depth` layers: stages of 16, 32, 64 channels, (depth - 2) / 6 blocks each.

    With projections depth 20 has 272,474 parameters for 10 classes of RGB images, with padding 269,722.
    Source: He et al. 2016 (arXiv 1512.03385), section 4.2.
    """
    blocks = (depth - 2) // 6
    return CifarResNet(
        (16, 32, 64), (blocks,) * 3, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut
    )


def resnet18(*, num_classes: int, in_channels: int) -> CifarResNet:
    """Return ResNet-18 with a 3x3 stem of stride 1 and no pooling.

    It has 11,173,962 parameters for 10 classes of RGB images; its convolutions cost 555.4 million MACs on
    a 32x32 image. Source: He et al. 2016 (arXiv 1512.03385), table 1.
    """
    return CifarResNet(
        (64, 128, 256, 512),
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut="projection",
    )
