from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.train.evaluate import evaluate
from ticket_export.train.loop import Event, TrainResult, train
from ticket_export.train.settings import TrainSettings

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
AUGMENT = Augment(mean=MEAN, std=STD, pad_crop=1, flip=True, cutout=3)


def images() -> Images:
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randint(0, 256, (112, 3, 8, 8), dtype=torch.uint8, generator=generator)
    y_N = torch.arange(112) % 4
    return Images(
        train_x=x_NCHW[:64],
        train_y=y_N[:64],
        val_x=x_NCHW[64:80],
        val_y=y_N[64:80],
        test_x=x_NCHW[80:],
        test_y=y_N[80:],
        num_classes=4,
    )


def trained(
    model: nn.Module,
    device: torch.device | str,
    *,
    precision: str = "fp32",
    folder: Path | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> TrainResult:
    settings = TrainSettings(
        epochs=2, batch=16, lr=0.02, momentum=0.9, weight_decay=1e-4, precision=precision, channels_last=True
    )
    return train(
        model,
        images(),
        augment=AUGMENT,
        settings=settings,
        seed_path=(0, "gpu"),
        device=device,
        checkpoint_folder=folder,
        checkpoint_interval_s=0,
        on_event=on_event,
    )


def largest_difference(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest max|a - b| / max|b| over all tensors."""
    assert weights.keys() == expected.keys()
    pairs = [(weights[name].double(), tensor.double()) for name, tensor in expected.items()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.usefixtures("full_fp32")
def test_eight_steps_on_the_gpu_give_the_weights_of_the_cpu(
    residual_net: nn.Module, device: torch.device
) -> None:
    start = {"conv1.weight": residual_net.state_dict()["conv1.weight"].clone()}
    on_cpu = trained(copy.deepcopy(residual_net), "cpu")
    on_gpu = trained(residual_net, device)
    assert next(residual_net.parameters()).device.type == device.type
    assert all(tensor.device.type == "cpu" for tensor in on_gpu.weights.values())
    assert largest_difference(on_gpu.weights, on_cpu.weights) < 1e-3
    moved = largest_difference(start, {"conv1.weight": on_cpu.weights["conv1.weight"]})
    assert moved > 1e-2  # ten times the tolerance: a GPU that learns nothing is seen
    for ours, theirs in zip(on_gpu.history, on_cpu.history, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_leaves_finite_losses_and_fp32_weights(
    residual_net: nn.Module, device: torch.device, precision: str
) -> None:
    result = trained(residual_net, device, precision=precision)
    losses = [record[name] for record in result.history for name in ("train_loss", "val_loss")]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    floating = [tensor for tensor in result.weights.values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in floating)


class KilledError(Exception):
    pass


@pytest.mark.usefixtures("full_fp32")
def test_a_training_killed_on_the_gpu_goes_on_where_it_was(
    residual_net: nn.Module, device: torch.device, tmp_path: Path
) -> None:
    whole = trained(copy.deepcopy(residual_net), device)
    ended: list[object] = []

    def note(event: Event) -> None:
        if float(str(event["epoch"])).is_integer():  # a slow epoch tells how far it is
            ended.append(event["epoch"])

    def kill(event: Event) -> None:
        note(event)
        if event["epoch"] == 2.0:
            raise KilledError

    with pytest.raises(KilledError):
        trained(copy.deepcopy(residual_net), device, folder=tmp_path, on_event=kill)
    resumed = trained(copy.deepcopy(residual_net), device, folder=tmp_path, on_event=note)
    assert ended == [1.0, 2.0, 2.0]  # the second epoch was not in the checkpoint, the first was
    assert largest_difference(resumed.weights, whole.weights) < 1e-3


@pytest.mark.usefixtures("full_fp32")
def test_evaluating_on_the_gpu_gives_the_accuracy_of_the_cpu(
    residual_net: nn.Module, device: torch.device
) -> None:
    data = images()
    on_cpu = evaluate(copy.deepcopy(residual_net), data.test_x, data.test_y, mean=MEAN, std=STD, batch=10)
    on_gpu = evaluate(residual_net, data.test_x, data.test_y, mean=MEAN, std=STD, batch=10, device=device)
    assert on_gpu == on_cpu
    assert next(residual_net.parameters()).device.type == device.type
    assert data.test_x.device.type == "cpu"
