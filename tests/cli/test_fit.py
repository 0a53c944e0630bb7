"""`qplan fit`: the screen, the script and its file, exit codes."""

from __future__ import annotations

import ast
import json

import pytest

from planner import cli, recommend

LLAMA_8B = "meta-llama/Llama-3.1-8B"


def ran(capsys, *words: str, model: str = LLAMA_8B) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    code = cli.run(["fit", model, *words, "--stack", "latest"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_recipes_come_with_their_trades_and_commands(capsys):
    """Each numbered, with what was traded and a command; then why the other methods have none."""
    code, out, _ = ran(capsys, "--gpu", "t4")

    assert code == 0
    assert out.startswith("1. qlora, nf4, 1 x 512 tokens, 16 passes, checkpointing off")
    assert "\n2. qlora, nf4" in out
    assert "\n   traded --no-kbit-prepare (norms and head stay 16-bit)" in out
    assert "\n   qplan estimate meta-llama/Llama-3.1-8B" in out
    assert "\nlora    no mixture of changes makes it fit" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_json_is_the_dump(capsys):
    """As the function gives it."""
    code, out, _ = ran(capsys, "--gpu", "rtx 4090", "--seq-len", "2048", "--effective-batch", "8", "--json")

    assert code == 0
    assert json.loads(out) == json.loads(
        recommend(LLAMA_8B, gpu="rtx 4090", seq_len=2048, effective_batch=8, stack="latest").model_dump_json()
    )


def test_the_script_is_all_that_is_printed(capsys):
    """It is a program, of the recipe that was asked for by number."""
    code, out, _ = ran(capsys, "--gpu", "t4", "--emit", "trl", "--number", "2")
    second = recommend(LLAMA_8B, gpu="t4", stack="latest").recipes[1]

    ast.parse(out)
    assert code == 0
    assert f"per_device_train_batch_size={second.recipe.batch_size}," in out


def test_the_script_goes_to_a_file(capsys, tmp_path):
    """What would be printed; standard error says which recipe it is."""
    path = tmp_path / "train.py"
    code, out, err = ran(capsys, "--gpu", "t4", "--emit", "trl", "-o", str(path))
    _, printed, _ = ran(capsys, "--gpu", "t4", "--emit", "trl")

    assert (code, out) == (0, "")
    assert path.read_text() == printed
    assert err.startswith(f"wrote {path}: qplan estimate {LLAMA_8B}")


def test_nothing_that_fits_is_exit_code_one(capsys):
    """Also where a script was asked for: nothing is written."""
    code, out, _ = ran(capsys, "--gpu", "t4", "--emit", "trl", model="meta-llama/Llama-2-70b-hf")

    assert code == 1
    assert out.startswith("NOTHING FITS on Tesla T4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--emit", "axolotl"), "emit is axolotl"),
        (("--emit", "trl", "--json"), "--emit and --json"),
        (("--output", "train.py"), "without a script"),
        (("--emit", "trl", "--output", "train.txt"), "does not end in .py"),
        (("--emit", "trl", "--number", "9"), "number is 9"),
        (("--effective-batch", "x"), "effective_batch is 'x'"),
        (("--batch-size", "2"), "no option --batch-size"),
    ],
)
def test_wrong_requests_are_exit_code_two(capsys, words, says):
    """On standard error, what was given and what it must be."""
    code, out, err = ran(capsys, "--gpu", "t4", *words)

    assert (code, out) == (2, "")
    assert says in err
