"""`verify`: measured beside predicted, from the request to the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner import measuring, verify
from planner.errors import InvalidRecipeError, UnavailableError
from planner.verification import Verification

pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from tests.engines.measured.runs import MODELS, in_process  # noqa: E402
from tests.hub_server import Repository, serve  # noqa: E402
from tests.test_hub import point_library_to  # noqa: E402

PHASES = ("load", "prepare", "forward", "backward", "optimizer_step", "evaluation", "save")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where records are kept meanwhile."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def verified(home: Path) -> Verification:
    """One verification of a small model on the CPU, as a user asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPLAN_HOME", str(home))
        return verify(MODELS["llama"], device="cpu", seq_len=64, steps=1)


def test_a_record_is_kept(verified: Verification, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the rows that were shown, and nothing but a record's fields."""
    from planner.records import WHITELIST, Store

    monkeypatch.setenv("QPLAN_HOME", str(home))
    (record,) = Store().read().records

    assert record.comparison == verified.rows
    assert (record.origin, record.engine, record.card) == ("verify", "traced", None)
    assert set(record.model_dump()) == set(WHITELIST[""])


def test_a_record_that_cannot_be_kept_is_a_note(verified: Verification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the folder would be: the measurement is not lost."""
    from planner import verifying

    (tmp_path / "home").write_text("", encoding="utf-8")
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))
    found = verifying.keep(verified, measuring.ordered(MODELS["llama"], {"seq_len": 64}, device="cpu"))

    assert found.rows == verified.rows
    assert "no record was kept" in found.notes[-1]


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


def test_out_of_memory_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a ceiling: where it failed, with what alive, beside what the plan needs."""
    monkeypatch.setattr("planner.verifying.run_child", in_process)
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as `save_pretrained` writes it."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("checkpoint")
    config = transformers.LlamaConfig(**{name: value for name, value in MODELS["llama"].items() if name != "model_type"})
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_weights_of_a_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers loads them, and every phase but loading itself is what the trace says."""
    monkeypatch.setattr("planner.verifying.run_child", in_process)
    found = verify(str(checkpoint), device="cpu", seq_len=64, steps=1, weights=str(checkpoint), record=False)

    assert found.failure is None
    assert {row.difference_bytes for row in found.rows if row.phase not in ("load", "prepare")} == {0}


def test_weights_of_the_hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child downloads the real checkpoint from the Hub, here one on loopback, by the id that was planned."""
    from huggingface_hub import constants

    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    variables = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    with serve() as server:
        server.repositories["lab/tiny"] = Repository(files)
        point_library_to(server.endpoint, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name, value in {**variables, "HF_ENDPOINT": server.endpoint}.items():
            monkeypatch.setenv(name, value)
        found = verify("lab/tiny", device="cpu", seq_len=64, steps=1, weights="hub", record=False)

    assert any(request.startswith("GET") and request.endswith("/model.safetensors") for request in server.requests), server.requests
    assert found.failure is None
    assert {row.difference_bytes for row in found.rows if row.phase not in ("load", "prepare")} == {0}


def test_two_at_once(tmp_path: Path) -> None:
    """Two commands at the same time on the same device: each measures its own run, and both records are there."""
    from planner.records import Store

    model = tmp_path / "config.json"
    model.write_text(json.dumps(MODELS["llama"]), encoding="utf-8")
    command = [sys.executable, "-m", "planner", "verify", str(model), "--device", "cpu", "--method", "lora", "--steps", "1", "--json"]
    environment = {**os.environ, "QPLAN_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, "--seq-len", length], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for length in ("32", "48")
    ]
    for done in running:
        out, error = done.communicate(timeout=300)

        assert done.returncode == 0, error
        assert {row["difference_bytes"] for row in json.loads(out)["comparison"]} == {0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QPLAN_HOME", str(tmp_path / "home"))

        assert sorted(record.recipe["seq_len"] for record in Store().read().records) == [32, 48]
