from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ticket_export.errors import MissingDependency, RecipeError, TrainError
from ticket_export.models.load import build

SHAPE = (1, 8, 8)


def digits_net(seed: int, weights: Path | None = None) -> nn.Module:
    return build("zoo:resnet20", weights=weights, num_classes=10, image_shape=SHAPE, seed=seed)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_the_seed_alone_decides_the_fresh_weights() -> None:
    first = digits_net(1)
    torch.rand(3)
    assert same_weights(first, digits_net(1))
    assert not same_weights(first, digits_net(2))


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    digits_net(1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".npz", "nested.pt"])
def test_weights_come_back_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    trained = digits_net(1)
    state = {name: value + 1 for name, value in trained.state_dict().items()}
    trained.load_state_dict(state)
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save({"state_dict": state} if "nested" in suffix else state, path)
    assert same_weights(digits_net(2, path), trained)


def test_a_missing_num_batches_tracked_is_no_error(tmp_path: Path) -> None:
    state = {k: v for k, v in digits_net(1).state_dict().items() if "num_batches" not in k}
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in state.items()})
    loaded = digits_net(2, tmp_path / "w.npz").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert loaded["bn1.num_batches_tracked"] == 0


def test_every_name_and_shape_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = digits_net(1).state_dict()
    del state["bn1.weight"]
    state["extra"] = torch.zeros(1)
    state["linear.weight"] = torch.zeros(7, 64)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(TrainError) as caught:
        digits_net(1, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "3 problems" in text
    assert "missing: bn1.weight" in text
    assert "unknown: extra" in text
    assert "linear.weight: shape (7, 64), the network has (10, 64)" in text


class Payload:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "ran"), tmp_path / "w.pt")
    with pytest.raises(TrainError, match="never run"):
        digits_net(1, tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(TrainError, match="state_dict"):
        digits_net(1, tmp_path / "w.pt")


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.array([{}], dtype=object))
    with pytest.raises(TrainError, match=r"w\.npz holds Python objects, which are never run"):
        digits_net(1, tmp_path / "w.npz")
    np.save(tmp_path / "w.npy", np.zeros(3))
    (tmp_path / "w.npy").replace(tmp_path / "w.npz")
    with pytest.raises(TrainError, match=r"w\.npz is not an \.npz file"):
        digits_net(1, tmp_path / "w.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    with pytest.raises(TrainError, match=f"w{suffix} does not exist"):
        digits_net(1, path)
    for content in (b"", b"not weights at all", b"hello", b"PK\x03\x04 no archive"):
        path.write_bytes(content)
        with pytest.raises(TrainError, match=f"w{suffix}") as told:
            digits_net(1, path)
        assert "allow_pickle" not in str(told.value)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.h5").touch()
    with pytest.raises(TrainError, match=r"'\.h5'"):
        digits_net(1, tmp_path / "w.h5")


def test_the_weights_tell_a_zoo_network_its_classes(tmp_path: Path) -> None:
    save_file(digits_net(1).state_dict(), tmp_path / "w.safetensors")
    model = build("zoo:resnet20", weights=tmp_path / "w.safetensors", image_shape=SHAPE)
    assert model(torch.zeros(2, *SHAPE)).shape == (2, 10)
    with pytest.raises(RecipeError, match="number of classes"):
        build("zoo:resnet20", image_shape=SHAPE)


def test_a_users_file_is_built_with_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\ndef net(width):\n    return nn.Linear(2, width)\n", encoding="utf-8"
    )
    model = build(f"{path}:net", {"width": 5})
    assert isinstance(model, nn.Linear)
    assert model.out_features == 5
    with pytest.raises(RecipeError, match="unexpected keyword argument 'wide'"):
        build(f"{path}:net", {"wide": 5})
    with pytest.raises(RecipeError, match="no function 'other'"):
        build(f"{path}:other")


def test_a_function_of_a_package_is_built() -> None:
    model = build("torch.nn:Linear", {"in_features": 2, "out_features": 3})
    assert isinstance(model, nn.Linear)


def test_torchvision_gets_the_number_of_classes() -> None:
    pytest.importorskip("torchvision")
    model = build("torchvision:resnet18", num_classes=7)
    assert model.get_submodule("fc").out_features == 7


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_vision_package_gives_the_install_command(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    with pytest.raises(MissingDependency, match=rf"{package}[\s\S]*pip install 'ticket-export\[vision\]'"):
        build(f"{package}:resnet18")


@pytest.mark.parametrize(
    ("builder", "text"),
    [
        ("resnet20", "'resnet20'"),
        ("zoo:", "'zoo:'"),
        ("zoo:resnet99", r"resnet99[\s\S]*resnet20"),
        ("math:nothing", "'math:nothing': there is no function 'nothing'"),
        ("nowhere.at.all:fn", "nowhere"),
        ("missing.py:fn", r"missing\.py"),
        ("math:sqrt", "math:sqrt"),
        ("collections:OrderedDict", "OrderedDict, not a torch.nn.Module"),
    ],
)
def test_builders_that_give_no_network_are_refused(builder: str, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        build(builder)


def test_a_users_file_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.py.*ZeroDivisionError"):
        build(f"{tmp_path / 'mine.py'}:net")


@pytest.mark.parametrize("when", ["loaded", "called"])
def test_a_builder_that_ends_the_program_is_an_error_like_any_other(tmp_path: Path, when: str) -> None:
    code = "raise SystemExit(7)" if when == "loaded" else "def net():\n    raise SystemExit(7)"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.py[\s\S]*SystemExit: 7"):
        build(f"{tmp_path / 'mine.py'}:net")
