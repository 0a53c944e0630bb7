"""Mistral Small 3.1 and Ministral 3: a Pixtral tower, a projector that merges patches, and a Mistral decoder."""

from __future__ import annotations

from planner.architecture import vision
from planner.architecture.blocks import head, read_dims
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.llama import layout, mistral_decoder
from planner.architecture.sections import TEXT, filled, shared_head
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table
from planner.errors import UnsupportedModelError

# What the composite's class fills in where a whole section is missing.
_TEXT = {"num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 32_768, "head_dim": 128, "vocab_size": 131_072}
_IMAGE = {"patch_size": 14}

# The defaults of the two text classes.
_MISTRAL = {"num_hidden_layers": 32, "vocab_size": 32_000}
_MINISTRAL3 = {"num_hidden_layers": 34, "vocab_size": 131_072, "head_dim": 128}
_BOTH = {"hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32}


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/mistral3/modeling_mistral3.py, Mistral3ForConditionalGeneration.
    """
    image = config.section("vision_config", default=_IMAGE)
    text, _ = _text(config)
    dims = read_dims(text, kv_heads=8)
    patches = image.integer("hidden_size", default=1024)
    merged = patches * config.integer("spatial_merge_size", default=2) ** 2
    bias = config.flag("multimodal_projector_bias", default=False)
    chosen = config.raw("vision_feature_layer", -1)
    taken = len(chosen) if isinstance(chosen, (list, tuple)) else 1

    vision.pixtral(image, out.within("model.vision_tower."))
    projector = out.within("model.multi_modal_projector.")
    projector.norm("norm", patches)
    projector.linear("patch_merger.merging_layer", merged, patches)
    projector.linear("linear_1", patches * taken, dims.hidden, bias=bias)
    projector.linear("linear_2", dims.hidden, dims.hidden, bias=bias)
    layout(text, out.within("model.language_model."), dims)
    shared_head(config, out, dims, tied=True)


def ministral3(config: Fields, out: Table) -> None:
    """
    The module table of the text model alone.

    Source:
        transformers@5.23.0, models/ministral3/modeling_ministral3.py, Ministral3ForCausalLM.
    """
    config = filled(config, **{**_BOTH, **_MINISTRAL3})
    head(out, layout(config, out.within("model."), read_dims(config, kv_heads=8)))


def _text(config: Fields) -> tuple[Fields, str]:
    """The config of the text decoder with its class's defaults, and which class that is."""
    text = config.section("text_config", default=_TEXT)
    kind = text.text("model_type", default="mistral")
    if kind not in ("mistral", "ministral3"):
        raise UnsupportedModelError(
            f"text_config.model_type is '{kind[:40]}'; the text decoder of a mistral3 model is known as mistral or ministral3"
        )
    return filled(text, **{**_BOTH, **(_MISTRAL if kind == "mistral" else _MINISTRAL3)}), kind


def decoder(config: Fields) -> Decoder:
    """The structure of the text decoder, for batches without images."""
    text, kind = _text(config)
    return mistral_decoder(text, prefix=TEXT) if kind == "mistral" else _ministral3_decoder(text, prefix=TEXT)


def ministral3_decoder(config: Fields) -> Decoder:
    """The structure of the text model alone."""
    return _ministral3_decoder(filled(config, **{**_BOTH, **_MINISTRAL3}), prefix="model.")


def _ministral3_decoder(config: Fields, *, prefix: str) -> Decoder:
    """
    Llama's structure, with a window if the config has one, and queries scaled by their positions.

    Source:
        transformers@5.23.0, models/ministral3/modeling_ministral3.py, Ministral3Attention.forward.
    """
    window = config.optional_integer("sliding_window")
    return llama_like(
        read_dims(config, kv_heads=8),
        prefix=prefix,
        act=config.text("hidden_act", default="silu"),
        attention={"sliding_window": window, "scaled_by_position": True, **attention_dropout(config)},
    )


FAMILIES = {"mistral3": Family(table, decoder), "ministral3": Family(ministral3, ministral3_decoder)}
