"""The heads that are one with their loss, against the libraries' own functions with nothing but the kernels taken out."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from planner.dtypes import DType
from planner.operations import fused_head
from planner.operations.fused_head import chunked_loss
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


@pytest.mark.parametrize("metrics", [True, False], ids=["metrics", "plain"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    ("hidden_dtype", "head_dtype", "autocast"),
    [(FP32, FP32, None), (BF16, BF16, None), (BF16, BF16, BF16), (BF16, FP32, BF16), (FP32, FP32, BF16), (FP32, BF16, BF16)],
)
@pytest.mark.parametrize("vocab", [40, 64, 100, 150, 256])
@pytest.mark.parametrize("shape", [(1, 20), (2, 17), (1, 50), (2, 60)])
def test_trl_head(trl_head, shape, vocab, hidden_dtype, head_dtype, autocast, trained, metrics):
    """Forward, saved and backward bytes are those of the function, for vocabularies and batches on either side of a tile."""
    model = Model(vocab, head_dtype, trained=trained, bias=False)
    hidden = torch.randn(*shape, WIDTH).to(TORCH[hidden_dtype]).requires_grad_()
    outputs = ("log_probs", "entropy", "is_top1") if metrics else ("log_probs",)
    expected = trl_figures(trl_head, model, hidden, autocast, outputs)

    def planned(t: Tape, x: Tensor) -> Tensor:
        head = Linear(WIDTH, vocab, leaf(model.lm_head.weight))
        return chunked_loss(t, x, head, sequences=shape[0], metrics=metrics)

    assert expected == of_tape(planned, leaf(hidden), autocast=autocast)
