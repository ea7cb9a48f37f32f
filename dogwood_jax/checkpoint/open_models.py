"""Names of arrays in the files of open language models: ``llama``, ``qwen`` and ``gemma``.

Tensors have Hugging Face's names, and leaves have the names of tunix. For other modules, change the
right-hand sides.
"""

from collections.abc import Mapping
from typing import Literal

Row = tuple[str, str] | str


def llama(*, head_dim: int) -> Mapping[str, Row]:
    """Returns the names of Llama 2 and 3, for ``names=`` in ``dw.checkpoint``.

    Args:
        head_dim: size of a head in the file.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.checkpoint.llama(head_dim=128)["model.layers.{i}.mlp.up_proj.weight"]
        ('layers/{i}/mlp/up_proj/kernel', 'transpose')
    """
    layer = "model.layers.{i}."
    rows: dict[str, Row] = {
        "model.embed_tokens.weight": "embedder/input_embedding",
        "model.norm.weight": "final_norm/w",
        "lm_head.weight": ("lm_head/w", "transpose"),
        f"{layer}self_attn.o_proj.weight": (
            "layers/{i}/attn/o_proj/w",
            f"d (n h:{head_dim}) -> n h d",
        ),
    }
    for name in ("q", "k", "v"):
        rows[f"{layer}self_attn.{name}_proj.weight"] = (
            f"layers/{{i}}/attn/{name}_proj/w",
            f"(n h:{head_dim}) d -> d n h",
        )
    for name in ("gate", "up", "down"):
        rows[f"{layer}mlp.{name}_proj.weight"] = (
            f"layers/{{i}}/mlp/{name}_proj/kernel",
            "transpose",
        )
    for name in ("input", "post_attention"):
        rows[f"{layer}{name}_layernorm.weight"] = f"layers/{{i}}/{name}_layernorm/w"
    return rows


def qwen(*, head_dim: int) -> Mapping[str, Row]:
    """Returns the names of Qwen 2 and 3 with experts, for ``names=`` in ``dw.checkpoint``.

    Args:
        head_dim: size of a head in the file.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.checkpoint.qwen(head_dim=128)["model.layers.{i}.self_attn.q_norm.weight"]
        'layers/{i}/attn/q_norm/w'
    """
    layer = "model.layers.{i}."
    rows = dict(llama(head_dim=head_dim))
    for name in ("q", "k"):
        rows[f"{layer}self_attn.{name}_norm.weight"] = f"layers/{{i}}/attn/{name}_norm/w"
    for name in ("q", "k", "v"):
        rows[f"{layer}self_attn.{name}_proj.bias"] = f"layers/{{i}}/attn/{name}_bias"
    rows[f"{layer}mlp.gate.weight"] = ("layers/{i}/mlp/router/kernel", "transpose")
    for name in ("gate", "up", "down"):
        rows[f"{layer}mlp.experts.{{e}}.{name}_proj.weight"] = (
            f"layers/{{i}}/mlp/{name}_proj[{{e}}]",
            "transpose",
        )
    return rows


def gemma(
    *, head_dim: int, version: Literal[1, 2, 3] = 3, fused: bool = False
) -> Mapping[str, Row]:
    """Returns the names of Gemma 1 to 3, for ``names=`` in ``dw.checkpoint``.

    Args:
        head_dim: size of a head in the file.
        version: the version of Gemma. Versions use some names of norms for different places.
        fused: whether each query head has its own key and value head, as in Gemma 7B. Queries, keys
            and values are then one leaf.

    Example:
        >>> import dogwood_jax as dw
        >>> dw.checkpoint.gemma(head_dim=256)["model.layers.{i}.self_attn.k_proj.weight"]
        ('layers/{i}/attn/kv_einsum/w[0]', '(n h:256) d -> n d h')
    """
    layer, own = "model.layers.{i}.", "layers/{i}/"
    leaves = ("qkv_einsum/w[0]", "qkv_einsum/w[1]", "qkv_einsum/w[2]")
    if not fused:
        leaves = ("q_einsum/w", "kv_einsum/w[0]", "kv_einsum/w[1]")
    rows: dict[str, Row] = {
        "model.embed_tokens.weight": "embedder/input_embedding",
        "model.norm.weight": "final_norm/scale",
        f"{layer}self_attn.o_proj.weight": (
            f"{own}attn/attn_vec_einsum/w",
            f"d (n h:{head_dim}) -> n h d",
        ),
    }
    for name, leaf in zip(("q", "k", "v"), leaves, strict=True):
        heads = f"(n h:{head_dim}) d -> n d h"
        rows[f"{layer}self_attn.{name}_proj.weight"] = (f"{own}attn/{leaf}", heads)
    for name in ("gate", "up", "down"):
        rows[f"{layer}mlp.{name}_proj.weight"] = (f"{own}mlp/{name}_proj/kernel", "transpose")
    norms = {"input_layernorm": "pre_attention_norm"}
    if version == 1:
        norms["post_attention_layernorm"] = "pre_ffw_norm"
    else:
        behind = "post_attn_norm" if version == 2 else "post_attention_norm"
        norms["post_attention_layernorm"] = behind
        norms["pre_feedforward_layernorm"] = "pre_ffw_norm"
        norms["post_feedforward_layernorm"] = "post_ffw_norm"
    if version == 3:
        norms["self_attn.q_norm"] = "attn/_query_norm"
        norms["self_attn.k_norm"] = "attn/_key_norm"
    for name, leaf in norms.items():
        rows[f"{layer}{name}.weight"] = f"{own}{leaf}/scale"
    return rows
