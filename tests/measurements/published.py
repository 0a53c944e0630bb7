"""
The published runs, and what the closed form predicts for each.

One JSON file an archive: where its figures come from and under which licence, the card, the versions, and a row a run, whose
`recipe` is the keyword arguments of `planner.recipe.Recipe`. All sizes are bytes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from planner import Report, estimate

FOLDER = Path(__file__).parent
ARCHIVES = {"T4": "t4_fitcheck_2026_09", "A100": "a100_fms_acceleration", "L40S": "l40s_peft_methods"}


@dataclass(frozen=True)
class Run:
    """
    One published run.

    Attributes:
        id: Its name in its archive.
        model: The checkpoint's id on the Hub.
        gpu: The card, as `--gpu` takes it.
        stack: The versions it ran on, as `--stack` takes them; what it does not name cannot matter to its entry point.
        recipe: Keyword arguments of `Recipe`.
        measured: What was published, by name.
    """

    id: str
    model: str
    gpu: str
    stack: str
    recipe: dict[str, Any]
    measured: dict[str, int]

    @property
    def label(self) -> str:
        """Model, method, attention and shape of the batch, in columns."""
        recipe = self.recipe
        method = recipe["method"] + (" kbit" if recipe.get("kbit_prepare") else "")
        attention = recipe["attn"].partition("_")[0]
        return f"{self.model.partition('/')[2]:24s} {method:10s} {attention:5s} {recipe['batch_size']} x {recipe['seq_len']:<4d}"


@cache
def document(name: str) -> dict[str, Any]:
    """An archive as it lies in its file."""
    return json.loads((FOLDER / f"{ARCHIVES[name]}.json").read_text(encoding="utf-8"))


@cache
def runs(name: str) -> tuple[Run, ...]:
    """The runs of an archive: `T4`, `A100` or `L40S`."""
    archive = document(name)
    stack = ",".join(f"{package}=={version}" for package, version in archive["stack"].items())
    return tuple(Run(row["id"], row["model"], archive["gpu"], stack, row["recipe"], row["measured"]) for row in archive["rows"])


def as_it_behaves(run: Run) -> Run:
    """A run of the T4 with the versions that its loading gives away, where they are not those that came with it."""
    archive = document("T4")
    stack = {**archive["stack"], **archive["behaves_as"]}
    return replace(run, stack=",".join(f"{package}=={version}" for package, version in stack.items()))


def report(run: Run, engine: str = "analytic") -> Report:
    """The estimate of a run, on its card, made once; in closed form with its versions, traced with those that are installed."""
    return _report(run.id, run.stack if engine == "analytic" else "auto", engine)


@cache
def _report(name: str, stack: str, engine: str) -> Report:
    run = next(run for archive in ARCHIVES for run in runs(archive) if run.id == name)
    return estimate(run.model, gpu=run.gpu, stack=stack, engine=engine, **run.recipe)


def predicted(found: Report) -> dict[str, int]:
    """What an estimate says under the names of the published figures."""
    peaks = {phase.phase: phase.allocated_peak_bytes for phase in found.phases}
    return {
        "allocated_peak_bytes": found.peak.allocated_bytes,
        "forward_peak_bytes": peaks["forward"],
        "backward_peak_bytes": peaks["backward"],
        "steady_bytes": found.steady_bytes,
        "reserved_peak_bytes": found.peak.reserved_bytes,
        "process_peak_bytes": found.peak.process_bytes,
    }


def errors(run: Run, engine: str = "analytic") -> dict[str, float]:
    """Relative errors of an estimate, for each figure that was published and is predicted."""
    known = predicted(report(run, engine))
    return {name: known[name] / size - 1 for name, size in run.measured.items() if name in known}


def median_and_worst(values: Iterable[float]) -> tuple[float, float]:
    """The median of the absolute errors, and the error that is furthest from zero, with its sign."""
    found = list(values)
    return statistics.median(map(abs, found)), max(found, key=abs)
