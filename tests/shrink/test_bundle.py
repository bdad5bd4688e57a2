"""A bundle with its dense builder is a whole network: it loads, trains, compiles and exports."""

from __future__ import annotations

import copy
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning_laws import with_zeros
from torch import Tensor, nn

from ticket_export.errors import ShrinkError
from ticket_export.export.onnx import onnx_from_module
from ticket_export.models.load import build
from ticket_export.runtime.ort import OrtCpuRunner
from ticket_export.shrink.bundle import load_bundle, save_bundle
from ticket_export.shrink.equivalence import relative_error
from ticket_export.shrink.exact import Shrunk, shrink

# all that a serving box has of the project that trained the networks
BUILDERS = '''
import torch
from torch import nn


class ModuleForm(nn.Module):
    """A stem and a residual block."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class GraphForm(nn.Module):
    """Its forward shuffles eight channels in two halves: no slicing of parameters can mend that."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.bn_inner = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = x.reshape(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.linear(torch.relu(self.bn_inner(self.inner(x))).mean((2, 3)))
'''


@dataclass(frozen=True)
class Bundle:
    """A bundle, what was saved in it, and a builder of its dense network."""

    form: str
    folder: Path
    shrunk: Shrunk
    builders: Path

    def dense(self) -> nn.Module:
        """Return a fresh dense network: other weights."""
        spec = importlib.util.spec_from_file_location("serving_builders", self.builders)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        net: nn.Module = module.ModuleForm() if self.form == "module" else module.GraphForm()
        return net

    def loaded(self) -> nn.Module:
        return load_bundle(self.folder, self.dense())


def _images(num_images: int, seed: int = 0) -> Tensor:
    return torch.randn(num_images, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["module", "graph"])
def saved(request, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    builders = folder / "serving_builders.py"
    builders.write_text(BUILDERS, encoding="utf-8")
    empty = Bundle(request.param, folder / "bundle", None, builders)  # type: ignore[arg-type]
    torch.manual_seed(4)
    net = with_zeros(empty.dense(), "rows")
    shrunk = shrink(net, _images(2))
    assert shrunk.report.form == request.param
    assert shrunk.report.params < shrunk.report.params_dense
    save_bundle(shrunk, folder / "bundle", origin={"builder": "serving_builders"})
    return Bundle(request.param, folder / "bundle", shrunk, builders)


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


LOAD_ELSEWHERE = """
import pickle, sys
import numpy as np, torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("ticket_export.train", "ticket_export.pipeline", "accelerate")):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def refuse(*args, **kwargs):
    raise AssertionError("a pickle is read")

sys.meta_path.insert(0, Absent())
pickle.Unpickler = type("Refusing", (pickle.Unpickler,), {{"load": refuse}})  # torch derives from it
pickle.load = pickle.loads = torch.load = refuse
sys.path.insert(0, {builders!r})
torch.set_num_threads({threads})
from serving_builders import {name}
from ticket_export.shrink.bundle import load_bundle

small = load_bundle({folder!r}, {name}()).eval()
with torch.no_grad():
    logits = small(torch.from_numpy(np.load({folder!r} + "/../images.npy")))
np.save({folder!r} + "/../logits_elsewhere.npy", logits.numpy())
print(sorted(name for name in sys.modules if name.startswith(("tests", "ticket_export.train"))))
"""


def test_another_process_without_the_training_code_computes_the_same_bits(saved):
    here = saved.folder.parent
    images = _images(3, seed=1)
    with torch.no_grad():
        np.save(here / "logits.npy", saved.shrunk.model.eval()(images).numpy())
    np.save(here / "images.npy", images.numpy())
    code = LOAD_ELSEWHERE.format(
        builders=str(saved.builders.parent),
        name="ModuleForm" if saved.form == "module" else "GraphForm",
        folder=str(saved.folder),
        threads=torch.get_num_threads(),
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=here)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"
    expected, found = np.load(here / "logits.npy"), np.load(here / "logits_elsewhere.npy")
    assert expected.shape == (3, 4)
    assert expected.tobytes() == found.tobytes()


def test_no_pickle_is_read(saved, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle is read")

    monkeypatch.setattr(pickle, "Unpickler", type("Refusing", (pickle.Unpickler,), {"load": refuse}))
    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(AssertionError, match="a pickle is read"):
        torch.load(saved.folder / "weights.safetensors")
    assert sum(p.numel() for p in saved.loaded().parameters()) == saved.shrunk.report.params


def test_a_bundle_holds_three_files_and_none_is_an_archive_of_pickles(saved):
    paths = sorted(saved.folder.iterdir())
    assert [path.name for path in paths] == ["manifest.json", "plan.json", "weights.safetensors"]
    assert not any(zipfile.is_zipfile(path) for path in paths)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_refused_by_the_hash_of_its_file(saved, tmp_path, name, place):
    folder = tmp_path / "bundle"
    shutil.copytree(saved.folder, folder)
    damaged = bytearray((folder / name).read_bytes())
    damaged[int(place * len(damaged))] ^= 1
    (folder / name).write_bytes(damaged)
    with pytest.raises(ShrinkError, match=f"{name} is damaged: sha256"):
        load_bundle(folder, saved.dense())


def test_a_loaded_network_trains_on(saved):
    small = saved.loaded().train()
    before = copy.deepcopy(small.state_dict())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy(small(_images(8)), torch.arange(8) % 4)
    loss.backward()
    optimizer.step()
    after = small.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == set()  # weights by the step, running statistics and counters by the forward
    again = nn.functional.cross_entropy(small(_images(8)), torch.arange(8) % 4)
    assert again.item() < loss.item()


def test_a_loaded_network_normalises_by_the_batch_in_training_and_by_its_statistics_in_evaluation(saved):
    small = saved.loaded().train()
    images = _images(8)
    with torch.no_grad():
        by_batch = small(images)
        by_statistics = small.eval()(images)
        assert not torch.allclose(by_batch, by_statistics, atol=1e-3)
        assert torch.equal(small(images)[:2], small(images[:2]))  # no image sees another


def test_a_loaded_network_compiles(saved):
    small = saved.loaded().eval()
    torch.compiler.reset()
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for num_images in (2, 5):
            images = _images(num_images)
            assert relative_error(compiled(images), small(images)) <= 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_loaded_network_runs_through_inductor(saved):
    small = saved.loaded().eval()
    torch.compiler.reset()
    compiled = torch.compile(small, fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(_images(2)), small(_images(2))) <= 1e-5


def test_a_loaded_network_exports_with_a_free_batch(saved, tmp_path):
    small = saved.loaded().eval()
    path = onnx_from_module(small, tmp_path / "small.onnx", _images(2))
    with OrtCpuRunner(path) as runner, torch.no_grad():
        (name,) = runner.input_specs
        for num_images in (1, 2, 5):
            images = _images(num_images, seed=num_images)
            (result,) = runner.infer({name: images.numpy()}).values()
            assert result.shape == (num_images, 4)
            assert relative_error(torch.from_numpy(np.asarray(result)), small(images)) <= 1e-5


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
