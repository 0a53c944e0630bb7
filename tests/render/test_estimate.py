"""The first screen and `--explain`, over an engine of round numbers."""

from __future__ import annotations

import re

import pytest

from planner import api
from planner.render import estimate as screen
from planner.render import explain
from planner.render.terminal import Terminal
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
SCREENS = {
    "fits": (LLAMA_70B, {"gpu": "a6000", "rank": 16}),
    "common": (LLAMA_70B, {"rank": 16}),
    "tight": (LLAMA_7B, {"gpu": "5GiB"}),
    "does-not-fit": (LLAMA_7B, {"gpu": "t4", "method": "lora", "seq_len": 2048, "batch_size": 4, "optim": "adamw_torch"}),
    "nowhere": (LLAMA_70B, {"method": "full"}),
}


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def shown(name: str, terminal: Terminal | None = None, **options) -> list[str]:
    """The lines of one of the screens."""
    model, knobs = SCREENS[name]
    return screen.lines(api.estimate(model, stack="latest", **knobs), terminal or Terminal(), **options)


@pytest.mark.parametrize("name", SCREENS)
def test_screens_are_as_they_were(golden, name):
    """The printed report, letter by letter."""
    golden(f"estimate-{name}", "\n".join(shown(name)) + "\n")


def test_the_explanation_is_as_it_was(golden):
    """The long report, letter by letter."""
    golden("estimate-explain", "\n".join(shown("fits", explain=True)) + "\n")


@pytest.mark.parametrize("name", SCREENS)
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(name, width):
    """80 columns hold everything, the explanation too; escape codes take no room."""
    plain = shown(name, Terminal(width=width), explain=True)
    painted = shown(name, Terminal(width=width, colour=True), explain=True)

    assert [line for line in plain if len(line) > width] == []
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in painted] == plain


@pytest.mark.parametrize("name", SCREENS)
def test_the_first_screen_is_a_screen(name):
    """About 24 lines, the answer first, the next command near the end."""
    lines = shown(name)

    assert len(lines) <= 27
    assert re.match(r"FITS|TIGHT|DOES NOT FIT", lines[0])
    assert any(line.startswith("next   qplan ") for line in lines)


def test_ascii_is_enough():
    """A terminal without block characters gets the same report."""
    assert all(line.isascii() for name in SCREENS for line in shown(name, Terminal(unicode=False), explain=True))


def test_long_names_and_hostile_ones_stay_inside_the_line():
    """A path longer than the line is cut; control characters are escaped."""
    spec = api.find_spec(TINY, None)
    from planner.value import replace

    report = api.estimate(replace(spec, id="/models/" + "deep/" * 40 + "\x1b[2Jmodel"), gpu="t4")
    lines = screen.lines(report, Terminal(), explain=True)

    assert not any("\x1b" in line for line in lines)
    assert all(len(line) <= 80 for line in lines[:6])


def test_the_sizes_on_the_screen_are_those_of_the_report():
    """The peak that is printed is the report's."""
    report = api.estimate(LLAMA_70B, rank=16, gpu="a6000")
    text = "\n".join(screen.lines(report, Terminal()))

    assert f"{report.peak.process_bytes / 2**30:.2f} GiB* process" in text
    assert f"{report.peak.allocated_bytes / 2**30:.2f} GiB allocated" in text
    assert f"{report.verdict.headroom_bytes / 2**30:.2f} to spare" in text


def test_a_command_over_several_lines_can_still_be_pasted():
    """Each broken line ends in a backslash; joined, it is the command."""
    command = "qplan estimate some/model --rank 16 --targets q_proj,v_proj --gradient-checkpointing --seq-len 4096"
    rows = screen.pasteable(command, 40)

    assert all(len(row) <= 40 for row in rows)
    assert " ".join(" ".join(row.removesuffix("\\").split()) for row in rows) == command


def test_what_rests_adds_up_to_the_steady_bytes():
    """The rows at rest are those that stay allocated between steps."""
    report = api.estimate(LLAMA_7B, rank=16, gpu="a6000", optim="adamw_torch")

    assert sum(row.nbytes for row in explain.resting(report.ledger)) == report.steady_bytes


def test_behaviours_are_shown_with_their_sources():
    """Each behaviour of the stack that is documented is explained."""
    from planner import stack

    documented = explain.documented(stack.Behaviours.__doc__)

    assert set(documented) == set(stack.Behaviours._fields)
    assert all(documented.values())
