"""The public functions: estimate, compare, verdicts, and what there is to name (models, gpus)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from planner import advice, catalog
from planner import stack as stacks
from planner import verdict as verdicts_
from planner.device import Device
from planner.engines import analytic
from planner.errors import InvalidRecipeError, UnavailableError
from planner.recipe import Recipe, make_recipe
from planner.report import (
    CardVerdict,
    Details,
    DeviceReport,
    Finding,
    HostReport,
    ModelReport,
    PeakReport,
    PhaseReport,
    Report,
    Suggestion,
)
from planner.spec import ModelSpec
from planner.stack import Stack

if TYPE_CHECKING:
    from planner.catalog import CheckpointSummary
    from planner.comparison import Comparison

Model = str | Mapping[str, Any] | ModelSpec


def estimate(
    model: Model,
    *,
    gpu: str | Device | None = None,
    stack: str | Stack = "auto",
    engine: str = "analytic",
    revision: str | None = None,
    **knobs: Any,
) -> Report:
    """
    What one fine-tuning run needs of one GPU, and whether a card has it.

    Args:
        model: A bundled id, a Hub id, a folder, a config.json; the fields of one; or a spec.
        gpu: A card's name (`a6000`) or size (`80GiB`). None: the local card if there is one; else `report.verdicts` has the
            common ones.
        stack: `auto`, `latest` or `PKG==VERSION,...`.
        engine: `analytic`.
        revision: Branch, tag or commit of a Hub id.
        knobs: Fields of `Recipe`: `rank=16, seq_len=2048, optim="adamw_torch"`. `targets` also takes names separated by commas.

    Returns:
        The report; all its sizes are bytes.

    Raises:
        QplanError: The request is wrong, or what it needs is missing; see `planner.errors`.

    >>> estimate("meta-llama/Llama-2-70b-hf", rank=16, gpu="a6000").verdict.outcome
    'fits'
    """
    _check_engine(engine)
    device = _device(gpu)
    options = {"gpu": gpu, "stack": None if stack == "auto" else stack, "revision": revision}
    named = {name: value for name, value in options.items() if isinstance(value, str)}
    return _Job(_spec(model, revision), make_recipe(**knobs), _stack(stack), asked=knobs, options=named).report(device)


def verdicts(
    model: Model,
    gpus: Sequence[str | Device] | None = None,
    *,
    stack: str | Stack = "auto",
    revision: str | None = None,
    **knobs: Any,
) -> tuple[CardVerdict, ...]:
    """
    What every card says to one run, the smallest card first.

    Args:
        model: As for `estimate`.
        gpus: Cards by name or size; None for the whole catalogue.
        stack: As for `estimate`.
        revision: As for `estimate`.
        knobs: Fields of `Recipe`.

    Raises:
        QplanError: The request is wrong, or what it needs is missing.
    """
    job = _Job(_spec(model, revision), make_recipe(**knobs), _stack(stack))
    cards = (
        catalog.list_devices() if gpus is None else [catalog.find_device(gpu) if isinstance(gpu, str) else gpu for gpu in gpus]
    )
    return job.judge(cards)


def compare(
    models: Sequence[Model],
    *,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    stack: str | Stack = "auto",
    **knobs: Any,
) -> Comparison:
    """
    Ways to train side by side, for one or more models: weights, trainable parameters, peak, and the smallest common card.

    Args:
        models: As for `estimate`.
        methods: Which of `full`, `lora` and `qlora`.
        stack: As for `estimate`.
        knobs: Fields of `Recipe` that all of them share; `quantization`, `double_quant` and `kbit_prepare` are for qlora alone.

    Raises:
        QplanError: The request is wrong, or what it needs is missing. What one method refuses is told in its row.
    """
    from planner import comparison

    if "method" in knobs:
        raise InvalidRecipeError(
            "method is given, but compare sets it", hint="pass methods=[...], or use estimate for one method"
        )
    versions = _stack(stack)

    def run(spec: ModelSpec, method: str) -> Report:
        given = {name: knob for name, knob in knobs.items() if method == "qlora" or name not in _QUANTIZED_ONLY}
        return _Job(spec, make_recipe(method=method, **given), versions, asked={"method": method, **given}).report(None)

    specs = [_spec(model, None) for model in models]
    rows = (comparison.row(spec.id, method, partial(run, spec, method)) for spec in specs for method in methods)
    return comparison.Comparison(rows=tuple(rows))


_QUANTIZED_ONLY = ("quantization", "double_quant", "kbit_prepare")


def models(query: str | None = None) -> list[CheckpointSummary]:
    """The bundled checkpoints, in alphabetical order; with a query, those whose id or family has all its words."""
    return catalog.list_checkpoints(query)


def gpus() -> list[Device]:
    """The cards of the catalogue."""
    return catalog.list_devices()


@dataclass(frozen=True, eq=False)
class _Job:
    """One run to plan: the inputs of an engine but for the card."""

    spec: ModelSpec
    recipe: Recipe
    stack: Stack
    asked: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    _found: dict[tuple[int, int], analytic.Analysis] = field(default_factory=dict, repr=False)

    @cached_property
    def resolved(self) -> Recipe:
        return self._resolve(self.recipe)

    def analysis(self, device: Device | None) -> analytic.Analysis:
        """What the engine finds; of a card it sees the compute capability alone, so cards that share one share the answer."""
        capability = analytic.DEFAULT_CAPABILITY if device is None else device.compute_capability
        if capability not in self._found:
            self._found[capability] = analytic.analyse(self.spec, self.resolved, self.stack, device)
        return self._found[capability]

    def outcome(self, device: Device | None) -> advice.Outcome:
        """What the run needs, and the card's verdict: a suggestion's measure."""
        phase, nbytes = self.analysis(device).ledger.high
        needed = verdicts_.sizes(nbytes, device)
        return advice.Outcome(needed.process_bytes, None if device is None else verdicts_.judge(needed, device, phase.value))

    def judge(self, cards: Sequence[Device]) -> tuple[CardVerdict, ...]:
        """The verdict of each card, the smallest first."""
        found = []
        for card in sorted(cards, key=lambda c: (verdicts_.budget_bytes(c), c.name)):
            phase, nbytes = self.analysis(card).ledger.high
            needed = verdicts_.sizes(nbytes, card)
            found.append(CardVerdict(_device_report(card, needed), verdicts_.judge(needed, card, phase.value)))
        return tuple(found)

    def suggest(self, device: Device | None) -> tuple[Suggestion, ...]:
        return advice.suggest(self._advised(device), self.outcome(device), self._planner(device))

    def make_it_fit(self, device: Device | None) -> tuple[dict[str, Any], str] | None:
        """Knobs to change for the card, or for the largest common one, and its name."""
        card = device or max(catalog.common_devices(), key=verdicts_.budget_bytes)
        knobs = advice.make_it_fit(self._advised(card), self._planner(card))
        return None if knobs is None else (knobs, card.name)

    def _advised(self, device: Device | None) -> advice.Job:
        has_flash = device is None or device.compute_capability >= (8, 0)
        return advice.Job(self.spec, self.recipe, self._resolve, has_flash)

    def _resolve(self, recipe: Recipe) -> Recipe:
        return stacks.resolve(recipe, self.stack, self.spec.dtype)

    def _planner(self, device: Device | None) -> advice.Plan:
        return lambda recipe: _Job(self.spec, recipe, self.stack).outcome(device)

    def report(self, device: Device | None) -> Report:
        """The whole answer; what only some readers want (other cards, suggestions) waits until they ask."""
        found = self.analysis(device)
        peak = found.ledger.peak()
        needed = verdicts_.sizes(peak.nbytes, device)
        return Report(
            engine=found.ledger.engine,
            model=ModelReport(
                id=self.spec.id,
                model_type=self.spec.model_type,
                source=self.spec.source,
                num_parameters=self.spec.num_parameters,
                num_quantized_parameters=found.num_quantized_parameters,
                num_trainable_parameters=found.num_trainable_parameters,
            ),
            recipe=self.resolved.model_dump(),
            stack={**self.stack.versions, "source": self.stack.source},
            phases=tuple(
                PhaseReport(p.phase.value, p.nbytes, {c.value: size for c, size in p.by_category.items()})
                for p in found.ledger.peaks.values()
            ),
            peak=PeakReport(
                phase=peak.phase.value,
                allocated_bytes=needed.allocated_bytes,
                reserved_bytes=needed.reserved_bytes,
                process_bytes=needed.process_bytes,
                by_category={c.value: size for c, size in peak.by_category.items()},
            ),
            steady_bytes=found.steady_bytes,
            host=HostReport(found.host_ram_bytes, found.paged_bytes, found.download_bytes),
            device=None if device is None else _device_report(device, needed),
            verdict=None if device is None else verdicts_.judge(needed, device, peak.phase.value),
            warnings=found.warnings + _card_warnings(device, self.resolved),
            details=self._details(device, found),
        )

    def _details(self, device: Device | None, found: analytic.Analysis) -> Details:
        return Details(
            recipe=self.resolved,
            asked=self.asked,
            options=self.options,
            device=device,
            published_parameters=self.spec.published_parameters,
            ledger=found.ledger,
            find_traps=lambda: tuple(Finding(t.name, t.nbytes, t.sentence) for t in found.traps),
            stack=self.stack,
            judge_cards=lambda: self.judge(catalog.common_devices()),
            suggest=lambda: self.suggest(device),
            make_it_fit=lambda: self.make_it_fit(device),
        )


def _spec(model: Model, revision: str | None) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    if not isinstance(model, str):
        from planner.architecture import build_spec

        return build_spec(model, id=str(model.get("_name_or_path") or model.get("model_type", "config")), source="config")
    spec = _named_spec(model, revision)
    if spec.source.startswith("file"):  # a file may have changed since it was read
        _named_spec.cache_clear()
    return spec


@lru_cache(maxsize=256)
def _named_spec(name: str, revision: str | None) -> ModelSpec:
    from planner.architecture import build_spec

    found = catalog.find_checkpoint(name, revision=revision)
    return build_spec(found.config, id=found.id, source=found.source, published_parameters=found.published_parameters)


def _stack(stack: str | Stack) -> Stack:
    return _parsed_stack(stack) if isinstance(stack, str) else stack


@lru_cache(maxsize=64)
def _parsed_stack(text: str) -> Stack:
    return stacks.parse_stack(text)


def _device(gpu: str | Device | None) -> Device | None:
    if gpu is None:
        return catalog.local_device()
    return catalog.find_device(gpu) if isinstance(gpu, str) else gpu


def _device_report(device: Device, needed: verdicts_.Sizes) -> DeviceReport:
    """The card; what it gives to tensors is what the context and other processes leave."""
    budget = verdicts_.budget_bytes(device)
    return DeviceReport(device.name, device.total_bytes, needed.context_bytes, max(budget - needed.context_bytes, 0))


def _card_warnings(device: Device | None, recipe: Recipe) -> tuple[str, ...]:
    """What the named card changes that the numbers do not show."""
    found = []
    if device is not None and device.name.startswith("AMD"):
        found.append(f"{device.name} is planned as a CUDA card would be: ROCm's context, workspaces and kernels differ")
    if device is not None and not device.bf16 and "bf16" in (recipe.mixed_precision, recipe.compute_dtype):
        usual = "--compute-dtype fp16 --mixed-precision fp16 --dtype fp16"
        found.append(f"{device.name} has no bf16 arithmetic: torch emulates it, slowly; most runs there use {usual}")
    return tuple(found)


def _check_engine(engine: str) -> None:
    if engine == "analytic":
        return
    if engine in ("traced", "both"):
        raise UnavailableError(
            f"engine is `{engine}`, but this version of qplan has no traced engine yet",
            hint="pass --engine analytic, or leave the option out",
        )
    raise InvalidRecipeError(f"engine is `{engine}`; it must be analytic, traced or both", hint="pass --engine analytic")
