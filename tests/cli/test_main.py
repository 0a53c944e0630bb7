"""What every command shares: exit codes, errors on standard error, help, completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from planner import cli
from planner.cli import commands
from planner.errors import HubError
from tests import fakes

LLAMA_7B, LLAMA_70B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-hf"
ANSI = re.compile(r"\x1b\[")


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def qplan(capsys):
    """Run a command: its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("estimate", LLAMA_7B, "--gpu", "a6000"), 0),
        (("estimate", LLAMA_70B, "--gpu", "t4"), 1),
        (("estimate", LLAMA_7B), 0),
        (("estimate", LLAMA_70B, "--method", "full"), 1),
        (("gpus",), 0),
        (("gpus", LLAMA_7B), 0),
        (("gpus", LLAMA_70B, "--method", "full", "--seq-len", "262144"), 1),
        (("models",), 0),
        (("compare", LLAMA_7B), 0),
        (("--version",), 0),
        (("--help",), 0),
    ],
)
def test_exit_codes_say_whether_it_fits(qplan, arguments, code):
    """0 it fits (on one of the common cards, where none is named), 1 it does not; nothing on standard error."""
    assert qplan(*arguments)[0::2] == (code, "")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ((), "no command was given", "qplan estimate"),
        (("estimat", LLAMA_7B), "there is no command estimat", "did you mean qplan estimate?"),
        ((LLAMA_7B,), "there is no command", f"qplan estimate {LLAMA_7B}"),
        (("estimate",), "MODEL is missing", "qplan models"),
        (("compare",), "MODEL is missing", "qplan models"),
        (("estimate", LLAMA_7B, "--rnak", "8"), "there is no option --rnak", "did you mean --rank"),
        (("estimate", LLAMA_7B, "--batchsize", "8"), "there is no option --batchsize", "--batch-size"),
        (("estimate", LLAMA_7B, "--rank"), "rank", "qplan estimate --help"),
        (("estimate", LLAMA_7B, "--rank", "8.5"), "--rank is '8.5'; it must be a whole number", None),
        (("estimate", LLAMA_7B, "--batch-size", "0"), "--batch-size is 0; it must be a whole number from 1", None),
        (("estimate", LLAMA_7B, "--dropout", "nan"), "--dropout is nan; it must be a number from 0", None),
        (("estimate", LLAMA_7B, "--optim", "adam_8bit"), "--optim is 'adam_8bit'; it must be one of", "adamw_8bit"),
        (("estimate", LLAMA_7B, "--method", "full", "--quantization", "nf4"), "method is `full`", "--method qlora"),
        (("estimate", LLAMA_7B, "--engine", "oracle"), "engine is `oracle`", "--engine analytic"),
        (("estimate", LLAMA_7B, "--gpu", "voodoo2"), "voodoo2", "qplan gpus"),
        (("estimate", LLAMA_7B, "--stack", "numpy==1"), "numpy==1", "--stack latest"),
        (("estimate", LLAMA_7B, "extra"), "unexpected extra argument", "qplan estimate --help"),
        (("gpus", "--rank", "8"), "without a model", "qplan gpus MODEL --rank 8"),
        (("models", "no-such-model"), "no bundled checkpoint has `no-such-model`", "Hub id"),
    ],
)
def test_a_wrong_request_is_told_in_two_lines(qplan, arguments, message, hint):
    """Exit code 2, nothing on standard output, what is wrong and what to do on standard error, no traceback."""
    code, out, err = qplan(*arguments)

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err.splitlines()[0]
    assert len(err.splitlines()) <= 2
    if hint is not None:
        assert err.splitlines()[1].startswith("hint: ")
        assert hint in err.splitlines()[1]


@pytest.mark.parametrize("engine", ["traced", "both"])
def test_an_engine_that_is_not_installed_is_missing(qplan, monkeypatch, engine):
    """Exit code 3, and the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = qplan("estimate", LLAMA_7B, "--engine", engine)

    assert (code, out) == (3, "")
    assert err.splitlines()[1] == 'hint: pip install "qplan[torch]"'


def test_what_cannot_be_reached_is_exit_code_three(qplan, monkeypatch):
    """A Hub that does not answer is neither a wrong request nor a verdict."""

    def unreachable(*_, **__):
        raise HubError("the Hub did not answer", hint="pass a folder or a config.json")

    monkeypatch.setattr("planner.catalog.find_checkpoint", unreachable)

    assert qplan("estimate", "some/model") == (3, "", "error: the Hub did not answer\nhint: pass a folder or a config.json\n")


def test_a_bug_is_one_line_that_says_so(qplan, monkeypatch):
    """An unexpected exception: exit code 70, its name, where to report it; with QPLAN_DEBUG the exception itself."""

    def broken(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("planner.engines.analytic.analyse", broken)
    code, out, err = qplan("estimate", LLAMA_7B)

    assert (code, out) == (70, "")
    assert "ZeroDivisionError: division by zero" in err
    assert "Traceback" not in err
    monkeypatch.setenv("QPLAN_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        qplan("estimate", LLAMA_7B)


def test_an_interrupt_is_exit_code_130(qplan, monkeypatch):
    """Control-C is no verdict."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.engines.analytic.analyse", interrupted)

    assert qplan("estimate", LLAMA_7B)[0] == 130


def test_every_option_of_every_command_has_help():
    """No option is without a sentence."""
    for name in commands.NAMES:
        command = commands.build([name]).get_command(None, name)

        assert command.help
        assert [param.name for param in command.params if not param.help] == []


def test_the_options_of_the_contract_are_there():
    """Names and values exactly as the design has them."""
    contract = """--method qlora|lora|full --rank --targets --dropout --dora
        --quantization nf4|fp4|int8|none --double-quant --no-double-quant --compute-dtype bf16|fp16|fp32
        --dtype auto|bf16|fp16|fp32 --mixed-precision bf16|fp16|no --kbit-prepare --no-kbit-prepare
        --adapter-dtype bf16|fp16|fp32 --optim --batch-size --seq-len --grad-accum --padding --no-padding --packing
        --gradient-checkpointing --no-gradient-checkpointing --use-reentrant
        --no-use-reentrant --attn eager|sdpa|flash_attention_2
        --loss full|chunked|liger --entry-point trl|trainer|loop --stack --gpu --engine analytic|traced|both --json --explain"""
    command = commands.build(["estimate"]).get_command(None, "estimate")
    known = {option: param.metavar for param in command.params for option in (*param.opts, *param.secondary_opts)}
    words = contract.split()

    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            assert word in known
            if "|" in following:
                assert known[word] == following


def test_help_names_every_command(qplan):
    """`qplan --help` lists the commands with their first sentences, `qplan COMMAND --help` its options."""
    top = qplan("--help")[1]

    for name in commands.NAMES:
        assert name in top
        assert "--json" in qplan(name, "--help")[1]


def completions(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    environment = {
        **os.environ,
        "_QPLAN_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("qplan", *words)),
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    program = "import sys; sys.argv[0] = 'qplan'; from planner.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    ).stdout.split()


def test_the_shell_is_offered_models_cards_and_choices():
    """Tab completes ids, cards, values and options."""
    assert LLAMA_70B in completions("estimate", "meta-llama/Llama-2-7")
    assert completions("estimate", "x", "--method", "q") == ["qlora"]
    assert any("A6000" in name for name in completions("estimate", "x", "--gpu", "A60"))
    assert "--gradient-checkpointing" in completions("estimate", "x", "--gradient")


def test_python_m_planner_is_qplan():
    """The module runs; what is piped has no escape codes; a reader that goes away is no error."""
    listed = subprocess.run([sys.executable, "-m", "planner", "gpus"], capture_output=True, text=True, check=True)
    gone, ours = os.pipe()
    os.close(gone)
    unread = subprocess.run(
        [sys.executable, "-m", "planner", "models"], stdout=ours, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(ours)

    assert "RTX A6000" in listed.stdout
    assert not ANSI.search(listed.stdout)
    assert (unread.returncode, unread.stderr) == (0, "")


def test_ascii_terminals_get_ascii():
    """An encoding without block characters is not asked for them."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "planner", "models", "llama"], capture_output=True, env=environment, check=True)

    assert done.stdout.decode("ascii")


def test_the_app_is_there_for_tools():
    """`planner.cli.app` is the Typer application; other names are not."""
    assert type(cli.app).__name__ == "Typer"
    with pytest.raises(AttributeError):
        cli.nothing  # noqa: B018 - the access is what is tested
