"""
Runs the oracle over the matrix and writes `golden/<model>.json`.

    python -m tests.oracle.run_probe PATH/TO/trace_probe.py [MODEL...]

The oracle is a program of its own that follows every storage of the real transformers, PEFT and bitsandbytes training step
on fake CUDA tensors. It patches global state, so that each run is a fork of a parent that has imported the libraries once (one
second a run instead of ten). Beside its own figures, which contain the unsplit remainders of PyTorch's caching allocator, this
records the `rounded_*` ones: the plain sum of what lives, each storage rounded up to 512 bytes, no allocator in between.

Where the oracle differs from CUDA it is put right here, one function a difference, each with what shows it: the biases of 4-bit
linears, attention that broadcasts its keys, scales that a product holds, masks of windows that a sequence reaches.

Needs torch, transformers, peft, bitsandbytes, accelerate and g++; no GPU, no weights, no network. Unix only (fork).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.oracle.matrix import LAYERS, MODELS, Model, Run, runs

GOLDEN = Path(__file__).with_name("golden")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
BLOCK = 512


def load_probe(path: Path) -> Any:
    """The oracle as a module, with every library that a run imports."""
    spec = importlib.util.spec_from_file_location("trace_probe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("transformers", "peft", "bitsandbytes", "transformers.integrations.bitsandbytes"):
        importlib.import_module(name)
    accept_grouped_products()
    return module


def accept_grouped_products() -> None:
    """
    Let fake tensors take the grouped products that CUDA takes.

    torch@2.13.0's stand-in insists on bf16 (_meta_registrations.py, _meta_grouped_mm_common); the kernel takes fp32 and fp16 too
    (aten/src/ATen/native/GroupedMMUtils.h, _grouped_mm_validate_inputs).
    """
    meta = importlib.import_module("torch._meta_registrations")

    def product(a: Any, b: Any, *_: Any, offs: Any = None, **__: Any) -> Any:
        return meta._create_grouped_mm_output_tensor(a, b, offs, a.dtype)

    meta._meta_grouped_mm_common = product


def observe(probe: Any) -> list[dict[str, int]]:
    """Patch the oracle's recorder to count plain 512-byte roundings too; what it sees is appended to the list returned."""
    seen: list[dict[str, int]] = [{}]

    class Allocator(probe.CachingAllocator):  # type: ignore[misc]
        """Counts what is asked for beside what is handed out."""

        def __init__(self) -> None:
            super().__init__()
            self.rounded = self.rounded_peak = 0
            self.sizes: dict[int, int] = {}

        def malloc(self, nbytes: int) -> tuple[int, int]:
            address, size = super().malloc(nbytes)
            self.sizes[address] = max(BLOCK, -(-nbytes // BLOCK) * BLOCK)
            self.rounded += self.sizes[address]
            self.rounded_peak = max(self.rounded_peak, self.rounded)
            return address, size

        def free(self, address: int) -> None:
            self.rounded -= self.sizes.pop(address)
            super().free(address)

    class Recorder(probe.Recorder):  # type: ignore[misc]
        """Notes the counts where the oracle notes its own."""

        def __init__(self) -> None:
            super().__init__()
            self.allocator, self.peaks = Allocator(), []
            seen[0]["recorder"] = self

        def __torch_dispatch__(self, *call: Any) -> Any:
            # Fake mode sets this for its own thread alone; without it a list as an index (Falcon's `fused_qkv[..., [-2], :]`) is
            # copied to the card behind the mode's back when a layer is recomputed in autograd's thread, and there is no card.
            probe.torch._C._set_only_lift_cpu_tensors(True)
            return super().__torch_dispatch__(*call)

        def phase(self) -> None:
            self.peaks.append(self.allocator.rounded_peak)
            self.allocator.rounded_peak = self.allocator.rounded
            super().phase()

        def __exit__(self, *error: object) -> None:
            self.peaks.append(self.allocator.rounded_peak)
            forward, backward, optimizer = self.peaks[-3:]
            seen[0] |= {
                "rounded_forward_peak_bytes": forward,
                "rounded_backward_peak_bytes": backward,
                "rounded_optimizer_peak_bytes": optimizer,
                "rounded_allocated_peak_bytes": max(forward, backward, optimizer),
                "rounded_steady_bytes": self.allocator.rounded,
            }
            super().__exit__(*error)

    def noted(function: Any, key: str) -> Any:
        def call(*arguments: Any) -> Any:
            out = function(*arguments)
            seen[0][key] = seen[0]["recorder"].allocator.rounded  # type: ignore[attr-defined]
            return out

        return call

    probe.Recorder = Recorder
    probe.materialise = noted(probe.materialise, "rounded_after_load_bytes")
    probe.forward_loss = noted(probe.forward_loss, "rounded_after_forward_bytes")
    return seen


def load_biases_as_they_are(probe: Any) -> None:
    """
    Give the biases of 4-bit linears the type of the checkpoint, as from_pretrained does.

    The oracle leaves them in fp32, the default type in which replace_with_bnb_linear makes them; kbit-prepare casts them anyway.
    """
    built = probe.build

    def build(a: Any) -> Any:
        model = built(a)
        for module in model.modules() if a.quant == "nf4" and not a.kbit_prepare else ():
            if type(getattr(module, "weight", None)).__name__ == "Params4bit" and module.bias is not None:
                module.bias.data = module.bias.data.to(probe.DTYPES[a.dtype])
        return model

    probe.build = build


def refuse_to_broadcast(probe: Any) -> None:
    """
    Take the math kernel where keys have fewer heads than queries and nobody said enable_gqa, as Falcon's multi-query attention.

    The oracle plays a fused kernel there, which CUDA refuses: torch@2.13.0, aten/src/ATen/native/transformers/sdp_utils_cpp.h,
    check_batch_size_and_num_heads_dense. What PyTorch does without any fused kernel is what it does on this device by itself.
    """
    functional, installed = probe.F, probe.install_patches
    unfused = functional.scaled_dot_product_attention

    def install_patches(*given: Any) -> Any:
        kept = installed(*given)
        fused = functional.scaled_dot_product_attention

        def attention(q: Any, k: Any, v: Any, *more: Any, **named: Any) -> Any:
            broadcasts = k.shape[1] != q.shape[1] and not named.get("enable_gqa")
            return (unfused if broadcasts else fused)(q, k, v, *more, **named)

        functional.scaled_dot_product_attention = attention
        return kept

    probe.install_patches = install_patches


def keep_both_scales(probe: Any) -> None:
    """
    Let the dequantised scales of a doubly quantised weight live until its forward product returns, beside their sum with the offset.

    The oracle gives the sum the name of the scales, which lets go of them; bitsandbytes@0.50.2, backends/cuda/ops.py,
    _dequant_linear_fallback, has a name for each. Backward adds in place in both (functional.py, dequantize_4bit).
    """
    installed = probe.install_patches

    def install_patches(*given: Any) -> Any:
        kept = installed(*given)
        library, functional = (importlib.import_module(name) for name in ("bitsandbytes", "bitsandbytes.functional"))
        dequantise, product = functional.dequantize_blockwise, library.matmul_4bit
        products: list[list[Any]] = []

        def dequantize_blockwise(*arguments: Any, **named: Any) -> Any:
            out = dequantise(*arguments, **named)
            for scales in products[-1:]:
                scales.append(out)
            return out

        def matmul_4bit(*arguments: Any, **named: Any) -> Any:
            products.append([])
            try:
                return product(*arguments, **named)
            finally:
                products.pop()

        functional.dequantize_blockwise, library.matmul_4bit = dequantize_blockwise, matmul_4bit
        return kept

    probe.install_patches = install_patches


def cut_by_windows() -> None:
    """
    Give layers whose window a sequence reaches their mask under sdpa, as a real run does.

    The oracle skips all masks of a run without padding, because transformers takes its fake tensors for a trace and would make
    every one; `_ignore_causal_mask_sdpa` skips none that a window cuts.
    """
    masking = importlib.import_module("transformers.masking_utils")
    make = masking.sdpa_mask

    def sdpa_mask(*, kv_length: int, local_size: int | None = None, allow_is_causal_skip: bool = True, **more: Any) -> Any:
        is_cut = local_size is not None and kv_length >= local_size
        skips = allow_is_causal_skip and not is_cut
        return make(kv_length=kv_length, local_size=local_size, allow_is_causal_skip=skips, **more)

    masking.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = sdpa_mask


def know_composites(model_type: str) -> None:
    """Let the oracle, which builds causal language models, build models of images and text by their own class."""
    transformers = importlib.import_module("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    if model_type not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        transformers.AutoModelForCausalLM = transformers.AutoModelForImageTextToText


def measure(probe: Any, arguments: list[str]) -> dict[str, Any]:
    """One run of the oracle in a fork: its figures and the rounded ones, or {"error": why}."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                seen = observe(probe)
                load_biases_as_they_are(probe)
                refuse_to_broadcast(probe)
                keep_both_scales(probe)
                cut_by_windows()
                know_composites(arguments[arguments.index("--model-type") + 1])
                figures = probe.probe(probe.parse(arguments))
            figures |= {key: value for key, value in seen[0].items() if key != "recorder"}
        except BaseException as error:  # noqa: BLE001  # whatever stops a run is the run's result
            figures = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        with os.fdopen(writer, "w") as pipe:
            json.dump(figures, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "the process died"}


def measure_run(probe: Any, model: Model, run: Run) -> dict[str, Any]:
    """One row of a golden file: the run in both spellings, its figures, and what one more layer saves."""
    arguments = run.arguments(model)
    figures = measure(probe, arguments)
    if "error" not in figures:
        deeper = measure(probe, run.arguments(model, LAYERS + 1))
        after = "rounded_after_forward_bytes"
        resting = "rounded_steady_bytes"
        figures["saved_per_layer_bytes"] = (deeper[after] - deeper[resting]) - (figures[after] - figures[resting])
    row = {"name": run.name, "recipe": run.recipe(model), "compute_capability": run.compute_capability, "probe": arguments}
    row["probe"] = ["CONFIG" if i and arguments[i - 1] == "--config" else word for i, word in enumerate(arguments)]
    return {**row, "figures": figures}


def write(model: Model, rows: list[dict[str, Any]]) -> None:
    """The golden file of one model: one row a line."""
    head = {
        "model": model.name,
        "model_type": model.model_type,
        "layers": LAYERS,
        "config": {"model_type": model.model_type, **model.config(LAYERS)},
        "command": "trace_probe.py with the words of `probe`; CONFIG stands for the JSON of `config` without model_type",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + ',\n "runs": [\n' + lines + "\n ]\n}\n"
    part = GOLDEN / f"{model.name}.json.part"
    part.write_text(text)
    part.replace(GOLDEN / f"{model.name}.json")


def main() -> None:
    """Run what the command line names, or everything."""
    path, names = Path(sys.argv[1]), sys.argv[2:]
    probe = load_probe(path)
    for model in MODELS:
        if names and model.name not in names:
            continue
        family = model.model_type.removesuffix("_text")
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        rows: list[dict[str, Any]] = []
        began = time.monotonic()
        for run in runs(model):
            rows.append(measure_run(probe, model, run))
            if "error" in rows[-1]["figures"]:
                print(model.name, run.name, rows[-1]["figures"], flush=True)
            if len(rows) % 8 == 0:
                write(model, rows)
        write(model, rows)
        print(f"{model.name}: {len(rows)} runs, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
