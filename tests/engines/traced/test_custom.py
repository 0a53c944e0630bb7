"""Steps that users wrote: a plain model, a LoRA of one's own, an encoder, and what cannot be followed."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from planner.bookkeeping import keep_books
from planner.errors import InvalidRecipeError, UnsupportedModelError
from planner.ledger import Category, Ledger, Phase
from planner.units import round_up

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from planner.engines.traced.custom import Custom, trace_step  # noqa: E402

C, P = Category, Phase
WIDTH, INNER, BATCH = 64, 256, 8


def plain() -> tuple[Any, Any]:
    """A model of two linears."""
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, INNER), torch.nn.GELU(), torch.nn.Linear(INNER, WIDTH)).cuda()
    return model, torch.optim.AdamW(model.parameters())


def step(model: Any, optimizer: Any) -> None:
    """Under autocast, with a loss that is looked at."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(torch.randn(BATCH, WIDTH, device="cuda")).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if loss.item() > 1e9:
        raise AssertionError("never")


def ledger_of(found: Custom) -> Ledger:
    """Its books."""
    return keep_books("traced", found.history)


def order(ledger: Ledger) -> list[Phase]:
    """The phases in their order, each once for every time that the run comes into it."""
    phases = [s.phase for s in ledger.timeline]
    return [phase for i, phase in enumerate(phases) if not i or phases[i - 1] is not phase]


def held(found: Custom, category: Category) -> dict[str, int]:
    """Bytes of a category by scope and name."""
    h = found.history
    return {f"{h.scopes[i]}.{h.names[i]}": size for i, size in enumerate(h.sizes) if h.categories[i] is category}


def test_a_plain_model() -> None:
    """Phases, parameters, gradients and states, by name and to the byte."""
    found = trace_step(plain, step, (8, 0))
    ledger = ledger_of(found)
    shapes = {"0.weight": WIDTH * INNER, "0.bias": INNER, "2.weight": WIDTH * INNER, "2.bias": WIDTH}
    count = sum(shapes.values())
    last = max(s.end for s in ledger.timeline if s.phase is P.OPTIMIZER_STEP) - 1
    backward_end = next(s.begin for s in ledger.timeline if s.phase is P.OPTIMIZER_STEP) - 1
    parameters, gradients = held(found, C.PARAMETER), held(found, C.GRADIENT)

    assert (found.model_name, found.num_parameters, found.num_trainable_parameters) == ("Sequential", count, count)
    assert order(ledger) == [P.LOAD, P.FORWARD, P.BACKWARD, P.OPTIMIZER_STEP, P.FORWARD, P.BACKWARD, P.OPTIMIZER_STEP]
    assert {name: 4 * n for name, n in shapes.items()} == parameters
    assert 4 * count == sum(gradients.values())
    assert sum(round_up(4 * n, 512) for n in shapes.values()) == ledger.by_category(backward_end)[C.GRADIENT]
    assert ledger.by_category(last)[C.OPTIMIZER_STATE] == sum(2 * round_up(4 * n, 512) for n in shapes.values())
    assert C.GRADIENT not in ledger.by_category(last)


class LoRA(torch.nn.Module):
    """A frozen linear with two small ones beside it."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.a, self.b = torch.nn.Linear(base.in_features, rank, bias=False), torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Any) -> Any:
        """Both."""
        return self.base(x) + self.b(self.a(x))


def test_a_lora_of_ones_own() -> None:
    """Only what is trained has gradients and states; accumulation over two batches keeps them."""

    def build() -> tuple[Any, Any]:
        model = torch.nn.Sequential(*[LoRA(torch.nn.Linear(WIDTH, WIDTH), 4) for _ in range(3)]).to("cuda")
        return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

    def run(model: Any, optimizer: Any) -> None:
        for _ in range(2):
            (model(torch.randn(BATCH, WIDTH, device="cuda")).mean() / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found = trace_step(build, run, (8, 0))
    ledger = ledger_of(found)
    trained = 3 * 2 * 4 * WIDTH
    last = max(s.end for s in ledger.timeline if s.phase is P.OPTIMIZER_STEP) - 1

    assert trained == found.num_trainable_parameters < found.num_parameters
    assert {name.split(".")[1] for name in held(found, C.GRADIENT)} == {"a", "b"}
    assert ledger.by_category(last)[C.OPTIMIZER_STATE] == 4 * trained
    assert [P.LOAD, *2 * [P.FORWARD, P.BACKWARD, P.FORWARD, P.BACKWARD, P.OPTIMIZER_STEP]] == order(ledger)


def test_an_encoder_that_classifies() -> None:
    """A BERT with three labels on a T4: no decoder, no recipe."""
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=100, num_labels=3
    )

    def build() -> tuple[Any, Any]:
        model = transformers.AutoModelForSequenceClassification.from_config(config).to("cuda")
        return model, torch.optim.AdamW(model.parameters(), lr=1e-5)

    def run(model: Any, optimizer: Any) -> None:
        ids = torch.randint(0, 100, (4, 32), device="cuda")
        labels = torch.zeros(4, dtype=torch.long, device="cuda")
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    found = trace_step(build, run, (7, 5))
    real = transformers.AutoModelForSequenceClassification.from_config(config)
    ledger = ledger_of(found)
    last = max(s.end for s in ledger.timeline if s.phase is P.OPTIMIZER_STEP) - 1

    assert (type(real).__name__, real.num_parameters()) == (found.model_name, found.num_parameters)
    assert ledger.by_category(last)[C.OPTIMIZER_STATE] >= 8 * found.num_parameters


def test_an_evaluation_is_a_phase() -> None:
    """A model that is called without gradients evaluates."""

    def run(model: Any, optimizer: Any) -> None:
        step(model, optimizer)
        with torch.no_grad():
            model(torch.randn(BATCH, WIDTH, device="cuda"))

    assert P.EVALUATION in order(ledger_of(trace_step(plain, run, (8, 0))))


def test_a_large_model_of_the_cpu_needs_no_host_memory() -> None:
    """Weights that are made on the CPU and moved have no data: 8 GiB of them leave the process as small as it was."""

    def build() -> Any:
        return torch.nn.Sequential(*[torch.nn.Linear(16384, 16384, bias=False) for _ in range(8)]).cuda()

    def run(model: Any) -> None:
        model(torch.randn(1, 16384, device="cuda")).sum().backward()

    trace_step(plain, step, (8, 0))  # what the libraries load at their first use is theirs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = trace_step(build, run, (8, 0))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert (after - before) * 1024 < 1 << 28
    assert sum(held(found, C.PARAMETER).values()) == 8 * 16384 * 16384 * 4


@pytest.mark.parametrize("width", [64, 2048])
def test_quantised_layers_of_the_cpu_are_moved(width: int) -> None:
    """bitsandbytes' linears, small and large, as a script makes them."""
    import bitsandbytes as bnb

    def build() -> Any:
        return torch.nn.Sequential(bnb.nn.Linear4bit(width, width, compute_dtype=torch.bfloat16)).cuda()

    def run(model: Any) -> None:
        model(torch.randn(4, width, device="cuda", requires_grad=True)).sum().backward()

    assert held(trace_step(build, run, (8, 0)), C.PARAMETER)["0.weight"] == width * width // 2


def test_a_step_that_puts_nothing_on_the_card() -> None:
    """Says where to put it."""

    def build() -> Any:
        return torch.nn.Linear(4, 4)

    with pytest.raises(InvalidRecipeError, match="nothing on the card") as error:
        trace_step(build, lambda model: model(torch.ones(2, 4)).sum().backward(), (8, 0))
    assert 'device="cuda"' in str(error.value.hint)


def test_control_flow_on_numbers() -> None:
    """Is refused with the operation and the user's own line."""

    def run(model: Any, optimizer: Any) -> None:
        if (torch.randn(BATCH, WIDTH, device="cuda") > 0).all():
            step(model, optimizer)

    with pytest.raises(UnsupportedModelError, match=r"the trace stopped at aten\._local_scalar_dense.*\(test_custom\.py:\d+\)"):
        trace_step(plain, run, (8, 0))


def test_an_error_of_the_users_own_comes_through() -> None:
    """As it is."""

    def run(*_: Any) -> None:
        raise KeyError("labels")

    with pytest.raises(KeyError, match="labels"):
        trace_step(plain, run, (8, 0))


def test_more_steps_change_nothing() -> None:
    """The peak and what rests are those of two."""
    two, four = (ledger_of(trace_step(plain, step, (8, 0), steps=steps)) for steps in (2, 4))

    assert two.high == four.high
    assert two.curve[-1] == four.curve[-1]
