"""The way to the traced engine: nothing is run that is not there, and nothing else than what was asked for."""

from __future__ import annotations

import importlib.util
import logging
import sys

import pytest

from planner import stack
from planner.engines import installed
from planner.errors import InvalidRecipeError, MissingExtraError
from planner.stack import LATEST, PACKAGES, parse_stack


@pytest.mark.parametrize("absent", [("trl",), ("torch", "bitsandbytes"), installed.NEEDED])
def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, absent):
    """Before anything is imported; exit code 3."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name) or object())

    with pytest.raises(MissingExtraError, match=f"not installed here: {', '.join(absent)}$") as caught:
        installed.traced_engine(None, lambda _: pytest.fail("it was imported"))
    assert caught.value.hint == 'pip install "qplan[torch]"'
    assert caught.value.exit_code == 3


@pytest.fixture
def _all_there(monkeypatch):
    """Every library, in the newest profile's versions, torch in a build for CPUs; none of them is touched."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    builds = {"torch": "+cpu"}
    monkeypatch.setattr(stack, "_installed", lambda: {name: LATEST.versions[name] + builds.get(name, "") for name in PACKAGES})


@pytest.mark.usefixtures("_all_there")
def test_other_versions_than_are_installed_are_refused():
    """A trace of 5.23 is no answer for 4.44."""
    with pytest.raises(InvalidRecipeError, match=r"asks for transformers==4\.44\.0, but") as caught:
        installed.traced_engine(parse_stack("transformers==4.44.0"), lambda _: pytest.fail("it was imported"))
    assert "--engine analytic" in caught.value.hint


@pytest.mark.usefixtures("_all_there")
def test_what_is_installed_is_run(monkeypatch):
    """Also when its versions are asked for by name; the import is told, and leaves logging as it was."""
    monkeypatch.setitem(sys.modules, "planner.engines.traced", engine := type(sys)("traced"))
    monkeypatch.setattr("planner.engines.traced", engine, raising=False)
    told: list[str] = []

    assert installed.traced_engine(parse_stack("auto"), told.append) is engine
    assert installed.traced_engine(parse_stack(f"peft=={LATEST.versions['peft']}")) is engine
    assert installed.traced_engine(parse_stack("latest")) is engine
    assert installed.traced_engine(None) is engine
    assert told == ["importing torch and transformers"]
    assert logging.root.manager.disable == logging.NOTSET


def test_the_extra_has_all_that_is_needed(repository):
    """`pip install "qplan[torch]"` is enough."""
    tomllib = pytest.importorskip("tomllib", reason="reads TOML from Python 3.11 on")
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    assert sorted(wanted.split(">=")[0] for wanted in extras["torch"]) == sorted(installed.NEEDED)
