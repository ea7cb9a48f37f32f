"""Which layers of a deeper model are new, and what they are filled with: ``insertions``.

Reading both programs proposes fillings that make the new layers do nothing. An evaluation decides.
Weight norm with zero weights, for example, computes 0 / 0. Then the next proposal is taken, in
which these weights are free, and perhaps the scale is zero.
"""

import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from dogwood_jax._base.draw import dtype_named
from dogwood_jax._base.problems import listed
from dogwood_jax._base.trees import (
    PyTree,
    by_path,
    is_array,
    leaf_path,
    struct,
)
from dogwood_jax._depth.identity import Fill, Fills, Stack, TermReader, Value, exactly
from dogwood_jax._depth.terms import Terms
from dogwood_jax._growth.insertion import Insertion
from dogwood_jax._growth.pairing import Pairing, split_number
from dogwood_jax._program.program import Program
from dogwood_jax._widths.trace import trace
from dogwood_jax._widths.widths import Leaf

Shapes = Mapping[str, jax.ShapeDtypeStruct]
Pairs = tuple[tuple[float, float, float], ...]  # two constants and their rounding error

_MOST = 16  # sets of arrays that are left free in turn

_ONE_BY_ONE = "widths grow, too: grow them first, or insert the layers first, each alone"


_TO_THE_FRONT = (
    "longer where they may have an entry for each layer; move it to the first axis, and let each "
    "layer take its own from the array, as x[i]"
)


def insertions(
    source_apply: Callable[..., Any],
    source: PyTree,
    target_apply: Callable[..., Any],
    target: PyTree,
    *inputs: Any,
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
) -> Iterator[tuple[Insertion, ...]]:
    """Proposes what the arrays of new layers are filled with, from shapes alone.

    Args:
        source_apply: the network, a function of variables and inputs.
        source: its variables, arrays or ``jax.ShapeDtypeStruct``.
        target_apply: the deeper network.
        target: its variables, arrays or ``jax.ShapeDtypeStruct``.
        *inputs: of both networks.
        rename: see ``deepen``.
        copy: see ``deepen``.
        interleave: see ``deepen``.

    Yields:
        All arrays of the target that are new, moved, or have new layers, in its order. Those of
        the best proposal come first. Later ones are for a caller who has refused all before.
    """
    networks = _Network(source_apply, source, inputs), _Network(target_apply, target, inputs)
    first = _Problem(*networks, wider=False, interleave=interleave)
    for problem, proof in _proofs(first, rename or {}):
        yield _described(problem, proof, target, inputs, copy=copy)


def wider_insertions(
    source_apply: Callable[..., Any],
    source: PyTree,
    target_apply: Callable[..., Any],
    target: PyTree,
    *inputs: Any,
) -> Iterator[tuple[tuple[Insertion, ...], tuple[Pairs, ...], frozenset[float]]]:
    """Proposes ``insertions`` where old arrays may also be larger in the target.

    Sizes, and constants that differ in proportion to them, are left out of the proof: it shows
    that the new layers do nothing, not that the wider network computes the same.

    Yields:
        The insertions; for each constant that only one of the networks has, the pairs to which it
        may belong: a constant of the network, and the target's constant in its place; and the
        constants that both have.
    """
    networks = _Network(source_apply, source, inputs), _Network(target_apply, target, inputs)
    first = _Problem(*networks, wider=True)
    for problem, proof in _proofs(first, {}):
        found = _described(problem, proof, target, inputs, copy=False)
        yield found, proof.numbers, proof.kept


def _proofs(
    problem: "_Problem", rename: Mapping[str, str]
) -> Iterator[tuple["_Problem", "_Proof"]]:
    """Yields how the deeper network can compute what the old one does, the best way first.

    In each further way, arrays are free that an earlier one fills, those of like layers together.
    All ways are found whose fills do not contain those of another, as far as ``_MOST`` allows.

    Reference:
        Reiter, 1987, A Theory of Diagnosis from First Principles (hitting-set trees).
    """
    problem, first = _proved(problem, rename)
    yield problem, first
    left, known, tried = deque([(first, frozenset[str]())]), {first.filled}, set[frozenset[str]]()
    while left:
        proof, free = left.popleft()
        for alike in proof.filled_alike:
            if (more := free | alike) in tried or len(tried) == _MOST:
                continue
            tried.add(more)
            other = _Proof(problem, proof.places, more)
            if other.refusal is None:
                left.append((other, more))
                if other.filled not in known:
                    known.add(other.filled)
                    yield problem, other


def _proved(problem: "_Problem", rename: Mapping[str, str]) -> tuple["_Problem", "_Proof"]:
    """Returns how the deeper network can compute what the old one does.

    Where it does not show otherwise, axes may also hold several entries for each layer.
    """
    try:
        return problem, _proof_of(problem, rename)
    except ValueError:
        if (blocks := problem.with_blocks()) is None:
            raise
    return blocks, _proof_of(blocks, rename)


def _proof_of(problem: "_Problem", rename: Mapping[str, str]) -> "_Proof":
    """Returns how the deeper network can compute what the old one does, see ``_proved``."""
    old, new = problem.old.shapes, problem.new.shapes
    pairing = Pairing(old, new, fits=problem.fits, rename=rename)
    refusals, grows, inner = list[str](), problem.wider, list[str]()
    orders = problem.old.reading_order, problem.new.reading_order
    for places in pairing.candidates(*orders):
        proof = _Proof(problem, places)
        if proof.refusal is None:
            return proof
        refusals.append(proof.refusal)
        grows = grows and bool(problem.sizes(places))
        inner = inner or problem.inner_stacks(places)
    reasons = refusals[:1] or pairing.problems
    if grows and refusals:
        reasons = [*reasons, f"{', '.join(inner)}: {_TO_THE_FRONT}" if inner else _ONE_BY_ONE]
    raise ValueError(
        listed("cannot show that the deeper network computes what the old one does", reasons)
    )


class _Network:
    """A network, its program and the shapes of its variables."""

    def __init__(self, apply: Callable[..., Any], variables: PyTree, inputs: Sequence[Any]) -> None:
        self.apply, self._variables, self._inputs = apply, variables, inputs
        self._program = Program(apply, variables, inputs)
        self.shapes = {path: leaf for path, leaf in self._program.arguments if path is not None}
        self.reading_order = self._program.reading_order()

    def cast(self, dtypes: Mapping[str, Any]) -> "_Network":
        """Returns the network with variables of other dtypes."""
        if all(dtypes[path] == array.dtype for path, array in self.shapes.items()):
            return self
        variables = jax.tree_util.tree_map_with_path(
            lambda keys, leaf: (
                struct(leaf.shape, dtypes[leaf_path(keys)]) if is_array(leaf) else leaf
            ),
            self._variables,
        )
        return _Network(self.apply, variables, self._inputs)

    def read(self, reader: TermReader, leaf: Callable[[str, Any], Value]) -> dict[str, Value]:
        """Returns the values of the results, for given values of the variables."""
        jaxpr, consts = self._program.jaxpr.jaxpr, self._program.jaxpr.consts
        values = []
        for i, ((path, _), var) in enumerate(
            zip(self._program.arguments, jaxpr.invars, strict=True)
        ):
            if path is None:
                index = i - len(self.shapes)
                values.append(exactly(reader.terms.make("input", index, (), var.aval)))
            else:
                values.append(leaf(path, var.aval))
        results = reader.run(jaxpr, consts, values)
        return by_path(zip(self._program.results, results, strict=True))


class _Problem:
    """Two networks to compare."""

    def __init__(
        self,
        old: _Network,
        new: _Network,
        wider: bool,
        interleave: bool = False,
        blocks: bool = False,
    ) -> None:
        self.old, self.new, self.wider, self._interleave = old, new, wider, interleave
        counts = _counts(old.shapes, new.shapes)
        self._stacked: dict[str, dict[int, int]] = {}
        for path, array in old.shapes.items():
            if path in new.shapes and len(array.shape) == len(new.shapes[path].shape):
                pairs = zip(array.shape, new.shapes[path].shape, strict=True)
                for axis, (a, b) in enumerate(pairs):
                    shared = (n for n, m in counts if a % n == 0 and a * m == b * n)
                    if (a, b) in counts or (axis == 0 and 0 < a < b):
                        self._stacked.setdefault(path, {})[axis] = a
                    elif blocks and (n := next(shared, 0)):
                        self._stacked.setdefault(path, {})[axis] = n
        self._layers = frozenset(itertools.chain.from_iterable(counts))
        self._exact = _Old(old, Terms(stacked=self._stacked, counts=self._layers))
        self._counted = self._exact.taken | self._exact.scanned

    def with_blocks(self) -> "_Problem | None":
        """Returns the same where several entries of an axis belong to a layer, if some do."""
        found = _Problem(self.old, self.new, self.wider, self._interleave, blocks=True)
        return None if self._counted.keys() >= found._counted.keys() else found

    def terms(self, places: Mapping[str, str]) -> "_Old":
        """Returns the old network in terms that suit the pairs of arrays."""
        if not self.wider:
            return self._exact
        lengths = frozenset(self._exact.terms.integers)
        sizes = self.sizes(places)
        terms = Terms(False, sizes, lengths, stacked=self._stacked, counts=self._layers)
        return _Old(self.old, terms)

    def fits(self, path: str, place: str) -> bool:
        """Whether an array of the deeper network can be this one of the old network."""
        old, new = self.old.shapes[path].shape, self.new.shapes[place].shape
        if len(old) != len(new):
            return False
        axis = self._counted.get(path) if path == place else None
        return all(
            a <= b if self.wider or i == axis else a == b
            for i, (a, b) in enumerate(zip(old, new, strict=True))
        )

    def deeper(self, places: Mapping[str, str]) -> _Network:
        """Returns the deeper network with old arrays in their dtypes, and new ones in the same."""
        dtypes = {path: array.dtype for path, array in self.new.shapes.items()}
        seen: dict[Any, set[Any]] = {}
        for path, place in places.items():
            seen.setdefault(dtypes[place], set()).add(self.old.shapes[path].dtype)
        for path, dtype in dtypes.items():
            if len(old := seen.get(dtype, {dtype})) == 1:
                (dtypes[path],) = old
        dtypes |= {place: self.old.shapes[path].dtype for path, place in places.items()}
        return self.new.cast(dtypes)

    def stacks(self, places: Mapping[str, str]) -> dict[str, Stack]:
        """Returns the stacks that have more layers now, by their new paths."""
        found, orders = {}, _orders(places, self.new.shapes)
        for path, axis in self._counted.items():
            if path not in places:
                continue
            old, new = self.old.shapes[path].shape[axis], self.new.shapes[places[path]].shape[axis]
            if old < new:
                each = max(old, 1) // self._stacked.get(path, {}).get(axis, max(old, 1))
                old, new = old // each, new // each
                order = _order(old, new, self._interleave)
                if path not in self._exact.scanned:
                    order = orders.get((old, new), order)
                found[places[path]] = Stack(path, order, axis)
        return found

    def inner_stacks(self, places: Mapping[str, str]) -> list[str]:
        """Returns the arrays that may have entries for layers along another axis than the first.

        If more than they grow, there are none, because widths grow then.
        """
        counts = [(n, m) for n, m in _orders(places, self.new.shapes) if n < m]
        found = []
        for path, place in places.items():
            old, new = self.old.shapes[path].shape, self.new.shapes[place].shape
            grown = [(a, b) for a, b in zip(old, new, strict=True) if a < b]
            if path in self._counted or not grown:
                continue
            if any(_numbered(path)) or old[0] < new[0]:
                return []
            if not all(any(a * m == b * n for n, m in counts) for a, b in grown):
                return []
            found.append(path)
        return found

    def sizes(self, places: Mapping[str, str]) -> frozenset[tuple[int, int]]:
        """Returns the lengths of the axes of old arrays that are longer now, before and after."""
        found: set[tuple[int, int]] = set()
        for path, place in places.items():
            sizes = zip(self.old.shapes[path].shape, self.new.shapes[place].shape, strict=True)
            for axis, (a, b) in enumerate(sizes):
                if 0 < a < b and axis != self._counted.get(path):
                    found.add((a, b))
        return frozenset(found)


class _Old:
    """The old network in terms.

    Attributes:
        terms: the table.
        known: how many terms there are.
        numbers: the constants in it, each with its relative rounding error.
        outputs: the terms of its outputs.
        scanned: the axis along which a loop runs over an array, by its path.
        taken: the axis along which single entries are taken from an array, by its path.
    """

    def __init__(self, network: _Network, terms: Terms) -> None:
        reader = TermReader(terms)
        results = network.read(reader, reader.leaf)
        self.terms, self.known = terms, len(terms)
        self.scanned, self.taken = reader.scanned, reader.taken
        self.numbers = dict(terms.numbers)
        terms.old_is_read = True
        self.outputs = {path: value.options[0].term for path, value in results.items()}


class _Proof:
    """Whether the deeper network can compute what the old one does, and with which fills.

    Attributes:
        places: new paths of the old arrays.
        new: the deeper network.
        stacks: the stacks that have more layers now, by their new paths.
        fills: what new arrays must be filled with; all others are free.
        numbers: for each constant that only one of the networks has, the pairs to which it may
            belong: constants of both networks, in proportion to sizes.
        kept: the constants that both networks have.
        refusal: why it cannot, or None.
    """

    def __init__(
        self, problem: _Problem, places: dict[str, str], free: frozenset[str] = frozenset()
    ) -> None:
        """Looks for fills.

        Args:
            problem: both networks.
            places: new paths of the old arrays.
            free: paths of new arrays that are not to be filled.
        """
        self.places, self._free = places, free
        self.stacks = problem.stacks(places)
        self.fills: dict[tuple[str, int | None], Fill] = {}
        self.numbers: tuple[Pairs, ...] = ()
        self.kept: frozenset[float] = frozenset()
        self.refusal: str | None = None
        self.new = problem.deeper(places)
        self._old = problem.terms(places)
        self._old.terms.numbers.clear()
        reader, found = self._read(None)
        if self._old.terms.is_unsure:  # which constants stay as they were tells
            self._old.terms.theirs = frozenset(self._old.terms.numbers)
            reader, found = self._read(None)
        if odd := sorted(self._old.outputs.keys() ^ found.keys()):
            self.refusal = f"only one of the networks has the outputs {odd}"
            return
        worlds = reader.together([self._as_expected(path, found) for path in self._old.outputs])
        if not worlds:
            self.refusal = self._explanation(reader) + self._strange_numbers()
            return
        for chosen, _ in sorted(worlds, key=lambda world: reader.cost(world[0])):
            fills = {(path, f.entry): f for path, f in chosen if f.kind != "open"}
            # The whole program is read again with these fills, now without any choice.
            _, found = self._read(fills)
            if all(self._as_expected(path, found).options for path in found):
                self.fills, self.kept = fills, frozenset(self._same())
                self.numbers = tuple(dict.fromkeys(self._differing()))
                return
        paths = ", ".join(dict.fromkeys(path for path, _ in fills))
        self.refusal = f"filling {paths} does not make the new layers do nothing"

    @property
    def filled(self) -> frozenset[tuple[tuple[str, int | None], Fill]]:
        """What is filled, and how."""
        return frozenset(self.fills.items())

    @property
    def filled_alike(self) -> Iterable[frozenset[str]]:
        """The paths of filled arrays. Paths that differ only in numbers are one group."""
        found: dict[str, set[str]] = {}
        for path, _ in self.fills:
            found.setdefault(re.sub(r"\d+", "0", path), set()).add(path)
        return map(frozenset, found.values())

    def _read(self, fills: Fills | None) -> tuple[TermReader, dict[str, Value]]:
        """Returns the outputs of the deeper network by their names in the old one."""
        sources = {place: path for path, place in self.places.items()}
        terms = self._old.terms
        reader = TermReader(
            terms, known=self._old.known, stacks=self.stacks, fills=fills, free=self._free
        )

        def leaf(path: str, aval: Any) -> Value:
            if path in self.stacks:
                return reader.stack(path, aval)
            if path in sources:
                return reader.leaf(sources[path], aval)
            return reader.new(path, aval)

        found = {}
        for path, value in self.new.read(reader, leaf).items():
            # New values of the variables themselves, such as running statistics, are called alike.
            own = next((p for p in self.new.shapes if f"/{path}".endswith(f"/{p}")), None)
            if own is None:
                found[path] = value
            elif own in sources:
                found[path.removesuffix(own) + sources[own]] = value
        return reader, found

    def _same(self) -> Iterator[float]:
        """Yields the constants that both networks have, as each of them writes it."""
        for a, b in itertools.product(self._old.numbers, self._old.terms.numbers):
            if math.isclose(a, b, rel_tol=1e-6):
                yield from (a, b)

    def _differing(self) -> Iterator[Pairs]:
        """Yields the pairs of constants in proportion to sizes, where one network lacks one.

        A number of the deeper network without a pair is one of new layers.
        """
        ours, its = self._old.numbers, self._old.terms.numbers
        pairs = [(a, b, max(ours[a], its[b])) for a in ours for b in its]
        proportional = [
            (a, b, rounding)
            for ratio in self._old.terms.ratios
            for a, b, rounding in pairs
            if math.isclose(b, a * ratio, rel_tol=rounding)
        ]
        for place, numbers in enumerate((ours, its)):
            for number in numbers:
                if number not in self.kept:
                    its_pairs = tuple(pair for pair in proportional if pair[place] == number)
                    if its_pairs or numbers is ours:
                        yield its_pairs

    def _as_expected(self, path: str, found: Mapping[str, Value]) -> Value:
        term = self._old.outputs[path]
        options = tuple(option for option in found[path].options if option.term is term)
        return Value(options, found[path].leaves)

    def _explanation(self, reader: TermReader) -> str:
        """Says in which layer the deeper network leaves what the old one computes."""
        departure = reader.departures[0] if reader.departures else None
        stranger, step = reader.stranger or ("", 0)
        # Of layers that grow, too, the first thing that is unlike may lie before all new layers.
        grows = bool(self._old.terms.sizes)
        if stranger and (departure is None or (grows and step < departure.step)):
            return f"{stranger} is applied where the old network does something else"
        if departure:
            module = departure.leaf.rpartition("/")[0]
            module = departure.leaf if module in ("", "params") else module.removeprefix("params/")
            f = departure.operation
            if departure.first:
                shape = self.new.shapes[departure.leaf].shape
                return f"{departure.leaf} of shape {shape}: no values make {f} with it the identity"
            if f in ("integer_pow", "square"):
                return (
                    f"{module}: {f} follows it, as in gelu or a norm, which is not done twice alike"
                )
            inner = f"{f}(x)" if departure.before == f else "x"
            return f"{module}: {f} follows it, and {f}({inner}) is not {inner}"
        return "they differ in more than layers that could be the identity"

    def _strange_numbers(self) -> str:
        """Says which constants of the deeper network neither the old one nor a size explains."""
        self.kept = frozenset(self._same())
        explained = {its for pairs in self._differing() for _, its, _ in pairs} | self.kept
        if not (strange := sorted(self._old.terms.numbers.keys() - explained)):
            return ""
        return (
            f"; it computes with {', '.join(f'{number:.6g}' for number in strange)}, which the old "
            "network does not: numbers of old layers must stay, also those that follow from how "
            "many layers there are, as 1 / sqrt(layers) does"
        )


def _described(
    problem: _Problem,
    proof: _Proof,
    target: PyTree,
    inputs: Sequence[Any],
    *,
    copy: bool,
) -> tuple[Insertion, ...]:
    """Returns what becomes of every array that is not an old one in its place."""
    sources = {new: old for old, new in proof.places.items()}
    found = []
    for path, array in proof.new.shapes.items():
        insertion = Insertion(path, array.shape, str(array.dtype), "free")
        source = sources.get(path)
        if path in proof.stacks:
            stack = proof.stacks[path]
            insertion = replace(insertion, source=source, layers=stack.layers, axis=stack.axis)
        elif source is not None:
            if source != path:
                found.append(replace(insertion, fill="moved", source=source))
            continue
        if fill := proof.fills.get((path, None)):
            kind: Any = fill.kind  # none is open any more
            insertion = replace(insertion, fill=kind, value=fill.value, axes=fill.axes)
        elif any(of == path for of, _ in proof.fills):
            layers = len(proof.stacks[path].layers) if path in proof.stacks else 1
            size = math.prod(array.shape) // layers
            fills = [proof.fills.get((path, i), Fill("constant")) for i in range(size)]
            values = tuple(fill.value for fill in fills)
            insertion = replace(insertion, fill="constant", values=values)
        elif copy and (model := source or _model(path, problem.new.shapes, sources)):
            insertion = replace(insertion, fill="copy", source=model)
        found.append(insertion)
    return with_kinds(found, problem.new.apply, target, inputs)


def with_kinds(
    found: Sequence[Insertion], apply: Callable[..., Any], target: PyTree, inputs: Sequence[Any]
) -> tuple[Insertion, ...]:
    """Returns insertions whose free values say what they are drawn as.

    Args:
        found: the insertions.
        apply: the deeper network.
        target: its variables, arrays or ``jax.ShapeDtypeStruct``.
        inputs: its inputs.
    """
    if any(insertion.fill == "free" for insertion in found):
        widths = trace(apply, target, *inputs)
        found = [with_kind(i, widths.leaf(i.path)) if i.fill == "free" else i for i in found]
    return tuple(found)


def _order(old: int, new: int, interleave: bool) -> tuple[int, ...]:
    """Returns for each layer of a deeper stack the old one that it is, or -1."""
    if not interleave:
        return (*range(old), *[-1] * (new - old))
    places = {(i * new) // old: i for i in range(old)}
    return tuple(places.get(i, -1) for i in range(new))


def _orders(
    places: Mapping[str, str], new: Iterable[str]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Returns the orders that layers with numbered names have, by their numbers before and after.

    Args:
        places: new paths of the old arrays.
        new: the new paths.
    """
    sources: dict[str, dict[int, int]] = {}
    for path, place in places.items():
        for (kind, number), (other, now) in zip(_numbered(path), _numbered(place), strict=False):
            if kind == other:
                sources.setdefault(kind, {})[now] = number
    counted: dict[str, set[int]] = {}
    for kind, number in itertools.chain.from_iterable(map(_numbered, new)):
        counted.setdefault(kind, set()).add(number)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for kind, its in sources.items():
        old = sorted(its.values())
        order = tuple(old.index(its[n]) if n in its else -1 for n in sorted(counted[kind]))
        if [n for n in order if n >= 0] == [*range(len(old))]:
            found.setdefault((len(old), len(order)), order)
    return found


def _counts(old: Iterable[str], new: Iterable[str]) -> set[tuple[int, int]]:
    """Returns how many layers with numbered names there are before and after, where more are."""
    found: list[dict[str, set[int]]] = [{}, {}]
    for numbers, paths in zip(found, (old, new), strict=True):
        for kind, number in itertools.chain.from_iterable(map(_numbered, paths)):
            numbers.setdefault(kind, set()).add(number)
    before, after = ({kind: len(its) for kind, its in numbers.items()} for numbers in found)
    return {(n, after[kind]) for kind, n in before.items() if n < after.get(kind, 0)}


def _numbered(path: str) -> Iterator[tuple[str, int]]:
    """Yields the parts of a path that end in a number, as what is around it, and the number."""
    parts = _split(path)
    for i, part in enumerate(parts):
        name, number = split_number(part)
        if number is not None:
            yield "/".join([*parts[:i], name]), number


def _model(path: str, shapes: Shapes, sources: Mapping[str, str]) -> str | None:
    """Returns the old array that a new one copies, in the closest layer of the same arrays."""
    # A module has its arrays under the same path in each collection.
    start = 1 if any(p.startswith("params/") for p in shapes) else 0
    parts = path.split("/")
    for i in range(start, len(parts)):
        module = parts[start : i + 1]
        members = [p for p in map(_split, shapes) if p[start : i + 1] == module]
        siblings = {p[i] for p in map(_split, sources) if p[start:i] == module[:-1] and i < len(p)}
        for sibling in _numbered_alike(parts[i], siblings):
            copies = {"/".join(p): "/".join([*p[:i], sibling, *p[i + 1 :]]) for p in members}
            if all(c in sources and shapes[c].shape == shapes[p].shape for p, c in copies.items()):
                return sources[copies[path]]
    return None


def _numbered_alike(name: str, others: Iterable[str]) -> Iterator[str]:
    """Yields the names that differ in one number, ``block_1_up`` for ``block_2_up``.

    Smaller numbers come first, and of these the closest. If a name has several numbers, the last is
    tried first.
    """
    for found in reversed([*re.finditer(r"\d+", name)]):
        number, around = int(found[0]), (name[: found.start()], name[found.end() :])
        alike = re.compile(r"(\d+)".join(map(re.escape, around)))
        numbers = {other: int(m[1]) for other in others if (m := alike.fullmatch(other))}
        yield from sorted(numbers, key=lambda o: (numbers[o] > number, abs(numbers[o] - number), o))


def _split(path: str) -> list[str]:
    return path.split("/")


def with_kind(insertion: Insertion, leaf: Leaf) -> Insertion:
    dtype = dtype_named(insertion.dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
        return replace(insertion, kind="random" if is_key else "zeros")
    into, out = (math.prod(leaf.shape[a] for a in axes) for axes in (leaf.fan_in, leaf.fan_out))
    return replace(insertion, kind=leaf.kind, fans=(into, out))
