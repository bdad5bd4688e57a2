"""Gradients of penalties: of norm scales, and growing ones of what is to be cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_training import equal, net, settings, still, trained
from torch import Tensor, nn

from ticket_export.errors import TrainError
from ticket_export.train.penalty import GammaL1, GrowingL2, PricedGammaL1, mean_prices, norm_scales

# What the channels between the two convolutions own, and on which axis
OF_CHANNELS = {"conv1.weight": 0, "conv1.bias": 0, "bn1.weight": 0, "bn1.bias": 0, "conv2.weight": 1}


def growing(keep: dict[str, Tensor], **changed: Any) -> GrowingL2:
    return GrowingL2(keep=keep, **({"delta": 0.25, "interval": 2, "limit": 1.0} | changed))


class Noted:
    """A penalty of nothing that notes when it is asked."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.names: set[str] = set()

    def add_gradients(self, parameters: dict[str, Tensor], step: int) -> None:
        self.steps.append(step)
        self.names |= parameters.keys()

    def facts(self) -> dict[str, object]:
        return {"penalty": "none"}


def test_scales_are_told_from_other_vectors_by_the_class_of_their_norm() -> None:
    shared = nn.BatchNorm1d(4)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 4, 1),
            "batch": nn.BatchNorm2d(4),
            "bare": nn.BatchNorm2d(4, affine=False),
            "instance": nn.InstanceNorm2d(4, affine=True),
            "group": nn.GroupNorm(2, 4),
            "layer": nn.LayerNorm(4),
            "prelu": nn.PReLU(4),
            "linear": nn.Linear(4, 1),
            "one": shared,
            "same": shared,
        }
    )
    expected = ("batch.weight", "instance.weight", "group.weight", "layer.weight", "one.weight")
    assert norm_scales(model) == expected
    assert norm_scales(nn.BatchNorm2d(3)) == ("weight",)
    assert norm_scales(nn.Linear(1, 1)) == ()


def test_gamma_l1_adds_its_signed_coefficient_and_nothing_at_zero() -> None:
    norm = nn.BatchNorm1d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.0, -0.5]))
    norm.weight.grad = torch.tensor([1.0, 1.0, 1.0])
    norm.bias.grad = torch.zeros(3)
    GammaL1(names=("weight",), coefficient=0.25).add_gradients(dict(norm.named_parameters()), 7)
    assert norm.weight.grad.tolist() == [1.25, 1.0, 0.75]
    assert norm.bias.grad.tolist() == [0.0, 0.0, 0.0]


def test_gamma_l1_shrinks_the_scales_of_a_training() -> None:
    made = settings(lr=0.02, momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant")
    plain = trained(still(), made).weights["bn1.weight"]
    slim = trained(still(), made, penalties=[GammaL1(names=("bn1.weight",), coefficient=0.5)])
    # 16 steps of 0.02 * 0.5, but for what the loss answers
    assert (plain - slim.weights["bn1.weight"]).tolist() == pytest.approx([0.16] * 6, abs=0.02)


def test_the_coefficient_grows_every_interval_up_to_its_limit() -> None:
    penalty = growing({}, delta=0.25, interval=3, limit=0.6)
    assert [penalty.coefficient(step) for step in (0, 2, 3, 5, 6, 8, 9, 1000)] == [
        *(0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.6, 0.6)
    ]


def test_growing_l2_pulls_on_dropped_elements_alone() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -4.0], [1.0, 1.0]]))
    layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
    penalty = growing({"weight": torch.tensor([[True, False], [False, True]])})
    parameters = dict(layer.named_parameters())
    penalty.add_gradients(parameters, 1)
    assert layer.weight.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]  # the coefficient is still zero
    penalty.add_gradients(parameters, 4)
    assert layer.weight.grad.tolist() == [[1.0, -1.0], [1.5, 1.0]]
    assert layer.bias.grad.tolist() == [1.0, 1.0]


def test_one_penalty_serves_two_networks_of_other_types() -> None:
    keep = {"weight": torch.tensor([[False, True]])}
    penalty = growing(keep, interval=1)
    for dtype in (torch.float32, torch.float64, torch.float32):
        layer = nn.Linear(2, 1, dtype=dtype)
        layer.weight.grad = torch.zeros(1, 2, dtype=dtype)
        penalty.add_gradients(dict(layer.named_parameters()), 2)
        half = 0.5 * layer.weight.detach()
        assert layer.weight.grad[0, 0] == half[0, 0]
        assert layer.weight.grad[0, 1] == 0


@pytest.mark.parametrize("changed", [{}, {"channels_last": True}, {"precision": "fp16"}])
def test_what_is_to_be_dropped_vanishes_and_the_rest_learns(changed: dict[str, object]) -> None:
    model = net()
    # All that three channels own: a norm undoes what shrinks its input alone
    shapes = {name: model.get_parameter(name).shape for name in OF_CHANNELS}
    keep = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for name, mask in keep.items():
        mask.narrow(OF_CHANNELS[name], 0, 3).fill_(False)
    before = {name: model.get_parameter(name).detach().clone() for name in keep}
    penalty = growing(keep, delta=0.5, limit=5.0)
    made = settings(epochs=20, schedule="constant", **changed)
    result = trained(model, made, penalties=[penalty])
    for name, mask in keep.items():
        after = result.weights[name]
        assert after[~mask].norm() < 1e-3
        assert after[mask].norm() > 0.5 * before[name][mask].norm()
    assert result.val_accuracy > 0.8


def test_fp16_penalties_are_not_scaled_with_the_loss() -> None:
    """The loss scale starts at 65,536: a penalty that was not unscaled against would vanish."""
    made = settings(precision="fp16", momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant")
    names = ("bn1.weight",)
    plain = trained(still(), made).weights["bn1.weight"]
    slim = trained(still(), made, penalties=[GammaL1(names=names, coefficient=0.2)]).weights["bn1.weight"]
    assert (plain - slim).tolist() == pytest.approx([16 * 0.05 * 0.2] * 6, abs=0.03)


def test_steps_count_from_the_start_of_this_training() -> None:
    noted = Noted()
    result = trained(start_epoch=2, start_step=1, penalties=[noted])
    assert noted.steps == list(range(7))
    assert noted.names == {name for name in result.weights if "running" not in name and "num_" not in name}


def test_a_penalty_of_nothing_changes_nothing() -> None:
    assert equal(trained(penalties=[Noted()]).weights, trained().weights)
    assert equal(
        trained(penalties=[growing({}), GammaL1(names=(), coefficient=1.0)]).weights, trained().weights
    )


def test_frozen_weights_are_skipped() -> None:
    model = net()
    model.bn1.weight.requires_grad_(False)
    before = model.bn1.weight.clone()
    penalties = [
        GammaL1(names=("bn1.weight",), coefficient=1.0),
        growing({"bn1.weight": torch.zeros(6, dtype=torch.bool)}),
    ]
    assert torch.equal(trained(model, penalties=penalties).weights["bn1.weight"], before)


def test_names_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TrainError, match=r"'bn9\.weight', which is no parameter"):
        trained(penalties=[GammaL1(names=("bn9.weight",), coefficient=1.0)])
    with pytest.raises(TrainError, match=r"'conv1\.bias' is \(5,\), the parameter \(6,\)"):
        trained(penalties=[growing({"conv1.bias": torch.zeros(5, dtype=torch.bool)})])
    with pytest.raises(TrainError, match=r"'conv1\.bias' is torch\.float32, not bool"):
        growing({"conv1.bias": torch.zeros(6)})


@pytest.mark.parametrize("name", ["delta", "interval", "limit"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(TrainError, match=f"{name} is 0"):
        growing({}, **{name: 0})


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(TrainError, match=r"gamma_l1 is -0\.1"):
        GammaL1(names=(), coefficient=-0.1)


def test_a_price_scales_the_pull_and_its_coefficient_rises_from_zero() -> None:
    penalty = PricedGammaL1(price_by_name={"0.weight": 2.0, "1.weight": 0.5}, limit=0.4, ramp_steps=4)
    assert [penalty.coefficient(step) for step in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -0.1]))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradients(dict(model.named_parameters()), 2)
    assert model[0].weight.grad.tolist() == pytest.approx([0.4, -0.4])
    assert model[1].weight.grad.tolist() == pytest.approx([0.1])
    assert model[0].bias.grad.abs().sum() + model[1].bias.grad.abs().sum() == 0


def test_a_part_of_a_search_goes_on_with_the_rise() -> None:
    whole = PricedGammaL1(price_by_name={}, limit=1.0, ramp_steps=10)
    part = PricedGammaL1(price_by_name={}, limit=1.0, ramp_steps=10, first_step=6)
    assert [part.coefficient(step) for step in range(5)] == [whole.coefficient(step + 6) for step in range(5)]
    assert PricedGammaL1(price_by_name={}, limit=0.3).coefficient(0) == 0.3


def test_prices_have_the_mean_one_over_all_channels() -> None:
    prices = mean_prices({"a": 9.0, "b": 49.0}, {"a": 30, "b": 10})
    assert prices["b"] / prices["a"] == pytest.approx(49 / 9)
    assert (30 * prices["a"] + 10 * prices["b"]) / 40 == pytest.approx(1)
    with pytest.raises(TrainError, match="the channels of 1 norms cost 0"):
        mean_prices({"a": 0.0}, {"a": 3})
    with pytest.raises(TrainError, match=r"price of a is -0\.5"):
        PricedGammaL1(price_by_name={"a": -0.5}, limit=1.0)


def test_a_price_of_one_without_a_rise_is_plain_slimming() -> None:
    plain = trained(penalties=[GammaL1(names=("bn1.weight",), coefficient=0.1)]).weights
    priced = trained(penalties=[PricedGammaL1(price_by_name={"bn1.weight": 1.0}, limit=0.1)]).weights
    assert equal(plain, priced)
