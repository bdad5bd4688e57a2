from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from ticket_export.data.sources import load_images
from ticket_export.errors import DataError, TrainError
from ticket_export.models.load import build
from ticket_export.runtime.runner import Runner
from ticket_export.train.evaluate import evaluate


class Brightest(nn.Module):
    """Its logits are the pixels of the first row."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x_NCHW: Tensor) -> Tensor:
        self.shapes.append(tuple(x_NCHW.shape))
        assert not self.norm.training
        return self.norm(x_NCHW)[:, 0, 0]


def row_images(*brightest: int) -> Tensor:
    x = torch.full((len(brightest), 1, 2, 4), 20, dtype=torch.uint8)
    for index, column in enumerate(brightest):
        x[index, 0, 0, column] = 200
    return x


X = row_images(0, 1, 2, 3, 0)
Y = torch.tensor([0, 1, 2, 0, 1])  # three of five


def test_the_accuracy_is_the_share_of_images_whose_highest_logit_is_at_their_label() -> None:
    model = Brightest()
    assert evaluate(model, X, Y, batch=2) == 0.6
    assert model.shapes == [(2, 1, 2, 4), (2, 1, 2, 4), (1, 1, 2, 4)]


def test_the_modules_come_back_in_their_own_modes() -> None:
    model = nn.Sequential(Brightest(), nn.Identity())
    model.train()
    model[1].eval()
    evaluate(model, X, Y)
    assert [module.training for module in model] == [True, False]
    assert int(cast(nn.BatchNorm2d, model[0].norm).num_batches_tracked) == 0


def test_uint8_images_are_normalised_and_floating_ones_taken_as_they_are() -> None:
    dark = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        dark[1].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1).expand(2, 8))
        dark[1].bias.zero_()
    grey = torch.full((1, 1, 2, 4), 100, dtype=torch.uint8)
    zero, one = torch.tensor([0]), torch.tensor([1])
    assert evaluate(dark, grey, zero) == 1.0
    assert evaluate(dark, grey, one, mean=[0.5], std=[0.2]) == 1.0  # 100 / 255 lies below the mean
    assert evaluate(dark, grey / 255 - 0.5, one) == 1.0


def test_a_network_in_float64_is_given_float64() -> None:
    assert evaluate(Brightest().double(), X, Y) == 0.6


@dataclass
class FirstRow:
    """A runner by hand: what Brightest computes, in numpy."""

    name: str = "by-hand"
    input_specs: dict[str, None] = field(default_factory=lambda: {"pixels": None})
    outputs: int = 1

    def infer(self, inputs: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
        assert inputs["pixels"].dtype == np.float32
        return {f"logits{n}": inputs["pixels"][:, 0, 0] for n in range(self.outputs)}


def test_a_runner_is_evaluated_by_its_own_names() -> None:
    assert evaluate(cast(Runner, FirstRow()), X, Y, batch=2, mean=[0.4], std=[0.3]) == 0.6


def test_runners_with_several_inputs_or_outputs_are_refused() -> None:
    two = FirstRow(input_specs={"a": None, "b": None})
    with pytest.raises(TrainError, match=r"\['a', 'b'\]"):
        evaluate(cast(Runner, two), X, Y)
    with pytest.raises(TrainError, match=r"\['logits0', 'logits1'\]"):
        evaluate(cast(Runner, FirstRow(outputs=2)), X, Y)


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(DataError, match="5 images and 4 labels"):
        evaluate(Brightest(), X, Y[:4])
    with pytest.raises(DataError, match="0 images"):
        evaluate(Brightest(), X[:0], Y[:0])
    with pytest.raises(DataError, match="float32"):
        evaluate(Brightest(), X.float(), Y, mean=[0.5])
    with pytest.raises(TrainError, match=r"\(5, 1, 2, 4\), not \[5, classes\]"):
        evaluate(nn.Identity(), X, Y)


def trained_resnet20(data_folder: Path) -> Path:
    name = "resnet20_cifar10.npz"
    named = os.environ.get("TICKET_EXPORT_RESNET20")
    path = Path(named) if named else data_folder / name
    if not path.is_file():
        pytest.skip(f"{path} is missing; TICKET_EXPORT_RESNET20 may name the trained {name}")
    return path


@pytest.mark.data
def test_the_trained_foreign_resnet20_reaches_its_published_accuracy(data_folder: Path) -> None:
    model = build("zoo:resnet20", {"shortcut": "pad"}, trained_resnet20(data_folder), image_shape=(3, 32, 32))
    images = load_images("arrays", data_folder / "cifar10.npz", holdout_fraction=0.1, seed=0)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert evaluate(model, images.test_x, images.test_y, mean=mean, std=std) == pytest.approx(
        0.9173, abs=1e-9
    )
