"""`qplan max`: exit codes, formats, and what is typed against what the function is asked."""

from __future__ import annotations

import json

import pytest

from planner import cli, solve

LLAMA_8B = "meta-llama/Llama-3.1-8B"


def ran(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    code = cli.run(["max", LLAMA_8B, *words, "--stack", "latest"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_answer_stands_first(capsys):
    """The value, what binds, the comfortable one, what is beyond and why, and the command that plans it."""
    code, out, _ = ran(capsys, "--gpu", "t4")

    assert code == 0
    assert out.startswith("batch-size 13 is the most on Tesla T4: tight")
    assert "\nbinds       backward" in out
    assert "\ncomfortable 11, fits" in out
    assert "\nbeyond      14 needs" in out and "fails in backward" in out
    assert f"qplan estimate {LLAMA_8B} --batch-size 13 --gpu t4" in out


def test_json_is_the_dump(capsys):
    """As the function gives it, sizes in bytes."""
    code, out, _ = ran(capsys, "--gpu", "t4", "--vary", "seq-len", "--multiple-of", "512", "--rank", "8", "--json")
    expected = solve(LLAMA_8B, gpu="t4", vary="seq_len", multiple_of=512, rank=8, stack="latest")

    assert code == 0
    assert json.loads(out) == expected.model_dump()
    assert json.loads(out)["at"]["verdict"]["headroom_bytes"] == expected.headroom_bytes


def test_nothing_that_fits_is_exit_code_one(capsys):
    """It says what is needed, where it fails, and where to look."""
    code, out, _ = ran(capsys, "--gpu", "4GiB")

    assert code == 1
    assert out.startswith("NOTHING FITS on 4GiB: batch-size 1 needs")
    assert f"qplan which {LLAMA_8B}" in out


def test_a_range_that_fits_as_a_whole_says_so(capsys):
    """The card is not what ends it."""
    code, out, _ = ran(capsys, "--gpu", "t4", "--range", "1:4")

    assert code == 0
    assert "the range ends there: 4 fits" in out


def test_two_knobs_are_a_table(capsys):
    """A row for each value of the first."""
    words = ["--gpu", "t4", "--vary", "batch-size", "--vary", "seq-len", "--range", "batch-size=1:3", "--multiple-of", "256"]
    code, out, _ = ran(capsys, *words)
    _, dumped, _ = ran(capsys, *words, "--json")
    rows = [line.split()[:2] for line in out.splitlines()[2:]]
    found = json.loads(dumped)

    assert code == 0
    assert found["knobs"] == ["batch_size", "seq_len"]
    assert [[f"{row['batch_size']:,}", f"{row['seq_len']:,}"] for row in found["frontier"]] == rows


def test_two_knobs_of_which_nothing_fits(capsys):
    """Exit code 1 and the least need."""
    code, out, _ = ran(capsys, "--gpu", "4GiB", "--vary", "batch-size", "--vary", "seq-len")

    assert code == 1
    assert out.startswith("NOTHING FITS on 4GiB")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--vary", "optim"), "vary names optim"),
        (("--vary", "batch-size", "--batch-size", "2"), "batch-size is 2"),
        (("--range", "batch-size=a:b"), "bounds of batch_size"),
        (("--range", "seq-len=1:2"), "not varied"),
        (("--multiple-of", "x"), "multiple_of is 'x'"),
    ],
)
def test_wrong_requests_are_exit_code_two(capsys, words, says):
    """On standard error, what was given and what it must be."""
    code, out, err = ran(capsys, "--gpu", "t4", *words)

    assert (code, out) == (2, "")
    assert says in err
