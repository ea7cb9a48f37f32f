"""Widen Dense layers by name: ``widen``, and ``chain``, which returns their widths."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax import strategies
from dogwood_jax._base.arguments import KEY, NAMES, TREE, ArgumentKind, expect, expect_given
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import PyTree, leaves_by_path
from dogwood_jax._front.grow import grow
from dogwood_jax._front.plan import plan
from dogwood_jax._widths.layout import Units
from dogwood_jax._widths.widths import Facts, Leaf, Widths, make_widths, no_such

_LAYER = ArgumentKind(
    "the name of a layer, or a mapping, {name: units}",
    lambda value: isinstance(value, str) or (isinstance(value, Mapping) and NAMES.fits(value)),
)
_NAME = ArgumentKind("the name of a layer", lambda value: isinstance(value, str))


def widen(
    params: PyTree,
    layer: str | Mapping[str, int],
    *,
    into: str | None = None,
    units: int | None = None,
    order: Sequence[str] | None = None,
    strategy: strategies.Strategy | None = None,
    key: jax.Array | None = None,
) -> PyTree:
    """Widens Dense layers by name, without changing what the network computes.

    For plain chains of Dense layers, if you know which layer reads which; for any other network,
    ``trace`` finds the widths. Between two layers there may be any elementwise activation, but
    nothing that mixes units.

    Args:
        params: pytree of nested dicts, ``{"params": {...}}`` or the bare parameters. A Dense layer
            is a dict with a ``kernel`` of shape ``[in, out]`` and optionally a ``bias`` of shape
            ``[out]``, of any floating dtype.
        layer: path of the layer to widen, ``"dense_1"`` or ``"encoder/dense_1"``; or several
            layers with their new number of units, ``{"dense_1": 128, "dense_2": 64}``.
        into: for a single ``layer``, path of the layer that reads it.
        units: for a single ``layer``, its new number of units.
        order: for several layers, paths of all layers in the order of the data: each layer is read
            by the next.
        strategy: how new units are filled in, ``strategies.zero_outgoing()`` by default.
        key: PRNG key, needed if the strategy draws random weights.

    Returns:
        The parameters with wider layers, in the same tree structure and dtypes. For the optimizer's
        state, pass ``plan(chain(params, order), {layer: units})`` to ``grow_opt_state``.

    Raises:
        TypeError: if arguments are of the wrong kind, or in the wrong order.
        ValueError: for unknown layers, layers that are not Dense, an ``into`` whose input size is
            not the layer's number of units, fewer units than before, an order that is missing,
            cyclic or ends with a layer to widen, or a missing key.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.zeros(o)}
        >>> params = {"dense_1": layer(4, 2), "dense_2": layer(2, 3)}
        >>> wide = dw.widen(params, "dense_1", into="dense_2", units=5, key=jax.random.key(0))
        >>> wide["dense_1"]["kernel"].shape, wide["dense_2"]["kernel"].shape
        ((4, 5), (5, 3))
    """
    expect("widen(params, layer)", params=(TREE, params), layer=(_LAYER, layer))
    expect_given("widen", into=(_NAME, into), order=(NAMES, order), key=(KEY, key))
    if isinstance(layer, str):
        if into is None or units is None or order is not None:
            raise ValueError(
                f"to widen the one layer {layer!r}, pass into= (the layer that reads it) and "
                "units= (its new number of units), and no order="
            )
        sizes: Mapping[str, int] = {layer: units}
        order = (layer, into)
    else:
        if into is not None or units is not None:
            raise ValueError("into= and units= go with a single layer's name; pass order= instead")
        if order is None:
            raise ValueError(
                "to widen several layers, pass order=: all layers in the order of the data, "
                f"for example order=({', '.join(map(repr, layer))}, 'the layer that reads them')"
            )
        sizes = layer
    widths = chain(params, order)
    order, names = _short_names(order), _short_names(sizes)
    problems = [
        f"{name}: is named twice in {list(layer)}" for name in names if names.count(name) > 1
    ]
    sizes = dict(zip(names, sizes.values(), strict=True))
    for name in sizes:
        if name == order[-1]:
            problems.append(
                f"{name}: is last in order {order}, so the layer that reads it is not known; "
                "append this layer to order"
            )
        elif name not in order:
            problems.append(f"{name}: is not in order: {no_such('layer', name, list(order))}")
    if problems:
        raise ValueError(listed("cannot widen", problems))
    return grow(params, plan(widths, sizes, strategy=strategy), key=key)


def chain(params: PyTree, order: Sequence[str]) -> Widths:
    """Returns the widths of a chain of Dense layers, in which each layer is read by the next.

    Args:
        params: pytree of nested dicts, ``{"params": {...}}`` or the bare parameters, of arrays or
            ``jax.ShapeDtypeStruct``.
        order: paths of at least two layers in the order of the data.

    Returns:
        The widths, named by the layer that produces them: the same type that ``trace`` returns.

    Raises:
        TypeError: if arguments are of the wrong kind, or in the wrong order.
        ValueError: for unknown layers, layers that are not Dense, a layer that is named twice, and
            neighbours whose sizes do not match; all of them in one message.

    Example:
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
        >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
        >>> print(dw.chain(params, ("up", "down"))["up"])
        up: 8 units, growable
          -> up/kernel[1]
          -> up/bias[0]
          <- down/kernel[0]
    """
    expect("chain(params, order)", params=(TREE, params), order=(NAMES, order))
    problems: list[str] = []
    order = _short_names(order)
    if len(order) < 2:
        problems.append(f"order {order}: expected at least two layers; each is read by the next")
    for name in dict.fromkeys(order):
        if order.count(name) > 1:
            problems.append(
                f"{name}: occurs twice in order {order}; a layer cannot feed itself, so name each "
                "layer once (use trace for networks that share or loop layers)"
            )
    leaves = leaves_by_path(params)
    layers = {name: _dense_layer(leaves, name, problems) for name in dict.fromkeys(order)}
    for name, reader in zip(order, order[1:], strict=False):
        out, into = (layers[n].get("kernel", (0, 0)) for n in (name, reader))
        if layers[name] and layers[reader] and out[1] != into[0]:
            problems.append(
                f"{reader}: its kernel of shape {into} reads {into[0]} units, but {name} has "
                f"{out[1]}; name the layer that reads {name} (use trace if a flatten or a "
                "concatenation lies between them)"
            )
    if problems:
        raise ValueError(listed("not a chain of Dense layers", problems))
    facts, dense = {}, []
    first, last = f"{order[0]}[0]", order[-1]
    for name, source in zip(order, (first, *order), strict=False):
        kernel = layers[name]["kernel"]
        facts[source] = Facts(kernel[0], interface=source == first)
        facts[name] = Facts(kernel[1], interface=name == last)
        path = _layer_path(leaves, name)
        axes = (Units(source, kernel[0], "outgoing"), Units(name, kernel[1], "incoming"))
        dense.append(Leaf(f"{path}/kernel", kernel, axes, "random", (0,), (1,)))
        if "bias" in layers[name]:
            bias = layers[name]["bias"]
            dense.append(Leaf(f"{path}/bias", bias, axes[1:], "zeros"))
    return make_widths(tuple(dense), facts)


def _short_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Returns the names of layers without their collection, so that each layer has one name."""
    names = (names,) if isinstance(names, str) else names
    return tuple(name.removeprefix("params/") for name in names)


def _layer_path(leaves: Mapping[str, Any], name: str) -> str:
    """Returns the full path of a layer."""
    return f"params/{name}" if any(path.startswith("params/") for path in leaves) else name


def _dense_layer(
    leaves: Mapping[str, Any], name: str, problems: list[str]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a Dense layer's arrays; for other layers, adds to the problems."""
    path = _layer_path(leaves, name)
    arrays = {
        p.removeprefix(f"{path}/"): array for p, array in leaves.items() if p.startswith(f"{path}/")
    }
    if not arrays:
        layers = dict.fromkeys(
            p.rpartition("/")[0].removeprefix("params/") for p in leaves if "/" in p
        )
        problems.append(f"{name}: {no_such('layer', name, layers)}")
        return {}
    shapes = {p: tuple(jnp.shape(array)) for p, array in arrays.items()}
    kernel = shapes.get("kernel", ())
    if len(kernel) != 2 or shapes not in (
        {"kernel": kernel},
        {"kernel": kernel, "bias": kernel[1:]},
    ):
        found = ", ".join(f"{path}/{p} of shape {shape}" for p, shape in shapes.items())
        problems.append(
            f"{name}: expected a Dense layer, a kernel of shape [in, out] and at most one bias of "
            f"shape [out]; found {found} (use trace for other layers)"
        )
        return {}
    for p, array in arrays.items():
        dtype = jnp.result_type(array)
        if not jnp.issubdtype(dtype, jnp.floating):
            problems.append(
                f"{path}/{p}: is {dtype} of shape {shapes[p]}, but weights must be of a floating "
                "dtype; convert it first, for example with .astype(jnp.float32)"
            )
    return shapes
