"""What to change: every suggestion is the changed run, planned again, with what it saves and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from planner.errors import QplanError
from planner.recipe import Recipe
from planner.report import Report, Suggestion, Verdict
from planner.spec import ModelSpec
from planner.units import ceil_div
from planner.value import NamedTuple

# Below this share of the peak a saving is not worth a line.
NOTICEABLE_PERCENT = 1
# Halvings of one knob: 8 becomes 1.
_ROUNDS = 3


class Outcome(NamedTuple):
    """
    What planning a changed recipe again gave.

    Attributes:
        allocated_bytes: The peak of allocated blocks.
        may_fit: Whether that is no more than the card has for tensors.
        judge: Gives the card's verdict, by simulation; None where no card is named.
    """

    allocated_bytes: int
    may_fit: bool = False
    judge: Callable[[], Verdict | None] = lambda: None


Plan = Callable[[Recipe], Outcome]


class Change(NamedTuple):
    """Knobs to change, and the price in words."""

    knobs: dict[str, Any]
    price: str


class Job(NamedTuple):
    """
    The run that is to change.

    Attributes:
        spec: The model; its modules say which targets exist.
        asked: The recipe as given, so that what follows from a changed knob is resolved anew.
        resolve: Fills the knobs of a recipe as the stack does; raises where the stack refuses it.
        has_flash: Whether the card runs FlashAttention 2 (compute capability 8.0 and later); true where no card is named.
        keep: Knobs that are not to change.
    """

    spec: ModelSpec
    asked: Recipe
    resolve: Callable[[Recipe], Recipe]
    has_flash: bool = True
    keep: frozenset[str] = frozenset()

    def changes(self, recipe: Recipe) -> Iterator[Change]:
        """The changes that apply to a recipe of the run and leave alone what is to be kept."""
        found = changes(self.spec, self.resolve(recipe), self.has_flash)
        return (change for change in found if self.keep.isdisjoint(change.knobs))


def suggest(job: Job, current: Outcome, plan: Plan) -> tuple[Suggestion, ...]:
    """
    The changes that save a noticeable share, the largest saving first.

    Args:
        job: The run.
        current: What it needs unchanged.
        plan: Plans a recipe; a change that the stack refuses raises, and is left out.
    """
    found = []
    for change in changes(job.spec, job.resolve(job.asked), job.has_flash):
        knobs = _with_consequences(job.asked, change.knobs)
        outcome = _try(job.asked, knobs, plan)
        if outcome is None:
            continue
        saved = current.allocated_bytes - outcome.allocated_bytes
        if _noticeable(saved, current.allocated_bytes):
            found.append(Suggestion(flags(knobs), knobs, saved, outcome.allocated_bytes, change.price, outcome.judge))
    return tuple(sorted(found, key=lambda s: -s.saved_bytes))


def changes(spec: ModelSpec, recipe: Recipe, has_flash: bool = True) -> Iterator[Change]:
    """
    The changes that apply to a resolved recipe, the cheapest in price first.

    Args:
        spec: The model.
        recipe: The run, every knob resolved.
        has_flash: Whether the card runs FlashAttention 2.
    """
    yield from _free(recipe, has_flash)
    yield from _slower(recipe)
    yield from _in_fewer_bits(recipe)
    yield from _learns_less(spec, recipe)


def _free(recipe: Recipe, has_flash: bool) -> Iterator[Change]:
    if recipe.attn == "eager":
        yield Change({"attn": "sdpa"}, "same maths, other rounding")
    if recipe.quantization in ("nf4", "fp4") and not recipe.double_quant:
        yield Change({"double_quant": True}, "8-bit scales, no known loss")
    if recipe.loss == "full":
        yield Change({"loss": "chunked"}, "same loss, head runs twice")
        yield Change({"loss": "liger"}, "same loss; needs liger-kernel")
    if recipe.attn == "sdpa" and recipe.padding and has_flash:
        yield Change({"attn": "flash_attention_2"}, "needs flash-attn, Ampere+")


def _slower(recipe: Recipe) -> Iterator[Change]:
    if not recipe.gradient_checkpointing:
        yield Change({"gradient_checkpointing": True}, "about 30 % slower")
    if recipe.batch_size > 1:
        halved = {
            "batch_size": recipe.batch_size // 2,
            "grad_accum": recipe.grad_accum * ceil_div(recipe.batch_size, recipe.batch_size // 2),
        }
        yield Change(halved, "same step, more passes")


def _in_fewer_bits(recipe: Recipe) -> Iterator[Change]:
    if recipe.optim in _IN_8_BITS:
        yield Change({"optim": _IN_8_BITS[recipe.optim]}, "8-bit optimizer states")
    if recipe.optim in _PAGED:
        yield Change({"optim": _PAGED[recipe.optim]}, "8-bit; slow if it pages out")
    half = recipe.mixed_precision if recipe.mixed_precision != "no" else recipe.compute_dtype
    if half in ("bf16", "fp16") and recipe.dtype != half and (recipe.method != "full" or half == "bf16"):
        yield Change({"dtype": half}, f"weights are rounded to {half}")
    if recipe.kbit_prepare:
        yield Change({"kbit_prepare": False}, "norms and head stay 16-bit")
    if recipe.method != "full" and recipe.adapter_dtype == "fp32" and recipe.mixed_precision != "fp16":
        yield Change({"adapter_dtype": "bf16"}, "adapters train in 16 bits")
    if recipe.quantization == "int8":
        yield Change({"quantization": "nf4"}, "4-bit weights, not 8-bit")
    if recipe.method == "lora" and recipe.quantization == "none":
        yield Change({"method": "qlora"}, "4-bit base, slower steps")


def _learns_less(spec: ModelSpec, recipe: Recipe) -> Iterator[Change]:
    if recipe.method == "full":
        yield Change({"method": "lora"}, "adapters, not the weights")
        yield Change({"method": "qlora"}, "adapters over 4-bit weights")
    else:
        if recipe.dropout > 0:
            yield Change({"dropout": 0.0}, "adapters without dropout")
        if recipe.rank >= 2:
            yield Change({"rank": recipe.rank // 2}, "adapters of half the rank")
        targets = _attention_targets(spec)
        if recipe.targets == "all-linear" and targets:
            yield Change({"targets": targets}, "adapters on attention alone")
    if recipe.seq_len >= 2:
        yield Change({"seq_len": recipe.seq_len // 2}, "samples of half the length")


_IN_8_BITS = {
    "adamw_torch": "adamw_8bit",
    "adamw_torch_fused": "adamw_8bit",
    "adamw_torch_foreach": "adamw_8bit",
    "adamw_32bit": "adamw_8bit",
    "lion_32bit": "lion_8bit",
    "paged_adamw_32bit": "paged_adamw_8bit",
    "paged_lion_32bit": "paged_lion_8bit",
}
_PAGED = {
    "adamw_torch": "paged_adamw_8bit",
    "adamw_torch_fused": "paged_adamw_8bit",
    "adamw_torch_foreach": "paged_adamw_8bit",
    "adamw_32bit": "paged_adamw_8bit",
    "adamw_8bit": "paged_adamw_8bit",
    "lion_32bit": "paged_lion_8bit",
    "lion_8bit": "paged_lion_8bit",
}
# What papers and tutorials adapt when they adapt attention alone, by how families name it.
_ATTENTION = (("q_proj", "v_proj"), ("query_key_value",), ("qkv_proj",), ("Wqkv",), ("c_attn",))


def _attention_targets(spec: ModelSpec) -> tuple[str, ...]:
    """The names of the attention's linears that the model has; empty where its family names them otherwise."""
    names = {module.name.rpartition(".")[2] for module in spec.modules if module.is_linear}
    return next((targets for targets in _ATTENTION if names.issuperset(targets)), ())


def _try(asked: Recipe, knobs: dict[str, Any], plan: Plan) -> Outcome | None:
    """The outcome of a changed recipe; None where the stack refuses it."""
    try:
        return plan(asked.model_copy(update=knobs))
    except QplanError:
        return None


def _with_consequences(asked: Recipe, knobs: dict[str, Any]) -> dict[str, Any]:
    """A change of method frees the knobs that were given for the old one."""
    if "method" not in knobs:
        return knobs
    bound = ("quantization", "kbit_prepare", *(("optim",) if asked.method == "full" else ()))
    return {**knobs, **{name: None for name in bound if getattr(asked, name) is not None}}


def make_it_fit(job: Job, plan: Plan) -> dict[str, Any] | None:
    """
    The knobs to change so that the card takes the run with room to spare, or None where no mixture of the suggestions is enough.

    Args:
        job: The run.
        plan: Plans a recipe for the card.
    """
    taken = trade(job, plan)
    return None if taken is None else merged(taken)


def trade(job: Job, plan: Plan) -> tuple[Change, ...] | None:
    """
    The changes with which the card takes the run with room to spare, or None where no mixture of them is enough.

    One change is tried before several; of those that are enough, the one of the lowest price. Several are taken in the order of
    their prices, each where it saves, in a few rounds (a batch is halved again); what turns out needless is taken back.

    Args:
        job: The run.
        plan: Plans a recipe for the card.
    """
    for change in job.changes(job.asked):
        alone = change._replace(knobs=_with_consequences(job.asked, change.knobs))
        if fits(_try(job.asked, alone.knobs, plan)):
            return (alone,)
    taken: list[Change] = []
    for _ in range(_ROUNDS):
        needed = plan(_changed(job.asked, taken)).allocated_bytes
        for change in job.changes(_changed(job.asked, taken)):
            current = _changed(job.asked, taken)
            knobs = _with_consequences(current, change.knobs)
            outcome = _try(current, knobs, plan)
            if outcome is None or not _noticeable(needed - outcome.allocated_bytes, needed):
                continue
            taken, needed = [*taken, change._replace(knobs=knobs)], outcome.allocated_bytes
            if fits(outcome):
                return _without_the_needless(job.asked, taken, plan)
    return None


def _without_the_needless(asked: Recipe, taken: list[Change], plan: Plan) -> tuple[Change, ...]:
    """The changes taken, less those, from the dearest on, without which it fits as well."""
    for change in reversed(taken):
        others = [other for other in taken if other is not change]
        if others and fits(_try(asked, merged(others), plan)):
            taken = others
    return tuple(taken)


def merged(taken: Iterable[Change]) -> dict[str, Any]:
    """The knobs of several changes, the later ones' where they are the same."""
    return {name: value for change in taken for name, value in change.knobs.items()}


def _changed(asked: Recipe, taken: Iterable[Change]) -> Recipe:
    return asked.model_copy(update=merged(taken))


def _noticeable(saved: int, of: int) -> bool:
    return saved >= ceil_div(of * NOTICEABLE_PERCENT, 100)


def fits(outcome: Outcome | None) -> bool:
    """Whether a planned recipe fits the card with room to spare."""
    if outcome is None or not outcome.may_fit:
        return False
    verdict = outcome.judge()
    return verdict is not None and verdict.outcome == "fits"


def next_command(report: Report, *, explained: bool = False) -> str:
    """
    The command that makes sense after a report: a change that makes it fit, the card to look at, or the rows behind the peak.

    Args:
        report: A report with its details.
        explained: Whether the rows are on the screen already; then the other cards are next.
    """
    known, model = report.details, report.model.id
    if known is None:
        return "qplan --help"
    others: dict[str, Any] = {name: option for name, option in known.options.items() if name != "gpu"}
    if report.verdict is not None and report.verdict.outcome == "fits":
        again = command("estimate", model, known.asked, known.options) + " --explain"
        return command("gpus", model, known.asked, _for_gpus(others)) if explained else again
    cards = report.outcomes if report.device is None else ()
    smallest = next((card for card in cards if card.outcome == "fits"), None)
    if smallest is not None:
        return command("estimate", model, known.asked, {**others, "gpu": typed_name(smallest.name)})
    found = known.make_it_fit()
    if found is not None:
        knobs, card = found
        gpu = known.options.get("gpu", typed_name(card))
        return command("estimate", model, {**known.asked, **knobs}, {**others, "gpu": gpu})
    return command("compare", model, {}, {}) if report.device is None else command("gpus", model, known.asked, _for_gpus(others))


def _for_gpus(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `qplan gpus` has too: it judges by the closed form."""
    return {name: option for name, option in options.items() if name in ("stack", "revision")}


def command(verb: str, model: str, knobs: dict[str, Any], options: dict[str, Any]) -> str:
    """A command line that can be pasted."""
    import shlex

    return " ".join(filter(None, ("qplan", verb, shlex.quote(model), flags(knobs), flags(options))))


def typed_name(card: str) -> str:
    """The same without blanks: it needs no quotes in a shell."""
    return short_name(card).replace(" ", "-")


def short_name(card: str) -> str:
    """A card's name as people say it; the catalogue knows it by this name too."""
    return card.removeprefix("NVIDIA ").removeprefix("GeForce ")


def flags(knobs: dict[str, Any]) -> str:
    """
    Knobs as the command line spells them.

    >>> flags({"kbit_prepare": False, "rank": 8, "targets": ("q_proj", "v_proj")})
    '--no-kbit-prepare --rank 8 --targets q_proj,v_proj'
    """
    return " ".join(_flag(name, value) for name, value in knobs.items() if value is not None)


def _flag(name: str, value: Any) -> str:
    import shlex

    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    text = ",".join(value) if isinstance(value, (tuple, list)) else str(value)
    return f"--{option} {shlex.quote(text)}"
