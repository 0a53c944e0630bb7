"""Grids as people write them."""

from __future__ import annotations

import pytest

from planner.errors import InvalidGridError, MissingExtraError
from planner.sweeping.grid_file import read_grid, whole_numbers

YAML = """
models: [meta-llama/Llama-2-7b-hf, openai-community/gpt2]
gpu: [t4, 80GiB]
batch_size: 1:4
seq_len: [512, "1024:4097:1024"]
optim: [adamw_torch, sgd]
targets: all-linear
simulate: none
"""
TOML = """
models = ["meta-llama/Llama-2-7b-hf", "openai-community/gpt2"]
gpu = ["t4", "80GiB"]
batch_size = "1:4"
seq_len = [512, "1024:4097:1024"]
optim = ["adamw_torch", "sgd"]
targets = "all-linear"
simulate = "none"
"""
READ = {
    "models": ["meta-llama/Llama-2-7b-hf", "openai-community/gpt2"],
    "gpu": ["t4", "80GiB"],
    "batch_size": range(1, 4),
    "seq_len": [512, 1024, 2048, 3072, 4096],
    "optim": ["adamw_torch", "sgd"],
    "targets": "all-linear",
    "simulate": "none",
}


@pytest.mark.parametrize(("name", "text"), [("grid.yaml", YAML), ("grid.toml", TOML)])
def test_both_kinds_of_file_say_the_same(tmp_path, name, text):
    """YAML and TOML give the arguments of a sweep, with ranges of whole numbers as Python writes them."""
    (tmp_path / name).write_text(text)

    assert read_grid(tmp_path / name) == READ


@pytest.mark.parametrize(
    ("text", "values"),
    [("7", 7), ("1:4", range(1, 4)), ("8:1:-2", range(8, 1, -2)), ("1,2:4,9", [1, 2, 3, 9]), ("x", "x"), ("1:2:0", "1:2:0"), ("1:", "1:")],
)
def test_whole_numbers(text, values):
    """Numbers and ranges; what is neither is left for the knob to refuse."""
    assert whole_numbers(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: x\nbatch_sise: 4", "grid.yaml: batch_sise: there is no such knob"),
        ("models: x\nbatch_size: 0", "grid.yaml: batch_size: batch_size is 0"),
        ("models: x\nbatch_size: some", "grid.yaml: batch_size: batch_size is 'some'"),
        ("models: x\nseq_len: []", "grid.yaml: seq_len: seq_len is an axis without values"),
        ("models: [1]", "grid.yaml: models: models is "),
        ("gpu: t4", "grid.yaml: models: is missing"),
        ("- a\n- b", "grid.yaml: it holds no keys"),
        ("models: [", "grid.yaml: while parsing"),
    ],
)
def test_bad_grids_are_refused_with_file_and_key(tmp_path, monkeypatch, text, message):
    """The sentence names the file and the key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(InvalidGridError) as refused:
        read_grid("grid.yaml")

    assert message in refused.value.message


def test_files_that_are_none(tmp_path):
    """A missing file and one of another kind are told apart."""
    with pytest.raises(InvalidGridError, match="cannot be read: No such file"):
        read_grid(tmp_path / "none.yaml")
    with pytest.raises(InvalidGridError, match="ends in none of"):
        read_grid(tmp_path / "grid.json")


def test_numbers_of_yaml(tmp_path):
    """Whole numbers and fractions are numbers; only what has a colon is not, which YAML 1.1 would count to the base of 60."""
    lines = ("models: a", "rank: 12:65", "dropout: [0.05, 0, 1e-2, .5]", "seq_len: 4_096", "dora: [true, false]", "loss: null")
    (tmp_path / "grid.yaml").write_text("\n".join(lines))

    assert read_grid(tmp_path / "grid.yaml") == {
        "models": "a", "rank": range(12, 65), "dropout": [0.05, 0, 0.01, 0.5], "seq_len": 4096, "dora": [True, False], "loss": None,
    }  # fmt: skip


def test_a_missing_reader_says_how_to_install_it(tmp_path, monkeypatch):
    """Without PyYAML the hint is the command."""
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (tmp_path / "grid.yaml").write_text(YAML)
    with pytest.raises(MissingExtraError) as missing:
        read_grid(tmp_path / "grid.yaml")

    assert missing.value.hint == 'pip install "qplan[sweep]"'
