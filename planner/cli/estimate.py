"""`qplan estimate`: what one run needs, and whether a card has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.cli import options

if TYPE_CHECKING:
    from planner.report import Report


@options.takes_recipe()
def estimate(
    model: options.Model,
    gpu: options.Gpu = None,
    stack: options.Stack = "auto",
    revision: options.Revision = None,
    engine: options.Engine = "analytic",
    every_layer: options.EveryLayer = False,
    json: options.Json = False,
    explain: options.Explain = False,
    timeline: options.Timeline = None,
    whole_run: options.WholeRun = False,
    snapshot: options.Snapshot = None,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    What fine-tuning a model needs of a GPU, and whether it fits.

    The defaults are the canonical QLoRA script. Exit code 0: it fits, or only just (where no card is named: on one of the common
    ones); 1: it does not; 2: the request is wrong; 3: something it needs is missing or unreachable.
    """
    from planner import api
    from planner.render import terminal

    if timeline or snapshot or whole_run:
        _check(timeline or (), snapshot, whole_run=whole_run)
    with terminal.progress(sys.stderr) as progress:
        report = api.estimate(
            model,
            gpu=gpu,
            stack=stack,
            revision=revision,
            engine=engine,
            every_layer=every_layer,
            progress=progress,
            **knobs,
        )
        shown = [report.model_dump_json(indent=2)] if json else list(_screen(report, explain=explain))
        code = 0 if report.fits else 1
    terminal.write(shown)
    if timeline or snapshot:
        terminal.write(_write(report, timeline or (), snapshot, whole_run=whole_run), sys.stderr)
    return code


def _screen(report: Report, *, explain: bool) -> Iterator[str]:
    """The report as lines; below it the engines side by side, where both were asked for."""
    from planner.render import estimate as screen
    from planner.render.terminal import Terminal

    terminal = Terminal.of(sys.stdout)
    yield from screen.lines(report, terminal, explain=explain)
    if report.agreement is not None:
        from planner.render import agreement

        yield from ("", *agreement.lines(report.agreement, terminal))


def _check(timeline: Sequence[str], snapshot: str | None, *, whole_run: bool) -> None:
    """Refuse files that cannot be written, before any work is done."""
    from planner.errors import InvalidOutputError
    from planner.files import output_path
    from planner.render import timeline as pictures
    from planner.snapshot import SUFFIXES

    if whole_run and not timeline:
        hint = "add --timeline run.html; a snapshot always has the whole run"
        raise InvalidOutputError("--whole-run is given without a timeline to draw", hint=hint)
    for path in timeline:
        pictures.check(path)
    if snapshot:
        output_path(snapshot, SUFFIXES)


def _write(report: Report, timeline: Sequence[str], snapshot: str | None, *, whole_run: bool) -> Iterator[str]:
    """Write the files; what was written, a line each."""
    if timeline:
        picture = report.timeline(whole_run=whole_run)
        shown = f"{'the whole run' if whole_run else 'one training step'}, {picture.timeline.end - picture.timeline.begin:,} events"
        for path in timeline:
            picture.save(path)
            yield f"wrote {path}: {shown}"
    if snapshot:
        yield f"wrote {snapshot}: {report.snapshot(snapshot):,} entries, for https://pytorch.org/memory_viz"
