"""Where the time goes on a real GPU, by each runtime's own profiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ticket_export as te
from ticket_export.errors import MeasureError, MissingDependency
from ticket_export.measure.layer_pairs import TimedNetwork, timed_network
from ticket_export.measure.onnx_costs import costs_from_onnx
from ticket_export.models.load import build
from ticket_export.runtime.layers import profile_layers
from ticket_export.runtime.torch_layers import costs_of_module

IMAGES = np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)


def require_most_placed(found: TimedNetwork) -> None:
    """Pass when nearly every convolution was found and together they take most of the time."""
    convolutions_s = sum(layer.seconds for layer in found.layers)
    assert len(found.missing) <= 0.1 * (len(found.layers) + len(found.missing))
    assert all(layer.seconds > 0.0 for layer in found.layers)
    assert convolutions_s > 0.5 * (found.whole_s - found.between_s)


def test_kernels_of_torch_are_placed_in_the_modules_that_start_them() -> None:
    network = build("zoo:resnet20", num_classes=10, image_shape=(3, 32, 32)).eval()
    profile = profile_layers({"net": network}, "torch", [IMAGES], device="cuda:0")["net"]
    assert profile.between_s is None
    found = timed_network(profile, costs_of_module(network, [IMAGES]))
    assert found.missing == ()
    assert all(layer.seconds > 0.0 for layer in found.layers)


@pytest.mark.parametrize("runtime", ["ort-cuda", "tensorrt"])
def test_kernels_of_a_file_are_placed_in_its_layers(runtime: str, tmp_path: Path) -> None:
    network = build("zoo:resnet20", num_classes=10, image_shape=(3, 32, 32)).eval()
    path = te.onnx_from_module(network, tmp_path / "net.onnx", torch.from_numpy(IMAGES))
    try:
        profile = profile_layers({"net": path}, runtime, [IMAGES], device="cuda:0")["net"]
    except MissingDependency as error:
        pytest.skip(str(error))
    except MeasureError as error:
        # released wheels of ONNX Runtime may be built without CUDA's profiler; then it must say so
        if runtime != "ort-cuda" or "holds no kernel times" not in error.message:
            raise
        return
    require_most_placed(timed_network(profile, costs_from_onnx(path, len(IMAGES))))
