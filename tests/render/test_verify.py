"""The screens of `qplan verify`: a table, a failure, a limit."""

from __future__ import annotations

import json
from typing import Any

from planner.ledger import Allocation, Category, Ledger, Phase, Span
from planner.limits import Limit, Try
from planner.render import limit, verify
from planner.render.terminal import Terminal
from planner.report import ModelReport, PhaseReport
from planner.simulation import Failure
from planner.units import MIB
from planner.value import replace
from planner.verification import Apart, Side, Verification

RECIPE = {"batch_size": 1, "seq_len": 64, "method": "lora", "optim": "adamw_torch"}
FAILURE = Failure("allocation", "model.layers.1.mlp", "backward", 2 * MIB, 7 * MIB, 7 * MIB, {"parameter": 4 * MIB, "activation": 3 * MIB})


def side(engine: str, activation: int) -> Side:
    """A forward of weights and one activation."""
    rows = [Allocation("weight", Category.PARAMETER, 6 * MIB, 0, 2), Allocation("aten.mm", Category.ACTIVATION, activation, 1, 2, "mlp")]
    ledger = Ledger(engine, rows, [Span(Phase.FORWARD, 0, 2)])
    phases = (PhaseReport("forward", 6 * MIB + activation, {"parameter": 6 * MIB, "activation": activation}),)
    return Side(engine, ledger, phases, 6 * MIB, 0, 10)


def verification(**changes: Any) -> Verification:
    """Measured is two mebibytes less than predicted."""
    found = Verification(
        ModelReport("tiny", "llama", "file", 10, 0, 10), RECIPE, {}, "cpu", "synthetic", side("measured", MIB), side("traced", 3 * MIB),
        losses=(6.5, 6.25), notes=("a note",),
    )  # fmt: skip
    return replace(found, **changes)


def test_what_differs_is_shown_and_told() -> None:
    """Sums, categories, differences in bytes and percent, and a sentence that names the largest of what is more."""
    text = "\n".join(verify.lines(verification(), Terminal()))

    assert "MEASURED on the CPU: 7.0 MiB allocated, in forward; predicted +28.57 %" in text
    assert any(line.split() == ["forward", "7.000", "9.000", "+2.000", "+28.57", "%"] for line in text.splitlines())
    assert any(line.split() == ["activation", "1.000", "3.000", "+2.000", "+200.00", "%"] for line in text.splitlines())
    words = " ".join(text.split())
    why = "2.0 MiB more was predicted than was measured; most of it is activation (2.0 MiB), whose largest predicted is aten.mm of mlp"
    assert why in words
    assert "loss 6.5, then 6.25" in words
    assert "* a note" in text


def test_what_agrees_needs_no_words() -> None:
    """No explanation where no phase differs."""
    same = verification(predicted=side("traced", MIB))

    assert same.explanations == ()
    assert "predicted +0.00 %" in verify.lines(same, Terminal())[0]


def test_on_a_card_every_level_is_shown() -> None:
    """Reserved and process beside allocated, and what was measured apart."""
    card = {"reserved_bytes": 10 * MIB, "process_bytes": 200 * MIB}
    found = verification(
        device="Tesla T4", measured=replace(side("measured", MIB), **card), predicted=replace(side("traced", MIB), **card),
        apart=Apart(150 * MIB, 8 * MIB, 3 * MIB),
    )  # fmt: skip
    text = "\n".join(verify.lines(found, Terminal()))

    assert any(line.split()[:3] == ["process", "200.000", "200.000"] for line in text.splitlines())
    assert "measured apart: CUDA context 0.15 GiB, cuBLAS workspaces 8.0 MiB, reserve 3.0 MiB" in " ".join(text.split())


def test_a_failure_is_a_result() -> None:
    """Where, how much, what was alive, and what the plan needs; JSON has no measured side."""
    found = verification(measured=None, failure=FAILURE)
    text = " ".join("\n".join(verify.lines(found, Terminal())).split())
    dumped = json.loads(verify.as_json(found))

    assert "OUT OF MEMORY on the CPU, in backward" in text
    assert "2.0 MiB more was asked for in model.layers.1.mlp, with 7.0 MiB allocated." in text
    assert "parameter 4.0 MiB, activation 3.0 MiB" in text
    assert "The plan has 9.0 MiB allocated at its peak, in forward." in text
    assert dumped["measured"] is None
    assert dumped["failure"]["requested_bytes"] == 2 * MIB


def test_a_limit_is_shown_with_its_tries() -> None:
    """Each run with its peak, or with what it would have needed; the headline says whether the plan was right."""
    tries = (Try(2, runs=True, allocated_bytes=7 * MIB, failure=None, seconds=3.0), Try(3, False, None, FAILURE, 4.0))
    found = Limit("tiny", "batch_size", 1, "cpu", 8 * MIB, 2, 2, tries)
    rows = limit.lines(found, Terminal())

    assert rows[0] == "LIMIT on the CPU under 8.0 MiB: batch-size 2, as predicted"
    assert rows[4].split() == ["2", "ran", "7.0", "MiB", "3"]
    assert rows[5].split() == ["3", "out", "of", "memory", "in", "backward", ">", "9.0", "MiB", "4"]
    assert "predicted was 4" in limit.lines(replace(found, predicted=4), Terminal())[0]
    assert json.loads(limit.as_json(found))["agrees"] is True
