"""A training from streamed images is the training from the same images in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images, load_images, stream_images
from ticket_export.train.evaluate import evaluate
from ticket_export.train.loop import TrainResult, train
from ticket_export.train.settings import TrainSettings

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SETTINGS = TrainSettings(epochs=3, batch=8, lr=0.05, momentum=0.9)
AUGMENT = Augment(mean=MEAN, std=STD, pad_crop=1, flip=True, rotation=10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(16):
                pixels = torch.randint(100 * label, 156 + 100 * label, (6, 6, 3), generator=generator)
                Image.fromarray(pixels.byte().numpy()).save(root / split / name / f"{index:02}.png")
    return root


def both(folder: Path) -> tuple[Images, Images]:
    in_memory = load_images("folder", folder, holdout_fraction=0.25, seed=0)
    return in_memory, stream_images("folder", folder, holdout_fraction=0.25, seed=0, num_workers=2)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 2)
        )


def trained(images: Images, folder: Path | None = None, epochs: int = 3) -> TrainResult:
    return train(
        net(),
        images,
        augment=AUGMENT,
        settings=SETTINGS,
        seed_path=(0, "replicate", 0),
        checkpoint_folder=folder,
        checkpoint_interval_s=0.0,
        on_event=_stop_after(epochs),
    )


class Stopped(Exception):  # noqa: N818 - it stops a training as Ctrl-C would
    pass


def _stop_after(epochs: int) -> object:
    def on_event(event: object) -> None:
        if epochs < 3 and event["epoch"] > epochs:  # type: ignore[index]
            raise Stopped

    return on_event


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_weights_and_history_are_those_of_images_in_memory(folder: Path) -> None:
    in_memory, streamed = (trained(images) for images in both(folder))
    assert_same(in_memory.weights, streamed.weights)
    for left, right in zip(in_memory.history, streamed.history, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert left[name] == right[name]
    assert streamed.val_accuracy > 0.5


def test_a_streamed_training_that_was_stopped_ends_bit_equal(folder: Path, tmp_path: Path) -> None:
    _, streamed = both(folder)
    with pytest.raises(Stopped):
        trained(streamed, tmp_path, epochs=1)
    assert (tmp_path / "checkpoint.safetensors").is_file()
    assert_same(trained(streamed, tmp_path).weights, trained(streamed).weights)


def test_accuracy_on_streamed_images_is_that_on_images_in_memory(folder: Path) -> None:
    in_memory, streamed = both(folder)
    model = net()
    model.load_state_dict(trained(in_memory).weights)
    told = [
        evaluate(copy.deepcopy(model), images.test_x, images.test_y, mean=MEAN, std=STD, batch=10)
        for images in (in_memory, streamed)
    ]
    assert told[0] == told[1] > 0.5
