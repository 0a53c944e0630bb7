"""How values reach what draws them."""

from __future__ import annotations

import subprocess
import sys

from planner import estimate
from planner.ledger import Allocation, Category, Ledger, Phase, Span


def a_ledger() -> Ledger:
    """Two allocations."""
    rows = [Allocation("weight", Category.PARAMETER, 512, 0, 2), Allocation("x", Category.ACTIVATION, 1024, 1, 2)]
    return Ledger("analytic", rows, [Span(Phase.FORWARD, 0, 2)])


def test_ipython_takes_the_page_and_the_text():
    """IPython's own formatters find both, also where the class is a dataclass with a `__repr__`."""
    from IPython.core.formatters import DisplayFormatter

    formatter = DisplayFormatter()
    formatter.active_types = ["text/plain", "text/html"]
    report, _ = formatter.format(estimate("meta-llama/Llama-3.2-1B", gpu="t4", stack="latest"))
    ledger, _ = formatter.format(a_ledger())

    assert report["text/plain"].startswith("FITS on Tesla T4")
    assert report["text/html"].startswith("<div")
    assert ledger["text/plain"] == "ledger of the analytic engine: 2 allocations, peak 1.5 KiB in forward"


def test_nothing_is_drawn_before_somebody_looks():
    """An estimate loads no module that draws for notebooks."""
    code = (
        "import sys; from planner import estimate; estimate('meta-llama/Llama-3.2-1B', gpu='t4'); "
        "print([m for m in sys.modules if m.startswith('planner.render')])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
