"""The state of an optimizer whose units are put in order in each layer: ``ordered``."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, concrete, in_order_of, leaves_by_path, rebuilt
from dogwood_jax._growth.by_layer import Order
from dogwood_jax._growth.growth import Growth
from dogwood_jax._optimizer.ages import AlongAxes
from dogwood_jax._optimizer.fields import Field, fields_of
from dogwood_jax._optimizer.growable import is_growable, unwrapped_state


def ordered(state: PyTree, growth: Growth) -> PyTree:
    """Returns the state of an optimizer in the orders in which a growth puts units.

    Raises:
        ValueError: if something is kept for a layer or a unit alone, which has no order.
    """
    plain, problems = unwrapped_state(state), list[str]()
    arrays = leaves_by_path(plain)
    for field in fields_of(plain, growth):
        for order in growth.orders.get(field.leaf.path, ()):
            arrays[field.place] = _ordered(arrays[field.place], field, order, problems)
    for node in jax.tree.leaves(state, is_leaf=is_growable):
        if is_growable(node) and node.ages:
            problems += _of_other_ages(node.ages.by_path(), growth)
    if problems:
        raise ValueError(listed("cannot grow this state", dict.fromkeys(problems)))
    tree = in_order_of(plain, rebuilt(jax.tree.structure(plain), arrays))
    return jax.tree.map(
        lambda node, its: node._replace(inner_state=its) if is_growable(node) else its,
        state,
        tree,
        is_leaf=is_growable,
    )


def _ordered(array: Any, field: Field, order: Order, problems: list[str]) -> Any:
    """Returns an array of the state in order."""
    shape, dropped = field.leaf.shape, field.axis
    if np.shape(array) == shape:
        return order.of(array)
    if np.size(array) == 1:  # in place of what is kept as factors, or one number for the array
        return array
    if field.is_factor and dropped is None:
        smaller, largest = np.argsort(shape)[-2:].tolist()
        dropped = largest if field.name == "v_row" else smaller
        if np.shape(array) == (*shape[:dropped], *shape[dropped + 1 :]):
            if dropped == order.axis:
                return array
            if dropped == order.layers:  # means over layers: of what comes to a place in each
                axis = order.axis - (order.axis > dropped)
                return jnp.mean(jnp.stack([jnp.take(array, e, axis) for e in _rows(order)]), 0)
            layers, axis = (at - (at > dropped) for at in (order.layers, order.axis))
            return Order(layers, axis, order.entries).of(array)
    elif dropped is not None and dropped != order.axis:
        return array
    problems.append(
        f"{field.place}: has shape {np.shape(array)}, which does not say what belongs to a unit of "
        "one layer; keep the same units in all layers, or start anew with tx.init"
    )
    return array


def _rows(order: Order) -> list[np.ndarray]:
    return [np.asarray(entries) for entries in order.entries]


def _of_other_ages(known: Mapping[str, AlongAxes], growth: Growth) -> list[str]:
    """Says where units of one layer, or of several ones, are of other ages."""
    problems = []
    for path, several in growth.orders.items():
        names = {path, path.partition("/")[2]}
        for along in (along for inner, along in known.items() if inner in names):
            for order in several:
                cohorts = concrete(along.cohorts[order.axis])
                if cohorts is None or (cohorts != cohorts[:1]).any():
                    problems.append(
                        f"{path}: its units are of several ages, which are kept for all layers "
                        "together; keep the same units in all layers"
                    )
    return problems
