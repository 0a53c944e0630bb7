"""
What README.md prints is what the program prints.

Every ```console block is run, command by command, and every ```pycon block, line by line: at 80 columns, without a GPU, and as if
nothing of the stack were installed, as after the README's first command. Blocks marked `slow` run with the slow tests.
`pytest tests/test_readme.py --overwrite` writes the outputs anew.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import model_specs
from planner import api, stack
from planner.architecture import family_of, known_families
from planner.cli.commands import NAMES
from tests.oracle import cases

README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```(console|pycon)( slow)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GENERATED = re.compile(r"(<!-- (known|held|unknown) families -->\n)(.*?)(\n<!-- end -->)", re.DOTALL)
QPLAN = "import sys; from planner import cli, driver, stack; stack._installed = dict; driver.FILES = (); cli.main()"
BLOCKS = list(FENCE.finditer(README.read_text(encoding="utf-8")))


@pytest.fixture
def shell(tmp_path: Path, repository: Path) -> Callable[[str], str]:
    """Run a command line as a reader would, where `qplan` and `python` are those of the tests; what it prints."""
    if shutil.which("bash") is None:
        pytest.skip("the README's commands are written for a POSIX shell")
    for name, code in (("qplan", f'-c "{QPLAN}"'), ("python", "")):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {code} "$@"\n')
        script.chmod(0o755)
    (tmp_path / "libnvidia-ml.so.1").touch()  # hides the driver's library, where there is one: an empty file is none
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("LD_LIBRARY_PATH")))),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "PYTHONUTF8": "1",
        "COLUMNS": "80",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "QPLAN_HOME": str(tmp_path / "home"),
    }

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=repository,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        return done.stdout

    return run


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of the stack is installed, as after the README's first command; no card is seen."""
    monkeypatch.setattr(stack, "_installed", dict)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))
    api._parsed_stack.cache_clear()
    yield
    api._parsed_stack.cache_clear()


def commands(block: str) -> list[str]:
    """The commands of a console block; one that ends in a backslash goes on in the next line."""
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif found and found[-1].endswith("\\"):
            found[-1] += f"\n{line}"
    return found


def transcript(block: str) -> str:
    """A Python block with what it prints."""
    known: dict[str, object] = {}
    lines: list[str] = []
    for example in doctest.DocTestParser().get_examples(block):
        first, *others = example.source.splitlines()
        lines += [f">>> {first}", *(f"... {line}" for line in others)]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(example.source, "README.md", "single"), known)  # noqa: S102 - the README is ours
        lines += out.getvalue().splitlines()
    return "\n".join(lines) + "\n"


def check(request: pytest.FixtureRequest, found: str, begin: int, end: int) -> None:
    """A part of the README is what it should be, or is written anew."""
    text = README.read_text(encoding="utf-8")
    if request.config.getoption("--overwrite"):
        README.write_text(text[:begin] + found + text[end:], encoding="utf-8")
        return

    assert text[begin:end] == found, "README.md differs; pytest tests/test_readme.py --overwrite writes it anew"


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, id=block[3].split("\n")[0][2:62].strip(), marks=pytest.mark.slow if block[2] else ())
        for number, block in enumerate(BLOCKS)
    ],
)
def test_printed_output_is_what_is_printed(number, request, shell, bare):
    """A block's commands print, letter by letter, what stands below them."""
    block = list(FENCE.finditer(README.read_text(encoding="utf-8")))[number]
    python = block[1] == "pycon"
    found = transcript(block[3]) if python else "".join(f"$ {typed}\n{shell(typed)}" for typed in commands(block[3]))

    assert "Traceback" not in found, found
    assert "failed where it should not" not in found, found
    check(request, found, *block.span(3))


@pytest.mark.parametrize("kind", ["known", "held", "unknown"])
def test_families_are_listed(kind, request):
    """The families whose step is known, those of them that the oracle has run, and those that are refused."""
    steps = {name: family_of(name).decoder is not None for name in known_families()}
    part = next(match for match in GENERATED.finditer(README.read_text(encoding="utf-8")) if match[2] == kind)
    names = [name for name, is_known in steps.items() if is_known == (kind != "unknown")]
    if kind == "held":
        names = sorted({cases.document(name)["config"]["model_type"] for name in cases.NAMES} & set(names))

    check(request, ", ".join(f"`{name}`" for name in names), *part.span(3))


def test_every_command_has_an_example():
    """Each command is run somewhere in the README."""
    typed = {command.split()[1] for block in BLOCKS if block[1] == "console" for command in commands(block[3])}

    assert set(NAMES) <= typed


def test_the_number_of_bundled_checkpoints():
    """The README's count is the number of files."""
    assert f"{len(model_specs.checkpoint_ids())} checkpoints" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [".ci/run", ".github/CONTRIBUTING.md"])
def test_the_test_command_is_the_one_that_runs(path, repository):
    """The README's second command is the one that the checks call and that contributors are told."""
    assert (second := setup_commands()[1]) in (repository / path).read_text(encoding="utf-8"), second


def test_there_are_two_setup_commands():
    """One installs and answers, one installs and tests."""
    first, second = setup_commands()

    assert "pip install . && qplan estimate" in first
    assert second.endswith("&& pytest")


def setup_commands() -> list[str]:
    """The commands of the first two shell blocks."""
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[:2]]
