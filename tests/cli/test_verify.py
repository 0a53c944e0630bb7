"""`qplan verify` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner import cli
from planner.errors import MeasurementError
from tests.render.test_verify import FAILURE, verification


def answer(monkeypatch: pytest.MonkeyPatch, found: Any) -> dict[str, Any]:
    """Another measurement in the real one's place; what it was asked for."""
    asked: dict[str, Any] = {}

    def measured(model: str, **given: Any) -> Any:
        asked.update(given, model=model)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("planner.verifying.verify", measured)
    return asked


def test_options_reach_the_measurement(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Knobs of the recipe as for estimate, and those of the measurement."""
    asked = answer(monkeypatch, verification())
    typed = "verify tiny --rank 8 --device cpu --steps 3 --weights hub --ceiling 2MiB --timeout 9.5 --no-record"

    assert cli.run(typed.split()) == 0
    assert capsys.readouterr().out.startswith("MEASURED on the CPU")
    expected = {"model": "tiny", "rank": 8, "device": "cpu", "steps": 3, "weights": "hub", "ceiling": 2 << 20, "timeout": 9.5}
    assert {**expected, "record": False}.items() <= asked.items()


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """0: it ran; 1: memory ran out; 2: nothing was measured, told on standard error."""
    codes = []
    for found in (verification(), verification(measured=None, failure=FAILURE), MeasurementError("it hung", hint="wait")):
        answer(monkeypatch, found)
        codes.append(cli.run(["verify", "tiny"]))

    assert codes == [0, 1, 2]
    assert "error: it hung\nhint: wait" in capsys.readouterr().err


def test_json_is_all_that_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One document."""
    answer(monkeypatch, verification())
    cli.run(["verify", "tiny", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert found["comparison"][0] == {
        "phase": "forward", "category": None, "measured_bytes": 7 << 20, "predicted_bytes": 9 << 20, "difference_bytes": 2 << 20,
    }  # fmt: skip


def test_max_asks_for_a_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 where it is the predicted one, else 1."""
    from planner.limits import Limit

    found = {"batch-size": Limit("tiny", "batch_size", 1, "cpu", 9, 2, 2), "seq-len": Limit("tiny", "seq_len", 64, "cpu", 9, 64, 128)}
    monkeypatch.setattr("planner.limits.find_limit", lambda model, *, vary, **_: found[vary])

    assert cli.run(["verify", "tiny", "--max"]) == 0
    assert cli.run(["verify", "tiny", "--max", "--vary", "seq-len"]) == 1
    assert "seq-len 128, predicted was 64" in capsys.readouterr().out


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit code 3, and the way out."""
    monkeypatch.setattr("planner.sampling.device_seen", lambda *_, **__: None)
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, '
        '"num_attention_heads": 2}', encoding="utf-8",
    )  # fmt: skip

    assert cli.run(["verify", str(tmp_path)]) == 3
    assert "--device cpu" in capsys.readouterr().err


def test_every_option_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the measurement stand in a group of their own."""
    cli.run(["verify", "--help"])
    text = capsys.readouterr().out

    assert "The measurement" in text
    assert all(option in text for option in ("--weights", "--steps", "--device", "--ceiling", "--timeout", "--max", "--vary", "--record"))
