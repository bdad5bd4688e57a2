"""The peer as a control: its own widths, nothing silently changed, one clear error where it cannot."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import channel_groups
from ticket_export.errors import ShrinkError
from ticket_export.find.control import macs_of_masks, uniform_mask
from ticket_export.find.depgraph import depgraph_mask, require_depgraph
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.load import build
from ticket_export.models.resnet import CifarResNet
from ticket_export.shrink.surgery import small_from_mask

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def resnet(shortcut: str = "projection") -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet((16, 32), (1, 2), num_classes=10, in_channels=1, shortcut=shortcut).eval()


def by_torch_pruning(model: nn.Module, ratio: float, round_to: int, ignored: str) -> nn.Module:
    """What its README tells a user to write."""
    small = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            small,
            X,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            round_to=round_to,
            ignored_layers=[small.get_submodule(ignored)],
        )
        pruner.step()
    return small


@pytest.mark.parametrize(("ratio", "round_to"), [(0.25, 1), (0.25, 8), (0.40625, 1)])
def test_the_mask_leaves_torch_prunings_own_network(ratio: float, round_to: int) -> None:
    model = resnet()
    theirs = by_torch_pruning(model, ratio, round_to, "linear")
    groups = channel_groups(model, X)
    mask = depgraph_mask(
        model, X, groups, target_macs=count_costs(theirs, X).macs, round_to=round_to, scope="coupled"
    )
    ours = small_from_mask(model, groups, mask)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_the_macs_reached_are_near_the_target_and_widths_on_the_grid() -> None:
    model = resnet()
    groups = channel_groups(model, X)
    macs_of = macs_of_masks(model, X, groups)
    dense = count_costs(model, X).macs
    fine = depgraph_mask(model, X, groups, target_macs=dense // 2, round_to=1)
    assert macs_of(fine) / dense == pytest.approx(0.5, abs=0.01)
    rounded = depgraph_mask(model, X, groups, target_macs=dense // 2, round_to=8)
    assert macs_of(rounded) / dense == pytest.approx(0.5, abs=0.1)
    assert {width % 8 for name, width in rounded.kept_widths().items() if name != "linear"} == {0}


def test_inner_channels_alone_are_chosen_where_the_scope_says_so() -> None:
    model = resnet()
    groups = channel_groups(model, X)
    macs_of = macs_of_masks(model, X, groups)
    target = int(0.6 * count_costs(model, X).macs)
    masks = (
        depgraph_mask(model, X, groups, target_macs=target, scope="inner", ranking="local"),
        uniform_mask(groups, round_to=1, target_macs=target, macs_of=macs_of, scope="inner"),
    )
    for mask in masks:
        kept = mask.kept_widths()
        assert all(kept[group.name] == group.width for group in groups if not group.is_inner)
        assert macs_of(mask) / target == pytest.approx(1.0, abs=0.06)


def test_the_network_that_is_given_stays_as_it_is() -> None:
    model = resnet().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    depgraph_mask(model, X, channel_groups(model, X), target_macs=1, round_to=8)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_network_it_cannot_prune_is_refused_with_its_own_words() -> None:
    model = resnet(shortcut="pad")
    groups = channel_groups(model, X)
    with pytest.raises(ShrinkError, match=r"torch-pruning (keeps|prunes)") as caught:
        require_depgraph(model, X, groups)
    assert caught.value.hint == "leave depgraph out of find.controls"


def test_what_torch_pruning_raises_names_the_network() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return torch.relu(self.layer(x_NCHW.flatten(1)))

    model = Broken()
    groups = channel_groups(model, X)
    model.forward = lambda x_NCHW: {}["missing"]  # type: ignore[method-assign]
    with pytest.raises(ShrinkError, match="torch-pruning cannot prune Broken: KeyError: 'missing'"):
        depgraph_mask(model, X, groups, target_macs=10)


@pytest.mark.parametrize("name", sorted(set(ZOO_FACTS) - {"resnet32", "resnet44", "resnet50", "resnet56"}))
def test_the_networks_of_the_zoo_are_what_their_facts_say(name: str) -> None:
    size = 32 if "conv" in name or name == "vgg16" else 8
    shape = (1, 28, 28) if name.startswith("lenet") else (3, size, size)
    for shortcut in ZOO_FACTS[name].args.get("shortcut", ("",)):
        args = {"shortcut": shortcut} if shortcut else {}
        model = build(f"zoo:{name}", args, None, num_classes=10, image_shape=shape, seed=0).eval()
        x_NCHW = torch.randn(2, *shape)
        groups = channel_groups(model, x_NCHW)
        if ZOO_FACTS[name].beyond_torch_pruning == args and args:
            with pytest.raises(ShrinkError, match="torch-pruning"):
                require_depgraph(model, x_NCHW, groups)
        else:
            require_depgraph(model, x_NCHW, groups)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"round_to": 0}, "round_to is 0"),
        ({"scope": "layer"}, "the scope is 'layer'"),
        ({"ranking": "best"}, "the ranking is 'best'"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: dict[str, object], text: str) -> None:
    model = resnet()
    with pytest.raises(ShrinkError, match=text):
        depgraph_mask(model, X, channel_groups(model, X), target_macs=1, **arguments)  # type: ignore[arg-type]
