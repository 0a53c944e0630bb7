"""MobileNet V5, the image tower of Gemma 3n, which transformers takes from timm."""

from __future__ import annotations

from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import UnsupportedModelError

_KNOWN = "mobilenetv5_300m_enc"
_STEM = 64
_FUSED = 2048


def tower(config: Fields, out: Table) -> None:
    """
    The 300M encoder: a stem, four stages, and the fusion of the last two.

    Raises:
        UnsupportedModelError: The config names another timm model, or changes this one.

    Source:
        timm@1.0.31, models/mobilenetv5.py, _gen_mobilenet_v5, MobileNetV5MultiScaleFusionAdapter; models/_efficientnet_blocks.py,
        EdgeResidual, UniversalInvertedResidual, MobileAttention.
    """
    name = config.text("architecture", default=_KNOWN)
    if name != _KNOWN or config.raw("model_args"):
        given = name if name != _KNOWN else f"{name} with model_args"
        raise UnsupportedModelError(
            f"vision_config.architecture is '{given[:60]}'; the only image tower of this family that is known is {_KNOWN}"
        )
    out.convolution("conv_stem.conv", (_STEM, 3, 3, 3), bias=True)
    out.norm("conv_stem.bn", _STEM)
    _edge(out.within("blocks.0.*.", (0,)), _STEM, 128)
    _edge(out.within("blocks.0.*.", (1, 2)), 128, 128)
    _inverted(out.within("blocks.1.*.", (0,)), 128, 256, expansion=6, start=3, middle=5)
    _inverted(out.within("blocks.1.*.", (1, 3)), 256, 256, expansion=4, start=5)
    _inverted(out.within("blocks.1.*.", (2, 4)), 256, 256, expansion=4, start=3)
    _inverted(out.within("blocks.2.*.", (0,)), 256, 640, expansion=6, start=5, middle=5)
    _inverted(out.within("blocks.2.*.", range(1, 8)), 640, 640, expansion=4, start=5)
    _inverted(out.within("blocks.2.*.", (8,)), 640, 640, expansion=1)
    _attention(out.within("blocks.2.*.", range(9, 37, 2)), 640, heads=12, head_dim=64, pooled=True)
    _inverted(out.within("blocks.2.*.", range(10, 37, 2)), 640, 640, expansion=2)
    _inverted(out.within("blocks.3.*.", (0,)), 640, 1280, expansion=6, start=5, middle=5)
    _attention(out.within("blocks.3.*.", range(1, 39, 2)), 1280, heads=16, head_dim=96, pooled=False)
    _inverted(out.within("blocks.3.*.", range(2, 39, 2)), 1280, 1280, expansion=2)
    _projections(out.within("msfa.ffn."), 640 + 1280, _FUSED, expansion=2)
    out.norm("msfa.norm", _FUSED)


def _edge(block: Table, inputs: int, outputs: int) -> None:
    """A full convolution that widens four times, and a pointwise one that narrows."""
    block.convolution("conv_exp", (4 * inputs, inputs, 3, 3))
    block.norm("bn1", 4 * inputs)
    block.convolution("conv_pwl", (outputs, 4 * inputs, 1, 1))
    block.norm("bn2", outputs)


def _inverted(block: Table, inputs: int, outputs: int, *, expansion: int, start: int = 0, middle: int = 0) -> None:
    """Depthwise convolutions of these kernels (0: none) before and inside a pair of pointwise ones."""
    if start:
        block.convolution("dw_start.conv", (inputs, 1, start, start))
        block.norm("dw_start.bn", inputs)
    _projections(block, inputs, outputs, expansion=expansion, middle=middle)
    block.parameter("layer_scale.gamma", (outputs,))


def _projections(block: Table, inputs: int, outputs: int, *, expansion: int, middle: int = 0) -> None:
    width = expansion * inputs
    block.convolution("pw_exp.conv", (width, inputs, 1, 1))
    block.norm("pw_exp.bn", width)
    if middle:
        block.convolution("dw_mid.conv", (width, 1, middle, middle))
        block.norm("dw_mid.bn", width)
    block.convolution("pw_proj.conv", (outputs, width, 1, 1))
    block.norm("pw_proj.bn", outputs)


def _attention(block: Table, width: int, *, heads: int, head_dim: int, pooled: bool) -> None:
    """Attention of many queries over one key, which is pooled first in the wider image."""
    block.norm("norm", width)
    block.convolution("attn.query.proj", (heads * head_dim, width, 1, 1))
    for name in ("key", "value"):
        if pooled:
            block.convolution(f"attn.{name}.down_conv", (width, 1, 3, 3))
            block.norm(f"attn.{name}.norm", width)
        block.convolution(f"attn.{name}.proj", (head_dim, width, 1, 1))
    block.convolution("attn.output.proj", (width, heads * head_dim, 1, 1))
    block.parameter("layer_scale.gamma", (width,))
