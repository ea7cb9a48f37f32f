"""Replace MLPs by experts, or add experts, from folder to folder: ``upcycle``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogwood_jax._base.problems import listed
from dogwood_jax._plan.experts.upcycle import upcycle as plan_experts
from dogwood_jax.decoder._folders.models import Model, expect_new, write

# For each model_type without experts, settings of its counterpart with experts.
_MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
_QWEN = {
    **{"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]},
    **{"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "layer_types": None,
}
_WITH_EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen3": _QWEN,
}
# Names of an MLP's arrays, and of the experts' arrays that copy them.
_RENAMED = {
    "mixtral": {
        f"mlp/{old}_proj": f"block_sparse_moe/experts/{new}"
        for old, new in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    },
    "qwen3_moe": {
        f"mlp/{name}_proj": f"mlp/experts/{name}_proj" for name in ("gate", "up", "down")
    },
}


def upcycle(
    source: Path, out: Path, experts: int, chosen: int | None = None, *, seed: int | None = None
) -> str:
    """Writes a folder with a model of experts that computes the same outputs; returns a report.

    Args:
        source: the folder of a Llama or Mistral, which becomes a Mixtral; of a Qwen 3, which
            becomes a Qwen 3 with experts; or of a Mixtral or Qwen 3 with experts, which gets more.
        out: the folder to write.
        experts: number of experts in the new model.
        chosen: number of experts that each token goes to. Default: two in place of an MLP; for a
            model with experts, it is multiplied by the same whole factor as their number.
        seed: seed of random weights.

    Raises:
        ValueError: if the folder's model is not known or cannot get these experts; mistakes in the
            arguments are all in one message.
        CheckpointError: if the folder's arrays do not match its ``config.json``.
        OSError: if a file cannot be read or written, or if ``out`` exists and is not empty.
    """
    old, problems = Model.of(source), list[str]()
    kind, has = old.config["model_type"], old.options.experts
    numbers: dict[str, Any] = {"head_dim": old.options.head_dim}
    if has is None and kind not in _WITH_EXPERTS:
        raise ValueError(
            f"{source}: expected a model_type that has a counterpart with experts, among "
            f"{', '.join(_WITH_EXPERTS)}, or one with experts; found {kind}"
        )
    if has is None:
        numbers |= _WITH_EXPERTS[kind]
        kind, per_token = numbers["model_type"], 2
        if kind == "qwen3_moe":
            numbers["moe_intermediate_size"] = old.options.intermediate_size
        if old.options.biases:
            problems.append(
                f"{', '.join(sorted(old.options.biases))}: have biases, which {kind} does not have"
            )
    else:
        per_token = has.chosen * max(experts // has.number, 1)
        if experts <= has.number:
            problems.append(f"--experts {experts}: expected more than today's {has.number}")
    number = "num_local_experts" if "num_local_experts" in old.config else None
    number = number or ("num_experts" if kind == "qwen3_moe" else "num_local_experts")
    numbers |= {number: experts, "num_experts_per_tok": per_token if chosen is None else chosen}
    if experts < 2:
        problems.append(f"--experts {experts}: expected at least 2")
    if not 1 <= numbers["num_experts_per_tok"] <= experts:
        problems.append(
            f"--experts-per-token {numbers['num_experts_per_tok']}: expected 1 to {experts}"
        )
    if problems:
        raise ValueError(listed(f"{source} cannot get these experts", problems))
    larger = old.with_numbers(numbers)
    expect_new(out)
    growth = plan_experts(
        old.widths,
        target=larger.variables,
        target_apply=larger.apply,
        rename=_RENAMED[kind] if has is None else None,
    )
    return write(old, larger, growth, out, seed, numbers)
