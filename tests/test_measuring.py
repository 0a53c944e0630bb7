"""Children that measure, and what becomes of those that die, hang, lose their parent or train nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from planner import measuring
from planner.errors import InvalidRecipeError, MeasurementError, UnsupportedModelError
from planner.supervision import Ending, supervise
from tests.test_supervision import ATTEND, gone

pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from tests.engines.measured.runs import MODELS, job  # noqa: E402

PHASES = ("load", "prepare", "forward", "backward", "optimizer_step", "evaluation", "save")


def killed_in(phase: str) -> tuple[Ending, int]:
    """A measuring child that is killed when a phase begins."""
    pids: list[int] = []

    def heard(message: dict[str, Any]) -> None:
        if message.get("phase") == phase and message["begins"] and not pids:
            child = next(int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and marker in _environ(p.name))
            pids.append(child)
            os.kill(child, signal.SIGKILL)

    marker = f"QPLAN_TEST_PHASE={phase}-{os.getpid()}"
    name, _, value = marker.partition("=")
    small, variables = job(method="lora", seq_len=16, entry_point="trainer", loss="full"), {name: value, "OMP_NUM_THREADS": "1"}
    ending = supervise(measuring.PROGRAM, small, timeout_s=300, on_message=heard, environment=variables)
    return ending, pids[0]


def _environ(pid: str) -> str:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return text if os.getpgid(int(pid)) == int(pid) else ""
    except OSError:
        return ""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="children are found by /proc")
def test_a_child_that_is_killed_in_any_phase() -> None:
    """SIGKILL when each phase begins: the parent says which signal and which phase, and the process is gone."""
    with ThreadPoolExecutor(3) as pool:
        endings = dict(zip(PHASES, pool.map(killed_in, PHASES), strict=True))
    for phase, (ending, pid) in endings.items():
        error = measuring.trouble(ending)

        assert (ending.how, ending.signal) == ("killed", signal.SIGKILL), ending.stderr
        assert "SIGKILL" in str(error)
        assert measuring.WORDS[phase] in str(error)
        assert not any("result" in message for message in ending.messages)
        assert gone(pid)


def test_a_parent_that_is_killed_takes_its_measurement_with_it(tmp_path: Path) -> None:
    """The real child, in the middle of a forward, is gone with its watchdog."""
    told = tmp_path / "job.json"
    told.write_text(json.dumps({**job(method="lora", seq_len=512, batch_size=4), "steps": 500}), encoding="utf-8")
    program = (
        "import json, sys\nfrom planner import measuring\nfrom planner.supervision import supervise\n"
        "def heard(m):\n  if m.get('phase') == 'forward': print('forward', flush=True)\n"
        "supervise(measuring.PROGRAM, json.load(open(sys.argv[1])), timeout_s=300, on_message=heard)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(told)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "forward\n"
    children = [int(p) for p in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert len(children) == 1
    assert gone(children[0])


def fake(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Another program in the child's place."""
    monkeypatch.setattr(measuring, "PROGRAM", (sys.executable, "-c", ATTEND + program))


def test_a_hung_child_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where it hung and what to do."""
    fake(monkeypatch, "import time; channel.send({'phase': 'backward', 'begins': True}); time.sleep(600)")
    began = time.monotonic()
    with pytest.raises(MeasurementError, match="time limit and was ended in backward") as error:
        measuring.run_child({}, timeout=1.5)

    assert "--timeout" in str(error.value.hint)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("channel.send({'not_real': 'the loss is nan'})", MeasurementError, "not real: the loss is nan"),
        (
            "channel.send({'refused': {'error': 'UnsupportedModelError', 'message': 'no such', 'hint': None}})",
            UnsupportedModelError,
            "no such",
        ),
        ("raise SystemError('of its own')", MeasurementError, "exit code 1 before it began: SystemError: of its own"),
        ("pass", MeasurementError, "exit code 0"),
    ],
)
def test_what_a_child_says_becomes_an_error(monkeypatch: pytest.MonkeyPatch, program: str, kind: type[Exception], words: str) -> None:
    """Steps that are not real, refusals and crashes, each in one sentence."""
    fake(monkeypatch, program)
    with pytest.raises(kind, match=words):
        measuring.run_child({})


@pytest.mark.parametrize("text", ["", "0", "-1", "2GB", "much", "1e9", "1.5.2MiB"])
def test_sizes_that_are_none(text: str) -> None:
    """A ceiling is bytes, KiB, MiB or GiB."""
    with pytest.raises(InvalidRecipeError, match="no size"):
        measuring.size(text)


def test_a_changed_knob_changes_what_follows_from_it() -> None:
    """Batches above one have a mask, as `resolve` says of a recipe that was asked for so."""
    order = measuring.ordered(MODELS["llama"], {"seq_len": 64}, device="cpu")

    assert (order.recipe.padding, order.resolved(batch_size=2).padding) == (False, True)
    assert order.job(3)["recipe"]["seq_len"] == 64
    assert order.job(3, order.resolved(seq_len=128))["recipe"]["seq_len"] == 128
