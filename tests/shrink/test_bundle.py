from __future__ import annotations

import json

import pytest
import torch
from pruning_laws import with_zeros

from ticket_export.errors import ShrinkError
from ticket_export.models.load import build
from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.exact import shrink


@pytest.fixture
def bundle(residual_net, images, tmp_path):
    shrunk = shrink(with_zeros(residual_net, "both"), images)
    save_bundle(shrunk, tmp_path / "bundle", origin={"builder": "tests:residual"})
    return shrunk, tmp_path / "bundle"


def test_a_bundle_loads_into_a_fresh_dense_model_bit_for_bit(bundle, residual_net, images):
    shrunk, folder = bundle
    dense = type(residual_net)()
    small = load_bundle(folder, dense).eval()
    with torch.no_grad():
        assert torch.equal(small(images), shrunk.model(images))
    assert sum(p.numel() for p in dense.parameters()) == shrunk.report.params_dense
    assert not list(folder.glob("*.partial"))


def test_the_manifest_says_what_the_network_was(bundle):
    shrunk, folder = bundle
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["origin"] == {"builder": "tests:residual"}
    assert manifest["report"]["params"] == shrunk.report.params


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_damaged_file_is_refused_by_its_hash(bundle, residual_net, name):
    _, folder = bundle
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ShrinkError, match=f"{name} is damaged: sha256"):
        load_bundle(folder, residual_net)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "manifest.json"])
def test_a_missing_file_is_named(bundle, residual_net, name):
    _, folder = bundle
    (folder / name).unlink()
    with pytest.raises(ShrinkError, match=name):
        load_bundle(folder, residual_net)


def test_another_network_is_refused(bundle, plain_net):
    _, folder = bundle
    with pytest.raises(ShrinkError, match=r"which Plain does not have|whose shape is"):
        load_bundle(folder, plain_net)


def test_the_same_class_with_another_width_is_refused(tmp_path):
    net = with_zeros(build("zoo:resnet20", num_classes=10, image_shape=(1, 8, 8)), "both")
    save_bundle(shrink(net, torch.randn(2, 1, 8, 8)), tmp_path)
    with pytest.raises(ShrinkError, match=r"does not fit CifarResNet: linear\.bias: \(10,\) in the bundle"):
        load_bundle(tmp_path, build("zoo:resnet20", num_classes=12, image_shape=(1, 8, 8)))
