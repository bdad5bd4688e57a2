"""Images per second in training, and what a smaller network saves of a step."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from costs.line import CIFAR, DIGITS, Line
from torch import nn

from ticket_export.channels.costs import count_costs
from ticket_export.channels.graph import channel_groups
from ticket_export.channels.mask import Mask
from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.models.load import build
from ticket_export.shrink.surgery import small_from_mask
from ticket_export.store.machine import num_usable_cores
from ticket_export.train.loop import train
from ticket_export.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One setting of the training loop; an epoch has `num_steps` steps."""

    image_shape: tuple[int, int, int]
    batch: int
    num_steps: int
    precision: str


CASES = (
    Case(image_shape=CIFAR, batch=128, num_steps=10, precision="bf16"),
    Case(image_shape=DIGITS, batch=64, num_steps=80, precision="fp32"),
)


def train_costs(num_rounds: int) -> list[Line]:
    """Train a dense ResNet-20 and two smaller ones in turns, in random order within a round."""
    return [line for case in CASES for line in _train_lines(case, 1, num_rounds)]


def parallel_train_costs(num_rounds: int) -> list[Line]:
    """Do the same on all cores. Beside other work this says little: threads wait for the slowest of them."""
    return [line for case in CASES for line in _train_lines(case, num_usable_cores(), num_rounds)]


def _train_lines(case: Case, threads: int, num_rounds: int) -> list[Line]:
    torch.set_num_threads(threads)
    models = subjects(case)
    samples: dict[str, list[float]] = {name: [] for name in models}
    order = random.Random(0)
    for _ in range(num_rounds + 1):
        for name in order.sample(sorted(models), len(models)):
            samples[name].append(images_per_s(models[name], case))
    x_NCHW = torch.zeros(1, *case.image_shape)
    macs = {name: count_costs(model, x_NCHW).macs for name, model in models.items()}
    return [_train_line(case, threads, name, samples, macs[name] / macs["dense"]) for name in models]


def _train_line(
    case: Case, threads: int, name: str, samples: Mapping[str, Sequence[float]], mac_density: float
) -> Line:
    speeds = samples[name][1:]
    # one ratio per round: images per second and step time are inverse to one another
    shares = [dense / own for dense, own in zip(samples["dense"][1:], speeds, strict=True)]
    where = f"{'x'.join(map(str, case.image_shape))}, batch {case.batch}, {case.precision}"
    shown = {
        "case": where,
        "threads": str(threads),
        "network": name,
        "images/s": f"{statistics.median(speeds):.0f}",
        "range": f"{min(speeds):.0f}-{max(speeds):.0f}",
        "MACs of dense": f"{100 * mac_density:.0f} %",
        "step time of dense": f"{100 * statistics.median(shares):.0f} %",
        "step time, range": f"{100 * min(shares):.0f}-{100 * max(shares):.0f} %",
    }
    raw = {"case": where, "threads": threads, "network": name, "images_per_s": list(samples[name])}
    return Line(shown=shown, raw=raw | {"mac_density": mac_density, "step_time_over_dense": shares})


def subjects(case: Case) -> dict[str, nn.Module]:
    """Return dense, one with the inner channels of its blocks halved, and one halved everywhere."""
    dense = build("zoo:resnet20", num_classes=10, image_shape=case.image_shape)
    x_NCHW = torch.zeros(2, *case.image_shape)
    groups = channel_groups(dense, x_NCHW)

    def halved(*, inner_alone: bool) -> nn.Module:
        keep = {
            group.name: torch.arange(group.width) < group.width // 2
            for group in groups
            if group.pinned is None and (group.is_inner or not inner_alone)
        }
        return small_from_mask(dense, groups, Mask(keep))

    return {
        "dense": dense,
        "half the inner channels": halved(inner_alone=True),
        "half of all channels": halved(inner_alone=False),
    }


def images_per_s(model: nn.Module, case: Case) -> float:
    """Train for one epoch and return its speed, validation not included."""
    channels = case.image_shape[0]
    augment = Augment(mean=(0.5,) * channels, std=(0.25,) * channels, pad_crop=1, flip=True)
    settings = TrainSettings(
        epochs=1,
        batch=case.batch,
        lr=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        precision=case.precision,
        channels_last=True,
    )
    result = train(model, random_images(case), augment=augment, settings=settings, seed_path=(0, "benchmark"))
    return result.history[0]["images_per_s"]


def random_images(case: Case) -> Images:
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch * case.num_steps, *case.image_shape)
    x_NCHW = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    y_N = torch.arange(len(x_NCHW)) % 10
    few_x, few_y = x_NCHW[:32], y_N[:32]
    return Images(
        train_x=x_NCHW, train_y=y_N, val_x=few_x, val_y=few_y, test_x=few_x, test_y=few_y, num_classes=10
    )
