"""A trained ResNet-20 with whole filters at zero keeps all 10,000 test predictions through the shrink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import channel_groups
from ticket_export.data.augment import normalise
from ticket_export.data.sources import Images, load_images
from ticket_export.export.onnx import onnx_from_module
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink

# N images, C channels, H W pixels, K classes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 400  # larger activations are fetched from the system and given back in every layer


@pytest.fixture(scope="module")
def cifar10(data_folder: Path) -> Images:
    return load_images("arrays", data_folder / "cifar10.npz", holdout_fraction=0.1, seed=0)


def logits(run: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(normalise(x, MEAN, STD)) for x in torch.split(x_NCHW, BATCH)])


def measure_statistics_again(net: nn.Module, images: Images) -> None:
    """Take the running statistics from training images: with the old ones few classes are predicted."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the batches
        norm.train()
    logits(net, images.train_x[:2000])
    net.eval()


def zero_smallest_filters(net: nn.Module, rate: float, *, inner_only: bool) -> int:
    """Zero the filters of the smallest l1 norm, summed over a group's layers; return how many channels."""
    tensors, num_zeroed = net.state_dict(), 0
    for group in channel_groups(net, torch.randn(2, 3, 32, 32)):
        if group.pinned is not None or (inner_only and not group.is_inner):
            continue
        l1_C = torch.zeros(group.width)
        for member in group.producers:
            rows = tensors[member.tensor].movedim(member.axis, 0).flatten(1).abs().sum(1)
            l1_C += rows[member.indices].sum(1)
        smallest = l1_C.argsort()[: int(rate * group.width)]
        num_zeroed += len(smallest)
        for member in group.producers:  # the betas stay: a dead channel emits a constant
            tensors[member.tensor].index_fill_(member.axis, member.indices[smallest].flatten(), 0.0)
    return num_zeroed


@pytest.mark.data
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["inner", "coupled"])
def test_all_predictions_are_equal_in_torch_and_in_onnxruntime(
    trained_resnet20, cifar10, tmp_path, kind, rate
):
    net = trained_resnet20
    num_zeroed = zero_smallest_filters(net, rate, inner_only=kind == "inner")
    measure_statistics_again(net, cifar10)
    shrunk = shrink(net, torch.randn(2, 3, 32, 32))
    plan, report = shrunk.plan, shrunk.report

    kept = {name: plan.sliced(name, tensor).numel() for name, tensor in net.named_parameters()}
    biases = {name.removesuffix("weight") + "bias" for name in plan.new_biases}
    extra = sum(dict(shrunk.model.named_parameters())[name].numel() for name in biases)
    num_params = sum(parameter.numel() for parameter in shrunk.model.parameters())
    assert num_params == report.params == sum(kept.values()) + extra
    cut = sum(change.before - change.after for change in report.widths.values())
    assert num_zeroed - report.num_carriers <= cut
    assert report.params < (1.0 - rate / 2) * report.params_dense

    reference_NK = logits(net, cifar10.test_x)
    assert reference_NK.shape == (10_000, 10)
    assert len(reference_NK.argmax(1).unique()) > 1  # equal predictions say something
    path = onnx_from_module(shrunk.model, tmp_path / "small.onnx", torch.randn(2, 3, 32, 32))
    with OrtCpuRunner(path) as runner:
        (name,) = runner.input_specs

        def in_onnxruntime(x_NCHW: Tensor) -> Tensor:
            return torch.from_numpy(np.asarray(*runner.infer({name: x_NCHW.numpy()}).values()))

        for run in (shrunk.model.eval(), in_onnxruntime):
            result_NK = logits(run, cifar10.test_x)
            assert int((result_NK.argmax(1) != reference_NK.argmax(1)).sum()) == 0
            assert relative_error(result_NK, reference_NK) <= 1e-5
