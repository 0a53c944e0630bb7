"""The public functions: estimate, compare, verdicts, and what there is to name (models, gpus)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from planner import catalog
from planner import stack as stacks
from planner.device import Device
from planner.errors import InvalidRecipeError
from planner.job import Job
from planner.recipe import make_recipe
from planner.report import CardVerdict, Report
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
    every_layer: bool = False,
    progress: Callable[[str], None] | None = None,
    **knobs: Any,
) -> Report:
    """
    What one fine-tuning run needs of one GPU, and whether a card has it.

    Args:
        model: A bundled id, a Hub id, a folder, a config.json; the fields of one; or a spec.
        gpu: A card's name (`a6000`) or size (`80GiB`). None: the local card if there is one; else `report.verdicts` has the
            common ones.
        stack: `auto`, `latest` or `PKG==VERSION,...`.
        engine: `analytic`, the closed form; `traced`, the installed libraries' own code, run without data; or `both`: the traced
            engine's answer, whose `agreement` lays the closed form's beside it.
        revision: Branch, tag or commit of a Hub id.
        every_layer: Whether a trace runs all layers; else it runs three instances of what repeats, and the others are their copies.
        progress: Is told what a trace is at.
        knobs: Fields of `Recipe`: `rank=16, seq_len=2048, optim="adamw_torch"`. `targets` also takes names separated by commas.

    Returns:
        The report; all its sizes are bytes.

    Raises:
        QplanError: The request is wrong, or what it needs is missing; see `planner.errors`.

    >>> estimate("meta-llama/Llama-2-70b-hf", rank=16, gpu="a6000").verdict.outcome
    'fits'
    """
    job, device = plan(
        model, gpu=gpu, stack=stack, engine=engine, revision=revision, every_layer=every_layer, progress=progress, **knobs
    )
    return job.report(device)


def plan(
    model: Model,
    *,
    gpu: str | Device | None = None,
    stack: str | Stack = "auto",
    engine: str = "analytic",
    revision: str | None = None,
    every_layer: bool = False,
    progress: Callable[[str], None] | None = None,
    **knobs: Any,
) -> tuple[Job, Device | None]:
    """
    What `estimate` reports on: the run, and the card that was named or found.

    Args:
        model: As for `estimate`, and so is everything else.
        gpu: As there.
        stack: As there.
        engine: As there.
        revision: As there.
        every_layer: As there.
        progress: As there.
        knobs: As there.

    Raises:
        QplanError: The request is wrong, or what it needs is missing.
    """
    _check_engine(engine, every_layer=every_layer)
    device = _device(gpu)
    options = {"gpu": gpu, "stack": None if stack == "auto" else stack, "revision": revision}
    named: dict[str, Any] = {name: value for name, value in options.items() if isinstance(value, str)}
    if engine != "analytic":
        named["engine"] = engine
    if every_layer:
        named["every_layer"] = True
    job = Job(find_spec(model, revision), make_recipe(**knobs), find_stack(stack), knobs, named, engine, progress, every_layer)
    return job, device


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
    job = Job(find_spec(model, revision), make_recipe(**knobs), find_stack(stack))
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
    versions = find_stack(stack)

    def run(spec: ModelSpec, method: str) -> Report:
        given = {name: knob for name, knob in knobs.items() if method == "qlora" or name not in _QUANTIZED_ONLY}
        return Job(spec, make_recipe(method=method, **given), versions, asked={"method": method, **given}).report(None)

    specs = [find_spec(model) for model in models]
    rows = (comparison.row(spec.id, method, partial(run, spec, method)) for spec in specs for method in methods)
    return comparison.Comparison(rows=tuple(rows))


_QUANTIZED_ONLY = ("quantization", "double_quant", "kbit_prepare")


def models(query: str | None = None) -> list[CheckpointSummary]:
    """The bundled checkpoints, in alphabetical order; with a query, those whose id or family has all its words."""
    return catalog.list_checkpoints(query)


def gpus() -> list[Device]:
    """The cards of the catalogue."""
    return catalog.list_devices()


def find_spec(model: Model, revision: str | None = None) -> ModelSpec:
    """
    The spec of a model, as `estimate` reads it.

    Args:
        model: As for `estimate`.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        QplanError: There is no such model, or no model can be built from its config.
    """
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


def find_stack(stack: str | Stack) -> Stack:
    """
    The library versions that `estimate` would plan for.

    Raises:
        UnknownStackError: They cannot be read.
    """
    return _parsed_stack(stack) if isinstance(stack, str) else stack


@lru_cache(maxsize=64)
def _parsed_stack(text: str) -> Stack:
    return stacks.parse_stack(text)


def _device(gpu: str | Device | None) -> Device | None:
    if gpu is None:
        return catalog.local_device()
    return catalog.find_device(gpu) if isinstance(gpu, str) else gpu


def _check_engine(engine: str, *, every_layer: bool) -> None:
    if engine not in ("analytic", "traced", "both"):
        raise InvalidRecipeError(f"engine is `{engine}`; it must be analytic, traced or both", hint="pass --engine analytic")
    if every_layer and engine == "analytic":
        raise InvalidRecipeError("every_layer is given, but the closed form runs no layers", hint="add --engine traced")
