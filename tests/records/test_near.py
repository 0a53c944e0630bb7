"""Which record says most about a run."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest

from planner import catalog, cli, estimate, stack
from planner.architecture import build_spec
from planner.device import Device
from planner.recipe import make_recipe
from planner.records import Store, nearest
from planner.units import GIB
from tests.records.sample import A100, CONFIG, NOON, sample

SPEC = build_spec(CONFIG, id="x")


def run(**knobs):
    """A resolved recipe."""
    return stack.resolve(make_recipe(**knobs), stack.LATEST, SPEC.dtype)


def test_the_nearest_by_the_ratio_of_tokens_is_taken():
    """For 1024 tokens, 2048 is nearer than 256, and 3 x 512 is nearer than 2048."""
    records = [sample(seq_len=256), sample(seq_len=2048), sample(batch_size=3, seq_len=512)]
    found = nearest(records, A100, SPEC, run(seq_len=1024))

    assert (found.record.tokens, found.num_records) == (1536, 3)


def test_of_equal_tokens_the_nearest_in_parameters_then_the_newest():
    """A model of another size counts only after tokens; of two alike, the later."""
    large = {**CONFIG, "hidden_size": 128}
    early, late = sample(), sample(now=NOON + timedelta(days=1))
    found = nearest([sample(config=large), late, early], A100, SPEC, run())

    assert found.record == late


@pytest.mark.parametrize(
    "record",
    [
        sample(device=None),
        sample(device=Device("NVIDIA A100-SXM4-40GB", 40 * GIB, (8, 0))),
        sample(device=Device(A100.name, 80 * GIB, (9, 0))),
        sample(config={**CONFIG, "model_type": "mistral"}),
        sample(method="lora"),
        sample(quantization="fp4"),
    ],
)
def test_what_is_not_near_is_not_taken(record):
    """Another card, family, method or quantisation says nothing."""
    assert nearest([record], A100, SPEC, run()) is None


def test_no_records_no_answer():
    """Nothing to say."""
    assert nearest([], A100, SPEC, run()) is None


QWEN = "Qwen/Qwen2.5-0.5B"


def kept(tmp_path, monkeypatch, **knobs) -> Store:
    """A user who verified Qwen2.5-0.5B on an A100."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path))
    checkpoint = catalog.find_checkpoint(QWEN)
    store = Store()
    store.add(sample(device=catalog.find_device("A100-80GB"), config=checkpoint.config, id=QWEN, **knobs))
    return store


def test_an_estimate_shows_the_nearest_record_of_its_card(tmp_path, monkeypatch, capsys):
    """On the screen and in `--json`; on another card nothing."""
    kept(tmp_path, monkeypatch, seq_len=1024)
    report = estimate(QWEN, gpu="A100-80GB")
    codes = [cli.run(["estimate", QWEN, "--gpu", gpu]) for gpu in ("A100-80GB", "t4")]
    here, there = capsys.readouterr().out.split("\nQwen/")[1:]

    assert codes == [0, 0]
    assert (report.near.record.tokens, report.model_dump()["near_record"]["seq_len"]) == (1024, 1024)
    assert "record verified on such a card: Qwen/Qwen2.5-0.5B, 1 x 1024 tokens, 2026-11-28" in " ".join(here.split())
    assert "+20.00 %" in here
    assert "verified on such a card" not in there
    assert "near_record" not in estimate(QWEN, gpu="t4").model_dump()


def test_an_estimate_moves_no_file(tmp_path, monkeypatch):
    """A damaged file beside the records is skipped, and left to `qplan records`."""
    store = kept(tmp_path, monkeypatch)
    (store.folder / "bad.json").write_text("{")

    assert estimate(QWEN, gpu="A100-80GB").near is not None
    assert (store.folder / "bad.json").exists()


def test_records_of_other_cards_load_nothing(tmp_path, monkeypatch):
    """A user with records of an A100 asks about a T4: a look into the files is enough."""
    kept(tmp_path, monkeypatch)
    code = "import sys; from planner import estimate; print(estimate('Qwen/Qwen2.5-0.5B', gpu='t4').near, 'planner.records' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "None False\n"


def test_without_records_nothing_of_them_is_loaded(tmp_path):
    """A whole estimate on a named card: neither the records' room nor the profile's is imported, and no folder is made."""
    code = (
        "import sys; from planner import cli; cli.run(['estimate', 'Qwen/Qwen2.5-0.5B', '--gpu', 't4']); "
        "print([name for name in ('planner.records', 'planner.own_values') if name in sys.modules])"
    )
    environment = {**os.environ, "QPLAN_HOME": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)

    assert done.stdout.splitlines()[-1] == "[]"
    assert not (tmp_path / "none").exists()
