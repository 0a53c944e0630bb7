"""Which layers are run, and that what is made of three instances is what every layer run gives."""

from __future__ import annotations

from typing import Any

import pytest

from planner.ledger import Phase
from planner.repetition import Repetition
from planner.unrolling import unroll_history
from tests.engines.traced.runs import highs, planned, reserved, sequence, traced

torch = pytest.importorskip("torch")

from planner.engines.running.blueprint import Blueprint, draw  # noqa: E402
from planner.engines.running.layers import NOTHING, Instances, Stack, find_stack, kept, shortened  # noqa: E402

WORST = 0.0015
"""
Of a phase with clipping, whose norms are stacked into one tensor for all parameters: 0.13 % with Adafactor, under 0.01 % else.
Without clipping there is no difference.
"""


def drawn(model: str, layers: int, *, every_layer: bool = False, **changes: Any) -> Blueprint:
    """What is to be traced of a small model."""
    return draw(*planned(model, layers, **changes), every_layer=every_layer)


# transformers' configs: a full attention every six layers of Gemma 3, two dense layers before the experts of DeepSeek V3, an attention
# in every four layers and experts in every two of Jamba.
@pytest.mark.parametrize(
    ("model", "layers", "expected", "run"),
    [
        ("llama", 8, Repetition(0, 1, 8), 3),
        ("llama", 4, Repetition(0, 1, 4), 3),
        ("llama", 3, Repetition(0, 1, 0), 3),
        ("llama", 1, Repetition(0, 1, 0), 1),
        ("gpt2", 12, Repetition(0, 1, 12), 3),
        ("gemma3_text", 26, Repetition(0, 6, 4), 20),
        ("gemma3_text", 48, Repetition(0, 6, 8), 18),
        ("mixtral", 8, Repetition(0, 1, 8), 3),
        ("deepseek_v3", 10, Repetition(2, 1, 8), 5),
        ("jamba", 16, Repetition(0, 4, 4), 12),
        ("jamba", 12, Repetition(0, 4, 0), 12),
    ],
)
def test_what_repeats_in_real_models(model: str, layers: int, expected: Repetition, run: int) -> None:
    """The stretch that repeats, and how many layers stand for all."""
    found = drawn(model, layers)
    instances = found.instances

    if instances is None:  # one layer is no list of layers
        assert (layers, run) == (1, 1)
        return
    assert (run, layers) == (found.num_layers, found.whole_layers)
    assert expected.count == instances.repeated.count
    assert not expected.count or expected == instances.repeated


def test_every_layer_on_request() -> None:
    """Then nothing repeats."""
    found = drawn("llama", 8, every_layer=True)

    assert (found.num_layers, found.whole_layers) == (8, 8)
    assert found.instances is not None
    assert found.instances.repeated == NOTHING


def test_layers_are_told_apart_by_what_they_do() -> None:
    """By their modules, shapes and switches, and not by their number."""
    from planner.engines.running.blueprint import skeleton

    kinds = {}
    for model, layers in (("llama", 4), ("gemma3_text", 12), ("deepseek_v3", 4)):
        found = drawn(model, layers, every_layer=True)
        stack = find_stack(skeleton(found.model_class, found.config, torch.bfloat16, "sdpa"))
        assert stack is not None
        kinds[model] = [stack.kinds.index(kind) for kind in stack.kinds]

    assert kinds == {"llama": [0] * 4, "gemma3_text": [0, 0, 0, 0, 0, 5] * 2, "deepseek_v3": [0, 0, 2, 2]}


def test_the_decoder_is_the_list_with_the_most_parameters() -> None:
    """A tower of images is not taken for it, nor the list of a layer's experts."""
    linear = torch.nn.Linear
    with torch.device("meta"):
        model = torch.nn.ModuleDict({
            "vision": torch.nn.ModuleList([linear(4, 4) for _ in range(9)]),
            "text": torch.nn.ModuleDict({
                "layers": torch.nn.ModuleList([torch.nn.ModuleList([linear(8, 8), linear(8, 8)]) for _ in range(3)])
            }),
        })  # fmt: skip
    found = find_stack(model)

    assert found is not None
    assert (found.path, len(found.kinds)) == ("text.layers", 3)
    assert find_stack(linear(2, 2)) is None


def test_a_shortened_config_keeps_the_kinds() -> None:
    """Lists with an entry for each layer lose those of the layers that go; the config itself is not changed."""
    config = drawn("gemma3_text", 26, every_layer=True).config
    types = list(config.layer_types)
    layers = [0, 5, 6, 11, 25]
    short = shortened(config, layers)

    assert [types[i] for i in layers] == list(short.layer_types)
    assert (short.num_hidden_layers, config.num_hidden_layers, list(config.layer_types)) == (5, 26, types)


def test_layers_that_are_kept() -> None:
    """All before the stretch, its first two instances and its last, all behind it."""
    assert kept(Stack("layers", tuple("cababababd"))) == [0, 1, 2, 3, 4, 7, 8, 9]
    assert kept(Stack("layers", tuple("abc"))) == [0, 1, 2]


def test_instances_by_name() -> None:
    """Layers of the shortened model by their number in a name, wherever it stands."""
    instances = Instances("model.layers", Repetition(1, 2, 10))

    assert [instances.of_layer(i) for i in range(8)] == [None, 0, 0, 1, 1, 2, 2, None]
    assert instances.of_name("base_model.model.model.layers.3.mlp.lora_A.default.weight") == 1
    assert instances.of_name("model.layers.3") == 1
    assert instances.of_name("lm_head.weight") is None
    assert instances.of_name("other.model.layerss.3") is None
    assert [instances.times(i) for i in (None, 0, 1, 2)] == [1, 1, 8, 1]


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "none": {"gradient_checkpointing": False},
    "non-reentrant": {"use_reentrant": False},
    "reentrant": {"use_reentrant": True},
}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 4}
SLOW = pytest.mark.slow
RUNS = [
    ("llama", 5, {}, "none", {}),
    ("llama", 5, {}, "non-reentrant", {}),
    ("llama", 5, {}, "reentrant", {}),
    ("llama", 5, {}, "none", {"method": "full", "optim": "adamw_torch"}),
    ("llama", 5, {"tie_word_embeddings": True}, "non-reentrant", {"method": "full", "entry_point": "trainer"}),
    ("gemma3_text", 8, TWO_KINDS, "none", {"method": "full"}),
    ("mixtral", 5, {}, "none", {}),
    ("olmo", 5, {}, "non-reentrant", {"method": "lora"}),
    pytest.param("gemma3_text", 8, TWO_KINDS, "non-reentrant", {}, marks=SLOW),
    pytest.param("llama", 5, {}, "non-reentrant", {"method": "lora", "entry_point": "loop", "optim": "adamw_torch"}, marks=SLOW),
    pytest.param("mixtral", 5, {}, "non-reentrant", {"method": "lora"}, marks=SLOW),
    pytest.param("deepseek_v3", 6, {}, "non-reentrant", {"method": "lora"}, marks=SLOW),
]


@pytest.mark.parametrize(("model", "layers", "changes", "checkpoint", "knobs"), RUNS)
def test_three_instances_stand_for_all(model: str, layers: int, changes: dict[str, Any], checkpoint: str, knobs: dict[str, Any]) -> None:
    """Without clipping, every birth and death of the whole model in its order, from loading to the evaluation, and all counts."""
    options = {**CHECKPOINTS[checkpoint], **knobs, "max_grad_norm": 0.0}
    short = traced(model, layers, changes=changes, **options)
    whole = traced(model, layers, changes=changes, every_layer=True, **options)

    assert short.num_layers < whole.num_layers == whole.whole_layers == layers
    assert sequence(whole.history) == sequence(unroll_history(short.history))
    assert highs(whole.history) == highs(short.history)
    assert reserved(whole.history) == reserved(short.history)
    assert (whole.num_trainable_parameters, whole.num_quantized_parameters, whole.paged_bytes) == (
        short.num_trainable_parameters, short.num_quantized_parameters, short.paged_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("knobs", [{}, {"optim": "adafactor", "gradient_checkpointing": False}])
def test_with_clipping_the_peaks_agree(knobs: dict[str, Any]) -> None:
    """The stacked norms are one tensor for all parameters: no phase's peak is further off than the bound says."""
    whole = highs(traced("llama", 5, every_layer=True, **knobs).history)
    short = highs(traced("llama", 5, **knobs).history)

    assert max(abs(short[phase] / nbytes - 1) for phase, nbytes in whole.items()) <= WORST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "layers"), [("jamba", 16), ("gemma3_text", 26), ("deepseek_v3", 12), ("qwen3", 12), ("gpt2", 12), ("mixtral", 12)]
)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_three_instances_stand_for_all_in_other_families(model: str, layers: int, checkpoint: str, method: str) -> None:
    """The same for hybrids, windows, latent attention and tied heads, at more layers."""
    options = {**CHECKPOINTS[checkpoint], "method": method, "seq_len": 16}
    whole = highs(traced(model, layers, every_layer=True, **options).history)
    short = highs(traced(model, layers, **options).history)

    assert max(abs(short[phase] / nbytes - 1) for phase, nbytes in whole.items()) <= WORST


def test_phases_are_whole() -> None:
    """Each stretch of an unrolled history carries the instance that it is, in the order of the layers."""
    history = unroll_history(traced("llama", 5, use_reentrant=False, max_grad_norm=0.0).history)
    forward = [s.instance for s in history.stretches if s.phase is Phase.FORWARD and s.instance is not None]
    backward = [s.instance for s in history.stretches if s.phase is Phase.BACKWARD and s.instance is not None]

    assert forward == [*range(5), *range(5)]
    assert backward == [*range(4, -1, -1), *range(4, -1, -1)]
