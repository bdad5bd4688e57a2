"""The program itself: its verbs, its exit codes and what it loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Told = tuple[int, str, str]


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_python_m_is_the_same_command() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "ticket_export", "--version"], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "ticket-export 0.1.0\n"


def test_help_names_every_verb(tell: Callable[..., Told]) -> None:
    code, out, _ = tell("--help")
    assert code == 0
    verbs = [
        line.split()[0]
        for line in out.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert verbs == ["check", "plan", "run", "show", "profile", "measure", "shrink", "export", "doctor"]


@pytest.mark.parametrize(
    "words", ["'--help'", "'check', RECIPE", "'plan', RECIPE", "'doctor', '--help'", "'shrink', '--help'"]
)
def test_answering_loads_no_torch_no_runtime_and_no_figures(words: str, recipe: Path) -> None:
    code = (
        f"import sys\nRECIPE = {str(recipe)!r}\nfrom ticket_export.cli import main\n"
        f"try:\n    main([{words}])\nexcept SystemExit as stopped:\n    assert stopped.code == 0\n"
        "heavy = {'torch', 'onnxruntime', 'matplotlib', 'sklearn', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    told = _python(code)
    assert told.returncode == 0, told.stderr


def test_an_unknown_verb_is_input(tell: Callable[..., Told]) -> None:
    code, out, err = tell("prune")
    assert (code, out) == (2, "")
    assert "prune" in err
