"""
`recommend`: whole recipes for a card, the best first, each planned and simulated, with what it trades away.

The order of preferences. Nothing is scored: a recipe that gives up less of what stands higher comes first.

1. What was asked for is kept: every knob that was named, the length among them. Only where nothing else fits are samples halved.
2. Nothing that is learnt is given up (rank, targets, dropout, length).
3. The method: full fine-tuning, LoRA over a 16-bit base, QLoRA (NF4). 8-bit bases where they are asked for.
4. The effective batch is always kept; it is taken in the fewest passes that fit.
5. Checkpointing off, then on. Where off needs more passes, both are offered.
6. Within these, the changes of `planner.advice` in the order of their prices: what changes no result (attention, loss, double
   quantisation), what is slower, what has fewer bits (optimizer, weights, kbit-prepare), what learns less.

What counts as fitting is the verdict `fits`: a simulated run with more room than the stated error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from planner import advice, api
from planner.api import Model
from planner.device import Device
from planner.errors import InvalidRecipeError, QplanError, UnknownDeviceError
from planner.job import Job, device_report
from planner.recipe import Recipe, make_recipe
from planner.report import DeviceReport, Verdict
from planner.stack import Stack
from planner.units import gib
from planner.value import NamedTuple, Value

SCHEMA_VERSION = 1
EFFECTIVE_BATCH = 16
"""Samples of one optimizer step where no other number is asked for."""

_METHODS = ("full", "lora", "qlora")
_LEARNS_LESS = frozenset({"rank", "targets", "dropout", "seq_len"})
_HALF = {"mixed_precision": "fp16", "compute_dtype": "fp16", "dtype": "fp16", "adapter_dtype": "fp32"}
"""Knobs of a card without bf16: GradScaler wants what is trained in fp32."""


class Trade(NamedTuple):
    """
    Something that was changed for the card.

    Attributes:
        knobs: The knobs and their values.
        price: What it costs, in words.
    """

    knobs: dict[str, Any]
    price: str

    @property
    def option(self) -> str:
        """As it is typed."""
        return advice.flags(self.knobs)


class Recommendation(Value, eq=False):
    """
    A whole recipe that fits.

    Attributes:
        knobs: For `estimate(model, gpu=..., **knobs)`.
        trades: What was changed for the card, in the order of the preferences.
        recipe: Every knob resolved.
        allocated_bytes: The peak of allocated blocks.
        verdict: The card's, by simulation.
        command: The `qplan estimate` command that shows it.
        model, card, stack: What it is for.
    """

    knobs: dict[str, Any]
    trades: tuple[Trade, ...]
    recipe: Recipe
    allocated_bytes: int
    verdict: Verdict
    command: str
    model: str
    card: str
    stack: Stack

    @property
    def gives_up(self) -> bool:
        """Whether it learns less than what was asked for."""
        return any(not _LEARNS_LESS.isdisjoint(trade.knobs) for trade in self.trades)

    def script(self, kind: str = "trl") -> str:
        """
        A training script of exactly this recipe.

        Args:
            kind: `trl`: transformers, PEFT, bitsandbytes and TRL's SFTTrainer.

        Raises:
            InvalidRecipeError: There is no such kind, or the recipe is of another entry point.
        """
        from planner.render import script

        sizes = f"{gib(self.allocated_bytes)} allocated, {gib(self.verdict.required_bytes)} of the process"
        return script.text(script.Planned(self.model, self.recipe, self.stack, self.card, self.command, sizes), kind)

    def model_dump(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "command": self.command,
            "trades": [{"option": trade.option, "price": trade.price} for trade in self.trades],
            "recipe": self.recipe.model_dump(),
            "allocated_bytes": self.allocated_bytes,
            "verdict": self.verdict._asdict(),
        }


class Recommendations(Value, eq=False):
    """
    Recipes for one model on one card, the best first.

    Attributes:
        model: Its id.
        device: The card.
        effective_batch: Samples of one optimizer step, in all of them.
        recipes: What fits; empty where nothing does.
        refused: Methods of which nothing fits or that cannot be, with the reason.
    """

    model: str
    device: DeviceReport
    effective_batch: int
    recipes: tuple[Recommendation, ...]
    refused: dict[str, str]

    @property
    def best(self) -> Recommendation | None:
        """The first; None where nothing fits."""
        return self.recipes[0] if self.recipes else None

    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan fit --json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "device": self.device._asdict(),
            "effective_batch": self.effective_batch,
            "recipes": [found.model_dump() for found in self.recipes],
            "refused": dict(self.refused),
        }

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """`model_dump` as JSON text."""
        import json

        return json.dumps(self.model_dump(), indent=indent)


def recommend(
    model: Model,
    *,
    gpu: str | Device | None = None,
    effective_batch: int = EFFECTIVE_BATCH,
    stack: str | Stack = "auto",
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    **knobs: Any,
) -> Recommendations:
    """
    Whole recipes that fit a card, the best first by the preferences of `planner.recommending`.

    Args:
        model: As for `estimate`.
        gpu: A card's name or size; None for the local one.
        effective_batch: Samples of one optimizer step: micro-batch times accumulation.
        stack: As for `estimate`.
        revision: As for `estimate`.
        progress: Is told what is planned.
        knobs: Fields of `Recipe` that every recipe is to have.

    Raises:
        QplanError: The request is wrong, or what it needs is missing.

    >>> best = recommend("meta-llama/Llama-3.1-8B", gpu="t4", stack="latest").best
    >>> best.recipe.method, best.verdict.outcome
    ('qlora', 'fits')
    """
    if type(effective_batch) is not int or not 1 <= effective_batch <= 1 << 20:
        raise InvalidRecipeError(f"effective_batch is {effective_batch!r}; it must be a whole number from 1 to {1 << 20}")
    for name in ("batch_size", "grad_accum"):
        if name in knobs:
            raise InvalidRecipeError(f"{name} is {knobs[name]}, but both parts of the batch are chosen", hint="pass effective_batch")
    make_recipe(**knobs)  # a knob that cannot be is refused before any method is tried
    base, device = api.plan(model, gpu=gpu, stack=stack, revision=revision, **knobs)
    if device is None:
        raise UnknownDeviceError("no card is named and none is found here", hint="pass --gpu NAME or --gpu SIZE; qplan gpus lists names")
    search = _Search(base, device, effective_batch, progress)
    found, refused = search.all(frozenset(knobs))
    if not found and "seq_len" in knobs:
        found, refused = search.all(frozenset(knobs) - {"seq_len"})
    unlike = {recipe.command: recipe for recipe in found}
    ordered = sorted(unlike.values(), key=lambda recipe: recipe.gives_up)
    return Recommendations(base.spec.id, device_report(device), effective_batch, tuple(ordered), refused)


class _Search:
    """Recipes of a run for a card."""

    def __init__(self, job: Job, device: Device, effective_batch: int, progress: Callable[[str], None] | None) -> None:
        self.job, self.device, self.effective_batch, self.progress = job, device, effective_batch, progress

    def all(self, keep: frozenset[str]) -> tuple[list[Recommendation], dict[str, str]]:
        """What fits, in the order of the preferences, and why the other methods have nothing."""
        found: list[Recommendation] = []
        refused: dict[str, str] = {}
        asked = self.job.asked
        for method in (asked["method"],) if "method" in asked else _METHODS:
            before = len(found)
            try:
                for start in self._starts(method):
                    found += self._fitted(start, keep | {"method", "quantization"})
                    if len(found) > before and found[-1].recipe.grad_accum == 1:
                        break  # with fewer passes there is nothing left to win
            except QplanError as error:
                refused[method] = error.message
                continue
            if len(found) == before:
                refused[method] = "no mixture of changes makes it fit"
            if not all(recipe.gives_up for recipe in found[before:]):  # what gives up something is for where nothing else helps
                found[before:] = [recipe for recipe in found[before:] if not recipe.gives_up]
        return found, refused

    def _starts(self, method: str) -> Iterator[dict[str, Any]]:
        """The least sparing knobs of a method: without checkpointing, then with it."""
        asked = dict(self.job.asked)
        asked["method"] = method
        if not self.device.bf16:
            half = {**_HALF, **({"dtype": "fp32"} if method == "full" else {})}
            asked = {**half, **asked}
        if "gradient_checkpointing" in asked:
            yield asked
            return
        yield {**asked, "gradient_checkpointing": False}
        yield {**asked, "gradient_checkpointing": True}

    def _fitted(self, start: dict[str, Any], keep: frozenset[str]) -> list[Recommendation]:
        """The start with what it takes to fit: at most one recipe."""
        if self.progress is not None:
            on = "with" if start["gradient_checkpointing"] else "without"
            self.progress(f"planning {start['method']} {on} checkpointing")
        one = {**start, "batch_size": 1, "grad_accum": self.effective_batch}
        recipe = make_recipe(**one)
        has_flash = self.device.compute_capability >= (8, 0)
        advised = advice.Job(self.job.spec, recipe, self._resolve, has_flash, keep | {"batch_size", "gradient_checkpointing"})
        changes = () if advice.fits(self._plan(recipe)) else advice.trade(advised, self._plan)
        if changes is None:
            return []
        knobs = {**one, **advice.merged(changes)}
        knobs.update(self._batch(knobs))
        return [self._recommendation(knobs, start, changes)]

    def _batch(self, knobs: dict[str, Any]) -> dict[str, int]:
        """The largest micro-batch that divides the effective one and fits; of one sample it does."""
        total = self.effective_batch
        for size in range(total, 1, -1):
            if total % size == 0:
                parts = {"batch_size": size, "grad_accum": total // size}
                if advice.fits(self._plan(make_recipe(**{**knobs, **parts}))):
                    return parts
        return {"batch_size": 1, "grad_accum": total}

    def _recommendation(self, knobs: dict[str, Any], start: dict[str, Any], changes: tuple[advice.Change, ...]) -> Recommendation:
        named = {name: value for name, value in knobs.items() if name in self.job.asked or value != Recipe._field_defaults.get(name)}
        planned = Job(self.job.spec, make_recipe(**named), self.job.stack, named)
        verdict = planned.verdict(self.device, explains=False)
        trades = [Trade(change.knobs, self._price(change, start)) for change in changes]
        if start["gradient_checkpointing"] and "gradient_checkpointing" not in self.job.asked:
            trades.insert(0, Trade({"gradient_checkpointing": True}, "about 30 % slower"))
        if knobs["grad_accum"] > 1:
            trades.insert(0, Trade({"batch_size": knobs["batch_size"], "grad_accum": knobs["grad_accum"]}, "same step, more passes"))
        if not self.device.bf16 and any(name not in self.job.asked for name in _HALF):
            half = {name: knobs[name] for name in _HALF if name not in self.job.asked}
            trades.insert(0, Trade(half, "the card has no bf16 arithmetic"))
        return Recommendation(
            knobs=named,
            trades=tuple(trades),
            recipe=planned.resolved,
            allocated_bytes=planned.analysis(self.device).ledger.high[1],
            verdict=verdict,
            command=advice.command("estimate", self.job.spec.id, named, self.job.options),
            model=self.job.spec.id,
            card=self.device.name,
            stack=self.job.stack,
        )

    @staticmethod
    def _price(change: advice.Change, start: dict[str, Any]) -> str:
        """A length is halved as often as it takes; the rest costs what advice says."""
        if "seq_len" in change.knobs:
            return f"samples of {change.knobs['seq_len']:,} tokens, not {start.get('seq_len', Recipe._field_defaults['seq_len']):,}"
        return change.price

    def _plan(self, recipe: Recipe) -> advice.Outcome:
        return Job(self.job.spec, recipe, self.job.stack).outcome(self.device)

    def _resolve(self, recipe: Recipe) -> Recipe:
        return Job(self.job.spec, recipe, self.job.stack).resolved
