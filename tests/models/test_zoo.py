from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from ticket_export.errors import DataError, RecipeError
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.resnet import PadShortcut
from ticket_export.models.zoo import ZOO, zoo_network

CIFAR = (3, 32, 32)


def network(name: str, image_shape: tuple[int, int, int] = CIFAR, **args: object) -> nn.Module:
    return zoo_network(name, args, num_classes=10, image_shape=image_shape)


def num_parameters(model: nn.Module, *, biases: bool = True) -> int:
    return sum(p.numel() for p in model.parameters() if biases or p.ndim > 1)


def conv_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    total = 0

    def add(module: nn.Conv2d, _: object, y_NCHW: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * y_NCHW.shape[2] * y_NCHW.shape[3]

    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model.eval()(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(
    ("name", "image_shape", "count"),
    [
        ("lenet300_100", (1, 28, 28), 266_200),
        ("conv2", CIFAR, 4_300_992),
        ("conv4", CIFAR, 2_425_024),
        ("conv6", CIFAR, 2_261_184),
    ],
)
def test_plain_networks_hold_the_papers_number_of_weights(
    name: str, image_shape: tuple[int, int, int], count: int
) -> None:
    assert num_parameters(network(name, image_shape), biases=False) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 272_474),
        ("resnet32", 466_906),
        ("resnet44", 661_338),
        ("resnet56", 855_770),
        ("resnet18", 11_173_962),
    ],
)
def test_residual_networks_hold_the_published_number_of_parameters(name: str, count: int) -> None:
    assert num_parameters(network(name)) == count


def test_padded_shortcuts_cost_no_parameters() -> None:
    assert num_parameters(network("resnet20", shortcut="pad")) == 269_722


def test_resnet18_costs_the_published_macs() -> None:
    assert conv_macs(network("resnet18"), CIFAR) == 555_417_600


def test_pad_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    x_NCHW = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).reshape(2, 2, 4, 4)
    y_NCHW = PadShortcut(2, 6, 2)(x_NCHW)
    assert y_NCHW.shape == (2, 6, 2, 2)
    assert torch.equal(y_NCHW[:, 2:4], x_NCHW[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not y_NCHW[:, [0, 1, 4, 5]].any()


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_resnet20_accepts_any_image_size(shortcut: str) -> None:
    model = network("resnet20", shortcut=shortcut).eval()
    assert [tuple(model(torch.zeros(3, 3, n, n + 2)).shape) for n in (8, 15, 32)] == [(3, 10)] * 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_resnet20_is_traced_with_dynamic_batch_and_the_trace_computes_the_same(shortcut: str) -> None:
    model = network("resnet20", (3, 8, 8), shortcut=shortcut).eval()
    batch = {"x_NCHW": {0: torch.export.Dim("batch")}}
    traced = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=batch).module()
    x_NCHW = torch.randn(5, 3, 8, 8)
    assert torch.allclose(traced(x_NCHW), model(x_NCHW), atol=1e-6)


def test_facts_agree_with_the_networks() -> None:
    assert set(ZOO_FACTS) == set(ZOO)
    for name, facts in ZOO_FACTS.items():
        model = network(name, (1, 28, 28))
        modules = dict(model.named_modules())
        linears = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
        assert linears[-1] == facts.classifier, name
        assert facts.stem is None or isinstance(modules[facts.stem], nn.Conv2d), name
        assert facts.has_norm == any(isinstance(m, nn.BatchNorm2d) for m in modules.values()), name
        assert facts.has_residual == name.startswith("resnet"), name
        assert not any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in modules.values()), name
        if not facts.fixed_size:
            assert model.eval()(torch.zeros(1, 1, 20, 20)).shape == (1, 10), name
    assert ZOO_FACTS["resnet20"].unpruned == ("conv1.weight", "linear.weight")
    assert ZOO_FACTS["conv2"].unpruned == ("fc3.weight",)


def test_facts_load_no_torch() -> None:
    code = "import sys, ticket_export.models.facts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("resnet21", {}, "'resnet21'"),
        ("resnet20", {"shortcut": "B"}, "'B'"),
        ("resnet20", {"width": 3}, "'width'"),
        ("resnet18", {"shortcut": "pad"}, "'shortcut'"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name: str, args: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        zoo_network(name, args, num_classes=10, image_shape=CIFAR)


def test_an_image_too_small_for_the_poolings_is_refused() -> None:
    with pytest.raises(DataError, match="at least 8 pixels a side, got 4"):
        network("conv6", (3, 4, 4))
