"""
Prints the closed form beside the oracle's golden figures: one line a run, then each model's median and worst error.

    python -m tests.oracle.score [MODEL...]
"""

from __future__ import annotations

import statistics
import sys

from planner.errors import QplanError
from planner.ledger import Phase
from tests.oracle.cases import NAMES, analysis, document, figures, golden_resting_bytes, resting_bytes, saved_bytes

PHASES = {Phase.FORWARD: "forward", Phase.BACKWARD: "backward", Phase.OPTIMIZER_STEP: "optimizer"}


def line(name: str, run: str) -> tuple[float, str]:
    """The absolute error of the allocated peak, and the text of a run."""
    golden, found = figures(name, run), analysis(name, run)
    peak = found.ledger.peak().nbytes
    error = 100 * (peak / golden["allocated_peak_bytes"] - 1)
    saved = saved_bytes(analysis(name, run, 1)) - saved_bytes(found)
    phases = " ".join(
        f"{word} {100 * (found.ledger.peak(phase).nbytes / golden[f'rounded_{word}_peak_bytes'] - 1):+6.2f} %"
        for phase, word in PHASES.items()
    )
    exact = f"layer {saved - golden['saved_per_layer_bytes']:+d} steady {resting_bytes(found) - golden_resting_bytes(name, run):+d}"
    return abs(error), f"{name}/{run:62s} peak {error:+6.2f} %  {phases}  {exact}"


def main() -> None:
    """Print what the command line names, or everything."""
    for name in sys.argv[1:] or NAMES:
        errors, refusals = [], set()
        for run in document(name)["runs"]:
            try:
                error, text = line(name, run)
            except QplanError as refusal:
                refusals.add(str(refusal))
                continue
            errors.append(error)
            print(text)
        for refusal in refusals:
            print(f"{name}: refused: {refusal}")
        if errors:
            print(f"{name}: {len(errors)} runs, median {statistics.median(errors):.3f} %, worst {max(errors):.2f} %\n")


if __name__ == "__main__":
    main()
