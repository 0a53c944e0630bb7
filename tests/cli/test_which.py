"""`qplan which`: the cards of `qplan gpus MODEL` that take the run, no others."""

from __future__ import annotations

import json

from planner import cli, verdicts

LLAMA_8B = "meta-llama/Llama-3.1-8B"


def ran(capsys, *words: str) -> tuple[int, str]:
    """Exit code and standard output."""
    code = cli.run(["which", *words, "--stack", "latest"])
    return code, capsys.readouterr().out


def test_it_is_every_card_that_takes_it_the_smallest_first(capsys):
    """In the order of their sizes, with the verdict that each gives."""
    code, out = ran(capsys, LLAMA_8B, "--seq-len", "4096", "--json")
    found = json.loads(out)
    expected = [card for card in verdicts(LLAMA_8B, seq_len=4096, stack="latest") if card.verdict.fits]
    budgets = [card["verdict"]["budget_bytes"] for card in found["gpus"]]

    assert code == 0
    assert [card["device"]["name"] for card in found["gpus"]] == [card.device.name for card in expected]
    assert [card["verdict"]["outcome"] for card in found["gpus"]] == [card.verdict.outcome for card in expected]
    assert budgets == sorted(budgets)
    assert {card["num_cards"] for card in found["gpus"]} == {1}
    assert found["num_judged"] > len(expected)


def test_the_next_command_names_the_smallest_with_room(capsys):
    """A tight card is listed, and another is recommended."""
    _, out = ran(capsys, LLAMA_8B, "--seq-len", "4096")
    rows = out.splitlines()
    first = next(card for card in verdicts(LLAMA_8B, seq_len=4096, stack="latest") if card.verdict.outcome == "fits")

    assert rows[1].endswith("tight")
    assert first.device.name == "Tesla T4"
    assert f"next   qplan estimate {LLAMA_8B} --seq-len 4096" in out
    assert "--gpu Tesla-T4" in rows[-1]
    assert "does not fit" not in out


def test_no_card_is_exit_code_one(capsys):
    """Full fine-tuning of 70 billion parameters: the largest card, and where to go from there."""
    words = ("meta-llama/Llama-2-70b-hf", "--method", "full")
    code, out = ran(capsys, *words)
    empty, dumped = ran(capsys, *words, "--json")

    assert (code, empty) == (1, 1)
    assert out.startswith("NO CARD takes it")
    assert "qplan fit meta-llama/Llama-2-70b-hf --method full" in out
    assert json.loads(dumped)["gpus"] == []
