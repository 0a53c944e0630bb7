"""The first screen of `qplan estimate`: the answer, the peak, what makes it up, the traps, the ways to save, the next command."""

from __future__ import annotations

from collections.abc import Iterable

from planner import advice
from planner.render.terminal import Terminal, labelled, listing, printable, wrap
from planner.report import CardOutcome, Report, Verdict
from planner.units import GIB, human

_LABEL, _SIZE = 7, 10
_SHOWN_TRAPS, _SHOWN_SUGGESTIONS = 4, 5
# Traps of less than this part of the peak are left to --explain; those without a size are shown.
_SHOWN_PER_MILLE = 1
# Whose version says most about an entry point.
_OWNERS = {"trl": "trl", "trainer": "transformers", "loop": "torch"}
OUTCOMES = {"fits": ("FITS", "green"), "tight": ("TIGHT", "yellow"), "does_not_fit": ("DOES NOT FIT", "red")}


def lines(report: Report, terminal: Terminal, *, explain: bool = False) -> list[str]:
    """
    The report as lines of text.

    Args:
        report: What to show.
        terminal: What can be shown.
        explain: Whether to add what makes up the numbers, and where each comes from.
    """
    report.begin()
    advised = _spaced(_traps(report, terminal) + _suggestions(report, terminal))  # planned while the run goes through the allocator
    parts = [_answer(report, terminal), _run(report, terminal), [""], _peak(report, terminal), _phases(report, terminal), advised]
    parts += [
        _spaced(_warnings(report, terminal)),
        _spaced(_near(report, terminal)),
        _spaced(_next(report, terminal, explained=explain)),
        _small_print(report, terminal),
    ]
    if explain:
        from planner.render import explain as more

        parts += [[""], more.lines(report, terminal)]
    return [line for part in parts for line in part]


def _answer(report: Report, terminal: Terminal) -> list[str]:
    if report.verdict is None or report.device is None:
        return _answers(report.outcomes, terminal)
    verdict = report.verdict
    word, hue = OUTCOMES[verdict.outcome]
    needs = (
        f" on {advice.short_name(report.device.name)}: needs {gib(verdict.required_bytes)} of {gib(verdict.budget_bytes)} GiB, "
    )
    how = {
        "fits": f"{gib(verdict.headroom_bytes)} to spare",
        "tight": f"{gib(verdict.headroom_bytes)} to spare" + ("" if verdict.num_flushes else " is less than the error"),
        "does_not_fit": f"{gib(-verdict.headroom_bytes)} too much" if verdict.headroom_bytes < 0 else "in pieces that are too small",
    }
    text = wrap(f"{word}{needs}{how[verdict.outcome]} (error {gib(verdict.error_bytes)})", terminal.width)
    rows = [terminal.paint(word, "bold", hue) + text[0][len(word) :], *text[1:]]
    return rows + [row for sentence in why(verdict) for row in wrap(sentence, terminal.width)]


def why(verdict: Verdict) -> list[str]:
    """Where the run fails or has to give cached memory back, and whether expandable segments would help."""
    found, failure = [], verdict.failure
    if failure is not None:
        where = f" of {printable(failure.scope)}" if failure.scope else ""
        phase = failure.phase.replace("_", " ")
        found.append(
            f"fails in {phase}: {human(failure.requested_bytes)} for {printable(failure.operation)}{where}, with "
            f"{human(failure.allocated_bytes)} allocated and {human(failure.reserved_bytes)} reserved"
        )
    elif verdict.num_flushes:
        times = "once" if verdict.num_flushes == 1 else f"{verdict.num_flushes} times"
        found.append(f"the card is full {times}, and cached memory is given back: it runs, but slower")
    if verdict.runs_with_expandable_segments and failure is not None:
        found.append("it would run with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    return found


def _answers(cards: Iterable[CardOutcome], terminal: Terminal) -> list[str]:
    """The common cards by their verdicts, those that fit first."""
    found: list[str] = []
    by_outcome: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for card in cards:
        by_outcome[card.outcome].append(f"{advice.short_name(card.name)} ({gib(card.budget_bytes, 1)})")
    if not by_outcome["fits"] and not by_outcome["tight"]:
        by_outcome = {"does_not_fit": ["any common card: " + by_outcome["does_not_fit"][0], *by_outcome["does_not_fit"][1:]]}
    for outcome, names in by_outcome.items():
        if not names:
            continue
        word, hue = OUTCOMES[outcome]
        rows = labelled(word, listing(names, terminal.width - 14), 14)
        found += [terminal.paint(word, "bold", hue) + rows[0][len(word) :], *rows[1:]]
    return found


def _run(report: Report, terminal: Terminal) -> list[str]:
    model = report.model
    counts = f"{count(model.num_parameters)} parameters, {count(model.num_trainable_parameters)} trained"
    id_ = terminal.fit(printable(model.id), terminal.width - len(counts) - 2)
    return [terminal.paint(id_, "bold") + f"  {counts}", *wrap(recipe_text(report), terminal.width)]


def recipe_text(report: Report) -> str:
    """The run in a few words."""
    knobs = report.recipe
    targets = knobs["targets"] if isinstance(knobs["targets"], str) else ",".join(knobs["targets"])
    base = [knobs["method"]] + ([knobs["quantization"]] if knobs["quantization"] != "none" else [])
    if knobs["quantization"] in ("nf4", "fp4"):
        base.append("double quant" if knobs["double_quant"] else "single quant")
    words = [
        " ".join(base),
        knobs["method"] != "full" and f"r={knobs['rank']} {targets}",
        knobs["dora"] and "DoRA",
        f"{knobs['batch_size']} x {knobs['seq_len']} tokens",
        knobs["grad_accum"] > 1 and f"accumulation {knobs['grad_accum']}",
        knobs["optim"],
        f"{knobs['dtype']} weights",
        knobs["mixed_precision"] != "no" and f"{knobs['mixed_precision']} autocast",
        f"checkpointing {'on' if knobs['gradient_checkpointing'] else 'off'}",
        knobs["attn"],
        f"{knobs['loss']} loss",
        _entry_point(report),
    ]
    return ", ".join(str(word) for word in words if word)


def _entry_point(report: Report) -> str:
    """The entry point and the version that says most about it."""
    name = report.recipe["entry_point"]
    owner = _OWNERS[name]
    return f"{name} {report.stack[owner]}" if name == owner else f"{name} ({owner} {report.stack[owner]})"


def _peak(report: Report, terminal: Terminal) -> list[str]:
    peak = report.peak
    process = peak.process_bytes
    sizes = (f"{human(process)}* process", f"{human(peak.reserved_bytes)} reserved", f"{human(peak.allocated_bytes)} allocated")
    numbers = wrap(f"{', '.join(sizes)}, in {peak.phase.replace('_', ' ')}", terminal.width - _LABEL)
    parts = _parts(report, process, terminal.num_parts)
    whole = max(process, report.verdict.budget_bytes if report.verdict else 0)
    bar = terminal.bar([size for _, size in parts], whole, terminal.width - _LABEL)
    rows = listing((f"\1{i} {name} {human(size)}" for i, (name, size) in enumerate(parts)), terminal.width - _LABEL, "  ")
    for i in range(len(parts)):
        rows = [row.replace(f"\1{i}", terminal.glyph(i)) for row in rows]
    return labelled("peak", [*numbers, bar, *rows], _LABEL)


def _parts(report: Report, process: int, most: int) -> list[tuple[str, int]]:
    """What the process's bytes are made of, the largest first; what is left over after the largest few is one part."""
    peak = report.peak
    parts = sorted(((name.replace("_", " "), size) for name, size in peak.by_category.items() if size), key=lambda part: -part[1])
    rest = sum(size for _, size in parts[most - 2 :])
    if len(parts) > most - 2:
        parts = [*parts[: most - 2], ("other", rest)]
    return [*parts, ("reserve and context*", process - peak.allocated_bytes)]


def _phases(report: Report, terminal: Terminal) -> list[str]:
    phases = [f"{phase.phase.replace('_', ' ')} {gib(phase.allocated_peak_bytes)}" for phase in report.phases]
    host = report.host
    sizes = (("paged", host.paged_bytes), ("host RAM", host.ram_peak_bytes), ("download", host.download_bytes))
    beside = [f"{human(report.steady_bytes)} between steps", *(f"{name} {human(size)}" for name, size in sizes if size)]
    width = terminal.width - _LABEL
    found = labelled("phases", listing([*phases[:-1], f"{phases[-1]} GiB"], width), _LABEL)
    return found + labelled("rest", listing(beside, width), _LABEL)


def _traps(report: Report, terminal: Terminal) -> list[str]:
    least = report.peak.allocated_bytes * _SHOWN_PER_MILLE // 1000
    worth = [trap for trap in report.traps if trap.nbytes >= least or not trap.nbytes]
    rows = [
        f"{human(trap.nbytes) if trap.nbytes else '':>{_SIZE}}  "
        + terminal.paint(terminal.fit(trap.name, terminal.width - _LABEL - _SIZE - 2), "yellow")
        for trap in worth[:_SHOWN_TRAPS]
    ]
    if len(worth) > _SHOWN_TRAPS:
        rows.append(f"and {len(worth) - _SHOWN_TRAPS} more: --explain")
    return labelled("traps", rows, _LABEL)


def _suggestions(report: Report, terminal: Terminal) -> list[str]:
    shown = report.suggestions[:_SHOWN_SUGGESTIONS]
    widest = max((len(s.option) for s in shown), default=0)
    rows = []
    for suggestion in shown:
        verdict = suggestion.verdict if report.verdict is not None and not report.fits else None
        outcome = verdict.outcome if verdict is not None else "does_not_fit"
        word, hue = OUTCOMES[outcome] if outcome != "does_not_fit" else ("", "red")
        mark = terminal.paint(word.lower(), hue) + ": " if word else ""
        room = terminal.width - _LABEL - _SIZE - 2 - widest - 2 - (len(word) + 2 if word else 0)
        price = mark + terminal.cut(suggestion.price, room)
        rows.append(f"{human(suggestion.saved_bytes):>{_SIZE}}  {suggestion.option:<{widest}}  {price}")
    return labelled("save", rows, _LABEL)


def _warnings(report: Report, terminal: Terminal) -> list[str]:
    rows: list[str] = []
    for warning in (*report.warnings, *_race(report)):
        text = labelled("warn", wrap(warning, terminal.width - _LABEL), _LABEL)
        rows += [terminal.paint("warn", "yellow") + text[0][4:], *text[1:]]
    return rows


def _near(report: Report, terminal: Terminal) -> list[str]:
    """How good a prediction was where one was verified on this card."""
    if report.near is None:
        return []
    from planner.render.records import near_lines

    return labelled("record", near_lines(report.near, terminal, _LABEL), _LABEL)


def _race(report: Report) -> list[str]:
    """The range of what is reserved, where the stack leaves it to chance."""
    low, high = report.peak.held.reserved_low_bytes, report.peak.held.reserved_high_bytes
    version = report.stack["transformers"]
    text = f"transformers {version} may load in threads that run ahead by chance: reserved is from {human(low)} to {human(high)}"
    return [text] if low < high else []


def _next(report: Report, terminal: Terminal, *, explained: bool) -> list[str]:
    return labelled(
        "next", pasteable(printable(advice.next_command(report, explained=explained)), terminal.width - _LABEL), _LABEL
    )


def pasteable(command: str, width: int) -> list[str]:
    """A command over as many lines as it needs, so that it can still be pasted; an option stays with its value."""
    rows = [""]
    for part in command.replace(" --", "\0--").split("\0"):
        if rows[-1] and len(rows[-1]) + 1 + len(part) + 2 > width:
            rows[-1] += " \\"
            rows.append("  " + part)
        else:
            rows[-1] += (" " if rows[-1] else "") + part
    return rows


def _small_print(report: Report, terminal: Terminal) -> list[str]:
    own = report.details is not None and report.details.device is not None and report.details.device.own is not None
    said = "measured on this card" if own else "as published" if report.device is not None else "where there is room"
    context = report.peak.process_bytes - report.peak.reserved_bytes
    text = terminal.cut(f"* with a CUDA context of {human(context)}, {said}; reserved is simulated", terminal.width)
    stack = terminal.cut(f"Stack: {report.stack['source']}, versions in --explain", terminal.width)
    return [terminal.paint(row, "dim") for row in (text, stack)]


def _spaced(rows: list[str]) -> list[str]:
    return ["", *rows] if rows else []


def gib(nbytes: int, digits: int = 2) -> str:
    """Bytes in GiB without the unit, for rows that name it once."""
    return f"{nbytes / GIB:.{digits}f}"


def count(number: int) -> str:
    """
    A number of parameters, as model cards spell it.

    >>> count(68_976_648_192), count(207_093_760), count(5)
    ('69.0 B', '207.1 M', '5')
    """
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
