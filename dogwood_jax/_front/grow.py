"""Grow the arrays: ``grow``."""

from jax import Array

from dogwood_jax._base.arguments import BOOLEAN, GROWTH, KEY, VARIABLES, expect, expect_given
from dogwood_jax._base.described import described, library_of
from dogwood_jax._base.trees import PyTree
from dogwood_jax._growth.by_gradient import choose
from dogwood_jax._growth.grown import grown
from dogwood_jax._growth.growth import Growth
from dogwood_jax._growth.rounds import unshared


def grow(
    variables: PyTree,
    growth: Growth,
    *,
    key: Array | None = None,
    fresh: PyTree = None,
    donate: bool = False,
    copy: bool = False,
) -> PyTree:
    """Grows variables as planned.

    Old units keep their values and their order, and new units are appended, or lie between old ones
    where the growth says so. With a preserving strategy the grown network computes what the old one
    did. Arrays in which nothing grows are passed through as they are, and shared with the old tree.

    Args:
        variables: pytree of the arrays the growth was planned for, of any floating dtype, on any
            devices; also under ``jax.jit`` and ``jax.eval_shape``. New entries of quantized
            weights, such as ``int8``, are zeros. Modules in it that hold sizes beside their arrays,
            such as Equinox's ``out_features``, get the new sizes.
        growth: from ``plan``; static under ``jax.jit``, without being named so.
        key: PRNG key for random weights, needed only if the strategy draws some.
        fresh: variables of the larger model from its own initialization. Free weights are taken
            from ``fresh`` instead of being drawn, and the result has its tree structure. If all
            free weights of a width are zero in it, new units would never learn. Then they are drawn
            with ``key``. To write old values into ``fresh`` in place, use ``jax.jit(...,
            donate_argnames="fresh", keep_unused=True)``; some arrays of it are not read at all.
        donate: whether old arrays that grow may be deleted, each when its new one is there: then
            growing takes no more memory than the new arrays and the largest old one. It has no
            effect under ``jax.jit``.
        copy: whether arrays that stay as they are become copies. By default, old and new trees
            share them. A train step that donates its arguments deletes shared arrays in the old
            tree, too.

    Returns:
        The variables of the larger model, with the dtypes of the old ones.

    Raises:
        TypeError: if ``variables`` are no pytree of arrays, ``growth`` is none, or ``key`` is no
            random key.
        ValueError: if the variables or ``fresh`` do not have the shapes of the growth; if an array
            that grows is of a dtype that cannot be filled in; if the strategy draws random weights
            and there is neither ``key`` nor ``fresh``; or if it is not known which sizes a module
            should hold (plan with ``target`` then, or pass ``fresh``). Also if an array that grows,
            or its part of ``fresh``, holds NaN or infinities: outputs may change, because zero
            times NaN is NaN. Within ``jax.jit`` values cannot be seen, so this is not checked.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 16})
        >>> jax.tree.map(jnp.shape, dw.grow(params, growth, key=jax.random.key(0)))["down"]
        {'bias': (2,), 'kernel': (16, 2)}
    """
    if library_of(variables) == "NNX":
        raise TypeError(
            f"grow: variables must be a pytree of arrays, got {described(variables)}; "
            "dw.nnx.grow(module, growth, key=key) grows modules"
        )
    expect("grow(variables, growth)", variables=(VARIABLES, variables), growth=(GROWTH, growth))
    expect_given("grow", key=(KEY, key), fresh=(VARIABLES, fresh), copy=(BOOLEAN, copy))
    wide = grown(variables, growth, key=key, fresh=fresh, donate=donate, choose=choose)
    return unshared(wide, variables, fresh) if copy else wide
