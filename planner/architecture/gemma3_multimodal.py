"""Gemma 3 with images: a SigLIP tower, a projector, and the text decoder."""

from __future__ import annotations

from planner.architecture import vision
from planner.architecture.decoder import Decoder
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.gemma import gemma3_decoder, gemma3_text
from planner.architecture.sections import TEXT, shared_head
from planner.architecture.table import Table


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/gemma3/modeling_gemma3.py, Gemma3ForConditionalGeneration.
    """
    text, image = config.section("text_config", default={}), config.section("vision_config", default={})
    hidden, patches = text.integer("hidden_size", default=2304), image.integer("hidden_size", default=768)

    vision.siglip(image, out.within("model.vision_tower."))
    out.parameter("model.multi_modal_projector.mm_input_projection_weight", (patches, hidden))
    out.norm("model.multi_modal_projector.mm_soft_emb_norm", patches)
    dims = gemma3_text(text, out.within("model.language_model."))
    shared_head(config, out, dims, tied=True)


def decoder(config: Fields) -> Decoder:
    """The structure of the text decoder, for batches without images."""
    return gemma3_decoder(config.section("text_config", default={}), prefix=TEXT)


FAMILIES = {"gemma3": Family(table, decoder)}
