"""Traces over a grid: real ones, and stand-ins for what goes wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from planner import estimate, sweep
from planner.errors import MissingExtraError

TINY = "EleutherAI/pythia-14m"


def test_traced_rows_are_traced_estimates():
    """Each row has the peak, the phase and the verdict of a single trace; cards of one kind share it, and a refusal is its row's."""
    pytest.importorskip("bitsandbytes")
    found = sweep(TINY, gpu=["l4", "1GiB"], engine="traced", method=["lora", "qlora"], quantization=["none"], batch_size=[1])
    rows = list(found.rows())
    for row, gpu in ((rows[0], "l4"), (rows[2], "1GiB")):
        report = estimate(TINY, gpu=gpu, engine="traced", method="lora", quantization="none")

        assert (row["allocated_bytes"], row["phase"]) == (report.peak.allocated_bytes, report.peak.phase)
        assert (row["outcome"], row["headroom_bytes"]) == (report.verdict.outcome, report.verdict.headroom_bytes)
        assert (row["reserved_bytes"], row["process_bytes"]) == (report.peak.reserved_bytes, report.peak.process_bytes)
    assert rows[1]["error"] == rows[3]["error"] == "method is `qlora` but quantization is `none`; qlora trains over a quantised base"


def fails(task):
    """A trace that breaks for one batch."""
    from planner.sweeping.traced_points import Row

    if task.knobs["batch_size"] == 2:
        raise RuntimeError("no such kernel")
    return [Row(100 * task.knobs["batch_size"], "forward")] * len(task.devices)


def test_points_that_fail_are_recorded_and_the_others_are_not_lost(monkeypatch):
    """Its row says what broke, after three tries; progress counts it too."""
    monkeypatch.setattr("planner.sweeping.traced_points.trace_point", fails)
    told = []
    with ThreadPoolExecutor(2) as pool:
        found = sweep(TINY, gpu="t4", engine="traced", executor=pool, batch_size=[1, 2, 3], progress=lambda done, total: told.append(done))
        rows = list(found.rows())

    assert [row["allocated_bytes"] for row in rows] == [100, None, 300]
    assert rows[1]["error"] == "RuntimeError: no such kernel"
    assert told == [1, 2, 3]


def test_what_was_traced_before_a_kill_is_not_traced_again(tmp_path, monkeypatch):
    """An interrupted sweep to a file has kept each finished point; the next one traces the others alone."""
    traced = []

    def interrupted(task):
        traced.append(task.knobs["batch_size"])
        if len(traced) == 3:
            raise KeyboardInterrupt
        return fails(task)

    knobs = {"gpu": "t4", "engine": "traced", "batch_size": [1, 3, 5, 7]}
    monkeypatch.setattr("planner.sweeping.traced_points.trace_point", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(TINY, **knobs).write(tmp_path / "out.csv")
    sweep(TINY, **knobs).write(tmp_path / "out.csv")

    assert traced == [1, 3, 5, 5, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 5


def test_what_stands_in_the_way_of_every_trace_ends_the_sweep(monkeypatch):
    """A worker without torch is not a row's error."""

    def missing(task):
        raise MissingExtraError("the traced engine runs torch", hint='pip install "qplan[torch]"')

    monkeypatch.setattr("planner.sweeping.traced_points.trace_point", missing)
    with pytest.raises(MissingExtraError):
        list(sweep(TINY, gpu="t4", engine="traced", batch_size=[1, 2]).rows())
