"""The heads that are one with their loss, against the libraries' own functions with nothing but the kernels taken out."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from planner.dtypes import DType
from planner.operations import fused_head
from planner.operations.fused_head import chunked_loss, liger_loss
from planner.operations.linear import Linear
from planner.schedule import Tape
from planner.tensors import Tensor
from tests.live import TORCH, Figures, leaf, of_tape, of_torch

torch = pytest.importorskip("torch")

BF16, FP32 = DType.BF16, DType.FP32
WIDTH, TILE_TOKENS, TILE_VOCABULARY = 16, 32, 64


class NoKernel:
    """A Triton kernel that is launched and does nothing: what it works on was allocated before."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.fixture
def trl_head(monkeypatch: pytest.MonkeyPatch):
    """TRL's fused head as it runs on CUDA, with small tiles here and there."""
    kernels = pytest.importorskip("trl.kernels.chunked_logprob")
    utils = pytest.importorskip("trl.trainer.utils")
    assert (kernels.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE) == (fused_head.TILE_TOKENS, fused_head.TILE_VOCABULARY)
    for module in (kernels, utils):
        monkeypatch.setattr(module, "_use_triton", lambda device: True)
    monkeypatch.setattr(kernels, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b)), raising=False)
    for name in ("_forward_kernel", "_backward_kernel"):
        monkeypatch.setattr(kernels, name, NoKernel())
    monkeypatch.setattr(kernels, "_addmm_fp32", lambda acc, a, b: None)  # on CUDA one addmm into acc, without copies
    monkeypatch.setattr(kernels, "TOKEN_CHUNK_SIZE", TILE_TOKENS)
    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", TILE_VOCABULARY)
    monkeypatch.setattr(fused_head, "TILE_TOKENS", TILE_TOKENS)
    monkeypatch.setattr(fused_head, "TILE_VOCABULARY", TILE_VOCABULARY)
    return utils.add_fused_lm_head


class Model(torch.nn.Module):
    """A backbone that gives the same hidden states each time, and a head."""

    config = SimpleNamespace(get_text_config=SimpleNamespace)

    def __init__(self, vocab: int, dtype: DType, *, trained: bool, bias: bool) -> None:
        super().__init__()
        self.lm_head = torch.nn.Linear(WIDTH, vocab, bias=bias, dtype=TORCH[dtype]).requires_grad_(trained)
        self.hidden: torch.Tensor

    def forward(self, input_ids):
        raise AssertionError

    def base_model(self, **kwargs):
        return SimpleNamespace(last_hidden_state=self.hidden)

    def get_output_embeddings(self):
        return self.lm_head


def trl_figures(add_fused_lm_head, model: Model, hidden: torch.Tensor, autocast: DType | None, outputs) -> Figures:
    """The real forward, and the loss as SFTTrainer.compute_loss takes it."""
    add_fused_lm_head(model, outputs=outputs)
    labels = torch.zeros(hidden.shape[:2], dtype=torch.int64)

    def step(hidden: torch.Tensor) -> torch.Tensor:
        model.hidden = hidden
        with torch.autocast("cpu", TORCH[autocast]) if autocast else nullcontext():
            out = model(labels=labels, fused_lm_head=True)
        if len(outputs) == 1:
            return out.loss
        per_token_loss = -out.log_probs
        return per_token_loss.sum() / out.label_mask.sum().clamp(min=1)

    return of_torch(step, hidden)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("hidden_dtype", "head_dtype", "autocast"),
    [(FP32, FP32, None), (BF16, BF16, None), (BF16, BF16, BF16), (BF16, FP32, BF16), (FP32, FP32, BF16), (FP32, BF16, BF16)],
)
@pytest.mark.parametrize("vocab", [40, 100, 150])
@pytest.mark.parametrize("shape", [(1, 20), (1, 50), (2, 60)])
def test_trl_head(trl_head, shape, vocab, hidden_dtype, head_dtype, autocast, trained):
    """Forward, saved and backward bytes are those of the function, for vocabularies and batches on either side of a tile."""
    model = Model(vocab, head_dtype, trained=trained, bias=False)
    hidden = torch.randn(*shape, WIDTH).to(TORCH[hidden_dtype]).requires_grad_()
    metrics = shape[0] == 1
    outputs = ("log_probs", "entropy", "is_top1") if metrics else ("log_probs",)
    expected = trl_figures(trl_head, model, hidden, autocast, outputs)

    head = Linear(WIDTH, vocab, leaf(model.lm_head.weight))

    def planned(t: Tape, x: Tensor) -> Tensor:
        return chunked_loss(t, x, head, sequences=shape[0], metrics=metrics)

    assert expected == of_tape(planned, leaf(hidden), autocast=autocast)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch):
    """Liger's loss with its kernels taken out, and the test that asks for a CUDA device answered as there."""
    fused = pytest.importorskip("liger_kernel.ops.fused_linear_cross_entropy")
    losses = pytest.importorskip("liger_kernel.transformers.model.loss_utils")
    for name in ("liger_cross_entropy_kernel", "element_mul_kernel"):
        monkeypatch.setattr(fused, name, NoKernel())

    def can_use_mm_out(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
        compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        return hidden.dtype == weight.dtype == compute

    monkeypatch.setattr(fused, "_can_use_mm_out", can_use_mm_out)
    return losses.LigerForCausalLMLoss


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("hidden_dtype", "head_dtype", "autocast"),
    [(FP32, FP32, None), (BF16, BF16, None), (BF16, BF16, BF16), (BF16, FP32, BF16), (FP32, FP32, BF16), (FP32, BF16, BF16)],
)
@pytest.mark.parametrize("vocab", [12, 40, 150])
@pytest.mark.parametrize("shape", [(1, 20), (2, 60)])
def test_liger_loss(liger, shape, vocab, hidden_dtype, head_dtype, autocast, trained):
    """Forward, saved and backward bytes are those of the function, where its products do not add in place (below compute 8.0)."""
    hidden = torch.randn(*shape, WIDTH).to(TORCH[hidden_dtype]).requires_grad_()
    weight = torch.randn(vocab, WIDTH).to(TORCH[head_dtype]).requires_grad_(trained)
    labels = torch.zeros(shape, dtype=torch.int64)

    def real(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", TORCH[autocast]) if autocast else nullcontext():
            return liger(hidden, weight, labels, WIDTH)

    head = Linear(WIDTH, vocab, leaf(weight))

    def planned(t: Tape, x: Tensor) -> Tensor:
        return liger_loss(t, x, head, sequences=shape[0], adds_in_place=False)

    assert of_torch(real, hidden) == of_tape(planned, leaf(hidden), autocast=autocast)


def test_liger_counted_by_hand():
    """
    Llama-3.2-1B's head at 2 x 1024 tokens in bf16: 64 rows of logits, the gradient of the hidden states, and nothing of [T, V].
    """
    T, d, V = 2048, 2048, 128256
    rows = 64  # the next power of two from T / ceil(V / d) = 2048 / 63
    hidden, weight = Tensor(None, T * d, BF16, requires_grad=True), Tensor(None, V * d, BF16)

    def planned(t: Tape, x: Tensor) -> Tensor:
        return liger_loss(t, x, Linear(d, V, weight), sequences=2, adds_in_place=True)

    grad, labels, loss_and_mask = 2 * T * d, 8 * (T + 2) + 8 * T, 5 * T
    expected = Figures(grad + labels + loss_and_mask + 2 * rows * V, grad, grad, grad)

    assert expected == of_tape(planned, hidden)
