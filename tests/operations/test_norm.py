"""Normalisations against transformers' modules on the CPU."""

from __future__ import annotations

import pytest

from planner.dtypes import DType
from planner.operations.norm import Norm, norm
from tests.live import TORCH, leaf, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")
gemma2 = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
olmo = pytest.importorskip("transformers.models.olmo.modeling_olmo")
olmo2 = pytest.importorskip("transformers.models.olmo2.modeling_olmo2")
cohere = pytest.importorskip("transformers.models.cohere.modeling_cohere")

BF16, FP32 = DType.BF16, DType.FP32
B, S, WIDTH = 2, 8, 32
MODULES = {
    "rms": lambda: llama.LlamaRMSNorm(WIDTH),
    "rms_plus_one": lambda: gemma2.Gemma2RMSNorm(WIDTH),
    "rms_fp32_weight": lambda: olmo2.Olmo2RMSNorm(WIDTH),
    "layer_fp32": lambda: cohere.CohereLayerNorm(WIDTH),
    "bare_layer": lambda: olmo.OlmoLayerNorm(WIDTH),
    "layer": lambda: torch.nn.LayerNorm(WIDTH),
}


@pytest.mark.parametrize("needs_grad", [True, False], ids=["grad", "first"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(("given", "stored"), [(FP32, FP32), (BF16, BF16), (BF16, FP32), (FP32, BF16)])
@pytest.mark.parametrize("kind", MODULES)
def test_norm(kind, given, stored, trained, needs_grad):
    """Bytes in forward, kept, in backward and left, for every mix of types that kbit-prepare and autocast make."""
    if kind == "layer" and (given, stored) != (FP32, FP32):
        pytest.skip("on the CPU the statistics of nn.LayerNorm are in the parameters' type; CUDA has them in fp32")
    module = MODULES[kind]().to(TORCH[stored]).requires_grad_(trained)
    x, ours = pair((B, S, WIDTH), given, grad=needs_grad)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    planned = Norm(kind, WIDTH, None if weight is None else leaf(weight), None if bias is None else leaf(bias))

    assert of_torch(module, x) == of_tape(lambda t, x: norm(t, x, planned), ours)
