from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import ticket_export as te
from ticket_export.channels.costs import count_costs
from ticket_export.channels.mask import ElementMask
from ticket_export.errors import ShrinkError
from ticket_export.find.regroup import regroup, require_regroupable
from ticket_export.models.zoo import zoo_network
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.shrink.block_layers import BlockConv2d
from ticket_export.shrink.block_rows import Block, blocks_of_weight
from ticket_export.shrink.blocks import BlockForm, block_form
from ticket_export.shrink.equivalence import relative_error

# N images, C channels, H W pixels


def with_blocks(
    net: nn.Module,
    *,
    num_blocks: int = 2,
    density: float = 0.5,
    whole: Collection[str] = (),
    uneven: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Zero the convolutions of `net` outside of random blocks: parts of the rows, each with some columns."""
    generator = torch.Generator().manual_seed(seed)
    for path, module in net.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups != 1 or path in whole:
            continue
        num_rows, num_columns = module.weight.shape[:2]
        keep = torch.zeros(num_rows, num_columns, dtype=torch.bool)
        for place, rows in enumerate(torch.randperm(num_rows, generator=generator).chunk(num_blocks)):
            width = max(1, int(num_columns * density) - (place if uneven else 0))
            keep[rows.unsqueeze(1), torch.randperm(num_columns, generator=generator)[:width]] = True
        module.weight.data *= keep[:, :, None, None]
    return net


def formed(net: nn.Module, x: Tensor, **options: object) -> BlockForm:
    options = {"min_rows": 1, "min_saved_fraction": 0.0} | options
    return block_form(net, x, **options)  # type: ignore[arg-type]


def answers(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(x)


class Chain(nn.Module):
    """Convolutions with norms and ReLU one after the other, like VGG: [N, 3, H, W] -> [N, 4]."""

    def __init__(self, *widths: int, **options: object) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, width in enumerate(widths):
            before = 3 if place == 0 else widths[place - 1]
            layers += [nn.Conv2d(before, width, 3, padding=1, **options), nn.BatchNorm2d(width), nn.ReLU()]  # type: ignore[arg-type]
            layers += [nn.MaxPool2d(2)] if place % 2 else []
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(self.features(x_NCHW).mean((2, 3)))


def chain(*widths: int, **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Chain(*widths, **options)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return net.eval()


def one_conv(*shape: int, seed: int = 0, **options: object) -> nn.Sequential:
    """A convolution [O, I, k, k] behind an Identity: its output is the network's, so its rows are pinned."""
    conv = nn.Conv2d(shape[1], shape[0], shape[2], **options)  # type: ignore[arg-type]
    conv.weight.data = torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(seed))
    if conv.bias is not None:
        conv.bias.data = torch.randn(shape[0], generator=torch.Generator().manual_seed(seed + 1))
    return nn.Sequential(nn.Identity(), conv)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# reading blocks off zeros


def test_rows_that_read_the_same_channels_are_a_block_and_rows_of_zeros_are_in_none() -> None:
    weight = torch.zeros(6, 4, 3, 3)
    weight[[0, 3], 1:3, 0, 2] = 1.0
    weight[[1, 5], 3] = -2.0
    weight[4, 0, 1, 1] = 1e-30
    assert blocks_of_weight(weight) == (
        Block(rows=(0, 3), columns=(1, 2)),
        Block(rows=(1, 5), columns=(3,)),
        Block(rows=(4,), columns=(0,)),
    )
    assert blocks_of_weight(torch.zeros(6, 4, 3, 3)) == ()


def test_a_small_block_joins_the_one_where_it_costs_least() -> None:
    weight = torch.zeros(7, 6, 1, 1)
    weight[:3, :3], weight[3:6, 3:] = 1.0, 1.0
    weight[6, 2:5] = 1.0  # two of its three channels are read by the second block
    assert blocks_of_weight(weight, min_rows=2) == (
        Block(rows=(0, 1, 2), columns=(0, 1, 2)),
        Block(rows=(3, 4, 5, 6), columns=(2, 3, 4, 5)),
    )
    assert blocks_of_weight(weight, min_rows=5) == (Block(rows=tuple(range(7)), columns=tuple(range(6))),)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 4), st.floats(0, 1), st.integers(0, 999))
def test_blocks_hold_every_weight_that_is_not_zero_in_disjoint_rows(
    num_rows: int, num_columns: int, min_rows: int, density: float, seed: int
) -> None:
    weight = noise(num_rows, num_columns, 2, 1, seed=seed)
    weight *= torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < density
    blocks = blocks_of_weight(weight, min_rows=min_rows)
    rows = [row for block in blocks for row in block.rows]
    assert sorted(rows) == weight.flatten(1).any(1).nonzero().flatten().tolist()
    assert len(blocks) <= 1 or min(len(block.rows) for block in blocks) >= min_rows
    for block in blocks:
        inside = weight[list(block.rows)][:, list(block.columns)]
        assert int((inside != 0).sum()) == int((weight[list(block.rows)] != 0).sum())


# the same function


@pytest.mark.parametrize(("num_blocks", "uneven"), [(2, False), (3, True)])
def test_the_block_form_of_the_tiny_networks_computes_the_same(
    tiny_net: nn.Module, images: Tensor, num_blocks: int, uneven: bool
) -> None:
    net = with_blocks(tiny_net, num_blocks=num_blocks, uneven=uneven, density=0.6)
    before = copy.deepcopy(net.state_dict())
    found = formed(net, images)
    assert found.macs < 0.8 * found.macs_dense
    assert relative_error(answers(found.model, images), answers(net, images)) < 1e-5
    assert found.rel_error < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_in_float64_the_error_is_rounding_alone(tiny_net: nn.Module, images: Tensor) -> None:
    net = with_blocks(tiny_net.double(), num_blocks=3, uneven=True)
    found = formed(net, images.double())
    assert relative_error(answers(found.model, images.double()), answers(net, images.double())) < 1e-12


@pytest.mark.parametrize(
    ("padding_mode", "bias", "options"),
    [
        ("zeros", True, {"padding": 1}),
        ("reflect", True, {"stride": 2, "padding": 1}),
        ("circular", False, {"padding": "same"}),
        ("zeros", False, {"dilation": 2, "padding": (2, 0)}),
    ],
)
def test_strides_padding_dilation_and_bias_are_the_convolutions_own(
    options: dict[str, object], padding_mode: str, bias: bool
) -> None:
    net = one_conv(8, 6, 3, bias=bias, padding_mode=padding_mode, **options).double()
    with_blocks(net, num_blocks=3, uneven=bias)
    net[1].weight.data[5] = 0.0  # a row that is its bias alone
    x = noise(2, 6, 9, 8).double()
    found = formed(net, x)
    assert found.layers["1"].form == "blocks"
    assert relative_error(answers(found.model, x), answers(net, x)) < 1e-12


def test_equal_blocks_are_one_grouped_convolution_and_unequal_ones_several() -> None:
    equal = formed(with_blocks(one_conv(8, 6, 3), num_blocks=4), noise(1, 6, 8, 8))
    assert equal.layers["1"].form == "grouped"
    assert [type(m) for m in equal.model[1].convs] == [nn.Conv2d]
    assert equal.model[1].convs[0].weight.shape == (8, 3, 3, 3)
    assert equal.model[1].convs[0].groups == 4
    uneven = formed(with_blocks(one_conv(8, 6, 3), num_blocks=2, uneven=True), noise(1, 6, 8, 8))
    assert uneven.layers["1"].form == "blocks"
    assert sorted(tuple(m.weight.shape) for m in uneven.model[1].convs) == [(4, 2, 3, 3), (4, 3, 3, 3)]


def test_a_range_of_channels_is_a_slice_all_of_them_the_input_itself_and_others_an_index() -> None:
    net = one_conv(8, 6, 1, bias=False)
    net[1].weight.data[:3, :4], net[1].weight.data[6:, ::2] = 0.0, 0.0
    found = formed(net, noise(1, 6, 8, 8))
    layer = found.model[1]
    assert [block.columns for block in found.layers["1"].blocks] == [(4, 5), (0, 1, 2, 3, 4, 5), (1, 3, 5)]
    assert [layer.columns_0, layer.columns_1] == [None, None]
    assert layer.columns_2.tolist() == [1, 3, 5]
    exported = [node.target for node in torch.export.export(found.model, (noise(1, 6, 8, 8),)).graph.nodes]
    names = Counter(str(target).partition(".")[2].partition(".")[0] for target in exported)
    calls = Counter(str(target) for target in exported)
    assert calls["aten.index_select.default"] == 1, names
    assert calls["aten.conv2d.default"] == 3
    assert calls["aten.slice.Tensor"] <= 2  # torch slices the batch axis too


# the order of channels


def test_a_chain_needs_no_index_at_run_time_except_to_gather_columns() -> None:
    net = with_blocks(chain(16, 16, 32), num_blocks=2, uneven=True, whole=("features.0",))
    found = formed(net, noise(2, 3, 16, 16))
    divided = {path: m for path, m in found.model.named_modules() if isinstance(m, BlockConv2d)}
    assert set(divided) == {"features.3", "features.7"}
    assert all(layer.place_of_row is None for layer in divided.values())
    assert "throughout the network" in found.layers["features.3"].reason
    assert relative_error(answers(found.model, noise(2, 3, 16, 16)), answers(net, noise(2, 3, 16, 16))) < 1e-5


def test_in_a_residual_stream_the_first_writer_orders_and_the_others_index(
    residual_net: nn.Module, images: Tensor
) -> None:
    found = formed(with_blocks(residual_net), images)
    assert found.model.stem.place_of_row is None
    assert sorted(found.model.conv2.place_of_row.tolist()) == list(range(8))
    assert "stem.weight orders the channels they both write" in found.layers["conv2"].reason


def test_channels_that_must_stay_are_put_in_order_by_an_index() -> None:
    net = with_blocks(one_conv(8, 6, 3, padding=1), num_blocks=2)
    found = formed(net, noise(2, 6, 8, 8))
    assert found.model[1].place_of_row is not None
    assert "put in order by an index" in found.layers["1"].reason
    assert torch.allclose(answers(found.model, noise(2, 6, 8, 8)), answers(net, noise(2, 6, 8, 8)), atol=1e-5)


class ByPlace(nn.Module):
    """Scales channels by their place with numbers made in the forward: no member of a group tells of them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.one(x_NCHW)
        return self.two(y * torch.linspace(1, 2, 8).view(-1, 1, 1)).mean((2, 3))


def test_a_network_that_treats_channels_by_their_place_keeps_their_order() -> None:
    net = with_blocks(ByPlace(), num_blocks=2, whole=("two",))
    found = formed(net, noise(2, 6, 8, 8))
    assert found.layers["one"].form == "grouped"
    assert found.model.one.place_of_row is not None
    assert relative_error(answers(found.model, noise(2, 6, 8, 8)), answers(net, noise(2, 6, 8, 8))) < 1e-5


# norms


def test_a_norm_behind_blocks_goes_into_them_and_one_behind_a_single_convolution_stays() -> None:
    net = with_blocks(chain(16, 16, 32), num_blocks=2, uneven=True, whole=("features.0", "features.7"))
    found = formed(net, noise(2, 3, 16, 16))
    assert isinstance(found.model.features[4], nn.Identity)
    assert [norm.num_features for norm in found.model.features[3].norms] == [8, 8]
    equal = formed(with_blocks(chain(16, 16, 32), whole=("features.0", "features.7")), noise(2, 3, 16, 16))
    assert equal.layers["features.3"].form == "grouped"
    assert isinstance(equal.model.features[4], nn.BatchNorm2d)


def test_in_training_mode_too_the_block_form_computes_the_same_with_its_norms() -> None:
    net = with_blocks(chain(16, 16, 32), num_blocks=2, uneven=True)
    net.features[3].weight.data[5] = 0.0
    found = formed(net.train(), noise(2, 3, 16, 16))
    assert all(module.training for module in found.model.modules())
    x = noise(8, 3, 16, 16, seed=1)
    assert relative_error(found.model(x), net(x)) < 1e-5
    assert relative_error(answers(found.model, x), answers(net, x)) < 1e-5  # the statistics moved alike


def test_the_block_form_trains_as_the_masked_network_does() -> None:
    net = with_blocks(chain(16, 16, bias=True), num_blocks=2, uneven=True, whole=("features.0",)).double()
    net.features[3].weight.data[5] = 0.0
    x, labels = noise(16, 3, 8, 8, seed=1).double(), torch.arange(16) % 4
    found = formed(net, x)
    keep = net.features[3].weight != 0
    for model in (net, found.model):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), labels).backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
            if model is net:
                net.features[3].weight.grad *= keep
            optimizer.step()
    assert relative_error(answers(found.model, x), answers(net, x)) < 1e-9


# what stays dense


def test_layers_that_save_too_little_stay_dense_and_say_so(images: Tensor, plain_net: nn.Module) -> None:
    net = with_blocks(plain_net, whole=("conv1",))
    found = formed(net, images)
    assert found.layers["conv1"].reason == "its blocks hold every row and every input channel"
    assert found.layers["conv2"].macs == found.layers["conv2"].macs_dense / 2
    greedy = formed(net, images, min_saved_fraction=0.6)
    assert greedy.layers["conv2"].form == "dense"
    assert greedy.layers["conv2"].reason == "its 2 blocks would execute 50.0 % of its MACs"
    assert greedy.layers["conv2"].macs == greedy.layers["conv2"].macs_dense
    assert greedy.macs == greedy.macs_dense


def test_zeros_without_structure_stay_dense() -> None:
    net = one_conv(32, 32, 1)
    net[1].weight.data *= torch.rand(32, 32, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    found = block_form(net, noise(1, 32, 8, 8))
    assert found.layers["1"].form == "dense"
    assert found.macs == found.macs_dense == 32 * 32 * 64


def test_kernel_taps_execute_all_their_macs_densely() -> None:
    net = one_conv(32, 32, 3)
    weights = {"1.weight": net[1].weight}
    keep = torch.rand(32, 32, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    for columns, form in (("taps", "dense"), ("channels", "grouped")):
        found = regroup(
            ElementMask({"1.weight": keep}), weights, tuple(weights),
            num_groups=2, min_rows=16, columns=columns, equal_blocks=True, seed=0,
        )  # fmt: skip
        masked = copy.deepcopy(net)
        masked[1].weight.data *= found.element_mask.keep_by_parameter["1.weight"]
        layer = block_form(masked, noise(2, 32, 8, 8)).layers["1"]
        assert layer.form == form
        assert found.element_mask.element_density < 0.55
        assert (layer.macs == layer.macs_dense) == (columns == "taps")


def test_what_cannot_be_divided_is_named_with_the_reason(depthwise_net: nn.Module, images: Tensor) -> None:
    class Own(nn.Conv2d):
        pass

    shared = nn.Conv2d(6, 6, 3, padding=1)
    net = nn.Sequential(
        Own(3, 6, 3), shared, nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 6, 1),
    )  # fmt: skip
    net[2].weight = shared.weight
    net[4].weight.data.zero_()
    layers = formed(net, images).layers
    assert {path: layer.reason for path, layer in layers.items()} == {
        "0": "it is a Own",
        "1": "several layers share its weight",
        "3": "it has 2 groups",
        "4": "all its weights are zero",
    }
    alone = formed(with_blocks(nn.Sequential(nn.Conv2d(3, 6, 3)))[0], images)
    assert alone.layers[""].reason == "it is the whole network"


def test_a_network_in_graph_form_keeps_its_convolutions_and_says_why() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)

        def forward(self, x_NCHW: Tensor) -> Tensor:
            y = self.one(x_NCHW)
            return self.two(torch.relu(y.view(y.shape[0], 8, *y.shape[2:]))).mean((2, 3))

    net = Halves()
    net.one.weight.data[:3], net.one.bias.data[:3] = 0.0, 0.0
    small = te.shrink(net, noise(2, 3, 8, 8))
    assert small.report.form == "graph"
    layers = formed(small.model, noise(2, 3, 8, 8)).layers
    assert {layer.reason for layer in layers.values()} == {
        "its weight is read by the network's own graph, not by a Conv2d"
    }


def test_options_out_of_range_are_refused(plain_net: nn.Module, images: Tensor) -> None:
    with pytest.raises(ShrinkError, match="min_rows 0"):
        block_form(plain_net, images, min_rows=0)
    with pytest.raises(ShrinkError, match=r"min_saved_fraction 1\.0"):
        block_form(plain_net, images, min_saved_fraction=1.0)


# costs, export, the chain of stages


def test_the_counted_macs_are_those_of_the_layers_and_of_the_rest(
    residual_net: nn.Module, images: Tensor
) -> None:
    net = with_blocks(residual_net, num_blocks=3, uneven=True)
    found = formed(net, images)
    saved = sum(layer.macs_dense - layer.macs for layer in found.layers.values())
    assert found.macs == count_costs(net, images).macs - saved
    by_hand = sum(len(block.rows) * len(block.columns) * 9 * 64 for block in found.layers["conv1"].blocks)
    assert found.layers["conv1"].macs == by_hand
    assert found.layers["conv1"].num_blocks == 3


def test_a_module_that_is_called_twice_counts_twice_and_is_divided_once(images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
            self.again = self.conv

        def forward(self, x_NCHW: Tensor) -> Tensor:
            return self.again(torch.relu(self.conv(self.stem(x_NCHW)))).mean((2, 3))

    net = with_blocks(Twice(), whole=("stem",))
    found = formed(net, images)
    assert found.model.again is found.model.conv
    assert found.layers["conv"].macs == 2 * 36 * 8 * 4 * 9
    assert relative_error(answers(found.model, images), answers(net, images)) < 1e-5


def test_through_the_streams_of_a_resnet20_the_block_form_computes_the_same() -> None:
    net = zoo_network("resnet20", {"shortcut": "pad"}, num_classes=10, image_shape=(3, 16, 16)).eval()
    with_blocks(net, whole=("conv1",), uneven=True)
    net.layer2[0].conv2.weight.data[3] = 0.0
    found = formed(net, noise(1, 3, 16, 16))
    assert Counter(layer.form for layer in found.layers.values()) == {"dense": 1, "blocks": 18}
    assert found.macs < 0.5 * found.macs_dense
    assert relative_error(answers(found.model, noise(2, 3, 16, 16)), answers(net, noise(2, 3, 16, 16))) < 1e-5


def test_the_exported_block_form_is_standard_onnx_and_agrees(tmp_path: Path, residual_net: nn.Module) -> None:
    net = with_blocks(residual_net, whole=("stem",))
    net.conv2.weight.data[3] = 0.0
    found = formed(net, noise(1, 3, 16, 16))
    path = te.onnx_from_module(found.model, tmp_path / "blocks.onnx", noise(1, 3, 16, 16))
    proto = onnx.load(path)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert {node.domain for node in proto.graph.node} == {""}
    assert kinds["BatchNormalization"] == 0, "norms are merged into the convolutions"
    assert Counter(layer.form for layer in found.layers.values()) == {"dense": 1, "grouped": 4, "blocks": 1}
    assert kinds["Conv"] == 7, "conv2 is two, for a row of it is zero"
    x = noise(3, 3, 16, 16, seed=5)
    with OrtCpuRunner(path) as runner:
        logits = next(iter(runner.infer({"input": x.numpy()}).values()))
    assert relative_error(torch.from_numpy(np.asarray(logits)), answers(net, x)) < 1e-4


def test_pruned_regrouped_shrunk_and_divided_a_vgg_like_network_computes_the_same() -> None:
    net = chain(16, 32, 64, 64)
    names = require_regroupable(net)
    weights = {name: net.get_parameter(name) for name in names}
    mask = te.magnitude_mask(weights, keep_fraction=0.3)
    found = regroup(mask, weights, names, num_groups=4, min_rows=8, equal_blocks=True, seed=0)
    for name, keep in found.element_mask.keep_by_parameter.items():
        net.get_parameter(name).data *= keep
    x = noise(2, 3, 16, 16)
    small = te.shrink(net, x)
    divided = block_form(small.model, x, min_rows=8)
    assert [layer.form for layer in divided.layers.values()] == ["dense", "blocks", "blocks", "grouped"]
    assert len(divided.layers["features.10"].blocks) == 4
    assert divided.macs < 0.5 * divided.macs_dense
    assert relative_error(answers(divided.model, x), answers(net, x)) < 1e-5


def test_masks_of_torch_prune_are_made_permanent_on_the_copy(plain_net: nn.Module, images: Tensor) -> None:
    keep = torch.zeros_like(plain_net.conv2.weight)
    keep[:6, :4], keep[6:, 4:] = 1.0, 1.0
    prune.custom_from_mask(plain_net.conv2, "weight", keep)  # type: ignore[no-untyped-call]
    found = formed(plain_net, images)
    assert found.layers["conv2"].form == "grouped"
    assert hasattr(plain_net.conv2, "weight_orig")
    assert relative_error(answers(found.model, images), answers(plain_net, images)) < 1e-5
    assert {name.partition(".")[0] for name in found.model.state_dict()} == {
        *("conv1", "bn1", "conv2", "bn2", "linear"),
    }
