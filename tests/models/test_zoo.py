from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from ticket_export.channels.costs import count_costs
from ticket_export.errors import DataError, RecipeError
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.load import build
from ticket_export.models.resnet import Bottleneck, PadShortcut
from ticket_export.models.zoo import ZOO, zoo_network

CIFAR = (3, 32, 32)


def network(name: str, image_shape: tuple[int, int, int] = CIFAR, **args: object) -> nn.Module:
    return zoo_network(name, args, num_classes=10, image_shape=image_shape)


def num_parameters(model: nn.Module, *, biases: bool = True) -> int:
    return sum(p.numel() for p in model.parameters() if biases or p.ndim > 1)


def conv_macs(name: str, model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of all layers but the classifier."""
    classifier = model.get_submodule(ZOO_FACTS[name].classifier).get_parameter("weight")
    return count_costs(model, torch.zeros(1, *image_shape)).macs - classifier.numel()


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
        ("wrn_32_2", 1_860_522),
        ("vgg16", 14_724_042),
        ("mobilenet_v1", 3_217_226),
    ],
)
def test_networks_for_cifar_hold_the_published_number_of_parameters(name: str, count: int) -> None:
    assert num_parameters(network(name)) == count


def test_padded_shortcuts_cost_no_parameters() -> None:
    assert num_parameters(network("resnet20", shortcut="pad")) == 269_722


@pytest.mark.parametrize(
    ("name", "count", "macs"),
    [("resnet18", 11_689_512, 1_813_561_344), ("resnet50", 25_557_032, 4_087_136_256)],
)
def test_networks_for_imagenet_hold_the_parameters_and_cost_the_macs_of_torchvisions(
    name: str, count: int, macs: int
) -> None:
    shape = (3, 224, 224)
    model = zoo_network(name, {"stem": "imagenet"}, num_classes=1000, image_shape=shape)
    assert num_parameters(model) == count
    assert conv_macs(name, model, shape) == macs


@pytest.mark.parametrize(
    ("name", "args", "macs"),
    [
        ("resnet18", {}, 555_417_600),
        ("resnet50", {"stem": "cifar"}, 1_297_809_408),
        ("wrn_32_2", {}, 275_611_648),
        ("vgg16", {}, 313_196_544),
        ("mobilenet_v1", {}, 46_344_192),
    ],
)
def test_networks_for_cifar_cost_the_published_macs(name: str, args: dict[str, object], macs: int) -> None:
    assert conv_macs(name, network(name, **args), CIFAR) == macs


def test_the_stem_for_cifar_holds_fewer_weights_and_nothing_else_changes() -> None:
    for name in ("resnet18", "resnet50"):
        wide, narrow = (network(name, stem=stem).state_dict() for stem in ("imagenet", "cifar"))
        assert wide.pop("conv1.weight").shape == (64, 3, 7, 7)
        assert narrow.pop("conv1.weight").shape == (64, 3, 3, 3)
        assert {key: t.shape for key, t in wide.items()} == {key: t.shape for key, t in narrow.items()}


@pytest.mark.parametrize("name", ["wrn_32_2", "vgg16", "mobilenet_v1", "resnet50"])
def test_convolutions_begin_kaiming_normal_by_their_fan_out(name: str) -> None:
    model = build(f"zoo:{name}", num_classes=10, seed=0)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.03), key
            assert float(module.weight.detach().mean().abs()) < 0.1 * (2 / fan_out) ** 0.5, key


def test_wrn_32_2_is_the_cifar_resnet_of_depth_32_with_twice_the_channels() -> None:
    wide, plain = (network(name).state_dict() for name in ("wrn_32_2", "resnet32"))
    assert list(wide) == list(plain)
    assert wide["conv1.weight"].shape == (32, 3, 3, 3)
    widths = {key: len(tensor) for key, tensor in wide.items() if tensor.ndim and "linear" not in key}
    assert widths == {key: 2 * len(plain[key]) for key in widths}


def test_the_second_convolution_of_a_bottleneck_takes_the_stride_on_a_quarter_of_the_channels() -> None:
    block = Bottleneck(8, 16, stride=2, shortcut="projection")
    convolutions = [block.conv1, block.conv2, block.conv3]
    assert [conv.out_channels for conv in convolutions] == [4, 4, 16]
    assert [conv.stride for conv in convolutions] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v1"])
def test_the_mean_before_the_classifier_takes_two_by_two_pixels_of_a_cifar_image(name: str) -> None:
    model, seen = network(name).eval(), []
    body = model.get_submodule("features" if name == "vgg16" else "blocks")
    body.register_forward_hook(lambda _module, _inputs, y_NCHW: seen.append(tuple(y_NCHW.shape[2:])))
    model(torch.zeros(1, *CIFAR))
    assert seen == [(2, 2)]


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
        assert facts.has_residual == name.startswith(("resnet", "wrn", "supernet")), name
        has_depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in modules.values())
        assert facts.has_depthwise == has_depthwise, name
        if not facts.fixed_size:
            assert model.eval()(torch.zeros(1, 1, 20, 20)).shape == (1, 10), name
    assert ZOO_FACTS["resnet20"].unpruned == ("conv1.weight", "linear.weight")
    assert ZOO_FACTS["conv2"].unpruned == ("fc3.weight",)
    assert ZOO_FACTS["vgg16"].unpruned == ("classifier.weight",)


@pytest.mark.parametrize("name", sorted(name for name, facts in ZOO_FACTS.items() if facts.args))
def test_the_first_text_of_an_argument_is_its_default(name: str) -> None:
    for arg, texts in ZOO_FACTS[name].args.items():
        default, *others = (str(network(name, **{arg: text})) for text in texts)
        assert default == str(network(name))
        assert default not in others


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
        ("resnet50", {"stem": "3x3"}, "stem is '3x3'"),
        ("vgg16", {"stem": "cifar"}, "'stem'"),
    ],
)
def test_unknown_names_and_arguments_are_refused(name: str, args: dict[str, object], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        zoo_network(name, args, num_classes=10, image_shape=CIFAR)


@pytest.mark.parametrize(("name", "smallest"), [("conv6", 8), ("vgg16", 16)])
def test_an_image_too_small_for_the_poolings_is_refused(name: str, smallest: int) -> None:
    shape = (3, smallest, smallest)
    assert network(name, shape).eval()(torch.zeros(1, *shape)).shape == (1, 10)
    with pytest.raises(DataError, match=f"at least {smallest} pixels a side, got {smallest - 1}"):
        network(name, (3, smallest, smallest - 1))
