"""Estimates how much a new unit or layer would lower the loss: ``gain``."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dogwood_jax._base.arguments import (
    KEY,
    VARIABLES,
    WIDTHS,
    ArgumentKind,
    expect,
    expect_call,
    expect_given,
    expect_scalar,
)
from dogwood_jax._base.described import first_line
from dogwood_jax._base.problems import Refused
from dogwood_jax._base.tables import table
from dogwood_jax._base.trees import PyTree, leaves_by_path, rebuilt
from dogwood_jax._front.cost import cost
from dogwood_jax._front.grow import grow
from dogwood_jax._front.loss_first import loss_first
from dogwood_jax._front.plan import plan
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.silence import SEEN, heard, silenced
from dogwood_jax._widths.layout import units_along, units_of
from dogwood_jax._widths.widths import Leaf, Widths, no_such

_LOSS = ArgumentKind("a function, loss(variables, *batch)", callable)
DRAWS = 16  # of each new unit; its gain is their mean


@dataclass(frozen=True)
class Gain:
    """How much growing one width would lower the loss, at first order.

    A step of gradient descent lowers the loss by the learning rate times the gain.

    Attributes:
        width: name of the width.
        size: its number of units.
        unit: the gain of one more unit.
        parameters: the number of parameters of one more unit.
        flops: floating-point operations of one more unit in a training step, if they are known.
        layer: the gain of a Dense layer behind the units that begins as the identity, if some
            array reads the units.
        layer_parameters: the number of parameters of such a layer.
    """

    width: str
    size: int
    unit: float
    parameters: int
    flops: int | None = None
    layer: float | None = None
    layer_parameters: int = 0

    @property
    def per_parameter(self) -> float:
        """The gain of a unit per parameter."""
        return self.unit / self.parameters

    @property
    def per_flop(self) -> float | None:
        """The gain of a unit per floating-point operation, if these are known."""
        return self.unit / self.flops if self.flops else None

    @property
    def layer_per_parameter(self) -> float | None:
        """The gain of a layer per parameter."""
        return None if self.layer is None else self.layer / self.layer_parameters


@dataclass(frozen=True, repr=False)
class Gains(Mapping[str, Gain]):
    """The gains of all widths that can grow, the largest gain per parameter first.

    A mapping from the names of widths; ``print`` shows a table.

    Attributes:
        gains: one for each width.
        skipped: the other widths, each with the reason why it has no estimate.
    """

    gains: tuple[Gain, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _by_name(self) -> dict[str, Gain]:
        return {gain.width: gain for gain in self.gains}

    def __getitem__(self, name: str) -> Gain:
        if name in self.skipped:
            raise KeyError(f"{name}: no estimate: {self.skipped[name]}")
        if name not in self._by_name:
            raise KeyError(no_such("width", name, self._by_name))
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.gains)

    def __str__(self) -> str:
        head = ("width", "size", "a unit", "per parameter", "per FLOP", "a layer", "per parameter")
        rows: list[tuple[str, ...]] = [head]
        for gain in self.gains:
            of_unit = (gain.unit, gain.per_parameter, gain.per_flop)
            of_layer = (gain.layer, gain.layer_per_parameter)
            rows.append((gain.width, str(gain.size), *map(_short, (*of_unit, *of_layer))))
        lines = [table(rows)] if self.gains else ["no width can grow"]
        lines += (f"no estimate of {name}: {why}" for name, why in self.skipped.items())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Gains({', '.join(f'{g.width}={g.unit:.3g}' for g in self.gains)})"


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"


@loss_first
def gain(
    variables: PyTree,
    widths: Widths,
    loss: Callable[..., Any],
    *batch: Any,
    key: Array | None = None,
) -> Gains:
    """Estimates where one more unit, or one more layer, would lower the loss most.

    The estimate for a unit is the squared norm of the loss gradient at the weights of a new unit
    with random incoming and zero outgoing weights, as the default strategy makes it. It is the mean
    of several draws. At first order, a step of gradient descent on these weights lowers the loss by
    the learning rate times the estimate. The estimate for a layer is the squared norm of the
    gradient at the kernel of a Dense layer behind the units that begins as the identity, without an
    activation. With a relu behind it, the layer gains about as much.

    The estimates compare widths on this batch, at the first step. They do not predict the loss
    after long training, and old weights may lower the same part of the loss: grow once training has
    slowed down.

    Args:
        variables: pytree of the network's arrays.
        widths: its widths, from ``trace`` or ``chain``.
        loss: function ``loss(variables, *batch)`` of the *larger* model's variables, as for
            ``strategies.gradmax``: it must work for arrays of any size. It may also come first, as
            functions do: ``gain(loss, variables, widths, *batch)``.
        *batch: arrays, or pytrees of them.
        key: PRNG key for the incoming weights of new units; a fixed key by default.

    Returns:
        The gains by width, the largest gain per parameter first.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if no width can be tried, because the loss does not take larger arrays.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> def loss(params, x, y):
        ...     return jnp.mean((apply(params, x) - y) ** 2)
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 9, 3))
        >>> params = {"up": x[:3, :2], "down": x[:2]}
        >>> gains = dw.gain(params, dw.trace(apply, params, x), loss, x, y)
        >>> gains["up"].parameters, gains["up"].unit > 0
        (6, True)

    Reference:
        Evci et al., 2022, GradMax: Growing Neural Networks using Gradient Information (the norm of
        the gradient as the value of a unit); Wu, Liu, Stone and Liu, 2020, Firefly Neural
        Architecture Descent (comparing places to grow at first order).
    """
    expect(
        "gain(variables, widths, loss)",
        variables=(VARIABLES, variables),
        widths=(WIDTHS, widths),
        loss=(_LOSS, loss),
    )
    expect_given("gain", key=(KEY, key))
    expect_call("gain(variables, widths, loss, *batch)", "loss", loss, variables, *batch)
    value = None
    with suppress(Exception):  # the loss may take only larger arrays
        value = jax.eval_shape(loss, variables, *batch)
    if value is not None:
        expect_scalar("gain", value)
    key = jax.random.key(0) if key is None else key
    # Only the loss must take other sizes; the network's own function need not.
    hidden = [name for name, width in widths.items() if not (width.fixed or width.interface)]
    plain = replace(silenced(widths, hidden, widths), network=None)
    sizes, skipped = _tried(plain, {*heard(widths, hidden)})
    units: dict[str, float] = {}
    try:
        units = _units(variables, plain, sizes, loss, batch, key) if sizes else {}
    except Exception as error:  # the loss may raise anything if grown arrays do not fit it
        failed = error
        for name, size in sizes.items():
            try:
                units |= _units(variables, plain, {name: size}, loss, batch, key)
            except Exception as error:
                skipped[name] = f"the loss raises {first_line(error)}"
        if not units:
            raise ValueError(
                "gain: the loss does not take the arrays of a larger network; it must work for "
                f"arrays of any size: {first_line(failed)}"
            ) from failed
    layers = _layers(variables, plain, list(units), loss, batch)
    gains = [_gain(widths, name, unit, layers.get(name)) for name, unit in units.items()]
    return Gains(tuple(sorted(gains, key=lambda gain: -gain.per_parameter)), skipped)


def _tried(widths: Widths, loud: Collection[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Returns the sizes to try, and the reasons for widths that are not tried."""
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for name, width in widths.items():
        if width.fixed or width.interface:
            continue
        if name in loud:
            skipped[name] = SEEN
            continue
        try:
            growth = plan(widths, {name: width.size + 1})
        except Refused as error:
            skipped[name] = error.problems[-1]
            continue
        if growth.change[name].strategy.incoming == "copy":
            skipped[name] = "it grows by copies"
        else:
            sizes[name] = width.size + 1
    return sizes, skipped


def _gain(widths: Widths, name: str, unit: float, layer: float | None) -> Gain:
    """Returns the gain of a width with the cost of one more unit."""
    size = widths[name].size
    more = cost(widths, {name: size + 1})
    flops = None if more.flops is None else more.flops[1] - more.flops[0]
    parameters = more.parameters[1] - more.parameters[0]
    return Gain(name, size, unit, parameters, flops, layer, size * size + size)


def _units(
    variables: PyTree,
    widths: Widths,
    sizes: Mapping[str, int],
    loss: Callable[..., Any],
    batch: tuple[Any, ...],
    key: Array,
) -> dict[str, float]:
    """Returns the gain of a new unit of each width, as the mean over several draws."""
    growth = plan(widths, sizes)
    new = {leaf.path: _new_entries(leaf, growth) for leaf in growth.after.leaves}
    totals = dict.fromkeys(sizes, 0.0)
    slopes: _Gradients | None = None
    for number in range(DRAWS):
        wide = grow(variables, growth, key=jax.random.fold_in(key, number))
        slopes = slopes or _Gradients(wide, loss, batch)
        arrays = slopes.arrays_of(wide)
        # Each unit is tried separately: no new unit reads another new unit.
        shared = {path: sum(along.values()) > 1 for path, along in new.items()}
        arrays |= {p: jnp.where(shared[p], 0, arrays[p]) for p in new if p in arrays}
        for path, gradient in slopes(arrays).items():
            for name, is_new in new.get(path, {}).items():
                is_tried = is_new & ~shared[path]
                totals[name] += float(jnp.sum(jnp.where(is_tried, jnp.abs(gradient) ** 2, 0)))
    return {name: total / DRAWS for name, total in totals.items()}


def _new_entries(leaf: Leaf, growth: Growth) -> dict[str, np.ndarray]:
    """Returns masks of the new units of each width in a grown array, to be broadcast."""
    found: dict[str, np.ndarray] = {}
    for axis, layout in enumerate(leaf.axes):
        for name in {units.width for units in units_of(layout)} & growth.change.keys():
            along = units_along(layout, name, ("incoming", "outgoing", "both"))
            shape = [-1 if other == axis else 1 for other in range(len(leaf.axes))]
            is_new = (along >= growth.change[name].old).reshape(shape)
            found[name] = found[name] | is_new if name in found else is_new
    return found


class _Gradients:
    """Computes the gradients of a loss by path, for arrays that have one; compiled once.

    Args:
        variables: the variables, for their structure.
        loss: function of variables and a batch.
        batch: the other arguments of ``loss``.
    """

    def __init__(self, variables: PyTree, loss: Callable[..., Any], batch: tuple[Any, ...]) -> None:
        structure, leaves = jax.tree.structure(variables), leaves_by_path(variables)
        others = {path: leaf for path, leaf in leaves.items() if not _has_gradient(leaf)}

        def objective(arrays: Mapping[str, Array], batch: tuple[Any, ...]) -> Any:
            return loss(rebuilt(structure, {**others, **arrays}), *batch)

        self._batch, self._gradients = batch, jax.jit(jax.grad(objective))

    def arrays_of(self, variables: PyTree) -> dict[str, Array]:
        """Returns the arrays that have a gradient."""
        leaves = leaves_by_path(variables).items()
        return {path: jnp.asarray(leaf) for path, leaf in leaves if _has_gradient(leaf)}

    def __call__(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        found: dict[str, Array] = self._gradients(arrays, self._batch)
        return found


def _has_gradient(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _layers(
    variables: PyTree,
    widths: Widths,
    names: list[str],
    loss: Callable[..., Any],
    batch: tuple[Any, ...],
) -> dict[str, float]:
    """Returns the gain of a Dense layer behind the units of each width.

    A kernel K behind units h replaces each reader W by K W. So the gradient of K at the identity is
    the gradient of W times W transposed, summed over readers.
    """
    slopes, found = _Gradients(variables, loss, batch), dict[str, float]()
    leaves = slopes.arrays_of(variables)
    gradients = slopes(leaves)
    for name in names:
        kernel: Any = 0
        for occurrence in widths[name].occurrences:
            path, axis = occurrence.path, occurrence.axis
            if occurrence.role != "outgoing" or path not in gradients:
                continue
            along = units_along(occurrence.layout, name, ("outgoing",))
            order = np.argsort(along, kind="stable")[np.sum(along < 0) :]
            rows, change = (
                jnp.moveaxis(jnp.asarray(array), axis, 0)[order].reshape(widths[name].size, -1)
                for array in (leaves[path], gradients[path])
            )
            kernel = kernel + change @ jnp.conj(rows).T
        if np.ndim(kernel):
            found[name] = float(jnp.sum(jnp.abs(kernel) ** 2))
    return found
