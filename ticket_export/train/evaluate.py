"""Accuracy of a network or of an exported file on labelled images."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ticket_export.data.batches import in_order
from ticket_export.data.streamed import StreamedImages
from ticket_export.errors import DataError, TrainError

if TYPE_CHECKING:
    from ticket_export.runtime.runner import Runner


def evaluate(
    model_or_runner: nn.Module | Runner,
    images: Tensor | StreamedImages,
    labels: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 256,
    device: torch.device | str | None = None,
) -> float:
    """Return the fraction of images whose highest logit is at their label, in [0, 1].

    Args:
        model_or_runner: a network [N, C, H, W] -> [N, K], evaluated in eval mode and left in the modes it was
            in; or a Runner with one input and one output.
        images: [N, C, H, W]. uint8 images, streamed or not, become `(x / 255 - mean) / std`; floating ones
            are taken as they are.
        labels: int64 [N].
        mean: per channel, for uint8 images; None = zeros.
        std: per channel, for uint8 images; None = ones.
        batch: images per call.
        device: where a network is moved to and run; None = where it is. A Runner brings its own.

    Raises:
        DataError: no images, unequal numbers of images and labels, or a mean for images that are floating
            already.
        TrainError: the output is not [N, K].
    """
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(f"{len(images)} images and {len(labels)} labels to evaluate on")
    dtype = images.dtype if isinstance(images, Tensor) else torch.uint8
    if dtype.is_floating_point and (mean is not None or std is not None):
        raise DataError(f"images are {dtype}, so mean and std would be applied twice", hint="leave them out")
    channels = images.shape[1]
    mean = (0.0,) * channels if mean is None else mean
    std = (1.0,) * channels if std is None else std
    inputs = in_order(images, labels, mean=mean, std=std, batch=batch)
    if isinstance(model_or_runner, nn.Module):
        return _evaluate_module(model_or_runner, inputs, device) / len(labels)
    return _evaluate_runner(model_or_runner, inputs) / len(labels)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, without gradients, and each back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _evaluate_module(
    model: nn.Module, inputs: Iterator[tuple[Tensor, Tensor]], device: torch.device | str | None
) -> int:
    if device is not None:
        model.to(device)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    num_correct = torch.zeros((), dtype=torch.int64, device=like.device)
    with evaluating(model):
        for x_NCHW, y_N in inputs:
            logits_NK = model(x_NCHW.to(like))
            num_correct += _num_correct(logits_NK, y_N.to(like.device))
    return int(num_correct)


def _evaluate_runner(runner: Runner, inputs: Iterator[tuple[Tensor, Tensor]]) -> int:
    names = list(runner.input_specs)
    if len(names) != 1:
        raise TrainError(
            f"{runner.name} has the inputs {names}", hint="only networks with one input are evaluated"
        )
    num_correct = 0
    for x_NCHW, y_N in inputs:
        outputs = runner.infer({names[0]: x_NCHW.cpu().numpy()})
        if len(outputs) != 1:
            raise TrainError(f"{runner.name} has the outputs {list(outputs)}, not the logits alone")
        (logits_NK,) = outputs.values()
        num_correct += int(_num_correct(torch.as_tensor(logits_NK), y_N.cpu()))
    return num_correct


def _num_correct(logits_NK: object, y_N: Tensor) -> Tensor:
    if not isinstance(logits_NK, Tensor) or logits_NK.ndim != 2 or len(logits_NK) != len(y_N):
        shape = tuple(logits_NK.shape) if isinstance(logits_NK, Tensor) else type(logits_NK).__name__
        raise TrainError(f"the network's output is {shape}, not [{len(y_N)}, classes]")
    return (logits_NK.argmax(1) == y_N).sum()
