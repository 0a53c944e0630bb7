"""Models on the card, against the same libraries on the CPU and the checkpoint's own names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from planner.errors import UnsupportedModelError
from planner.ledger import Category, Phase
from planner.recipe import Recipe
from planner.stack import behaviours
from tests.engines.traced.runs import installed, planned, traced

torch = pytest.importorskip("torch")

from planner.engines.running.blueprint import draw  # noqa: E402
from planner.engines.running.building import Building, build  # noqa: E402
from planner.engines.traced.run import recording  # noqa: E402
from tests import real_models  # noqa: E402


@contextmanager
def built(model: str, layers: int = 2, *, config: dict[str, Any] | None = None, **knobs: Any) -> Iterator[tuple[Building, Recipe, Any]]:
    """A model that is ready for its first step, its recipe and the recorder; every layer is run."""
    spec, recipe = planned(model, layers, knobs, **(config or {}))
    with recording((8, 0)) as recorder:
        yield build(draw(spec, recipe, every_layer=True), recipe, behaviours(installed(), recipe), recorder), recipe, recorder


def real(model: str, layers: int, recipe: Recipe, config: dict[str, Any] | None = None) -> dict[str, tuple[Any, ...]]:
    """Every parameter as the real libraries leave it, on the meta device."""
    spec, _ = planned(model, layers, **(config or {}))
    made = real_models.AutoModelForCausalLM
    with torch.device("meta"):
        bare = made.from_config(real_models.AutoConfig.for_model(model, **spec.config), dtype=torch.bfloat16)
    return real_models.real_table(real_models.run_real(bare, recipe))


RECIPES: dict[str, dict[str, Any]] = {
    "qlora": {},
    "single": {"double_quant": False, "quantization": "fp4"},
    "int8": {"quantization": "int8"},
    "unprepared": {"kbit_prepare": False},
    "lora": {"method": "lora"},
    "full": {"method": "full"},
    "named": {"targets": ("q_proj", "v_proj"), "rank_pattern": {"v_proj": 4}},
    "dora": {"method": "lora", "dora": True},
    "saved": {"modules_to_save": ("lm_head",)},
}


@pytest.mark.parametrize(
    ("model", "recipe"),
    [(m, r) for m in ("llama", "gpt2", "qwen3", "mixtral") for r in RECIPES if (m, r) != ("mixtral", "dora")],  # PEFT refuses it
)
def test_parameters_are_those_of_the_real_libraries(model: str, recipe: str) -> None:
    """Names, types, quantisation, shapes and what is trained, of every parameter, as PEFT's own helpers leave them."""
    named = {"gpt2": ("c_attn", "c_proj"), "mixtral": ("q_proj", "v_proj")}
    knobs = {**RECIPES[recipe], "entry_point": "trainer"}
    if "targets" in knobs and model in named:
        knobs = {**knobs, "targets": named[model], "rank_pattern": {named[model][1]: 4}}
    with built(model, **knobs) as (building, resolved, _):
        found = real_models.real_table(building.model)

    expected = real(model, 2, resolved)
    assert expected == found


@pytest.mark.parametrize("entry_point", ["trl", "trainer", "loop"])
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_adapters_have_the_type_of_the_recipe(entry_point: str, method: str) -> None:
    """Whichever entry point, what is trained has the type that the recipe resolves to, and everything is on the card."""
    with built("llama", method=method, entry_point=entry_point) as (building, resolved, _):
        types = {str(p.dtype).removeprefix("torch.") for p in building.trainable.values()}
        devices = {p.device.type for p in building.model.parameters()}
        trainable = {name for name, p in building.model.named_parameters() if p.requires_grad}

    adapters = {"fp32": "float32", "bf16": "bfloat16"}[str(resolved.adapter_dtype)]
    expected = "bfloat16" if method == "full" else adapters
    assert {expected} == types
    assert {"cuda"} == devices
    assert trainable == set(building.trainable)


@pytest.mark.parametrize("knobs", [{"quantization": "nf4"}, {"quantization": "int8"}, {"method": "lora"}])
def test_counts_are_those_of_the_real_model(knobs: dict[str, Any]) -> None:
    """Trained and quantised elements of the whole model, though three of five layers run."""
    trace = traced("llama", 5, **knobs)
    hidden, inner, kv, rank, layers = 64, 96, 32, 16, 5
    shapes = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)]

    assert layers * sum(rank * (a + b) for a, b in shapes) == trace.num_trainable_parameters
    assert (layers * sum(a * b for a, b in shapes) if "quantization" in knobs else 0) == trace.num_quantized_parameters


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("entry_point", ["trl", "loop"])
def test_tied_weights_stay_tied_on_the_card(method: str, entry_point: str) -> None:
    """Head and embedding are one parameter and one storage."""
    with built("qwen3", method=method, entry_point=entry_point) as (building, _, recorder):
        head, embedding = building.base.get_output_embeddings().weight, building.base.get_input_embeddings().weight
        history, size = recorder.history, 128 * 64 * embedding.element_size()
        wide = [i for i in recorder.live.values() if (history.sizes[i], history.categories[i]) == (size, Category.PARAMETER)]

    assert head is embedding
    assert len(wide) == 1


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_everything_that_rests_is_named(method: str) -> None:
    """When the model stands, each storage on the card is a parameter, a statistic, an adapter, a buffer, or a library's own table."""
    with built("llama", method=method) as (building, _, recorder):
        history = recorder.history
        rest = {(f"{history.scopes[i]}.{history.names[i]}", history.categories[i]) for i in recorder.live.values()}
        names = {name for name, _ in building.model.named_parameters()} | {name for name, _ in building.model.named_buffers()}

    unnamed = {name for name, _ in rest if name.split(".quant_state")[0] not in names}
    assert unnamed == ({"bitsandbytes.shared dynamic map"} if method == "qlora" else set())
    assert {Category.PARAMETER, Category.BUFFER} <= {category for _, category in rest}
    assert (Category.ADAPTER in {category for _, category in rest}) is (method != "full")
    assert (Category.QUANT_STATE in {category for _, category in rest}) is (method == "qlora")


def test_the_loaders_warm_up_is_the_whole_checkpoints() -> None:
    """It is asked for once, before anything else, and is as large whether three layers are run or all."""
    short, whole = traced("llama", 5).history, traced("llama", 5, every_layer=True).history

    assert short.warm_up is not None
    assert whole.warm_up is not None
    assert short.sizes[short.warm_up] == whole.sizes[whole.warm_up]
    assert ~short.warm_up in short.events[:4]


def test_preparing_empties_the_cache() -> None:
    """PEFT's helper empties it behind its casts, in the phase that it belongs to."""
    history = traced("llama", 5).history
    phases = [s.phase for flush in history.flushes for s in history.stretches if s.begin <= flush < s.end]

    assert phases
    assert {Phase.PREPARE} == set(phases)


def test_an_unquantised_model_is_loaded_on_the_host() -> None:
    """Nothing is on the card until the model is moved, parameter by parameter."""
    history = traced("llama", 5, method="lora").history

    assert Phase.LOAD not in {s.phase for s in history.stretches}
    assert history.warm_up is None


def test_a_family_that_transformers_does_not_know() -> None:
    """The version and the family are named in a line; all the families that it does know are not."""
    spec, recipe = planned("llama", 2)
    unknown = type(spec)("tiny", "mystery", spec.config, ())

    with pytest.raises(UnsupportedModelError, match=r"^transformers [\d.]+ has no `mystery`, which tiny is$"):
        draw(unknown, recipe, every_layer=False)


def test_a_config_that_transformers_refuses() -> None:
    """In its own words."""
    spec, recipe = planned("llama", 2)
    broken = type(spec)("tiny", "llama", {"hidden_size": 33, "num_attention_heads": 2}, ())

    with pytest.raises(UnsupportedModelError, match=r"cannot read the config of tiny \(`llama`\): .*33"):
        draw(broken, recipe, every_layer=False)


def test_a_family_without_a_language_model() -> None:
    """An encoder is traced as the user's own step."""
    spec, recipe = planned("llama", 2)
    encoder = type(spec)("tiny", "vit", {"hidden_size": 16}, ())

    with pytest.raises(UnsupportedModelError, match="no causal language model for `vit`") as error:
        draw(encoder, recipe, every_layer=False)
    assert "planner.trace" in str(error.value.hint)


def test_an_attention_that_the_family_has_not() -> None:
    """What was asked for is refused with transformers' reason; what is only the default becomes eager."""
    spec, recipe = planned("llama", 2)
    refused = type(spec)("tiny", "gptj", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "rotary_dim": 8}, ())
    default = draw(refused, recipe, every_layer=False)

    assert default.attn is None
    with pytest.raises(UnsupportedModelError, match="cannot be built") as error:
        draw(refused, planned("llama", 2, {"attn": "flash_attention_2"})[1], every_layer=False)
    assert "--attn" in str(error.value.hint)


def test_adapters_that_peft_refuses() -> None:
    """Its own reason is told, and which knobs to turn."""
    with pytest.raises(UnsupportedModelError, match="PEFT refuses the adapters") as error, built("mixtral", dropout=0.1):
        pass
    assert "--dropout" in str(error.value.hint)
    with pytest.raises(UnsupportedModelError, match="PEFT refuses the adapters"), built("llama", targets=("nothing",)):
        pass
