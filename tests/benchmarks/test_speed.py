"""
The speed budgets, as ratios within one run, so that a slow machine judges as a fast one does.

    pytest -m benchmark
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

ROUNDS = 9
LLAMA_70B = "meta-llama/Llama-2-70b-hf"
BASELINE = (sys.executable, "-c", "import typer, pydantic, rich.table")
COLD_RATIO = 1.5
WARM_SECONDS = 0.002


def seconds(command: tuple[str, ...], environment: dict[str, str]) -> float:
    """Wall time of one process; its exit code may be the verdict's (0 or 1)."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    taken = time.perf_counter() - began
    assert done.returncode in (0, 1), done.stderr.decode()
    return taken


def test_the_cold_command_is_little_more_than_its_imports(repository: Path, tmp_path: Path):
    """`qplan estimate` from a cold start takes at most 1.5 times what importing its libraries takes."""
    # bytecode of both is compiled once, as an installation does, wherever and however this suite runs
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": str(repository)}
    script = Path(sysconfig.get_path("scripts")) / "qplan"
    qplan = (str(script),) if script.exists() else (sys.executable, "-c", "from planner.cli import main; main()")
    estimate = (*qplan, "estimate", LLAMA_70B, "--rank", "16")
    seconds(BASELINE, environment)  # both once before the clock counts: bytecode and disk caches
    seconds(estimate, environment)
    # in turns, so that a machine that slows down for a while slows both
    pairs = [(seconds(BASELINE, environment), seconds(estimate, environment)) for _ in range(ROUNDS)]
    baseline, ours = (statistics.median(times) for times in zip(*pairs, strict=True))

    assert ours <= COLD_RATIO * baseline, f"cold estimate {ours:.3f} s, imports alone {baseline:.3f} s"


def test_a_warm_estimate_takes_two_milliseconds():
    """Inside a warm process, an estimate of an 80-layer model takes under 2 ms."""
    from planner import estimate

    times = []  # of this process alone: what else the machine does is not the estimate's
    for length in range(512, 512 + 40):  # another batch each time, as a sweep asks: no answer is a remembered one
        began = time.process_time()
        report = estimate(LLAMA_70B, rank=16, seq_len=length, gpu="a6000")
        times.append(time.process_time() - began)
        assert report.peak.allocated_bytes > 0
    median = statistics.median(times[10:])

    assert median < WARM_SECONDS, f"median {1000 * median:.2f} ms, all: {json.dumps([round(1000 * t, 2) for t in times])}"
