"""Seconds that an ONNX export takes, checks included."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from costs.line import CIFAR, DIGITS, Line, Network, timed

from ticket_export.export.onnx import onnx_from_module

EXPORTED = (
    Network("zoo:resnet20", DIGITS, {"shortcut": "pad"}),
    Network("zoo:resnet20", CIFAR, {"shortcut": "projection"}),
    Network("zoo:resnet56", CIFAR, {"shortcut": "projection"}),
    Network("zoo:resnet18", CIFAR, {}),
)


def export_costs(num_rounds: int) -> list[Line]:
    """Export each network to ONNX, checks and parity at three batches included."""
    torch.set_num_threads(1)
    return [_export_line(network, num_rounds) for network in EXPORTED]


def _export_line(network: Network, num_rounds: int) -> Line:
    model, x_NCHW = network.built().eval(), network.examples()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        timing = timed(lambda: onnx_from_module(model, path, x_NCHW), num_rounds)
        num_bytes = path.stat().st_size
    shown = {"network": network.name, **timing.shown, "file, MB": f"{num_bytes / 1e6:.2f}"}
    return Line(shown=shown, raw={"network": network.name, **asdict(timing), "num_bytes": num_bytes})
