"""
Which modules and parameters PEFT adapts: the matching rules of `LoraConfig`, by name.

Source:
    peft@0.21.2: tuners/tuners_utils.py (`check_target_module_exists`, `_maybe_include_all_linear_layers`, `_inject_parameters`),
    utils/other.py (`get_pattern_key`, `_set_trainable`), utils/transformers_weight_conversion.py (`_convert_peft_config_moe`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field

from planner.errors import InvalidRecipeError, UnsupportedRecipeError
from planner.recipe import Recipe
from planner.spec import ModelSpec, Module, ModuleKind
from planner.stack import Behaviours
from planner.value import Value

ALL_LINEAR = "all-linear"
HEAD_NAMES = ("lm_head", "embed_out", "output_projection")

# transformers@5.23.0, conversion_mapping.py, `_MODEL_TO_CONVERSION_PATTERN`, where it leads to a style that PEFT rewrites.
_MIXTRAL_STYLE = ("mixtral", "minimax", "minimax_m2")
_QWEN2_MOE_STYLE = (
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
    "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash", "mellum", "olmoe",
    "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "solar_open",
)  # fmt: skip
_MIXTRAL_NAMES = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_QWEN2_MOE_NAMES = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
OLD_EXPERT_NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(_MIXTRAL_STYLE, _MIXTRAL_NAMES),
    **dict.fromkeys(_QWEN2_MOE_STYLE, _QWEN2_MOE_NAMES),
}
"""model_type -> name of a projection before transformers 5 fused the experts -> the parameter that it became."""
_FUSED = "gate_up_proj"

# peft@0.21.2, tuners/tuners_utils.py, `_check_lora_target_modules_mamba`
_MAMBA_TYPES = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_MAMBA_REFUSED = ("out_proj", "conv1d")


class Targeting(Value):
    """
    A `LoraConfig`'s choice of modules, ready to be asked about full names.

    Attributes:
        names: Whole names or suffixes after a dot; or one regex that must match a whole name; or `all-linear`.
        parameters: Suffixes of bare parameters (`target_parameters`).
        rank: Rank where no pattern says otherwise.
        rank_patterns: Regex of a name's end -> rank, in order.
        modules_to_save: Endings of modules that are copied and trained whole.
        head: Name of the output embedding, which `all-linear` leaves out.
    """

    names: frozenset[str] | str
    parameters: tuple[str, ...]
    rank: int
    rank_patterns: dict[str, int] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    head: str | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether no pattern can tell one layer of a row from another."""
        if isinstance(self.names, str) and self.names != ALL_LINEAR:
            return False
        words = [*(() if isinstance(self.names, str) else self.names), *self.modules_to_save, *self.rank_patterns]
        return not any(re.search(r"[\d\[]|\\[dwDW]", word) for word in words)

    def adapts(self, path: str, module: Module) -> bool:
        """Whether a module of that full name gets an adapter of its own."""
        if self.excludes(path):
            return False
        if self.names == ALL_LINEAR:
            return module.is_linear and path != self.head
        return self.matches(path)

    def matches(self, path: str) -> bool:
        """Whether a full name is targeted by name."""
        if isinstance(self.names, str):
            return self.names != ALL_LINEAR and re.fullmatch(self.names, path) is not None
        return path in self.names or any(path.endswith(f".{name}") for name in self.names)

    def adapts_parameter(self, path: str) -> bool:
        """Whether a parameter of that full name is wrapped directly."""
        return any(path == name or path.endswith(f".{name}") for name in self.parameters)

    def excludes(self, path: str) -> bool:
        """Whether a module lies in one that is saved whole, where PEFT never puts adapters."""
        return any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save)

    def saves(self, path: str, is_parameter: bool) -> bool:
        """Whether a module, or one around it, is copied and trained whole: its name ends like one of `modules_to_save`."""
        if not self.modules_to_save:
            return False
        parts = path.split(".")
        around = (".".join(parts[:end]) for end in range(1, len(parts) + (not is_parameter)))
        return any(name.endswith(self.modules_to_save) for name in around)

    def rank_of(self, path: str) -> int:
        """The rank of the adapter at a full name."""
        for pattern, rank in self.rank_patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", path):
                return rank
        return self.rank


def find_targets(spec: ModelSpec, recipe: Recipe, known: Behaviours) -> Targeting:
    """
    What the recipe's targets mean for a model, after PEFT has rewritten them for fused experts.

    Raises:
        InvalidRecipeError: A target or rank pattern that is no regular expression.
        UnsupportedRecipeError: PEFT refuses the targets: none is found, they cannot be adapted, or a fused pair is split.
    """
    names: frozenset[str] | str = _names(recipe)
    head = output_embedding(spec)
    check_patterns([names] if isinstance(names, str) and names != ALL_LINEAR else [], "targets")
    check_patterns(recipe.rank_pattern, "rank_pattern")
    check_patterns(recipe.modules_to_save, "modules_to_save")
    targeting = Targeting(names, (), recipe.rank, dict(recipe.rank_pattern), recipe.modules_to_save, head)
    old_names = OLD_EXPERT_NAMES.get(spec.model_type)
    if old_names is not None and known.converts_moe_targets != "none":
        if isinstance(names, str) and known.converts_moe_targets == "names":
            raise UnsupportedRecipeError(
                f"targets is `{names[:60]}`; on a `{spec.model_type}` PEFT 0.19 takes a string's letters for names",
                hint="name the modules, as in --targets q_proj,k_proj,v_proj,o_proj, or --stack peft==0.21.2",
            )
        targeting = _for_fused_experts(spec, targeting, old_names)
    _refuse_unsupported(spec, targeting)
    return targeting


def output_embedding(spec: ModelSpec) -> str | None:
    """Name of the row that turns hidden states into logits; None where a model has none of its own."""
    return next((module.name for module in spec.modules if module.layers is None and leaf(module.name) in HEAD_NAMES), None)


def parameter_paths(module: Module, path: str) -> list[str]:
    """Full names of the parameters at one occurrence of a row."""
    if module.kind in (ModuleKind.EXPERTS, ModuleKind.PARAMETER):
        return [path]
    return [f"{path}.weight", f"{path}.bias"] if module.bias else [f"{path}.weight"]


def leaf(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def check_patterns(patterns: Iterable[str], knob: str) -> None:
    """Refuse what is no regular expression."""
    pattern = ""
    try:
        for pattern in patterns:
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidRecipeError(
            f"{knob} has `{pattern[:60]}`, which is no regular expression ({error})", hint="pass module names separated by commas"
        ) from None


def _names(recipe: Recipe) -> frozenset[str] | str:
    if not isinstance(recipe.targets, str):
        return frozenset(recipe.targets)
    return ALL_LINEAR if recipe.targets.lower() == ALL_LINEAR else recipe.targets


def _for_fused_experts(spec: ModelSpec, targeting: Targeting, old_names: dict[str, str]) -> Targeting:
    """Targets that name projections which transformers 5 fused become parameters; a fused pair gets twice the rank."""
    names = targeting.names
    if isinstance(names, str):
        names = _resolve_string(spec, targeting, old_names)
        if not names:
            return targeting
    kept, parameters, fused = set(), set(), set()
    for name in names:
        old = next((old for old in old_names if name == old or name.endswith(f".{old}")), None)
        if old is None:
            kept.add(name)
            continue
        parameters.add(old_names[old])
        if old_names[old] == _FUSED:
            fused.add(old)
    pair = [old for old, new in old_names.items() if new == _FUSED]
    if 0 < len(fused) < len(pair):
        present, missing = ", ".join(sorted(fused)), ", ".join(sorted(set(pair) - fused))
        raise UnsupportedRecipeError(
            f"PEFT refuses targets: Cannot convert PEFT target(s) {present} without also targeting {missing} "
            f"because they are fused into {_FUSED}",
            hint=f"add {missing} to --targets",
        )
    ranks = dict(targeting.rank_patterns)
    if fused:
        ranks[rf".*\.{_FUSED}"] = targeting.rank * len(pair)
    return Targeting(frozenset(kept), tuple(sorted(parameters)), targeting.rank, ranks, targeting.modules_to_save, targeting.head)


def _resolve_string(spec: ModelSpec, targeting: Targeting, old_names: dict[str, str]) -> frozenset[str]:
    """Leaf names that `all-linear` or a regex stands for on a model whose experts are fused."""
    if targeting.names == ALL_LINEAR:
        return frozenset(leaf(m.name) for m in spec.modules if m.is_linear and m.name != targeting.head) | old_names.keys()
    found: set[str] = set()
    for module in spec.modules:
        for path in module.paths():
            parts = path.split(".")
            keys = [".".join(parts[:end]) for end in range(1, len(parts) + 1)] + parameter_paths(module, path)
            found.update(leaf(key) for key in keys if targeting.matches(key))
            inside = path.rpartition(".")[0]
            found.update(old for old, new in old_names.items() if leaf(path) == new and targeting.matches(f"{inside}.{old}"))
    return frozenset(found)


def _refuse_unsupported(spec: ModelSpec, targeting: Targeting) -> None:
    """What PEFT raises about the targets themselves: nothing matched, a container, or a module that cannot be adapted."""
    matched, is_uniform = False, targeting.is_uniform
    for module in spec.modules:
        for path in [module.path] if is_uniform else module.paths():
            is_module = module.kind not in (ModuleKind.EXPERTS, ModuleKind.PARAMETER)
            if is_module and targeting.adapts(path, module):
                matched = True
                _refuse_module(spec, module, path)
            matched = matched or any(targeting.adapts_parameter(name) for name in parameter_paths(module, path))
            if targeting.names != ALL_LINEAR:
                _refuse_containers(targeting, path)
    if not matched:
        raise UnsupportedRecipeError(
            f"PEFT refuses targets: Target modules {_told(targeting)} not found in the base model", hint=_nearest(spec, targeting)
        )


def _refuse_module(spec: ModelSpec, module: Module, path: str) -> None:
    if spec.model_type in _MAMBA_TYPES and leaf(path) in _MAMBA_REFUSED:
        others = [name for name in _linear_leaves(spec) if name not in (*_MAMBA_REFUSED, *HEAD_NAMES)]
        raise UnsupportedRecipeError(
            f"PEFT refuses targets: Module '{leaf(path)}' is incompatible with Mamba-based models such as `{spec.model_type}`",
            hint=f"pass --targets {','.join(others)}",
        )
    if module.kind in (ModuleKind.NORM, ModuleKind.CONVOLUTION):
        raise UnsupportedRecipeError(
            f"targets match `{path}`, a {module.kind.value}; PEFT adapts no normalisation, and convolutions are not planned here",
            hint=f"leave it out: the linear layers are {', '.join(_linear_leaves(spec))}",
        )


def _refuse_containers(targeting: Targeting, path: str) -> None:
    parts = path.split(".")
    for end in range(1, len(parts)):
        around = ".".join(parts[:end])
        if targeting.matches(around) and not targeting.excludes(around):
            raise UnsupportedRecipeError(
                f"PEFT refuses targets: Target module `{around}` is not supported; linear and embedding layers are",
                hint="name the layers inside it, or pass --targets all-linear",
            )


def _told(targeting: Targeting) -> str:
    names = [targeting.names] if isinstance(targeting.names, str) else sorted(targeting.names)
    return ", ".join(f"`{name[:60]}`" for name in names[:8]) or "(none)"


def _linear_leaves(spec: ModelSpec) -> list[str]:
    return list(dict.fromkeys(leaf(module.name) for module in spec.modules if module.is_linear))


def _nearest(spec: ModelSpec, targeting: Targeting) -> str:
    import difflib

    leaves = _linear_leaves(spec)
    names = [targeting.names] if isinstance(targeting.names, str) else sorted(targeting.names)
    near = dict.fromkeys(hit for name in names for hit in difflib.get_close_matches(leaf(name), leaves, n=2, cutoff=0.5))
    return f"did you mean {', '.join(near)}?" if near else f"the linear layers are {', '.join(leaves)}"
