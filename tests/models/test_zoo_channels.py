"""The channels of the larger networks of the zoo: what belongs together, and that it can be removed."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.channels.mask import Mask, zero_dropped
from ticket_export.export.onnx import onnx_from_module
from ticket_export.find.depgraph import require_depgraph
from ticket_export.find.imp import imp_mask, prunable_weights
from ticket_export.find.refill import refill
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.load import build
from ticket_export.models.resnet import Bottleneck, CifarResNet, ImageNetResNet
from ticket_export.shrink.exact import shrink
from ticket_export.shrink.surgery import small_from_mask

# N images, C channels, H W pixels, K classes

SIZES = {"wrn_32_2": 8, "vgg16": 16, "mobilenet_v1": 16}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int, seed: int = 0) -> Tensor:
    return torch.randn(4, 3, size, size, generator=generator(seed), dtype=torch.float64)


def trained(model: nn.Module, size: int) -> nn.Module:
    """Give it norms that say something, so that no constant is zero by luck and the output moves."""
    model = model.double().train()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data = torch.rand(norm.num_features, generator=generator(1), dtype=torch.float64) + 0.5
        norm.bias.data = 0.3 * torch.randn(norm.num_features, generator=generator(2), dtype=torch.float64)
        norm.momentum = 1.0  # the statistics of one batch
    model(images(size, seed=3))
    return model.eval()


@cache
def zoo_and_groups(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    size = SIZES[name]
    model = trained(build(f"zoo:{name}", num_classes=10, image_shape=(3, size, size), seed=0), size)
    return model, channel_groups(model, images(size))


def zoo(name: str) -> tuple[nn.Module, list[ChannelGroup]]:
    model, groups = zoo_and_groups(name)
    return copy.deepcopy(model), groups


def bottlenecks(stem: str) -> nn.Module:
    """Two stages of the blocks of ResNet-50, and its stem."""
    torch.manual_seed(0)
    network = {"cifar": CifarResNet, "imagenet": ImageNetResNet}[stem]
    model = network((32, 64), (1, 2), num_classes=10, in_channels=3, shortcut="projection", block=Bottleneck)
    return trained(model, 16)


def half_of(groups: list[ChannelGroup]) -> Mask:
    keep_by_group = {}
    for group in groups:
        if group.pinned is None:
            keep_by_group[group.name] = torch.rand(group.width, generator=generator(group.width)) < 0.5
            keep_by_group[group.name][0] = True
    return Mask(keep_by_group)


def zero_rows(model: nn.Module) -> nn.Module:
    """Half of the rows of every layer but the last are zero; norms still make constants of them."""
    *inner, _ = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for seed, layer in enumerate(inner):
        drop_C = torch.rand(layer.weight.shape[0], generator=generator(seed)) < 0.5
        layer.weight.data[drop_C] = 0.0
    return model


def error_between(small: nn.Module, dense: nn.Module, size: int) -> float:
    """Largest error on unseen images, relative to the largest output; the outputs must not be all alike."""
    given, wanted = (model(images(size, seed=4)).detach() for model in (small, dense))
    assert float(wanted.std(0).max()) > 1e-3 * float(wanted.abs().max())
    return float((given - wanted).abs().max() / wanted.abs().max())


# what belongs together


def widths(groups: list[ChannelGroup]) -> dict[str, int]:
    return {group.name: group.width for group in groups}


def test_the_streams_of_wrn_32_2_are_one_group_a_stage_and_nothing_but_the_output_is_pinned() -> None:
    _, groups = zoo("wrn_32_2")
    stages = (("layer1", 32), ("layer2", 64), ("layer3", 128))
    inner = {f"{stage}.{i}.conv1": width for stage, width in stages for i in range(5)}
    streams = {"conv1": 32, "layer2.0.conv2": 64, "layer3.0.conv2": 128}  # the stem writes the first one
    assert widths(groups) == {**inner, **streams, "linear": 10}
    assert {group.name for group in groups if group.is_inner} == {*inner, "linear"}
    for group in groups:
        assert (group.pinned is not None) == (group.name == "linear")
        if group.name in streams:  # the stem or the shortcut, and the second convolution of each block
            assert len(group.producers) == 6


def test_each_convolution_of_vgg16_writes_a_group_of_its_own() -> None:
    _, groups = zoo("vgg16")
    assert list(widths(groups).values()) == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [10]
    assert all(group.is_inner for group in groups)
    assert [group.name for group in groups if group.pinned is not None] == ["classifier"]


def test_the_depthwise_convolutions_of_mobilenet_v1_go_with_the_channels_they_read() -> None:
    _, groups = zoo("mobilenet_v1")
    blocks = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    expected = {f"blocks.{i}.pointwise": width for i, width in enumerate(blocks)}
    assert widths(groups) == {"conv1": 32, **expected, "linear": 10}
    assert [group.name for group in groups if group.pinned is not None] == ["linear"]
    for index, group in enumerate(groups[:-2]):
        roles = {member.tensor: member.role for member in group.members}
        assert roles[f"blocks.{index}.depthwise.weight"] == "per_channel"


def test_bottlenecks_join_the_channels_of_their_third_convolutions() -> None:
    model = bottlenecks("imagenet")
    groups = channel_groups(model, images(16))
    require_depgraph(model.float(), images(16).float(), groups)
    inner = {f"layer{s}.{i}.conv{c}": 8 * s for s, i in ((1, 0), (2, 0), (2, 1)) for c in (1, 2)}
    assert widths(groups) == {"conv1": 8, **inner, "layer1.0.conv3": 32, "layer2.0.conv3": 64, "linear": 10}
    (stream,) = [group for group in groups if group.name == "layer2.0.conv3"]
    assert {member.tensor for member in stream.producers} == {
        "layer2.0.conv3.weight",
        "layer2.0.shortcut.0.weight",
        "layer2.1.conv3.weight",
    }


# removal


@pytest.mark.parametrize("name", sorted(SIZES))
def test_random_filters_are_removed_exactly(name: str) -> None:
    (model, groups), size = zoo(name), SIZES[name]
    mask = half_of(groups)
    shrunk = shrink(model, images(size), mask=mask)
    assert {group: width.after for group, width in shrunk.report.widths.items()} == {
        **widths(groups),
        **mask.kept_widths(),
    }
    zero_dropped(model, groups, mask)
    assert error_between(shrunk.model, model, size) <= 1e-9
    assert shrunk.report.params < 0.35 * shrunk.report.params_dense


@pytest.mark.parametrize("name", sorted(SIZES))
def test_filters_that_are_zero_before_their_norm_are_removed_exactly(name: str) -> None:
    model, size = zero_rows(zoo(name)[0]), SIZES[name]
    shrunk = shrink(model, images(size))
    assert error_between(shrunk.model, model, size) <= 1e-9
    assert shrunk.report.params < 0.6 * shrunk.report.params_dense


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_bottlenecks_are_shrunk_exactly_after_either_stem(stem: str) -> None:
    model = bottlenecks(stem)
    groups = channel_groups(model, images(16))
    mask = half_of(groups)
    given = shrink(model, images(16), mask=mask)
    masked = copy.deepcopy(model)
    zero_dropped(masked, groups, mask)
    assert error_between(given.model, masked, 16) <= 1e-9
    found = shrink(zero_rows(model), images(16))
    assert error_between(found.model, model, 16) <= 1e-9
    assert max(given.report.params, found.report.params) < 0.7 * found.report.params_dense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stem", "size"),
    [("resnet50", "imagenet", 64), ("resnet50", "cifar", 16), ("resnet18", "imagenet", 32)],
)
def test_the_deep_networks_are_shrunk_exactly_and_torch_pruning_agrees(
    name: str, stem: str, size: int
) -> None:
    model = build(f"zoo:{name}", {"stem": stem}, num_classes=10, image_shape=(3, size, size), seed=0)
    model = trained(model, size)
    groups = channel_groups(model, images(size))
    require_depgraph(copy.deepcopy(model).float(), images(size).float(), groups)
    mask = half_of(groups)
    given = shrink(model, images(size), mask=mask)
    masked = copy.deepcopy(model)
    zero_dropped(masked, groups, mask)
    assert error_between(given.model, masked, size) <= 1e-9
    found = shrink(zero_rows(model), images(size))
    assert error_between(found.model, model, size) <= 1e-9
    assert max(given.report.params, found.report.params) < 0.5 * found.report.params_dense


def test_refilled_tickets_of_wrn_32_2_narrow_its_streams_too_and_compute_what_the_mask_says() -> None:
    model, groups = zoo("wrn_32_2")
    weights = model.state_dict()
    names = prunable_weights(model, unpruned=ZOO_FACTS["wrn_32_2"].unpruned)
    elements = imp_mask(weights, names, level=1, drop_fraction=0.5)
    mask = refill(elements, weights, groups, scope="coupled", round_to=8)
    kept = mask.kept_widths()
    assert [kept[name] for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")] == [24, 40, 64]
    assert kept["linear"] == 10
    small = small_from_mask(model, groups, mask)
    dense_macs = count_costs(model, images(8)).macs
    assert count_costs(small, images(8)).macs < 0.45 * dense_macs
    zero_dropped(model, groups, mask)
    assert error_between(small.eval(), model, 8) <= 1e-9


def test_a_shrunk_mobilenet_v1_is_exported_and_computes_the_same(tmp_path: Path) -> None:
    model, groups = zoo("mobilenet_v1")
    small = small_from_mask(model, groups, half_of(groups)).eval().float()
    x_NCHW = images(16).float()
    path = onnx_from_module(small, tmp_path / "small.onnx", x_NCHW)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits_NK,) = session.run(None, {session.get_inputs()[0].name: x_NCHW.numpy()})
    wanted_NK = small(x_NCHW).detach()
    assert float((torch.from_numpy(logits_NK) - wanted_NK).abs().max() / wanted_NK.abs().max()) <= 1e-4
