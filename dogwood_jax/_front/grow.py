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

    Old units keep their values and their order. New units are appended, or inserted between old
    units if the growth says so. With a preserving strategy, the grown network computes the same as
    the old one. Arrays in which nothing grows are passed through and shared with the old tree.

    Args:
        variables: pytree of the arrays the growth was planned for, of any floating dtype, on any
            devices; also under ``jax.jit`` and ``jax.eval_shape``. New entries of quantized
            weights, such as ``int8``, are zeros. Size fields of modules in the pytree, such as
            Equinox's ``out_features``, are updated.
        growth: from ``plan``; static under ``jax.jit`` without ``static_argnames``.
        key: PRNG key for random weights, needed only if the strategy draws random weights.
        fresh: variables of the larger model from its own initialization. Free weights are taken
            from ``fresh`` instead of being drawn, and the result has its tree structure. If all
            free weights of a width are zero in ``fresh``, new units would never learn, so these
            weights are drawn with ``key``. To write old values into ``fresh`` in place, use
            ``jax.jit(..., donate_argnames="fresh", keep_unused=True)``, because some of its arrays
            are not read.
        donate: whether to delete each old array that grows once its new array exists. Growing then
            takes no more memory than the new arrays and the largest old one. It has no effect
            under ``jax.jit``.
        copy: whether to copy arrays that stay as they are. By default, old and new trees share
            them, so a train step that donates its arguments also deletes shared arrays of the old
            tree.

    Returns:
        The variables of the larger model, with the dtypes of the old variables.

    Raises:
        TypeError: if ``variables`` is not a pytree of arrays, ``growth`` is not a growth, or
            ``key`` is not a random key.
        ValueError: if the variables or ``fresh`` do not have the shapes of the growth; if an array
            that grows is of a dtype that cannot be filled in; if the strategy draws random weights
            and there is neither ``key`` nor ``fresh``; or if the new sizes of a module cannot be
            determined (plan with ``target`` then, or pass ``fresh``). Also if an array that grows,
            or its part of ``fresh``, holds NaN or infinities: outputs may change, because zero
            times NaN is NaN. This is not checked within ``jax.jit``, where there are no values.

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
