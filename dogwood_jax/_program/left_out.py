"""Leaves numbered layers out of a program: ``without_layers``; compares them: ``kinds_of_layers``.

A layer reads the output of the layer before it, and its own arrays. Each value of a program belongs
to the last layer on which it depends. The output of a layer is the one value that the next layer
reads, apart from values computed from it, such as the mean that the next norm subtracts. If a layer
is left out, the next layer reads the input of that layer instead of its output. If a layer has
several outputs, or if later layers than the next one read them, it is unclear what the network
computes without the layer, and no layer is left out.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.extend.core as jex

from dogwood_jax._program.interpret import called
from dogwood_jax._program.numbered import NumberedLayers
from dogwood_jax._program.program import Program
from dogwood_jax._program.sameness import Sameness

_NO_LAYER = -1


def without_layers(
    program: Program, layers: NumberedLayers, gone: Collection[int]
) -> Program | None:
    """Returns a program without some layers; None if it is unclear how to leave them out.

    Args:
        program: the program.
        layers: the layers.
        gone: the layers to leave out, by index.
    """
    flat = _Flat(program, layers)
    stream = flat.stream()
    if stream is None:
        return None
    instead = {stream[layer + 1]: stream[layer] for layer in gone}
    return flat.with_others(instead, gone)


def kinds_of_layers(program: Program, layers: NumberedLayers) -> list[Any]:
    """Returns a key of what each layer computes; like layers have equal keys.

    Equations after a layer's output are ignored, because they may belong to the next layer.
    """
    flat, same = _Flat(program, layers), Sameness()
    kinds = []
    for layer in range(len(layers)):
        made, eqns = {*(flat.made(layer) or ())}, flat.of_layer[layer]
        ends = [n for n, eqn in enumerate(eqns) if not made.isdisjoint(eqn.outvars)]
        kinds.append(tuple(map(same.equation, eqns[: ends[-1] + 1] if ends else eqns)))
    return kinds


class _Flat:
    """A program in which calls that hold several layers are inlined.

    Attributes:
        eqns: its equations.
        of_layer: the equations that belong to each layer.
    """

    def __init__(self, program: Program, layers: NumberedLayers) -> None:
        self._program, self._layers = program, layers
        paths = program.paths.items()
        self._layer = {
            var: _NO_LAYER if (layer := layers.layer_of(path)) is None else layer
            for var, path in paths
        }
        self._own = {*self._layer}
        self.eqns: list[Any] = []
        self.of_layer: list[list[Any]] = [[] for _ in range(len(layers))]
        self._outvars = self._read(program.jaxpr.jaxpr, {})
        self._made = {var: n for n, eqn in enumerate(self.eqns) for var in eqn.outvars}
        self._readers: dict[Any, set[int]] = {}
        for eqn in self.eqns:
            layer = self._layer_of(eqn)
            for atom in _variables(eqn.invars):
                self._readers.setdefault(atom, set()).add(layer)
            if layer != _NO_LAYER:
                self.of_layer[layer].append(eqn)

    def _read(self, jaxpr: Any, names: dict[Any, Any]) -> list[Any]:
        """Adds the equations of a program with renamed variables; returns the renamed results."""

        def named(atom: Any) -> Any:
            return atom if isinstance(atom, jex.Literal) else names.get(atom, atom)

        for eqn in jaxpr.eqns:
            invars = [named(atom) for atom in eqn.invars]
            inside = called(eqn) if len({*map(self._of, invars)} - {_NO_LAYER}) > 1 else None
            if inside is not None and not inside[1] and not inside[0].constvars:
                # Several calls may share a program, so each gets variables of its own.
                inner = dict(zip(inside[0].invars, invars, strict=True))
                outvars = self._read(inside[0], inner)
                names.update(zip(eqn.outvars, outvars, strict=True))
                continue
            outvars = [copy.copy(var) for var in eqn.outvars]
            names.update(zip(eqn.outvars, outvars, strict=True))
            self.eqns.append(eqn.replace(invars=invars, outvars=outvars))
            self._layer.update(dict.fromkeys(outvars, self._layer_of(self.eqns[-1])))
        return [named(atom) for atom in jaxpr.outvars]

    def _of(self, atom: Any) -> int:
        return _NO_LAYER if isinstance(atom, jex.Literal) else self._layer.get(atom, _NO_LAYER)

    def _layer_of(self, eqn: Any) -> int:
        return max(map(self._of, eqn.invars), default=_NO_LAYER)

    def made(self, layer: int) -> list[Any] | None:
        """Returns the outputs of a layer in the order of the program; None if they are unclear.

        These are its values that later layers read. The last layer's outputs are its values at the
        same places as the outputs of the layer before it.
        """
        if layer == len(self._layers) - 1:
            return self._made_by_last()
        made = (var for eqn in self.of_layer[layer] for var in eqn.outvars)
        return self._roots([var for var in made if self._is_read_after(var)], is_first=False)

    def _roots(self, values: Sequence[Any], *, is_first: bool) -> list[Any]:
        """Returns the values that cannot be computed from the earlier values alone.

        Args:
            values: values of one layer.
            is_first: whether they are made before the first layer, and so belong to no layer.
        """
        roots: list[Any] = []
        for var in sorted(values, key=self._order):
            pending, seen, follows = [var], set[Any](), bool(roots)
            while pending and follows:
                one = pending.pop()
                if one in roots or one in seen or (self._of(one) == _NO_LAYER and not is_first):
                    continue
                seen.add(one)
                follows = one in self._made and self._of(one) == self._of(var)
                pending += _variables(self.eqns[self._made[one]].invars) if follows else ()
            if not follows:
                roots.append(var)
        return roots

    def _is_read_after(self, var: Any) -> bool:
        return any(reader > self._of(var) for reader in self._readers.get(var, ()))

    def _made_by_last(self) -> list[Any] | None:
        last = len(self._layers) - 1
        mine, its = self.of_layer[last], self.of_layer[last - 1]
        wanted, found = {*(self.made(last - 1) or ())}, []
        for eqn, other in zip(mine, its, strict=False):
            if eqn.primitive is not other.primitive:
                return None
            found += [a for a, b in zip(eqn.outvars, other.outvars, strict=True) if b in wanted]
            if len(found) == len(wanted):
                return found
        return None

    def taken(self, layer: int) -> list[Any]:
        """Returns the values that a layer reads from earlier layers, or from before all layers."""
        read = dict.fromkeys(
            atom
            for eqn in self.of_layer[layer]
            for atom in _variables(eqn.invars)
            if self._of(atom) < layer and atom not in self._own
        )
        if layer:
            own = [atom for atom in read if self._of(atom) != _NO_LAYER]
        else:
            own = [atom for atom in read if self._readers[atom] <= {_NO_LAYER, layer}]
        return self._roots(own, is_first=not layer)

    def stream(self) -> list[Any] | None:
        """Returns the input of the first layer, then the output of each layer; None if unclear."""
        handed: list[Any] = []
        for layer in range(len(self._layers)):
            made = self.made(layer)
            if made is None or len(made) != 1 or (handed and self.taken(layer) != handed[-1:]):
                return None
            if layer < len(self._layers) - 1 and not self._goes_to_the_next(layer):
                return None
            handed += made
        first = [var for var in self.taken(0) if _kind(var) == _kind(handed[0])]
        found = first + handed
        is_one = len(first) == 1 and len({*map(_kind, found)}) == 1
        return found if is_one and found == sorted(found, key=self._order) else None

    def _goes_to_the_next(self, layer: int) -> bool:
        """Whether the next layer is the only other layer that reads values of a layer."""
        values = (var for eqn in self.of_layer[layer] for var in eqn.outvars)
        return all(max(self._readers.get(var, {layer})) <= layer + 1 for var in values)

    def _order(self, var: Any) -> int:
        return self._made.get(var, -1)

    def with_others(self, instead: Mapping[Any, Any], gone: Collection[int]) -> Program | None:
        """Returns the program without some layers, after values are replaced.

        Returns None if arrays of these layers are still read, or other arrays no longer are.

        Args:
            instead: the replacement of each value that is replaced.
            gone: the layers to leave out.
        """

        def other(atom: Any) -> Any:
            while not isinstance(atom, jex.Literal) and atom in instead:
                atom = instead[atom]
            return atom

        results = zip(self._program.results, self._outvars, strict=True)
        left = [(path, other(var)) for path, var in results if not self._is_own(var, gone, instead)]
        outvars = [var for _, var in left]
        needed, kept = {*_variables(outvars)}, []
        for eqn in reversed(self.eqns):
            if eqn.effects or not needed.isdisjoint(eqn.outvars):
                eqn = eqn.replace(invars=[*map(other, eqn.invars)])
                needed.update(_variables(eqn.invars))
                kept.append(eqn)
        jaxpr = self._program.jaxpr.jaxpr
        left_out = {var for var, layer in self._layer.items() if var in self._own and layer in gone}
        # An array that is no longer read also belongs to the layer, but its path does not show it.
        if any((var in needed) == (var in left_out) for var in self._own if var in self._readers):
            return None
        invars = [var for var in jaxpr.invars if var not in left_out]
        found = self._program.taking(invars, kept[::-1])
        found.jaxpr = jex.ClosedJaxpr(
            found.jaxpr.jaxpr.replace(outvars=outvars), found.jaxpr.consts
        )
        found.results = [path for path, _ in left]
        return found

    def _is_own(self, var: Any, gone: Collection[int], instead: Mapping[Any, Any]) -> bool:
        """Whether a result is an array of a layer, or a statistic of a layer that is left out."""
        layer = self._of(var)
        if layer == _NO_LAYER or var in instead:
            return False
        return var in self._own or (layer in gone and layer < len(self._layers) - 1)


def _variables(atoms: Sequence[Any]) -> Iterator[Any]:
    return (atom for atom in atoms if not isinstance(atom, jex.Literal))


def _kind(var: Any) -> tuple[Any, Any]:
    return var.aval.shape, var.aval.dtype
