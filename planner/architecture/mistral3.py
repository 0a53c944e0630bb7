"""Mistral Small 3.1 and Ministral 3: a Pixtral tower, a projector that merges patches, and a Mistral decoder."""

from __future__ import annotations

from planner.architecture import vision
from planner.architecture.blocks import head, read_dims
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.llama import layout
from planner.architecture.sections import filled, shared_head
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
    text, image = config.section("text_config", default=_TEXT), config.section("vision_config", default=_IMAGE)
    kind = text.text("model_type", default="mistral")
    if kind not in ("mistral", "ministral3"):
        raise UnsupportedModelError(
            f"text_config.model_type is '{kind[:40]}'; the text decoder of a mistral3 model is known as mistral or ministral3"
        )
    text = filled(text, **{**_BOTH, **(_MISTRAL if kind == "mistral" else _MINISTRAL3)})
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


FAMILIES = {"mistral3": Family(table), "ministral3": Family(ministral3)}
