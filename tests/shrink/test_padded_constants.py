"""Constants at zero-padded borders: carried by a channel, added as a term, or whichever keeps the widths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ticket_export.export.onnx import onnx_from_module
from ticket_export.runtime.registry import open_runner
from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import Shrunk, shrink

# N images, C channels, H W pixels
MODES = ["carrier", "term", "auto"]


def chain(*, width: int = 16, num_dead: int = 8, kernel: int = 3, groups: int = 1) -> nn.Module:
    """conv-norm-relu-conv-norm-relu-conv whose first `num_dead` channels are constants that are not zero."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 6, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    with torch.no_grad():
        net[0].weight[:num_dead] = 0.0
        net[1].bias.uniform_(0.5, 1.5)
        net[4].running_mean.uniform_(-0.5, 0.5)
    return net.double().eval()


def images(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def error(shrunk: Shrunk, net: nn.Module) -> float:
    trials = [images(1, 3, 8, 8), images(3, 3, 5, 11)]
    with torch.no_grad():
        return max(relative_error(shrunk.model(x), net(x)) for x in trials)


@pytest.mark.parametrize(("mode", "width", "num_terms"), [("carrier", 9, 0), ("term", 8, 1), ("auto", 9, 0)])
def test_a_carrier_costs_a_channel_and_a_term_costs_none(mode, width, num_terms):
    net = chain()
    shrunk = shrink(net, images(2, 3, 8, 8), padded_constants=mode)
    assert error(shrunk, net) <= 1e-9
    assert shrunk.model[0].out_channels == width
    assert (shrunk.report.num_terms, shrunk.report.num_carriers) == (num_terms, 1 - num_terms)


def test_where_a_carrier_would_leave_the_grid_a_term_takes_its_place():
    net = chain()
    shrunk = shrink(net, images(2, 3, 8, 8), round_to=8)
    assert error(shrunk, net) <= 1e-9
    assert shrunk.model[0].out_channels == 8
    assert shrunk.report.num_terms == 1


def test_a_slot_that_rounding_keeps_carries_the_constants():
    net = chain(num_dead=10)
    shrunk = shrink(net, images(2, 3, 8, 8), round_to=8)
    assert error(shrunk, net) <= 1e-9
    assert shrunk.model[0].out_channels == 8
    assert (shrunk.report.num_terms, shrunk.report.num_carriers) == (0, 1)


@pytest.mark.parametrize("mode", MODES)
def test_every_group_of_a_grouped_convolution_has_its_constants(mode):
    net = chain(groups=2, num_dead=6)
    with torch.no_grad():
        net[0].weight[8:14] = 0.0
    shrunk = shrink(net, images(2, 3, 8, 8), padded_constants=mode)
    assert error(shrunk, net) <= 1e-9
    assert shrunk.model[3].in_channels == (4 if mode == "term" else 6)
    assert shrunk.model[3].groups == 2


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": "same"}])
def test_a_term_follows_stride_dilation_and_padding(options):
    net = chain()
    net[3] = nn.Conv2d(16, 6, 3, **({"padding": 1} | options)).double()
    shrunk = shrink(net, images(2, 3, 9, 9), padded_constants="term")
    assert error(shrunk, net) <= 1e-9
    assert shrunk.model[0].out_channels == 8


@pytest.mark.parametrize("num_axes", [1, 3])
def test_a_term_in_one_and_three_dimensions(num_axes):
    torch.manual_seed(0)
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[num_axes]
    net = nn.Sequential(kind(2, 6, 1), nn.ReLU(), kind(6, 3, 3, padding=1)).double().eval()
    with torch.no_grad():
        net[0].weight[:3], net[0].bias[:3] = 0.0, 1.0
    shrunk = shrink(net, images(2, 2, *([5] * num_axes)), padded_constants="term")
    x = images(3, 2, *([6] * num_axes))
    assert relative_error(shrunk.model(x), net(x)) <= 1e-9
    assert shrunk.model[0].out_channels == 3


def test_a_transposed_convolution_has_carriers_in_every_mode():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, stride=2)).double().eval()
    with torch.no_grad():
        net[0].weight[:4], net[0].bias[:4] = 0.0, 1.0
    shrunk = shrink(net, images(2, 3, 5, 5), padded_constants="term")
    assert error(shrunk, net) <= 1e-9
    assert shrunk.model[0].out_channels == 5


def test_a_term_survives_the_bundle_trains_and_exports(tmp_path: Path):
    net = chain().float()
    shrunk = shrink(net, images(2, 3, 8, 8).float(), padded_constants="term")
    save_bundle(shrunk, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", chain(num_dead=0).float()).eval()
    x = images(3, 3, 8, 8).float()
    assert torch.equal(loaded(x), shrunk.model(x))
    onnx_from_module(loaded, tmp_path / "small.onnx", (x,))
    with open_runner(tmp_path / "small.onnx", "ort-cpu") as runner:
        assert relative_error(torch.from_numpy(runner.infer({"input": x.numpy()})["logits"]), net(x)) <= 1e-5
    before = loaded[3].border.detach().clone()
    loaded.train()(x).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert not torch.equal(loaded[3].border, before)
