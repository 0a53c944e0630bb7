"""Files that are asked for by name."""

from __future__ import annotations

import os
import stat

import pytest

from planner.errors import InvalidOutputError
from planner.files import output_path, write_whole

SUFFIXES = (".html", ".json")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("out.gif", "does not end in .html or .json", "out.html"),
        ("out", "does not end in .html or .json", "out.html"),
        ("", "is a folder", "qplan.html"),
        ("folder.html", "is a folder; it must be a file", "qplan.html"),
        ("nowhere/out.html", "is in a folder that does not exist", "mkdir -p"),
        ("file.json/out.html", "is in a folder that does not exist", "mkdir -p"),
    ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch, name, message, hint):
    """Another ending, a folder, a folder that is missing: the name as it was given, and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file.json").touch()

    with pytest.raises(InvalidOutputError) as caught:
        output_path(name, SUFFIXES)

    assert caught.value.message.startswith(f"`{name}` ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_device_is_not_replaced(tmp_path):
    """Nor a pipe: a file that appears whole would take its place."""
    os.mkfifo(tmp_path / "pipe.json")

    with pytest.raises(InvalidOutputError, match="no ordinary file"):
        output_path(tmp_path / "pipe.json", SUFFIXES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_of_others_is_refused(tmp_path):
    """Before any work is done."""
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(InvalidOutputError, match="may not be written to"):
            output_path(tmp_path / "out.html", SUFFIXES)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_endings_may_be_large_and_links_are_followed(tmp_path, monkeypatch):
    """What a link names is replaced, not the link; `~` is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")

    assert output_path(tmp_path / "OUT.HTML", SUFFIXES) == tmp_path.resolve() / "OUT.HTML"
    assert output_path("~/link.json", SUFFIXES) == tmp_path.resolve() / "real.json"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    """What was there stays where the writing fails, and nothing else is left."""
    path = tmp_path / "out.json"
    path.write_bytes(b"old")

    def broken(file):
        file.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(path, broken)
    assert path.read_bytes() == b"old"
    write_whole(path, lambda file: file.write(b"new"))
    assert (path.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (b"new", ["out.json"])


def test_what_the_system_refuses_is_told(tmp_path):
    """No room, no right: its own word for it."""

    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(InvalidOutputError, match="could not be written: No space left on device"):
        write_whole(tmp_path / "out.json", full)
