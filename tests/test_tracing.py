"""`trace`: training steps that were written here, with what rests of them counted by hand."""

from __future__ import annotations

import doctest
import importlib.util
import json
import pickle

import pytest

import planner
from planner import tracing
from planner.errors import InvalidRecipeError, MissingExtraError, UnknownDeviceError, UnsupportedModelError
from planner.ledger import Category
from planner.units import KIB, round_up

torch = pytest.importorskip("torch")
for library in ("transformers", "accelerate", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

D, F, B = 256, 512, 32
WORKSPACE = (2 * 4096 + 8 * 16) * KIB
"""Of cuBLAS, for one thread: `:4096:2:16:8` of CUBLAS_WORKSPACE_CONFIG, NVIDIA's default before Hopper."""


def resting(model) -> int:
    """Bytes of a real model's tensors, in the allocator's blocks; all of them are below the megabyte from which blocks may be larger."""
    tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}.values()
    return sum(round_up(x.numel() * x.element_size(), 512) for x in tensors)


def mlp():
    """A plain model."""
    return torch.nn.Sequential(torch.nn.Linear(D, F), torch.nn.GELU(), torch.nn.Linear(F, D))


def build():
    """It, and its optimizer."""
    model = mlp().cuda()
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer):
    """As in any tutorial."""
    model(torch.randn(B, D, device="cuda")).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_example_is_true():
    """The docstring's."""
    [example] = (test for test in doctest.DocTestFinder().find(tracing) if test.name.endswith(".trace"))
    found = doctest.DocTestRunner().run(example)

    assert found.attempted > 0
    assert found.failed == 0


def test_a_plain_model():
    """Weights, gradients while they are there, AdamW's two states, and cuBLAS's two workspaces; nothing else rests."""
    report = planner.trace(build, step, gpu="t4")
    weights = 4 * (D * F + F + F * D + D)
    peaks = {phase.phase: phase for phase in report.phases}

    assert resting(mlp()) == weights
    assert report.steady_bytes == 3 * weights + 2 * WORKSPACE
    assert list(peaks) == ["load", "forward", "backward", "optimizer_step"]
    assert peaks["load"].by_category == {"parameter": weights}
    assert peaks["optimizer_step"].by_category["gradient"] == weights
    assert peaks["optimizer_step"].by_category["optimizer_state"] == 2 * weights
    assert all(sum(phase.by_category.values()) == phase.allocated_peak_bytes for phase in report.phases)
    assert report.peak.allocated_bytes == max(phase.allocated_peak_bytes for phase in report.phases)
    assert report.peak.reserved_bytes >= report.peak.allocated_bytes
    assert (report.engine, report.verdict.outcome, report.verdict.binding_phase) == ("traced", "fits", report.peak.phase)
    assert (report.model.id, report.model.num_parameters) == ("Sequential", weights // 4)


class LoRA(torch.nn.Module):
    """A frozen 16-bit linear with an adapter in fp32."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16).requires_grad_(requires_grad=False)
        self.A = torch.nn.Parameter(torch.zeros(rank, width))
        self.B = torch.nn.Parameter(torch.zeros(width, rank))

    def forward(self, x):
        return self.base(x) + (x @ self.A.T) @ self.B.T


def test_a_custom_lora_loop():
    """Accumulation, autocast and a fused optimizer: only adapters have gradients and states, each with a step on the card."""
    layers, rank = 3, 8

    def build():
        model = torch.nn.Sequential(*(LoRA(D, rank) for _ in range(layers))).to("cuda")
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step(model, optimizer):
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(torch.randn(B, D, device="cuda")).float().square().mean()
            (loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    report = planner.trace(build, step, gpu="a6000")
    adapters = layers * 2 * 4 * rank * D
    step_counts = layers * 2 * 512
    gradients = next(phase for phase in report.phases if phase.phase == "optimizer_step").by_category["gradient"]

    assert report.steady_bytes == layers * 2 * D * D + 3 * adapters + step_counts + 2 * WORKSPACE
    assert gradients == adapters
    assert (report.model.num_parameters, report.model.num_trainable_parameters) == (layers * (D * D + 2 * rank * D), layers * 2 * rank * D)


def test_an_encoder_classifier():
    """transformers' BERT with a head of five classes, under plain SGD: nothing rests but the model and the workspaces."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, num_labels=5
    )

    def build():
        model = transformers.BertForSequenceClassification(config).cuda()
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, optimizer):
        tokens = torch.randint(0, 512, (8, 32), device="cuda")
        labels = torch.randint(0, 5, (8,), device="cuda")
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    report = planner.trace(build, step, gpu="t4")
    real = transformers.BertForSequenceClassification(config)

    assert report.steady_bytes == resting(real) + 2 * WORKSPACE
    assert report.model.id == "BertForSequenceClassification"
    assert report.model.num_parameters == sum(p.numel() for p in real.parameters())
    assert all(phase.by_category.get("optimizer_state", 0) == 0 for phase in report.phases)


def test_the_verdict_comes_from_the_card():
    """The same step on a card that lacks the room fails at an operation of it; without a card there are the common ones."""
    small = planner.trace(build, step, gpu="0.4GiB")
    unnamed = planner.trace(build, step)

    assert small.verdict.outcome == "does_not_fit"
    assert small.verdict.failure.requested_bytes > small.device.usable_bytes - small.verdict.failure.reserved_bytes
    assert not small.fits
    assert (unnamed.device, unnamed.verdict, unnamed.fits) == (None, None, True)
    assert {card.verdict.outcome for card in unnamed.verdicts} == {"fits"}


def test_more_steps_add_nothing_that_rests():
    """Optimizer states appear in the first; one step shows them too."""
    steady = {planner.trace(build, step, gpu="t4", steps=steps).steady_bytes for steps in (1, 2, 3)}

    assert len(steady) == 1


def test_it_is_a_report_like_any_other(tmp_path):
    """JSON, ledger, timeline and snapshot; a recipe it has not."""
    told: list[str] = []
    report = planner.trace(build, step, gpu="t4", progress=told.append)
    picture = report.timeline(tmp_path / "step.html", whole_run=True)
    entries = report.snapshot(tmp_path / "run.pickle")
    trace = pickle.loads((tmp_path / "run.pickle").read_bytes())["device_traces"][0]  # noqa: S301 - written above
    dumped = json.loads(report.model_dump_json())

    assert told == ["importing torch and transformers", "running the step"]
    assert dumped == report.model_dump()
    assert dumped["recipe"] == {}
    assert picture.title == "Sequential"
    assert max(picture.timeline.allocated) == report.peak.allocated_bytes
    assert max(picture.timeline.reserved) == report.peak.reserved_bytes
    assert (tmp_path / "step.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert len(trace) == entries
    assert sum(a.nbytes for a in report.ledger.live_at(report.ledger.peak().step)) == report.peak.allocated_bytes
    assert {a.scope for a in report.ledger.allocations if a.category is Category.GRADIENT} == {"0", "2"}
    assert (report.traps, report.suggestions, report.agreement) == ((), (), None)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, step), {}, InvalidRecipeError, "build and step must be functions"),
        ((build, "step"), {}, InvalidRecipeError, "build and step must be functions"),
        ((build, step), {"steps": 0}, InvalidRecipeError, "steps is 0; it must be 1 or more"),
        ((build, step), {"gpu": "voodoo2"}, UnknownDeviceError, "voodoo2"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_runs(monkeypatch, arguments, options, error, message):
    """With a hint."""
    monkeypatch.setattr(tracing, "traced_engine", lambda *_: pytest.fail("the engine was loaded"))

    with pytest.raises(error, match=message) as caught:
        planner.trace(*arguments, **options)
    assert caught.value.hint


def test_a_step_that_puts_nothing_on_the_card_is_refused():
    """Zero bytes would fit everywhere."""
    with pytest.raises(InvalidRecipeError, match="the step put nothing on the card") as caught:
        planner.trace(lambda: torch.nn.Linear(D, D), lambda model: model(torch.randn(B, D)))
    assert 'device="cuda"' in caught.value.hint


def test_a_step_that_acts_on_numbers_is_refused():
    """There are none; the message says which operation asked."""

    def branches(model, optimizer):
        loss = model(torch.randn(B, D, device="cuda")).square().mean()
        if loss > 1:
            loss.backward()

    with pytest.raises(UnsupportedModelError) as caught:
        planner.trace(build, branches)
    assert caught.value.hint


def test_a_fault_of_the_step_is_the_step_s_own():
    """What the user's code raises, it raises; and the next trace works."""
    with pytest.raises(ZeroDivisionError):
        planner.trace(build, lambda *_: 1 // 0)

    assert planner.trace(build, step, gpu="t4").fits


def test_without_the_libraries_it_says_what_to_install(monkeypatch):
    """As `--engine traced`."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError) as caught:
        planner.trace(build, step)
    assert caught.value.hint == 'pip install "qplan[torch]"'
