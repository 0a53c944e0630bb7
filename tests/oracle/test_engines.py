"""The closed form against the traced engine, which share no formula: bundled checkpoints at full depth with the default recipe."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

for library in ("torch", "transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from tests.oracle.engines import HEADER, Line, checkpoints, compare, summary  # noqa: E402

MEDIAN, WORST = 0.003, 0.01
FAST = (
    "EleutherAI/pythia-160m", "HuggingFaceTB/SmolLM2-360M", "allenai/OLMo-2-0425-1B", "allenai/OLMoE-1B-7B-0924",
    "bigscience/bloom-560m", "facebook/opt-1.3b", "google/gemma-2b", "microsoft/phi-2",
)  # fmt: skip


@cache
def line(name: str) -> Line:
    """Both engines on one checkpoint."""
    return compare(name)


@pytest.mark.parametrize("name", FAST)
def test_peaks_agree(name: str) -> None:
    """Of a step, and of each of its phases, within 1 %."""
    found = line(name)

    assert found.refusals == ()
    assert max(map(abs, (found.error or 0.0, *found.errors.values()))) <= WORST


def test_the_median_of_a_few() -> None:
    """Half of them within 0.3 %."""
    assert statistics.median(abs(line(name).error or 0.0) for name in FAST) <= MEDIAN


@pytest.mark.slow
def test_every_bundled_checkpoint() -> None:
    """All that both engines know: half within 0.3 %, none further off than 1 %, and who refuses says why."""
    found = [compare(name) for name in checkpoints([])]
    errors = {line.id: line.error for line in found if line.error is not None}

    assert statistics.median(map(abs, errors.values())) <= MEDIAN
    assert {name: error for name, error in errors.items() if abs(error) > WORST} == {}
    assert [line.id for line in found if line.error is None and not line.refusals] == []


def test_the_command_prints_a_line_a_model(repository: Path) -> None:
    """The header, a line for each, the summary; a model that PEFT refuses is a line with its reason."""
    command = [sys.executable, "-m", "tests.oracle.engines", "pythia-14m", "Mamba-Codestral"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()

    assert printed[0] == HEADER
    assert [text.strip().split()[0] for text in printed[1:3]] == ["EleutherAI/pythia-14m", "mistralai/Mamba-Codestral-7B-v0.1"]
    assert "out_proj" in printed[2]
    assert printed[3].startswith("1 of 2 compared: median")
    assert "2 of 2" in done.stderr


@pytest.mark.parametrize(("words", "message"), [(["nobody/nothing"], "no bundled checkpoint"), (["--deep"], "unknown option --deep")])
def test_what_the_command_refuses(repository: Path, words: list[str], message: str) -> None:
    """A model that is not bundled and an option that does not exist end it with a sentence."""
    command = [sys.executable, "-m", "tests.oracle.engines", *words]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert message in done.stderr


def test_a_summary_of_nothing() -> None:
    """Says so instead of dividing by it."""
    assert summary([Line("a/b", refusals=("analytic: why",))]) == "none of 1 compared"
