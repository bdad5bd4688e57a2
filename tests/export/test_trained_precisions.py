"""The trained CIFAR-10 ResNet-20 in fp32, fp16 and INT8 on all 10,000 test images."""

# N images, C channels, H W pixels, K classes
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ticket_export.data.augment import normalise
from ticket_export.data.sources import Images, load_images
from ticket_export.export.onnx import onnx_from_module
from ticket_export.export.precision import fp16_from_onnx
from ticket_export.export.quantize import int8_from_onnx
from ticket_export.models.load import build
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.store.machine import machine_facts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def cifar10(data_folder: Path) -> Images:
    return load_images("arrays", data_folder / "cifar10.npz", holdout_fraction=0.1, seed=0)


@pytest.fixture(scope="module")
def fp32(data_folder: Path, cifar10: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = data_folder / "resnet20_cifar10.npz"
    if not weights.is_file():
        pytest.skip(f"{weights} is missing")
    net = build("zoo:resnet20", {"shortcut": "pad"}, weights, image_shape=(3, 32, 32)).eval()
    folder = tmp_path_factory.mktemp("trained")
    return onnx_from_module(net, folder / "fp32.onnx", normalise(cifar10.val_x[:8], MEAN, STD))


def predicted(path: Path, x_NCHW: torch.Tensor) -> np.ndarray:
    found = []
    with OrtCpuRunner(path) as runner:
        for x in torch.split(x_NCHW, 200):
            logits_NK = runner.infer({"input": normalise(x, MEAN, STD).numpy()})["logits"]
            found.append(np.asarray(logits_NK).argmax(1))
    return np.concatenate(found)


@pytest.mark.data
def test_fp16_and_int8_keep_the_accuracy_of_fp32(fp32: Path, cifar10: Images) -> None:
    calibration = {"input": normalise(cifar10.train_x[:256], MEAN, STD).numpy()}
    judged = {"input": normalise(cifar10.val_x[:1000], MEAN, STD).numpy()}
    half = fp16_from_onnx(
        fp32, fp32.with_name("fp16.onnx"), check_inputs={"input": calibration["input"][:16]}
    )
    assert half.fp32_layers == ()
    assert half.precision_rel_error < 5e-3
    labels_N = cifar10.test_y.numpy()
    reference_N = predicted(fp32, cifar10.test_x)
    accuracy = float((reference_N == labels_N).mean())
    assert accuracy == pytest.approx(0.9173, abs=0.0005)
    half_N = predicted(half.path, cifar10.test_x)
    assert int((half_N != reference_N).sum()) <= 10
    assert abs(float((half_N == labels_N).mean()) - accuracy) <= 0.0005
    # Without VNNI an x86 CPU adds products of uint8 and int8 in 16 bits, which saturate
    isa = machine_facts()["isa"]
    saturates = "avx2" in isa and not any("vnni" in name for name in isa)
    for activations in ("int8",) if saturates else ("uint8", "int8"):
        eight = int8_from_onnx(
            fp32,
            fp32.with_name(f"{activations}.onnx"),
            calibration,
            judge_inputs=judged,
            labels=cifar10.val_y[:1000].numpy(),
            activations=activations,
        )
        assert eight.fp32_layers == ()
        assert eight.top1_agreement is not None
        assert eight.top1_agreement >= 0.97
        # the symmetric form runs in fp32 here, so a part of the images must do
        num_images, drop = (10_000, 0.004) if activations == "uint8" else (2_000, 0.01)
        eight_N = predicted(eight.path, cifar10.test_x[:num_images])
        assert float((eight_N == reference_N[:num_images]).mean()) >= 0.98
        right = (eight_N == labels_N[:num_images]).mean() - (reference_N == labels_N)[:num_images].mean()
        assert abs(float(right)) <= drop
