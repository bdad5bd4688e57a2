"""The shrunk network computes what the network with zeros computes, and nothing removable stays."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pruning_laws import LAWS, with_zeros
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import Mask, zero_dropped
from ticket_export.data.sources import load_images
from ticket_export.errors import DivergedError, ShrinkError
from ticket_export.models.load import build
from ticket_export.shrink.equivalence import check_equal, relative_error, trials_of
from ticket_export.shrink.exact import shrink
from ticket_export.train.evaluate import evaluate

# N images, C channels, H W pixels


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def largest_error(small: nn.Module, dense: nn.Module, dtype: torch.dtype) -> float:
    """Compare on fresh inputs, apart from the check inside `shrink`."""
    generator = torch.Generator().manual_seed(99)
    shapes = [(1, 3, 8, 8), (3, 3, 8, 8), (2, 3, 13, 11)]
    trials = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    with torch.no_grad():
        return max(relative_error(small(x), dense(x)) for x in trials)


@pytest.mark.parametrize("law", LAWS)
def test_shrunk_outputs_equal_masked_outputs_under_every_law(tiny_net, images, law):
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        net = with_zeros(copy.deepcopy(tiny_net).to(dtype), law)
        shrunk = shrink(net, images.to(dtype))
        assert largest_error(shrunk.model, net, dtype) <= bar
        assert shrunk.report.rel_error <= bar
        assert next(shrunk.model.parameters()).dtype == dtype


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(seed=st.integers(0, 2**31), round_to=st.sampled_from([1, 4, 8]), law=st.sampled_from(sorted(LAWS)))
def test_shrunk_equals_masked_for_random_masks_and_zeros_together(tiny_net, images, seed, round_to, law):
    net = with_zeros(copy.deepcopy(tiny_net).double(), law, seed)
    generator = torch.Generator().manual_seed(seed)
    keep_by_group = {}
    groups = channel_groups(net, images.double())
    for group in groups:
        if group.pinned is None:
            keep_by_group[group.name] = torch.rand(group.width, generator=generator) < 0.6
            keep_by_group[group.name][0] = True
    mask = Mask(keep_by_group)
    shrunk = shrink(net, images.double(), mask=mask, round_to=round_to)
    zero_dropped(net, groups, mask)
    assert largest_error(shrunk.model, net, torch.float64) <= 1e-9


ZOO = [
    ("zoo:lenet300_100", {}, (1, 28, 28)),
    ("zoo:conv2", {}, (3, 16, 16)),
    ("zoo:conv4", {}, (3, 16, 16)),
    ("zoo:conv6", {}, (3, 16, 16)),
    ("zoo:resnet20", {}, (1, 8, 8)),
    ("zoo:resnet20", {"shortcut": "pad"}, (3, 16, 16)),
    ("zoo:resnet18", {}, (3, 16, 16)),
]


@pytest.mark.parametrize(("builder", "args", "shape"), ZOO, ids=lambda value: str(value))
@pytest.mark.parametrize("law", ["both", "columns"])
def test_every_network_of_the_zoo_is_shrunk_exactly(builder, args, shape, law):
    net = with_zeros(build(builder, args, num_classes=10, image_shape=shape, seed=0).double(), law)
    shrunk = shrink(net, torch.randn(2, *shape, dtype=torch.float64))
    assert shrunk.report.rel_error <= 1e-9
    assert shrunk.report.params < 0.8 * shrunk.report.params_dense
    assert shrunk.report.params == count(shrunk.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet32", "resnet44", "resnet56"])
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_the_deeper_networks_of_the_zoo_are_shrunk_exactly(name, shortcut):
    net = build(f"zoo:{name}", {"shortcut": shortcut}, num_classes=10, image_shape=(3, 32, 32), seed=0)
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        given = with_zeros(copy.deepcopy(net).to(dtype), "both")
        assert shrink(given, torch.randn(2, 3, 32, 32, dtype=dtype)).report.rel_error <= bar


def test_half_of_every_inner_group_dropped_leaves_the_parameters_of_half_width(residual_net, images):
    keep = torch.arange(6) % 2 == 0
    shrunk = shrink(residual_net, images, mask=Mask({"conv1": keep}))
    # 3 rows of 8x9 and 3 columns of 8x9, and the norm's weight and bias
    assert shrunk.report.params_dense - shrunk.report.params == 3 * 72 + 3 * 72 + 2 * 3
    assert shrunk.report.widths["conv1"].after == 3
    assert shrunk.report.num_carriers == 0


def test_live_constants_cost_at_most_one_carrier_per_padded_reader(plain_net, images):
    plain_net.conv1.weight.data[:5] = 0.0
    plain_net.bn1.bias.data.fill_(1.0)
    shrunk = shrink(plain_net, images)
    assert shrunk.report.widths["conv1"].after == 3 + 1
    assert shrunk.report.num_carriers == 1
    assert largest_error(shrunk.model, plain_net, torch.float32) <= 1e-5


def test_constants_that_are_zero_need_no_carrier(plain_net, images):
    plain_net.conv1.weight.data[:5] = 0.0
    plain_net.bn1.bias.data.fill_(-5.0)
    plain_net.bn1.running_mean.data.zero_()
    shrunk = shrink(plain_net, images)
    assert shrunk.report.widths["conv1"].after == 3
    assert shrunk.report.num_carriers == 0


def test_an_unpadded_reader_takes_the_constants_into_its_norm_and_a_bare_one_gains_a_bias(images):
    net = nn.Sequential()
    net.conv, net.act, net.read = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False)
    net.bn, net.head = nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1, bias=False)
    with torch.no_grad():
        net.conv.weight[:2] = 0.0
        net.conv.bias.fill_(1.0)
        net.bn.weight[0] = 0.0
        net.bn.bias.fill_(0.5)
    net.eval()
    shrunk = shrink(net, images)
    kinds = {(fold.kind, fold.target) for fold in shrunk.plan.folds}
    assert kinds == {("running_mean", "bn.running_mean"), ("new_bias", "head.bias")}
    assert shrunk.model.conv.out_channels == 2
    assert shrunk.model.head.bias is not None
    assert largest_error(shrunk.model, net, torch.float32) <= 1e-5


def test_filters_whose_weights_cancel_are_alive(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].weight[:, 0] = -2.0  # every row sums to zero and none is zero
    shrunk = shrink(net, images)
    assert shrunk.report.params == shrunk.report.params_dense


def test_a_stream_channel_stays_while_one_writer_is_alive(residual_net, images):
    residual_net.stem.weight.data[2] = 0.0
    assert shrink(residual_net, images).report.widths["stem"].after == 8
    residual_net.conv2.weight.data[2] = 0.0
    assert shrink(residual_net, images).report.widths["stem"].after <= 8 - 1 + 1


def test_a_shared_weight_folds_only_what_all_its_uses_agree_on():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.shared, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.shared(self.a(x)) + self.shared(self.b(x)).tanh()))

    x = torch.randn(2, 3, 5, 5)
    for bias_b, kept in ((1.0, 3), (2.0, 4)):
        net = Shared()
        with torch.no_grad():
            for layer, bias in ((net.a, 1.0), (net.b, bias_b)):
                layer.weight[1] = 0.0
                layer.bias[1] = bias
        shrunk = shrink(net, x)
        assert shrunk.report.widths["a"].after == kept
        assert shrunk.model.shared.weight.shape == (4, kept, 1, 1)


def test_round_to_keeps_the_largest_of_the_removable_channels(plain_net, images):
    plain_net.conv2.weight.data[:, 2:] = 0.0  # nothing reads channels 2 to 7
    plain_net.conv1.weight.data[5] *= 100.0
    shrunk = shrink(plain_net, images, round_to=4)
    assert shrunk.report.widths["conv1"].after == 4
    assert 5 in shrunk.plan.kept["conv1.weight"][0]
    assert shrink(plain_net, images, round_to=16).report.widths["conv1"].after == 8  # capped by the width
    assert largest_error(shrunk.model, plain_net, torch.float32) <= 1e-5


def test_the_given_model_is_untouched_and_the_small_one_keeps_its_mode_and_keys(residual_net, images):
    with_zeros(residual_net, "both").train()
    before = copy.deepcopy(residual_net.state_dict())
    small = shrink(residual_net, images).model
    after = residual_net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert residual_net.training
    assert small.training
    assert set(small.state_dict()) - set(before) <= {"linear.bias"}


def test_a_small_network_trains_on(residual_net, images):
    small = shrink(with_zeros(residual_net, "both"), images).model.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(small(images), torch.tensor([0, 3]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_layer_with_nothing_alive_keeps_one_channel(plain_net, images):
    plain_net.conv2.weight.data.zero_()
    shrunk = shrink(plain_net, images)
    assert shrunk.report.widths["conv1"].after == 1
    assert largest_error(shrunk.model, plain_net, torch.float32) <= 1e-5


def test_masks_of_torch_prune_count_as_zeros_attached_or_permanent(plain_net, images):
    permanent = copy.deepcopy(plain_net)
    permanent.conv1.weight.data[::2] = 0.0
    mask = torch.ones_like(plain_net.conv1.weight)
    mask[::2] = 0.0
    prune.custom_from_mask(plain_net.conv1, "weight", mask)
    with torch.no_grad():
        expected = plain_net(images)
    attached = shrink(plain_net, images)
    assert attached.report.params == shrink(permanent, images).report.params
    assert hasattr(plain_net.conv1, "weight_orig")  # the given model keeps its mask
    with torch.no_grad():
        assert relative_error(attached.model(images), expected) <= 1e-5


def test_a_parametrised_weight_is_shrunk_by_what_it_computes(plain_net, images):
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            keep = torch.ones(len(weight), 1, 1, 1)
            keep[::2] = 0.0
            return weight * keep

    parametrize.register_parametrization(plain_net.conv1, "weight", Halved())
    shrunk = shrink(plain_net, images)
    assert shrunk.report.widths["conv1"].after <= 4 + 1
    assert largest_error(shrunk.model, plain_net, torch.float32) <= 1e-5


def test_unstructured_zeros_remove_nothing_that_is_alive(plain_net, images):
    with torch.no_grad():
        for layer in (plain_net.conv1, plain_net.conv2):
            layer.weight[:, ::2, 0] = 0.0
    shrunk = shrink(plain_net, images)
    assert shrunk.report.params == shrunk.report.params_dense


def test_a_difference_is_found_and_named(plain_net, images):
    other = copy.deepcopy(plain_net)
    other.linear.bias.data[0] += 1.0
    with pytest.raises(DivergedError, match=r"differs from the dense one on the example inputs 2x3x8x8"):
        check_equal(other, plain_net, trials_of(plain_net, (images,)), tolerance=1e-5)


def test_relative_error_fails_closed():
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert relative_error(torch.tensor([1.5, 4.0]), torch.tensor([1.0, 4.0])) == 0.125


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        (
            lambda net: net.conv1.weight.data.fill_(float("nan")),
            {},
            "'conv1.weight' holds a value that is not finite",
        ),
        (lambda net: net.half(), {}, "the model is in torch.float16"),
        (lambda net: None, {"round_to": 0}, "round_to is 0"),
        (lambda net: None, {"residual": "sum"}, "residual is 'sum'"),
        (lambda net: None, {"tolerance": 2.0}, "tolerance is 2.0"),
        (lambda net: None, {"mask": Mask({"no": torch.ones(3, dtype=torch.bool)})}, "names group 'no'"),
    ],
)
def test_bad_input_is_refused_with_its_value(plain_net, images, change, options, text):
    change(plain_net)
    with pytest.raises(ShrinkError, match=text):
        shrink(plain_net, images, **options)


@pytest.mark.data
def test_the_trained_resnet20_keeps_its_accuracy_through_a_shrink_that_removes_nothing(
    trained_resnet20, data_folder
):
    images = load_images("arrays", data_folder / "cifar10.npz", holdout_fraction=0.1, seed=0)
    shrunk = shrink(trained_resnet20, torch.randn(2, 3, 32, 32))
    assert shrunk.report.params == shrunk.report.params_dense == 269_722
    for net in (trained_resnet20, shrunk.model):
        accuracy = evaluate(
            net, images.test_x, images.test_y, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )
        assert accuracy == pytest.approx(0.9173, abs=1e-9)


@pytest.mark.data
def test_the_trained_resnet20_shrinks_exactly_with_live_constants(trained_resnet20):
    net = trained_resnet20
    with torch.no_grad():
        for block in (block for stage in (net.layer1, net.layer2, net.layer3) for block in stage):
            l1 = block.conv1.weight.abs().sum(dim=(1, 2, 3))
            block.conv1.weight[l1.argsort()[: len(l1) // 2]] = 0.0
    shrunk = shrink(net, torch.randn(2, 3, 32, 32))
    assert shrunk.report.rel_error <= 1e-5
    assert shrunk.report.num_carriers > 0
    assert shrunk.report.params < 0.6 * shrunk.report.params_dense
