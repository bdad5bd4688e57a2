"""Layers of which nothing depends on the input: they disappear, or their constant takes their place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ticket_export.export.onnx import onnx_from_module
from ticket_export.models.load import build
from ticket_export.runtime.registry import open_runner
from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink


def resnet20() -> nn.Module:
    return build("zoo:resnet20", {}, num_classes=10, image_shape=(3, 16, 16), seed=0)


def images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def with_a_silent_block(beta: float) -> nn.Module:
    net = resnet20()
    with torch.no_grad():
        net.layer2[1].conv2.weight.zero_()
        net.layer2[1].bn2.bias.fill_(beta)
    return net.eval()


def test_a_block_that_adds_nothing_is_gone():
    net = with_a_silent_block(0.0)
    shrunk = shrink(net, images(2, 16))
    for x in (images(1, 16), images(3, 24)):
        assert relative_error(shrunk.model(x), net(x)) <= 1e-5
    assert not [name for name in shrunk.model.state_dict() if name.startswith("layer2.1.")]
    block = 2 * 32 * 32 * 9 + 4 * 32  # two convolutions and two norms
    assert shrunk.report.params_dense - shrunk.report.params == block
    assert shrunk.report.widths["layer2.1.conv1"].after == 0
    assert not [name for name in shrunk.model.state_dict() if name.startswith("constant")]


def test_a_block_that_adds_a_constant_becomes_that_constant(tmp_path: Path):
    net = with_a_silent_block(0.25)
    shrunk = shrink(net, images(2, 16))
    assert relative_error(shrunk.model(images(3, 24)), net(images(3, 24))) <= 1e-5
    constants = [value for name, value in shrunk.model.state_dict().items() if name.startswith("constant")]
    assert [tuple(value.shape) for value in constants] == [(1, 32, 1, 1)]
    assert torch.allclose(constants[0], torch.tensor(0.25))
    save_bundle(shrunk, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", resnet20()).eval()
    x = images(2, 16)
    assert torch.equal(loaded(x), shrunk.model(x))
    onnx_from_module(loaded, tmp_path / "small.onnx", (x,))
    with open_runner(tmp_path / "small.onnx", "ort-cpu") as runner:
        x = images(5, 16)
        logits = torch.from_numpy(runner.infer({"input": x.numpy()})["logits"])
        assert relative_error(logits, net(x)) <= 1e-5


def test_the_rest_of_a_network_without_a_block_trains():
    shrunk = shrink(with_a_silent_block(0.25), images(2, 16))
    weights = dict(shrunk.model.named_parameters())
    before = weights["layer1.0.conv1.weight"].detach().clone()
    mean = shrunk.model.get_buffer("bn1.running_mean").clone()
    shrunk.model.train()(images(4, 16)).square().sum().backward()
    torch.optim.SGD(shrunk.model.parameters(), lr=0.1).step()
    assert not torch.equal(weights["layer1.0.conv1.weight"], before)
    assert not torch.equal(shrunk.model.get_buffer("bn1.running_mean"), mean)


def test_a_network_whose_output_is_constant_keeps_its_shape():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double().eval()
    with torch.no_grad():
        net[2].weight.zero_()
    shrunk = shrink(net, images(2, 8).double())
    x = images(3, 9).double()
    assert relative_error(shrunk.model(x), net(x)) <= 1e-9
    assert shrunk.model[0].out_channels == 1
