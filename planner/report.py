"""What an estimate answers: the contract of `--json` and of the Python API."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from planner.device import Device
from planner.display import Displayed
from planner.ledger import Ledger
from planner.recipe import Recipe
from planner.stack import Stack
from planner.value import NamedTuple, Value, plain

if TYPE_CHECKING:
    from planner.agreement import Agreement
    from planner.allocator import AllocatorSettings
    from planner.history import History
    from planner.records import Near
    from planner.render.timeline import Picture
    from planner.simulation import Failure

SCHEMA_VERSION = 1
Outcome = Literal["fits", "tight", "does_not_fit"]


class ModelReport(NamedTuple):
    """Which model was planned."""

    id: str
    model_type: str
    source: str
    num_parameters: int
    num_quantized_parameters: int
    num_trainable_parameters: int


class PhaseReport(NamedTuple):
    """The peak of one phase. `by_category` adds up to `allocated_peak_bytes`."""

    phase: str
    allocated_peak_bytes: int
    by_category: dict[str, int]


class Held(NamedTuple):
    """
    What a run holds at its peak beyond what is allocated.

    Attributes:
        reserved_bytes: What `torch.cuda.max_memory_reserved()` would say.
        process_bytes: What nvidia-smi would show for the process.
        reserved_low_bytes, reserved_high_bytes: The range of `reserved_bytes` where the order in which the stack loads a model is left to
            chance; else both are the same.
    """

    reserved_bytes: int
    process_bytes: int
    reserved_low_bytes: int
    reserved_high_bytes: int


class PeakReport(Value):
    """
    The highest of the phases' peaks, at the three levels that a user can observe.

    What is reserved comes from a simulated allocator, which runs when somebody asks.

    Attributes:
        phase: The phase that it falls in.
        allocated_bytes: What `torch.cuda.max_memory_allocated()` would say.
        by_category: What it is made of; the values add up to it.
        hold: Simulates the rest.
    """

    phase: str
    allocated_bytes: int
    by_category: dict[str, int]
    hold: Callable[[], Held] = field(repr=False)

    @cached_property
    def held(self) -> Held:
        """What is held beyond what is allocated."""
        return self.hold()

    @property
    def reserved_bytes(self) -> int:
        """What `torch.cuda.max_memory_reserved()` would say."""
        return self.held.reserved_bytes

    @property
    def process_bytes(self) -> int:
        """What nvidia-smi would show for the process."""
        return self.held.process_bytes

    def _asdict(self) -> dict[str, Any]:
        found = {"phase": self.phase, "allocated_bytes": self.allocated_bytes, **self.held._asdict()}
        return {**found, "by_category": self.by_category}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PeakReport) and self._asdict() == other._asdict()

    def __hash__(self) -> int:
        return hash((self.phase, self.allocated_bytes))


class HostReport(NamedTuple):
    """What the run asks of the machine around the card."""

    ram_peak_bytes: int
    paged_bytes: int
    """Optimizer state in CUDA managed memory: outside torch's counters, evicted to the host under pressure."""
    download_bytes: int


class DeviceReport(NamedTuple):
    """The card that the verdict is for."""

    name: str
    total_bytes: int
    context_bytes: int
    usable_bytes: int


class Verdict(NamedTuple):
    """
    Whether it fits: whether the run, simulated in the allocator on the card, comes to its end.

    Attributes:
        outcome: `tight` where it comes to its end only after cached memory was given back, or with less room to spare than the stated
            error.
        required_bytes: What the process holds at its peak: on the card if it runs there (cached memory that it gives back when the card
            is full is not counted), else where there is room.
        budget_bytes: What the card gives to one process.
        headroom_bytes: budget - required; negative where it does not fit.
        binding_phase: The phase that allocates the most.
        error_bytes: The stated error of `required_bytes`.
        num_flushes: Requests that found the card full and made the allocator give cached memory back.
        failure: Where it fails, which may be in another phase; None where it does not, or was not simulated.
        runs_with_expandable_segments: Whether it comes to its end with `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`; None where it
            does without, or was not simulated.
    """

    outcome: Outcome
    required_bytes: int
    budget_bytes: int
    headroom_bytes: int
    binding_phase: str
    error_bytes: int
    num_flushes: int = 0
    failure: Failure | None = None
    runs_with_expandable_segments: bool | None = None

    @property
    def fits(self) -> bool:
        """Whether it runs; a tight fit counts."""
        return self.outcome != "does_not_fit"


class Finding(NamedTuple):
    """Memory that a recipe costs without saying so: what, how many bytes, and why in one sentence."""

    name: str
    nbytes: int
    sentence: str


class CardVerdict(NamedTuple):
    """One card and what it says to the run."""

    device: DeviceReport
    verdict: Verdict


class CardOutcome(NamedTuple):
    """One card, what it gives to one process, and whether the run fits: a verdict without its figures."""

    name: str
    budget_bytes: int
    outcome: Outcome


class Suggestion(NamedTuple):
    """
    A change of the recipe that was planned again, and what it gave.

    Attributes:
        option: What to add to the command line.
        knobs: The same for `estimate(...)`.
        saved_bytes: How much less is allocated at the peak.
        allocated_bytes: What then is.
        price: What it costs, in words.
        judge: Gives the verdict of the named card on it, by simulation; None where no card was named.
    """

    option: str
    knobs: dict[str, Any]
    saved_bytes: int
    allocated_bytes: int
    price: str
    judge: Callable[[], Verdict | None]

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of the named card on it; None where no card was named."""
        return self.judge()


def _nothing() -> None:
    """One engine was asked."""


class Details(Value, eq=False):
    """
    What a report knows beyond its published fields: for people and for Python, not for `--json`.

    Attributes:
        recipe: The run as it was planned, every knob resolved.
        asked: The knobs that the user named, as they were given.
        options: What else was named: `gpu`, `stack`, `revision`.
        device: The card; None where none was named or found.
        published_parameters: The count that was published, where one is known.
        ledger: Every allocation, with its lifetime.
        find_traps: Finds memory that the recipe costs without saying so; called once, when somebody asks.
        find_outcomes: Gives the outcome of the card, or of every common one; called once, when somebody asks.
        judge_cards: Gives the verdict of every common card; called once, when somebody asks.
        suggest: Plans the changed recipes; called once, when somebody asks.
        make_it_fit: Finds the knobs to change so that the card (else the largest common one) takes the run, and the card's name;
            None where nothing is enough.
        stack: The versions that run it.
        history: Gives every storage of the run in order, at full depth; called once, when somebody asks.
        settings: What the allocator is told.
        draw: Draws a report's memory over time, and writes it to a path if there is one: over the whole run, or one step.
        compare: Lays the engines side by side, where both were asked for.
        begin: Starts what verdicts take longest for beside what the caller does next.
        find_near: Finds the record of a verification on this card that is nearest to the run.
    """

    recipe: Recipe
    asked: dict[str, Any]
    options: dict[str, Any]
    device: Device | None
    published_parameters: int | None
    ledger: Ledger
    find_traps: Callable[[], tuple[Finding, ...]]
    find_outcomes: Callable[[], tuple[CardOutcome, ...]]
    judge_cards: Callable[[], tuple[CardVerdict, ...]]
    suggest: Callable[[], tuple[Suggestion, ...]]
    make_it_fit: Callable[[], tuple[dict[str, Any], str] | None]
    stack: Stack
    history: Callable[[], History]
    settings: AllocatorSettings
    draw: Callable[[Report, str | os.PathLike[str] | None, bool], Picture]
    compare: Callable[[], Agreement | None] = _nothing
    find_near: Callable[[], Near | None] = _nothing
    begin: Callable[[], None] = _nothing


class Report(Value, Displayed):
    """
    One estimate. All sizes are integers of bytes.

    It and its parts are plain: what they hold was computed, not parsed, and importing a validation library would cost a cold
    start more than the estimate does.
    """

    engine: str
    model: ModelReport
    recipe: dict[str, Any]
    stack: dict[str, str]
    phases: tuple[PhaseReport, ...]
    peak: PeakReport
    steady_bytes: int
    host: HostReport
    device: DeviceReport | None = None
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
    judge: Callable[[], Verdict] | None = field(default=None, repr=False, compare=False)
    details: Details | None = field(default=None, repr=False, compare=False)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict of the card, by simulation, which runs when somebody asks; None where no card was named or found."""
        return None if self.judge is None else self.judge()

    def begin(self) -> None:
        """Start the runs through the allocator that verdicts need, where that can go on beside what the caller does next."""
        self._known.begin()

    @property
    def ledger(self) -> Ledger:
        """Every allocation of the run, with its lifetime."""
        return self._known.ledger

    @property
    def traps(self) -> tuple[Finding, ...]:
        """Memory that the recipe costs without saying so, largest first."""
        return self._known.find_traps()

    @cached_property
    def verdicts(self) -> tuple[CardVerdict, ...]:
        """The verdict of the card, or of every common card where none was named; smallest card first."""
        if self.device is not None and self.verdict is not None:
            return (CardVerdict(self.device, self.verdict),)
        return self._known.judge_cards()

    @cached_property
    def outcomes(self) -> tuple[CardOutcome, ...]:
        """Whether it fits the card, or each common card where none was named, smallest card first: `verdicts` without their figures."""
        return self._known.find_outcomes()

    @cached_property
    def suggestions(self) -> tuple[Suggestion, ...]:
        """Changes that save memory, planned again one by one, the largest saving first."""
        return self._known.suggest()

    @cached_property
    def agreement(self) -> Agreement | None:
        """The closed form beside the trace, where both engines were asked for."""
        return self._known.compare()

    @cached_property
    def near(self) -> Near | None:
        """The record of a verification on this card that is nearest to this run: how good a prediction was there; None where none is."""
        return self._known.find_near()

    @cached_property
    def history(self) -> History:
        """Every storage of the run, and the order in which they come and go."""
        return self._known.history()

    def timeline(self, path: str | os.PathLike[str] | None = None, *, whole_run: bool = False) -> Picture:
        """
        Memory over one training step, stacked by category; a notebook shows it as it is.

        Args:
            path: Where to write it too: a page (.html), a picture (.png, needs matplotlib) or numbers (.json; their fields are in
                `planner.render.timeline`).
            whole_run: Everything from the loading on, rather than the last training step.

        Raises:
            InvalidOutputError: The file cannot be written.
            MissingExtraError: A .png without matplotlib.
        """
        return self._known.draw(self, path, whole_run)

    def snapshot(self, path: str | os.PathLike[str]) -> int:
        """
        Write the whole run as PyTorch's memory viewer opens it (https://pytorch.org/memory_viz).

        Args:
            path: Where; it ends in .pickle or .pkl.

        Returns:
            How many entries its trace has.

        Raises:
            InvalidOutputError: The file cannot be written.
        """
        from planner.files import output_path
        from planner.snapshot import SUFFIXES, dump

        output_path(path, SUFFIXES)  # before the history is asked for
        card, settings = self.device, self._known.settings
        if card is None:
            return dump(self.history, path, settings=settings)
        return dump(self.history, path, card.usable_bytes, settings, total_bytes=card.total_bytes)

    @property
    def fits(self) -> bool:
        """Whether it runs on the card; where none was named, whether at least one common card takes it."""
        if self.verdict is not None:
            return self.verdict.fits
        return any(card.outcome != "does_not_fit" for card in self.outcomes)

    def model_dump(self) -> dict[str, Any]:
        """The contract of `--json`: nested dicts, lists, texts and integers."""
        fields = {name: plain(getattr(self, name)) for name in _FIELDS}
        beside = () if self.details is None else (("agreement", self.agreement), ("near_record", self.near))
        return fields | {name: part.model_dump() for name, part in beside if part is not None}

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """`model_dump` as JSON text."""
        import json

        return json.dumps(self.model_dump(), indent=indent, ensure_ascii=False)

    @property
    def _known(self) -> Details:
        if self.details is None:
            raise AttributeError("this report was built from its published fields alone; it has no ledger and no history")
        return self.details


_FIELDS = (
    "schema_version", "engine", "model", "recipe", "stack", "phases", "peak", "steady_bytes", "host", "device", "verdict", "warnings",
)  # fmt: skip
