"""`qplan doctor`: exit codes and formats."""

from __future__ import annotations

import json

import pytest

from planner import cli
from tests.nvml_stand_in import LOST, MISMATCH, NOT_LOADED, UNKNOWN, card


@pytest.mark.parametrize("answers", [{}, {"init": NOT_LOADED}, {"init": MISMATCH}, {"init": UNKNOWN}, {"count": UNKNOWN}, {"0.name": LOST}])
def test_a_diagnosis_is_exit_code_zero(machine, capsys, answers):
    """Whatever is missing, something is told on standard output and nothing on standard error."""
    machine(card(), **answers)
    codes = (cli.run(["doctor"]), cli.run(["doctor", "--json"]))
    printed = capsys.readouterr()

    assert codes == (0, 0)
    assert (printed.out.startswith("driver"), printed.err) == (True, "")


def test_json_is_one_document(machine, capsys, monkeypatch):
    """The dump of the diagnosis, of this process's environment."""
    machine(card())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = cli.run(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert code == 0
    assert (found["schema_version"], found["visible"]["variable"]) == (1, "0")
    assert found["cards"][0]["name"] == found["visible"]["devices"][0]["name"]
