"""MobileNet-v1 for CIFAR: its stem keeps the size of the image."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from ticket_export.models.resnet import initialise_he

# Width and stride of each block; source: Howard et al. 2017 (arXiv 1704.04861), table 1
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 one over them; each with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y_NCHW = functional.relu(self.bn1(self.depthwise(x_NCHW)))
        return functional.relu(self.bn2(self.pointwise(y_NCHW)))


class MobileNetV1(nn.Module):
    """A 3x3 stem of 32 channels and stride 1, thirteen separable blocks, mean, linear.

    It has 3,217,226 parameters for 10 classes of RGB images; its convolutions cost 46.3 million MACs on a
    32x32 image, of which four halvings leave 2x2 pixels. The names in its `state_dict` are conv1, bn1,
    blocks.{i}.{depthwise,bn1,pointwise,bn2}, linear. It accepts images of any height and width.
    Source: Howard et al. 2017 (arXiv 1704.04861), table 1; without the stride of the stem, as Chen et al.
    2022 (arXiv 2202.04736) train it on CIFAR.
    """

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = 32
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = []
        for out_width, stride in BLOCKS:
            blocks.append(SeparableBlock(width, out_width, stride=stride))
            width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width, num_classes)
        initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        x_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        return cast(Tensor, self.linear(self.blocks(x_NCHW).mean((2, 3))))
