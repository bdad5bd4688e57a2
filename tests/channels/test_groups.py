from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.channels.labels import label
from ticket_export.channels.trace import trace
from ticket_export.errors import ShrinkError

# N images, C channels, H W pixels


def by_name(net: nn.Module, inputs: Tensor) -> dict[str, ChannelGroup]:
    return {group.name: group for group in channel_groups(net, inputs)}


def tensors(group: ChannelGroup, role: str) -> set[str]:
    return {member.tensor for member in group.members if member.role == role}


def test_a_plain_layer_goes_with_its_norm_and_its_readers_columns(plain_net, images):
    group = by_name(plain_net, images)["conv1"]
    assert (group.width, group.pinned, group.is_inner) == (8, None, True)
    assert tensors(group, "producer") == {"conv1.weight"}
    assert tensors(group, "consumer") == {"conv2.weight"}
    assert tensors(group, "per_channel") == {
        "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
    }  # fmt: skip


def test_an_add_puts_every_writer_of_the_stream_into_one_group(residual_net, images):
    groups = by_name(residual_net, images)
    assert tensors(groups["stem"], "producer") == {"stem.weight", "conv2.weight"}
    assert tensors(groups["stem"], "consumer") == {"conv1.weight", "conv3.weight", "project.weight"}
    assert not groups["stem"].is_inner
    assert groups["conv1"].is_inner
    assert tensors(groups["project"], "producer") == {"conv4.weight", "project.weight"}


def test_concatenated_branches_own_their_part_of_the_readers_columns(concat_net, images):
    groups = by_name(concat_net, images)
    columns = {
        name: next(m.indices.flatten().tolist() for m in groups[name].members if m.role == "consumer")
        for name in ("left", "right")
    }
    assert columns == {"left": [0, 1, 2, 3, 4, 5], "right": [6, 7, 8, 9]}


def test_a_depthwise_layer_follows_its_channels_and_writes_none_of_its_own(depthwise_net, images):
    group = by_name(depthwise_net, images)["expand"]
    assert tensors(group, "producer") == {"expand.weight"}
    assert "depthwise.weight" in tensors(group, "per_channel")
    assert group.is_inner


def test_a_flattened_channel_owns_all_its_positions(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    group = by_name(net, images)["0"]
    columns = next(member for member in group.members if member.role == "consumer")
    assert columns.indices.shape == (4, 36)
    assert columns.indices[1].tolist() == list(range(36, 72))


def test_the_output_is_pinned_with_its_reason(plain_net, images):
    assert by_name(plain_net, images)["linear"].pinned == "model output"


def test_a_norm_over_channels_pins_them(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1))
    assert by_name(net, images)["0"].pinned == "group_norm mixes its channels"


def test_the_channels_of_one_norm_group_go_together(images):
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1))
    group = by_name(net, images)["0"]
    assert group.pinned is None
    assert group.members[0].indices.tolist() == [[0, 1, 2], [3, 4, 5]]


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sort(self.conv(x), dim=1).values)


def test_an_unknown_operation_pins_its_channels_and_is_named(images):
    net = Sorted()
    assert by_name(net, images)["conv"].pinned == "unknown operation sort"
    assert label(trace(net, images)).unknown_ops == {"sort"}


class Tied(nn.Module):
    """One weight read by rows in one place and transposed in another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(nn.functional.linear(x.flatten(1)[:, :12], self.weight))
        return nn.functional.linear(hidden, self.weight.t())


def test_a_weight_used_in_two_ways_stays_whole(images):
    groups = channel_groups(Tied(), images)
    assert groups
    assert all(group.pinned is not None for group in groups)


def test_an_index_that_is_computed_pins_its_channels(images):
    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head(torch.index_select(y, 1, y.mean((0, 2, 3)).topk(2).indices))

    assert by_name(Picked(), images)["conv"].pinned is not None


class Gated(nn.Module):
    """One gate channel scales all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x) * torch.sigmoid(self.gate(x)))


def test_a_gate_broadcast_over_channels_stays_and_ties_none_together(images):
    groups = by_name(Gated(), images)
    assert groups["gate"].pinned == "mul broadcasts it over channels"
    assert (groups["conv"].width, groups["conv"].pinned) == (4, None)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_control_flow_on_values_is_refused_with_its_line(images, capsys):
    with pytest.raises(ShrinkError, match=r"Branching cannot be traced with inputs \(2, 3, 8, 8\)") as told:
        channel_groups(Branching(), images)
    assert "return x + 1 if x.sum() > 0 else x" in str(told.value)  # the line to blame
    assert "forward(self, arg0_1" not in capsys.readouterr().err


def test_example_inputs_without_a_batch_are_refused(plain_net):
    with pytest.raises(ShrinkError, match=r"example_inputs\[0\] has shape \(\)"):
        channel_groups(plain_net, torch.tensor(1.0))
    with pytest.raises(ShrinkError, match="example_inputs is empty"):
        channel_groups(plain_net, ())
