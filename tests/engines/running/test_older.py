"""What older libraries spell otherwise, against the installed ones and what they save."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")

from planner.engines.running import older  # noqa: E402

TINY = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 32,
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["installed", "older"])
def is_older(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The installed libraries, and as if they were of before 5.0."""
    monkeypatch.setattr(older, "IS_OLDER", request.param)
    return bool(request.param)


def test_the_age_of_the_installed_library():
    """Everything before 5.0 is older."""
    assert transformers.__version__.startswith("4.") == older.IS_OLDER


@pytest.mark.parametrize("tied", [False, True])
def test_tensors_of_a_checkpoint(is_older: bool, tied: bool, tmp_path: Path):
    """Names and shapes are those of the file that the library itself saves, tied weights once."""
    config = transformers.LlamaConfig(**TINY, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - a file handle, no mapping

    assert {name: list(x.shape) for name, x in older.stored_tensors(model).items()} == saved


def test_the_name_of_the_dtype():
    """The installed library takes the argument: weights come out in that type."""
    model = transformers.LlamaForCausalLM._from_config(transformers.LlamaConfig(**TINY), **older.dtype_argument(torch.float16))

    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_a_quantised_checkpoint_names_its_card(is_older: bool):
    """Older loaders are told the card in words, and only where the checkpoint goes straight to it; newer ones nothing."""
    assert ("device_map" in older.loading_arguments(to_card=True)) is is_older
    assert "device_map" not in older.loading_arguments(to_card=False)
    assert bool(older.loading_arguments(to_card=False)) is is_older
