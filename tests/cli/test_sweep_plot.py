"""`qplan sweep --plot`: the frontier as a file."""

from __future__ import annotations

import pytest

from planner import cli

SMALL = ["sweep", "meta-llama/Llama-3.2-1B", "--gpu", "t4", "--stack", "latest"]


def run(*arguments: str) -> int:
    """The exit code of a command line."""
    return cli.run([*SMALL, *arguments])


def test_a_picture_is_drawn(tmp_path, capsys):
    """The file is there, its name is told on standard error, and nothing is printed on standard output."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "frontier.png"

    assert run("--batch-size", "1,2", "--seq-len", "512,1024", "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"wrote {path}" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1,2", "--seq-len", "512,1024", "--plot", "frontier.pdf"], "does not end in .png, .svg or .html"),
        (["--batch-size", "1,2", "--plot", "frontier.png"], "needs two knobs that vary"),
        (["--batch-size", "1,2", "--plot", "frontier.png", "-o", "rows.csv"], "both are given"),
    ],
)
def test_what_cannot_be_drawn_is_told(arguments, message, tmp_path, monkeypatch, capsys):
    """Exit code 2, what is wrong and what to do; no file is left."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)

    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "hint:" in captured.err
    assert list(tmp_path.iterdir()) == []
