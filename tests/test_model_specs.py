"""The bundled facts: complete, of one form, and found without reading more than needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import model_specs

jsonschema = pytest.importorskip("jsonschema")

ENCODERS = {"bert", "deberta-v2", "distilbert", "roberta", "xlm-roberta", "modernbert", "whisper", "t5", "mt5"}


@pytest.fixture(scope="module")
def facts(shared: Path) -> list[dict]:
    """The collected facts about text decoders that the bundled files carry over."""
    entries = json.loads((shared / "facts" / "models.json").read_text())
    return [entry for entry in entries if entry["confidence"] != "low" and entry["model_type"] not in ENCODERS]


def test_every_file_validates():
    """Checkpoints and cards are of the form that the schema states."""
    schema = model_specs.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    checkpoint = jsonschema.Draft202012Validator(schema)
    cards = jsonschema.Draft202012Validator({"$ref": "#/$defs/gpus", "$defs": schema["$defs"]})
    broken = [facts["id"] for facts in model_specs.checkpoints() if not checkpoint.is_valid(facts)]

    assert broken == []
    assert cards.is_valid(list(model_specs.gpus()))


def test_the_schema_refuses():
    """A missing family, a field of another kind and a field nobody knows are no checkpoint."""
    validator = jsonschema.Draft202012Validator(model_specs.schema())
    good = model_specs.checkpoint("openai-community/gpt2")

    assert validator.is_valid(good)
    assert not validator.is_valid(good | {"config": {}})
    assert not validator.is_valid(good | {"published_parameters": 1.5})
    assert not validator.is_valid(good | {"parameters": 1})


def test_files_are_named_after_ids():
    """`<org>/<name>.json` is the id, and no id or alias names two checkpoints in any case."""
    everything = [facts["id"].lower() for facts in model_specs.checkpoints()]
    everything += [alias.lower() for facts in model_specs.checkpoints() for alias in facts["same_shapes"]]

    assert [facts["id"] for facts in model_specs.checkpoints()] == list(model_specs.checkpoint_ids())
    assert len(everything) == len(set(everything))
    assert len(model_specs.checkpoint_ids()) >= 243


def test_files_are_printed_one_way(repository: Path):
    """Two blanks, one field a line, a newline at the end: a change of a fact is a change of a line."""
    for checkpoint_id in model_specs.checkpoint_ids():
        text = (repository / "model_specs" / f"{checkpoint_id}.json").read_text(encoding="utf-8")

        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n", checkpoint_id


def test_every_collected_decoder_is_bundled(facts: list[dict]):
    """Configs, counts and names are those that were collected, field for field."""
    for entry in facts:
        bundled = model_specs.checkpoint(entry["hub_id"])
        config = {key: value for key, value in bundled["config"].items() if key != "model_type"}

        assert bundled["id"] == entry["hub_id"]
        assert config == entry["config"]
        assert bundled["config"]["model_type"] == entry["model_type"]
        assert bundled["architectures"] == entry["architectures"]
        assert bundled["published_parameters"] == entry["published_params"]
        assert bundled["gated"] == entry["gated"]
        for alias in entry["same_shapes_as_also"]:
            assert model_specs.checkpoint(alias)["config"] == bundled["config"]


def test_a_difference_has_a_reason():
    """Where the published total counts something else, the file says what."""
    for facts in model_specs.checkpoints():
        assert bool(facts["published_difference"]) == bool(facts["published_difference_reason"]), facts["id"]
        assert (facts["published_parameters"] is None) == (facts["published_difference"] is None), facts["id"]


def test_an_id_is_found_in_any_case_without_reading_the_rest(monkeypatch: pytest.MonkeyPatch):
    """One id opens one file."""
    opened: list[Path] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read(path))

    assert model_specs.checkpoint("META-LLAMA/llama-2-70B-hf")["id"] == "meta-llama/Llama-2-70b-hf"
    assert len(opened) == 1


def test_an_id_with_the_same_shapes_answers_as_itself():
    """The alias keeps its own name in its own spelling; nothing is claimed about its licence."""
    found = model_specs.checkpoint("nousresearch/LLAMA-2-70b-hf")

    assert (found["id"], found["gated"]) == ("NousResearch/Llama-2-70b-hf", None)
    assert found["config"] == model_specs.checkpoint("meta-llama/Llama-2-70b-hf")["config"]


@pytest.mark.parametrize(
    "name", ["", "/", "gpus", "schema", "../planner/api", "__pycache__/x", "meta-llama/", "meta-llama", "\0/\0"]
)
def test_no_other_name_leads_to_a_file(name: str):
    """Names are compared with what is there; none leads outside."""
    assert model_specs.checkpoint(name) is None


def test_what_is_handed_out_is_the_callers():
    """A config that a caller changes is whole again for the next one."""
    model_specs.checkpoint("gpt2")["config"].clear()

    assert model_specs.checkpoint("gpt2")["config"]["model_type"] == "gpt2"


def test_the_cards_are_those_collected(shared: Path):
    """Names, sizes and capabilities of the cards are those that were collected."""
    collected = json.loads((shared / "facts" / "gpus.json").read_text())

    assert [card["name"] for card in model_specs.gpus()] == [entry["name"] for entry in collected]
    for card, entry in zip(model_specs.gpus(), collected, strict=True):
        assert card["nvidia_smi_mib"] == entry["memory_total_mib_nvidia_smi"]
        assert card["cuda_bytes"] == entry["cuda_total_memory_bytes"]
        assert [seen["printed"] for seen in card["cuda_bytes_seen"]] == entry["cuda_total_memory_seen"]
        if card["vendor"] == "nvidia":
            assert ".".join(str(part) for part in card["compute_capability"]) == entry["compute_capability"]
