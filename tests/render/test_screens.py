"""The screens that the README shows, with the closed form's numbers. A diff here is a number that moved: say which, and why."""

from __future__ import annotations

import pytest

from planner import cli

SCREENS = {
    "readme-estimate": "estimate meta-llama/Llama-2-70b-hf --rank 16",
    "readme-a6000": "estimate meta-llama/Llama-2-70b-hf --rank 16 --gpu a6000",
    "t4-too-small": "estimate meta-llama/Llama-3.1-8B --gpu t4 --seq-len 8192 --batch-size 4 --no-gradient-checkpointing",
    "full-mistral": "estimate mistralai/Mistral-7B-v0.1 --method full --gpu a100-80gb --entry-point trainer",
    "classic-table": "compare meta-llama/Llama-2-7b-hf meta-llama/Llama-2-13b-hf meta-llama/Llama-2-70b-hf",
}


@pytest.mark.parametrize("name", SCREENS)
def test_screens_show_the_numbers_they_showed(name, golden, capsys, monkeypatch):
    """A whole command, letter by letter, with the newest profile of the stack."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("COLUMNS", raising=False)
    command = f"{SCREENS[name]} --stack latest"
    code = cli.run(command.split())

    golden(name, f"$ qplan {command}\n{capsys.readouterr().out}exit code {code}\n")
