"""The residual networks: ResNet-20/32/44/56 and WRN-32-2 for CIFAR, ResNet-18/50 with either stem."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, cast

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
    if kind == "pad" and (stride != 1 or in_channels != out_channels):
        return PadShortcut(in_channels, out_channels, stride)
    return projection_shortcut(in_channels, out_channels, stride)


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or a 1x1 convolution and a batch norm where the shape changes: option B."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Adds two 3x3 convolutions to their input: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))."""

    expansion: ClassVar[int] = 1  # channels of the output per channel between the convolutions

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


class Bottleneck(nn.Module):
    """Adds convolutions of 1x1, 3x3 and 1x1 to their input; between them are a quarter of the channels.

    The stride is that of the 3x3 convolution, as in torchvision; the paper gives it to the first one.
    Source: He et al. 2016 (arXiv 1512.03385), figure 5.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, shortcut: str) -> None:
        super().__init__()
        width = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = functional.relu(self.bn2(self.conv2(y_NCHW)))
        y_NCHW = self.bn3(self.conv3(y_NCHW))
        return functional.relu(y_NCHW + self.shortcut(x_NCHW))


def _add_stages(
    model: nn.Module,
    in_channels: int,
    widths: Sequence[int],
    num_blocks: Sequence[int],
    block: Callable[..., nn.Module],
) -> None:
    """Give `model` its stages layer1, layer2, ...; the first block of each but the first halves the image.

    Args:
        model: gets the stages, each a Sequential of blocks.
        in_channels: channels that enter the first stage.
        widths: channels that leave each stage.
        num_blocks: blocks in each stage.
        block: called with the channels in and out, and `stride`.
    """
    width = in_channels
    for stage, (out_width, depth) in enumerate(zip(widths, num_blocks, strict=True), start=1):
        blocks = []
        for index in range(depth):
            stride = 2 if stage > 1 and index == 0 else 1
            blocks.append(block(width, out_width, stride=stride))
            width = out_width
        model.add_module(f"layer{stage}", nn.Sequential(*blocks))


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of blocks (each stage after the first halves the image), mean, linear.

    The names in its `state_dict` are conv1, bn1, layer{1,2,...}.{i}.{conv1,bn1,conv2,bn2[,shortcut]}, linear;
    bottlenecks add conv3 and bn3. It accepts images of any height and width.

    Args:
        widths: channels that leave each stage; the stem has the first of them, divided by `block.expansion`.
        num_blocks: blocks in each stage.
        num_classes: width of the output.
        in_channels: channels of the image.
        shortcut: `projection` (1x1 convolution and batch norm) or `pad` where a stage changes the shape.
        block: what the stages hold.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_blocks: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        shortcut: str,
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        stem_width = widths[0] // block.expansion
        self.conv1 = nn.Conv2d(in_channels, stem_width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.num_stages = len(widths)
        _add_stages(self, stem_width, widths, num_blocks, partial(block, shortcut=shortcut))
        self.linear = nn.Linear(widths[-1], num_classes)
        initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        x_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        for stage in range(1, self.num_stages + 1):
            x_NCHW = cast(Tensor, self.get_submodule(f"layer{stage}")(x_NCHW))
        return cast(Tensor, self.linear(x_NCHW.mean((2, 3))))


class ImageNetResNet(nn.Module):
    """A 7x7 stem and a 3x3 max pool, both of stride 2, stages of blocks, mean, linear.

    Its arguments, and the names in its `state_dict`, are those of CifarResNet.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_blocks: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        shortcut: str,
        block: type[BasicBlock] | type[Bottleneck],
    ) -> None:
        super().__init__()
        stem_width = widths[0] // block.expansion
        self.conv1 = nn.Conv2d(in_channels, stem_width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.num_stages = len(widths)
        _add_stages(self, stem_width, widths, num_blocks, partial(block, shortcut=shortcut))
        self.linear = nn.Linear(widths[-1], num_classes)
        initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        x_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = functional.max_pool2d(x_NCHW, 3, 2, 1)
        for stage in range(1, self.num_stages + 1):
            x_NCHW = cast(Tensor, self.get_submodule(f"layer{stage}")(x_NCHW))
        return cast(Tensor, self.linear(x_NCHW.mean((2, 3))))


def initialise_he(model: nn.Module) -> None:
    """Draw every convolution anew, Kaiming-normal by its fan out, and leave all else as torch made it.

    Norms are 1 and 0 then, as in the papers' code.
    """
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


def wrn_32_2(*, num_classes: int, in_channels: int) -> CifarResNet:
    """Return WRN-32-2: the CIFAR ResNet of depth 32 with twice the channels, 32, 64 and 128.

    It has 1,860,522 parameters for 10 classes of RGB images; its convolutions cost 275.6 million MACs on a
    32x32 image. This is what the released code of Chen et al. 2022 (arXiv 2202.04736) trains under that name:
    a stem of 32 channels, and blocks that end with their norm. The wide networks of Zagoruyko & Komodakis
    (arXiv 1605.07146) have the same widths, a stem of 16 and blocks that begin with their norm.
    """
    widths, num_blocks = (32, 64, 128), (5, 5, 5)
    return CifarResNet(
        widths, num_blocks, num_classes=num_classes, in_channels=in_channels, shortcut="projection"
    )


_BY_STEM = {"cifar": CifarResNet, "imagenet": ImageNetResNet}


def resnet18(*, num_classes: int, in_channels: int, stem: str) -> nn.Module:
    """Return ResNet-18 with the stem for CIFAR (3x3, stride 1, no pooling) or for ImageNet.

    With the `cifar` stem it has 11,173,962 parameters for 10 classes of RGB images; its convolutions cost
    555.4 million MACs on a 32x32 image. With the `imagenet` stem it has 11,689,512 for 1000 classes.
    Source: He et al. 2016 (arXiv 1512.03385), table 1.
    """
    return _BY_STEM[stem](
        (64, 128, 256, 512),
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut="projection",
        block=BasicBlock,
    )


def resnet50(*, num_classes: int, in_channels: int, stem: str) -> nn.Module:
    """Return ResNet-50 with the stem for ImageNet or for CIFAR (3x3, stride 1, no pooling).

    With the `imagenet` stem it has 25,557,032 parameters for 1000 classes of RGB images; its convolutions
    cost 4.09 billion MACs on a 224x224 image. Source: He et al. 2016 (arXiv 1512.03385), table 1.
    """
    return _BY_STEM[stem](
        (256, 512, 1024, 2048),
        (3, 4, 6, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut="projection",
        block=Bottleneck,
    )
