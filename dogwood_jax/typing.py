"""What functions take and return, for annotations: ``dogwood_jax.typing``.

``Widths`` and ``Growth`` are at the top of the package, and ``Refused``, the error of ``plan``.

| types | of |
|---|---|
| ``Width``, ``Occurrence``, ``Recipe``, ``Leaf`` | what ``Widths`` hold |
| ``Layout``: ``Units``, ``Product``, ``Concat`` | how units lie along an axis of a ``Leaf`` |
| ``Change``, ``Edit``, ``Evidence`` | what a ``Growth`` holds |
| ``Cost``, ``RunCost`` | what ``cost`` returns |
| ``Gains``, ``Gain`` | what ``gain`` returns |
| ``Difference`` | what ``compare`` and ``verify`` return |
| ``Utility``, ``UtilityState`` | what ``training.utility`` returns, and its state |
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
