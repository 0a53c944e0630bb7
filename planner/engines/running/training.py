"""
The steps of a run: batches, forward and loss, backward, clipping, the optimizer, an evaluation, a save.

The trainers are not run, since what they do between the steps of a loop has no memory; what their steps do has, and is done here in
their order, with their own functions where these stand alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from planner.engines.running.blueprint import DTYPES
from planner.engines.running.books import Books
from planner.engines.running.building import Building
from planner.engines.running.layers import Instances
from planner.engines.running.tensors import name_gradients, name_states
from planner.ledger import Category, Phase
from planner.recipe import Recipe
from planner.stack import Behaviours


class Training:
    """
    A run of a few steps.

    Args:
        building: The model.
        recipe: The resolved recipe.
        known: Facts of the installed stack.
        books: The active books.
        instances: Which layers are which instance.

    Attributes:
        optimizer: With the groups that the entry point makes.
    """

    def __init__(
        self, building: Building, recipe: Recipe, known: Behaviours, books: Books, instances: Instances | None
    ) -> None:
        self.building, self.recipe, self.known, self.books, self.instances = building, recipe, known, books, instances
        self.model = building.model
        self.autocast = None if recipe.mixed_precision == "no" else DTYPES[recipe.mixed_precision]
        self.optimizer = self._optimizer()

    # The optimizer

    def _optimizer(self) -> Any:
        """The optimizer, with the groups that the entry point makes."""
        cls, arguments = _optimizer_class(str(self.recipe.optim), self.recipe)
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.recipe.entry_point == "loop":
            return cls(list(trainable.values()), **arguments)
        from transformers import Trainer

        decayed = set(Trainer.get_decay_parameter_names(SimpleNamespace(), self.model))
        groups = [
            {"params": [p for name, p in trainable.items() if (name in decayed) is decays], "weight_decay": 0.0}
            for decays in (True, False)
        ]
        made = cls(groups, **arguments)
        if arguments.get("optim_bits") == 8:
            self._keep_embeddings_in_32_bit()
        return made

    def _keep_embeddings_in_32_bit(self) -> None:
        """Source: transformers@5.23.0, trainer.py, Trainer.create_optimizer."""
        from bitsandbytes.optim import GlobalOptimManager

        manager = GlobalOptimManager.get_instance()
        for module in self.model.modules():
            if isinstance(module, nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})

    @property
    def paged_bytes(self) -> int:
        """Bytes of optimizer state in CUDA managed memory, of the whole model."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        return sum(
            self._times(names[id(p)]) * x.untyped_storage().nbytes()
            for p, state in self.optimizer.state.items()
            for x in state.values()
            if getattr(x, "is_paged", False)
        )

    @property
    def num_trainable_parameters(self) -> int:
        """Elements that are trained, in the whole model."""
        return sum(self._times(name) * p.numel() for name, p in self.building.trainable.items())

    @property
    def num_quantized_parameters(self) -> int:
        """Elements of quantised weights, in the whole model."""
        found = 0
        for name, p in self.model.named_parameters():
            state = getattr(p, "quant_state", None)
            if state is not None:
                found += self._times(name) * state.shape.numel()
            elif p.dtype is torch.int8:
                found += self._times(name) * p.numel()
        return found

    def _times(self, name: str) -> int:
        """How often a parameter's like occurs in the whole model."""
        return self.instances.times(self._owner(name)) if self.instances else 1

    # Steps

    def step(self) -> None:
        """One optimizer step: its micro-batches, clipping, the update, and the end of the gradients."""
        books, recipe = self.books, self.recipe
        outputs: list[Any] = []
        for _ in range(recipe.grad_accum):
            with books.during(Phase.FORWARD):
                outputs.clear()
                batch = self._batch()
                loss, output = self._forward(batch)
                books.loss(loss)
                outputs.append(output)
                del output
            with books.during(Phase.BACKWARD), _no_inheritance(books):
                if recipe.grad_accum > 1 and recipe.entry_point != "loop":
                    loss = loss / recipe.grad_accum
                loss.backward()
                books.enter(None)
                del loss
                if recipe.entry_point == "loop":
                    outputs.append(batch)
                del batch
            name_gradients(self.model, books, self.instances)
        with books.during(Phase.OPTIMIZER_STEP), books.updating():
            if recipe.max_grad_norm:
                torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], recipe.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            outputs.clear()
        name_states(self.optimizer, [self.model], books, self.instances)

    def _batch(self) -> dict[str, Any]:
        """Token ids, labels and, where there is padding, a mask, moved to the card."""
        recipe = self.recipe
        shape = (recipe.batch_size, recipe.seq_len)
        device = self.books.device
        with self.books.meaning(Category.INPUT):
            batch = {"input_ids": self.books.tokens(shape).to(device), "labels": self.books.tokens(shape).to(device)}
            if recipe.padding:
                mask = torch.ones(shape, dtype=torch.int64)
                mask[:, -1] = 0  # one token short of full: as much memory, and no path that skips the mask
                batch["attention_mask"] = mask.to(device)
            elif not recipe.packing:
                batch["attention_mask"] = torch.ones(shape, dtype=torch.int64).to(device)
        return batch

    def _forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """The loss, and the output where the entry point keeps it alive."""
        recipe, known = self.recipe, self.known
        context = torch.autocast(self.books.device, self.autocast) if self.autocast else nullcontext()
        with _no_inheritance(self.books), context:
            if recipe.loss == "chunked":
                output = self.model(**batch, fused_lm_head=True)
                return self._fused_loss(output), None
            output = self.model(**batch)
        loss = output.loss
        if self.autocast and known.outputs_to_fp32:
            with self.books.meaning(Category.LOGITS):
                output = _to_fp32(output)
        return loss, output if known.output_alive_in_backward else None

    def _fused_loss(self, output: Any) -> torch.Tensor:
        """Source: trl@1.16.0, trainer/sft_trainer.py, SFTTrainer.compute_loss."""
        if self.recipe.entry_point != "trl":
            return output.loss
        per_token = -output.log_probs
        return per_token.sum() / output.label_mask.sum().clamp(min=1)

    def evaluate(self) -> None:
        """One batch, without gradients."""
        self.model.eval()
        with self.books.during(Phase.EVALUATION), torch.no_grad():
            batch = self._batch()
            loss, output = self._forward(batch)
            del loss, output, batch
        self.model.train()

    def save(self) -> None:
        """What is trained is copied to the host, tensor by tensor."""
        with self.books.during(Phase.SAVE):
            for p in self.building.trainable.values():
                p.detach().to("cpu")

    def _owner(self, name: str) -> int | None:
        return self.instances.of_name(name) if self.instances else None


class _no_inheritance:  # noqa: N801 - a context manager
    """Inside, what is born outside the layers belongs to nobody."""

    def __init__(self, books: Books) -> None:
        self.books = books

    def __enter__(self) -> None:
        self.before, self.books.inherits = self.books.inherits, False

    def __exit__(self, *_: object) -> None:
        self.books.inherits = self.before


def _to_fp32(output: Any) -> Any:
    """Source: accelerate@1.15.0, utils/operations.py, convert_to_fp32."""
    from accelerate.utils import convert_to_fp32

    return convert_to_fp32(output)


def _optimizer_class(name: str, recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    """
    The class and the arguments that a name stands for.

    Source:
        transformers@5.23.0, trainer_optimizer.py; torch.optim's own defaults in a loop.
    """
    if name.startswith("adamw_torch"):
        flavour = name.removeprefix("adamw_torch").lstrip("_")
        return torch.optim.AdamW, {"lr": 1e-4, **({flavour: True} if flavour else {})}
    if name in ("sgd", "sgd_momentum"):
        return torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9 if name == "sgd_momentum" else 0.0}
    if name == "adafactor_torch":
        return torch.optim.Adafactor, {"lr": 1e-4}
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor, {"lr": 1e-4, "scale_parameter": False, "relative_step": False}
    import bitsandbytes

    paged, rest = name.startswith("paged_"), name.removeprefix("paged_")
    kind, bits = rest.split("_")
    cls = {"adamw": bitsandbytes.optim.AdamW, "lion": bitsandbytes.optim.Lion}[kind]
    return cls, {"lr": 1e-4, "optim_bits": int(bits.removesuffix("bit")), "is_paged": paged}
