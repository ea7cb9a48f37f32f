"""``Widths`` and ``Growth`` as JSON, so that a run can record how it grew and replay it."""

import dataclasses
import json
from typing import Any

import jax

from dogwood_jax import strategies
from dogwood_jax._growth import Change, Growth
from dogwood_jax._insert import Insertion
from dogwood_jax._layout import Concat, Product, Units
from dogwood_jax._widths import Facts, Leaf, Recipe, Widths

_TYPES = {
    cls.__name__: cls
    for cls in (
        *(Change, Concat, Facts, Growth, Insertion, Leaf, Product, Recipe, Units, Widths),
        strategies.Strategy,
    )
}
_TYPE = "type"
_INITIALIZERS = {"glorot": strategies.glorot}


def to_json(value: Widths | Growth) -> str:
    """Returns widths or a growth as JSON text, for ``from_json``.

    Args:
        value: from ``trace``, ``chain`` or ``plan``.

    Raises:
        ValueError: if a strategy has an initializer of the caller's own, which is code, or a loss
            and a batch; or if the target's tree structure is not made of dicts, lists and tuples.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> widths = dw.chain({"up": layer(4, 8), "down": layer(8, 2)}, ("up", "down"))
        >>> growth = dw.plan(widths, {"up": 16})
        >>> dw.from_json(dw.to_json(growth)) == growth
        True
    """
    return json.dumps(_encoded(value))


def from_json(text: str) -> Any:
    """Returns the widths or the growth that ``to_json`` wrote.

    Args:
        text: the JSON text. Nothing in it is executed.

    Returns:
        The ``Widths`` or ``Growth``, equal to the one that was written.

    Raises:
        ValueError: if the text is not what ``to_json`` writes.
    """
    value = _decoded(json.loads(text))
    if not isinstance(value, Widths | Growth):
        raise ValueError(f"expected JSON that to_json wrote, got {text[:60]!r}")
    return value


def _encoded(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and type(value).__name__ in _TYPES:
        members = {
            field.name: _encoded(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in ("network", "conflicts")
        }
        if isinstance(value, Widths):
            members["conflicts"] = _encoded(value.recorded_conflicts)
        return {_TYPE: type(value).__name__, **members}
    if isinstance(value, strategies.Choice):
        raise ValueError(
            "a strategy that looks at a loss and a batch cannot be written as JSON; the growth "
            "planned with strategies.zero_outgoing() has the same shapes and can"
        )
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, jax.tree_util.PyTreeDef):
        return {_TYPE: "tree", "tree": _plain(jax.tree.unflatten(value, [0] * value.num_leaves))}
    if callable(value):
        for name, known in _INITIALIZERS.items():
            if value is known:
                return {_TYPE: "initializer", "name": name}
        raise ValueError(
            f"the initializer {value!r} cannot be written as JSON; plan with the default one and "
            "pass the larger model's own variables as fresh= to grow"
        )
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    members = dict(value)
    kind = members.pop(_TYPE, None)
    try:
        if kind == "tree":
            return jax.tree.structure(_tree(members["tree"]))
        if kind == "initializer":
            return _INITIALIZERS[members["name"]]
        return _TYPES[kind](**{name: _decoded(member) for name, member in members.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected JSON that to_json wrote; {kind!r}: {error}") from error


def _plain(tree: Any) -> Any:
    """Returns a tree of dicts, lists and tuples in which every node says what it is."""
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _plain(child) for key, child in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_plain(child) for child in tree]}
    if tree is None or tree == 0:
        return tree
    raise ValueError(
        f"the target's tree holds a {type(tree).__name__}, which cannot be written as JSON; plan "
        "by sizes instead and pass the larger model's own variables as fresh= to grow"
    )


def _tree(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, children),) = plain.items()
    if kind == "dict":
        return {key: _tree(child) for key, child in children.items()}
    return {"list": list, "tuple": tuple}[kind](map(_tree, children))
