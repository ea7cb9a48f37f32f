"""The options of a decoder, read from ``config.json``: ``Options`` and ``options_of``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dogwood_jax._base.problems import listed


@dataclass(frozen=True)
class Rope:
    """Rotary positions.

    Attributes:
        theta: the base of the frequencies.
        kind: how frequencies are scaled for longer texts.
        factor: how many times longer texts are; ``"linear"`` divides frequencies by it.
        low, high: for ``"llama3"``, limits of turns within the original length. Frequencies are
            divided by ``factor`` below ``low``, unchanged above ``high``, and blended in between.
        length: for ``"llama3"``, the original length in tokens.
    """

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    length: float = 8192.0


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP.

    Attributes:
        number: number of experts.
        chosen: number of experts that each token goes to.
        size: hidden units of each expert.
        sums_to_one: whether the gates of the chosen experts are divided by their sum.
        layers: the layers that have experts. The other layers have an MLP.
        name: name of the mixture in the files.
        projections: names of the gate, up and down projections in the files.
    """

    number: int
    chosen: int
    size: int
    sums_to_one: bool
    layers: frozenset[int]
    name: str
    projections: tuple[str, str, str]


@dataclass(frozen=True)
class Options:
    """The options of a decoder. Sizes have the names of ``config.json``.

    Attributes:
        ropes: rotary positions, for each layer.
        windows: for each layer, how many tokens a token sees, including itself; None for all.
        rms_norm_eps: the epsilon of norms.
        norms: names of a layer's norms: before attention, after attention, before the MLP, after
            the MLP. None where there is no norm.
        head_norms: norms of queries and keys: of each head, of all heads together, or none.
        plus_one: whether norms multiply by their weights plus one.
        activation: the function of the MLP's gate.
        biases: the projections that have biases.
        score_scale: factor of the products of queries and keys.
        score_cap: scores become ``cap * tanh(scores / cap)``, unless it is None.
        logit_cap: the cap of logits, used in the same way.
        embed_scale: factor of the embeddings.
        tie_word_embeddings: whether the embeddings are also the last projection.
        experts: the experts; None for an MLP in every layer.
        config: all settings of the file, which ``save`` writes. Comparisons ignore them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    rms_norm_eps: float
    norms: tuple[str | None, str | None, str | None, str | None]
    head_norms: Literal["each", "all"] | None
    plus_one: bool
    activation: Literal["silu", "gelu", "gelu_tanh"]
    biases: frozenset[str]
    score_scale: float
    score_cap: float | None
    logit_cap: float | None
    embed_scale: float
    tie_word_embeddings: bool
    experts: Experts | None
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


_BEFORE = ("input_layernorm", None, "post_attention_layernorm", None)
_BEHIND = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_BOTH = (
    *("input_layernorm", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_ACTIVATIONS: Mapping[Any, Literal["silu", "gelu", "gelu_tanh"]] = {
    **{"silu": "silu", "swish": "silu", "gelu": "gelu"},
    **{"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"},
}
# Settings that the decoder supports with these values only; the file may lack them.
_ONLY = {
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "text_config": None,
    "use_bidirectional_attention": False,
}


@dataclass(frozen=True)
class _Family:
    """Properties of a ``model_type`` that are not in ``config.json``.

    Attributes:
        norms, head_norms: as in ``Options``.
        is_gemma: whether it scales embeddings, adds one to norms' weights and ties embeddings.
        is_later_gemma: whether its files set the scale of queries, and may cap logits.
        caps_scores: whether its files may cap scores.
        biases: the projections that always have biases.
        may_have_biases: whether its files may add biases.
        windows: returns for each layer whether it has a sliding window, if the file has no list.
        experts: returns the experts, as in ``Options``.
    """

    norms: tuple[str | None, str | None, str | None, str | None] = _BEFORE
    head_norms: Literal["each", "all"] | None = None
    is_gemma: bool = False
    is_later_gemma: bool = False
    caps_scores: bool = False
    biases: frozenset[str] = frozenset()
    may_have_biases: bool = True
    windows: Callable[["_Config"], Sequence[bool]] = lambda c: [False] * c.layers
    experts: Callable[["_Config"], Experts | None] = lambda c: None


@dataclass
class _Config:
    """The settings of a file, and the problems found in them."""

    numbers: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    @property
    def layers(self) -> int:
        return self.size("num_hidden_layers")

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a setting; the default if it is missing or null."""
        found = self.numbers.get(name)
        return default if found is None else found

    def size(self, name: str, default: int | None = None) -> int:
        """Returns a size; for anything else, records a problem and returns 1."""
        found = self.get(name, default)
        if type(found) is int and found > 0:
            return found
        self.problem(f"{name}: expected a positive whole number; found {found!r}")
        return 1

    def number(self, name: str) -> float:
        """Returns a positive number; for anything else, records a problem and returns 1."""
        found = self.get(name)
        if isinstance(found, int | float) and found > 0 and found is not True:
            return float(found)
        self.problem(f"{name}: expected a positive number; found {found!r}")
        return 1.0

    def problem(self, text: str) -> None:
        """Records a problem once."""
        if text not in self.problems:
            self.problems.append(text)


def _everywhere(config: _Config) -> Sequence[bool]:
    return [config.get("sliding_window") is not None] * config.layers


def _where_used(config: _Config) -> Sequence[bool]:
    used = bool(config.get("use_sliding_window"))
    return [used and config.get("sliding_window") is not None] * config.layers


def _late(config: _Config) -> Sequence[bool]:
    first = config.size("max_window_layers") if any(_where_used(config)) else 0
    return [used and n >= first for n, used in enumerate(_where_used(config))]


def _every_other(config: _Config) -> Sequence[bool]:
    return [n % 2 == 0 for n in range(config.layers)]


def _but_for_each(config: _Config) -> Sequence[bool]:
    name = "sliding_window_pattern"
    step = config.size(f"_{name}" if f"_{name}" in config.numbers else name, 6)
    return [(n + 1) % step > 0 for n in range(config.layers)]


def _of_mixtral(config: _Config) -> Experts:
    number = "num_experts" if "num_local_experts" not in config.numbers else "num_local_experts"
    return Experts(
        number=config.size(number),
        chosen=config.size("num_experts_per_tok"),
        size=config.size("intermediate_size"),
        sums_to_one=True,
        layers=frozenset(range(config.layers)),
        name="block_sparse_moe",
        projections=("w1", "w3", "w2"),
    )


def _of_qwen(config: _Config) -> Experts:
    number = "num_local_experts" if "num_experts" not in config.numbers else "num_experts"
    step, without = config.size("decoder_sparse_step", 1), config.get("mlp_only_layers", ())
    layers = (n for n in range(config.layers) if n not in without and (n + 1) % step == 0)
    return Experts(
        number=config.size(number),
        chosen=config.size("num_experts_per_tok"),
        size=config.size("moe_intermediate_size"),
        sums_to_one=bool(config.get("norm_topk_prob", False)),
        layers=frozenset(layers),
        name="mlp",
        projections=("gate_proj", "up_proj", "down_proj"),
    )


_GEMMA_3 = _Family(
    norms=_BOTH, head_norms="each", is_gemma=True, is_later_gemma=True, windows=_but_for_each
)
_FAMILIES: Mapping[Any, _Family] = {
    "llama": _Family(),
    "mistral": _Family(may_have_biases=False, windows=_everywhere),
    "qwen2": _Family(biases=_ATTENTION - {"o_proj"}, may_have_biases=False, windows=_late),
    "qwen3": _Family(head_norms="each", windows=_late),
    "gemma": _Family(is_gemma=True),
    "gemma2": _Family(
        norms=_BOTH, is_gemma=True, is_later_gemma=True, caps_scores=True, windows=_every_other
    ),
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "mixtral": _Family(may_have_biases=False, windows=_everywhere, experts=_of_mixtral),
    "qwen3_moe": _Family(head_norms="each", windows=_where_used, experts=_of_qwen),
    "olmo2": _Family(norms=_BEHIND, head_norms="all"),
}


def options_of(config: Mapping[str, Any]) -> Options:
    """Returns the options of the decoder that a ``config.json`` describes.

    Args:
        config: the settings in the file.

    Returns:
        The options.

    Raises:
        ValueError: if the decoder does not support ``model_type``, if a setting is missing or not
            valid, or if the file needs a feature that the decoder lacks, such as other rotary
            positions; all problems are in one message.

    Example:
        >>> from dogwood_jax import decoder
        >>> options = decoder.options_of({
        ...     "model_type": "llama", "vocab_size": 100, "hidden_size": 16,
        ...     "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        ...     "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0})
        >>> options.head_dim, options.activation, options.windows
        (4, 'silu', (None, None))

    Reference:
        https://github.com/huggingface/transformers, ``configuration_*.py`` of each model.
    """
    kind, c = config.get("model_type"), _Config(config)
    if kind not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"config.json: model_type: expected one of {known}; found {kind!r}")
    family = _FAMILIES[kind]
    for name, expected in _ONLY.items():
        if c.get(name, expected) != expected:
            c.problem(f"{name}: expected {expected!r}, or nothing; the decoder has no other")
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    # These families have defaults of their own that may change, so the file must hold head_dim.
    own = family.is_gemma or family.head_norms == "each"
    head_dim = c.size("head_dim", None if own else max(hidden // heads, 1))
    kv_heads = c.size("num_key_value_heads", heads)
    if heads % kv_heads:
        c.problem(
            f"num_attention_heads: expected a multiple of num_key_value_heads {kv_heads}; found "
            f"{heads}"
        )
    if head_dim % 2:
        c.problem(f"head_dim: expected an even number, for rotary positions; found {head_dim}")
    named = "hidden_activation" if family.is_later_gemma else "hidden_act"
    function = c.get(named, "gelu_pytorch_tanh" if family.is_gemma else "silu")
    if function not in _ACTIVATIONS:
        c.problem(f"{named}: expected one of {', '.join(_ACTIVATIONS)}; found {function!r}")
    biases = family.biases
    if family.may_have_biases and c.get("attention_bias"):
        biases |= _ATTENTION
    if kind == "llama" and c.get("mlp_bias"):
        biases |= {"gate_proj", "up_proj", "down_proj"}
    scaled_by = c.number("query_pre_attn_scalar") if family.is_later_gemma else head_dim
    caps = (
        ("attn_logit_softcapping", family.caps_scores),
        ("final_logit_softcapping", family.is_later_gemma),
    )
    score_cap, logit_cap = (
        c.number(name) if has and c.get(name) is not None else None for name, has in caps
    )
    slides = _slides(c, family)
    options = Options(
        vocab_size=c.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=c.size("intermediate_size"),
        num_hidden_layers=c.layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        ropes=_ropes(c, slides),
        windows=tuple(c.size("sliding_window") if slide else None for slide in slides),
        rms_norm_eps=c.number("rms_norm_eps"),
        norms=family.norms,
        head_norms=family.head_norms,
        plus_one=family.is_gemma,
        activation=_ACTIVATIONS.get(function, "silu"),
        biases=biases,
        score_scale=scaled_by**-0.5,
        score_cap=score_cap,
        logit_cap=logit_cap,
        embed_scale=hidden**0.5 if family.is_gemma else 1.0,
        tie_word_embeddings=bool(c.get("tie_word_embeddings", family.is_gemma)),
        experts=family.experts(c),
        config=dict(config),
    )
    if options.experts and options.experts.chosen > options.experts.number:
        c.problem(
            f"num_experts_per_tok: expected at most {options.experts.number}, the number of "
            f"experts; found {options.experts.chosen}"
        )
    if c.problems:
        raise ValueError(listed("config.json: the decoder cannot compute this model", c.problems))
    return options


def _slides(c: _Config, family: _Family) -> Sequence[bool]:
    """Returns for each layer whether its attention has a sliding window."""
    types = c.get("layer_types")
    if types is None or family.windows in (_everywhere, _where_used):
        return family.windows(c)
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != c.layers or {*types} - {*known}:
        c.problem(
            f"layer_types: expected {c.layers} entries, one for each layer, each of them "
            f"{' or '.join(known)}; found {types!r}"
        )
        return [False] * c.layers
    return [one == "sliding_attention" for one in types]


def _ropes(c: _Config, slides: Sequence[bool]) -> tuple[Rope, ...]:
    """Returns the rotary positions of each layer.

    Newer files hold ``rope_parameters``, perhaps by kind of attention. Older files hold
    ``rope_theta`` and ``rope_scaling``, and for Gemma 3 ``rope_local_base_freq``.
    """
    new = c.get("rope_parameters")
    if new is None:
        old = {**c.get("rope_scaling", {}), "rope_theta": c.get("rope_theta")}
        new = {"full_attention": old, "sliding_attention": old}
        if local := c.get("rope_local_base_freq"):
            new["sliding_attention"] = {"rope_theta": local}
    elif "full_attention" not in new and "sliding_attention" not in new:
        new = {"full_attention": new, "sliding_attention": new}
    kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    ropes = {kind: _rope(c, new.get(kind) or {}) for kind in sorted({*kinds})}
    return tuple(ropes[kind] for kind in kinds)


def _rope(c: _Config, said: Mapping[str, Any]) -> Rope:
    """Returns the rotary positions that a file describes."""
    inner = _Config(said, c.problems)
    kind = inner.get("rope_type", inner.get("type", "default"))
    if inner.get("partial_rotary_factor", 1.0) != 1.0:
        c.problem("partial_rotary_factor: expected 1.0, or nothing")
    theta = inner.number("rope_theta")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", inner.number("factor"))
    if kind == "llama3":
        return Rope(
            theta,
            "llama3",
            factor=inner.number("factor"),
            low=inner.number("low_freq_factor"),
            high=inner.number("high_freq_factor"),
            length=inner.number("original_max_position_embeddings"),
        )
    c.problem(f"rope_type: expected default, linear or llama3; found {kind!r}")
    return Rope(theta)
