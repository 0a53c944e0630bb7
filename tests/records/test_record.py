"""One verification as it is kept: what is in it, what never is, and what is refused."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from planner.device import Device
from planner.errors import InvalidRecordError
from planner.records import WHITELIST, Record
from planner.stack import LATEST
from planner.units import GIB
from planner.value import replace
from tests.records.sample import A100, CONFIG, sample


def keys(value, where=""):
    """Every key of a document with the object that it is in."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield where, key
            yield from keys(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, where)


def test_a_record_survives_json():
    """What is written is what is read, under the same id: the digest of its sorted JSON text."""
    record = sample(seq_len=2048, rank=8)
    text = json.dumps(record.model_dump())
    again = Record.parse(json.loads(text))
    digest = hashlib.sha256(json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    assert again == record
    assert again.id == record.id == digest[:24]
    assert (record.tokens, record.time) == (2048, "2026-11-28T12:00:00Z")


def test_only_the_whitelist_is_in_it():
    """Every key stands in the whitelist of its object."""
    for where, key in keys(sample(rank_pattern={"q_proj": 4}).model_dump()):
        if where not in ("allocated", "reserved", "process", "rank_pattern") or key in WHITELIST.get(where, ()):
            assert key in WHITELIST[where], (where, key)


def test_no_path_name_or_label_gets_in():
    """A model of a folder has no id; a version keeps no label of somebody's own; nothing of them is in the text."""
    folder = "/srv/alice/models/secret-llama"
    record = sample(id=folder, source=f"file: {folder}", config={**CONFIG, "_name_or_path": folder})
    labelled = copy.deepcopy(record.model_dump())
    labelled["stack"]["torch"] = "2.13.0+alice.laptop"

    assert record.model["id"] is None
    assert "alice" not in json.dumps(record.model_dump())
    with pytest.raises(InvalidRecordError, match=r"stack\.torch"):
        Record.parse(labelled)


def test_labels_of_torchs_builds_are_kept_and_others_cut(monkeypatch):
    """+cu130 says which CUDA it was; +alice.laptop says who."""
    monkeypatch.setitem(LATEST.versions, "torch", "2.13.0+cu130")
    monkeypatch.setitem(LATEST.versions, "peft", "0.21.2+alice.laptop")

    assert (sample().stack["torch"], sample().stack["peft"]) == ("2.13.0+cu130", "0.21.2")


def test_unknown_fields_are_left_out():
    """A host name that somebody added is not taken over, and the id is that of the record without it."""
    record = sample()
    document = {**record.model_dump(), "hostname": "alice-laptop"}
    document["model"] = {**document["model"], "path": "/srv"}

    assert Record.parse(document) == record
    assert Record.parse(document).id == record.id


def test_the_cpu_has_no_card():
    """A run on the CPU: no card, no driver."""
    document = {**sample(device=None).model_dump(), "driver": None}

    assert (Record.parse(document).card, Record.parse(document).driver) == (None, None)


def test_names_of_cards_are_cut_to_what_names_have():
    """Whatever a driver says, a card's name is letters, digits and a few signs."""
    assert sample(device=Device("NVIDIA/X @home", GIB, (8, 0))).card["name"] == "NVIDIA X  home"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("time", "yesterday", "time is 'yesterday'"),
        ("time", "2026-13-01T00:00:00Z", "a moment in UTC"),
        ("origin", "guess", "one of verify, callback"),
        ("engine", ["analytic"], "engine"),
        ("schema_version", 2, "this qplan reads 1"),
        ("schema_version", True, "schema_version"),
        ("card.name", "a\nb", r"card\.name"),
        ("card.total_bytes", -1, r"card\.total_bytes is -1"),
        ("card.total_bytes", 80.5, r"card\.total_bytes"),
        ("card.compute_capability", [8], "two whole numbers"),
        ("driver", "/usr/lib", "driver"),
        ("model.id", "/srv/alice", r"model\.id"),
        ("model.id", "../alice", r"model\.id"),
        ("model.num_parameters", 0, "num_parameters"),
        ("model.dimensions", None, "dimensions is None; it must be an object"),
        ("recipe.rank", 0, "recipe: rank is 0"),
        ("recipe.targets", ["/home"], "names of modules"),
        ("recipe.modules_to_save", ["alice@host"], "names of modules"),
        ("stack.torch", "new", r"stack\.torch"),
        ("comparison", [], "a list of rows"),
        ("comparison.0.phase", "nap", "phase"),
        ("comparison.0.category", "air", "category"),
        ("comparison.0.measured_bytes", None, "measured_bytes"),
        ("peak.allocated", None, "allocated"),
        ("peak.process.measured_bytes", 1 << 60, r"peak\.process\.measured_bytes"),
        ("process.context_bytes", "many", r"process\.context_bytes"),
    ],
)
def test_wrong_fields_are_refused(path, value, says):
    """One field of an otherwise good record is wrong: the error names it."""
    document = sample().model_dump()
    inner = document
    *outer, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for part in outer:
        inner = inner[part]
    inner[last] = value

    with pytest.raises(InvalidRecordError, match=says):
        Record.parse(document)


@pytest.mark.parametrize("document", [None, [], "record", 3, {}])
def test_what_is_no_record_is_refused(document):
    """Any other JSON value."""
    with pytest.raises(InvalidRecordError):
        Record.parse(document)


def test_differences_are_predicted_less_measured():
    """Six predicted, five measured: one more."""
    record = sample()
    row = record.comparison[1]

    assert row.difference_bytes == row.predicted_bytes - row.measured_bytes == 1 << 20
    assert record.model_dump()["comparison"][1]["difference_bytes"] == 1 << 20
    assert replace(record, card=A100.__dict__ | {"compute_capability": [8, 0]}).id != record.id
