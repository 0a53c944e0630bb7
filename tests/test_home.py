"""Where a user's data is kept, on every system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planner import home


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch):
    for name in ("QPLAN_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", "/h/.local/share/qplan"),
        ({}, "darwin", "/h/Library/Application Support/qplan"),
        ({"XDG_DATA_HOME": "/x"}, "linux", "/x/qplan"),
        ({"XDG_DATA_HOME": "relative"}, "linux", "/h/.local/share/qplan"),
        ({"QPLAN_HOME": "/q", "XDG_DATA_HOME": "/x"}, "linux", "/q"),
        ({"QPLAN_HOME": "~/q"}, "linux", "/h/q"),
        ({"QPLAN_HOME": ""}, "linux", "/h/.local/share/qplan"),
    ],
)
def test_the_folder_is_the_systems(monkeypatch, environment, platform, expected):
    """As the XDG specification and the systems' own conventions say; QPLAN_HOME before all."""
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert (home.folder(), home.folder("records")) == (expected, f"{expected}/records")


def test_looking_makes_nothing(monkeypatch, tmp_path):
    """Whether a folder is there is one question."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))
    before = home.has("records")
    Path(home.folder("records")).mkdir(parents=True)

    assert (before, home.has("records")) == (False, True)


def test_a_look_into_files_finds_a_text(monkeypatch, tmp_path):
    """In any .json file of the folder; not in others, and nothing where there is no folder, or a file cannot be read."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path))
    before = home.mentions("records", "A100")
    records = tmp_path / "records"
    (records / "folder.json").mkdir(parents=True)
    (records / "other.txt").write_text("A100")
    without = home.mentions("records", "A100")
    (records / "one.json").write_text('{"name": "NVIDIA A100-SXM4-80GB"}')

    assert (before, without, home.mentions("records", "A100"), home.mentions("records", "T4")) == (False, False, True, False)
