"""Types that functions take and return, for annotations: ``dogwood_jax.typing``.

``Widths``, ``Growth`` and ``Refused``, the error of ``plan``, are at the top of the package.

| types | used for |
|---|---|
| ``Width``, ``Occurrence``, ``Recipe``, ``Leaf`` | the contents of ``Widths`` |
| ``Layout``: ``Units``, ``Product``, ``Concat`` | the order of units along an axis of a ``Leaf`` |
| ``Change``, ``Edit``, ``Evidence`` | the contents of a ``Growth`` |
| ``Cost``, ``RunCost`` | the results of ``cost`` |
| ``Gains``, ``Gain`` | the results of ``gain`` |
| ``Difference`` | the result of ``compare`` and ``verify`` |
| ``Utility``, ``UtilityState`` | the result of ``training.utility``, and its state |
"""

from dogwood_jax._front.compare import Difference
from dogwood_jax._front.cost import Cost
from dogwood_jax._front.gain import Gain, Gains
from dogwood_jax._front.smaller.dormant import Utility, UtilityState
from dogwood_jax._front.staged import RunCost
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.growth import Change, Evidence
from dogwood_jax._widths.layout import Concat, Layout, Product, Units
from dogwood_jax._widths.widths import Leaf, Occurrence, Recipe, Width

__all__ = [
    "Change",
    "Concat",
    "Cost",
    "Difference",
    "Edit",
    "Evidence",
    "Gain",
    "Gains",
    "Layout",
    "Leaf",
    "Occurrence",
    "Product",
    "Recipe",
    "RunCost",
    "Units",
    "Utility",
    "UtilityState",
    "Width",
]
