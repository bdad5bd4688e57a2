"""What the papers' arithmetic says without training: what remains after IMP and after Refill."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.channels.mask import ElementMask
from ticket_export.find.imp import imp_mask, prunable_weights
from ticket_export.find.refill import refill_rows
from ticket_export.models.facts import ZOO_FACTS
from ticket_export.models.zoo import zoo_network

# Chen et al. 2022 (arXiv 2202.04736), table A3: weights that remain after Refill, rounds 1 to 5, per cent
REFILL_REMAINS = (80.29, 64.49, 51.43, 41.24, 32.97)


@pytest.fixture(scope="module")
def resnet18() -> tuple[dict[str, Tensor], tuple[str, ...], list[ChannelGroup]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = zoo_network("resnet18", {}, num_classes=10, image_shape=(3, 32, 32)).eval()
    names = prunable_weights(model, unpruned=ZOO_FACTS["resnet18"].unpruned)
    return model.state_dict(), names, channel_groups(model, torch.zeros(2, 3, 32, 32))


def element_masks(weights: dict[str, Tensor], names: tuple[str, ...], levels: int) -> list[ElementMask]:
    masks: list[ElementMask] = []
    for level in range(1, levels + 1):
        previous = masks[-1] if masks else None
        masks.append(imp_mask(weights, names, level=level, drop_fraction=0.2, previous=previous))
    return masks


def test_refill_keeps_as_many_weights_of_resnet18_as_the_paper_prints(
    resnet18: tuple[dict[str, Tensor], tuple[str, ...], list[ChannelGroup]],
) -> None:
    weights, names, groups = resnet18
    for level, mask in enumerate(element_masks(weights, names, 5), start=1):
        total = sum(keep.numel() for keep in mask.keep_by_parameter.values())
        assert mask.element_density == pytest.approx(0.8**level, abs=1 / total)
        remains = refill_rows(mask, weights, groups).element_density
        assert remains >= 0.8**level
        assert 100 * remains == pytest.approx(REFILL_REMAINS[level - 1], abs=0.6)


def test_refilled_rows_are_whole_or_empty(
    resnet18: tuple[dict[str, Tensor], tuple[str, ...], list[ChannelGroup]],
) -> None:
    weights, names, groups = resnet18
    [mask] = element_masks(weights, names, 1)
    filled = refill_rows(mask, weights, groups)
    for name, keep in filled.keep_by_parameter.items():
        rows = keep.flatten(1)
        assert torch.equal(rows.all(1), rows.any(1))
        remaining = int(mask.keep_by_parameter[name].sum())
        assert int(rows.any(1).sum()) == -(-remaining * len(rows) // keep.numel())
