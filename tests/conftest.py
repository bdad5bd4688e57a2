"""What every room's tests share: four tiny networks, and torchvision beside a CPU-only torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

# N images, C channels, H W pixels, K classes


def _torchvision_schemas() -> torch.library.Library | None:
    """Declare the two operators torchvision cannot be imported without, unless its library has them.

    PyPI's torchvision is built for CUDA; beside a CPU-only torch its compiled part does not load.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    compiled = Path(spec.origin).with_name("_C.so")
    try:
        torch.ops.load_library(compiled)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_TORCHVISION = _torchvision_schemas()  # the reference keeps the schemas declared


def _with_history(net: nn.Module) -> nn.Module:
    """Give every norm the numbers of a trained network, so that no constant is zero by luck."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, high)
    return net.eval()


class Plain(nn.Module):
    """conv-norm-relu twice, with padding, then a classifier: [N, 3, H, W] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.linear = nn.Linear(12, 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x_NCHW)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


class Residual(nn.Module):
    """A stem, one identity block and one block with a strided projection: [N, 3, H, W] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10)
        self.conv4, self.bn4 = nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.project, self.bn_project = nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)
        self.linear = nn.Linear(12, 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x_NCHW)))
        inner = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(inner)))
        inner = torch.relu(self.bn3(self.conv3(x)))
        x = torch.relu(self.bn_project(self.project(x)) + self.bn4(self.conv4(inner)))
        return self.linear(x.mean((2, 3)))


class Concat(nn.Module):
    """Two branches joined by a concatenation and max-pooled: [N, 3, H, W] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.bn_left = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.right, self.bn_right = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.join, self.bn_join = nn.Conv2d(10, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(8, 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        left = torch.relu(self.bn_left(self.left(x_NCHW)))
        right = torch.relu(self.bn_right(self.right(x_NCHW)))
        x = self.pool(torch.cat((left, right), dim=1))
        x = torch.relu(self.bn_join(self.join(x)))
        return self.linear(x.mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted-residual block, expand, depthwise, project, around an identity: [N, 3, H, W] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.expand, self.bn_expand = nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn_depthwise = nn.BatchNorm2d(12)
        self.project, self.bn_project = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = nn.functional.relu6(self.bn(self.stem(x_NCHW)))
        inner = nn.functional.relu6(self.bn_expand(self.expand(x)))
        inner = nn.functional.relu6(self.bn_depthwise(self.depthwise(inner)))
        x = x + self.bn_project(self.project(inner))
        return self.linear(x.mean((2, 3)))


TINY_NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "concat": Concat,
    "depthwise": Depthwise,
}


def _built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        return _with_history(TINY_NETS[name]())


@pytest.fixture
def plain_net() -> nn.Module:
    return _built("plain")


@pytest.fixture
def residual_net() -> nn.Module:
    return _built("residual")


@pytest.fixture
def concat_net() -> nn.Module:
    return _built("concat")


@pytest.fixture
def depthwise_net() -> nn.Module:
    return _built("depthwise")


@pytest.fixture(params=sorted(TINY_NETS))
def tiny_net(request: pytest.FixtureRequest) -> nn.Module:
    """Each of the four networks in turn, in eval mode, equal in every run."""
    return _built(request.param)


@pytest.fixture
def images() -> Tensor:
    """[N, C, H, W]: two images of 8x8 pixels, float32, equal in every run."""
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images; a test that asks for it is marked `data`."""
    folder = os.environ.get("TICKET_EXPORT_DATA")
    if not folder:
        pytest.skip("TICKET_EXPORT_DATA names no folder with real images")
    return Path(folder)
