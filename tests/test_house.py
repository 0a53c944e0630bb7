"""The rules of the house: what may be imported, how large a file may be, what stands at the top."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import planner

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "huggingface_hub", "numpy", "rich", "typer")
MAX_LINES = 400
TOP_LEVEL = {".ci", ".github", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml"}
TOP_LEVEL |= {"model_specs", "notebooks", "planner", "tests"}


def modules(repository: Path) -> list[Path]:
    """Every source file of the two packages."""
    return sorted([*(repository / "planner").rglob("*.py"), *(repository / "model_specs").glob("*.py")])


def tracked(repository: Path) -> list[str]:
    """What git tracks, or would if asked to add everything."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_importing_planner_loads_nothing_heavy():
    """`import planner` leaves torch, transformers, the Hub, numpy, Rich and Typer alone."""
    code = f"import sys, json, planner; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert json.loads(loaded) == []


def test_an_estimate_loads_nothing_heavy():
    """A whole estimate of a bundled model needs none of them either."""
    code = (
        "import sys, json; from planner import estimate; estimate('meta-llama/Llama-2-70b-hf', rank=16, gpu='a6000'); "
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert json.loads(loaded) == []


def test_public_names_are_documented():
    """Each name of `planner.__all__` resolves and says what it is."""
    undocumented = [name for name in planner.__all__ if name != "__version__" and not inspect.getdoc(getattr(planner, name))]

    assert undocumented == []
    assert sorted(planner.__all__) == list(planner.__all__)


def test_every_module_says_what_it_is(repository: Path):
    """Every source file opens with a docstring."""
    silent = [str(path) for path in modules(repository) if not ast.get_docstring(ast.parse(path.read_text()))]

    assert silent == []


def test_files_stay_small(repository: Path):
    """No file of the packages is longer than can be read in one sitting."""
    lengths = {str(path.relative_to(repository)): len(path.read_text().splitlines()) for path in modules(repository)}

    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_every_test_has_a_sentence(repository: Path):
    """Each test says in its docstring what must hold."""
    silent = [
        f"{path.relative_to(repository)}::{node.name}"
        for path in sorted((repository / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert silent == []


def test_every_room_stands_in_the_contract(repository: Path):
    """The layers of the import contract name every module of `planner/`, and no other."""
    tomllib = pytest.importorskip("tomllib", reason="reads TOML from Python 3.11 on")
    contracts = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    named = sorted(room.strip() for layer in layers for room in layer.replace("|", ":").split(":"))
    inside = (repository / "planner").iterdir()
    rooms = sorted(path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").is_file())
    rooms.remove("__init__")

    assert rooms == named


def test_the_top_level_stays_as_it_is(repository: Path):
    """Nothing stands at the top of the repository but what the design puts there."""
    top = {path.split("/", 1)[0] for path in tracked(repository)}

    assert top - TOP_LEVEL == set()


def test_no_path_of_a_machine_is_committed(repository: Path):
    """No source file names a home or temporary folder of the machine it was written on."""
    marks = ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/Us" + "ers/")
    guilty = [
        path
        for path in tracked(repository)
        if path.endswith((".py", ".toml", ".md", ".yml", ".json"))
        if any(mark in (repository / path).read_text() for mark in marks)
    ]

    assert guilty == []
