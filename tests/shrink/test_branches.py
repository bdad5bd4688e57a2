"""Branches that lose all their channels: they go, and so do blocks, in module form and without a change."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.branches import branch_paths
from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.channels.mask import Mask, zero_dropped
from ticket_export.errors import ShrinkError
from ticket_export.export.onnx import onnx_from_module
from ticket_export.models.supernet import ChannelShift, SuperBlock, SuperNet
from ticket_export.pipeline.networks import scattered
from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.exact import Shrunk, shrink
from ticket_export.shrink.surgery import small_from_mask

# N images, C channels, H W pixels


def fresh(seed: int = 0) -> SuperNet:
    """Three blocks of the plan of ResNet-20: with the identity, with stride 2, with the identity."""
    torch.manual_seed(seed)
    model = SuperNet(plan="resnet20", expansion=1, num_classes=4, in_channels=3)
    model.blocks = nn.Sequential(*model.blocks[2:5])
    model.linear = nn.Linear(32, 4)
    return model.double().eval()


def images(num_images: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_images, 3, 8, 8, generator=generator, dtype=torch.float64)


def with_statistics(model: nn.Module) -> nn.Module:
    """Give its norms numbers of which none is zero or one."""
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.running_var, norm.bias.data, norm.running_mean):
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
        norm.bias.data -= 1.2
        norm.running_mean -= 0.8
    return model


@cache
def groups_of_fresh() -> list[ChannelGroup]:
    return channel_groups(fresh(), images())


def trained() -> tuple[SuperNet, list[ChannelGroup]]:
    model = with_statistics(fresh())
    assert isinstance(model, SuperNet)
    return model, groups_of_fresh()


def emptying(groups: list[ChannelGroup]) -> Mask:
    """Of block 0 the branch k5 goes, of block 1 every branch, and of every other group a third."""
    generator = torch.Generator().manual_seed(2)
    keep_by_group = {}
    for group in groups:
        if group.pinned is None:
            gone = group.branch is not None and (group.branch + ".").startswith(
                ("blocks.0.branches.k5.", "blocks.1.")
            )
            keep_C = torch.rand(group.width, generator=generator) < 0.67
            keep_by_group[group.name] = keep_C & (not gone)
    return Mask(keep_by_group)


def error_between(small: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        given, wanted = small(images(5, seed=9)), dense(images(5, seed=9))
    assert float(wanted.std(0).max()) > 1e-3 * float(wanted.abs().max())
    return float((given - wanted).abs().max() / wanted.abs().max())


def masked_and_small() -> tuple[nn.Module, nn.Module]:
    model, groups = trained()
    mask = emptying(groups)
    small = small_from_mask(model, groups, mask)
    zero_dropped(model, groups, mask)
    return model, small


# which groups may lose everything


def test_groups_inside_a_branch_name_it_and_streams_do_not() -> None:
    branches = {group.name: group.branch for group in groups_of_fresh()}
    inner = {f"blocks.{i}.branches.k{k}" for i in range(3) for k in (3, 5, 7)}
    assert {branch for branch in branches.values() if branch is not None} == inner
    assert all(branches[f"{path}.expand"] == path for path in inner)
    assert [name for name, branch in branches.items() if branch is None] == [
        "conv1",
        "blocks.1.shortcut.0",
        "linear",
    ]


def test_a_stream_still_keeps_a_channel() -> None:
    model, groups = trained()
    mask = Mask({"blocks.1.shortcut.0": torch.zeros(32, dtype=torch.bool)})
    with pytest.raises(ShrinkError, match=r"'blocks\.1\.shortcut\.0' keeps 0 of 32 channels"):
        small_from_mask(model, groups, mask)


def test_branches_that_share_a_tensor_stay() -> None:
    model = fresh()
    first, last = model.blocks[0], model.blocks[2]
    assert isinstance(first, SuperBlock)
    assert isinstance(last, SuperBlock)
    last.branches["k3"].get_submodule("bn1").weight = first.branches["k3"].get_submodule("bn1").weight
    gone = set(branch_paths(fresh())) - set(branch_paths(model))
    assert gone == {"blocks.0.branches.k3", "blocks.2.branches.k3"}


# cut by a mask


def test_a_cut_network_without_a_branch_and_without_a_block_computes_what_the_mask_says() -> None:
    masked, small = masked_and_small()
    assert error_between(small, masked) <= 1e-9
    assert error_between(small.float().double(), masked) <= 1e-5
    (first, second, third) = small.get_submodule("blocks").children()
    assert [list(block.branches) for block in (first, second, third)] == [
        ["k3", "k7"],
        [],
        ["k3", "k5", "k7"],
    ]
    assert isinstance(second.bn, ChannelShift)
    assert {name for name, _ in second.named_parameters()} == {
        "bn.bias", "shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias"
    }  # fmt: skip


def test_the_names_of_a_cut_network_follow_from_the_mask_alone() -> None:
    model, groups = trained()
    mask = emptying(groups)
    cut, cut_fresh = (small_from_mask(net, groups, mask).state_dict() for net in (model, fresh(seed=5)))
    assert {name: t.shape for name, t in cut.items()} == {name: t.shape for name, t in cut_fresh.items()}
    assert cut.keys() < model.state_dict().keys()


def test_a_branch_of_one_channel_may_lose_it_on_either_side_of_its_depthwise_convolution() -> None:
    model, groups = trained()
    one = Mask({"blocks.0.branches.k3.expand": torch.arange(16) == 3})
    narrow = small_from_mask(model, groups, one)
    groups = channel_groups(narrow, images())  # a depthwise convolution of one channel is an ordinary one
    for name in ("blocks.0.branches.k3.expand", "blocks.0.branches.k3.depthwise"):
        none = Mask({name: torch.zeros(1, dtype=torch.bool)})
        small, masked = small_from_mask(narrow, groups, none), copy.deepcopy(narrow)
        zero_dropped(masked, groups, none)
        assert not any(name.startswith("blocks.0.branches.k3.") for name in small.state_dict())
        assert error_between(small, masked) <= 1e-9


def test_a_cut_network_trains() -> None:
    _, small = masked_and_small()
    small.train()
    before = small.get_parameter("blocks.1.bn.bias").detach().clone()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(images()).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert not torch.equal(small.get_parameter("blocks.1.bn.bias"), before)


def test_a_cut_network_is_scattered_into_the_dense_shape() -> None:
    model, groups = trained()
    mask = emptying(groups)
    small = small_from_mask(model, groups, mask)
    with torch.no_grad():  # as if trained on
        small.get_parameter("blocks.1.bn.bias").add_(0.3)
    other = with_statistics(fresh(seed=7))
    dense = scattered(small, other, groups, mask)
    assert dense.state_dict().keys() == other.state_dict().keys()
    assert error_between(dense, small) <= 1e-9


def test_a_cut_network_costs_less_and_an_empty_block_costs_its_shortcut_and_a_shift() -> None:
    model, groups = trained()
    nothing = torch.zeros(16, dtype=torch.bool)
    mask = Mask({f"blocks.1.branches.k{k}.expand": nothing for k in (3, 5, 7)})
    before, after = (count_costs(net, images()) for net in (model, small_from_mask(model, groups, mask)))
    # 16 to 32 channels, 16 hidden ones, 64 pixels before and 16 behind: weights of the branches with their
    # norms, and scale of the shared norm; MACs of expansion, depthwise and projection
    assert before.params - after.params == 3 * 16 * (16 + 32) + 83 * 16 + 3 * 4 * 16 + 32
    assert before.macs - after.macs == 3 * 16 * 16 * 64 + 16 * (83 + 3 * 32) * 16


# found by the shrink pass


def dead_branches() -> SuperNet:
    """As after a search: scales of decision norms are zero, while their biases still emit constants."""
    model, _ = trained()
    first, second, third = model.blocks
    for branch in (first.branches["k5"], *second.branches.values()):
        branch.bn2.weight.data.zero_()
    third.branches["k3"].bn2.weight.data[:5] = 0
    return model


@pytest.fixture(scope="module")
def shrunk() -> Shrunk:
    return shrink(dead_branches(), images())


def test_dead_branches_and_blocks_are_removed_in_module_form(shrunk: Shrunk) -> None:
    assert shrunk.report.form == "module"
    assert type(shrunk.model) is SuperNet
    assert error_between(shrunk.model, dead_branches()) <= 1e-9
    blocks = list(shrunk.model.get_submodule("blocks").children())
    assert [list(block.branches) for block in blocks] == [["k3", "k7"], [], ["k3", "k5", "k7"]]
    change = shrunk.report.widths["blocks.1.branches.k7.expand"]
    assert (change.before, change.after) == (16, 0)
    assert "folded into a new bias" in change.how
    assert shrunk.report.params == sum(p.numel() for p in shrunk.model.parameters())


def test_what_is_shrunk_has_nothing_more_to_remove(shrunk: Shrunk) -> None:
    again = shrink(shrunk.model, images())
    assert again.report.form == "module"
    own = {name: tensor.shape for name, tensor in shrunk.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.model.state_dict().items()} == own


def test_a_bundle_of_it_is_loaded_into_a_fresh_network(shrunk: Shrunk, tmp_path: Path) -> None:
    save_bundle(shrunk, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", fresh(seed=3)).eval()
    assert torch.equal(loaded(images()), shrunk.model(images()))


def test_it_is_exported_to_onnx_and_computes_the_same(shrunk: Shrunk, tmp_path: Path) -> None:
    small, x_NCHW = copy.deepcopy(shrunk.model).float(), images().float()
    path = onnx_from_module(small, tmp_path / "small.onnx", x_NCHW)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits_NK,) = session.run(None, {session.get_inputs()[0].name: x_NCHW.numpy()})
    wanted_NK = small(x_NCHW).detach()
    assert float((torch.from_numpy(logits_NK) - wanted_NK).abs().max() / wanted_NK.abs().max()) <= 1e-4


def test_a_mask_makes_the_shrink_pass_and_the_cut_agree() -> None:
    model, groups = trained()
    mask = emptying(groups)
    found = shrink(model, images(), mask=mask)
    masked, small = masked_and_small()
    assert found.report.form == "module"
    assert found.model.state_dict().keys() == small.state_dict().keys()
    assert error_between(found.model, masked) <= 1e-9


def test_rounded_widths_leave_an_empty_branch_empty_and_live_rows_skip_it() -> None:
    model = dead_branches()
    found = shrink(model, images(), round_to=8, residual="index")
    assert found.report.form == "module"
    assert found.report.widths["blocks.0.branches.k5.expand"].after == 0
    assert found.report.widths["blocks.2.branches.k3.expand"].after == 32
    assert error_between(found.model, model) <= 1e-9


# a user's own module


class Fork(nn.Module):
    """Two ways side by side; either may go."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("left", "right"):
            way = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1))
            self.add_module(name, way)

    def branch_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.named_children())

    def drop_empty_branches(self) -> None:
        for name, way in list(self.named_children()):
            if any(parameter.numel() == 0 for parameter in way.parameters()):
                delattr(self, name)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.stack([way(x_NCHW) for way in self.children()]).sum(0)


def test_any_module_with_the_two_methods_may_lose_its_branches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Fork(), nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    nn.init.zeros_(model.get_parameter("0.right.0.weight"))
    nn.init.zeros_(model.get_parameter("0.right.0.bias"))
    nn.init.zeros_(model.get_parameter("0.right.2.bias"))
    found = shrink(model, images())
    assert found.report.form == "module"
    assert [name for name, _ in found.model.get_submodule("0").named_children()] == ["left"]
    assert error_between(found.model, model) <= 1e-9


def test_a_branch_whose_module_forgets_its_constant_keeps_a_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Fork(), nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    nn.init.zeros_(model.get_parameter("0.right.0.weight"))  # its biases remain, which Fork forgets
    found = shrink(model, images())
    assert found.report.widths["0.right.0"].after == 1
    assert error_between(found.model, model) <= 1e-9


def test_where_another_layer_is_dead_too_the_graph_form_keeps_the_branch() -> None:
    class WithDeadSide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fork = Fork()
            self.side = nn.Conv2d(3, 6, 1)
            nn.init.zeros_(self.side.weight)
            nn.init.zeros_(self.fork.get_parameter("right.0.weight"))
            self.last = nn.Conv2d(6, 2, 1)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return self.last(torch.relu(self.fork(x_NCHW) + self.side(x_NCHW)))

    torch.manual_seed(0)
    model = WithDeadSide().double().eval()
    found = shrink(model, images())
    assert found.report.form == "graph"
    assert found.report.num_constants == 1
    assert error_between(found.model, model) <= 1e-9
