"""
Sweeps against their budgets, in the processor time of this process: what else the machine does is not the sweep's.

    pytest -m benchmark tests/benchmarks/test_sweep_speed.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner import api, sweep

pytestmark = pytest.mark.benchmark

LLAMA_7B = "meta-llama/Llama-2-7b-hf"
ROWS_PER_SECOND = 1_000_000
MOST_MEMORY = 1 << 30

CODE = """
import json, resource, sys, time
import pyarrow.parquet
from planner import sweep
sweep({model!r}, gpu="a6000", simulate="none", batch_size=range(1, 65)).columns
found = sweep({model!r}, gpu="a6000", stack="latest", simulate="none", rank={ranks}, batch_size=range(1, 65), seq_len={lengths})
began = time.process_time()
found.to_parquet(sys.argv[1])
print(json.dumps([len(found), time.process_time() - began, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def written(path: Path, ranks: str, lengths: str) -> tuple[int, float, int]:
    """Rows, seconds of processor time and the most memory of a process that writes a sweep."""
    code = CODE.format(model=LLAMA_7B, ranks=ranks, lengths=lengths)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # one core
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment)
    rows, seconds, memory = json.loads(done.stdout)
    return rows, seconds, memory


def test_a_million_rows_a_second_in_constant_memory(tmp_path: Path):
    """Over batch, length and rank of one model and card, three million rows are computed and written at more than a million a second."""
    tries = [written(tmp_path / f"{i}.parquet", "[8, 16, 32, 64, 128]", "range(16, 9_801 * 16, 16)") for i in range(3)]
    rows, seconds, memory = min(tries, key=lambda one: one[1])

    assert rows > 3_000_000 and memory < MOST_MEMORY
    assert rows / seconds > ROWS_PER_SECOND, f"{rows:,} rows in {seconds:.2f} s of processor time"


@pytest.mark.slow
def test_ten_million_rows_in_less_than_a_gibibyte(tmp_path: Path):
    """The memory of a sweep that is written does not hang on its length."""
    rows, seconds, memory = written(tmp_path / "out.parquet", "[4, 8, 16, 32, 64, 128, 192, 256] * 2", "range(16, 9_801 * 16, 16)")

    assert rows > 10_000_000 and memory < MOST_MEMORY
    assert rows / seconds > ROWS_PER_SECOND, f"{rows:,} rows in {seconds:.2f} s"


def test_many_models_on_many_cards():
    """Five models on thirty cards by a thousand points: 150,000 rows in a twentieth of what a hundred models may take, with room."""
    models = [LLAMA_7B, "meta-llama/Llama-3.1-8B", "mistralai/Mistral-7B-v0.1", "Qwen/Qwen3-8B", "openai-community/gpt2"]
    found = sweep(
        models, gpu=api.gpus()[:30], stack="latest", simulate="none", batch_size=range(1, 11), seq_len=range(256, 25_601, 256)
    )  # fmt: skip
    began = time.process_time()
    rows = sum(len(table) for table in found.tables())
    seconds = time.process_time() - began

    assert rows == len(found) == 150_000
    assert seconds < 5, f"{seconds:.2f} s"
