"""Merges several trained networks into one mixture of experts: ``grow_several``."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.arguments import FUNCTION, GROWTH, ArgumentKind, expect, expect_given
from dogwood_jax._base.trees import PyTree, in_order_of, is_array, leaves_by_path, rebuilt
from dogwood_jax._front.compare import moved_by
from dogwood_jax._front.grow import grow
from dogwood_jax._growth.growth import Growth

_SOURCES = ArgumentKind(
    "a list of the variables of several networks",
    lambda value: isinstance(value, list | tuple) and len(value) > 0,
)


def grow_several(
    sources: Sequence[PyTree],
    growth: Growth,
    *,
    key: Array | None = None,
    fresh: PyTree = None,
    target_apply: Callable[..., Any] | None = None,
) -> PyTree:
    """Grows several trained networks of one architecture into one mixture of experts.

    ``growth`` comes from ``upcycle``, which replaces an MLP by experts that are copies of it.
    Expert e comes from network e; experts beyond the last network start again with the first
    network. All other arrays are means over the networks. Outputs differ from those of every
    network, so train the mixture on. With ``target_apply``, a warning states how far outputs move
    for random inputs.

    Args:
        sources: variables of the networks, all of the shapes that the growth was planned for.
        growth: from ``upcycle``.
        key: PRNG key for random weights, such as those of routers, as for ``grow``.
        fresh: the mixture's own variables, as for ``grow``.
        target_apply: the mixture's function of variables and inputs.

    Returns:
        The variables of the mixture.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if the growth makes no experts, there are more networks than experts, or
            ``grow`` raises.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> def mixture(params, x):
        ...     gates, which = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), 1)
        ...     gates = jnp.einsum("tk,tke->te", gates, jax.nn.one_hot(which, 2))
        ...     h = jax.nn.relu(jnp.einsum("td,edf->tef", x, params["up"]))
        ...     return x + jnp.einsum("te,tef,efd->td", gates, h, params["down"])
        >>> one = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 3))}
        >>> other = jax.tree.map(lambda array: 2 * array, one)
        >>> larger = {"router": (3, 2), "up": (2, 3, 4), "down": (2, 4, 3)}
        >>> larger = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in larger.items()}
        >>> widths = dw.trace(apply, one, jnp.ones((5, 3)))
        >>> growth = dw.upcycle(widths, target=larger, target_apply=mixture)
        >>> mixed = dw.training.grow_several([one, other], growth, key=jax.random.key(0))
        >>> mixed["up"][:, 0, 0].tolist()
        [1.0, 2.0]

    Reference:
        Sukhbaatar et al., 2024, Branch-Train-MiX: Mixing Expert LLMs into a Mixture-of-Experts LLM.
    """
    expect("grow_several(sources, growth)", sources=(_SOURCES, sources), growth=(GROWTH, growth))
    expect_given("grow_several", target_apply=(FUNCTION, target_apply))
    stacked = {edit.path: edit.experts.count for edit in growth.inserted if edit.experts}
    if not stacked:
        raise ValueError(
            "grow_several: this growth does not replace an MLP by experts; plan it by "
            "dw.upcycle(widths, target=, target_apply=)"
        )
    experts = min(stacked.values())
    if len(sources) > experts:
        raise ValueError(
            f"grow_several: got {len(sources)} networks for {experts} experts, so the last ones "
            "would not be used; plan an expert for each network"
        )
    grown = [grow(variables, growth, key=key, fresh=fresh) for variables in sources]
    every = [leaves_by_path(one) for one in grown]

    def mixed(path: str) -> Any:
        arrays = [leaves[path] for leaves in every]
        if not is_array(arrays[0]) or len(arrays) == 1:
            return arrays[0]
        if path in stacked:
            return jnp.stack([arrays[e % len(arrays)][e] for e in range(len(arrays[0]))])
        if not jnp.issubdtype(arrays[0].dtype, jnp.inexact):
            return arrays[0]
        wide = jnp.promote_types(arrays[0].dtype, jnp.float32)
        return jnp.mean(jnp.stack([a.astype(wide) for a in arrays]), 0).astype(arrays[0].dtype)

    mixture = rebuilt(jax.tree.structure(grown[0]), {path: mixed(path) for path in every[0]})
    mixture = in_order_of(grown[0], mixture)
    network = growth.widths.network
    if target_apply is not None and network is not None:
        inputs = network.random_inputs(jax.random.key(0))
        shares = [
            moved_by(network.apply, variables, target_apply, mixture, inputs)
            for variables in sources
        ]
        said = ", ".join(f"{100 * share:.3g}%" for share in shares if np.isfinite(share))
        warnings.warn(
            "grow_several: outputs differ from those of the networks by "
            f"{said or 'an unknown amount'} (root mean square, random inputs)",
            stacklevel=2,
        )
    return mixture
