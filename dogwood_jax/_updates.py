"""Let an optimizer take the steps in the larger network that it took: ``scale_by_growth``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._affine import AxisMap, map_of_variable, transform
from dogwood_jax._arguments import GROWTH, Kind, expect, expect_given
from dogwood_jax._growth import Growth
from dogwood_jax._layout import Units
from dogwood_jax._opt_fields import by_inner_path
from dogwood_jax._problems import listed
from dogwood_jax._tree import PyTree, leaf_path, leaves_by_path
from dogwood_jax._widths import Leaf


def _is_adam(value: Any) -> bool:
    match value:
        case (int() | float() as b1, int() | float() as b2, int() | np.integer() | Array()):
            return 0 <= b1 < 1 and 0 <= b2 < 1
    return False


_ADAM = Kind("(b1, b2, count) with decay rates below 1, such as (0.9, 0.999, 500)", _is_adam)


class ScaleByGrowthState(NamedTuple):
    """The number of steps since the network grew."""

    steps: Array


def scale_by_growth(growth: Growth, *, adam: tuple[float, float, int] | None = None) -> Any:
    """Scales updates as weights were scaled when the network grew.

    Adam and its like take steps of about the learning rate, however small a weight. Where k copies
    share the outgoing weights of a unit, each takes a whole step, so their sum moves k times as
    far as the weight did before, and the loss shows it, though all moments are right. With updates
    divided like the weights, the larger network takes the very steps of the one that did not grow;
    the same goes for weights that a recipe rescaled. Copies then stay copies, so leave it out once
    training has settled, or grow with a little noise.

    New entries can also be corrected for the bias of their own moments, which are younger than
    the optimizer's step count. For a state that grew with ``second_moment="zeros"`` they are then
    updated as by a new Adam, by at most about the learning rate, while old entries go on.

    Args:
        growth: from ``plan``.
        adam: ``(b1, b2, count)``: the decay rates of an Adam whose state grew with
            ``second_moment="zeros"``, and its step count then. None to leave new entries alone.

    Returns:
        An ``optax.GradientTransformation``, to be chained behind an optimizer whose updates do not
        scale with the gradient, until the network changes again.

    Raises:
        TypeError: if ``growth`` is none, or ``adam`` no such numbers.
        ValueError: at an update, if arrays are not of the larger network.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> widths = dw.chain(params, ("up", "down"))
        >>> growth = dw.plan(widths, {"up": 16}, strategy=dw.strategies.replicate())
        >>> adam, scale = optax.adam(1e-3), dw.scale_by_growth(growth)
        >>> wide = dw.grow(params, growth)
        >>> state = dw.grow_opt_state(adam.init(params), growth, adam), scale.init(wide)
        >>> updates, state = optax.chain(adam, scale).update(wide, state, wide)
        >>> print(f"{updates['down']['kernel'][0, 0]:.6f}, {updates['up']['kernel'][0, 0]:.6f}")
        -0.000500, -0.001000
    """
    import optax

    expect("scale_by_growth", growth=(GROWTH, growth))
    expect_given("scale_by_growth", adam=(_ADAM, adam))

    def init(params: PyTree) -> ScaleByGrowthState:
        return ScaleByGrowthState(jnp.zeros([], jnp.int32))

    def update(
        updates: PyTree, state: ScaleByGrowthState, params: PyTree = None
    ) -> tuple[PyTree, ScaleByGrowthState]:
        steps = state.steps + 1
        correction = jnp.ones([]) if adam is None else _correction(steps, *adam)
        scales = _Scales(growth, correction, updates)
        scaled = jax.tree_util.tree_map_with_path(scales.scaled, updates)
        if scales.problems:
            raise ValueError(listed("these updates are not of the larger network", scales.problems))
        return scaled, ScaleByGrowthState(steps)

    return optax.GradientTransformation(init, update)


def _correction(steps: Array, b1: float, b2: float, before: int) -> Array:
    """Returns by what Adam's correction for bias is off for moments as young as the growth."""

    def bias(steps: Array) -> Array:
        return jnp.sqrt(1 - b2**steps) / (1 - b1**steps)

    return bias(steps) / bias(steps + before)


class _Scales:
    """What the updates of each array are multiplied by.

    Args:
        growth: how the network grew.
        correction: what updates of new entries are multiplied by.
        updates: the updates, of all variables or of a collection.

    Attributes:
        problems: which arrays do not have the shapes of the larger network.
    """

    def __init__(self, growth: Growth, correction: Array, updates: PyTree) -> None:
        self.growth, self.correction = growth, correction
        self.problems: list[str] = []
        self._leaves = {growth.place(leaf.path): leaf for leaf in growth.widths.leaves}
        self._inserted = {insertion.path: insertion for insertion in growth.insertions}
        self._shapes = {path: growth.shapes[leaf.path] for path, leaf in self._leaves.items()}
        self._shapes |= {path: insertion.shape for path, insertion in self._inserted.items()}
        inside, fits = by_inner_path(self._shapes), Counter[str]()
        for path, update in leaves_by_path(updates).items():
            for collection, shape in inside.get(path, {}).items():
                fits[collection] += 2 if jnp.shape(update) == shape else 1
        # The first of those that fit best.
        self._collection = max(fits, key=fits.__getitem__, default="")
        if not fits and jax.tree.leaves(updates):
            self.problems.append("they are called like none of its arrays")

    def scaled(self, keys: Any, update: Any) -> Any:
        """Returns the update of one array."""
        path, update = self._collection + leaf_path(keys), jnp.asarray(update)
        insertion, leaf = self._inserted.get(path), self._leaves.get(path)
        if path not in self._shapes:
            return update
        shape = self._shapes[path]
        if update.shape != shape:
            self.problems.append(f"{path}: has shape {update.shape}, expected {shape}")
            return update
        scale = jnp.zeros((1,) * len(shape))
        if leaf is not None:
            layers = insertion.layers if insertion else ()
            scale = self._of_old(leaf, layers)
        scale = jnp.where(scale == 0, self.correction.astype(scale.dtype), scale)
        return update * scale.astype(update.dtype)

    def _of_old(self, leaf: Leaf, layers: Sequence[int]) -> Array:
        """Returns what old entries of an array are multiplied by, and 0 for new ones."""
        growth = self.growth

        def map_of(units: Units) -> AxisMap:
            along = map_of_variable(growth.change[units.width], units, leaf)
            return replace(along, fill="zero", noise=0.0)

        scale = jnp.full((1,) * len(leaf.axes), growth.factors.get(leaf.path, 1.0))
        for axis, layout in enumerate(leaf.axes):
            along = transform(jnp.ones(leaf.shape[axis]), (layout,), growth.sizes, map_of)
            if layers and axis == 0:
                along = (jnp.asarray(layers) >= 0).astype(scale.dtype)
            scale = scale * along.reshape([-1 if a == axis else 1 for a in range(scale.ndim)])
        return scale
