"""``Widths`` and ``Growth`` as JSON, so that a run can record how it grew and replay it.

Members with default values are left out, so defaults must never change.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax

import dogwood_jax
from dogwood_jax import strategies
from dogwood_jax._base.arguments import ArgumentKind, expect
from dogwood_jax._base.described import described
from dogwood_jax._base.trees import leaves_by_path, nested
from dogwood_jax._growth.edit import Edit, Fill, Layers, Repetition
from dogwood_jax._growth.growth import Change, Evidence, Growth
from dogwood_jax._program.numbered import KeptLayers, NumberedLayers
from dogwood_jax._program.reasons import Reason, ReasonKind
from dogwood_jax._widths.layout import Concat, Product, Units
from dogwood_jax._widths.widths import Facts, Leaf, Recipe, Widths

_TYPES = {
    cls.__name__: cls
    for cls in (
        *(
            Change,
            Concat,
            Edit,
            Evidence,
            Facts,
            Growth,
            Repetition,
            Fill,
            KeptLayers,
            Layers,
            Leaf,
            NumberedLayers,
            Product,
            Recipe,
            Units,
            Widths,
        ),
        strategies.Start,
    )
}
_TYPE = "type"
_INITIALIZERS = {"glorot": strategies.glorot}
_KINDS: dict[str, ReasonKind] = {kind: kind for kind in typing.get_args(ReasonKind)}


def to_json(value: Widths | Growth) -> str:
    """Returns widths or a growth as JSON text, for ``from_json``.

    A target that is an NNX module or state is written by its paths: ``from_json`` returns nested
    dicts and lists for it.

    Args:
        value: from ``trace``, ``chain`` or ``plan``.

    Raises:
        TypeError: if the value is neither.
        ValueError: if a strategy has a custom initializer, which is code, or a loss and a batch; or
            if the target's tree structure contains classes of other libraries.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> widths = dw.chain({"up": layer(4, 8), "down": layer(8, 2)}, ("up", "down"))
        >>> growth = dw.plan(widths, {"up": 16})
        >>> dw.from_json(dw.to_json(growth)) == growth
        True
    """
    expect("to_json", value=(_WIDTHS_OR_GROWTH, value))
    return json.dumps(_encoded(value))


def from_json(text: str) -> Any:
    """Returns the widths or the growth that ``to_json`` wrote.

    Args:
        text: the JSON text. Nothing in it is executed.

    Returns:
        The ``Widths`` or ``Growth``, equal to the written one.

    Raises:
        TypeError: if ``text`` is not text.
        ValueError: if ``to_json`` did not write the text, or a newer version wrote it.
    """
    expect("from_json", text=(_TEXT, text))
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"from_json: expected the JSON text that to_json wrote, got {text[:60]!r}, which is "
            f"not JSON ({error}); if this is the name of a file, pass the file's content"
        ) from error
    value = _decoded(read)
    if not isinstance(value, Widths | Growth):
        raise ValueError(f"{_EXPECTED}, got {text[:60]!r}")
    return value


_EXPECTED = "from_json: expected the text that to_json wrote of widths or a growth"
_WIDTHS_OR_GROWTH = ArgumentKind(
    "the Widths that dw.trace returns or the Growth that dw.plan returns",
    lambda value: isinstance(value, Widths | Growth),
)
_TEXT = ArgumentKind(
    "the JSON text that to_json wrote",
    lambda value: isinstance(value, str | bytes | bytearray),
    lambda value: "pass json.dumps of it" if isinstance(value, Mapping) else "",
)


def _encoded(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and type(value).__name__ in _TYPES:
        members = {
            field.name: _encoded(member)
            for field in dataclasses.fields(value)
            for member in [getattr(value, field.name)]
            if field.name != "network" and not _is_default(member, field.default)
        }
        if isinstance(value, Widths):
            members["is_saved"] = value.is_saved or value.network is not None
        return {_TYPE: type(value).__name__, **members}
    if isinstance(value, strategies.Choice):
        raise ValueError(
            "a strategy with a loss and a batch cannot be written as JSON; plan with "
            "strategies.zero_outgoing(), which gives a growth of the same shapes"
        )
    if isinstance(value, Reason) and value.kind:
        return {_TYPE: "Reason", "text": str(value), "kind": value.kind}
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, jax.tree_util.PyTreeDef):
        tree = jax.tree.unflatten(value, [0] * value.num_leaves)
        if type(tree).__module__.startswith("flax.nnx"):
            tree = nested(leaves_by_path(tree))
        return {_TYPE: "tree", "tree": _plain(tree)}
    if callable(value):
        for name, known in _INITIALIZERS.items():
            if value is known:
                return {_TYPE: "initializer", "name": name}
        raise ValueError(
            f"the initializer {value!r} cannot be written as JSON; plan with the default one and "
            "pass the larger model's own variables as fresh= to grow"
        )
    return value


def _is_default(value: Any, default: Any) -> bool:
    """Whether a member has its default value. Tree structures cannot be compared with None."""
    return type(value) is type(default) and bool(value == default)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    members = dict(value)
    kind = members.pop(_TYPE, None)
    if kind == "tree":
        return jax.tree.structure(_tree(members.get("tree")))
    if kind == "initializer":
        return _known(_INITIALIZERS, members.get("name"), "initializer")
    if kind == "Reason":
        text, of_kind = members.get("text"), members.get("kind")
        if not isinstance(text, str):
            raise ValueError(f"{_EXPECTED}; Reason.text cannot be {described(text)}")
        return Reason(text, _known(_KINDS, of_kind, "kind of reason"))
    if kind is None:
        raise ValueError(f"{_EXPECTED}, got an object without {_TYPE!r}")
    cls = _known(_TYPES, kind, "type")
    hints = _hints(cls)
    for name in members:
        _known(hints, name, f"member of {kind}")
    decoded = {name: _decoded(member) for name, member in members.items()}
    for name, member in decoded.items():
        if not _fits(member, hints[name]):
            raise ValueError(f"{_EXPECTED}; {kind}.{name} cannot be {described(member)}")
    if missing := _required(cls) - members.keys():
        raise ValueError(f"{_EXPECTED}; {kind} lacks {', '.join(sorted(missing))}")
    return cls(**decoded)


def _known(choices: Mapping[str, Any], name: Any, what: str) -> Any:
    if not isinstance(name, str) or name not in choices:
        raise ValueError(
            f"{_EXPECTED}; dogwood_jax {dogwood_jax.__version__} has no {what} {name!r}; it may be "
            "older than the version that wrote the text"
        )
    return choices[name]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Returns the types of a class's members."""
    names = (field.name for field in dataclasses.fields(cls) if field.name != "network")
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in names}


def _required(cls: type) -> set[str]:
    """Returns the names of members that have no default."""
    missing = dataclasses.MISSING
    return {field.name for field in dataclasses.fields(cls) if field.default is missing}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON can be a member of this type."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is typing.Literal:
        return value in parts
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(each) and all(map(_fits, value, each))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint) if isinstance(hint, type) else callable(value)


def _plain(tree: Any) -> Any:
    """Returns a tree of dicts, lists and tuples in which every node names its type."""
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _plain(child) for key, child in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_plain(child) for child in tree]}
    if tree is None or tree == 0:
        return tree
    raise ValueError(
        f"the target's tree holds a {type(tree).__name__}, which cannot be written as JSON; plan "
        "again where the growth is needed (shapes from eqx.filter_eval_shape are enough), or plan "
        "by sizes and pass the larger model's own variables as fresh= to grow"
    )


def _tree(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((kind, children),) = plain.items()
    if kind == "dict":
        return {key: _tree(child) for key, child in children.items()}
    return {"list": list, "tuple": tuple}[kind](map(_tree, children))
