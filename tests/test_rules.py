"""The rules of the house, as tests: floors, sides, public names, sizes, recipes, README, serving box."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ticket_export as te

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ticket_export"
README = ROOT / "README.md"
RECIPES = (
    *("cifar100_resnet18", "cifar100_vgg16", "cifar10_conv6", "cifar10_mobilenet_v1", "cifar10_resnet18"),
    *("cifar10_resnet20", "cifar10_supernet", "cifar10_vgg16", "cifar10_wrn_32_2", "digits_channel_imp"),
    *("digits_early_bird", "digits_resnet20", "digits_supernet", "fashion_mnist_resnet20"),
    *("imagenet_resnet50", "mnist_lenet", "tiny_imagenet_resnet50"),
)

FLOORS = (
    {"errors"},
    {"seeds"},
    {"stages", "data", "models", "channels", "runtime"},
    {"recipe", "store", "train", "shrink"},
    {"report", "find", "export", "measure"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
)
FLOOR_BY_ROOM = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# the paper side, and what a serving box runs: these never load torch when they are imported
TORCH_FREE = (
    *("errors", "seeds", "stages", "__main__", "pipeline"),
    *("cli/*", "recipe/*", "store/*", "report/*", "measure/*"),
    *("runtime/agreement", "runtime/trt*", "export/engine"),
    *(
        "runtime/runner",
        "runtime/ort",
        "runtime/ort_cuda",
        "runtime/onnx_file",
        "runtime/failures",
        "runtime/offers",
        "runtime/fake",
        "runtime/layers",
        "runtime/ort_layers",
        "runtime/registry",
        "export/parity",
        "models/facts",
        "shrink/bundle_files",
    ),
    *("export/triton", "export/triton_config", "export/served"),
)
# what `pip install --no-deps ticket-export` plus the serving box's few packages leaves out
NOT_ON_A_SERVING_BOX = (
    *("torch", "torchvision", "torch_pruning", "accelerate", "safetensors", "onnxscript"),
    *("sklearn", "scipy", "matplotlib", "psutil", "PIL"),
)


def _files() -> list[Path]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    return files


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(_tree(path)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "ticket_export":
            modules = [f"ticket_export.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [node.module]
        for module in modules:
            if module.startswith("ticket_export."):
                yield node.lineno, module.split(".")[1]  # type: ignore[attr-defined]


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_every_room_has_a_floor() -> None:
    rooms = {_room(path) for path in _files()} - {"__init__"}
    assert rooms == set(FLOOR_BY_ROOM)


def test_imports_go_down_only_and_rooms_of_one_floor_are_strangers() -> None:
    wrong = [
        f"{_name(path)}:{line} imports {room}"
        for path in _files()
        if _name(path) != "__init__.py"
        for line, room in _imported_rooms(path)
        if room in FLOOR_BY_ROOM and room != _room(path) and FLOOR_BY_ROOM[room] >= FLOOR_BY_ROOM[_room(path)]
    ]
    assert wrong == []


def test_the_packages_themselves_import_nothing() -> None:
    # an import there would be paid by everyone who wants one file of the room; the bridge and the command
    # line are entered by their own name, and are torch-free at import
    wrong = [
        f"{_name(path)}: {ast.unparse(node)}"
        for path in _files()
        if path.name == "__init__.py" and path.parent != PACKAGE and _room(path) not in ("pipeline", "cli")
        for node in _tree(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and ast.unparse(node) != "from __future__ import annotations"
    ]
    assert wrong == []


def test_the_torch_free_side_loads_no_torch() -> None:
    names = [
        ".".join(("ticket_export", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for pattern in TORCH_FREE
        for path in sorted(PACKAGE.glob(f"{pattern}.py")) or [PACKAGE / pattern / "__init__.py"]
    ]
    assert len(names) > 30
    code = (
        "import sys, importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, ticket_export; print(sorted({'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_public_names_are_sorted_resolve_and_say_what_they_do() -> None:
    assert te.__all__ == sorted(set(te.__all__))
    undocumented = []
    for name in te.__all__:
        public = getattr(te, name)
        if name != "__version__" and not (public.__dict__.get("__doc__") or public.__doc__ or "").strip():
            undocumented.append(name)
    assert undocumented == []
    assert set(te.__all__) <= set(dir(te))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'prune'"):
        te.prune  # type: ignore[attr-defined]  # noqa: B018


def test_te_shrink_stays_the_function_when_the_subpackage_is_loaded() -> None:
    from ticket_export.shrink.exact import shrink

    assert te.shrink is shrink


def test_files_and_functions_stay_small() -> None:
    too_long = []
    for path in _files():
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > 400:
            too_long.append(f"{_name(path)}: {num_lines} lines")
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (size := node.end_lineno - node.lineno + 1) > 60:
                    too_long.append(f"{_name(path)}:{node.name}: {size} lines")
    assert too_long == []


def test_devices_are_arguments() -> None:
    wrong = []
    for path in _files():
        for node in ast.walk(_tree(path)):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text == "torch.cuda" and _room(path) not in ("pipeline", "runtime"):
                wrong.append(f"{_name(path)}:{node.lineno}: torch.cuda")  # type: ignore[attr-defined]
        wrong += [f"{_name(path)}: {call}()" for call, _ in _calls(_tree(path)) if call.endswith(".cuda")]
    assert wrong == []


def test_only_the_command_line_prints_and_reads_arguments() -> None:
    wrong = []
    for path in _files():
        if _room(path) in ("cli", "__main__"):
            continue
        text = path.read_text(encoding="utf-8")
        wrong += [
            f"{_name(path)}: {call}()" for call, _ in _calls(_tree(path)) if call in ("print", "typer.echo")
        ]
        wrong += [f"{_name(path)}: sys.argv"] if "sys.argv" in text else []
    assert wrong == []


def test_what_is_caught_is_named_or_raised_again() -> None:
    wrong = []
    for path in _files():
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "" if node.type is None else ast.unparse(node.type)
            # the end of a process is the one place where everything may be caught, and told
            ends = isinstance(node.body[-1], ast.Raise) or ast.unparse(node.body[-1]).startswith("sys.exit(")
            if caught in ("", "Exception", "BaseException") and not ends:
                wrong.append(f"{_name(path)}:{node.lineno}: except {caught}")
    assert wrong == []


def test_no_pickle_is_ever_loaded() -> None:
    wrong = []
    for path in _files():
        tree = _tree(path)
        for call, node in _calls(tree):
            arguments = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if call == "torch.load" and arguments.get("weights_only") != "True":
                wrong.append(f"{_name(path)}:{node.lineno}: torch.load without weights_only=True")
            if arguments.get("allow_pickle") == "True":
                wrong.append(f"{_name(path)}:{node.lineno}: allow_pickle=True")
        wrong += [
            f"{_name(path)}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in ("pickle", "dill", "joblib")
            and node.attr != "UnpicklingError"
        ]
    assert wrong == []


def test_randomness_is_passed_and_named() -> None:
    # `torch.random.fork_rng` puts the global state back, so a seed inside of it is nobody else's
    wrong = [
        f"{_name(path)}:{node.lineno}: {call}"
        for path in _files()
        for call, node in _calls(_tree(path))
        if call in ("torch.manual_seed", "random.seed", "np.random.seed", "numpy.random.seed")
        and "fork_rng" not in path.read_text(encoding="utf-8")
    ]
    assert wrong == []


def test_the_shipped_recipes_are_all_there() -> None:
    assert tuple(path.stem for path in sorted((ROOT / "recipes").rglob("*.yaml"))) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_its_first_lines_say_how_to_run_it_and_what_it_costs(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    assert te.load_recipe(path).name == name
    header = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[:12] if line[0] == "#"
    )
    assert f"ticket-export run recipes/{name}.yaml" in header
    assert "Cost:" in header


# README


def _blocks(language: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert blocks
    return blocks


def _commands() -> list[str]:
    text = "".join(_blocks("bash")).replace("\\\n", " ")
    lines = (line.partition("  #")[0].strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_the_readme_starts_with_the_two_commands() -> None:
    first, second = _commands()[:2]
    assert first == "pip install -e . && ticket-export run recipes/digits_resnet20.yaml"
    assert second == 'pip install -e ".[test]" && pytest'
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_verb_and_option_of_the_readme_exists() -> None:
    uses = [
        words[1:]
        for command in _commands()
        for part in command.split("&&")
        if (words := shlex.split(part)) and words[0] == "ticket-export"
    ]
    assert {words[0] for words in uses} >= {"run", "plan", "check", "measure", "shrink", "doctor"}
    for words in uses:
        told = subprocess.run(
            [sys.executable, "-m", "ticket_export", words[0], "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, words
        for option in (word for word in words[1:] if word.startswith("--")):
            assert re.search(rf"{option}\b", told.stdout), f"{words[0]} {option}"
        for recipe in (word for word in words if word.startswith("recipes/") and "*" not in word):
            assert (ROOT / recipe).is_file(), recipe


def test_the_python_of_the_readme_uses_public_names() -> None:
    for block in _blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "te":
                assert node.attr in te.__all__


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_ci_script_is_runnable() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


# the serving box


def test_models_are_measured_where_there_is_no_torch(tmp_path: Path) -> None:
    code = f"""
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_ON_A_SERVING_BOX!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import onnx
from onnx import TensorProto, helper
shape = ["batch", 4]
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
graph = helper.make_graph([helper.make_node("Relu", ["input"], ["logits"])], "relu", values[:1], values[1:])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "a.onnx")
from ticket_export.cli import main
main(["measure", "a.onnx", "b=a.onnx", "--rounds", "5", "--samples", "5", "--json"])
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert told.returncode in (0, 1), told.stderr  # 1: a neighbour was busy
    assert '"subject": "b"' in told.stdout
