"""The supernet: blocks that are sums of parallel branches, which a search narrows and drops.

Branches as in HR-NAS and SuperTickets (You et al. 2022, arXiv 2207.03677, released code), over the stage
plans of the zoo's networks.
"""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticket_export.models.mobilenet import BLOCKS as MOBILENET_BLOCKS
from ticket_export.models.resnet import initialise_he, projection_shortcut

KERNELS = (3, 5, 7)  # one branch each


def _stages(widths: tuple[int, ...], num_blocks: int) -> tuple[tuple[int, int], ...]:
    """Return width and stride of each block: every stage but the first halves the image."""
    return tuple(
        (width, 2 if stage > 0 and index == 0 else 1)
        for stage, width in enumerate(widths)
        for index in range(num_blocks)
    )


# Channels of the stem, then width and stride of each block, as in the networks of the same names
PLANS: Mapping[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "resnet20": (16, _stages((16, 32, 64), 3)),
    "resnet18": (64, _stages((64, 128, 256, 512), 2)),
    "mobilenet_v1": (32, MOBILENET_BLOCKS),
}


class SuperBranch(nn.Module):
    """A 1x1 expansion, a k x k convolution of each channel alone, a 1x1 projection without a norm.

    The scale of `bn2`, one number per hidden channel, is what a search decides by.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the branch's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        y_NCHW = functional.relu(self.bn1(self.expand(x_NCHW)))
        y_NCHW = functional.relu(self.bn2(self.depthwise(y_NCHW)))
        return cast(Tensor, self.project(y_NCHW))

    @property
    def is_empty(self) -> bool:
        """Return whether it lost all its channels, before or behind the depthwise convolution."""
        return any(parameter.numel() == 0 for parameter in self.parameters())

    def constant(self) -> Tensor:
        """Return what it adds in evaluation mode if it is empty, [out_channels]."""
        weight_OC, bias_O = self.project.weight.flatten(1), self.project.bias
        total_O = weight_OC.new_zeros(len(weight_OC))
        if weight_OC.numel():  # only what leads into the depthwise convolution is gone
            total_O = weight_OC @ functional.relu(_norm_of_zero(self.bn2))
        return total_O if bias_O is None else total_O + bias_O


class ChannelShift(nn.Module):
    """Adds one number per channel, the parameter `bias`: what is left of a norm that sees nothing."""

    def __init__(self, bias_C: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_C)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the input and the shift of each channel."""
        return x_NCHW + self.bias[:, None, None]


def _norm_of_zero(norm: nn.BatchNorm2d) -> Tensor:
    """Return what the norm gives for an input of zeros in evaluation mode, [C]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean_C, var_C, scale_C, bias_C = (
        t.double() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (bias_C - scale_C * mean_C / (var_C + norm.eps).sqrt()).to(norm.bias.dtype)


class SuperBlock(nn.Module):
    """Adds the sum of its branches, under one norm, to its input: bn(k3(x) + k5(x) + k7(x)) + shortcut(x).

    No activation follows: what a block adds may be negative, and a block that lost its branches is its
    shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.branches = nn.ModuleDict(
            {
                f"k{kernel}": SuperBranch(in_channels, hidden, out_channels, kernel=kernel, stride=stride)
                for kernel in KERNELS
            }
        )
        self.bn: nn.BatchNorm2d | ChannelShift = nn.BatchNorm2d(out_channels)
        self.shortcut = projection_shortcut(in_channels, out_channels, stride)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the block's output, [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        shortcut_NCHW = cast(Tensor, self.shortcut(x_NCHW))
        if not self.branches:
            return cast(Tensor, self.bn(shortcut_NCHW))
        y_NCHW = reduce(torch.add, [branch(x_NCHW) for branch in self.branches.values()])
        return cast(Tensor, self.bn(y_NCHW) + shortcut_NCHW)

    def branch_names(self) -> tuple[str, ...]:
        """Return the names of the branches, each of which may lose all its hidden channels."""
        return tuple(f"branches.{name}" for name in self.branches)

    @torch.no_grad()
    def drop_empty_branches(self) -> None:
        """Remove the branches without hidden channels; after the last one the norm becomes its constant.

        The output in evaluation mode stays. Of the norm the bias stays, by its name.
        """
        if isinstance(self.bn, ChannelShift):
            return
        for name, branch in list(self.branches.items()):
            assert isinstance(branch, SuperBranch)
            if branch.is_empty:
                assert self.bn.running_mean is not None
                self.bn.running_mean -= branch.constant()
                del self.branches[name]
        if not self.branches:
            self.bn = ChannelShift(_norm_of_zero(self.bn))


class SuperNet(nn.Module):
    """A 3x3 stem, blocks of parallel branches over the stages of `plan`, mean, linear.

    The names in its `state_dict` are conv1, bn1,
    blocks.{i}.{branches.k{3,5,7}.{expand,bn1,depthwise,bn2,project},bn[,shortcut]}, linear. It accepts images
    of any height and width.

    Args:
        plan: a key of PLANS.
        expansion: hidden channels of each branch per channel that enters its block.
        num_classes: width of the output.
        in_channels: channels of the image.
    """

    def __init__(self, *, plan: str, expansion: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width, stages = PLANS[plan]
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks = []
        for out_width, stride in stages:
            blocks.append(SuperBlock(width, out_width, stride=stride, expansion=expansion))
            width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(width, num_classes)
        initialise_he(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, [N, K]."""
        x_NCHW = functional.relu(self.bn1(self.conv1(x_NCHW)))
        return cast(Tensor, self.linear(self.blocks(x_NCHW).mean((2, 3))))


def decision_norms(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the scales that a search decides by, one vector per branch, in network order.

    Each scale belongs to the group of its branch's hidden channels, whose first producer is `expand`.
    """
    return tuple(
        f"{path}.bn2.weight" for path, module in model.named_modules() if isinstance(module, SuperBranch)
    )
