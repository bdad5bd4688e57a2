"""The verb `profile`: what it prints, where the table lies, and that it is made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import scripted_tables

Told = tuple[int, str, str]  # exit code, stdout, stderr


@pytest.fixture
def words(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | Path, ...]:
    """The words that profile the tiny recipe's network on a scripted machine."""
    scripted_tables.install(monkeypatch)
    values = (
        "measure.runtimes=[torch]",
        f"model.builder={Path(__file__).parents[1] / 'tiny_net.py'}:make",
        "model.args={width: 64}",
    )
    sets = [word for value in values for word in ("--set", value)]
    return ("profile", recipe, *sets, "--out", tmp_path / "out")


def test_profile_prints_staircases_and_the_error_and_then_finds_them(
    tell: Callable[..., Told], words: tuple[str | Path, ...]
) -> None:
    code, out, _ = tell(*words)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "torch, fp32, batch 1, 1 thread, compute"
    [row] = [line for line in lines if line.startswith("conv 3x3 at 8x8 ")]
    assert row.split()[4:10] == ["64", "to", "64", "0.0640", "8", "of"]
    assert row.endswith("8, 16, 24, 32, 40, 48, 56, 64")
    assert "whole networks: predicted within 0.0 % (median), 0.0 % (largest), n = 10" in out
    assert lines[-1].partition(": ")[0].endswith("cells, measured")
    code, again, _ = tell(*words)
    assert code == 0
    assert again.splitlines()[:-1] == lines[:-1]
    assert again.splitlines()[-1] == lines[-1].replace("measured", "found")
    assert Path(lines[-1].partition(": ")[2]).is_file()


def test_profile_as_json_names_every_stair(tell: Callable[..., Told], words: tuple[str | Path, ...]) -> None:
    code, out, _ = tell(*words, "--json")
    assert code == 0
    [table] = json.loads(out)["tables"]
    assert (table["runtime"], table["precision"], table["batch"], table["found"]) == (
        "torch",
        "fp32",
        1,
        False,
    )
    wide, linear = table["staircases"]
    assert (wide["layer"], linear["layer"]) == ("conv 3x3 at 8x8", "linear")
    assert (wide["width_in"], wide["stairs"]) == (64, [8, 16, 24, 32, 40, 48, 56, 64])
    assert (linear["widths"], linear["stairs"]) == ([4], [4])


def test_profile_of_a_runtime_that_is_not_installed_says_how_to_install_it(
    tell: Callable[..., Told], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ticket_export.runtime.offers.installed", lambda name: None)
    code, _, err = tell("profile", recipe, "--out", tmp_path / "out")
    assert code == 3
    assert "pip install onnxruntime" in err
