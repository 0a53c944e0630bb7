"""`qplan records`: exit codes, streams and files."""

from __future__ import annotations

import io
import json
import sys
from datetime import timedelta

import pytest

from planner import cli
from planner.cli import completion
from planner.cli.records import ACTIONS
from planner.records import Store
from tests.records.sample import NOON, sample


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """The store of a user with two records."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))
    found = Store()
    for day in range(2):
        found.add(sample(now=NOON + timedelta(days=day)))
    return found


def test_the_list_is_a_row_a_record(store, capsys):
    """On standard output; nothing on standard error."""
    code = cli.run(["records"])
    printed = capsys.readouterr()

    assert (code, printed.err) == (0, "")
    assert [row.split()[0] for row in printed.out.splitlines()] == ["day", "2026-11-28", "2026-11-29"]


def test_json_is_one_document(store, capsys):
    """The records as they are kept, each with its id."""
    code = cli.run(["records", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert code == 0
    assert [row["id"] for row in found["records"]] == [record.id for record in store.read().records]
    assert found["damaged"] == []


def test_damaged_files_are_named_on_standard_error(store, capsys):
    """The list goes on, exit code 0; what is no record is named with its new place."""
    (store.folder / "bad.json").write_text("{")
    code = cli.run(["records"])
    printed = capsys.readouterr()

    assert (code, len(printed.out.splitlines())) == (0, 3)
    assert printed.err == "skipped bad.json: it is no JSON text; it is kept as damaged/bad.json\n"


def test_export_and_import_are_inverse(store, tmp_path, capsys, monkeypatch):
    """A file of one user is taken over by another, once."""
    file = str(tmp_path / "records.json")
    codes = [cli.run(["records", "export", file])]
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "other"))
    codes += [cli.run(["records", "import", file]) for _ in range(2)]
    printed = capsys.readouterr()

    assert codes == [0, 0, 0]
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"wrote {file}: 2 records",
        "2 new records; 0 were here already",
        "0 new records; 2 were here already",
    ]
    assert Store().read() == store.read()


def test_a_pipe_carries_them_too(store, tmp_path, capsys, monkeypatch):
    """`export -` prints the document, `import -` reads it."""
    cli.run(["records", "export", "-"])
    text = capsys.readouterr().out
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    assert cli.run(["records", "import", "-"]) == 0
    assert Store().read() == store.read()


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["export"], "export is given without a file"),
        (["import"], "import is given without a file"),
        (["list", "x.json"], "list takes no file"),
        (["delete"], "nothing called `delete`"),
        (["import", "nowhere.json"], "`nowhere.json` is no file"),
        (["export", "x.txt"], "does not end in .json"),
        (["export", "no/folder/x.json"], "folder that does not exist"),
    ],
)
def test_wrong_requests_are_exit_code_two(store, capsys, typed, says):
    """Said in a sentence, on standard error."""
    code = cli.run(["records", *typed])
    printed = capsys.readouterr()

    assert (code, printed.out) == (2, "")
    assert says in printed.err
    assert "failed where it should not" not in printed.err


def test_a_wrong_file_is_named(store, tmp_path, capsys):
    """Which file, which record, what is wrong; nothing is imported."""
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({"schema_version": 1, "records": [{"schema_version": 1, "time": "now"}]}))
    code = cli.run(["records", "import", str(file)])

    assert code == 2
    assert f"`{file}`: record 0: time is 'now'" in capsys.readouterr().err
    assert len(store.read().records) == 2


def test_a_home_that_is_a_file_is_no_reason_to_fail(tmp_path, capsys, monkeypatch):
    """There are no records then."""
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))

    assert cli.run(["records"]) == 0
    assert capsys.readouterr().out.startswith("There are no records yet")


def test_the_shell_completes_what_there_is_to_do():
    """A tab after `qplan records e`."""
    assert completion.choices(ACTIONS)("e") == ["export"]
    assert completion.choices(ACTIONS)("") == ["list", "export", "import"]


def test_help_says_what_is_never_in_a_record(capsys):
    """The promise stands where the command is looked up."""
    code = cli.run(["records", "--help"])
    text = " ".join(capsys.readouterr().out.split())

    assert code == 0
    assert "no host names, user names, paths or tokens" in text
