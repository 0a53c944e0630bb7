"""The head over materialised logits, against transformers' loss and its families' heads."""

from __future__ import annotations

import pytest

from planner.dtypes import DType
from planner.operations.head import full_loss, logits
from planner.operations.linear import Linear
from planner.tensors import Tensor
from tests.live import TORCH, leaf, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
losses = pytest.importorskip("transformers.loss.loss_utils")

BF16, FP32 = DType.BF16, DType.FP32
B, S, WIDTH, VOCABULARY = 2, 8, 16, 96


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("batch", [1, 2])
def test_full_loss(batch, dtype, trained):
    """A 16-bit copy and its fp32 copy, log-softmax kept, and both gradients; labels are shifted into a padded copy."""
    module = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=TORCH[dtype]).requires_grad_(trained)
    labels = torch.zeros(batch, S, dtype=torch.int64)
    x, ours = pair((batch, S, WIDTH), dtype)
    head = Linear(WIDTH, VOCABULARY, leaf(module.weight))

    def real(x: torch.Tensor) -> torch.Tensor:
        logits = module(x)
        return losses.ForCausalLMLoss(logits, labels, VOCABULARY)

    def planned(t, x: Tensor) -> Tensor:
        output = logits(t, x, head, softcap=False, scaled=False)
        return full_loss(t, output, batch * S, sequences=batch)

    assert of_torch(real, x) == of_tape(planned, ours)


@pytest.mark.parametrize("softcap", [True, False], ids=["capped", "plain"])
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_logits(dtype, scaled, softcap):
    """Scaling (Cohere) and capping (Gemma-2) make a tensor of the logits' size each; tanh's is kept."""
    module = torch.nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=TORCH[dtype]).requires_grad_(False)
    x, ours = pair((B, S, WIDTH), dtype)
    head = Linear(WIDTH, VOCABULARY, leaf(module.weight))

    def real(x: torch.Tensor) -> torch.Tensor:
        logits = module(x)
        if scaled:
            logits = logits * 0.5
        if softcap:
            logits = logits / 30.0
            logits = torch.tanh(logits)
            logits = logits * 30.0
        return logits

    assert of_torch(real, x) == of_tape(lambda t, x: logits(t, x, head, softcap=softcap, scaled=scaled), ours)
