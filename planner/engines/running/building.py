"""
A model on its device, loaded, quantised, prepared and wrapped by the installed libraries in their own order.

`from_pretrained` itself runs, over a checkpoint whose tensors have no data (a trace) or are made when they are read (a measurement):
what is materialised when, in which dtype, on which device and what is allocated ahead is its own doing. So do PEFT's preparation and
injection, and TRL's head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from planner.engines.running.blueprint import DTYPES, Blueprint, quiet, skeleton
from planner.engines.running.books import Books
from planner.engines.running.layers import Instances
from planner.engines.running.older import dtype_argument, loading_arguments, stored_tensors
from planner.engines.running.tensors import name_map, name_model
from planner.errors import UnsupportedModelError
from planner.ledger import Phase
from planner.recipe import Recipe
from planner.stack import Behaviours
from planner.value import NamedTuple


def import_libraries(recipe: Recipe) -> None:
    """Import what a run imports late: tensors that modules make when they are imported are none of the run's."""
    import accelerate.utils
    import peft
    import transformers

    _ = accelerate.utils.convert_to_fp32, peft.prepare_model_for_kbit_training, transformers.Trainer
    if recipe.loss == "chunked":
        import trl.trainer.utils

        _ = trl.trainer.utils.add_fused_lm_head


class Building(NamedTuple):
    """
    A model that is ready for its first step.

    Attributes:
        model: As the entry point calls it.
        base: Without the wrapper of PEFT.
        trainable: What is trained, by name.
    """

    model: Any
    base: Any
    trainable: dict[str, nn.Parameter]


def build(
    blueprint: Blueprint, recipe: Recipe, known: Behaviours, books: Books, source: str | None = None, revision: str | None = None
) -> Building:
    """
    Load, quantise, prepare and wrap, on the card.

    Args:
        blueprint: What to build.
        recipe: The resolved recipe.
        known: Facts of the installed stack, for what a recipe names and no library does by itself.
        books: The active books, which say where the model goes and what the loader reads.
        source: A Hub id or a folder that it reads instead.
        revision: Of a Hub id.
    """
    with books.during(Phase.LOAD):
        model = _load(blueprint, recipe, books, source, revision)
    base = model
    books.vocab_size = getattr(model.config.get_text_config(), "vocab_size", None)
    with books.during(Phase.PREPARE):
        model.config.use_cache = False
        if recipe.kbit_prepare:
            model = _kbit_prepare(model, recipe, books)
        if not recipe.is_quantized and recipe.entry_point == "loop":
            model.to(books.device)
        if recipe.method != "full":
            with _owned(blueprint.instances, books):
                model = _wrap(model, recipe)
        if known.kbit_upcast == "norms":
            _cast_back(model)
        if not recipe.is_quantized:
            model.to(books.device)
        if recipe.entry_point == "trl" and recipe.is_quantized:
            _cast_trainable(model, known)
        _cast_adapters(model, recipe)
        if recipe.gradient_checkpointing:
            _checkpoint(model, recipe)
        if recipe.loss == "chunked":
            _fuse_head(base)
        model.train()
    name_model(model, books, blueprint.instances)
    name_map(books)
    if books.device == "cpu":
        books.name_tables()
    return Building(model, base, {name: p for name, p in model.named_parameters() if p.requires_grad})


def _load(blueprint: Blueprint, recipe: Recipe, books: Books, source: str | None, revision: str | None) -> Any:
    instances = blueprint.instances
    more: dict[str, Any] = {} if revision is None else {"revision": revision}
    if source is None:
        bare = skeleton(blueprint.model_class, blueprint.config, DTYPES[recipe.dtype], blueprint.attn)
        more["state_dict"] = books.checkpoint(stored_tensors(bare), instances.of_name if instances else _nobody)
    more |= loading_arguments(to_card=recipe.is_quantized)
    quantization = _quantization(recipe)
    if quantization is not None:
        more["quantization_config"] = quantization
        if books.device == "cpu":
            more["device_map"] = {"": "cpu"}  # else transformers looks for a card
    with quiet(), _warm_up(instances, books):
        return blueprint.model_class.from_pretrained(  # type: ignore[attr-defined]
            source,
            config=blueprint.config,
            attn_implementation=blueprint.attn,
            **dtype_argument(DTYPES[recipe.dtype]),
            **more,
        )


def _nobody(_: str) -> None:
    """No layer repeats."""


def _quantization(recipe: Recipe) -> BitsAndBytesConfig | None:
    if not recipe.is_quantized:
        return None
    if recipe.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.quantization,
        bnb_4bit_use_double_quant=recipe.double_quant,
        bnb_4bit_compute_dtype=DTYPES[recipe.compute_dtype],
    )


@contextmanager
def _warm_up(instances: Instances | None, books: Books) -> Iterator[None]:
    """
    What transformers asks of the allocator ahead is counted for all instances of what repeats, and the history knows which storage it is.

    Source:
        transformers@5.23.0, modeling_utils.py, caching_allocator_warmup, get_total_byte_count.
    """
    from transformers import modeling_utils

    count = getattr(modeling_utils, "get_total_byte_count", None)
    ask = getattr(modeling_utils, "caching_allocator_warmup", None)
    missing = max(instances.repeated.count - 3, 0) if instances else 0

    def counted(model: Any, devices: dict[str, Any], *rest: Any) -> dict[Any, int]:
        assert count is not None
        found: dict[Any, int] = dict(count(model, devices, *rest))
        second = {name: device for name, device in devices.items() if instances and instances.of_name(name) == 1}
        for device, nbytes in count(model, second, *rest).items() if second else ():
            found[device] += missing * nbytes
        return found

    def asked(*args: Any, **kwargs: Any) -> None:
        assert ask is not None
        before = len(books.history.sizes)
        ask(*args, **kwargs)
        if len(books.history.sizes) > before:
            books.history.warm_up = before
            books.history.names[before] = "warm-up of the loader"

    with ExitStack() as stack:
        if count is not None and ask is not None:
            stack.enter_context(mock.patch.object(modeling_utils, "get_total_byte_count", counted))
            stack.enter_context(mock.patch.object(modeling_utils, "caching_allocator_warmup", asked))
        yield


def _kbit_prepare(model: Any, recipe: Recipe, books: Books) -> Any:
    from peft import prepare_model_for_kbit_training

    with quiet(), mock.patch.object(torch.cuda, "empty_cache", books.flush):
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=recipe.gradient_checkpointing)


def _wrap(model: Any, recipe: Recipe) -> Any:
    """
    PEFT's adapters.

    Raises:
        UnsupportedModelError: PEFT refuses them on this model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.dropout,
        bias="none",
        use_dora=recipe.dora,
        use_rslora=recipe.rslora,
        rank_pattern=dict(recipe.rank_pattern),
        modules_to_save=list(recipe.modules_to_save) or None,
        target_modules=recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            return get_peft_model(model, config)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise UnsupportedModelError(
            f"PEFT refuses the adapters: {str(error).splitlines()[0]}", hint="change --targets, --dropout or --dora as it asks"
        ) from error


@contextmanager
def _owned(instances: Instances | None, books: Books) -> Iterator[None]:
    """Inside, PEFT's adapters belong to the instance of the layer that they are made for, from their birth on."""
    from peft.tuners.lora import LoraModel

    create = LoraModel._create_and_replace

    def owned(lora: Any, config: Any, adapter: str, target: Any, name: str, parent: Any, current_key: str, **more: Any) -> None:
        with books.meaning(books.purpose, instances.of_name(current_key) if instances else None):
            create(lora, config, adapter, target, name, parent, current_key, **more)

    with mock.patch.object(LoraModel, "_create_and_replace", owned):
        yield


def _cast_trainable(model: nn.Module, known: Behaviours) -> None:
    """
    What SFTTrainer does over a quantised base.

    Source:
        trl@1.16.0, trainer/sft_trainer.py, SFTTrainer.__init__.
    """
    for name, param in model.named_parameters():
        if param.requires_grad and known.trains_quantized_in is not None and "lora_magnitude_vector" not in name:
            param.data = param.data.to(torch.bfloat16)


def _cast_back(model: nn.Module) -> None:
    """
    What SFTTrainer of old does over a 4-bit base that it has prepared itself.

    Source:
        trl@0.13.0, trainer/sft_trainer.py, SFTTrainer.__init__; 0.26 no longer does.
    """
    from trl.trainer.utils import peft_module_casting_to_bf16

    peft_module_casting_to_bf16(model)


def _cast_adapters(model: nn.Module, recipe: Recipe) -> None:
    """A dtype of adapters that the recipe names and nothing gave yet."""
    if recipe.method == "full":
        return
    wanted = DTYPES[str(recipe.adapter_dtype)]
    for name, param in model.named_parameters():
        if param.requires_grad and ("lora_A" in name or "lora_B" in name or "lora_embedding" in name) and param.dtype is not wanted:
            param.data = param.data.to(wanted)


def _checkpoint(model: Any, recipe: Recipe) -> None:
    with quiet():
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": bool(recipe.use_reentrant)})
        if recipe.method != "full":
            model.enable_input_require_grads()


class _NoLaunch:
    """A Triton kernel that is launched and does nothing: what it works on was allocated before."""

    def __getitem__(self, _: Any) -> Any:
        return lambda *_, **__: None


@contextmanager
def without_launches() -> Iterator[None]:
    """
    Inside, TRL's fused head takes its path for Triton, whose kernels are not launched.

    Source:
        trl@1.16.0, kernels/chunked_logprob.py.
    """
    from types import SimpleNamespace

    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    replaced: dict[str, Any] = {
        "_use_triton": lambda _: True,
        "triton": SimpleNamespace(cdiv=lambda a, b: -(-a // b)),
        "_forward_kernel": _NoLaunch(),
        "_backward_kernel": _NoLaunch(),
        "_addmm_fp32": lambda *_: None,  # on CUDA one addmm into the accumulator, without copies
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(chunked_logprob, name, value, create=True))
        stack.enter_context(mock.patch.object(utils, "_use_triton", replaced["_use_triton"]))
        yield


def _fuse_head(model: Any) -> None:
    """
    TRL's head and loss in one, as SFTTrainer asks for it.

    Source:
        trl@1.16.0, trainer/sft_trainer.py, SFTTrainer.__init__; trainer/utils.py, add_fused_lm_head.
    """
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
