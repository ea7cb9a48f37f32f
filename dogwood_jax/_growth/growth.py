"""The changes of widths and arrays: ``Change`` and ``Growth``, with ``Evidence``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod, sqrt
from typing import Any, Literal

import jax

from dogwood_jax._base.tables import blocks, fits, layers_together, merged, table, wrapped
from dogwood_jax._base.trees import PyTree, by_ending, in_order_of, leaves_by_path, rebuilt
from dogwood_jax._growth.by_layer import Order, orders, stack_of
from dogwood_jax._growth.edit import Edit
from dogwood_jax._growth.leaf_map import AlongAxis, AxisMap, Compound, Fill, LeafMap
from dogwood_jax._growth.new_entries import NewEntries, entries_of, new_entries, of_larger_model
from dogwood_jax._growth.shardings import grown_shardings, most_like
from dogwood_jax._program.numbered import KeptLayers
from dogwood_jax._widths.layout import Layout, Product, Role, Units, resized, size_of, units_of
from dogwood_jax._widths.widths import Leaf, Recipe, Widths
from dogwood_jax.strategies import Start, glorot


@dataclass(frozen=True)
class Evidence:
    """The evaluation which shows that outputs stay the same.

    Attributes:
        samples: the number of samples in which both networks were compared; 0 if they were not.
        sizes: the sizes of each growing width in the evaluated programs, ``(name, before, after)``.
            If the network is large, they are smaller than its own sizes.
        largest: the largest difference of an output entry, relative to the entry.
        unseen: operations, such as a clip, with a side that no sample has reached; each with its
            line in your code, ``"max (model.py:41)"``.
        why_not: why nothing was evaluated; empty if something was.
        assumes: an unchecked assumption about the larger model; empty if there is none.
        copied: the widths of which new units are copies that training alone keeps equal.
    """

    samples: int = 0
    sizes: tuple[tuple[str, int, int], ...] = ()
    largest: float = 0.0
    unseen: tuple[str, ...] = ()
    why_not: str = ""
    assumes: str = ""
    copied: tuple[str, ...] = ()

    def lines(self, sizes: dict[str, tuple[int, int]]) -> Iterator[str]:
        """Yields lines on what was checked, without digits that differ between machines.

        Args:
            sizes: the sizes before and after the growth of each width that grows, by name.
        """
        pairs: dict[tuple[int, int], None] = {}
        for name, before, after in self.sizes:
            if name in sizes:
                pairs |= dict.fromkeys(zip(sizes[name], (before, after), strict=True))
        smaller = [f"{size} -> {small}" for size, small in pairs if size != small]
        in_sizes = f", sizes {', '.join(smaller)}" if smaller else ""
        yield f"checked: equal to rounding in {self.samples} samples{in_sizes}"
        if self.unseen:
            yield f"not seen: {', '.join(self.unseen)}"


Optimizer = Literal["adam", "sgd"]


def rates_of(
    leaves: tuple[Leaf, ...], sizes: Mapping[str, int], optimizer: Optimizer
) -> dict[str, float]:
    """Returns the factor on the learning rate of each array, see ``Growth.rates``.

    Args:
        leaves: the arrays.
        sizes: new sizes by name of the width.
        optimizer: the kind of optimizer.
    """
    return {leaf.path: _rate(leaf, sizes, optimizer) for leaf in leaves}


def _rate(leaf: Leaf, sizes: Mapping[str, int], optimizer: Optimizer) -> float:
    old, new = leaf.shape, [size_of(layout, sizes) for layout in leaf.axes]
    fan_in = prod(new[axis] / max(old[axis], 1) for axis in leaf.fan_in)
    if optimizer == "adam":
        return 1 / fan_in
    # All axes that are not fan-in count as fan-out.
    fan_out = prod(after / max(before, 1) for before, after in zip(old, new, strict=True)) / fan_in
    return fan_out / fan_in


# The meanings of the words in a printed table.
_WORDS = (
    ("axis", "by axis, for each width"),
    ("free", "free: as in a new layer, or from fresh="),
    ("zero", "zero: 0 until they learn"),
    ("copy", "copy: the values of old units"),
    ("share", "share: the values of old units, divided among their copies"),
    ("mean", "mean: the mean of old units"),
    ("rotated", "rotated: mixtures of old units by a random rotation"),
    ("resampled", "resampled: old entries resized by a matrix"),
    ("opposed", "opposed: in pairs that cancel"),
    ("chosen", "chosen: by a gradient, when the network grows"),
    ("times", "times: the factor on old entries"),
)

_FILLS: Mapping[str, Fill] = {"zero": "zero", "mean": "mean", "rotated": "rotated"}


@dataclass(frozen=True)
class Change:
    """The change of one width. By default, old units keep their places.

    Attributes:
        width: name of the width.
        old: number of units before.
        new: number of units after.
        strategy: the strategy for the weights of its new units.
        sources: the old unit that each of the first units copies; None if all old units stay in
            their places.
        into: for each old unit, the new unit that takes over its outgoing weights if units are
            merged; or None.
        recipe: what to rescale if the network computes with this size, as a norm does; or None.
        by_layer: the units that stay in each layer of a stack over which a loop runs, if they
            differ between layers; or None. They become the first units of their layer.
    """

    width: str
    old: int
    new: int
    strategy: Start
    sources: tuple[int, ...] | None = None
    into: tuple[int, ...] | None = None
    recipe: Recipe | None = None
    by_layer: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """The factor on each copy's outgoing weights; the factors of a unit's copies sum to one.

        With the split ``"roots"``, their squares do, and they multiply incoming weights as well.
        """
        sources = self.sources or ()
        counts = [0] * self.old
        for source in sources:
            counts[source] += 1
        if (split := self.strategy.split) == "even":
            return tuple(1 / counts[source] for source in sources)
        seen = [0] * self.old
        shares = []
        for source in sources:
            seen[source] += 1
            k = counts[source]
            uneven = 2 * seen[source] / (k * (k + 1))
            first = float(seen[source] == 1)
            shares.append({"uneven": uneven, "roots": sqrt(uneven), "first": first}[split])
        return tuple(shares)

    @property
    def ratio(self) -> float:
        """The ratio whose powers a recipe multiplies arrays by, see ``Recipe.powers``."""
        return self.strategy.ratio(self.old, self.new)

    def factors(self) -> Iterator[tuple[str, float]]:
        """Yields the arrays that the recipe rescales, by path, each with a factor."""
        if self.recipe is not None:
            yield from ((path, self.ratio**power) for path, power in self.recipe.powers)
            copies = self.new // max(self.old, 1)
            yield from ((path, copies**power) for path, power in self.recipe.copies)

    def factor_of_part(self, role: Role, leaf: Leaf) -> float:
        """The recipe's factor on old entries along units of a role, see ``Recipe.parts``."""
        power = dict(self.recipe.parts).get(leaf.path, 0.0) if self.recipe else 0.0
        if power and role == "incoming":
            own = (u.role for a in leaf.axes for u in units_of(a) if u.width == self.width)
            power = power if {*own} == {"incoming"} else 0.0
        return float(self.ratio**power) if power else 1.0

    def writes(self, role: Role) -> bool:
        """Whether weights of a role are filled like weights that write (produce) the units."""
        if self.strategy.is_gated:
            return True
        if role == "both":  # if readers take whole copies, a recipe compensates
            copied = self.strategy.repeats or self.strategy.incoming == "rotated"
            return (copied and self.recipe is not None) or self.strategy.incoming == "zero"
        return role == "incoming"

    def along(self, units: Units, leaf: Leaf) -> AxisMap:
        """Returns the map of the width's units along an axis of an array.

        Args:
            units: the units in the layout of the axis.
            leaf: the array.
        """
        strategy = self.strategy
        incoming = self.writes(units.role)
        fate = strategy.incoming if incoming else strategy.outgoing
        # The fill of arrays that scale or shift units which other arrays silence.
        blank: Fill = "zero" if leaf.kind == "zeros" else "free"
        is_blank = self.recipe is not None and leaf.path in self.recipe.blank
        if fate in ("free", "zero", "opposed", "mean", "rotated"):
            # A unit can be new along two widths. The incoming weights of one of them, or the
            # outgoing weights of the other, silence it. The same width must decide in all arrays.
            rank = 2 * units.rank + (strategy.incoming == "zero")
            fill = _FILLS.get(fate, "free")
            pairs: Literal[-1, 0, 1] = 0
            if strategy.outgoing == "opposed":
                pairs = 1 if incoming else -1
            fill = blank if is_blank else "zero" if self._must_be_zero(leaf, incoming) else fill
            factor = self.factor_of_part(units.role, leaf)
            return AxisMap(self.old, self.new, fill=fill, rank=rank, pairs=pairs, factor=factor)
        rest: Fill = "free" if fate == "share" else blank if is_blank else "mean"
        if self._must_be_zero(leaf, incoming):
            rest = "zero"
        elif self.recipe is not None and incoming:
            weighed = dict(self.recipe.weighed)
            if leaf.path in weighed:
                rest = "weighed"
            elif leaf.path in weighed.values():
                rest = "size"
        return AxisMap(
            self.old,
            self.new,
            self.sources,
            self.shares if strategy.outgoing == "share" else None,
            self.into,
            weighs=not incoming,
            # The scale of a norm multiplies units behind the norm, whose sum of squares stays.
            is_rooted=strategy.split == "roots" and leaf.kind != "ones",
            fill=rest,
            noise=strategy.noise if incoming else 0.0,
            forgets=strategy.state == "new",
        )

    @property
    def resampled(self) -> AlongAxis:
        """The map of entries along the width if they are interpolated between old entries."""
        strategy = self.strategy
        if not strategy.grid:
            return AxisMap(self.old, self.new, resampled=strategy.method)
        each = zip(strategy.grid, strategy.to, strict=True)
        grid = tuple(AxisMap(old, new, resampled=strategy.method) for old, new in each)
        before = AxisMap(strategy.prefix, strategy.prefix)
        return Compound("concat", (before, Compound("product", grid)))

    def _must_be_zero(self, leaf: Leaf, incoming: bool) -> bool:
        """Whether the recipe requires new entries to be zero, see ``Recipe.zeros``."""
        role = "incoming" if incoming else "outgoing"
        return self.recipe is not None and (leaf.path, role) in self.recipe.zeros


_FIELDS = ("widths", "changes", "notes", "structure", "inserted", "layers")


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Growth:
    """The change of every array when some widths change: an affine map ``new = A(old) + fill``.

    Frozen, hashable, comparable and picklable. In a pytree it is a node without leaves, so
    ``jax.jit(dw.grow)(variables, growth)`` compiles once for each growth. ``print(growth)`` shows
    the change of each array.

    Attributes:
        widths: the widths of the network that grows.
        changes: the change of each growing width, in the order of the widths.
        notes: what the larger model's configuration must be, and other advice to the caller.
        structure: tree structure of the larger model if a target was given.
        inserted: edits that add more than units: arrays of new layers and experts, and old arrays
            that move to another path, see ``deepen``.
        layers: numbered layers, such as ``layers_0`` and ``layers_1``, with the layers that stay.
        evidence: the result of an evaluation; None if nothing was evaluated, because outputs need
            not stay the same or the widths hold no function. Comparisons ignore it, because hosts
            round differently.
    """

    widths: Widths
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    structure: Any = None
    inserted: tuple[Edit, ...] = ()
    layers: tuple[KeptLayers, ...] = ()
    evidence: Evidence | None = field(default=None, compare=False)

    @cached_property
    def change(self) -> dict[str, Change]:
        """The changes by name of their width."""
        return {change.width: change for change in self.changes}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """New sizes of the widths that change, by name."""
        return {change.width: change.new for change in self.changes}

    @cached_property
    def factors(self) -> dict[str, float]:
        """The factors on old entries, by path, for the arrays that are rescaled."""
        factors: dict[str, float] = {}
        for change in self.changes:
            for path, factor in change.factors():
                factors[path] = factors.get(path, 1.0) * factor
        return {path: factor for path, factor in factors.items() if factor != 1}

    @cached_property
    def offsets(self) -> dict[str, float]:
        """The ``c`` of arrays that are read as ``c + array``, by path; factors multiply the sum."""
        recipes = [change.recipe for change in self.changes if change.recipe]
        return {path: number for recipe in recipes for path, number in recipe.offsets}

    @cached_property
    def weighed(self) -> dict[str, str]:
        """Paths of arrays whose new entries are weighted means, with the path of the weights."""
        recipes = [change.recipe for change in self.changes if change.recipe]
        scales = dict(pair for recipe in recipes for pair in recipe.weighed)
        known = self.maps  # some layers of a deep network may be left out
        return {p: scale for p, scale in scales.items() if p in known and known[p].is_weighed}

    @cached_property
    def maps(self) -> dict[str, LeafMap]:
        """The map of each known array, by path."""
        return {leaf.path: self._map_of(leaf) for leaf in self.widths.leaves}

    def _map_of(self, leaf: Leaf) -> LeafMap:
        units = [u for axis in leaf.axes for u in units_of(axis) if u.width in self.change]
        # Where entries are new along several axes, the units of the highest rank decide.
        changes = {u: self.change[u.width] for u in sorted(units, key=lambda u: -u.rank)}
        inits = (c.strategy.init_of(incoming=c.writes(u.role)) for u, c in changes.items())
        strategies = [c.strategy for c in changes.values() if leaf.kind == "random"]
        return LeafMap(
            tuple(self._along(layout, leaf) for layout in leaf.axes),
            self.factors.get(leaf.path, 1.0),
            leaf.kind,
            leaf.fan_in,
            leaf.fan_out,
            next((init for init in inits if init not in (None, glorot)), None),
            min((strategy.shrink for strategy in strategies), default=1.0),
            max((strategy.perturb for strategy in strategies), default=0.0),
            self.offsets.get(leaf.path, 0.0),
        )

    def _along(self, layout: Layout, leaf: Leaf) -> AlongAxis:
        if isinstance(layout, Units):
            change = self.change.get(layout.width)
            if change is None:
                return AxisMap(layout.size, layout.size)
            return change.resampled if change.strategy.method else change.along(layout, leaf)
        parts = tuple(self._along(part, leaf) for part in layout.parts)
        if not any(part.changes for part in parts):
            return AxisMap(size_of(layout), size_of(layout))
        return Compound("product" if isinstance(layout, Product) else "concat", parts)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every known array after the growth, by path."""
        return {
            leaf.path: tuple(size_of(layout, self.sizes) for layout in leaf.axes)
            for leaf in self.widths.leaves
        }

    @cached_property
    def edits(self) -> dict[str, Edit]:
        """The edit that makes each array of the larger model, by path."""
        changing = {path: leaf_map for path, leaf_map in self.maps.items() if leaf_map.changes}
        moved, found = {edit.old for edit in self.inserted}, list[Edit]()
        for path, shape in self.shapes.items():
            if path not in moved and (place := self.place(path)) is not None:
                found.append(Edit(place, shape, source=path))
        every = ((edit, edit.source or "") for edit in (*found, *self.inserted))
        return {
            edit.path: replace(edit, map=changing.get(old), orders=self.orders.get(old, ()))
            for edit, old in every
        }

    @cached_property
    def held(self) -> dict[str, Edit]:
        """The edits that continue old arrays, by old path."""
        return {edit.old: edit for edit in self.edits.values() if edit.old is not None}

    @cached_property
    def orders(self) -> dict[str, tuple[Order, ...]]:
        """The new orders of units in arrays whose layers keep different units, by path."""
        found: dict[str, tuple[Order, ...]] = {}
        for change in self.changes:
            stack = stack_of(self.widths, self.widths[change.width]) if change.by_layer else None
            for path, layers in stack[1].items() if stack else ():
                own = orders(self.widths.leaf(path), change.width, layers, change.by_layer or ())
                found[path] = found.get(path, ()) + own
        return found

    @cached_property
    def in_order(self) -> "Growth":
        """The growth of arrays whose units are in these orders already."""
        changes = tuple(replace(change, by_layer=None) for change in self.changes)
        return replace(self, changes=changes) if self.orders else self

    @cached_property
    def _moved(self) -> dict[str, str]:
        return {edit.old: edit.path for edit in self.inserted if edit.old is not None}

    def place(self, path: str) -> str | None:
        """Returns the path of a leaf in the new model; None if its layer is removed."""
        if path in self._moved:
            return self._moved[path]
        for layers in self.layers:
            if (place := layers.place(path)) is None:
                return None
            path = place
        return path

    @cached_property
    def after(self) -> Widths:
        """The widths of the grown network."""
        leaves = tuple(
            replace(
                leaf,
                path=self.held[leaf.path].path if self.layers else leaf.path,
                shape=self.shapes[leaf.path],
                axes=tuple(resized(layout, self.sizes) for layout in leaf.axes),
            )
            for leaf in self.widths.leaves
            if leaf.path in self.held
        )
        left = {u.width for leaf in leaves for layout in leaf.axes for u in units_of(layout)}
        facts = (
            (name, replace(facts, size=self.sizes.get(name, facts.size)))
            for name, facts in self.widths.facts
            if not self.layers or name in left
        )
        return Widths(leaves, tuple(facts))

    def rates(self, tree: PyTree, *, optimizer: Literal["adam", "sgd"] = "adam") -> PyTree:
        """Returns factors on the learning rates of arrays, so that a tuned rate stays good.

        A rate that was tuned for the small network is too high for wider layers, because their
        outputs sum up more terms. The factors follow the maximal update parametrization. If a fan
        grows r-fold, the factor for optimizers like Adam, whose updates have the size of the rate,
        is 1 / r for the fan-in; the fan-out does not matter. For SGD it is r for the fan-out (such
        as a bias) and 1 / r for the fan-in. Depth does not change the factors.

        Args:
            tree: the larger model's variables, or a tree whose paths end like the variables' paths,
                such as only its parameters.
            optimizer: ``"adam"`` for optimizers that divide by the size of gradients, ``"sgd"`` for
                optimizers whose updates are multiples of gradients.

        Returns:
            A tree of the same structure with a float for each leaf. An array of a new layer has the
            factor of the most similar old array. A leaf unknown to the growth has 1.0.

        Raises:
            ValueError: if the optimizer is neither, the tree belongs to another network, or its
                arrays do not have the larger model's shapes.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> import optax
            >>> import dogwood_jax as dw
            >>> layer = lambda i, o: {"kernel": jnp.ones((i, o)), "bias": jnp.ones(o)}
            >>> params = {"up": layer(4, 8), "down": layer(8, 2)}
            >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 16})
            >>> rates = growth.rates(dw.grow(params, growth, key=jax.random.key(0)))
            >>> rates
            {'up': {'kernel': 1.0, 'bias': 1.0}, 'down': {'kernel': 0.5, 'bias': 1.0}}
            >>> scaled = optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, rates))
            >>> tx = optax.chain(optax.adam(1e-3), scaled)

        Reference:
            Yang et al., 2022, Tensor Programs V: Tuning Large Neural Networks via Zero-Shot
            Hyperparameter Transfer, table 3.
        """
        if optimizer not in ("adam", "sgd"):
            raise ValueError(f"growth.rates: optimizer must be 'adam' or 'sgd', got {optimizer!r}")
        of_larger_model("growth.rates(tree)", tree, self._new_entries)
        found = rates_of(self.widths.leaves, self.sizes, optimizer)
        shapes = {leaf.path: leaf.shape for leaf in self.widths.leaves}
        placed = {
            path: found[edit.source or most_like(path, edit.shape, shapes)]
            for path, edit in self.edits.items()
            if shapes
        }
        paths = leaves_by_path(tree)
        rates = dict.fromkeys(paths, 1.0) | by_ending(paths, placed)
        return in_order_of(tree, rebuilt(jax.tree.structure(tree), rates))

    def is_new(self, tree: PyTree) -> PyTree:
        """Returns which entries of the larger model's arrays come from no old value.

        Old entries are not new, even if they are multiplied, interpolated or added up. Nor are
        their copies. An entry that is zero, random or the mean of others is new. All entries of a
        new layer are new, even if the layer begins as a copy of an old layer.

        Use it to train only new weights. To mask single entries, chain it after the optimizer, so
        that weight decay does not move old weights, either::

            frozen = optax.stateless(
                lambda updates, params: jax.tree.map(
                    lambda update, new: jnp.where(new, update, 0), updates, growth.is_new(updates)
                )
            )
            tx = optax.chain(optax.adamw(1e-3), frozen)

        ``optax.masked`` and ``optax.multi_transform`` take one boolean for each array. They suit
        new layers, and store no optimizer state for old arrays::

            whole = jax.tree.map(lambda new: bool(new.all()), growth.is_new(params))
            tx = optax.multi_transform({True: optax.adamw(1e-3), False: optax.set_to_zero()}, whole)

        Args:
            tree: the larger model's variables, their shapes, or a tree whose paths end like the
                variables' paths, such as only its parameters, or gradients.

        Returns:
            A tree of the same structure with a boolean array for each leaf, in its shape. A leaf
            unknown to the growth is not new.

        Raises:
            ValueError: if the tree belongs to another network, or its arrays do not have the larger
                model's shapes; one message lists all of them.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> import dogwood_jax as dw
            >>> params = {"up": {"kernel": jnp.ones((1, 2))}, "down": {"kernel": jnp.ones((2, 1))}}
            >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 3})
            >>> is_new = growth.is_new(dw.grow(params, growth, key=jax.random.key(0)))
            >>> is_new["up"]["kernel"].tolist(), is_new["down"]["kernel"].tolist()
            ([[False, False, True]], [[False], [False], [True]])

        Reference:
            Wu et al., 2024, LLaMA Pro: Progressive LLaMA with Block Expansion.
        """
        return new_entries(tree, self._new_entries)

    @cached_property
    def _new_entries(self) -> dict[str, NewEntries]:
        """The new entries of each array of the larger model, by path."""
        return {path: entries_of(edit) for path, edit in self.edits.items()}

    def shardings(self, old_shardings: PyTree) -> PyTree:
        """Returns the shardings of the grown arrays, for ``out_shardings`` of ``jax.jit``.

        Each array is divided along the same axes, over the same devices. An array of a new layer
        is divided like the array with the closest name (``block_2/up`` like ``block_1/up``). If its
        sizes do not allow that, it is whole on every device.

        Args:
            old_shardings: pytree with the ``jax.sharding.Sharding`` of each array of the variables.
                Unless layers are inserted, it may also be a tree whose paths end like the
                variables' paths, such as an optimizer's state.

        Returns:
            A tree of the same structure; for variables, the structure of the larger model.

        Raises:
            ValueError: if the new size of an axis does not divide evenly over its devices, which
                JAX requires of arguments and results of compiled functions; one message lists all
                such axes.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> import numpy as np
            >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
            >>> import dogwood_jax as dw
            >>> mesh = Mesh(np.array(jax.devices()), "model")
            >>> columns = NamedSharding(mesh, P(None, "model"))
            >>> rows = NamedSharding(mesh, P("model"))
            >>> params = {
            ...     "up": {"kernel": jax.device_put(jnp.ones((4, 8)), columns)},
            ...     "down": {"kernel": jax.device_put(jnp.ones((8, 2)), rows)},
            ... }
            >>> growth = dw.plan(dw.chain(params, ("up", "down")), {"up": 16})
            >>> shardings = growth.shardings(jax.tree.map(lambda array: array.sharding, params))
            >>> grow = jax.jit(dw.grow, static_argnames="growth", out_shardings=shardings)
            >>> wide = grow(params, growth=growth, key=jax.random.key(0))
            >>> kernel = wide["down"]["kernel"]
            >>> kernel.shape, kernel.sharding.is_equivalent_to(rows, kernel.ndim)
            ((16, 2), True)
        """
        return grown_shardings(
            old_shardings,
            leaves=self.widths.leaves,
            shapes=self.shapes,
            sizes=self.sizes,
            inserted=self.inserted,
            structure=self.structure,
        )

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, name) for name in _FIELDS))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Growth):
            return NotImplemented
        # A tree structure cannot be compared with None.
        if (self.structure is None) != (other.structure is None):
            return False
        return all(getattr(self, name) == getattr(other, name) for name in _FIELDS)

    def __getstate__(self) -> dict[str, object]:
        # Without the cached hash: hashes of strings differ between processes.
        return {name: getattr(self, name) for name in (*_FIELDS, "evidence")}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("array", "before", "after", "new entries")]
        changed = []
        for leaf in self.widths.leaves:
            new = self.shapes[leaf.path]
            if new != leaf.shape or leaf.path in self.factors:
                cells = _shape(leaf.shape), _shape(new), self._fate(leaf)
                changed.append((cells, leaf.path))
        rows += [row for row, _ in layers_together((p, *cells) for cells, p in merged(changed))]
        text = table(rows)
        fates = (re.sub(r"\([^()]*\)", "", fate) for *_, fate in rows[1:])  # without names
        words = {word for fate in fates for word in re.findall(r"\w+", fate)}
        meanings = [meaning for word, meaning in _WORDS if word in words]
        if not fits(text):
            text = blocks((f"{path}: {old} -> {new}", [fate]) for path, old, new, fate in rows[1:])
            meanings = ["before -> after", *meanings]
        lines = (
            [text] if len(rows) > 1 else ["nothing grows"] * (not self.inserted and not self.layers)
        )
        lines += [wrapped(f"({'; '.join(meanings)})")] * bool(meanings)
        shown = [edit for edit in self.inserted if edit.holds_weights]
        inserted = merged((str(one).removeprefix(one.path), one.path) for one in shown)
        together = layers_together((f"{path}{fill}",) for fill, path in inserted)
        lines += [wrapped(f"inserted: {text}") for (text,), _ in together]
        notes = layers_together((note,) for note in self.notes)
        lines[:0] = [wrapped(f"note: {note}") for (note,), _ in notes]
        if self.evidence is not None and self.evidence.why_not:
            lines.insert(0, wrapped(f"not checked: {self.evidence.why_not}"))
        elif self.evidence is not None:
            lines[:0] = [wrapped(self.evidence.assumes)] * bool(self.evidence.assumes)
            sizes = {change.width: (change.old, change.new) for change in self.changes}
            lines += map(wrapped, self.evidence.lines(sizes))
        return "\n".join(lines)

    def __repr__(self) -> str:
        parts = [f"{change.width}: {change.old} -> {change.new}" for change in self.changes]
        parts += [f"{its.layers.name}: {len(its.layers)} -> {len(its.kept)}" for its in self.layers]
        return f"Growth({', '.join(parts)})"

    def _fate(self, leaf: Leaf) -> str:
        parts = []
        for axis, layout in enumerate(leaf.axes):
            for units in dict.fromkeys(units_of(layout)):
                if change := self.change.get(units.width):
                    fate = change.strategy.fate(
                        incoming=change.writes(units.role), random=leaf.kind == "random"
                    )
                    if fate in ("zero", "free") and change.recipe:
                        fate = change.along(units, leaf).fill
                    factor = change.factor_of_part(units.role, leaf)
                    times = f", old entries there times {factor:.6g}" * (factor != 1)
                    fate += ", different in each layer" * (change.by_layer is not None)
                    parts.append(f"axis {axis} {fate} ({units.width}){times}")
        if leaf.path in self.weighed:
            parts.append(f"means weighted by {self.weighed[leaf.path]}")
        if leaf.path in self.factors:
            offset = self.offsets.get(leaf.path)
            what = f"({offset:g} + array) " if offset else ""
            parts.append(f"{what}times {self.factors[leaf.path]:.6g}")
        return ", ".join(parts)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
