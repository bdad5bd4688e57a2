"""Nearly zero channels become zero, everything else stays, and the report says what that changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ticket_export.errors import ShrinkError
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink
from ticket_export.shrink.near_zero import Zeroed, zero_below

# N images, C channels, H W pixels

LAYERS = {
    "linear": (nn.Linear(4, 6), (2, 4)),
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 7)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "conv3d": (nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 7)),
    "transposed 2d grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 3), (2, 4, 5, 5, 5)),
}
NORMS = {
    "batch": (nn.BatchNorm2d(6), (2, 6, 5, 5)),
    "group": (nn.GroupNorm(2, 6), (2, 6, 5, 5)),
    "instance": (nn.InstanceNorm2d(6, affine=True), (2, 6, 5, 5)),
    "layer": (nn.LayerNorm(6), (2, 5, 6)),
    "rms": (nn.RMSNorm(6), (2, 5, 6)),
}


def dim_outputs(layer: nn.Module, x: Tensor, channels: list[int], scale: float) -> None:
    """Scale the weights that write the given channels, found by their gradients."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    for channel in channels:
        output = layer(x)
        (gradient,) = torch.autograd.grad(output[:, channel].square().sum(), weight)
        with torch.no_grad():
            weight[gradient != 0] *= scale


@pytest.mark.parametrize("name", LAYERS)
def test_a_nearly_zero_channel_of_every_kind_of_layer_becomes_its_bias(name: str) -> None:
    layer, shape = copy.deepcopy(LAYERS[name][0]), LAYERS[name][1]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    dim_outputs(layer, x, [1, 5], 1e-7)
    given = copy.deepcopy(layer.state_dict())
    result = zero_below(layer, x, 1e-6)
    assert [(z.tensor, z.kind, z.num_zeroed, z.width) for z in result.report.tensors] == [
        ("weight", "rows", 2, 6)
    ]
    with torch.no_grad():
        output, before = result.model(x), layer(x)
    bias = layer.bias
    assert isinstance(bias, Tensor)
    for channel in range(6):
        own = output[:, channel]
        if channel in (1, 5):
            assert torch.equal(own, bias[channel].expand(own.shape))
        else:
            assert torch.equal(own, before[:, channel])
    assert all(
        torch.equal(given[key], held) for key, held in layer.state_dict().items()
    )  # the given one stays
    small = given["weight"].abs()
    assert result.report.largest == pytest.approx(float(small[small < 1e-6].max()), rel=1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_nearly_zero_gammas_of_every_norm_become_zero(name: str) -> None:
    norm, shape = copy.deepcopy(NORMS[name][0]).eval(), NORMS[name][1]
    gamma = norm.weight
    assert isinstance(gamma, nn.Parameter)
    with torch.no_grad():
        gamma[:] = torch.tensor([1.0, 1e-7, -1e-6, 2e-6, 0.0, -3.0])
    result = zero_below(norm, torch.randn(shape), 1e-6)
    assert torch.equal(result.model.weight, torch.tensor([1.0, 0.0, 0.0, 2e-6, 0.0, -3.0]))
    assert result.report.num_zeroed("gammas") == 2  # the exact zero was there before
    assert result.report.num_zeroed("rows") == 0
    assert result.report.largest == pytest.approx(1e-6)


def test_a_norm_over_several_axes_counts_every_gamma() -> None:
    norm = nn.LayerNorm((3, 4))
    with torch.no_grad():
        norm.weight[1, :2] = 1e-9
    (zeroed,) = zero_below(norm, torch.randn(2, 3, 4), 1e-6).report.tensors
    assert (zeroed.num_zeroed, zeroed.width) == (2, 12)


def test_a_row_with_one_large_weight_stays() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = torch.tensor([1e-8, 1e-8, 1e-3])
    result = zero_below(layer, torch.randn(1, 3), 1e-6)
    assert result.report.tensors == ()
    assert torch.equal(result.model.weight, layer.weight)


def test_packed_and_separate_projections_of_attention_are_rows() -> None:
    for attention in (
        nn.MultiheadAttention(8, 2, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6),
    ):
        packed = attention.in_proj_weight
        weight = packed if packed is not None else attention.k_proj_weight
        with torch.no_grad():
            weight[3] = 1e-8
        keys = torch.randn(1, 4, 8 if packed is not None else 6)
        report = zero_below(attention, (torch.randn(1, 4, 8), keys, keys), 1e-6).report
        name = "in_proj_weight" if packed is not None else "k_proj_weight"
        assert [(z.tensor, z.num_zeroed) for z in report.tensors] == [(name, 1)]


def test_the_report_says_how_far_the_outputs_and_the_predictions_moved(
    plain_net: nn.Module, images: Tensor
) -> None:
    with torch.no_grad():
        plain_net.conv2.weight[0] *= 1e-3
        largest = float(plain_net.conv2.weight[0].abs().max())
    result = zero_below(plain_net, images, threshold := 1.01 * largest)
    assert result.report.threshold == threshold
    assert result.report.tensors == (
        Zeroed(tensor="conv2.weight", kind="rows", num_zeroed=1, width=12, largest=largest),
    )
    assert result.report.num_samples == 8
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = relative_error(result.model(x), plain_net(x))
    assert 0.2 * expected < result.report.moved < 5 * expected
    assert result.report.same_top1_fraction is not None
    assert zero_below(plain_net, images, threshold).report == result.report  # the random inputs are seeded


def test_a_threshold_above_everything_moves_the_predictions(images: Tensor) -> None:
    class Sign(nn.Module):
        """Class 0 exactly where the sum of the image is above zero."""

        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(192, 2)
            with torch.no_grad():
                self.read.weight[0], self.read.weight[1] = 1.0, -1.0
                self.read.bias.zero_()

        def forward(self, x_NCHW: Tensor) -> Tensor:
            logits: Tensor = self.read(x_NCHW.flatten(1))
            return logits

    report = zero_below(Sign(), images, 2.0).report
    assert report.moved == 1.0
    fraction = report.same_top1_fraction
    assert fraction is not None
    assert 0.0 < fraction < 1.0  # a draw is class 0, so that about half of the random images stay


def test_outputs_that_are_no_logits_have_no_predictions() -> None:
    layer = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        layer.weight[0] = 1e-9
    report = zero_below(layer, torch.randn(1, 3, 4, 4), 1e-6).report
    assert report.same_top1_fraction is None
    assert report.num_samples == 8


def test_nothing_below_the_threshold_leaves_an_equal_copy(tiny_net: nn.Module, images: Tensor) -> None:
    for threshold in (0.0, 1e-12):
        result = zero_below(tiny_net, images, threshold)
        assert result.model is not tiny_net
        assert all(
            torch.equal(held, tiny_net.state_dict()[name]) for name, held in result.model.state_dict().items()
        )
        assert (result.report.tensors, result.report.moved, result.report.largest) == ((), 0.0, 0.0)
        assert (result.report.same_top1_fraction, result.report.num_samples) == (None, 0)


def test_what_became_zero_is_removed_by_a_shrink(plain_net: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        plain_net.conv2.weight[:5] *= 1e-8
        plain_net.bn1.weight[:3] = 1e-9
        plain_net.bn1.bias[:3] = 0.0
    assert shrink(plain_net, images).report.widths["conv1"].after == 8
    zeroed = zero_below(plain_net, images, 1e-6)
    widths = shrink(zeroed.model, images).report.widths
    assert (widths["conv1"].after, widths["conv2"].after) == (5, 7)


def test_a_shared_parameter_is_counted_once() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0] = 1e-9
    report = zero_below(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 4), 1e-6).report
    assert [(zeroed.tensor, zeroed.num_zeroed) for zeroed in report.tensors] == [("0.weight", 1)]


def test_a_masked_row_counts_by_what_it_computes() -> None:
    layer = nn.Linear(4, 3)
    mask = torch.ones(3, 4)
    mask[0, 1:] = 0.0
    with torch.no_grad():
        layer.weight[0, 0] = 1e-9
    prune.custom_from_mask(layer, "weight", mask)
    with torch.no_grad():
        layer(torch.randn(1, 4))
    report = zero_below(layer, torch.randn(1, 4), 1e-6).report
    assert [(zeroed.tensor, zeroed.num_zeroed) for zeroed in report.tensors] == [("weight", 1)]
    assert prune.is_pruned(layer)


def test_integer_inputs_are_used_as_they_are() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        net[2].weight[0] = 5e-6
    report = zero_below(net, torch.tensor([[0, 1, 4]]), 1e-5).report
    assert report.num_samples == 1
    assert 0 < report.moved < 1e-3


@pytest.mark.parametrize("threshold", [-1e-6, float("nan"), float("inf")])
def test_a_threshold_that_makes_no_sense_is_refused_with_its_value(threshold: float) -> None:
    with pytest.raises(ShrinkError, match=f"nearly zero channels is {threshold}"):
        zero_below(nn.Linear(2, 2), torch.zeros(1, 2), threshold)


def test_inputs_that_the_network_does_not_accept_and_outputs_that_are_not_finite_are_told() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight[0] = 1e-9
    with pytest.raises(ShrinkError, match="Linear does not accept inputs 1x3"):
        zero_below(layer, torch.zeros(1, 3), 1e-6)
    with torch.no_grad():
        layer.bias[1] = float("nan")
    with pytest.raises(ShrinkError, match="output on random inputs is not finite"):
        zero_below(layer, torch.zeros(1, 2), 1e-6)
