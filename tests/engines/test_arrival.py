"""How a model comes onto the card: order, transients, and what stays, against the resting table and transformers' own sorting."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture import build_spec
from planner.engines.arrival import Arrival, placed
from planner.engines.reading import IN_TURN, NEVER, WORKERS
from planner.history import History
from planner.ledger import Category, Phase
from planner.preparation import prepare
from planner.recipe import make_recipe
from planner.stack import LATEST, behaviours, resolve
from tests.engines.tiny import GPT2, LLAMA, QWEN2, TIED, rested

TWELVE = {**LLAMA, "num_hidden_layers": 12}


def arrived(config: dict[str, Any], pace: int | None = None, **knobs: Any) -> History:
    """Every layer of a model on the card, prepared."""
    spec = build_spec(config, id="tiny")
    recipe = resolve(make_recipe(**{"seq_len": 64, **knobs}), LATEST, spec.dtype)
    known = behaviours(LATEST, recipe)
    preparation = prepare(spec, recipe, known)
    layers = frozenset(range(config.get("num_hidden_layers", config.get("n_layer", 0))))
    prefix = "transformer.h.*." if config["model_type"] == "gpt2" else "model.layers.*."
    found = History()
    modules = placed(preparation, prefix, layers, lambda layer: None)
    Arrival(found, recipe, known).write(modules, preparation, spec.buffers, pace)
    return found


def staying(found: History) -> dict[Category, int]:
    """Bytes in blocks, by category, of what does not die."""
    dead = {~event for event in found.events if event < 0}
    sums: dict[Category, int] = {}
    for storage, size in enumerate(found.sizes):
        if storage not in dead:
            category = found.categories[storage]
            sums[category] = sums.get(category, 0) + -(-size // 512) * 512
    return sums


@pytest.mark.parametrize("knobs", [{}, {"double_quant": False}, {"quantization": "int8"}, {"kbit_prepare": False}, {"method": "lora"}])
@pytest.mark.parametrize("config", [LLAMA, TIED, QWEN2, GPT2], ids=["llama", "tied", "qwen2", "gpt2"])
def test_what_stays_is_what_rests(config, knobs):
    """Block for block what the resting table counts by other means."""
    _, resting = rested(config, **knobs)
    wanted: dict[Category, int] = {}
    for row in resting.rows:
        if row.category not in (Category.TEMPORARY, Category.OPTIMIZER_STATE) and not row.name.startswith("remainders"):
            wanted[row.category] = wanted.get(row.category, 0) + row.nbytes

    assert staying(arrived(config, **knobs)) == wanted


def test_each_old_tensor_dies_as_the_new_one_stands():
    """kbit-prepare holds two copies of one tensor at a time, and adapters over a quantised base are cast last."""
    found = arrived(TWELVE)
    prepare_ = next(s for s in found.stretches if s.phase is Phase.PREPARE)
    casts = [e for e in found.events[prepare_.begin : prepare_.end] if found.categories[e if e >= 0 else ~e] is Category.PARAMETER]

    assert [e >= 0 for e in casts] == [True, False] * (len(casts) // 2)
    assert [found.scopes[e] for e in casts[::2]] == [found.scopes[~e] for e in casts[1::2]]
    assert found.flushes == [prepare_.begin + len(casts)]


def test_a_model_built_on_the_cpu_warms_nothing_up():
    """A 16-bit base is moved tensor by tensor."""
    found = arrived(LLAMA, method="lora")

    assert found.warm_up is None
    assert Category.TEMPORARY not in found.categories


def test_a_checkpoint_is_read_in_the_order_of_its_sorted_names():
    """transformers' own key sorts them."""
    transformers = pytest.importorskip("transformers.core_model_loading")
    found = arrived(TWELVE)
    begin = found.stretches[0]
    read = [
        found.scopes[e] for e in found.events[begin.begin : begin.end] if e >= 0 and found.names[e] in ("weight as read", "weight")
    ]
    order = list(dict.fromkeys(read))

    assert order == sorted(order, key=lambda name: transformers.dot_natural_key(f"{name}.weight"))


@pytest.mark.parametrize(("pace", "least", "most"), [(IN_TURN, 1, 1), (0, WORKERS, 83), (NEVER, 84, 84)])
def test_a_racing_loader_has_more_tensors_on_the_card(pace, least, most):
    """Weights that wait to be quantised: the one in turn; at least those in the threads' hands; all 7 linears of 12 layers."""
    found = arrived(TWELVE, pace)
    waiting, highest = 0, 0
    for event in found.events:
        if found.names[event if event >= 0 else ~event] == "weight as read":
            waiting += 1 if event >= 0 else -1
            highest = max(highest, waiting)

    assert waiting == 0
    assert least <= highest <= most


@pytest.mark.parametrize("pace", [0, 25, NEVER])
def test_what_stays_does_not_hang_on_the_race(pace):
    """The same bytes as read in turn, whoever reads them."""
    assert staying(arrived(TWELVE, pace)) == staying(arrived(TWELVE))
