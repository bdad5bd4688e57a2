"""A trained ResNet-20 with whole filters at zero keeps all 10,000 test predictions through the shrink."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trained_network import logits, logits_in_onnxruntime, measure_statistics_again, zero_smallest_filters

from ticket_export.data.sources import Images, load_images
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import shrink


@pytest.fixture(scope="module")
def cifar10(data_folder: Path) -> Images:
    return load_images("arrays", data_folder / "cifar10.npz", holdout_fraction=0.1, seed=0)


@pytest.mark.data
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["inner", "coupled"])
def test_all_predictions_are_equal_in_torch_and_in_onnxruntime(trained_resnet20, cifar10, kind, rate):
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
    for result_NK in (
        logits(shrunk.model.eval(), cifar10.test_x),
        logits_in_onnxruntime(shrunk.model.eval(), cifar10.test_x),
    ):
        assert int((result_NK.argmax(1) != reference_NK.argmax(1)).sum()) == 0
        assert relative_error(result_NK, reference_NK) <= 1e-5
