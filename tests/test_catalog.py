"""Checkpoints: bundled, in a folder, as a file; the Hub's part is in test_hub."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import model_specs
from planner.catalog import find_checkpoint, list_checkpoints, nearest_checkpoints
from planner.errors import InvalidConfigError, QplanError, UnknownModelError

LLAMA = {"model_type": "llama", "hidden_size": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    """Nothing here may look into the Hub's cache of the machine it runs on."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_a_bundled_id_is_found_in_any_case():
    """The id comes back in its published spelling, with the classes that serve it in the config."""
    found = find_checkpoint(" META-LLAMA/llama-2-70B-hf ")

    assert (found.id, found.source, found.gated) == ("meta-llama/Llama-2-70b-hf", "bundled", True)
    assert found.published_parameters == 68976648192
    assert found.config["architectures"] == ["LlamaForCausalLM"]
    assert found.config["model_type"] == "llama"


def test_an_id_with_the_same_shapes_is_found():
    """It answers with the id that was asked for."""
    assert find_checkpoint("nousresearch/Llama-2-70b-HF").id == "NousResearch/Llama-2-70b-hf"
    assert find_checkpoint("gpt2").id == "gpt2"


@pytest.mark.parametrize("checkpoint_id", model_specs.checkpoint_ids())
def test_every_bundled_checkpoint_is_found(checkpoint_id: str):
    """Each has an id, a family and a config of its own."""
    found = find_checkpoint(checkpoint_id)

    assert found.id == checkpoint_id
    assert found.config["model_type"]


def test_a_bundled_checkpoint_is_found_in_no_time():
    """A warm look-up is well under a millisecond, so that an estimate can be."""
    find_checkpoint("meta-llama/Llama-2-70b-hf")
    began = time.perf_counter()
    for _ in range(20):
        find_checkpoint("meta-llama/Llama-2-70b-hf")

    assert (time.perf_counter() - began) / 20 < 0.002


def test_a_folder_and_its_config_are_the_same(folder: Path):
    """Both paths read the same file; the folder also knows its weights."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 10)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"x" * 5)
    by_folder, by_file = find_checkpoint(str(folder)), find_checkpoint(str(folder / "config.json"))

    assert by_folder.config == by_file.config == LLAMA
    assert by_folder.source == by_file.source == f"file: {folder / 'config.json'}"
    assert (by_folder.size_bytes, by_file.size_bytes) == (15, None)


def test_a_path_may_start_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """`~` is the user's home."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))

    assert find_checkpoint("~").config == LLAMA


def test_a_bundled_id_comes_before_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`./gpt2` is the folder, `gpt2` the bundled checkpoint."""
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(tmp_path)

    assert find_checkpoint("gpt2").source == "bundled"
    assert find_checkpoint("./gpt2").config == LLAMA


FOLDERS = {
    "adapter": (
        {"adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}'},
        "PEFT adapter (LORA)",
        "org/base",
    ),
    "gguf": ({"model.Q4_K_M.gguf": "GGUF"}, "GGUF", "save_pretrained"),
    "pipeline": ({"model_index.json": "{}"}, "diffusers pipeline", "save_pretrained"),
    "publisher's format": ({"params.json": "{}", "consolidated.00.pth": "x"}, "params.json", "save_pretrained"),
    "weights": ({"model.safetensors": "x"}, "weights alone", "save_pretrained"),
    "empty": ({}, "it is empty", "save_pretrained"),
    "other": ({"notes.txt": "x"}, "has no config.json", "save_pretrained"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_without_a_config_says_what_it_holds(case: str, tmp_path: Path):
    """The error names what is there instead, and what to do."""
    files, says, advises = FOLDERS[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UnknownModelError) as caught:
        find_checkpoint(str(tmp_path))

    assert says in caught.value.message
    assert advises in caught.value.hint


def test_a_broken_config_names_its_path(folder: Path):
    """The path, and the place in it."""
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(InvalidConfigError, match="line 1, column 16") as caught:
        find_checkpoint(str(folder))

    assert "config.json" in caught.value.message


def test_a_file_that_is_no_config_is_refused(folder: Path):
    """Weights are not read to find that out."""
    (folder / "model.gguf").write_bytes(b"GGUF")

    with pytest.raises(UnknownModelError, match=r"no config\.json"):
        find_checkpoint(str(folder / "model.gguf"))


@pytest.mark.parametrize("name", ["./no/such/folder", "no/such/folder", "C:\\models", "nothing.json", "~nobody/model"])
def test_a_path_to_nothing_is_said_to_be_one(name: str):
    """What can only be a path is not looked for on the Hub."""
    with pytest.raises(UnknownModelError) as caught:
        find_checkpoint(name)

    assert caught.value.hint


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "org/na me", "-x/y", "a--b", "org/..", "org/name.git", "x" * 5000, "\0", "\x1b[31m", "a/" * 50]
)
def test_a_name_that_nothing_can_have_is_refused_at_once(name: str):
    """No network, no wait, one printable line."""
    began = time.perf_counter()
    with pytest.raises(UnknownModelError) as caught:
        find_checkpoint(name)

    assert time.perf_counter() - began < 1
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    assert "Hub id" in caught.value.hint


@given(st.text(max_size=120))
def test_any_name_is_found_or_refused(name: str):
    """Offline, whatever is typed gives a checkpoint or an error of ours."""
    try:
        told = find_checkpoint(name, offline=True).source
    except QplanError as error:
        told = error.hint

    assert told


TYPOS = {
    "meta-lama/Llama-2-70b-hf": "meta-llama/Llama-2-70b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "mistralai/Mistral-7B-v01": "mistralai/Mistral-7B-v0.1",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "gpt-2": "gpt2",
}


@pytest.mark.parametrize(("typed", "meant"), TYPOS.items())
def test_the_nearest_names_are_offered(typed: str, meant: str):
    """What was meant is among the three."""
    assert meant in nearest_checkpoints(typed)
    with pytest.raises(QplanError) as caught:
        find_checkpoint(typed, offline=True)
    assert meant in caught.value.hint


def test_noise_gets_no_names():
    """What looks like nothing gets no suggestion."""
    assert nearest_checkpoints("zzzzzzzzzz") == []
    assert nearest_checkpoints("") == []


def test_the_list_is_filtered_by_words():
    """All words must occur, in the id, an alias or the family, in any case."""
    everything = list_checkpoints()
    vicuna = [summary.id for summary in list_checkpoints("VICUNA 13b")]

    assert [summary.id for summary in everything] == list(model_specs.checkpoint_ids())
    assert vicuna == ["huggyllama/llama-13b", "meta-llama/Llama-2-13b-hf"]
    assert {summary.model_type for summary in list_checkpoints("gpt_neox")} == {"gpt_neox"}
    assert list_checkpoints("no such thing") == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to this user")
def test_a_closed_folder_is_an_error_like_the_others(folder: Path):
    """Permissions are told, not thrown."""
    folder.chmod(0)
    try:
        with pytest.raises(InvalidConfigError, match="cannot be read"):
            find_checkpoint(str(folder))
    finally:
        folder.chmod(0o700)
