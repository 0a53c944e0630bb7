"""Whether bitsandbytes reads a 4-bit weight as it is, in one fused kernel, or dequantises it whole before the product."""

from __future__ import annotations

from planner.dtypes import DType
from planner.formulas.weights import BLOCK_ELEMENTS
from planner.units import ceil_div
from planner.value import NamedTuple

ALWAYS_FUSED_TOKENS = 4
NEVER_FUSED_ABOVE_TOKENS = 1536
SMALL_WEIGHT_ELEMENTS = 4 << 20
TILE_COLUMNS = 64

MULTIPROCESSORS = {
    (7, 0): 80, (7, 5): 40, (8, 0): 108, (8, 6): 84, (8, 9): 128, (9, 0): 132, (10, 0): 148, (12, 0): 170, (12, 1): 48,
}  # fmt: skip
"""
Multiprocessors of the card most often meant by a compute capability, where the card itself does not say.

Source:
    NVIDIA's architecture whitepapers: V100, T4, A100, RTX A6000, RTX 4090, H100 SXM, B200, RTX 5090, GB10. Other cards of an
    architecture have other counts; the count moves thresholds between 8 and 512 tokens only.
"""


class Product(NamedTuple):
    """
    `y = x @ W.T` on a card.

    Attributes:
        tokens: Rows of x, M.
        outputs: Rows of W, N.
        inputs: Columns of W, K.
        sms: Multiprocessors of the card.
    """

    tokens: int
    outputs: int
    inputs: int
    sms: int

    @property
    def tiles(self) -> int:
        """Blocks of 64 outputs, which are spread over the multiprocessors."""
        return ceil_div(self.outputs, TILE_COLUMNS)

    def waves(self, numerator: int, denominator: int = 1) -> bool:
        """Whether the tiles fill the card numerator/denominator times."""
        return self.tiles * denominator >= self.sms * numerator


def reads_packed_weight(  # noqa: PLR0911 - a ladder, as bitsandbytes calibrated it
    tokens: int,
    out_features: int,
    in_features: int,
    compute_dtype: DType,
    capability: tuple[int, int],
    multiprocessors: int | None = None,
) -> bool:
    """
    Whether the forward of a 4-bit linear runs in the fused kernel, so that nothing is dequantised.

    The backward always dequantises.

    Args:
        tokens: Rows of x in one call.
        out_features: Rows of W, N.
        in_features: Columns of W, K.
        compute_dtype: Type of x.
        capability: The card's compute capability.
        multiprocessors: The card's multiprocessors; None takes the card most often meant by the capability.

    Source:
        bitsandbytes@0.50.2, backends/cuda/ops.py, gemm_4bit and _gemm_4bit_use_custom_cuda, calibrated there for each
        architecture.
    """
    if tokens > NEVER_FUSED_ABOVE_TOKENS or in_features % BLOCK_ELEMENTS:
        return False
    if tokens <= ALWAYS_FUSED_TOKENS:
        return True
    major = capability[0]
    if compute_dtype is DType.FP32 or major < 7 or (major == 7 and (capability[1] < 5 or compute_dtype is not DType.FP16)):
        return tokens < 8
    if capability == (8, 7) or major == 11:
        return False
    product = Product(tokens, out_features, in_features, multiprocessors or MULTIPROCESSORS.get(capability, 108))
    if major == 10:
        return tokens <= _datacenter_blackwell_limit(product)
    if out_features * in_features < SMALL_WEIGHT_ELEMENTS:
        return tokens <= _small_weight_limit(product, capability)
    if tokens < 8:
        return not _tiny_exception(product, capability)
    return tokens <= min(512, _large_weight_limit(product, capability))


def _datacenter_blackwell_limit(p: Product) -> int:
    if p.waves(3):
        return 32
    return 8 if p.waves(1) and p.inputs < p.outputs else 0


def _small_weight_limit(p: Product, capability: tuple[int, int]) -> int:
    """Weights below 4 Mi elements, where dequantising costs more than the product."""
    if p.inputs * 2 < p.outputs:
        return _small_wide_limit(p, capability)
    quarter_wave = not p.tiles * 4 > p.sms
    if capability == (8, 0) and quarter_wave:
        if p.inputs >= p.outputs:
            return 32 if p.tiles * 8 <= p.sms else 128
        return 384
    if capability == (7, 5) and p.tiles < p.sms and p.tokens > 8:
        return 64
    if quarter_wave:
        is_hbm = capability == (8, 0) or capability[0] == 9
        return 32 if p.inputs < p.outputs or is_hbm else 23
    return 16 if p.tiles * 2 <= p.sms else 0


def _small_wide_limit(p: Product, capability: tuple[int, int]) -> int:
    """Small weights with more than twice as many outputs as inputs."""
    low_wave = p.tiles * 3 < p.sms
    if capability == (8, 0):
        return 1536 if low_wave else 512
    if capability[0] == 9:
        return 512 if low_wave else 320
    if capability == (7, 5):
        if p.waves(3) or p.inputs < 704:
            return 320
        return 64 if p.inputs >= 1024 else 96
    if not p.waves(1) and p.tiles * p.inputs > p.sms * 320:
        return 192
    return 320


def _tiny_exception(p: Product, capability: tuple[int, int]) -> bool:
    """The calls of 6 and 7 tokens that the fused kernel loses on cards with HBM."""
    is_a100, is_hopper = capability == (8, 0), capability[0] == 9
    if not (is_a100 or is_hopper) or p.tokens < 6 or p.tiles < (36 if is_hopper else 48):
        return False
    if p.inputs > p.outputs:
        return not p.waves(3, 4)
    if p.inputs < p.outputs:
        return False
    return not p.waves(3, 5) if is_a100 else p.waves(3, 5) and not p.waves(3, 4)


def _large_weight_limit(p: Product, capability: tuple[int, int]) -> int:  # noqa: PLR0911 - the same
    if capability == (7, 5):
        if p.waves(3):
            return 128 if p.inputs < p.outputs else 64
        return 64 if p.tiles >= p.sms // 2 else 32
    if capability == (8, 0):
        return _a100_limit(p)
    if capability == (8, 6):
        if p.waves(1):
            return 128
        return 64 if p.tiles >= p.sms // 2 else 16
    if capability[0] == 9:
        return _hopper_limit(p)
    if capability == (12, 1) and p.waves(1):
        return 256
    if capability == (12, 0):
        return _blackwell_limit(p)
    return _ada_limit(p)


def _a100_limit(p: Product) -> int:  # noqa: PLR0911 - the same
    wide = p.inputs < p.outputs
    if p.waves(3):
        return 128
    if p.waves(1):
        return 64 if wide else 32
    if p.inputs >= p.outputs * 3 and p.tiles * 4 > p.sms:
        return 0
    if p.inputs == p.outputs and p.tiles >= 48 and not p.waves(3, 5):
        return 0
    if not p.waves(1, 2):
        if p.inputs <= p.outputs:
            return 128
        if p.waves(1, 3):
            return 0
    return 128 if p.tiles >= p.sms // 2 and wide else 16


def _hopper_limit(p: Product) -> int:
    for waves, limit in ((3, 64), (2, 48), (1, 32)):
        if p.waves(waves):
            return limit
    if p.tiles < p.sms // 2 or (p.inputs >= p.outputs and not p.waves(3, 4)):
        return 0
    return 16


def _blackwell_limit(p: Product) -> int:
    if p.waves(3):
        return 256
    if p.waves(2):
        return 128
    if p.waves(4, 5):
        return 96 if p.inputs >= p.outputs else 64
    if p.tiles >= p.sms // 2:
        return 64 if p.inputs * 2 >= p.outputs and p.tiles >= 128 else 8
    return 16 if p.inputs > p.outputs * 2 and p.tiles > 64 else 8


def _ada_limit(p: Product) -> int:  # noqa: PLR0911 - the same
    very_tall = p.inputs > p.outputs * 2
    if p.waves(3):
        return 256
    if p.waves(2):
        return 128
    if p.waves(4, 5):
        if very_tall or p.tiles >= 200:
            return 128
        if p.inputs >= p.outputs:
            return 128 if p.sms >= 60 else 32
        return 64
    if p.tiles >= p.sms // 2:
        if very_tall:
            return 64
        return 8 if p.tiles >= 64 else 32
    if p.inputs > p.outputs and p.tiles <= 48:
        return 12 if p.inputs >= p.outputs * 3 else 10
    return 16 if very_tall or p.tiles < 48 else 8
