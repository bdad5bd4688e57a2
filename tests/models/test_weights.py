"""Weight files in the forms that training scripts leave behind, and what is refused with its reason."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ticket_export.errors import TrainError
from ticket_export.models.load import build
from ticket_export.models.weights import load_weights, weights_from_file, without_prefixes


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def saved(state: dict[str, Tensor], path: Path) -> Path:
    match path.suffix:
        case ".safetensors":
            save_file(state, path)
        case ".npz":
            np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
        case _:
            torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_prefix_of_all_names_is_left_off_and_logged(
    suffix: str, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = net(1)
    state = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    path = saved(state, tmp_path / f"w{suffix}")
    model = net(2)
    with caplog.at_level(logging.INFO, logger="ticket_export"):
        load_weights(model, weights_from_file(path), source=f"weights file {path}")
    assert all(torch.equal(model.state_dict()[name], held) for name, held in trained.state_dict().items())
    assert caplog.messages == [f"weights file {path}: the prefix {prefix!r} of all 7 names is left off"]


def test_what_the_wrappers_of_torch_save_is_loaded(tmp_path: Path) -> None:
    trained = net(1)
    for wrapped in (nn.DataParallel(trained), torch.compile(trained, backend="eager")):
        path = saved(wrapped.state_dict(), tmp_path / "w.pt")
        model = net(2)
        load_weights(model, weights_from_file(path), source="w.pt")
        assert torch.equal(model[0].weight, trained[0].weight)


def test_a_prefix_of_some_names_stays_and_is_told() -> None:
    state = {"module.0.weight": torch.zeros(1), "0.bias": torch.zeros(1)}
    assert without_prefixes(state) == (state, "")
    assert without_prefixes({}) == ({}, "")
    with pytest.raises(TrainError, match=r"unknown: module\.0\.weight"):
        load_weights(net(), state, source="w.pt")


def test_a_network_whose_own_names_carry_the_prefix_keeps_it() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = net()

    trained, model = Wrapped(), Wrapped()
    trained.module[0].weight.data.fill_(7.0)
    load_weights(model, trained.state_dict(), source="w.pt")
    assert (model.module[0].weight == 7.0).all()


def test_prefixed_weights_tell_a_zoo_network_its_classes(tmp_path: Path) -> None:
    dense = build("zoo:resnet20", num_classes=7, image_shape=(1, 8, 8))
    path = saved({f"module.{name}": t for name, t in dense.state_dict().items()}, tmp_path / "w.npz")
    assert (
        build("zoo:resnet20", weights=path, image_shape=(1, 8, 8)).get_submodule("linear").out_features == 7
    )


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_gives_the_weights_it_holds(
    key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = net(1)
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, key: trained.state_dict(), "optimizer": {"lr": 0.1}}, path)
    with caplog.at_level(logging.INFO, logger="ticket_export"):
        weights = weights_from_file(path)
    assert weights.keys() == trained.state_dict().keys()
    assert caplog.messages == [f"weights file {path}: a checkpoint, its weights are under {key!r}"]


def test_a_checkpoint_without_weights_names_what_it_holds_instead(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(TrainError, match="'epoch' is a int, not a tensor by name"):
        weights_from_file(tmp_path / "w.pt")


def test_a_pickled_model_is_refused_with_the_line_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = net(1)
    torch.save(trained, "w.pt")
    with pytest.raises(TrainError) as told:
        weights_from_file(Path("w.pt"))
    assert "holds a pickled Python object (torch.nn.modules." in str(told.value)
    line = "torch.save(torch.load('w.pt', weights_only=False).state_dict(), 'weights.pt')"
    assert line in str(told.value)
    exec(line, {"torch": torch})
    assert torch.equal(weights_from_file(Path("weights.pt"))["0.weight"], trained[0].weight)


def test_a_checkpoint_with_other_objects_is_refused_with_their_class(tmp_path: Path) -> None:
    held = {"state_dict": net().state_dict(), "args": argparse.Namespace(lr=0.1)}
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(
        TrainError, match=r"\(argparse\.Namespace\), which is never run[\s\S]*\['state_dict'\]"
    ):
        weights_from_file(tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*TorchScript:UserWarning")
def test_a_torchscript_program_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.script(net()), path)
    with pytest.raises(TrainError, match=r"TorchScript program[\s\S]*torch\.jit\.load\("):
        weights_from_file(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_their_name_and_number(value: float) -> None:
    model, state = net(), net(1).state_dict()
    state["0.weight"][1, 0, 0, :2] = value
    before = model[0].weight.detach().clone()
    with pytest.raises(TrainError) as told:
        load_weights(model, state, source="weights file w.pt")
    assert "weights file w.pt does not fit the network: 1 problem\n" in str(told.value)
    assert "0.weight: 2 of 108 values are NaN or infinite" in str(told.value)
    assert torch.equal(model[0].weight, before)


def test_a_mask_of_minus_infinity_that_the_network_holds_too_is_no_mistake() -> None:
    model = net()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    load_weights(model, model.state_dict(), source="w.pt")
    assert model.get_buffer("mask")[1] == float("-inf")


def test_complex_weights_for_a_real_network_are_refused() -> None:
    state = {
        name: t.to(torch.complex64) if t.is_floating_point() else t for name, t in net().state_dict().items()
    }
    with pytest.raises(TrainError, match=r"0\.weight: torch\.complex64, the network has torch\.float32"):
        load_weights(net(), state, source="w.pt")


def test_weights_in_half_precision_are_loaded_in_the_precision_of_the_network() -> None:
    trained, model = net(1), net(2)
    load_weights(
        model,
        {n: t.half() if t.is_floating_point() else t for n, t in trained.state_dict().items()},
        source="w",
    )
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, trained[0].weight.half().float())
