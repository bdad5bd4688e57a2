from __future__ import annotations

import pytest
import torch
from torch import nn

from ticket_export.errors import ShrinkError
from ticket_export.find.imp import imp_mask, prunable_weights
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.zoo import zoo_network


def network(name: str) -> nn.Module:
    return zoo_network(name, {}, num_classes=10, image_shape=(3, 32, 32))


@pytest.mark.parametrize("name", sorted(ZOO_FACTS))
def test_the_facts_weights_alone_stay_whole(name: str) -> None:
    model = network(name)
    names = prunable_weights(model, unpruned=ZOO_FACTS[name].unpruned)
    matrices = {key for key, value in model.named_parameters() if value.ndim > 1}
    assert set(names) == matrices - set(ZOO_FACTS[name].unpruned)


def test_the_residual_networks_prunable_share_is_the_papers() -> None:
    # 0.27M of ResNet-20: all but the stem (432), the classifier (640) and the norms; 2,560 are shortcuts
    weights = network("resnet20").state_dict()
    names = prunable_weights(network("resnet20"), unpruned=ZOO_FACTS["resnet20"].unpruned)
    assert sum(weights[name].numel() for name in names) == 270_896 - 432 - 640


def test_without_facts_the_first_convolution_and_the_last_linear_layer_stay_whole(
    residual_net: nn.Module,
) -> None:
    names = prunable_weights(residual_net)
    assert names == (*(f"conv{i}.weight" for i in (1, 2, 3, 4)), "project.weight")
    assert prunable_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))) == ("0.weight",)
    assert prunable_weights(nn.Linear(2, 3)) == ("weight",)


def test_a_shared_weight_is_named_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    assert prunable_weights(model) == ("0.weight",)


def test_each_round_drops_a_share_of_what_the_round_before_kept() -> None:
    weights = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0)), "free": torch.ones(5)}
    mask, densities = None, []
    for level in (1, 2, 3):
        before = mask
        mask = imp_mask(weights, ["w"], level=level, drop_fraction=0.2, previous=mask)
        densities.append(mask.element_density)
        if before is not None:
            assert not (mask.keep_by_parameter["w"] & ~before.keep_by_parameter["w"]).any()
    assert densities == [0.8, 0.64, 0.512]
    assert list(mask.keep_by_parameter) == ["w"] if mask else False


def test_what_does_not_fit_is_refused() -> None:
    weights = {"w": torch.ones(4)}
    with pytest.raises(ShrinkError, match="level 0"):
        imp_mask(weights, ["w"], level=0, drop_fraction=0.2)
    with pytest.raises(ShrinkError, match=r"drop_fraction of 1\.0"):
        imp_mask(weights, ["w"], level=1, drop_fraction=1.0)
    with pytest.raises(ShrinkError, match="level 2 without"):
        imp_mask(weights, ["w"], level=2, drop_fraction=0.2)
    with pytest.raises(ShrinkError, match=r"'conv9\.weight'"):
        prunable_weights(network("resnet20"), unpruned=["conv9.weight"])
    with pytest.raises(ShrinkError, match="ReLU has no weights"):
        prunable_weights(nn.ReLU())
