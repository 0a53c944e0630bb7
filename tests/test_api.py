"""The public functions, over an engine of round numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import planner
from planner import api
from planner.allocator.program import run
from planner.device import Device
from planner.errors import InvalidRecipeError, UnknownDeviceError, UnknownModelError, UnsupportedRecipeError
from planner.spec import ModelSpec
from tests import fakes

LLAMA_7B, LLAMA_70B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-hf"
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "torch_dtype": "bfloat16",
}

# design.md, section 5, field by field.
CONTRACT = {
    "schema_version": int,
    "engine": str,
    "model": {
        "id": str,
        "model_type": str,
        "source": str,
        "num_parameters": int,
        "num_quantized_parameters": int,
        "num_trainable_parameters": int,
    },
    "recipe": dict,
    "stack": dict,
    "phases": [{"phase": str, "allocated_peak_bytes": int, "by_category": dict}],
    "peak": {
        "phase": str,
        "allocated_bytes": int,
        "reserved_bytes": int,
        "process_bytes": int,
        "reserved_low_bytes": int,
        "reserved_high_bytes": int,
        "by_category": dict,
    },
    "steady_bytes": int,
    "host": {"ram_peak_bytes": int, "paged_bytes": int, "download_bytes": int},
    "device": {"name": str, "total_bytes": int, "context_bytes": int, "usable_bytes": int},
    "verdict": {
        "outcome": str,
        "required_bytes": int,
        "budget_bytes": int,
        "headroom_bytes": int,
        "binding_phase": str,
        "error_bytes": int,
        "num_flushes": int,
        "failure": type(None),
        "runs_with_expandable_segments": type(None),
    },
    "warnings": list,
}


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def assert_matches(contract, value, path="report"):
    """The value has exactly the contract's keys and types."""
    if isinstance(contract, dict):
        assert set(contract) == set(value), path
        for key, inner in contract.items():
            assert_matches(inner, value[key], f"{path}.{key}")
    elif isinstance(contract, list):
        assert isinstance(value, list), path
        for item in value:
            assert_matches(contract[0], item, f"{path}[]")
    else:
        assert type(value) is contract, path


def test_the_report_has_the_published_fields_and_no_others():
    """`model_dump` is the contract of design.md, and it survives JSON unchanged."""
    report = api.estimate(LLAMA_70B, rank=16, gpu="a6000", stack="latest")

    assert_matches(CONTRACT, report.model_dump())
    assert json.loads(report.model_dump_json()) == report.model_dump()


def test_device_and_verdict_are_null_without_a_card():
    """No card named and none in the machine: the report has neither, and the common cards' verdicts instead."""
    report = api.estimate(LLAMA_70B)

    assert report.model_dump()["device"] is None
    assert report.model_dump()["verdict"] is None
    assert len(report.verdicts) > 3
    assert [c.device.total_bytes for c in report.verdicts] == sorted(c.device.total_bytes for c in report.verdicts)


@pytest.mark.parametrize(
    ("model", "knobs"),
    [
        (LLAMA_70B, {}),
        (LLAMA_70B, {"seq_len": 2048, "batch_size": 2}),
        (LLAMA_7B, {"method": "full"}),
        (LLAMA_7B, {"method": "lora", "seq_len": 1500, "batch_size": 3, "attn": "eager"}),
        ("Qwen/Qwen2.5-0.5B", {"seq_len": 8192, "loss": "full"}),
        ("meta-llama/Llama-3.2-1B", {"method": "full", "optim": "adamw_torch", "seq_len": 4096}),
    ],
)
def test_the_outcomes_of_the_common_cards_are_those_of_their_verdicts(model, knobs):
    """The list without figures takes shortcuts: it says of every card what the verdict says, whose every run goes through the allocator."""
    quick, whole = (api.estimate(model, stack="latest", **knobs) for _ in range(2))
    quick.begin()

    assert [tuple(card) for card in quick.outcomes] == [
        (card.device.name, card.verdict.budget_bytes, card.verdict.outcome) for card in whole.verdicts
    ]
    assert quick.fits == any(card.verdict.fits for card in whole.verdicts)
    assert quick.peak == whole.peak


def test_a_card_without_room_for_what_rests_is_refused_without_a_run(monkeypatch):
    """70 billion weights of half a byte are more than a T4 and an RTX 4090 have: no run is simulated to say so."""
    asked = []
    monkeypatch.setattr("planner.job.verdicts_.outcome_of", lambda simulations, device, engine: asked.append(device.name) or "fits")
    found = {card.name: card.outcome for card in api.estimate(LLAMA_70B, stack="latest").outcomes}

    assert [name for name, outcome in found.items() if outcome == "does_not_fit"] == ["Tesla T4", "NVIDIA GeForce RTX 4090"]
    assert asked == [name for name, outcome in found.items() if outcome == "fits"]


def test_the_outcome_of_a_named_card_is_its_verdict():
    """One card is named: the list has that one."""
    report = api.estimate(LLAMA_7B, gpu="a6000", stack="latest")

    assert [tuple(card) for card in report.outcomes] == [(report.device.name, report.verdict.budget_bytes, report.verdict.outcome)]


def test_the_recipe_in_the_report_is_resolved():
    """Every knob is there under its option's name, and none is left open."""
    recipe = api.estimate(LLAMA_7B, seq_len=2048, targets=["q_proj", "v_proj"]).recipe

    assert set(planner.Recipe().model_dump()) == set(recipe)
    assert recipe["seq_len"] == 2048
    assert recipe["targets"] == ["q_proj", "v_proj"]
    assert [name for name, value in recipe.items() if value is None] == []


def test_parts_equal_the_whole():
    """Categories add up to the peak, and the peak is the highest of the phases."""
    report = api.estimate(LLAMA_7B, gpu="t4")

    assert sum(report.peak.by_category.values()) == report.peak.allocated_bytes
    assert all(sum(phase.by_category.values()) == phase.allocated_peak_bytes for phase in report.phases)
    assert max(phase.allocated_peak_bytes for phase in report.phases) == report.peak.allocated_bytes
    assert report.peak.allocated_bytes <= report.peak.reserved_bytes <= report.peak.process_bytes
    assert report.device.usable_bytes + report.device.context_bytes == report.verdict.budget_bytes


def test_a_model_can_be_an_id_a_file_a_folder_its_fields_or_a_spec(tmp_path):
    """All ways to name a model give the same memory."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    spec = planner.architecture.build_spec(TINY, id="tiny")
    ways = [TINY, spec, str(tmp_path), str(tmp_path / "config.json")]

    assert len({api.estimate(way, rank=4).peak.allocated_bytes for way in ways}) == 1
    assert isinstance(spec, ModelSpec)


def test_a_file_that_changes_is_read_again(tmp_path):
    """A config.json is not remembered from one estimate to the next."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    before = api.estimate(str(path)).model.num_parameters
    path.write_text(json.dumps({**TINY, "num_hidden_layers": 3}))

    assert api.estimate(str(path)).model.num_parameters > before


def test_suggestions_are_re_estimates():
    """Each suggestion saves what planning its knobs saves, and they are ranked by that."""
    knobs = {"rank": 64, "optim": "adamw_torch", "gradient_checkpointing": False, "seq_len": 4096}
    report = api.estimate(LLAMA_7B, gpu="rtx 4090", **knobs)
    saved = [s.saved_bytes for s in report.suggestions]

    assert saved == sorted(saved, reverse=True)
    assert {"gradient_checkpointing": True} in [s.knobs for s in report.suggestions]
    for suggestion in report.suggestions:
        again = api.estimate(LLAMA_7B, gpu="rtx 4090", **{**knobs, **suggestion.knobs})
        assert report.peak.allocated_bytes - again.peak.allocated_bytes == suggestion.saved_bytes
        assert again.verdict == suggestion.verdict


def test_verdicts_judge_every_card_named():
    """Cards come back smallest first, each with the verdict that estimate gives it."""
    found = api.verdicts(LLAMA_7B, ["a100-80gb", "t4"], rank=8)

    assert [card.device.name for card in found] == ["Tesla T4", "NVIDIA A100-SXM4-80GB"]
    assert [card.verdict for card in found] == [api.estimate(LLAMA_7B, gpu=g, rank=8).verdict for g in ("t4", "a100-80gb")]


def test_compare_gives_one_row_a_model_and_method():
    """Every model gets full, lora and qlora; knobs of quantisation go to qlora alone."""
    rows = api.compare([LLAMA_7B, TINY], quantization="fp4", seq_len=1024).rows

    assert [(row.model, row.method) for row in rows] == [
        (model, method) for model in (LLAMA_7B, "llama") for method in ("full", "lora", "qlora")
    ]
    assert [row.error for row in rows] == [None] * 6
    assert rows[0].weights_bytes > 3 * rows[2].weights_bytes


def test_compare_tells_what_one_method_refuses():
    """A refusal is the row's, not the table's."""
    rows = api.compare([LLAMA_7B], loss="liger", stack="latest").rows

    assert all(row.error is not None and "liger" in row.error for row in rows)


def test_faults_of_the_request_are_named():
    """Each fault is an error of its own kind, with what it must be."""
    with pytest.raises(InvalidRecipeError, match="rank is 0"):
        api.estimate(LLAMA_7B, rank=0)
    with pytest.raises(InvalidRecipeError, match="bits is no knob"):
        api.estimate(LLAMA_7B, bits=4)
    with pytest.raises(UnsupportedRecipeError, match="method is `full`"):
        api.estimate(LLAMA_7B, method="full", quantization="nf4")
    with pytest.raises(UnknownDeviceError):
        api.estimate(LLAMA_7B, gpu="voodoo2")
    with pytest.raises(UnknownModelError):
        api.estimate("no/such model")
    with pytest.raises(InvalidRecipeError, match="engine is `oracle`"):
        api.estimate(LLAMA_7B, engine="oracle")
    with pytest.raises(InvalidRecipeError, match="traced engine runs what is installed"):
        api.estimate(LLAMA_7B, engine="traced", stack="transformers==4.44.0")


def test_a_card_without_bf16_is_warned_about():
    """A T4 has no bf16 arithmetic, and the default recipe asks for it."""
    warned = api.estimate(LLAMA_7B, gpu="t4").warnings

    assert any("bf16" in warning for warning in warned)
    assert api.estimate(LLAMA_7B, gpu="a6000").warnings == ()


def test_the_local_card_is_judged_where_none_is_named(monkeypatch):
    """Its budget is what other processes leave of it."""
    card = Device("NVIDIA RTX A6000", 48 << 30, (8, 6), used_bytes=40 << 30, note="this machine's card")
    monkeypatch.setattr("planner.catalog.local_device", lambda: card)
    report = api.estimate(LLAMA_70B)

    assert report.device.name == card.name
    assert report.verdict.budget_bytes == 8 << 30
    assert report.verdict.outcome == "does_not_fit"
    assert [found.verdict for found in report.verdicts] == [report.verdict]


def test_importing_the_package_is_lazy():
    """`import planner` loads nothing of the package but its first file."""
    code = "import sys, planner; print([m for m in sys.modules if m.startswith('planner.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"


def test_public_names_resolve_and_are_listed():
    """Every name of `__all__` is there; a name that is not public is not."""
    assert planner.__all__ == sorted(planner.__all__)
    assert all(getattr(planner, name) is not None for name in planner.__all__)
    assert set(planner.__all__) <= set(dir(planner))
    assert callable(planner.compare)
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        planner.sweeps  # noqa: B018 - the access is what is tested


def test_a_run_that_fails_says_where():
    """The contract's failure: the operation, its phase, and what was alive, which adds up."""
    verdict = api.estimate(LLAMA_70B, rank=16, gpu="t4", stack="latest").model_dump()["verdict"]
    failure = verdict["failure"]

    assert verdict["outcome"] == "does_not_fit"
    assert set(failure) == {
        "operation", "scope", "phase", "requested_bytes", "allocated_bytes", "reserved_bytes", "by_category",
    }  # fmt: skip
    assert (failure["phase"], verdict["binding_phase"]) == ("prepare", "backward")
    assert sum(failure["by_category"].values()) == failure["allocated_bytes"]
    assert verdict["runs_with_expandable_segments"] is False


def test_the_environments_allocator_settings_are_the_runs(monkeypatch):
    """PyTorch reads PYTORCH_CUDA_ALLOC_CONF; a setting that it would refuse is refused before any work."""
    before = api.estimate(LLAMA_7B, method="lora", stack="latest").peak.reserved_bytes
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "roundup_power2_divisions:1,max_split_size_mb:64")
    after = api.estimate(LLAMA_7B, method="lora", stack="latest")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable:True")

    assert after.details.settings.max_split_size == 64 << 20
    assert after.peak.reserved_bytes >= before
    with pytest.raises(InvalidRecipeError, match="no setting of PyTorch"):
        api.estimate(LLAMA_7B)


def test_what_is_simulated_waits_until_somebody_asks(monkeypatch):
    """An estimate alone runs no allocator; its verdict does, once."""
    ran = []
    monkeypatch.setattr("planner.simulation.run", lambda *args, **more: ran.append(args) or run(*args, **more))
    report = api.estimate(LLAMA_7B, gpu="a6000", stack="latest")
    _ = report.peak.allocated_bytes, report.suggestions, report.traps

    assert ran == []
    assert report.verdict.fits
    assert report.peak.reserved_bytes == report.verdict.required_bytes - report.device.context_bytes
    assert len(ran) == 1
