"""The supernet: what it costs, which channels belong together, and what a search decides by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import channel_groups
from ticket_export.errors import RecipeError
from ticket_export.models.supernet import PLANS, SuperBlock, SuperNet, decision_norms
from ticket_export.models.zoo import zoo_network

CIFAR = (3, 32, 32)


def supernet(**args: object) -> nn.Module:
    return zoo_network("supernet", args, num_classes=10, image_shape=CIFAR)


def tiny(num_classes: int = 4, expansion: int = 1) -> SuperNet:
    model = SuperNet(plan="resnet20", expansion=expansion, num_classes=num_classes, in_channels=3)
    model.blocks = nn.Sequential(
        *model.blocks[2:4]
    )  # one of each kind: with the identity, and with the shortcut of stride 2
    model.linear = nn.Linear(32, num_classes)
    return model


def test_the_plan_of_resnet20_holds_and_costs_what_the_formulas_say() -> None:
    # A block of i to o channels with h = 2 i hidden ones, on P pixels, Q of them left:
    #   params: 3 h (i + o) + (9 + 25 + 49) h + 2 * 2 * 3 h + 2 o, with a shortcut i o + 2 o more
    #   16, 16: 6,144 (three times), 16, 32: 8,288, 32, 32: 18,432 (twice), 32, 64: 26,816,
    #   64, 64: 61,440 (twice), stem 432 + 32, linear 640 + 10
    #   MACs: 3 h i P + (83 + 3 o) h Q, with a shortcut i o Q more
    #   5,865,472 (three times), 3,170,304, 4,505,600 (twice), 2,830,336, 3,825,664 (twice),
    #   stem 442,368, linear 640
    costs = count_costs(supernet(), torch.zeros(1, *CIFAR))
    assert costs.params == 3 * 6144 + 8288 + 2 * 18432 + 26816 + 2 * 61440 + 464 + 650 == 214_394
    macs = 3 * 5865472 + 3170304 + 2 * 4505600 + 2830336 + 2 * 3825664 + 442368 + 640
    assert costs.macs == macs == 40_702_592


@pytest.mark.parametrize(
    ("plan", "widths", "strides"),
    [
        ("resnet20", [16] * 3 + [32] * 3 + [64] * 3, {3, 6}),
        ("resnet18", [64] * 2 + [128] * 2 + [256] * 2 + [512] * 2, {2, 4, 6}),
        ("mobilenet_v1", [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024], {1, 3, 5, 11}),
    ],
)
def test_plans_are_the_stages_of_the_networks_of_their_names(
    plan: str, widths: list[int], strides: set[int]
) -> None:
    _, blocks = PLANS[plan]
    assert [width for width, _ in blocks] == widths
    assert {index for index, (_, stride) in enumerate(blocks) if stride == 2} == strides
    assert {stride for _, stride in blocks} == {1, 2}


@pytest.mark.parametrize("plan", ["resnet20", "resnet18"])
def test_stem_and_shortcuts_are_those_of_the_network_of_the_plans_name(plan: str) -> None:
    own = {name: tensor.shape for name, tensor in supernet(plan=plan, expansion="1").state_dict().items()}
    resnet = zoo_network(plan, {}, num_classes=10, image_shape=CIFAR)
    for name in ("conv1.weight", "bn1.weight", "linear.weight"):
        assert own[name] == resnet.get_parameter(name).shape
    projections = [shape for name, shape in own.items() if name.endswith("shortcut.0.weight")]
    named = resnet.named_parameters()
    assert projections == [weight.shape for name, weight in named if name.endswith("shortcut.0.weight")]


def test_an_expansion_may_be_given_as_a_number() -> None:
    (first, *_) = supernet(expansion=4).get_submodule("blocks")
    assert isinstance(first, SuperBlock)
    assert first.branches["k3"].get_submodule("expand").get_parameter("weight").shape == (64, 16, 1, 1)
    with pytest.raises(RecipeError, match="expansion is '3'"):
        supernet(expansion=3)


def test_each_branch_decides_on_one_free_group_and_each_stage_is_one_stream() -> None:
    model = tiny(expansion=2)
    groups = {group.name: group for group in channel_groups(model, torch.randn(2, 3, 8, 8))}
    inner = {f"blocks.{i}.branches.k{k}.expand" for i in (0, 1) for k in (3, 5, 7)}
    assert {name for name, group in groups.items() if group.pinned is None and group.is_inner} == inner
    assert {group.width for name, group in groups.items() if name in inner} == {32}
    assert groups.keys() - inner == {"conv1", "blocks.1.shortcut.0", "linear"}
    for norm in decision_norms(model):
        branch = norm.removesuffix(".bn2.weight")
        assert {member.tensor for member in groups[f"{branch}.expand"].members} == {
            f"{branch}.{tensor}"
            for tensor in (
                "expand.weight", "depthwise.weight", "project.weight",
                *(f"bn{n}.{t}" for n in (1, 2) for t in ("weight", "bias", "running_mean", "running_var")),
            )
        }  # fmt: skip


def test_the_decision_norms_are_the_scales_behind_the_depthwise_convolutions() -> None:
    names = decision_norms(supernet())
    assert len(names) == 9 * 3
    assert names[:4] == (
        "blocks.0.branches.k3.bn2.weight",
        "blocks.0.branches.k5.bn2.weight",
        "blocks.0.branches.k7.bn2.weight",
        "blocks.1.branches.k3.bn2.weight",
    )


def test_a_block_adds_the_norm_of_its_branches_sum_to_its_shortcut() -> None:
    torch.manual_seed(0)
    block = SuperBlock(4, 8, stride=2, expansion=2).double().eval()
    block.bn.running_mean.normal_()
    x_NCHW = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    total = block.branches["k3"](x_NCHW) + block.branches["k5"](x_NCHW) + block.branches["k7"](x_NCHW)
    assert total.shape == (2, 8, 5, 5)
    wanted = block.bn(total) + block.shortcut(x_NCHW)
    assert torch.allclose(block(x_NCHW), wanted, atol=1e-12)
    assert float(wanted.detach().min()) < 0  # no activation behind the sum
