"""Residual streams: what every writer leaves constant goes; in index mode each computes its live rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pruning_laws import with_zeros
from torch import Tensor, nn

from ticket_export.errors import ShrinkError
from ticket_export.export.onnx import onnx_from_module
from ticket_export.models.load import build
from ticket_export.runtime.registry import open_runner
from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink

# N images, C channels, T tokens


def resnet20() -> nn.Module:
    return build("zoo:resnet20", {}, num_classes=10, image_shape=(3, 16, 16), seed=0)


def images(batch: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def half_of_every_second_writer_silent() -> nn.Module:
    net = resnet20()
    with torch.no_grad():
        for number, block in enumerate(net.layer1):
            rows = slice(0, 8) if number % 2 else slice(8, 16)
            block.conv2.weight[rows] = 0.0
            block.bn2.bias.uniform_(-0.5, 0.5)
    return net.eval()


def test_index_mode_computes_live_rows_where_union_keeps_them_all():
    net = half_of_every_second_writer_silent()
    union = shrink(net, images(2, 16))
    index = shrink(net, images(2, 16), residual="index")
    for x in (images(1, 16), images(3, 24)):
        assert relative_error(index.model(x), net(x)) <= 1e-5
    writers = [block.conv2.weight.shape[0] for block in index.model.layer1]
    assert [block.conv2.weight.shape[0] for block in union.model.layer1] == [16, 16, 16]
    assert writers == [8, 8, 8]
    # three writers lose 8 of 16 rows of 16 x 9 weights, at 16 x 16 places
    assert union.report.params - index.report.params == 3 * 8 * 16 * 9
    assert union.report.macs - index.report.macs == 3 * 8 * 16 * 9 * 16 * 16
    assert index.report.form == "module"
    assert index.model.state_dict().keys() - union.model.state_dict().keys() == {
        f"layer1.{i}.conv2.scatter" for i in range(3)
    }


@pytest.mark.parametrize("law", ["both", "rows", "one_left"])
@pytest.mark.parametrize("padded_constants", ["carrier", "term"])
def test_index_mode_is_exact_under_the_laws(law, padded_constants):
    net = with_zeros(resnet20().double(), law)
    shrunk = shrink(
        net, images(2, 16, torch.float64), residual="index", padded_constants=padded_constants, round_to=4
    )
    for x in (images(1, 16, torch.float64), images(3, 20, torch.float64)):
        assert relative_error(shrunk.model(x), net(x)) <= 1e-9
    live = [len(rows) for rows in shrunk.plan.live_rows.values()]
    assert all(number % 4 == 0 for number in live)


def test_index_mode_survives_the_bundle_trains_and_exports(tmp_path: Path):
    net = half_of_every_second_writer_silent()
    shrunk = shrink(net, images(2, 16), residual="index")
    save_bundle(shrunk, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", resnet20()).eval()
    x = images(3, 16)
    assert torch.equal(loaded(x), shrunk.model(x))
    onnx_from_module(loaded, tmp_path / "small.onnx", (x,))
    with open_runner(tmp_path / "small.onnx", "ort-cpu") as runner:
        for batch in (1, 5):
            x = images(batch, 16)
            logits = torch.from_numpy(runner.infer({"input": x.numpy()})["logits"])
            assert relative_error(logits, net(x)) <= 1e-5
    before = loaded.layer1[0].conv2.weight.detach().clone()
    loaded.train()(images(4, 16)).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert not torch.equal(loaded.layer1[0].conv2.weight, before)


class Tokens(nn.Module):
    """Two linear branches into a stream of 8 channels that a linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (nn.Linear(*s) for s in ((4, 8), (8, 8), (8, 8), (8, 2)))

    def forward(self, x_NTC: Tensor) -> Tensor:
        x = self.stem(x_NTC)
        x = x + self.a(x).relu()
        return self.head(x + self.b(x))


def test_linear_writers_compute_live_rows_too():
    torch.manual_seed(0)
    net = Tokens().double().eval()
    with torch.no_grad():
        net.a.weight[2:] = 0.0
        net.b.weight[:5] = 0.0
    shrunk = shrink(net, torch.randn(2, 5, 4, dtype=torch.float64), residual="index")
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    assert relative_error(shrunk.model(x), net(x)) <= 1e-9
    assert (len(shrunk.model.a.weight), len(shrunk.model.b.weight)) == (2, 3)
    assert (shrunk.model.a.out_features, shrunk.model.b.out_features) == (8, 8)


def test_an_unknown_mode_is_told():
    with pytest.raises(ShrinkError, match="residual is 'both'\nhint: the modes are union, index"):
        shrink(resnet20(), images(1, 16), residual="both")
