"""What the training loop costs over a bare loop of the same network on random tensors, step by step.

Run:  python benchmarks/training_overhead.py [--markdown FILE] [--rounds N]

The bare loop feeds one random batch again and again: forward, cross entropy, backward, SGD step, nothing
else. The training loop does what a recipe asks for: a seeded order, pad-crop and flip, normalising, a
schedule, sums of loss and accuracy, validation. Both run in turns, in random order within a round, on one
thread; the ratio is taken per round. Wall time is what a user waits; the thread's CPU time beside it does not
count what a busy neighbour takes.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional

from ticket_export.data.augment import Augment
from ticket_export.data.sources import Images
from ticket_export.models.load import build
from ticket_export.train.loop import train
from ticket_export.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One network, image shape and batch; `num_steps` make an epoch, so many that a call's start is small."""

    name: str
    builder: str
    image_shape: tuple[int, int, int]
    batch: int
    num_steps: int
    precision: str
    pad_crop: int
    flip: bool


CASES = (
    Case(
        name="ResNet-20, CIFAR shape",
        builder="zoo:resnet20",
        image_shape=(3, 32, 32),
        batch=128,
        num_steps=10,
        precision="bf16",
        pad_crop=4,
        flip=True,
    ),
    Case(
        name="ResNet-20, digits shape",
        builder="zoo:resnet20",
        image_shape=(1, 8, 8),
        batch=64,
        num_steps=80,
        precision="fp32",
        pad_crop=1,
        flip=False,
    ),
)


def random_images(case: Case) -> Images:
    generator = torch.Generator().manual_seed(0)

    def part(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randint(0, 256, (num, *case.image_shape), dtype=torch.uint8, generator=generator)
        return x, torch.arange(num) % 10

    num_train = case.batch * case.num_steps
    (train_x, train_y), (val_x, val_y) = part(num_train), part(num_train // 10)
    return Images(
        train_x=train_x, train_y=train_y, val_x=val_x, val_y=val_y, test_x=val_x, test_y=val_y, num_classes=10
    )


def bare_loop(case: Case) -> Callable[[], None]:
    model = network(case).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    x_NCHW = torch.randn(case.batch, *case.image_shape).contiguous(memory_format=torch.channels_last)
    y_N = torch.arange(case.batch) % 10

    def run() -> None:
        for _ in range(case.num_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
                loss = functional.cross_entropy(model(x_NCHW), y_N)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def training_loop(case: Case) -> Callable[[], None]:
    model, images = network(case), random_images(case)
    channels = case.image_shape[0]
    augment = Augment(mean=(0.5,) * channels, std=(0.25,) * channels, pad_crop=case.pad_crop, flip=case.flip)
    settings = TrainSettings(
        epochs=1,
        batch=case.batch,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        precision=case.precision,
        channels_last=True,
    )

    def run() -> None:
        train(model, images, augment=augment, settings=settings, seed_path=(0, "benchmark"))

    return run


def network(case: Case) -> nn.Module:
    return build(case.builder, num_classes=10, image_shape=case.image_shape)


def timed(run: Callable[[], None], num_steps: int) -> tuple[float, float]:
    """Return wall and CPU seconds per step."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - wall_s) / num_steps, (time.process_time() - cpu_s) / num_steps


def measure(case: Case, num_rounds: int) -> dict[str, object]:
    runs = {"bare": bare_loop(case), "loop": training_loop(case)}
    samples: dict[str, list[tuple[float, float]]] = {"bare": [], "loop": []}
    order = random.Random(0)
    for run in runs.values():
        run()
    for _ in range(num_rounds):
        for name in order.sample(sorted(runs), 2):
            samples[name].append(timed(runs[name], case.num_steps))

    def ratio(clock: int) -> str:
        pairs = zip(samples["loop"], samples["bare"], strict=True)
        ratios = sorted(loop[clock] / bare[clock] for loop, bare in pairs)
        return f"{statistics.median(ratios):.3f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"

    def cpu_ms(name: str) -> str:
        return f"{1e3 * statistics.median(cpu_s for _, cpu_s in samples[name]):.2f}"

    return {
        "case": f"{case.name}, batch {case.batch}, {case.precision}",
        "bare, CPU ms/step": cpu_ms("bare"),
        "loop, CPU ms/step": cpu_ms("loop"),
        "loop / bare, CPU": ratio(1),
        "loop / bare, wall": ratio(0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(case, arguments.rounds) for case in CASES]
    table = tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
    note = (
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, channels-last; median of "
        f"{arguments.rounds} interleaved rounds (lowest-highest) of one epoch each. "
        "The loop's time holds its start and the validation of a tenth of the images."
    )
    print(table, note, sep="\n\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(f"{table}\n\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
