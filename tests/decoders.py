"""Small models of every family that ``decoder`` computes: their ``config.json`` and weights."""

import json

import numpy as np
from safetensors.numpy import save_file

from dogwood_jax import decoder
from dogwood_jax._base.trees import leaves_by_path

_SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA = {"head_dim": 6, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_GEMMA_2 = {**_GEMMA, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 9}
_GEMMA_2 |= {"sliding_window": 4}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 6}
_QWEN = {**_EXPERTS, "num_experts": 3, "moe_intermediate_size": 12}

CONFIGS = {
    name: {**_SIZES, "model_type": name.partition(" ")[0], **own}
    for name, own in {
        "llama": {"rope_scaling": _LLAMA_3},
        "llama with biases": {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        },
        "mistral": {"sliding_window": 3, "head_dim": 6},
        "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
        "qwen3": {"head_dim": 6},
        "gemma": _GEMMA,
        "gemma2": {**_GEMMA_2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "gemma3_text": {
            **_GEMMA_2,
            "num_hidden_layers": 5,
            "sliding_window_pattern": 3,
            "rope_local_base_freq": 10.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "mixtral": {**_EXPERTS, "num_local_experts": 3, "sliding_window": None},
        "qwen3_moe": {**_QWEN, "norm_topk_prob": True, "mlp_only_layers": [1]},
        "qwen3_moe of sums": {**_QWEN, "norm_topk_prob": False, "decoder_sparse_step": 2},
        "olmo2": {},
    }.items()
}
TOKENS = np.random.RandomState(0).randint(24, size=(1, 9))


def tensors(config):
    """Returns random weights by the names of their tensors; the same with any version of NumPy."""
    options = decoder.options_of(config)
    found, random = {}, np.random.RandomState(1)
    for path, leaf in sorted(leaves_by_path(decoder.shapes(options)).items()):
        array = random.normal(size=leaf.shape).astype(np.float32)
        if len(leaf.shape) == 1:
            array = 0.3 * array + ("norm" in path and not options.plus_one)
        elif "embed_tokens" not in path:
            array *= 1.5 / leaf.shape[-1] ** 0.5
        name = path.replace("/", ".")
        if ".experts." in name:
            own = (name.replace(".experts.", f".experts.{e}.") for e in range(len(array)))
            found |= dict(zip(own, array))
        else:
            found[name] = array.astype(np.float32)
    return found


def saved(folder, name, *, dtype=np.float32, **changes):
    """Saves a model in a folder as transformers does; returns the folder."""
    folder.mkdir(parents=True)
    config = {**CONFIGS[name], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    arrays = {path: array.astype(dtype) for path, array in tensors(config).items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def by_transformers(folder):
    """Returns the logits of the model in a folder by torch transformers, float32."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()
