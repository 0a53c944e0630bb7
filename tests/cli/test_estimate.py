"""`qplan estimate --timeline` and `--snapshot`."""

from __future__ import annotations

import json
import pickle

import pytest

from planner import api, cli
from planner.engines.analytic import Analysis
from planner.errors import InvalidOutputError
from planner.units import MIB
from tests import histories

MODEL = "meta-llama/Llama-2-7b-hf"


@pytest.fixture(autouse=True)
def _small_history(monkeypatch):
    monkeypatch.setattr(Analysis, "history", property(lambda _: histories.small()))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def qplan(capsys):
    """Run a command: its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        return (code, *capsys.readouterr())

    return run


def test_timelines_and_a_snapshot_are_written(qplan, tmp_path):
    """Each form, as often as asked; standard error says what was written, standard output stays what it is without."""
    page, numbers, run = (str(tmp_path / name) for name in ("a.html", "b.json", "c.pickle"))
    plain = qplan("estimate", MODEL, "--gpu", "a6000", "--json")
    code, out, err = qplan("estimate", MODEL, "--gpu", "a6000", "--json", "--timeline", page, "--timeline", numbers, "--snapshot", run)

    assert (code, out) == plain[:2]
    assert err.splitlines() == [
        f"wrote {page}: one training step, 8 events",
        f"wrote {numbers}: one training step, 8 events",
        f"wrote {run}: 31 entries, for https://pytorch.org/memory_viz",
    ]
    found = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert found["title"] == MODEL
    assert found["subtitle"] == "qlora · batch 1 × 512 tokens · paged_adamw_8bit · analytic engine"
    assert found["card"] == {"name": "NVIDIA RTX A6000", "usable_bytes": json.loads(out)["device"]["usable_bytes"]}
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len(pickle.loads((tmp_path / "c.pickle").read_bytes())["device_traces"][0]) == 31  # noqa: S301 - written above


def test_the_whole_run_can_be_shown(qplan, tmp_path):
    """From the loading on; without a card there is no line for one."""
    path = str(tmp_path / "run.json")

    assert qplan("estimate", MODEL, "--timeline", path, "--whole-run")[2] == f"wrote {path}: the whole run, 21 events\n"
    found = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert (found["is_whole_run"], found["first_event"], found["card"]) == (True, 0, None)


def test_a_whole_run_without_a_timeline_is_refused(qplan):
    """It would be ignored without a word."""
    code, out, err = qplan("estimate", MODEL, "--whole-run")

    assert (code, out) == (2, "")
    assert err.startswith("error: --whole-run is given without a timeline to draw\nhint: add --timeline run.html")


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--timeline", "out.gif", "does not end in .html, .png or .json"),
        ("--timeline", "nowhere/out.html", "in a folder that does not exist"),
        ("--timeline", ".", "is a folder"),
        ("--snapshot", "out.json", "does not end in .pickle or .pkl"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(qplan, tmp_path, monkeypatch, option, name, message):
    """Exit code 2, and no engine ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "estimate", lambda *_, **__: pytest.fail("the engine ran"))
    code, out, err = qplan("estimate", MODEL, option, name)

    assert (code, out) == (2, "")
    assert message in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint: ")


def test_the_same_from_python(tmp_path):
    """`report.timeline` gives the picture, and writes it where a path is named; `report.snapshot` says how long the trace is."""
    report = api.estimate(MODEL, gpu="a6000")

    assert report.timeline().timeline.peak.event == 2
    assert report.timeline(tmp_path / "out.json", whole_run=True).timeline.is_whole_run
    assert (tmp_path / "out.json").is_file()
    assert report.snapshot(tmp_path / "out.pkl") == 31


def test_the_environment_sets_the_allocator(monkeypatch, tmp_path):
    """As it would PyTorch's: segments that expand have no segment of their own for each allocation."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    report = api.estimate(MODEL, gpu="a6000")
    report.snapshot(tmp_path / "run.pickle")
    trace = pickle.loads((tmp_path / "run.pickle").read_bytes())["device_traces"][0]  # noqa: S301 - written above

    assert "segment_map" in {entry["action"] for entry in trace}
    assert report.timeline().timeline.peak_reserved < 54 * MIB


def test_micro_batches_that_are_left_out_are_told():
    """An engine may write fewer than a step has."""
    subtitle = api.estimate(MODEL, grad_accum=4).timeline().subtitle

    assert subtitle == "qlora · batch 1 × 512 tokens · 1 of 4 micro-batches · paged_adamw_8bit · analytic engine"


def test_from_python_a_wrong_path_is_refused_before_the_work(tmp_path, monkeypatch):
    """The run is not laid out for a file that cannot be written."""
    report = api.estimate(MODEL, gpu="a6000")
    monkeypatch.setattr(Analysis, "history", property(lambda _: pytest.fail("the history was asked for")))

    with pytest.raises(InvalidOutputError):
        report.timeline(tmp_path / "out.gif")
    with pytest.raises(InvalidOutputError):
        report.snapshot(tmp_path / "out.gif")
