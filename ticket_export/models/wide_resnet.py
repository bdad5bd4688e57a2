"""The wide residual network WRN-32-2, whose blocks begin with their norm."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from ticket_export.models.resnet import add_stages, initialise_he


class PreActivationBlock(nn.Module):
    """Adds conv2(relu(bn2(conv1(a)))) to its input, where a = relu(bn1(x)).

    Where the shape changes, a 1x1 convolution of a, without a norm, stands for the input.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = (
            None
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        a_NCHW = functional.relu(self.bn1(x_NCHW))
        y_NCHW = self.conv2(functional.relu(self.bn2(self.conv1(a_NCHW))))
        return cast(Tensor, y_NCHW + (x_NCHW if self.shortcut is None else self.shortcut(a_NCHW)))


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks, norm, ReLU, mean, linear.

    The names in its `state_dict` are conv1, layer{1,2,3}.{i}.{bn1,conv1,bn2,conv2[,shortcut]}, bn, linear.
    It accepts images of any height and width.
    Source: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), table 1.

    Args:
        blocks_per_stage: N of the paper.
        widening: k of the paper; the stages have 16 k, 32 k and 64 k channels.
        num_classes: width of the output.
        in_channels: channels of the image.
    """

    def __init__(self, blocks_per_stage: int, widening: int, *, num_classes: int, in_channels: int) -> None:
        super().__init__()
        widths = (16 * widening, 32 * widening, 64 * widening)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        add_stages(self, 16, widths, (blocks_per_stage,) * 3, PreActivationBlock)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], num_classes)
        initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        x_NCHW = self.conv1(x_NCHW)
        for stage in (1, 2, 3):
            x_NCHW = self.get_submodule(f"layer{stage}")(x_NCHW)
        return cast(Tensor, self.linear(functional.relu(self.bn(x_NCHW)).mean((2, 3))))


def wrn_32_2(*, num_classes: int, in_channels: int) -> WideResNet:
    """Return WRN-32-2: five blocks in each stage, of 32, 64 and 128 channels.

    It has 1,855,578 parameters for 10 classes of RGB images; its convolutions cost 271.0 million MACs on a
    32x32 image. Its name is that of Chen et al. 2022 (arXiv 2202.04736), who count the stem, 30 convolutions
    and the linear layer; Zagoruyko & Komodakis count the shortcuts and not the linear layer: their WRN-34-2.
    The released code of Chen et al. trains a network of these widths whose blocks end with their norm.
    """
    return WideResNet(5, 2, num_classes=num_classes, in_channels=in_channels)
