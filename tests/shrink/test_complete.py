"""Nothing provably removable stays: parameter counts against networks that were built small."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pruning_laws import with_zeros
from torch import Tensor, nn

from ticket_export.shrink.exact import Shrunk, shrink

# N images, C channels, H W pixels

models = pytest.importorskip("torchvision.models")


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def built_small(factory: str, **kwargs: object) -> int:
    """Parameters of a network that was built with other arguments; no number of it is computed."""
    with torch.device("meta"):
        return count(getattr(models, factory)(weights=None, **kwargs))


def net_of(factory: str, **kwargs: object) -> nn.Module:
    """The network with random betas and running statistics, so that no constant is zero by luck."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = getattr(models, factory)(weights=None, **kwargs)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.data.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.data.normal_(0, 0.3)
    return net.eval()


def zero_half(*tensors: Tensor) -> None:
    """Zero every other row."""
    with torch.no_grad():
        for tensor in tensors:
            tensor[1::2] = 0.0


def kill_half(layer: nn.Module, norm: nn.Module, *, constants: bool) -> None:
    """Zero half of the rows; the norm emits constants for them, or zeros."""
    zero_half(layer.weight)
    if not constants:
        zero_half(norm.weight, norm.bias)


def proven(net: nn.Module, *shape: int) -> Shrunk:
    shrunk = shrink(net, torch.randn(1, *shape, generator=torch.Generator().manual_seed(5)))
    assert shrunk.report.rel_error <= 1e-5
    assert shrunk.report.params == count(shrunk.model)
    return shrunk


@pytest.mark.parametrize("constants", [False, True], ids=["zero", "constants"])
def test_resnet50_with_half_of_its_inner_channels_dead_is_resnet50_of_width_32(constants):
    net, carriers = net_of("resnet50"), 0
    for block in (module for module in net.modules() if isinstance(module, models.resnet.Bottleneck)):
        kill_half(block.conv1, block.bn1, constants=constants)
        kill_half(block.conv2, block.bn2, constants=constants)
        # conv2 is padded: one carrier with its row of conv1, its gamma and beta, its columns of conv2
        carriers += block.conv1.in_channels + 2 + 9 * block.conv2.out_channels // 2
    expected = built_small("resnet50", width_per_group=32)
    assert 12.37e6 < expected < 12.39e6
    shrunk = proven(net, 3, 32, 32)
    if constants:
        assert expected < shrunk.report.params <= expected + carriers
        assert shrunk.report.num_carriers <= 16
    else:
        assert shrunk.report.params == expected
        assert shrunk.report.num_carriers == 0


VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


@pytest.mark.parametrize("constants", [False, True], ids=["zero", "constants"])
def test_vgg16_bn_with_half_of_its_channels_dead_is_a_vgg16_bn_of_half_width(constants):
    net = net_of("vgg16_bn")
    net.classifier = nn.Sequential(nn.Linear(512 * 49, 40), nn.ReLU(), nn.Linear(40, 10)).eval()
    layers, carriers = list(net.features), 0
    for layer, norm in pairwise(layers):
        if isinstance(layer, nn.Conv2d):
            kill_half(layer, norm, constants=constants)
            carriers += 9 * layer.in_channels // 2 + 2 + 9 * layer.out_channels // 2 + 9
    zero_half(net.classifier[0].weight)
    half = [width if width == "M" else width // 2 for width in VGG16]
    small = nn.Sequential(
        models.vgg.make_layers(half, batch_norm=True), nn.Linear(256 * 49, 20), nn.Linear(20, 10)
    )
    # every conv has a bias of its own in vgg; it stays in both
    expected = count(small)
    shrunk = proven(net, 3, 32, 32)
    if constants:
        assert expected < shrunk.report.params <= expected + carriers
        assert shrunk.report.num_carriers <= 12  # the last conv is read by the classifier, without a border
    else:
        assert shrunk.report.params == expected
        assert shrunk.report.num_carriers == 0


@pytest.mark.slow
@pytest.mark.parametrize("constants", [False, True], ids=["zero", "constants"])
def test_mobilenet_v2_with_half_of_its_hidden_channels_dead_is_built_with_half_the_expansion(constants):
    net = net_of("mobilenet_v2")
    for block in (m for m in net.modules() if isinstance(m, models.mobilenetv2.InvertedResidual)):
        if len(block.conv) == 4:  # expand, depthwise, project, norm
            (expand, norm, _), (depthwise, norm_depthwise, _) = block.conv[0], block.conv[1]
            kill_half(expand, norm, constants=constants)
            kill_half(depthwise, norm_depthwise, constants=constants)
    setting = [  # expansion, channels, blocks, stride: torchvision's own with 3 for 6
        [1, 16, 1, 1], [3, 24, 2, 2], [3, 32, 3, 2], [3, 64, 4, 2], [3, 96, 3, 1], [3, 160, 3, 2],
        [3, 320, 1, 1],
    ]  # fmt: skip
    shrunk = proven(net, 3, 32, 32)
    # zero kernels emit the same constant everywhere: it folds, and nothing has to be carried
    assert shrunk.report.params == built_small("mobilenet_v2", inverted_residual_setting=setting)
    assert shrunk.report.num_carriers == 0


def hidden_pairs(net: nn.Module) -> list[tuple[nn.Linear, nn.Linear]]:
    """Pairs of linear layers with an activation between them: the feed-forward part of each block."""
    linears = [
        module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and "attn" not in name and "attention" not in name
    ]
    return [
        (one, two)
        for one, two in pairwise(linears)
        if one.out_features == two.in_features == 4 * one.in_features
    ]


def parameters_without_half_of_hidden(net: nn.Module, num_blocks: int) -> int:
    """Zero half of the hidden units of every block and return the parameters that should stay."""
    pairs = hidden_pairs(net)
    assert len(pairs) == num_blocks
    gone = 0
    for one, two in pairs:
        zero_half(one.weight)  # the bias stays: half of the units are constants
        # per unit a row with its bias, and a column
        gone += one.out_features // 2 * (one.in_features + 1 + two.out_features)
    return count(net) - gone


def small_vit(**kwargs: int) -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 12, "hidden_dim": 96}
    net = models.VisionTransformer(**{**sizes, "mlp_dim": 384, "num_classes": 10, **kwargs}).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        net.heads.head.weight.normal_(0, 0.1)
        for block in net.encoder.layers:
            block.self_attention.in_proj_bias.normal_(0, 0.3)
            block.mlp[0].bias.normal_(0, 0.3)
    return net


def test_hidden_units_of_a_vision_transformer_go_with_their_rows_and_columns():
    net = small_vit()
    expected = parameters_without_half_of_hidden(net, 2)
    assert proven(net, 3, 32, 32).report.params == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "num_blocks", "size"), [("convnext_tiny", 18, 32), ("vit_b_16", 12, 32), ("swin_t", 12, 64)]
)
def test_hidden_units_of_every_block_go_with_their_rows_and_columns(factory, num_blocks, size):
    net = net_of(factory, **({"image_size": 32} if factory == "vit_b_16" else {}))
    if factory == "vit_b_16":
        net.heads.head.weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    expected = parameters_without_half_of_hidden(net, num_blocks)
    assert proven(net, 3, size, size).report.params == expected


def parameters_without_a_third_of_heads(net: nn.Module, *, constants: bool) -> int:
    """Zero 4 of the 12 heads of every block and return the parameters that should stay."""
    gone = 0
    for block in net.encoder.layers:
        attention = block.self_attention
        width, dim = attention.embed_dim, attention.embed_dim // 12
        for part in (0, 1, 2) if not constants else (2,):  # q, k, v; or v alone, which keeps its bias
            for head in (1, 4, 5, 11):
                rows = slice(part * width + head * dim, part * width + (head + 1) * dim)
                attention.in_proj_weight.data[rows] = 0.0
                if not constants:
                    attention.in_proj_bias.data[rows] = 0.0
        # a row and a bias of each of q, k, v, and a column of the output projection
        gone += 4 * dim * (3 * (width + 1) + width)
    return count(net) - gone


@pytest.mark.parametrize("constants", [False, True], ids=["zero", "constants"])
def test_dead_heads_of_a_vision_transformer_go_with_query_key_value_and_output(constants):
    net = small_vit()
    expected = parameters_without_a_third_of_heads(net, constants=constants)
    assert proven(net, 3, 32, 32).report.params == expected


@pytest.mark.slow
def test_four_of_twelve_heads_of_vit_b_16_go_with_query_key_value_and_output():
    net = small_vit(num_layers=12, hidden_dim=768, mlp_dim=3072, num_classes=1000)
    assert count(net) == built_small("vit_b_16", image_size=32)
    expected = parameters_without_a_third_of_heads(net, constants=False)
    assert proven(net, 3, 32, 32).report.params == expected


@pytest.mark.slow
@pytest.mark.parametrize("constants", [False, True], ids=["zero", "constants"])
def test_densenet121_with_half_of_its_bottleneck_channels_dead_is_built_with_bn_size_2(constants):
    net, carriers = net_of("densenet121"), 0
    layers = [
        module for name, module in net.named_modules() if name.rpartition(".")[2].startswith("denselayer")
    ]
    assert len(layers) == 58
    for layer in layers:
        kill_half(layer.conv1, layer.norm2, constants=constants)
        carriers += layer.conv1.in_channels + 2 + 9 * 32
    expected = built_small("densenet121", bn_size=2)
    shrunk = proven(net, 3, 64, 64)
    if constants:
        assert expected < shrunk.report.params <= expected + carriers
        assert shrunk.report.num_carriers <= 58
    else:
        assert shrunk.report.params == expected
        assert shrunk.report.num_carriers == 0


@pytest.mark.parametrize("law", ["both", "columns", "layer", "one_left"])
def test_shrinking_again_removes_nothing_more(tiny_net, images, law):
    once = shrink(with_zeros(tiny_net, law), images)
    twice = shrink(once.model, images)
    assert twice.report.params == once.report.params
