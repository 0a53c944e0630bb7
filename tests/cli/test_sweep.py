"""`qplan sweep`: screens, files, grids and refusals."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest

from planner import cli, estimate

TINY = "EleutherAI/pythia-14m"
BASE = ("sweep", TINY, "--gpu", "1GiB", "--stack", "latest", "--batch-size", "1,4096", "--seq-len", "64:193:128")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.run(arguments)
    return code, *capsys.readouterr()


def test_the_screen_has_a_row_a_point(capsys):
    """What varies is in columns, what does not above them."""
    code, out, _ = run(capsys, *BASE)
    lines = out.splitlines()

    assert (code, lines[:2]) == (0, [TINY, "1GiB"])
    assert lines[2].split() == ["batch", "size", "seq", "len", "peak", "GiB", "phase", "headroom", "verdict"]
    assert [line.split()[:2] for line in lines[3:7]] == [["1", "64"], ["1", "192"], ["4096", "64"], ["4096", "192"]]


def test_json_is_one_document_of_estimates(capsys):
    """The rows are those of single estimates, sizes in bytes."""
    code, out, _ = run(capsys, *BASE, "--simulate", "all", "--json")
    found = json.loads(out)
    for row in found["rows"]:
        report = estimate(TINY, gpu="1GiB", stack="latest", batch_size=row["batch_size"], seq_len=row["seq_len"])

        assert (row["allocated_bytes"], row["outcome"]) == (report.peak.allocated_bytes, report.verdict.outcome)
        assert row["headroom_bytes"] == report.verdict.headroom_bytes
    assert (code, found["schema_version"], len(found["rows"])) == (0, 1, 4)


def test_files_and_grids(capsys, tmp_path, monkeypatch):
    """A grid's file and options say the same; each kind of file holds the same rows; options go before the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text(
        f'models = "{TINY}"\ngpu = "1GiB"\nstack = "latest"\nbatch_size = [1, 4096]\nseq_len = "64:193:128"\n'
    )
    assert run(capsys, *BASE, "-o", "a.csv") == (0, "", "wrote a.csv\n")
    assert run(capsys, "sweep", "grid.toml", "-o", "b.parquet") == (0, "", "wrote b.parquet\n")
    assert run(capsys, "sweep", "grid.toml", "--fits-only", "-o", "c.jsonl") == (0, "", "wrote c.jsonl\n")
    assert run(capsys, "sweep", "grid.toml", "--seq-len", "64", "--pareto", "-o", "d.csv")[0] == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    kept = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    front = list(csv.DictReader((tmp_path / "d.csv").read_text().splitlines()))

    assert [int(row["allocated_bytes"]) for row in rows] == pq.read_table("b.parquet")["allocated_bytes"].to_pylist()
    assert [(row["batch_size"], row["seq_len"]) for row in kept] == [(1, 64), (1, 192)]
    assert [row["batch_size"] for row in front] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sweep", TINY, "--batch-size", "0:4"), 2, "error: --batch-size is 0; it must be a whole number"),
        (("sweep", TINY, "--batch-size", "4:4"), 2, "; `4:4` has no values"),
        (("sweep", TINY, "--seq-len", "64,1:x"), 2, "error: --seq-len takes whole numbers (1,2,4) or a range without its end"),
        (("sweep", TINY, "--optim", "sgd,adam"), 2, "error: --optim is 'adam'"),
        (("sweep", TINY, "--engine", "traced", "--jobs", "2", "--ray", "local"), 2, "error: both --jobs and --ray"),
        (("sweep", TINY, "--jobs", "2"), 2, "error: an executor or jobs are given"),
        (("sweep", TINY, "-o", "out.xlsx"), 2, "does not end in .parquet, .csv or .jsonl"),
        (("sweep", TINY, "-o", "out.csv", "--json"), 2, "error: --json prints, and --output writes"),
        (("sweep", "none.yaml"), 2, "error: `none.yaml` cannot be read"),
        (("sweep", "grid.yaml", TINY), 2, "error: `grid.yaml` is given with other models"),
        (("sweep",), 2, "error: MODEL is missing"),
    ],
)
def test_bad_requests(capsys, arguments, code, message):
    """A sentence on standard error, and the exit code of a wrong request."""
    found = run(capsys, *arguments)

    assert (found[0], found[1]) == (code, "")
    assert message in found[2]


def test_a_ray_that_is_not_installed(capsys, monkeypatch):
    """It is said with the command that installs it, and exit code 3."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    code, _, err = run(capsys, "sweep", TINY, "--engine", "traced", "--ray", "local")

    assert (code, err) == (3, 'error: ray is not installed, and this needs it\nhint: pip install "qplan[ray]"\n')
