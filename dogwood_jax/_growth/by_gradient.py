"""Chooses weights of new units by the gradient of a loss: ``gradmax`` and ``firefly``.

The network has grown already, with random incoming and zero outgoing weights. All weights on one
side of its new units are kept in rows, ``[new units, weights]``. As long as one side of a unit is
zero and the unit is silent, the gradient of this side is a product of M with the other side. M is
the matrix of second derivatives of the loss by the unit's incoming and outgoing weights. Products
with M are derivatives of the loss, so this works for any architecture.

If a width stands for several units at once, such as one in each layer of a stack, these *slots*
(``rows``) share no weights. M then consists of blocks, and each slot has its own vectors.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dogwood_jax._base.trees import arrays_of, concrete, is_array, leaves_by_path, rebuilt
from dogwood_jax._growth.growth import Change, Growth
from dogwood_jax._growth.rows import Rows, blocks_of, slots_of
from dogwood_jax._growth.shardings import Placement

# State of subspace iteration: next vectors, vectors, their gains, previous gains, number of steps.
_State = tuple[Array, Array, Array, Array, Array]
# Limit on the steps of subspace iteration, which stops earlier if the singular values settle.
_STEPS = 64


def choose(
    leaves: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    growth: Growth,
    change: Change,
    structure: Any,
    where: Placement,
) -> dict[str, Any]:
    """Returns the grown arrays with the weights of one width's new units chosen.

    Args:
        leaves: the grown arrays by path.
        others: arrays grown with other random keys, for further candidates.
        growth: their growth, without choices.
        change: the change of the width, with the choice.
        structure: tree structure of the variables that the loss takes.
        where: the placement of arrays that grow.

    Raises:
        ValueError: if nothing can be chosen. Detecting this needs values, so under ``jax.jit`` the
            arrays are returned unchanged instead.
    """
    choice = change.strategy.choice
    assert choice is not None
    if not blocks_of(growth, change.width, ["incoming"], ["random"]):
        raise ValueError(
            f"{change.width}: its incoming weights are only biases and scales, so "
            f"strategies.{change.strategy}() has nothing to choose; use strategies.zero_outgoing()"
        )
    batch = leaves_by_path(choice.batch)
    case = _ChoiceCase(
        growth,
        change.width,
        choice.loss,
        structure,
        _other(leaves),
        jax.tree.structure(choice.batch),
        _other(batch),
        where,
    )
    arrays, inputs = where.enter(arrays_of(leaves)), where.enter(arrays_of(batch))
    drawn = [where.enter(arrays_of(other)) for other in others]
    try:
        if choice.side == "outgoing":
            chosen, silent, found = _choose_outgoing(arrays, inputs, case, choice.epsilon)
        else:
            chosen, silent, found = _choose_incoming(arrays, drawn, inputs, case, choice.ascent)
    except Exception as error:
        error.add_note(
            f"strategies.{change.strategy} calls its loss with the grown variables: the loss must "
            f"apply the larger model, in which {change.width} has {change.new} units"
        )
        raise
    if concrete(silent) is not None:
        _complain(change, bool(silent), bool(found))
    return {**leaves, **where.leave(chosen)}


def _complain(change: Change, silent: bool, found: bool) -> None:
    """Raises an error if nothing could be chosen."""
    choice = change.strategy.choice
    assert choice is not None
    if not silent:
        raise ValueError(
            f"{change.width}: strategies.{change.strategy}() sets the incoming weights of new "
            "units to zero, but then the units are not silent (such as under a sigmoid, which is "
            "0.5 at 0, or with tied weights) or the loss is not finite; use variant='incoming', "
            "which is preserving for any activation"
        )
    if not found:
        way_out = ""
        if choice.side == "outgoing" and not choice.epsilon:
            way_out = (
                " with zero incoming weights, because jax.nn.relu passes none at 0; use "
                "variant='incoming', or epsilon=1e-4, which changes outputs by about as much"
            )
        raise ValueError(
            f"{change.width}: no gradient of the loss on this batch reaches new units{way_out}"
        )


# Static arguments ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ChoiceCase:
    """The static arguments of a choice.

    Attributes:
        growth: the growth of the arrays.
        width: the width whose new units are chosen.
        loss: the function of variables and batch.
        structure: tree structure of the variables.
        others: leaves of the variables that are not arrays, by path.
        batch_structure: tree structure of the batch.
        batch_others: leaves of the batch that are not arrays, by path.
        where: the placement of arrays that grow.
    """

    growth: Growth
    width: str
    loss: Callable[..., Any]
    structure: Any
    others: tuple[tuple[str, Any], ...]
    batch_structure: Any
    batch_others: tuple[tuple[str, Any], ...]
    where: Placement


def _other(leaves: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((path, leaf) for path, leaf in leaves.items() if not is_array(leaf))


# The loss as a function of the new units ----------------------------------------------------------


class _NewUnits:
    """The new units of a width, and the loss as a function of the weights on both sides."""

    def __init__(
        self, leaves: Mapping[str, Any], batch: Mapping[str, Any], case: _ChoiceCase
    ) -> None:
        # Derivatives through the growth treat chosen weights as constants.
        self.leaves, batch = lax.stop_gradient((dict(leaves), batch))
        self.case = case
        growth, width = case.growth, case.width
        self.batch = rebuilt(case.batch_structure, {**batch, **dict(case.batch_others)})
        kernels = blocks_of(growth, width, ["incoming"], ["random"])
        shifts = blocks_of(growth, width, ["incoming"], ["zeros"])
        readers = blocks_of(growth, width, ["outgoing", "both"])
        former = blocks_of(growth, width, ["outgoing", "both"], old=True)
        # In at least single precision, which JAX's linear algebra needs.
        dtypes = [leaves[block.leaf.path].dtype for block in (*kernels, *readers)]
        dtype = jnp.result_type(jnp.float32, *dtypes)
        self.kernels, self.shifts, self.readers, self.former = (
            Rows(blocks, dtype) for blocks in (kernels, shifts, readers, former)
        )
        self.apart, self.along = slots_of(growth, width, kernels, readers)
        self.slots = self.kernels.slots(self.apart | self.along)
        self.units = growth.change[width].new - growth.change[width].old
        self.drawn = self.kernels.read(self.leaves)
        self.zeros = jnp.zeros_like(self.readers.read(self.leaves))

    def loss(self, incoming: Array, outgoing: Array) -> Array:
        leaves = self.readers.write(self.kernels.write(self.leaves, incoming), outgoing)
        variables = rebuilt(self.case.structure, {**leaves, **dict(self.case.others)})
        loss: Array = self.case.loss(variables, *self.batch)
        return loss

    def by_incoming(self, incoming: Array, outgoing: Array) -> Array:
        """Returns the gradient of incoming weights."""
        gradient: Array = jax.grad(self.loss, 0)(incoming, outgoing)
        return gradient

    def by_outgoing(self, incoming: Array, outgoing: Array) -> Array:
        """Returns the gradient of outgoing weights."""
        gradient: Array = jax.grad(self.loss, 1)(incoming, outgoing)
        return gradient

    def times(self, incoming: Array, outgoing: Array) -> Array:
        """Returns M times a row for each unit, at zero outgoing weights."""
        gradient = functools.partial(self.by_incoming, incoming)
        product: Array = jax.jvp(gradient, (self.zeros,), (outgoing,))[1]
        return product

    def times_transposed(self, incoming: Array, direction: Array) -> Array:
        """Returns M transposed times a row for each unit, at zero outgoing weights."""
        gradient = functools.partial(self.by_outgoing, outgoing=self.zeros)
        product: Array = jax.jvp(gradient, (incoming,), (direction,))[1]
        return product


# Outgoing weights ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("case", "epsilon"))
def _choose_outgoing(
    leaves: dict[str, Any], batch: dict[str, Any], case: _ChoiceCase, epsilon: float
) -> tuple[dict[str, Any], Array, Array]:
    """Chooses outgoing weights at zero incoming weights, or at ``epsilon`` times the drawn weights.

    Returns:
        The changed arrays; whether the units are silent with zero incoming weights; whether any
        gradient reaches the units.
    """
    new = _NewUnits(leaves, batch, case)
    if new.shifts.blocks:
        shifts = new.shifts.read(new.leaves)
        new.leaves = new.shifts.write(new.leaves, jnp.zeros_like(shifts))
    zero, silent = _silencing(new)
    small = jnp.where(zero, epsilon * new.drawn, new.drawn)
    # A relu passes the gradient of half of the inputs; opposite weights give the other half.
    opposite = jnp.where(zero, -small, new.drawn)
    points = jnp.stack([small, opposite] if epsilon else [small])
    slots = _Slots(new)

    def step(state: _State) -> _State:
        vectors, _, before, _, count = state
        rows = slots.unfold(vectors)
        image = jnp.sum(lax.map(lambda point: new.times(point, rows), points), axis=0)
        rows = jnp.sum(lax.map(lambda point: new.times_transposed(point, image), points), axis=0)
        product = slots.fold(rows)
        gains = jnp.sum(vectors * product, axis=2)
        return _orthonormal(product), vectors, gains, before, count + 1

    def goes_on(state: _State) -> Array:
        _, _, gains, before, count = state
        settled = jnp.max(jnp.abs(gains - before)) <= slots.precision * jnp.max(gains)
        return (count < 2) | (count < _STEPS) & ~settled

    start = slots.fold(jax.random.normal(jax.random.key(0), new.zeros.shape, new.zeros.dtype))
    none = jnp.zeros(start.shape[:2], start.dtype)
    state = (_orthonormal(start), start, none, none, jnp.zeros((), int))
    _, vectors, gains, _, _ = lax.while_loop(goes_on, step, state)

    # Without a gradient a unit would be dead, so it keeps the weights of zero_outgoing.
    enough = gains > jnp.max(gains) * slots.precision * gains.size
    chosen = slots.units(enough & silent)
    outgoing = slots.unfold(jnp.where((enough & silent)[..., None], slots.norm * vectors, 0))
    incoming = jnp.where(_of_slots(chosen, new.slots), small, new.drawn)
    written = new.readers.write(new.kernels.write(leaves, incoming), outgoing)
    if new.shifts.blocks:
        alike = _of_slots(chosen, new.shifts.slots(new.apart | new.along))
        written = new.shifts.write(written, jnp.where(alike, 0, shifts))
    return _changed(written, new), silent, jnp.any(enough)


def _silencing(new: "_NewUnits") -> tuple[Array, Array]:
    """Returns which incoming weights to set to zero, and whether that silences the units.

    As few arrays as possible become zero: one factor of a gated unit, the values of a head. If all
    were zero, no gradient would reach any of them.
    """
    block = new.kernels.block
    probe = jax.random.normal(jax.random.key(1), new.zeros.shape, new.zeros.dtype)
    probe = probe / np.sqrt(probe.shape[1])

    def is_silent(zero: Array) -> Array:
        incoming = jnp.where(zero[block], 0, new.drawn)
        return jnp.all(new.by_outgoing(incoming, probe) == 0)

    zero = jnp.ones(len(new.kernels.blocks), bool)
    if zero.size > 1:
        # An array without effect on this batch may still break the silence on another batch.
        effects = new.by_incoming(new.drawn, probe) != 0
        matters = jnp.stack([jnp.any(effects[:, block == i]) for i in range(zero.size)])

        def spare(i: Array, zero: Array) -> Array:
            fewer = zero.at[i].set(False)
            return jnp.where(matters[i] & is_silent(fewer), fewer, zero)

        zero = lax.fori_loop(0, zero.size, spare, zero)
    return zero[block], is_silent(zero)


class _Slots:
    """Outgoing weights as one row for each slot of a unit: ``[apart, units * along, weights]``.

    Keeps only as many rows as can be orthogonal.
    """

    def __init__(self, new: "_NewUnits") -> None:
        self.apart, self.along = prod(new.apart.values()), prod(new.along.values())
        self._order = np.argsort(new.readers.slots(new.apart | new.along), kind="stable")
        self._units, self._weights = new.units, len(self._order) // (self.apart * self.along)
        self.rows = min(new.units * self.along, self._weights)
        self.precision = float(jnp.finfo(new.zeros.dtype).eps)  # type: ignore[no-untyped-call]
        self.norm = self._norm(new)

    def _sorted(self, rows: Array) -> Array:
        shape = (rows.shape[0], self.apart, self.along, self._weights)
        return jnp.swapaxes(rows[:, self._order].reshape(shape), 0, 1)

    def _norm(self, new: "_NewUnits") -> Array:
        """Returns the mean norm of the rows of old units; 1 if the mean is zero."""
        norm = jnp.zeros((self.apart, 1, 1), new.zeros.dtype)
        if new.former.blocks[0].units:
            old = self._sorted(new.former.read(new.leaves))
            norm = jnp.mean(jnp.linalg.norm(old, axis=3), axis=(1, 2))[:, None, None]
        return jnp.where(norm > 0, norm, 1)

    def fold(self, rows: Array) -> Array:
        """Returns rows of units as rows of slots."""
        folded = self._sorted(rows).reshape(self.apart, -1, self._weights)
        return folded[:, : self.rows]

    def unfold(self, vectors: Array) -> Array:
        """Returns rows of slots as rows of units."""
        missing = self._units * self.along - self.rows
        vectors = jnp.pad(vectors, ((0, 0), (0, missing), (0, 0)))
        vectors = vectors.reshape(self.apart, self._units, self.along, self._weights)
        rows = jnp.swapaxes(vectors, 0, 1).reshape(self._units, -1)
        return rows[:, np.argsort(self._order)]

    def units(self, marks: Array) -> Array:
        """Returns marks on rows of slots as ``[units, slots]``."""
        marks = jnp.pad(marks, ((0, 0), (0, self._units * self.along - self.rows)))
        marks = marks.reshape(self.apart, self._units, self.along)
        return jnp.swapaxes(marks, 0, 1).reshape(self._units, -1)


def _orthonormal(rows: Array) -> Array:
    """Returns rows, ``[batch, rows, weights]``, orthonormalized one after another, signs kept."""
    q, r = jnp.linalg.qr(jnp.swapaxes(rows, 1, 2))
    signs = jnp.where(jnp.diagonal(r, axis1=1, axis2=2) < 0, -1, 1)
    return jnp.swapaxes(q * signs[:, None], 1, 2)


def _of_slots(marks: Array, slots: np.ndarray) -> Array:
    """Returns the mark of each weight's slot; for weights without a slot, whether any is marked."""
    return jnp.where(slots >= 0, marks[:, slots], jnp.any(marks, axis=1, keepdims=True))


def _changed(leaves: Mapping[str, Any], new: "_NewUnits") -> dict[str, Any]:
    blocks = (*new.kernels.blocks, *new.shifts.blocks, *new.readers.blocks)
    changed = {block.leaf.path: leaves[block.leaf.path] for block in blocks}
    return new.case.where.constrain(changed)


# Incoming weights ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("case", "ascent"))
def _choose_incoming(
    leaves: dict[str, Any],
    others: list[dict[str, Any]],
    batch: dict[str, Any],
    case: _ChoiceCase,
    ascent: int,
) -> tuple[dict[str, Any], Array, Array]:
    """Chooses incoming weights by the gradient of outgoing weights, which are zero.

    Returns:
        The changed arrays; true; whether any gradient reaches the units.
    """
    new = _NewUnits(leaves, batch, case)
    rows = new.drawn

    def score(candidates: Array) -> Array:
        gradients = lax.map(lambda rows: new.by_outgoing(rows, new.zeros), candidates)
        return jnp.sum(gradients * gradients, axis=2)

    if others:
        read = (new.kernels.read({**leaves, **other}) for other in others)
        drawn = lax.stop_gradient(jnp.stack([rows, *read]))
        scores = score(drawn)
        _, best = lax.top_k(jnp.where(jnp.isfinite(scores), scores, -1).ravel(), new.units)
        rows = drawn.reshape(-1, rows.shape[1])[best]
    # Each slot keeps its norm. Weights without a slot form one more.
    slot = np.where(new.slots < 0, new.slots.max(initial=0) + 1, new.slots)

    def norms(rows: Array) -> Array:
        squares = jax.ops.segment_sum((rows * rows).T, slot, slot.max(initial=0) + 1)
        return jnp.sqrt(squares).T[:, slot]

    length = norms(rows)
    slots = _Slots(new)

    def climb(_: Array, rows: Array) -> Array:
        gradient = new.by_outgoing(rows, new.zeros)
        # Each unit climbs in its own direction. Otherwise all would take the steepest one.
        towards = slots.unfold(_orthonormal(slots.fold(gradient)))
        uphill = new.times(rows, towards)
        steep = norms(uphill)
        return jnp.where(steep > 0, uphill * (length / jnp.where(steep > 0, steep, 1)), rows)

    both = jnp.stack([rows, lax.fori_loop(0, ascent, climb, rows)])
    scores = jnp.sum(score(both), axis=1)
    rows = jnp.where(scores[1] > scores[0], both[1], both[0])
    written = new.readers.write(new.kernels.write(leaves, rows), new.zeros)
    return _changed(written, new), jnp.array(True), jnp.max(scores) > 0
