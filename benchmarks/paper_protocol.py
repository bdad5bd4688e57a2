"""One ticket, four clocks: convolutions alone at 127x127 on one cold launch, and what users wait for.

Run:  python benchmarks/paper_protocol.py --out FOLDER [--network resnet18-cifar] [--device cuda:0] ...

Structure-LTH (Chen et al. 2022, arXiv 2202.04736, appendix A1 and the released code) reports the time saving
of tickets from convolutions alone, each fed the same image size whatever its depth (127x127; 64x64 for
ResNet-50), fp32, batch 64, one cold launch, norms and activations left out. Here the same ticket is timed
four ways:

equal-cold     as there: every convolution at one size, its first launch in a fresh process
equal-warm     the same shapes, warm, dense and ticket in turns
true-warm      convolutions alone at the sizes they have in the network, warm, in turns
network-warm   the whole network at its own size, warm, in turns

saving = 1 - t / t_dense. Each cold process gives one number for all convolutions; the range over the
processes is told. The folder receives `paper_protocol_<machine>_<yyyy-mm>.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_files import write_results
from speedup.networks import NETWORKS, images
from subjects import Subject, prepare
from tabulate import tabulate
from torch import Tensor, nn

from ticket_export.measure.speedup import mean_interval
from ticket_export.store.machine import machine_facts

# N images, C channels, H W pixels
PAIR = ("dense", "ticket-r16")
NUM_WARM_UP = 3


def convolutions(model: nn.Module, x_NCHW: Tensor) -> list[tuple[nn.Conv2d, tuple[int, int]]]:
    """Return every convolution with the height and width of its input, in the order in which they run."""
    found: list[tuple[nn.Conv2d, tuple[int, int]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, (inputs[0].shape[2], inputs[0].shape[3])))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(x_NCHW[:1])
    for hook in hooks:
        hook.remove()
    return found


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call: by device events on a GPU, by the host's clock on a CPU."""
    if device.type != "cuda":
        start_s = time.perf_counter()
        call()
        return time.perf_counter() - start_s
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def seconds_of_all(
    layers: Sequence[tuple[nn.Conv2d, tuple[int, int]]], batch: int, device: torch.device, num_warm_up: int
) -> float:
    """Return the seconds of one pass over the convolutions, each alone on inputs that lie on the device."""
    total_s = 0.0
    for layer, (height, width) in layers:
        x_NCHW = torch.randn(batch, layer.in_channels, height, width, device=device)
        for _ in range(num_warm_up):
            layer(x_NCHW)
        total_s += seconds(lambda layer=layer, x_NCHW=x_NCHW: layer(x_NCHW), device)
    return total_s


def cold(subject: Subject, size: int, batch: int, device: torch.device) -> float:
    """Return the seconds of the first launches; nothing has run on the device before but the copies."""
    layers = [(layer.to(device), (size, size)) for layer, _ in _layers_of(subject)]
    return seconds_of_all(layers, batch, device, num_warm_up=0)


def _layers_of(subject: Subject) -> list[tuple[nn.Conv2d, tuple[int, int]]]:
    return convolutions(subject.module(), images(subject.network, 1)[0])


def warm_rounds(calls: dict[str, Callable[[], float]], num_rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call by subject, all in every round, in random order, after one of each."""
    order = random.Random(0)
    found_s: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(num_rounds):
        for name in order.sample(sorted(calls), len(calls)):
            found_s[name].append(calls[name]())
    return found_s


def summary(dense_s: Sequence[float], ticket_s: Sequence[float]) -> dict[str, float]:
    """Return the speedup with its 95 % t interval over the rounds, and the saving."""
    center, half_width = mean_interval(np.log(np.array(dense_s)) - np.log(np.array(ticket_s)))
    ratio = math.exp(center)
    return {
        "ratio": ratio,
        "low": math.exp(center - half_width),
        "high": math.exp(center + half_width),
        "saving": 1 - 1 / ratio,
    }


def measured(arguments: argparse.Namespace) -> dict[str, Any]:  # Any: JSON
    """Return the seconds of all four ways."""
    subjects = prepare(arguments.cache, arguments.network, arguments.density, names=PAIR)
    found_s: dict[str, dict[str, list[float]]] = {"equal-cold": {name: [] for name in PAIR}}
    for _ in range(arguments.processes):  # before this process takes the device
        for name in PAIR:
            found_s["equal-cold"][name].append(_cold_in_a_process(name))
    device = torch.device(arguments.device)
    ways: dict[str, dict[str, Callable[[], float]]] = {"equal-warm": {}, "true-warm": {}, "network-warm": {}}
    for name, subject in subjects.items():
        model = subject.module().to(device)
        x_NCHW = images(subject.network, 1)[0].expand(arguments.batch, -1, -1, -1).contiguous().to(device)
        layers = convolutions(model, x_NCHW)
        at_one_size = [(layer, (arguments.size, arguments.size)) for layer, _ in layers]
        ways["equal-warm"][name] = _over(at_one_size, arguments.batch, device)
        ways["true-warm"][name] = _over(layers, arguments.batch, device)
        ways["network-warm"][name] = _whole(model, x_NCHW, device)
    with torch.inference_mode():
        for way, calls in ways.items():
            found_s[way] = warm_rounds(calls, arguments.rounds)
    return {"seconds": found_s, "macs_ratio": subjects[PAIR[1]].facts["macs_ratio"]}


def _over(
    layers: Sequence[tuple[nn.Conv2d, tuple[int, int]]], batch: int, device: torch.device
) -> Callable[[], float]:
    return lambda: seconds_of_all(layers, batch, device, num_warm_up=NUM_WARM_UP)


def _whole(model: nn.Module, x_NCHW: Tensor, device: torch.device) -> Callable[[], float]:
    def call() -> float:
        for _ in range(NUM_WARM_UP):
            model(x_NCHW)
        return seconds(lambda: model(x_NCHW), device)

    return call


def _cold_in_a_process(name: str) -> float:
    told = subprocess.run(
        [sys.executable, *sys.argv, "--cold", name], capture_output=True, text=True, check=False
    )
    if told.returncode != 0:
        raise RuntimeError(f"the cold process of {name} failed: {told.stderr.strip()[-400:]}")
    return float(json.loads(told.stdout.splitlines()[-1]))


def written(found: dict[str, Any], arguments: argparse.Namespace) -> Path:  # Any: JSON
    """Write both files and return the path of the page."""
    facts = machine_facts()
    device = torch.device(arguments.device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else facts["cpu"]
    rows = []
    for way, by_name in found["seconds"].items():
        dense_s, ticket_s = by_name["dense"], by_name[PAIR[1]]
        if len(dense_s) < 2:
            continue
        told = summary(dense_s, ticket_s)
        single = [1 - t / d for d, t in zip(dense_s, ticket_s, strict=True)]
        rows.append(
            {
                "way": way,
                "dense, ms": f"{1000 * float(np.median(dense_s)):.3g}",
                f"{PAIR[1]}, ms": f"{1000 * float(np.median(ticket_s)):.3g}",
                "time saved": f"{told['saving']:.1%}",
                "single runs say": f"{min(single):.1%} to {max(single):.1%}",
                "speedup (95 %)": f"{told['ratio']:.2f}x ({told['low']:.2f}-{told['high']:.2f})",
                "n": str(len(dense_s)),
            }
        )
    command = (
        f"python benchmarks/paper_protocol.py --out FOLDER --network {arguments.network} --device "
        f"{arguments.device} --batch {arguments.batch} --size {arguments.size} --rounds {arguments.rounds} "
        f"--processes {arguments.processes} --threads {arguments.threads}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    tf32 = f" (TF32 in convolutions: {torch.backends.cudnn.allow_tf32})" if device.type == "cuda" else ""
    page = (
        f"# One ticket, four clocks: {arguments.network}\n\n`{command}`\n\n{place}; {versions}; fp32{tf32}, "
        f"batch {arguments.batch}. The ticket has {found['macs_ratio']:.2f}x fewer MACs. Weights are random."
        f"\n\n{tabulate(rows, headers='keys', tablefmt='github', disable_numparse=True)}\n\n"
        f"equal-cold: convolutions alone, every input {arguments.size}x{arguments.size}, the first launch in "
        "each of n fresh processes per network (the protocol of Structure-LTH takes one). equal-warm: the "
        f"same shapes after {NUM_WARM_UP} calls. true-warm: convolutions alone at the sizes they have in the "
        "network. network-warm: the whole network. Warm ones run in n rounds, both networks in every round "
        "in random order. The interval is a t interval over the n log ratios; cold processes are paired in "
        "the order they ran. With one input size everywhere a layer costs as many MACs as it has weights, so "
        "deep layers weigh more than they do in the network.\n"
    )
    document = {"schema": 1, "command": command, "machine": facts, "place": place, **found}
    theme = f"paper_protocol_{arguments.network}"
    return write_results(arguments.out, theme, arguments.machine, page, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--cache", type=Path, default=Path("out/subjects"), help="folder of built networks")
    parser.add_argument("--machine", default="local", help="its name in the names of the files")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnet18-cifar")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=127, help="of every input in the equal ways")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=3, help="cold ones per network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cold", choices=PAIR, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds is {arguments.rounds}; an interval needs at least 2")
    torch.set_num_threads(arguments.threads)
    if arguments.cold is not None:
        subject = prepare(arguments.cache, arguments.network, arguments.density, names=(arguments.cold,))
        with torch.inference_mode():
            device = torch.device(arguments.device)
            print(json.dumps(cold(subject[arguments.cold], arguments.size, arguments.batch, device)))
        return
    print(written(measured(arguments), arguments))


if __name__ == "__main__":
    main()
