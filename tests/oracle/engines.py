"""
Prints the closed form beside the traced engine: every bundled checkpoint at full depth with the default recipe, a line each.

    python -m tests.oracle.engines [MODEL...] [--full]

`MODEL` is part of an id. Where PEFT refuses dropout on a model, both engines run without. Peaks are in GiB, differences in percent of the
trace; a model that an engine refuses is a line with the reason. `--full` runs every layer instead of three instances of what repeats.
Progress goes to stderr. Needs `qplan[torch]`; no GPU, no weights.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import model_specs
from planner.architecture import build_spec
from planner.catalog import find_checkpoint, find_device
from planner.engines.analytic import analyse
from planner.errors import QplanError
from planner.ledger import Ledger, Phase
from planner.recipe import make_recipe
from planner.spec import ModelSpec
from planner.stack import parse_stack, resolve
from planner.units import GIB

CARD = "a100-80gb"
PHASES = (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP)


@dataclass(frozen=True)
class Line:
    """
    What two engines say of a model.

    Attributes:
        id: The checkpoint.
        analytic, traced: Peaks by phase, in bytes; empty where the engine refuses.
        seconds: What the trace took.
        refusals: Why an engine says nothing.
    """

    id: str
    analytic: dict[Phase, int] = field(default_factory=dict)
    traced: dict[Phase, int] = field(default_factory=dict)
    seconds: float = 0.0
    refusals: tuple[str, ...] = ()

    @property
    def errors(self) -> dict[Phase, float]:
        """Relative differences of the closed form, by phase."""
        return {phase: self.analytic[phase] / self.traced[phase] - 1 for phase in PHASES if self.analytic and self.traced}

    @property
    def error(self) -> float | None:
        """Of the peak of a step; None where an engine refuses."""
        if not self.errors:
            return None
        analytic, traced = (max(peaks[phase] for phase in PHASES) for peaks in (self.analytic, self.traced))
        return analytic / traced - 1

    def __str__(self) -> str:
        sizes = "".join(f"{max(peaks.values()) / GIB:9.2f}" if peaks else "        -" for peaks in (self.analytic, self.traced))
        differences = "".join(f" {100 * error:+7.3f}" for error in self.errors.values())
        total = "" if self.error is None else f" {100 * self.error:+7.3f} %"
        return f"{self.id:48s}{sizes}{total}{differences}  {'; '.join(self.refusals)}".rstrip()


HEADER = f"{'checkpoint':48s}{'analytic':>9s}{'traced':>9s} {'peak':>9s} {'forward':>7s} {'backwd':>7s} {'update':>7s}"


def compare(name: str, *, every_layer: bool = False) -> Line:
    """Both engines on one checkpoint."""
    found = find_checkpoint(name)
    spec = build_spec(found.config, id=found.id, source=found.source, published_parameters=found.published_parameters)
    line = _compare(spec, {}, every_layer=every_layer)
    if any("dropout" in reason for reason in line.refusals):
        return _compare(spec, {"dropout": 0.0}, every_layer=every_layer)
    return line


def _compare(spec: ModelSpec, knobs: dict[str, float], *, every_layer: bool) -> Line:
    from planner.engines.traced import analyse as trace

    stack, device = parse_stack("auto"), find_device(CARD)
    refusals: list[str] = []
    recipe = resolve(make_recipe(**knobs), stack, spec.dtype)
    analytic: dict[Phase, int] = {}
    traced: dict[Phase, int] = {}
    try:
        analytic = _peaks(analyse(spec, recipe, stack, device).ledger)
    except QplanError as refusal:
        refusals.append(f"analytic: {refusal}")
    began = time.monotonic()
    try:
        traced = _peaks(trace(spec, recipe, stack, device, every_layer=every_layer).ledger)
    except QplanError as refusal:
        refusals.append(f"traced: {refusal}")
    return Line(spec.id, analytic, traced, time.monotonic() - began, tuple(refusals))


def _peaks(ledger: Ledger) -> dict[Phase, int]:
    return {phase: ledger.highs[phase][0] for phase in PHASES}


def checkpoints(words: list[str]) -> list[str]:
    """The bundled ids that have one of the words in them, or all."""
    ids = sorted((fields["id"] for fields in model_specs.checkpoints()), key=str.lower)
    return [name for name in ids if not words or any(word.lower() in name.lower() for word in words)]


def lines(ids: list[str], *, every_layer: bool) -> Iterator[Line]:
    """One after the other, with progress."""
    for number, name in enumerate(ids, 1):
        sys.stderr.write(f"{number} of {len(ids)}: {name}")
        sys.stderr.flush()
        line = compare(name, every_layer=every_layer)
        sys.stderr.write("\r" + " " * 80 + "\r")
        yield line


def summary(found: list[Line]) -> str:
    """Median and worst of the peaks, and how many were compared."""
    errors = {line.id: line.error for line in found if line.error is not None}
    if not errors:
        return f"none of {len(found)} compared"
    worst = max(errors, key=lambda name: abs(errors[name]))
    median = statistics.median(map(abs, errors.values()))
    return (
        f"{len(errors)} of {len(found)} compared: median {100 * median:.3f} %, worst {100 * errors[worst]:+.3f} % ({worst}); "
        f"traces took {sum(line.seconds for line in found):.0f} s"
    )


def main() -> None:
    """Print what the command line names, or everything."""
    options = {word for word in sys.argv[1:] if word.startswith("-")}
    if options - {"--full"}:
        sys.exit(f"unknown option {min(options - {'--full'})}; usage: python -m tests.oracle.engines [MODEL...] [--full]")
    ids = checkpoints([word for word in sys.argv[1:] if not word.startswith("-")])
    if not ids:
        sys.exit("no bundled checkpoint has that in its id; `qplan models` lists them")
    found = []
    sys.stdout.write(f"{HEADER}\n")
    for line in lines(ids, every_layer="--full" in options):
        found.append(line)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{summary(found)}\n")


if __name__ == "__main__":
    main()
