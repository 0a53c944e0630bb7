"""One training step on a tape: the decoder with the modules as the recipe leaves them, its loss, backward and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from planner.architecture.decoder import Attention, Decoder
from planner.dtypes import DType
from planner.engines.modules import Kernels, Modules
from planner.engines.resting import Resting
from planner.errors import UnsupportedRecipeError
from planner.formulas.blocks import allocated, total_allocated
from planner.formulas.gradients import clip_grad_norm
from planner.formulas.optimizer import VARIANTS, step_temporaries
from planner.ledger import Category, Phase
from planner.operations.attention import Positions
from planner.operations.decoder import Batch, decoder_layer, normalise
from planner.operations.elementwise import add_broadcast, dropout, expand, scale
from planner.operations.embedding import adapted_lookup, lookup
from planner.operations.fused_head import chunked_loss, liger_loss
from planner.operations.head import full_loss, logits
from planner.operations.lora import linear
from planner.operations.rotary import TABLES
from planner.preparation import Preparation, PreparedModule
from planner.recipe import Recipe
from planner.schedule import Tape
from planner.stack import Behaviours
from planner.tensors import Leaf, Storage, Tensor


def run_step(
    decoder: Decoder, preparation: Preparation, recipe: Recipe, known: Behaviours, resting: Resting, kernels: Kernels
) -> Tape:
    """
    The tape of a steady step: forward, backward, optimizer.

    Args:
        decoder: The family's structure.
        preparation: Its modules.
        recipe: The resolved recipe.
        known: What the stack does.
        resting: For what the optimizer walks over.
        kernels: What the card runs.
    """
    return Step(decoder, preparation, recipe, known, kernels).run(resting)


class Step:
    """A decoder on a tape. Of layers that are alike the first and the last are run."""

    def __init__(
        self, decoder: Decoder, preparation: Preparation, recipe: Recipe, known: Behaviours, kernels: Kernels
    ) -> None:
        self.decoder, self.preparation, self.recipe, self.known = decoder, preparation, recipe, known
        self.kernels = kernels
        self.t = Tape()
        self.tokens = recipe.tokens
        self.autocast = None if recipe.mixed_precision == "no" else DType(recipe.mixed_precision)
        self.modules = Modules(self.t, decoder.layer_prefix, preparation, recipe, kernels)

    def run(self, resting: Resting) -> Tape:
        """The whole step."""
        t = self.t
        with t.phase(Phase.FORWARD):
            earlier = self.accumulated(resting)
            inputs = [Storage(t, 8 * self.tokens, name, Category.INPUT) for name in ("input ids", "labels", "attention mask")]
            loss, output = self.forward()
        with t.phase(Phase.BACKWARD):
            t.category = Category.TEMPORARY
            t.backward(loss)
            del loss
            t.free_graph()
        with t.phase(Phase.OPTIMIZER_STEP):
            self.optimizer_step(resting)
            del earlier
        del output, inputs
        return t

    def accumulated(self, resting: Resting) -> Storage | None:
        """The gradients of earlier micro-batches, all of them alive from the start; new ones are added to them and die."""
        if self.recipe.grad_accum == 1:
            return None
        nbytes = sum(count * allocated(parameter.nbytes) for parameter, count in resting.trainables)
        return Storage(self.t, nbytes, "accumulated gradients", Category.GRADIENT)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """The loss, and the output where the entry point keeps it alive."""
        t, decoder, recipe = self.t, self.decoder, self.recipe
        head = self.modules.linear_of(self.modules.at(decoder.head, None))
        output: Tensor | None = None
        with t.autocasting(self.autocast) if self.autocast else nullcontext():
            hidden = self.backbone()
            if recipe.loss == "chunked":
                loss = chunked_loss(t, hidden, head, sequences=recipe.batch_size, metrics=recipe.entry_point == "trl")
            elif recipe.loss == "liger":
                loss = liger_loss(t, hidden, head, sequences=recipe.batch_size, adds_in_place=self.kernels.is_ampere)
            else:
                output = logits(t, hidden, head, softcap=decoder.logit_softcap, scaled=decoder.logit_scale)
                shifts = self.known.loss_extra_copies > 0 and recipe.batch_size > 1
                loss = full_loss(t, output, self.tokens, sequences=recipe.batch_size, shifts_logits=shifts)
            del hidden
        if output is not None:
            if self.autocast and self.known.outputs_to_fp32:
                t.category = Category.LOGITS
                output = t.cast(output.detach(), DType.FP32, "logits copied to fp32 on their way out")
                t.category = Category.ACTIVATION
            if not self.known.output_alive_in_backward:
                output = None
        return loss, output

    def backbone(self) -> Tensor:
        """Embedding, layers, final norm."""
        t, decoder = self.t, self.decoder
        held: list[Tensor] = []  # the looked-up embeddings keep their names until the model's forward returns
        x = self.embed(held)
        positions = self.positions(x, held[0].dtype)
        for region, repeat, layers in self.schedule(x.requires_grad):
            with nullcontext() if region is None else t.region(region, repeat):
                for index in layers:
                    x = self.run_layer(x, index, positions[id(decoder.layers[index])])
        for found in positions.values():
            found.outputs, found.is_looping = None, False
        if decoder.norm is not None:
            x = normalise(t, decoder.norm, x, self.modules.outer_norm(decoder.norm))
        if decoder.project_out:
            x = linear(t, x, self.modules.linear_of(self.modules.at(decoder.project_out, None)), decoder.project_out)
        return x

    def embed(self, held: list[Tensor]) -> Tensor:
        """
        Token (and position) embedding. What is looked up needs a gradient if it is trained, or if checkpointing made the trainer ask.

        Source:
            transformers@5.23.0, modeling_utils.py, enable_input_require_grads: a hook on the token embedding's module.
        """
        t, decoder = self.t, self.decoder
        embedding = self.modules.at(decoder.embedding, None)
        x = self.looked_up(embedding, self.tokens, scaled=decoder.embedding_scale)
        if self.recipe.gradient_checkpointing and not x.requires_grad:
            x = Leaf.of(x)
        if decoder.embedding_multiplier:
            x = scale(t, x, "multiplied embedding")
        if decoder.project_in:
            x = linear(t, x, self.modules.linear_of(self.modules.at(decoder.project_in, None)), decoder.project_in)
        held.append(x)
        if decoder.positions:
            position = self.modules.at(decoder.positions, None)
            copies = 1 if decoder.positions_by_token else self.recipe.batch_size
            held.append(self.looked_up(position, self.tokens // copies))
            x = add_broadcast(t, x, held[-1], copies, "embedding with positions")
        if decoder.embedding_norm is not None:
            x = normalise(t, decoder.embedding_norm, x, self.modules.outer_norm(decoder.embedding_norm))
        return dropout(t, x, decoder.dropout)

    def looked_up(self, row: PreparedModule, rows: int, *, scaled: bool = False) -> Tensor:
        """
        An embedding's output, with its adapter if it has one.

        Raises:
            UnsupportedRecipeError: The closed form does not know DoRA on an embedding.
        """
        t, width = self.t, row.module.shape[1]
        table, lora = self.modules.owned(row), self.modules.lora_of(row)
        if lora is None:
            x = lookup(t, table, rows, width)
            return scale(t, x, "scaled embedding") if scaled else x
        if lora.magnitude is not None:
            raise UnsupportedRecipeError(
                f"dora is on and targets match the embedding `{row.name}`, whose step under DoRA the closed form does not know",
                hint="leave it out of --targets, or pass plain LoRA",
            )
        return adapted_lookup(t, table, rows, width, lora, scaled=scaled)

    def positions(self, x: Tensor, embedded: DType) -> dict[int, Positions]:
        """
        What is computed once for all layers, by the identity of a layer's structure: position ids, a mask for each reach, cosines and
        sines.

        Source:
            transformers@5.23.0, models/gemma3/modeling_gemma3.py, Gemma3TextModel.forward: one of each by the layer's type.
        """
        t, decoder = self.t, self.decoder
        ids = t.new(self.recipe.seq_len, DType.INT64, "position ids", Category.INPUT)
        attentions = {id(layer): layer.attention for layer in decoder.layers}
        windows = dict.fromkeys(attention.sliding_window for attention in attentions.values())
        masks = {window: self.mask(embedded, window) for window in windows}
        width, dtype = decoder.rotary_dim, DType.FP32 if decoder.rotary_in_fp32 else x.dtype
        make = TABLES[decoder.table_style]
        rows = self.tokens if decoder.table_style == "three_axes" else self.recipe.seq_len
        products = dict(t.products)
        tables = [make(t, rows, width, dtype) for _ in range(decoder.rotary_tables if width else 0)]
        if not self.known.rotary_is_product:
            t.products = products
        found = {}
        for layer, attention in attentions.items():
            cos, sin = tables[attention.rotary_table] if tables else (None, None)
            mask = masks[attention.sliding_window]
            found[layer] = Positions(cos, sin, mask, ids, self.alibi(attention, x), unpads=bool(self.recipe.padding))
        return found

    def alibi(self, attention: Attention, x: Tensor) -> Tensor | None:
        """
        Biases [H, 1, S] for every sequence (BLOOM), or [H, 1, longest] in fp32 for all of them (MPT).

        Source:
            transformers@5.23.0, models/bloom/modeling_bloom.py BloomModel.forward; models/mpt/modeling_mpt.py build_mpt_alibi_tensor.
        """
        if not attention.alibi:
            return None
        if attention.alibi_length:
            return self.t.new(attention.heads * attention.alibi_length, DType.FP32, "positional bias", Category.INPUT)
        return self.t.new(self.tokens * attention.heads, x.dtype, "positional bias", Category.INPUT)

    def mask(self, dtype: DType, window: int | None) -> Tensor | None:
        """
        The attention mask that the model builds: none where sdpa can be causal by itself, which it cannot for padded sequences and those
        that reach the window; else bool (sdpa) or in the hidden dtype (eager).

        Source:
            transformers@5.23.0, masking_utils.py, sdpa_mask, eager_mask, _ignore_causal_mask_sdpa.
        """
        recipe, t = self.recipe, self.t
        square = recipe.seq_len * recipe.seq_len
        numel = recipe.batch_size * square
        implementation = self.implementation()
        if implementation == "eager":
            boolean = t.new(numel if recipe.padding else square, DType.BOOL, "causal mask", Category.INPUT)
            mask = t.new(numel, dtype, "causal mask", Category.INPUT)
            del boolean
            return t.new(numel, DType.BOOL, "causal mask", Category.INPUT) if self.decoder.boolean_mask else mask
        if implementation == "sdpa" and (
            recipe.padding or self.decoder.always_masked or (window is not None and recipe.seq_len >= window)
        ):
            copies = 1 if recipe.padding else recipe.batch_size  # without padding it is one for all sequences, seen by each
            return expand(t, t.new(numel // copies, DType.BOOL, "attention mask", Category.INPUT), copies)
        return None

    def implementation(self) -> str:
        """
        The attention implementation: the recipe's, but eager in place of sdpa where the family has no sdpa.

        Source:
            transformers@5.23.0, modeling_utils.py, get_correct_attn_implementation: sdpa falls back unless it was asked for by name.

        Raises:
            UnsupportedRecipeError: FlashAttention-2 on a family that it does not run on.
        """
        given = str(self.recipe.attn)
        if given == "flash_attention_2" and self.decoder.flash_refusal:
            raise UnsupportedRecipeError(f"attn is flash_attention_2, but {self.decoder.flash_refusal}", hint="pass --attn eager")
        return "eager" if given == "sdpa" and not self.decoder.supports_sdpa else given

    def kernel_name(self, attention: Attention, mask: Tensor | None) -> str:
        """
        The attention kernel that CUDA would run.

        Source:
            torch@2.13.0, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash needs sm80, no mask, heads of
            one width of at most 256 (and half types: `attend` sees those).
        """
        recipe, implementation = self.recipe, self.implementation()
        if implementation != "sdpa":
            return implementation
        half = self.autocast is not None or (recipe.dtype != "fp32" and not recipe.kbit_prepare) or recipe.compute_dtype != "fp32"
        fits = attention.value_dim == attention.head_dim <= 256
        flash = mask is None and half and fits and self.kernels.is_ampere
        return "flash" if flash else "efficient"

    def schedule(self, input_needs_grad: bool) -> list[tuple[int | None, int, Sequence[int]]]:
        """
        Which layers to run: a region, how often it occurs, the indices of its layers. Here each kind of layer is a region, and first
        instances come before last ones.
        """
        counts: dict[tuple[object, ...], list[int]] = {}
        for i, key in enumerate(self.kinds(input_needs_grad)):
            counts.setdefault(key, []).append(i)
        kinds = list(counts.values())
        firsts = [(kind, len(layers), (layers[0],)) for kind, layers in enumerate(kinds)]
        lasts = [(kind, len(layers), (layers[-1],)) for kind, layers in enumerate(kinds) if len(layers) > 1]
        return [*firsts, *lasts]

    def kinds(self, input_needs_grad: bool) -> list[tuple[object, ...]]:
        """
        Of each layer, what it does: layers of one kind do the same.

        Without a gradient into the embedding the first layer saves less than its siblings, and is a kind of its own. With one its input
        is a leaf: where no norm comes before the products, autocast keeps its copy of that, and of no other layer's input.
        """
        uniform = self.is_uniform()
        return [
            (id(layer), i == 0 and (layer.layout == "post" or not input_needs_grad), () if uniform else self.variants(i))
            for i, layer in enumerate(self.decoder.layers)
        ]

    def is_uniform(self) -> bool:
        """Whether every name has one row: then layers can differ by their structure only."""
        return len(self.preparation.by_name) == len(self.preparation.modules)

    def variants(self, layer: int) -> tuple[int, ...]:
        """Which of its rows each name of a layer has, where a name has several: layers that differ there are different kinds."""
        prefix = self.decoder.layer_prefix
        found = []
        for name, rows in self.preparation.by_name.items():
            if len(rows) > 1 and name.startswith(prefix):
                found.append(next((i for i, r in enumerate(rows) if r.module.layers and layer in r.module.layers), -1))
        return tuple(found)

    def run_layer(self, x: Tensor, index: int, positions: Positions) -> Tensor:
        """One layer, checkpointed where the recipe says so."""
        t, recipe = self.t, self.recipe
        layer = self.decoder.layers[index]
        weights = self.modules.weights(layer, index)
        kernel = self.kernel_name(layer.attention, positions.mask)
        batch = Batch(recipe.batch_size, recipe.seq_len, kernel, self.kernels.is_ampere)

        def forward(x: Tensor) -> Tensor:
            return decoder_layer(t, x, layer, weights, batch, positions)

        if recipe.gradient_checkpointing:
            return t.checkpoint(forward, x, reentrant=bool(recipe.use_reentrant))
        return forward(x)

    def optimizer_step(self, resting: Resting) -> None:
        """Clipping, the step, and the end of the gradients (`zero_grad(set_to_none=True)`)."""
        t, recipe = self.t, self.recipe
        if recipe.max_grad_norm:
            numels = [(parameter.numel, count) for parameter, count in resting.trainables]
            for moment in clip_grad_norm(numels, resting.trainables[0][0].dtype):
                held = Storage(t, total_allocated(moment), "gradient norms", Category.TEMPORARY)
                del held
        variant = VARIANTS[str(recipe.optim)]
        temporaries = step_temporaries(variant, [resting.trainables])
        if temporaries:
            step = Storage(t, temporaries, f"{recipe.optim} step", Category.TEMPORARY)
            del step
        self.zero_grad()

    def zero_grad(self) -> None:
        """`zero_grad(set_to_none=True)`."""
        for leaf in self.modules.leaves:
            leaf.grad = None
