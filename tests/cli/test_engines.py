"""`qplan estimate --engine traced` and `both`: the installed libraries run on a small model."""

from __future__ import annotations

import io
import json
import sys

import pytest

from planner import cli
from tests.engines.tiny import LLAMA

for library in ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

UNKNOWN = {
    "model_type": "jamba", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4,
    "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_card(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def qplan(capfd, tmp_path):
    """Estimate a small model: the exit code, standard output and standard error of the whole process."""

    def run(*arguments: str, config: dict | None = None) -> tuple[int, str, str]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config or LLAMA))
        capfd.readouterr()
        code = cli.run(["estimate", str(path), "--seq-len", "64", *arguments])
        return (code, *capfd.readouterr())

    return run


def test_a_trace_prints_the_screen_and_nothing_else(qplan):
    """The verdict first, exit code 0, no library's word on standard error."""
    code, out, err = qplan("--engine", "traced", "--gpu", "a6000")

    assert (code, err) == (0, "")
    assert out.startswith("FITS on RTX A6000")
    assert "--engine traced --explain" in out
    assert "closed form" not in out


def test_json_says_which_engine_it_was(qplan):
    """The fields are those of the closed form; what rests is the same to the byte."""
    command = ("--method", "lora", "--gpu", "a6000", "--json")
    ours, traced = (json.loads(qplan("--engine", engine, *command)[1]) for engine in ("analytic", "traced"))

    assert (traced["engine"], ours["engine"]) == ("traced", "analytic")
    assert traced.keys() == ours.keys()
    for field in ("model", "recipe", "steady_bytes"):
        assert traced[field] == ours[field]
    assert sum(traced["peak"]["by_category"].values()) == traced["peak"]["allocated_bytes"]


def test_both_engines_stand_side_by_side(qplan):
    """On the screen below the estimate, in JSON under a key of its own; the sums are those of the two engines' phases."""
    screen = qplan("--engine", "both", "--gpu", "a6000")
    code, out, err = qplan("--engine", "both", "--gpu", "a6000", "--json")
    both = json.loads(out)
    ours, traced = (json.loads(qplan("--engine", engine, "--gpu", "a6000", "--json")[1]) for engine in ("analytic", "traced"))
    sums = {row["phase"]: (row["analytic_bytes"], row["traced_bytes"]) for row in both["agreement"] if row["category"] is None}
    peaks = [{phase["phase"]: phase["allocated_peak_bytes"] for phase in found["phases"]} for found in (ours, traced)]

    assert (code, err, screen[0], screen[2]) == (0, "", 0, "")
    assert "GiB at the peak of              closed form     traced   difference" in screen[1]
    assert both["engine"] == "both"
    assert both["peak"] == traced["peak"]
    assert sums == {phase: tuple(peak[phase] for peak in peaks) for phase in ("forward", "backward", "optimizer_step")}


def test_what_does_not_fit_is_exit_code_one(qplan):
    """By simulation on the card, as in closed form."""
    code, out, err = qplan("--engine", "traced", "--gpu", "0.4GiB")

    assert (code, err) == (1, "")
    assert out.startswith("DOES NOT FIT on")
    assert "fails in" in out


def test_a_model_that_the_closed_form_does_not_know_can_be_traced(qplan):
    """It plans no changes then, and `both` says at once, with nothing on standard output, that one of the two cannot."""
    code, out, err = qplan("--engine", "traced", "--gpu", "a6000", "--explain", config=UNKNOWN)
    refused = qplan("--engine", "both", "--gpu", "a6000", config=UNKNOWN)

    assert (code, err) == (0, "")
    assert not any(line.startswith(("save", "traps", "Memory that the recipe costs")) for line in out.splitlines())
    assert refused[:2] == (2, "")
    assert "the closed form does not know" in refused[2]
    assert "hint: pass --engine traced" in refused[2]


def test_other_versions_than_are_installed_are_a_wrong_request(qplan):
    """Exit code 2."""
    code, out, err = qplan("--engine", "traced", "--stack", "transformers==4.44.0")

    assert (code, out) == (2, "")
    assert "transformers==4.44.0, but the traced engine runs what is installed" in err


def test_progress_is_shown_on_a_terminal_and_gone_before_the_answer(qplan, monkeypatch):
    """Also what the list of common cards traces; the line is wiped in the end."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Screen())
    code, out, _ = qplan("--engine", "traced")
    shown = [text.removesuffix(" ...") for text in screen.getvalue().split("\r\x1b[K")]

    assert code == 0
    assert out.startswith("FITS")
    assert (shown[0], shown[-1]) == ("", "")
    assert {"importing torch and transformers", "first step", "steady step", "evaluation", "save"} <= set(shown)
