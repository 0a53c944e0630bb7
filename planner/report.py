"""What an estimate answers: the contract of `--json` and of the Python API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

from planner.device import Device
from planner.ledger import Ledger
from planner.recipe import Recipe
from planner.stack import Stack

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


class PeakReport(NamedTuple):
    """The highest of the phases' peaks, at the three levels that a user can observe."""

    phase: str
    allocated_bytes: int
    """What `torch.cuda.max_memory_allocated()` would say."""
    reserved_bytes: int
    """What `torch.cuda.max_memory_reserved()` would say."""
    process_bytes: int
    """What nvidia-smi would show for the process."""
    by_category: dict[str, int]


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
    Whether it fits.

    Attributes:
        outcome: `tight` where it fits by less than the stated error.
        required_bytes: What the process needs.
        budget_bytes: What the card gives to one process.
        headroom_bytes: budget - required; negative where it does not fit.
        binding_phase: The phase that needs the most.
        error_bytes: The stated error of `required_bytes`.
    """

    outcome: Outcome
    required_bytes: int
    budget_bytes: int
    headroom_bytes: int
    binding_phase: str
    error_bytes: int

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


class Suggestion(NamedTuple):
    """
    A change of the recipe that was planned again, and what it gave.

    Attributes:
        option: What to add to the command line.
        knobs: The same for `estimate(...)`.
        saved_bytes: How much less the process needs.
        process_bytes: What it then needs.
        verdict: The verdict of the named card on it; None where no card was named.
        price: What it costs, in words.
    """

    option: str
    knobs: dict[str, Any]
    saved_bytes: int
    process_bytes: int
    verdict: Verdict | None
    price: str


class Details(NamedTuple):
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
        judge_cards: Gives the verdict of every common card; called once, when somebody asks.
        suggest: Plans the changed recipes; called once, when somebody asks.
        make_it_fit: Finds the knobs to change so that the card (else the largest common one) takes the run, and the card's name;
            None where nothing is enough.
        stack: The versions that run it.
    """

    recipe: Recipe
    asked: dict[str, Any]
    options: dict[str, str]
    device: Device | None
    published_parameters: int | None
    ledger: Ledger
    find_traps: Callable[[], tuple[Finding, ...]]
    judge_cards: Callable[[], tuple[CardVerdict, ...]]
    suggest: Callable[[], tuple[Suggestion, ...]]
    make_it_fit: Callable[[], tuple[dict[str, Any], str] | None]
    stack: Stack


@dataclass(frozen=True)
class Report:
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
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
    details: Details | None = field(default=None, repr=False, compare=False)

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
    def suggestions(self) -> tuple[Suggestion, ...]:
        """Changes that save memory, planned again one by one, the largest saving first."""
        return self._known.suggest()

    @property
    def fits(self) -> bool:
        """Whether it runs on the card, or on at least one of the common cards where none was named."""
        return any(card.verdict.fits for card in self.verdicts)

    def model_dump(self) -> dict[str, Any]:
        """The contract of `--json`: nested dicts, lists, texts and integers."""
        return {name: _plain(getattr(self, name)) for name in _FIELDS}

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """`model_dump` as JSON text."""
        import json

        return json.dumps(self.model_dump(), indent=indent, ensure_ascii=False)

    @property
    def _known(self) -> Details:
        if self.details is None:
            raise AttributeError("this report was built from its published fields alone; it has no ledger")
        return self.details


_FIELDS = ("schema_version", *(f.name for f in fields(Report) if f.name not in ("schema_version", "details")))


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
