"""`verify`: children that measure, and what becomes of those that die, hang, lose their parent or train nothing."""

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

from planner import measuring, verify
from planner.errors import InvalidRecipeError, MeasurementError, UnavailableError, UnsupportedModelError
from planner.supervision import Ending, supervise
from planner.verification import Verification
from tests.test_supervision import ATTEND, gone

pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from tests.engines.measured.runs import MODELS, job  # noqa: E402

PHASES = ("load", "prepare", "forward", "backward", "optimizer_step", "evaluation", "save")


@pytest.fixture(scope="module")
def verified() -> Verification:
    """One verification of a small model on the CPU, as a user asks for it."""
    return verify(MODELS["llama"], device="cpu", seq_len=64, steps=1)


def test_measured_is_predicted(verified: Verification) -> None:
    """In a process of its own, every phase and category is what the trace says; the promise is one in a hundred."""
    levels = verified.levels["allocated"]

    assert abs(levels.measured_bytes - levels.predicted_bytes) * 100 <= levels.measured_bytes
    assert {row.difference_bytes for row in verified.rows} == {0}
    assert {row.phase for row in verified.rows if row.category is None} >= set(PHASES[:-1])
    assert verified.failure is None
    assert verified.explanations == ()
    assert all(abs(loss - 6.24) < 0.5 for loss in verified.losses)


def test_the_contract_of_json(verified: Verification) -> None:
    """Both sides have the fields of an estimate's report, sizes are integers, and no path or host is in it."""
    found = json.loads(json.dumps(verified.model_dump()))
    from planner import estimate

    report = estimate(MODELS["llama"], seq_len=64, gpu="a6000").model_dump()
    for side in (found["measured"], found["predicted"]):
        assert set(report) == set(side)
        assert {"phase", "allocated_bytes", "reserved_bytes", "process_bytes", "by_category"} <= set(side["peak"])
        assert set(report["model"]) == set(side["model"])
        for phase in side["phases"]:
            assert sum(phase["by_category"].values()) == phase["allocated_peak_bytes"]
    assert {"schema_version", "measured", "predicted", "comparison", "environment"} <= set(found)
    for row in found["comparison"]:
        assert row["predicted_bytes"] - row["measured_bytes"] == row["difference_bytes"]
    text = json.dumps(found)
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text


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


def test_out_of_memory_is_a_result() -> None:
    """In a process of its own under a ceiling: where it failed, with what alive, beside what the plan needs."""
    found = verify(MODELS["llama"], device="cpu", seq_len=64, method="lora", ceiling=3 << 20)
    failure = found.failure
    assert failure is not None

    assert found.measured is None
    assert failure.allocated_bytes <= 3 << 20 < failure.allocated_bytes + failure.requested_bytes
    assert sum(failure.by_category.values()) == failure.allocated_bytes
    assert found.predicted.peak.allocated_peak_bytes > 3 << 20
    assert found.model_dump()["measured"] is None


def test_a_machine_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to do, before anything is imported."""
    monkeypatch.setattr("planner.sampling.device_seen", lambda *_, **__: None)
    with pytest.raises(UnavailableError, match="no NVIDIA GPU") as error:
        verify(MODELS["llama"])

    assert "--device cpu" in str(error.value.hint)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu"}, "device is `tpu`"),
        ({"device": "cuda:x"}, "device is `cuda:x`"),
        ({"device": "cpu", "steps": 0}, "steps is 0"),
        ({"device": "cpu", "steps": "two"}, "steps is 'two'"),
        ({"device": "cpu", "ceiling": -1}, "ceiling is -1"),
        ({"device": "cpu", "timeout": 0}, "timeout is 0"),
        ({"device": "cpu", "weights": "nowhere"}, "weights is `nowhere`"),
        ({"device": "cpu", "weights": "hub"}, "no id on the Hub"),
        ({"device": "cpu", "attn": "flash_attention_2"}, "no kernels for the CPU"),
        ({"device": "cpu", "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_requests(arguments: dict[str, Any], words: str) -> None:
    """Refused before anything runs."""
    with pytest.raises(InvalidRecipeError, match=words):
        verify(MODELS["llama"], **arguments)


@pytest.mark.parametrize("text", ["", "0", "-1", "2GB", "much", "1e9", "1.5.2MiB"])
def test_sizes_that_are_none(text: str) -> None:
    """A ceiling is bytes, KiB, MiB or GiB."""
    with pytest.raises(InvalidRecipeError, match="no size"):
        measuring.size(text)


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", [{}, {"method": "lora"}, {"method": "full", "optim": "adamw_torch"}])
def test_on_a_card(knobs: dict[str, Any]) -> None:
    """Torch's counters agree with the allocator's history, and the plan is within one in a hundred of them."""
    big = {**MODELS["llama"], "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "vocab_size": 32000}
    found = verify(big, seq_len=512, **knobs)
    levels = found.levels["allocated"]

    assert not [note for note in found.notes if "history" in note]
    assert abs(levels.predicted_bytes - levels.measured_bytes) * 100 <= levels.measured_bytes
    assert found.apart.context_bytes is None or found.apart.context_bytes > 0
