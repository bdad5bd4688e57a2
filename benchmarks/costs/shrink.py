"""Seconds that a shrink takes, network by network, and where they go."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from costs.line import CIFAR, IMAGENET, Line, Network, timed
from torch import Tensor, nn

from ticket_export.channels.graph import channel_groups
from ticket_export.shrink import exact

SHRUNK = (
    Network("zoo:resnet20", CIFAR, {"shortcut": "projection"}),
    Network("zoo:resnet20", CIFAR, {"shortcut": "pad"}),
    Network("zoo:resnet56", CIFAR, {"shortcut": "projection"}),
    Network("zoo:resnet18", CIFAR, {}),
    Network("zoo:conv6", CIFAR, {}),
    Network("zoo:lenet300_100", (1, 28, 28), {}),
    Network("torchvision:resnet50", IMAGENET, {}),
    Network("torchvision:vgg16_bn", IMAGENET, {}),
    Network("torchvision:mobilenet_v2", IMAGENET, {}),
)

# What `shrink` calls, by what it is for; what no phase names (the costs of both networks, checks) is the rest
PHASES = {
    "trace": ("trace",),
    "decide": ("label", "groups_from_labels", "find_constants", "sinks_of", "decide", "fold_constants"),
    "verify": ("trials_of", "check_equal"),
}


def shrink_costs(num_rounds: int) -> list[Line]:
    """Shrink each network with half of its filters zero and the biases of their norms kept.

    Pruning tools leave networks like that, and it is the dear case: every dead channel emits a constant that
    has to be folded. Preparing a network traces it, so the first call is not the first trace of the process.
    """
    torch.set_num_threads(1)
    if find_spec("torchvision") is None:
        return [
            _shrink_line(network, num_rounds) for network in SHRUNK if "torchvision" not in network.builder
        ]
    schemas = torchvision_schemas()  # they last as long as the reference
    lines = [_shrink_line(network, num_rounds) for network in SHRUNK]
    del schemas
    return lines


def _shrink_line(network: Network, num_rounds: int) -> Line:
    x_NCHW = network.examples()
    model = half_dead(network.built(), x_NCHW)
    reports, phases_s = [], []

    def call() -> None:
        with phase_seconds() as phase_s:
            reports.append(exact.shrink(model, x_NCHW).report)
        phases_s.append(phase_s)

    timing, report = timed(call, num_rounds), reports[0]
    shown = {"network": network.name, "params, M": f"{report.params_dense / 1e6:.2f}", **timing.shown}
    for phase in PHASES:
        shares = [one[phase] / all_s for one, all_s in zip(phases_s, timing.wall_s, strict=True)]
        shown[phase] = f"{100 * statistics.median(shares[1:]):.0f} %"
    shown |= {
        "MACs kept": f"{100 * report.macs / report.macs_dense:.0f} %",
        "folds": str(report.num_folds),
        "carriers": str(report.num_carriers),
        "rel. error": f"{report.rel_error:.1e}",
    }
    return Line(shown=shown, raw={"network": network.name, **asdict(timing), "phases_s": phases_s})


@contextmanager
def phase_seconds() -> Iterator[dict[str, float]]:
    """Yield phase -> seconds that `shrink` spends in it, filled while the block runs."""
    phase_s = dict.fromkeys(PHASES, 0.0)
    before = {name: getattr(exact, name) for names in PHASES.values() for name in names}

    def clocked(phase: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            start_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                phase_s[phase] += time.perf_counter() - start_s

        return run

    for phase, names in PHASES.items():
        for name in names:
            setattr(exact, name, clocked(phase, before[name]))
    try:
        yield phase_s
    finally:
        for name, call in before.items():
            setattr(exact, name, call)


def half_dead(model: nn.Module, x_NCHW: Tensor) -> nn.Module:
    """Return the model in eval mode, norms as if trained, half of the filters of every free group zero."""
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
        norm.momentum = 1.0  # the running statistics become those of the one batch below
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        model.train()(x_NCHW)
        model.eval()
        tensors = model.state_dict()
        for group in channel_groups(model, x_NCHW):
            for member in group.producers if group.pinned is None else ():
                dead = member.indices[group.width // 2 :].flatten()
                tensors[member.tensor].index_fill_(member.axis, dead, 0.0)
    return model


def torchvision_schemas() -> torch.library.Library | None:
    """Declare the two operators torchvision cannot be imported without, unless its library has them.

    PyPI's torchvision is built for CUDA; beside a CPU-only torch its compiled part does not load.
    """
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))  # type: ignore[no-untyped-call]
    except OSError:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        return library
    return None
