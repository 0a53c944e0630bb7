"""
Prints every published run beside its prediction, then median and worst of each archive.

Predicted and measured are allocated peaks in MiB; errors are in percent, of that peak and of the figures named after it.

    python -m tests.measurements [T4] [A100] [--engine analytic|traced]

The traced engine runs the versions that are installed, not those of the runs. The A100's stack shifted the logits and cast norms in its
own way: in an environment with `a100_requirements.txt` its rows are traced as they ran.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from tests.measurements.published import as_it_behaves, document, errors, median_and_worst, predicted, report, runs

TITLES = {
    "allocated_peak_bytes": "allocated peak",
    "forward_peak_bytes": "forward peak",
    "backward_peak_bytes": "backward peak",
    "steady_bytes": "steady",
    "reserved_peak_bytes": "reserved",
    "process_peak_bytes": "process",
}
COLUMNS = {"T4": ("forward_peak_bytes", "backward_peak_bytes"), "A100": ("steady_bytes",)}
SUMMARIES = {
    "T4": ("allocated_peak_bytes", "forward_peak_bytes", "backward_peak_bytes", "reserved_peak_bytes"),
    "A100": ("allocated_peak_bytes", "steady_bytes", "process_peak_bytes"),
}
MIB = 1 << 20


def rows(name: str, engine: str) -> Iterator[str]:
    """The table of an archive."""
    others = "".join(f" {TITLES[column].partition(' ')[0]:>8s}" for column in COLUMNS[name])
    yield f"{'row':12s} {'model':24s} {'method':10s} attn  batch    predicted  measured    error{others}"
    for run in runs(name):
        known = predicted(report(run, engine))
        allocated = [size["allocated_peak_bytes"] / MIB for size in (known, run.measured)]
        found = [100 * (known[column] / run.measured[column] - 1) for column in ("allocated_peak_bytes", *COLUMNS[name])]
        sizes, percents = ("".join(texts) for texts in ((f" {v:9,.1f}" for v in allocated), (f" {v:+8.3f}" for v in found)))
        yield f"{run.id:12s} {run.label}{sizes}{percents}"


def summary(name: str, engine: str) -> Iterator[str]:
    """Median and worst of an archive, a line for each figure."""
    every = [errors(run, engine) for run in runs(name)]
    archive = document(name)
    yield f"{archive['device']}, {len(every)} runs ({archive['source'].partition(',')[0]}, {archive['licence']})"
    for column in SUMMARIES[name]:
        median, worst = median_and_worst(error[column] for error in every)
        yield f"  {TITLES[column]:22s} median {100 * median:6.3f} %   worst {100 * worst:+7.3f} %"
    if name == "T4" and engine == "analytic":
        median, worst = median_and_worst(errors(as_it_behaves(run))["reserved_peak_bytes"] for run in runs(name))
        yield f"  {'reserved, as it loads':22s} median {100 * median:6.3f} %   worst {100 * worst:+7.3f} %"
    verdicts = [(report(run, engine).verdict, run.measured["process_peak_bytes"]) for run in runs(name)]
    covered = sum(abs(verdict.required_bytes - measured) <= verdict.error_bytes for verdict, measured in verdicts)
    fitting = sum(verdict.fits for verdict, _ in verdicts)
    total = len(every)
    yield f"  process within the verdict's stated error: {covered} of {total}; said to fit: {fitting} of {total}, all ran"


def main() -> None:
    """Print the archives, then their summaries."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n")[0])
    parser.add_argument("--engine", choices=("analytic", "traced"), default="analytic")
    parser.add_argument("archives", nargs="*", metavar="T4|A100", help="which archives (default: both)")
    given = parser.parse_args()
    unknown = set(given.archives) - set(COLUMNS)
    if unknown:
        parser.error(f"no archive `{min(unknown)}`; there are {', '.join(COLUMNS)}")
    names = given.archives or list(COLUMNS)
    for name in names:
        sys.stdout.writelines(f"{line}\n" for line in (*rows(name, given.engine), ""))
    for name in names:
        sys.stdout.writelines(f"{line}\n" for line in summary(name, given.engine))


if __name__ == "__main__":
    main()
