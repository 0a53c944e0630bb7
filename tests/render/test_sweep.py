"""A sweep on the screen."""

from __future__ import annotations

from planner import sweep
from planner.render import sweep as screen
from planner.render.terminal import Terminal

TINY = "EleutherAI/pythia-14m"


def lines(most=100, **knobs) -> list[str]:
    """The screen of a small sweep."""
    return list(screen.lines(sweep(TINY, stack="latest", **knobs), Terminal(), most))


def test_refused_rows_say_why():
    """A row that the stack refuses has the sentence where the verdict would be."""
    found = lines(gpu="t4", method=["qlora", "full"], quantization=["nf4"])

    assert found[4].split("  ")[-1].strip().startswith("refused: method is `full` but quantization is `nf4`")


def test_long_sweeps_are_cut():
    """Above so many rows the rest is left out, and the note says where all of them go."""
    found = lines(most=3, gpu="t4", batch_size=range(1, 9))

    assert len(found) == 2 + 1 + 3 + 2
    assert "-o FILE.csv writes them all" in found[-2]


def test_the_frontier_is_of_each_card_and_choice():
    """For each of them the rows that no other is as large as, in every number that varies."""
    found = sweep(TINY, gpu=["1GiB", "2GiB"], stack="latest", attn=["sdpa", "eager"], batch_size=[1, 2, 4], seq_len=[128, 256])
    rows = list(screen.front(found).rows())
    every = list(found.fits_only().rows())

    def beats(a, b):
        """Of the same card and choice, as large in both numbers, and larger in one."""
        same = (a["gpu"], a["attn"]) == (b["gpu"], b["attn"])
        return same and a["batch_size"] >= b["batch_size"] and a["seq_len"] >= b["seq_len"] and a != b

    assert rows == [row for row in every if not any(beats(other, row) for other in every)]


def test_progress_is_told_at_times():
    """The first and the last row are told, and not each of those that come at once between."""
    told: list[str] = []
    tell = screen.progress(told.append)
    for done in range(1, 1001):
        tell(done, 1000)

    assert told[-1] == "1,000 of 1,000 rows"
    assert len(told) < 10
    assert screen.progress(None) is None
