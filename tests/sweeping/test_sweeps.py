"""`planner.sweep`: rows in order, files that resume, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import QplanError, estimate, sweep
from planner.errors import InvalidOutputError, InvalidRecipeError, MissingExtraError, UnknownModelError
from planner.sweeping import deciding
from planner.sweeping import sweeps as sweeping
from planner.sweeping.deciding import judge

TINY = "EleutherAI/pythia-14m"


def test_a_sweep_is_estimates_in_a_loop():
    """Every row has what the single estimate has, in the order of the loops, verdict and reserve included."""
    models, cards = [TINY, "openai-community/gpt2"], ["t4", "2GiB"]
    found = sweep(models, gpu=cards, stack="latest", simulate="all", batch_size=[1, 16], seq_len=[64, 256])
    rows = iter(found.rows())
    for model in (TINY, "openai-community/gpt2"):
        for gpu in ("t4", "2GiB"):
            for batch in (1, 16):
                for length in (64, 256):
                    report, row = estimate(model, gpu=gpu, stack="latest", batch_size=batch, seq_len=length), next(rows)

                    assert row == {
                        "model": model, "gpu": report.device.name, "batch_size": batch, "seq_len": length,
                        "allocated_bytes": report.peak.allocated_bytes, "reserved_bytes": report.peak.reserved_bytes,
                        "process_bytes": report.peak.process_bytes, "phase": report.peak.phase, "outcome": report.verdict.outcome,
                        "headroom_bytes": report.verdict.headroom_bytes, "simulated": True, "error": None,
                    }  # fmt: skip
    assert next(rows, None) is None
    assert (len(found), list(found.axes)) == (16, ["model", "gpu", "batch_size", "seq_len"])


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from((TINY, "EleutherAI/pythia-70m", "HuggingFaceTB/SmolLM2-135M")),
    st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(1, 900), min_size=1, max_size=3, unique=True),
    st.sampled_from(("1GiB", "2GiB", "3GiB", "t4")),
    st.sampled_from(({}, {"attn": "eager"}, {"loss": "full", "gradient_checkpointing": False}, {"method": "full"})),
)
def test_outcomes_are_those_of_single_estimates(model, batches, lengths, gpu, knobs):
    """However a row is decided, its outcome, its peak and, where it was simulated, its sizes are the single estimate's."""
    for row in sweep(model, gpu=gpu, stack="latest", batch_size=batches, seq_len=lengths, **knobs).rows():
        report = estimate(model, gpu=gpu, stack="latest", batch_size=row["batch_size"], seq_len=row["seq_len"], **knobs)

        assert (row["outcome"], row["allocated_bytes"]) == (report.verdict.outcome, report.peak.allocated_bytes)
        if row["simulated"]:
            assert row["headroom_bytes"] == report.verdict.headroom_bytes
        else:
            assert row["reserved_bytes"] is row["process_bytes"] is row["headroom_bytes"] is None


def test_rows_are_computed_when_they_are_read(monkeypatch):
    """Ten billion points cost nothing until somebody asks; the first come at once; what was read is kept."""
    huge = sweep(TINY, gpu="t4", simulate="none", rank=range(1, 101), batch_size=range(1, 10_001), seq_len=range(1, 10_001))
    batch = next(huge.batches())

    assert len(huge) == 10**10
    assert len(batch["seq_len"]) <= sweeping.CHUNK and batch["rank"][0] == batch["batch_size"][0] == 1
    small = sweep(TINY, gpu="t4", batch_size=[1, 2])
    first = list(small.rows())
    monkeypatch.setattr(small, "_computer", None, raising=False)
    assert list(small.rows()) == first


def test_progress_counts_every_row():
    """It ends at the number of rows, and never goes back."""
    told = []
    list(sweep(TINY, gpu=["1GiB", "t4"], batch_size=range(1, 6), progress=lambda done, total: told.append((done, total))).rows())

    assert told[-1] == (10, 10)
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"models": []}, InvalidRecipeError, "models is empty"),
        ({"models": "no/such-model-here.json"}, UnknownModelError, "no file or folder"),
        ({"gpu": []}, InvalidRecipeError, "gpu is an axis without values"),
        ({"engine": "measured"}, InvalidRecipeError, "engine is `measured`"),
        ({"simulate": "some"}, InvalidRecipeError, "simulate is `some`"),
        ({"batch_size": [0]}, InvalidRecipeError, "batch_size is 0"),
        ({"jobs": 2}, InvalidRecipeError, "the closed form runs in this process"),
        ({"jobs": 0, "engine": "traced"}, InvalidRecipeError, "jobs is 0"),
        ({"jobs": 1, "engine": "traced", "executor": ThreadPoolExecutor(1)}, InvalidRecipeError, "both an executor and jobs"),
    ],
)
def test_bad_requests_are_refused_as_a_whole(arguments, kind, message):
    """Before any row is computed, in a sentence."""
    with pytest.raises(kind, match=message):
        sweep(**{"models": TINY, **arguments})


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """A process that is killed amid a sweep leaves no file, but what it did; the next does only the rest, and writes the same rows."""
    monkeypatch.setattr(sweeping, "CHUNK", 4)
    code = (
        "from planner import sweep; from planner.sweeping import sweeps; sweeps.CHUNK = 4; import time, sys; "
        "slow = lambda done, total: (print(done, flush=True), time.sleep(0.2)); "
        f"sweep({TINY!r}, gpu='2GiB', stack='latest', simulate='all', batch_size=range(1, 5), seq_len=range(64, 704, 64), progress=slow)"
        f".write({str(tmp_path / 'out.csv')!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
        while int(killed.stdout.readline()) < 10:
            time.sleep(0.01)
        killed.kill()
    knobs = {"gpu": "2GiB", "stack": "latest", "simulate": "all", "batch_size": range(1, 5), "seq_len": range(64, 704, 64)}
    simulated = []
    monkeypatch.setattr(deciding, "judge", lambda *run: simulated.append(1) or judge(*run))

    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(InvalidOutputError, match="parts of another sweep"):
        sweep(TINY, **{**knobs, "rank": 8}).write(tmp_path / "out.csv")
    sweep(TINY, **knobs).write(tmp_path / "out.csv")
    assert len(simulated) <= 40 - 10
    sweep(TINY, **knobs).to_csv(tmp_path / "whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "whole.csv"]


def test_only_rows_that_run_are_written(tmp_path):
    """`fits_only` leaves the others out of the file, and keeps them beside it while it is made."""
    found = sweep(TINY, gpu="1GiB", batch_size=[1, 4096], seq_len=1024)
    found.write(tmp_path / "out.jsonl", fits_only=True)

    assert (tmp_path / "out.jsonl").read_text().count("\n") == len(found.fits_only()) == 1


def test_a_trace_needs_its_libraries(monkeypatch):
    """Without them the sweep is refused at once, with the command that installs them."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as missing:
        sweep(TINY, engine="traced")

    assert missing.value.hint == 'pip install "qplan[torch]"'


def test_errors_are_of_one_family():
    """Whoever catches QplanError catches them."""
    with pytest.raises(QplanError):
        sweep(TINY, no_such_knob=[1])
