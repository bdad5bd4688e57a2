"""Training the small network and training the dense shape with its dropped channels held at zero agree."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ticket_export.channels.graph import ChannelGroup, channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.models.load import build
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.train.loop import train
from ticket_export.train.masked import hold_zero_from_mask
from ticket_export.train.settings import TrainSettings

OPTIMISERS = {
    "sgd": TrainSettings(
        epochs=2, batch=16, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, label_smoothing=0.1
    ),
    "adamw": TrainSettings(epochs=2, batch=16, lr=1e-3, optimizer="adamw", weight_decay=1e-2),
}


def images() -> Images:
    generator = torch.Generator().manual_seed(0)

    def part(num: int) -> tuple[Tensor, Tensor]:
        return torch.randint(0, 256, (num, 1, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(
            num
        ) % 4

    (train_x, train_y), (val_x, val_y), (test_x, test_y) = part(48), part(8), part(8)
    return Images(
        train_x=train_x,
        train_y=train_y,
        val_x=val_x,
        val_y=val_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=4,
    )


def half_mask(groups: list[ChannelGroup]) -> Mask:
    generator = torch.Generator().manual_seed(1)
    return Mask(
        {
            group.name: torch.randperm(group.width, generator=generator) < group.width // 2
            for group in groups
            if group.pinned is None
        }
    )


def network(shortcut: str = "projection") -> tuple[nn.Module, list[ChannelGroup]]:
    args = {"shortcut": shortcut}
    model = build("zoo:resnet20", args, num_classes=4, image_shape=(1, 8, 8), seed=3).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # a fresh beta is zero, and could hide that it trains
                module.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2))
    return model, groups_of(shortcut)


@cache
def groups_of(shortcut: str) -> list[ChannelGroup]:
    model = build("zoo:resnet20", {"shortcut": shortcut}, num_classes=4, image_shape=(1, 8, 8))
    return channel_groups(model.eval(), torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(("optimizer", "shortcut"), [("sgd", "projection"), ("adamw", "pad")])
def test_masked_and_small_training_agree(optimizer: str, shortcut: str) -> None:
    model, groups = network(shortcut)
    mask = half_mask(groups)
    small = small_from_mask(model, groups, mask)
    held = hold_zero_from_mask(model, groups, mask)
    augment, path = Augment(mean=(0.5,), std=(0.25,), pad_crop=1), (0, "replicate", 0)
    results = [
        train(net, images(), augment=augment, settings=OPTIMISERS[optimizer], seed_path=path, hold_zero=hold)
        for net, hold in ((model, held), (small, None))
    ]
    losses = [[record["train_loss"] for record in result.history] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    cut = small_from_mask(model, groups, mask).state_dict()
    trained = small.state_dict()
    for name, value in trained.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    dense = model.state_dict()
    assert all(not dense[name][~keep].any() for name, keep in held.items())


def test_every_norm_parameter_of_a_dropped_channel_is_held() -> None:
    model, groups = network()
    held = hold_zero_from_mask(model, groups, half_mask(groups))
    norms = [name for name, _ in model.named_parameters() if ".bn" in name or name.startswith("bn1")]
    assert set(norms) <= set(held)
    assert all(int(held[name].sum()) == len(held[name]) // 2 for name in norms)
    assert "bn1.running_mean" not in held
