"""What notebooks show of reports, ledgers, comparisons and two engines side by side."""

from __future__ import annotations

import re

import pytest

from planner import compare, estimate
from planner.agreement import Agreement
from planner.ledger import Allocation, Category, Ledger, Phase, Span
from planner.render import notebook
from planner.report import ModelReport, PhaseReport, Report
from planner.simulation import Failure
from planner.units import human
from planner.verification import Side, Verification
from tests.render.test_markup import NASTY, Reader

LLAMA = "meta-llama/Llama-2-70b-hf"


@pytest.fixture(scope="module")
def report() -> Report:
    """The 70B answer on a 48 GB card."""
    return estimate(LLAMA, rank=16, gpu="a6000", stack="latest")


def ledger(engine: str = "analytic", nbytes: int = 1024) -> Ledger:
    """Two allocations, one with a name that is no HTML."""
    rows = [Allocation("weight", Category.PARAMETER, 512, 0, 2), Allocation(NASTY, Category.ACTIVATION, nbytes, 1, 2, scope="mlp")]
    return Ledger(engine, rows, [Span(Phase.FORWARD, 0, 2)])


def texts(value: object) -> list[str]:
    """Every text of a value's page."""
    read = Reader(notebook.html(value))
    assert read.open == []
    return read.texts


def test_a_report_says_its_verdict_and_its_numbers(report):
    """The verdict, the three levels, every category of the peak, every phase, every trap and suggestion are there."""
    found = texts(report)
    whole = "\n".join(found)

    assert found[0] == "fits"
    assert all(human(size) in found for size in report.peak.by_category.values() if size)
    assert all(human(size) in whole for size in (report.peak.allocated_bytes, report.peak.reserved_bytes, report.peak.process_bytes))
    assert all(human(phase.allocated_peak_bytes) in whole for phase in report.phases)
    assert {trap.name for trap in report.traps} <= set(found)
    assert {saving.option for saving in report.suggestions} <= set(found)


def test_the_parts_of_a_report_are_all_of_it(report):
    """The table's shares add up to a hundred percent: nothing of the process is left out."""
    shares = [float(text.removesuffix(" %")) for text in texts(report) if re.fullmatch(r"[\d.]+ %", text)]

    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))


def test_without_a_card_the_common_ones_are_listed():
    """Each common card with its verdict, and what the process holds where there is room."""
    found = estimate("meta-llama/Llama-3.2-1B", stack="latest", gpu=None)
    if found.device is not None:
        pytest.skip("there is a card here")
    whole = "\n".join(texts(found))

    assert all(card.name in whole for card in found.outcomes)
    assert f"{found.peak.process_bytes / 2**30:.2f} GiB process" in whole


def test_a_report_of_published_fields_alone_is_shown_too(report):
    """Without its ledger there are no traps and no suggestions, and nothing fails."""
    fields = {name: getattr(report, name) for name in ("engine", "model", "recipe", "stack", "phases", "peak", "steady_bytes", "host")}
    bare = Report(**fields)

    assert "hidden cost" not in "\n".join(texts(bare))
    assert notebook.text(bare) == f"{LLAMA}: peak 37.79 GiB allocated, in backward (analytic engine)"


def test_a_ledger_shows_what_is_alive_at_the_peak():
    """Phases by category, then the allocations by size; names are text."""
    found = texts(ledger())

    assert f"mlp {NASTY}" in found
    assert found.index(f"mlp {NASTY}") < found.index("weight")


def test_a_long_ledger_ends_in_one_row(report):
    """The largest allocations are named, the others are one row with their sum: together the peak."""
    found = texts(report.ledger)
    peak = report.ledger.peak()
    live = report.ledger.live_at(peak.step)
    rest = next(text for text in found if text.endswith(" more"))

    assert rest == f"{len(live) - 12} more"
    assert human(sum(a.nbytes for a in live[12:])) in found


def test_a_comparison_tells_refusals_too():
    """Each row with its smallest card; what a method refuses is told in its row."""
    found = texts(compare(["meta-llama/Llama-3.2-1B", "mistralai/Mixtral-8x7B-v0.1"], stack="latest"))

    assert found.count("qlora") == 2
    assert any("lora_dropout" in text for text in found)


def test_two_engines_are_shown_with_their_differences():
    """The sum of the phase and each category, in GiB, and why they differ."""
    found = texts(Agreement(ledger(nbytes=3 << 30), ledger("traced", 1 << 30)))

    assert found.count("+2.000") == 2  # activation, and the sum
    assert any("the closed form has 2.00 GiB more activation" in text for text in found)


def verification(**more: object) -> Verification:
    """A MiB measured where 1.25 were predicted, or none measured."""
    sides = [Side(name, None, (PhaseReport("forward", size, {"activation": size}),), size, 0, 5) for name, size in SIDES.items()]
    recipe = {"batch_size": 1, "seq_len": 8, "method": "lora", "optim": "sgd"}
    model = ModelReport(NASTY, "llama", "config", 9, 0, 5)
    known = {"model": model, "recipe": recipe, "stack": {}, "device": "cpu", "weights": "synthetic", "measured": sides[0]}
    return Verification(**{**known, "predicted": sides[1], **more})


SIDES = {"measured": 1 << 20, "traced": 5 << 18}


def test_a_verification_lays_both_sides_beside_each_other():
    """The verdict, both sizes and the difference in the unit that reads best, and the notes."""
    found = texts(verification(notes=("a note",)))

    assert found[0] == "MEASURED on the CPU: 1.0 MiB allocated, in forward; predicted +25.00 %"
    assert [found.count(text) for text in ("1.000", "1.250", "+0.250", "+25.00 %")] == [3, 3, 3, 3]  # the phase, its part, and the level
    assert "a note" in found


def test_a_verification_that_ran_out_of_memory_says_where():
    """The phase, what was asked for, what was alive; no table of what was not measured."""
    failure = Failure("allocation", "mlp", "backward", 512, 1024, 1024, {"activation": 1024})
    found = texts(verification(measured=None, failure=failure))

    assert found[0] == "OUT OF MEMORY on the CPU, in backward"
    assert any("512 B more was asked for in mlp, with 1.0 KiB allocated" in text for text in found)
    assert "measured" not in found


def test_texts_are_the_screens(report):
    """Where there is no page: the screen of the command, 80 columns wide."""
    shown = notebook.text(report)

    assert shown.startswith("FITS on RTX A6000: needs 39.07 of 47.54 GiB")
    assert max(map(len, shown.splitlines())) <= 80
    assert notebook.text(compare([LLAMA], methods=["qlora"], stack="latest")).startswith(f"{LLAMA}\nmethod")
