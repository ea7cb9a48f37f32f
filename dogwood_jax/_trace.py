"""Find every width of a network by tracing it: ``trace``.

The network is turned into a jaxpr from shapes alone, its equations are read one by one (``_rules``)
with symbolic dimensions (``_dims``), and what was learned of the dimensions of its parameters
becomes ``Widths``.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dogwood_jax import _dims, _rules_axes, _rules_elementwise, _rules_lookup, _rules_sums  # noqa: F401
from dogwood_jax._dims import Dim, unify
from dogwood_jax._layout import Concat, Layout, Product, Role, Units
from dogwood_jax._rules import RULES, origin_of, positions_used, unknown
from dogwood_jax._tree import PyTree, is_array, leaf_path
from dogwood_jax._values import KIND_OF_USE, Entry, Silencer, Silencers, Trace, Use, Value
from dogwood_jax._widths import Facts, Leaf, Widths, make_widths, no_such

Place = tuple[str, int]


def trace(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    fix: Iterable[Place] = (),
    tie: Iterable[tuple[Place, Place]] = (),
) -> Widths:
    """Finds every width of a network: which axes of which arrays index the same units.

    The program of ``apply(variables, *inputs)`` is read, not run: no array is allocated and no
    value is looked at. Whatever library it was written with, each width is listed with every place
    where it occurs, and with what stops it from growing or what growing it would change.

    Args:
        apply: any traceable function of a pytree of variables and inputs, such as a Flax module's
            ``apply``. To trace a mode of the network (training, a method), close over it.
        variables: pytree of arrays or ``jax.ShapeDtypeStruct``. Leaves that are not arrays, such
            as functions in an Equinox module, are passed through.
        *inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``; anything else in them, such as
            booleans and None, is passed to ``apply`` as it is.
        fix: places ``(path, axis)`` that must not grow for reasons the program does not show.
        tie: pairs of places that index the same units though the program does not show it.

    Returns:
        The widths by name. Dimensions of inputs and outputs are widths too, marked ``interface``.

    Raises:
        ValueError: if ``fix`` or ``tie`` names a place that does not exist, or ties axes of
            different sizes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     return jax.nn.relu(x @ params["up"]["kernel"]) @ params["down"]["kernel"]
        >>> params = {"up": {"kernel": jnp.ones((4, 8))}, "down": {"kernel": jnp.ones((8, 2))}}
        >>> print(dw.trace(apply, params, jnp.ones((1, 4)))["up"])
        up: 8 units, growable
          -> up/kernel[1]
          <- down/kernel[0]
    """
    program = _Program(apply, variables, inputs)
    leaves = program.leaves
    _override(leaves, tuple(fix), tuple(tie))
    _attach_unread(leaves, program.trace)
    return _widths(program)


class _Program:
    """A traced network: its leaves with symbolic dimensions, and what its equations say of them."""

    def __init__(self, apply: Callable[..., Any], variables: PyTree, inputs: Sequence[Any]) -> None:
        arguments = jax.tree_util.tree_leaves_with_path((variables, *inputs))
        structure = jax.tree.structure((variables, *inputs))
        dynamic = [i for i, (_, leaf) in enumerate(arguments) if is_array(leaf)]

        def flat(*arrays: Any) -> list[Any]:
            leaves = [leaf for _, leaf in arguments]
            for i, array in zip(dynamic, arrays, strict=True):
                leaves[i] = array
            outputs = apply(*jax.tree.unflatten(structure, leaves))
            results = [
                (leaf_path(keys), leaf)
                for keys, leaf in jax.tree_util.tree_leaves_with_path(outputs)
                if is_array(leaf)
            ]
            paths[:] = [path for path, _ in results]
            return [leaf for _, leaf in results]

        paths: list[str] = []
        structs = [_struct(arguments[i][1]) for i in dynamic]
        closed = jax.make_jaxpr(flat)(*structs)
        self.trace = Trace()
        self.leaves: dict[str, Value] = {}
        values = []
        for i, struct in zip(dynamic, structs, strict=True):
            keys = arguments[i][0]
            if keys[0].idx == 0:
                path = leaf_path(keys[1:])
                value = _parameter(len(self.leaves), struct)
                self.leaves[path] = value
            else:
                value = _input(struct)
                self.trace.dims += value.dims
            values.append(value)
        outputs = run(self.trace, closed.jaxpr, closed.consts, values)
        mirrored = _mirrored(
            {path: _shape(value) for path, value in zip(paths, outputs, strict=True)},
            {path: _shape(value) for path, value in self.leaves.items()},
        )
        for path, output in zip(paths, outputs, strict=True):
            if path not in mirrored:
                for dim in output.dims:
                    dim.root.interface = True
            self.trace.use(output, "add")


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(dim.size for dim in value.dims)


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    dtype = leaf.dtype
    if not jnp.issubdtype(dtype, jax.dtypes.extended):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype)  # type: ignore[no-untyped-call]


def _parameter(index: int, struct: jax.ShapeDtypeStruct) -> Value:
    dims = tuple(Dim(n) for n in struct.shape)
    silencers: tuple[Silencers, ...] = ()
    if jnp.issubdtype(struct.dtype, np.inexact):
        silencers = tuple(
            (Silencer(frozenset({Entry(index, axis, dim)})),) for axis, dim in enumerate(dims)
        )
    else:
        for dim in dims:
            dim.fix(f"one of its arrays is of dtype {struct.dtype}, which cannot be filled in")
    return Value(dims, "parameter", silencers, leaves=frozenset({index}))


def _input(struct: jax.ShapeDtypeStruct) -> Value:
    dims = tuple(Dim(n) for n in struct.shape)
    for dim in dims:
        dim.interface = True
    return Value(dims, "data", index=jnp.issubdtype(struct.dtype, np.integer))


def _mirrored(
    outputs: Mapping[str, tuple[int, ...]], leaves: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Returns the outputs that are new values, or gradients, of all variables or a collection.

    They grow along with the variables: they are no interface to anything else.
    """
    collections: dict[str, dict[str, tuple[int, ...]]] = {"": dict(leaves)}
    for path, shape in leaves.items():
        collection, _, rest = path.partition("/")
        if rest:
            collections.setdefault(collection, {})[rest] = shape
    found = set()
    starts = {"/".join(path.split("/")[:n]) for path in outputs for n in range(3)}
    for start in starts:
        prefix = f"{start}/" if start else ""
        below = {
            path.removeprefix(prefix): shape
            for path, shape in outputs.items()
            if path.startswith(prefix)
        }
        for members in collections.values():
            if members and members.items() <= below.items():
                found |= {f"{prefix}{path}" for path in members}
    return found


# Reading programs ---------------------------------------------------------------------------------


def run(trace: Trace, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """Reads every equation of a program; returns the values of its results."""
    known: dict[Any, Value] = {}

    def read(atom: Any) -> Value:
        return _constant(atom.val) if isinstance(atom, jex.Literal) else known[atom]

    known.update(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in RULES:
            results = RULES[name](trace, eqn, *operands)
        elif name in _LOOPS:
            results = _LOOPS[name](trace, eqn, operands)
        else:
            results = _call(trace, eqn, operands)
        trace.dims += (dim for value in results for dim in value.dims)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(array: Any) -> Value:
    """Returns what is known of a constant: one number, or which axes it varies along."""
    dims = tuple(Dim(n) for n in np.shape(array))
    if isinstance(array, jax.core.Tracer) or jnp.issubdtype(
        getattr(array, "dtype", np.dtype(float)), jax.dtypes.extended
    ):
        return Value(dims, "data")
    array = np.asarray(array)
    if array.size and array.dtype.kind in "biufc" and (array == array.flat[0]).all():
        return Value(dims, "constant", number=float(np.real(array.flat[0])))
    for axis, dim in enumerate(dims):
        if dim.size > 1 and (array != np.take(array, [0], axis)).any():
            dim.endanger(f"a constant of shape {array.shape} inside the network varies along it")
    return Value(dims, "constant")


def _sub_jaxprs(eqn: Any) -> list[tuple[Any, Sequence[Any]]]:
    """Returns the programs among an equation's parameters, with their constants."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append((item.jaxpr, item.consts))
            elif isinstance(item, jex.Jaxpr):
                found.append((item, ()))
    return found


def _call(trace: Trace, eqn: Any, operands: list[Value]) -> list[Value]:
    """An equation that runs one program: jit, remat, custom derivatives and the like."""
    programs = _sub_jaxprs(eqn)
    if len(programs) == 1:
        jaxpr, consts = programs[0]
        if len(jaxpr.invars) == len(operands) and len(jaxpr.outvars) == len(eqn.outvars):
            shapes = [v.aval.shape for v in jaxpr.outvars]
            if shapes == [v.aval.shape for v in eqn.outvars]:
                return run(trace, jaxpr, consts, operands)
    return unknown(trace, eqn, *operands)


def _as_loop_state(value: Value, operands: Sequence[Value]) -> Value:
    """What is known of a loop's state in every iteration: its dimensions."""
    if origin_of(operands) == "constant":
        return Value(value.dims, "constant", positional=frozenset(range(value.ndim)))
    return Value(value.dims, "data")


def _close_loop(trace: Trace, before: Sequence[Value], after: Sequence[Value]) -> None:
    """Unifies a loop's state before and after an iteration."""
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old.dims, new.dims, strict=True):
            unify(a, b)
        if old.origin != "constant":
            positions_used(new)
        if new.origin == "parameter":
            list(trace.use(new, "add"))
            trace.produce(new)


def _enter_loop(trace: Trace, state: Sequence[Value], operands: Sequence[Value]) -> list[Value]:
    for value in state:
        if value.origin == "parameter":
            list(trace.use(value, "add"))
            trace.produce(value)
    return [_as_loop_state(value, operands) for value in state]


def _scan(trace: Trace, eqn: Any, operands: list[Value]) -> list[Value]:
    (jaxpr, closed_over), *_ = _sub_jaxprs(eqn)
    if "num_consts" in eqn.params:
        n_consts, n_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    else:  # jax 0.12 and later
        n_consts, n_carry, _ = (len(part) for part in eqn.params["ft_in"].unpack())
    consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
    stacked = operands[n_consts + n_carry :]
    length = Dim(eqn.params["length"])
    if carry:
        length.endanger("a loop runs along it, from one to the next")
    slices = []
    for value in stacked:
        unify(value.dims[0], length)
        if value.origin == "parameter":
            trace.set_aside(value, 0)
            length.fix("a loop runs over it: it counts layers or steps, not units")
        slices.append(
            replace(
                value,
                dims=value.dims[1:],
                silencers=value.silencers[1:],
                positional=frozenset(a - 1 for a in value.positional if a),
            )
        )
    state = _enter_loop(trace, carry, operands)
    results = run(trace, jaxpr, closed_over, [*consts, *state, *slices])
    _close_loop(trace, state, results[:n_carry])
    outputs = []
    for value in results[n_carry:]:
        stack = _as_loop_state(Value((length, *value.dims)), operands)
        positional = stack.positional | {a + 1 for a in value.positional}
        outputs.append(replace(stack, positional=positional, noise=value.noise))
    return [*state, *outputs]


def _while(trace: Trace, eqn: Any, operands: list[Value]) -> list[Value]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond, body = p["cond_jaxpr"], p["body_jaxpr"]
    state = _enter_loop(trace, operands[n_cond + n_body :], operands)
    run(trace, cond.jaxpr, cond.consts, [*operands[:n_cond], *state])
    results = run(trace, body.jaxpr, body.consts, [*operands[n_cond : n_cond + n_body], *state])
    _close_loop(trace, state, results)
    return state


def _cond(trace: Trace, eqn: Any, operands: list[Value]) -> list[Value]:
    which, *arguments = operands
    branches = [run(trace, b.jaxpr, b.consts, arguments) for b in eqn.params["branches"]]
    for branch in branches[1:]:
        _close_loop(trace, branches[0], branch)
    return _enter_loop(trace, branches[0], operands)


_LOOPS: dict[str, Callable[[Trace, Any, list[Value]], list[Value]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}


# What the caller knows ----------------------------------------------------------------------------


def _override(
    leaves: dict[str, Value], fix: Sequence[Place], tie: Sequence[tuple[Place, Place]]
) -> None:
    problems: list[str] = []

    def dim_at(place: Place) -> Dim | None:
        path, axis = place
        names = [p for p in leaves if p == path] or [p for p in leaves if p.endswith(f"/{path}")]
        if len(names) != 1:
            problems.append(no_such("array", path, leaves))
            return None
        dims = leaves[names[0]].dims
        if not -len(dims) <= axis < len(dims):
            problems.append(f"{path}: has {len(dims)} axes, so no axis {axis}")
            return None
        return dims[axis]

    for place in fix:
        if dim := dim_at(place):
            dim.fix("fixed by the caller")
    for one, other in tie:
        a, b = dim_at(one), dim_at(other)
        if a and b and a.size != b.size:
            problems.append(f"tie: {one} has size {a.size}, but {other} has {b.size}")
        elif a and b:
            unify(a, b)
    if problems:
        raise ValueError(
            "fix= and tie= take places (path, axis):\n" + "\n".join(f"- {p}" for p in problems)
        )


def _attach_unread(leaves: dict[str, Value], trace: Trace) -> None:
    """Ties arrays that are never read to arrays of the same shape beside them.

    A module's variables follow its widths whether or not this mode of the network reads them, as a
    BatchNorm's statistics in training do.
    """
    paths = list(leaves)
    for index, path in enumerate(paths):
        if index in trace.uses:
            continue
        module = _module(path)
        value = leaves[path]
        for axis, dim in enumerate(value.dims):
            beside = {
                d.root: None
                for i, other in enumerate(paths)
                if i in trace.uses and _module(other) == module
                for d in leaves[other].dims
                if d.size == dim.size
            }
            if len(beside) == 1:
                (found,) = beside
                unify(dim, found)
                found.note(f"{path} is never read; its axis {axis} follows the arrays beside it")


def _module(path: str) -> str:
    """Returns the module that owns an array, whatever collection the array is in."""
    collection, _, rest = path.partition("/")
    inside = rest if collection in _COLLECTIONS and rest else path
    return inside.rpartition("/")[0] or (inside if inside == path else "")


_COLLECTIONS = ("params", "batch_stats")


# From dimensions to widths ------------------------------------------------------------------------


def _widths(program: _Program) -> Widths:
    leaves, trace = program.leaves, program.trace
    outgoing = _solve(trace)
    trace.check_scales()
    _dims.hand_down([*trace.dims, *(d for value in leaves.values() for d in value.dims)])
    roles = _Roles(leaves, trace, outgoing)
    names = _names(roles)
    for demand_dim, hazard in roles.copy_hazards():
        demand_dim.endanger_copies(hazard)
    found = []
    paths = list(leaves)
    for index in sorted(range(len(leaves)), key=lambda i: trace.uses.get(i, Use(i)).order):
        path, use = paths[index], trace.uses.get(index)
        value = leaves[path]
        axes = tuple(
            _layout(dim, names, functools.partial(roles.units, index, axis))
            for axis, dim in enumerate(value.dims)
        )
        found.append(
            Leaf(
                path,
                tuple(d.size for d in value.dims),
                axes,
                KIND_OF_USE[use.how if use else ""],
                tuple(sorted(use.fan_in)) if use else (),
                tuple(sorted(use.fan_out)) if use else (),
            )
        )
    facts = {
        name: Facts(
            atom.size,
            atom.interface,
            next(iter(atom.fixed), None),
            tuple(atom.hazards),
            tuple(atom.copy_hazards),
            roles.zero_hazard(atom),
            tuple(atom.notes),
        )
        for atom, name in names.items()
    }
    return make_widths(tuple(found), facts)


def _layout(dim: Dim, names: Mapping[Dim, str], units: Callable[[Dim, str], Units]) -> Layout:
    dim = dim.root
    if dim.kind is None:
        return units(dim, names[dim])
    flat = _dims.factors(dim) if dim.kind == "product" else _dims.pieces(dim)
    parts = tuple(_layout(part, names, units) for part in flat)
    return Product(parts) if dim.kind == "product" else Concat(parts)


def _atoms(dim: Dim) -> list[Dim]:
    """Returns the dimensions without structure that a dimension is made of."""
    dim = dim.root
    return [dim] if dim.kind is None else [a for part in dim.parts for a in _atoms(part)]


def _solve(trace: Trace) -> frozenset[Entry]:
    """Decides which weights are outgoing: as few as satisfy every contraction."""
    chosen: set[Entry] = set()
    open_demands = []
    for demand in trace.demands:
        options = [s for operand in demand.operands for s in operand]
        if not options:
            demand.dim.endanger(demand.hazard)
        elif len(options) == 1:
            chosen |= options[0].entries
        else:
            open_demands.append(options)
    for options in open_demands:
        if not any(option.entries <= chosen for option in options):
            chosen |= options[0].entries
    for demand in trace.demands:
        # A list, for weights on both sides of a product act twice.
        met = [
            s for operand in demand.operands for s in operand if s.entries and s.entries <= chosen
        ]
        if any(demand.operands) and (len(met) != 1 or not met[0].linear):
            demand.dim.endanger_copies(
                "its outgoing weights do not act on it exactly once, linearly"
            )
    return frozenset(chosen)


class _Roles:
    """The role of every atom along every axis of every leaf."""

    def __init__(self, leaves: dict[str, Value], trace: Trace, outgoing: frozenset[Entry]) -> None:
        self.leaves = leaves
        self.trace = trace
        self.paths = list(leaves)
        self._outgoing = _spots((e.leaf, e.axis, e.dim) for e in outgoing)
        self._produced = _spots(trace.produced)
        self._aside = _spots(trace.aside)

    def of(self, leaf: int, axis: int, atom: Dim) -> Role:
        spot = (leaf, axis, atom)
        if spot in self._outgoing:
            return "both" if spot in self._produced else "outgoing"
        return "incoming"

    def units(self, leaf: int, axis: int, atom: Dim, name: str) -> Units:
        """Returns the units of an atom as they lie along an axis of a leaf."""
        spot = (leaf, axis, atom)
        produced = spot in self._produced and spot not in self._aside
        return Units(name, atom.size, self.of(*spot), produced)

    def produces(self, leaf: int, axis: int, atom: Dim) -> int:
        """Whether the rest of the leaf feeds these units: 2 for surely, 1 for perhaps."""
        spot = (leaf, axis, atom)
        if spot in self._aside or self.of(*spot) == "outgoing":
            return 0
        return 2 if spot in self._produced else 1

    def copy_hazards(self) -> Iterable[tuple[Dim, str]]:
        tied = sorted(self._outgoing & self._produced, key=lambda spot: spot[:2])
        for leaf, _, atom in tied:
            yield (
                atom,
                (
                    f"{self.paths[leaf]} is both incoming and outgoing (tied), "
                    "so copies cannot share its weights"
                ),
            )

    def zero_hazard(self, atom: Dim) -> str | None:
        """Why the weights that produce these units must not all be zero."""
        for index, (path, value) in enumerate(self.leaves.items()):
            use = self.trace.uses.get(index)
            if use and use.divides and use.how == "contract":
                for axis, dim in enumerate(value.dims):
                    if atom in _atoms(dim) and self.of(index, axis, atom) == "incoming":
                        return f"the network divides by a norm of {path}"
        return None


def _spots(entries: Iterable[tuple[int, int, Dim]]) -> frozenset[tuple[int, int, Dim]]:
    return frozenset((leaf, axis, atom.root) for leaf, axis, dim in entries for atom in _atoms(dim))


def _names(roles: _Roles) -> dict[Dim, str]:
    """Names every width by the module that first produces it."""
    trace = roles.trace
    places: dict[Dim, list[tuple[int, int]]] = {}
    for index, value in enumerate(roles.leaves.values()):
        for axis, dim in enumerate(value.dims):
            for atom in _atoms(dim):
                places.setdefault(atom.root, []).append((index, axis))

    def rank(atom: Dim, spot: tuple[int, int]) -> tuple[Any, ...]:
        leaf, axis = spot
        use = trace.uses.get(leaf)
        random = use is not None and KIND_OF_USE[use.how] == "random"
        order = use.order if use else 1 << 30
        return (-roles.produces(leaf, axis, atom), not random, order, leaf, axis)

    names: dict[Dim, str] = {}
    taken: set[str] = set()
    best = {atom: min(spots, key=functools.partial(rank, atom)) for atom, spots in places.items()}
    products = Counter(
        (leaf, roles.produces(leaf, axis, atom))
        for atom, spots in places.items()
        for leaf, axis in dict.fromkeys(spots)
    )
    for atom in sorted(places, key=lambda atom: rank(atom, best[atom])):
        leaf, axis = best[atom]
        path = roles.paths[leaf]
        module = _module(path) or path.removeprefix("params/")
        produces = roles.produces(leaf, axis, atom)
        alone = produces and products[leaf, produces] == 1
        within = _atoms(roles.leaves[path].dims[axis])
        position = f"{axis}" if len(within) == 1 else f"{axis}.{within.index(atom)}"
        choices = [
            *([module] if alone else []),
            *([f"{module}[{atom.label}]"] if _is_meaningful(atom) else []),
            f"{module}[{position}]",
            f"{path.removeprefix('params/')}[{position}]",
            f"{path}[{position}]",
        ]
        name = next(c for c in choices if c not in taken)
        taken.add(name)
        names[atom] = name
    first_use = {
        atom: min(trace.uses[leaf].order if leaf in trace.uses else 1 << 30 for leaf, _ in spots)
        for atom, spots in places.items()
    }
    return dict(sorted(names.items(), key=lambda item: (bool(item[0].fixed), first_use[item[0]])))


def _is_meaningful(atom: Dim) -> bool:
    """Whether the label says what the units are: positions of an input are no heads."""
    return atom.label is not None and (atom.label == "vocab" or not atom.interface)
