"""The callback in real trainers: tiny models, two steps, on the CPU."""

from __future__ import annotations

import json
import math
import warnings

import pytest

pytest.importorskip("trl")

import torch
from peft import LoraConfig, get_peft_model

from planner.errors import InvalidRecipeError
from planner.hf import MemoryPlanWarning
from planner.records import Store
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore")
PHASES = ["load", "forward", "backward", "optimizer_step", "evaluation", "save"]
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 2048, "max_position_embeddings": 256}
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))


def test_a_trainer_is_planned_measured_and_compared(tmp_path):
    """Every phase has a peak; the closed form is within 0.1 % of what was alive in forward and backward, in a model of a few MiB."""
    callback, out = tiny.watched()
    tiny.train_trainer(tmp_path / "out", callback, tiny.model(**SIZES), tiny.samples((256, 200, 256, 250))).train()
    kept = Store().read()
    rows = {row.phase: row for row in callback.kept.comparison}

    assert list(callback.measured_bytes) == PHASES
    assert "load" not in rows  # over before it was watched: what is left of it is measured, its peak is not
    assert all(abs(rows[phase].difference_bytes) * 1000 <= rows[phase].measured_bytes for phase in ("forward", "backward"))
    assert kept.records == (callback.kept,)
    assert "qplan: llama, full, 2 x 256 tokens" in out.getvalue().splitlines()[0]
    assert "on CUDA adamw_torch steps all tensors together" in " ".join(out.getvalue().split())


def test_what_is_measured_is_what_rests_and_what_a_step_adds(tmp_path):
    """After loading, the weights; in the optimizer's step, weights, gradients and two states of them at least: counted by hand."""
    callback, _ = tiny.watched()
    net = tiny.model()
    weights = sum(-(-p.numel() * p.element_size() // 512) * 512 for p in net.parameters())
    weights += sum(-(-b.numel() * b.element_size() // 512) * 512 for b in {b.data_ptr(): b for b in net.buffers()}.values())
    tiny.train_trainer(tmp_path / "out", callback, net).train()
    measured = callback.measured_bytes

    assert measured["load"] == weights
    assert measured["optimizer_step"] >= 4 * sum(p.numel() * p.element_size() for p in net.parameters())
    assert measured["backward"] >= measured["load"]


def test_an_sft_trainer_with_lora(tmp_path):
    """TRL's trainer: adapters, its loss, its phases; the record says so, and names no path."""
    callback, out = tiny.watched()
    tiny.train_sft(tmp_path / "out", callback, LORA).train()
    record = callback.kept
    text = json.dumps(record.model_dump())

    assert list(callback.measured_bytes) == PHASES
    assert (record.origin, record.card, record.model["id"], record.model["model_type"]) == ("callback", None, None, "llama")
    assert (record.recipe["method"], record.recipe["rank"], record.recipe["entry_point"]) == ("lora", 4, "trl")
    assert record.recipe["targets"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert str(tmp_path) not in text
    assert "r=4" in out.getvalue() and "all: allocated" in out.getvalue()


def test_training_is_the_same_with_and_without_it(tmp_path):
    """The weights after two steps are equal bit by bit: it watches, and changes nothing."""
    nets = [tiny.model(), tiny.model()]
    callback, _ = tiny.watched()
    tiny.train_trainer(tmp_path / "a", callback, nets[0]).train()
    plain = tiny.train_trainer(tmp_path / "b", tiny.watched()[0], nets[1])
    plain.callback_handler.callbacks = [cb for cb in plain.callback_handler.callbacks if type(cb) is not type(callback)]
    plain.train()

    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not nets[0]._forward_hooks and not nets[0]._forward_pre_hooks


def test_a_run_that_does_not_fit_is_warned_of_before_its_first_step(tmp_path, monkeypatch):
    """On a card of 64 MiB not even the context fits: a warning before anything is watched, and the training goes on."""
    callback, out = tiny.watched(gpu="64MiB")
    seen = []
    monkeypatch.setattr(warnings, "warn", lambda *a, **k: seen.append((a, callback._watch)) if MemoryPlanWarning in a else None)
    tiny.train_trainer(tmp_path / "out", callback).train()

    assert [watch for _, watch in seen] == [None]
    assert "will not fit" in seen[0][0][0]
    assert out.getvalue().count("DOES NOT FIT on 64MiB") == 1
    assert callback.measured_bytes["forward"] > 0


def test_what_cannot_be_planned_is_said_and_measured(tmp_path):
    """An optimizer that nobody plans: why, and what was measured, alone; no record."""
    callback, out = tiny.watched()
    tiny.train_trainer(tmp_path / "out", callback, optim="adagrad").train()

    assert "optim is `adagrad`" in callback.problem
    assert "qplan cannot plan this run: optim is `adagrad`" in out.getvalue()
    assert list(callback.measured_bytes) == PHASES
    assert Store().read().records == ()


def test_a_record_that_cannot_be_kept_ends_no_training(tmp_path, monkeypatch):
    """A file stands where the folder should be: the comparison is printed, then why there is no record."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "file"))
    callback, out = tiny.watched()
    trained = tiny.train_trainer(tmp_path / "out", callback).train()

    assert math.isfinite(trained.training_loss)
    assert "all: allocated" in out.getvalue()
    assert "qplan: the record could not be written" in out.getvalue()
    assert callback.kept is None


def test_no_record_where_none_is_wanted(tmp_path):
    """`record=False` writes nothing."""
    callback, _ = tiny.watched(record=False)
    tiny.train_trainer(tmp_path / "out", callback).train()

    assert (callback.kept, Store().read().records) == (None, ())
    assert not (tmp_path / "home").exists()


def test_a_longer_batch_than_planned_is_compared_for_what_it_was(tmp_path):
    """Planned for 16 tokens by the user's word, 24 came: the comparison is for those, and says it."""
    callback, out = tiny.watched(seq_len=16)
    tiny.train_trainer(tmp_path / "out", callback).train()
    text = " ".join(out.getvalue().split())

    assert "planned for 2 x 16 tokens; the largest batch had 2 x 24, for which this compares" in text
    assert (callback.report.recipe["seq_len"], callback.compared.recipe["seq_len"], callback.kept.recipe["seq_len"]) == (16, 24, 24)


def test_gradient_accumulation_has_its_phases(tmp_path):
    """Two micro-batches a step: forward and backward come twice, the optimizer once."""
    callback, _ = tiny.watched()
    tiny.train_trainer(tmp_path / "out", callback, gradient_accumulation_steps=2).train()

    assert list(callback.measured_bytes) == PHASES
    assert callback.kept.recipe["grad_accum"] == 2


def test_an_error_in_training_leaves_nothing_behind_once_closed(tmp_path):
    """A forward that fails: the error is the trainer's own, and `close` takes hooks and mode away."""
    callback, _ = tiny.watched()
    net = tiny.model()
    trainer = tiny.train_trainer(tmp_path / "out", callback, net)
    net.lm_head.forward = lambda *_: 1 / 0

    with pytest.raises(ZeroDivisionError):
        trainer.train()
    callback.close()

    assert not net._forward_hooks
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_second_run_begins_anew(tmp_path):
    """The same callback watches another run: two records, and the first does not leak into the second's peaks."""
    callback, _ = tiny.watched()
    first = tiny.train_trainer(tmp_path / "a", callback)
    first.train()
    before = dict(callback.measured_bytes)
    tiny.train_trainer(tmp_path / "b", callback).train()

    assert callback.measured_bytes["load"] == before["load"]
    assert len(Store().read().records) in (1, 2)  # both may fall into one second, and be the same record


def test_lora_is_what_a_trace_of_the_cpu_says(tmp_path):
    """By itself the comparison on a CPU is with a trace of its kernels: forward and backward of the real Trainer are within 1 %."""
    callback, _ = tiny.watched(engine="auto")
    net = get_peft_model(tiny.model(**SIZES), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    tiny.train_trainer(tmp_path / "out", callback, net, tiny.samples((256,) * 4), max_grad_norm=0.0).train()
    rows = {row.phase: row for row in callback.kept.comparison}

    assert callback.problem is None
    assert (callback.report.engine, callback.kept.engine, callback.kept.recipe["method"]) == ("analytic", "traced", "lora")
    assert all(abs(rows[phase].difference_bytes) * 100 <= rows[phase].measured_bytes for phase in ("forward", "backward")), rows


def test_qlora_in_sft_is_what_a_trace_of_the_cpu_says(tmp_path):
    """bitsandbytes' own 4-bit kernels under the real SFTTrainer: forward, backward and the optimizer's step within 1 % of the trace."""
    callback, _ = tiny.watched(engine="auto")
    net = tiny.quantized(tmp_path / "model", **SIZES)
    tiny.train_sft(tmp_path / "out", callback, LORA, net, tiny.samples((128,) * 4), max_length=256, bf16=True).train()
    rows = {row.phase: row for row in callback.kept.comparison}

    assert (callback.kept.recipe["method"], callback.kept.recipe["quantization"]) == ("qlora", "nf4")
    assert {"forward", "backward", "optimizer_step"} <= set(rows)
    assert all(abs(row.difference_bytes) * 100 <= row.measured_bytes for row in rows.values()), rows


def test_an_evaluation_of_other_batches_is_not_compared(tmp_path):
    """Trained with 2 x 24 tokens, evaluated with 4: measured, but beside no plan; with the same batches it is compared."""
    other, same = tiny.watched(engine="traced")[0], tiny.watched(engine="traced")[0]
    tiny.train_trainer(tmp_path / "a", other, data=tiny.samples((24,) * 4)).train()
    tiny.train_trainer(tmp_path / "b", same, data=tiny.samples((24,) * 4), per_device_eval_batch_size=2).train()

    assert "evaluation" in other.measured_bytes
    assert "evaluation" not in {row.phase for row in other.kept.comparison}
    assert "evaluation" in {row.phase for row in same.kept.comparison}


def test_an_engine_that_does_not_exist_is_refused():
    """At once, not at the start of the training."""
    with pytest.raises(InvalidRecipeError, match="engine is `fast`"):
        tiny.watched(engine="fast")


@pytest.mark.parametrize(("lengths", "is_told"), [((24, 8), True), ((8, 24), False), ((24, 24), False)])
def test_a_largest_batch_before_the_optimizers_states_is_told(tmp_path, lengths, is_told):
    """A plan is for a step that has states beside its batch: where the largest batch came in the first step alone, that is said."""
    callback, out = tiny.watched()
    trainer = tiny.train_trainer(tmp_path / "out", callback, data=tiny.samples(lengths), per_device_train_batch_size=1, eval_strategy="no")
    trainer._get_train_sampler = lambda *_: None  # in their order
    trainer.train()

    assert ("before the optimizer had its states" in " ".join(out.getvalue().split())) == is_told
