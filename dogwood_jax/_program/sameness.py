"""Finds equations that do the same: ``Sameness`` gives them equal numbers."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from dogwood_jax._base.trees import concrete


class Sameness:
    """Gives equal numbers to equations that do the same, regardless of the variables they read.

    Functions among their parameters are not compared: most of them define derivatives.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._programs: dict[int, int] = {}
        self._params: dict[Hashable, Hashable] = {}
        self._held: list[Any] = []  # keeps objects alive that are compared by id()

    def equation(self, eqn: Any) -> int:
        """Returns the number of an equation, regardless of the variables that it reads."""
        operands = tuple(map(self._atom, eqn.invars))
        results = tuple(map(_kind, eqn.outvars))
        return self._number((eqn.primitive, operands, results, self._params_of(eqn.params)))

    def _params_of(self, params: Mapping[str, Any]) -> Hashable:
        given = tuple(params.items())
        try:
            return self._params[given]
        except KeyError:
            plain = self._plain(params)
            return self._params.setdefault(given, plain)
        except TypeError:  # a list, for example, has no hash
            return self._plain(params)

    def _number(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _atom(self, atom: Any) -> Hashable:
        if isinstance(atom, jex.Literal):
            return (*_kind(atom), self._plain(atom.val))
        return _kind(atom)

    def _program(self, jaxpr: Any, consts: Sequence[Any]) -> int:
        """Returns the number of a program inside an equation."""
        if id(jaxpr) in self._programs:
            return self._programs[id(jaxpr)]
        self._held.append(jaxpr)
        known: dict[Any, Hashable] = {
            var: place for place, var in enumerate((*jaxpr.constvars, *jaxpr.invars))
        }

        def read(atom: Any) -> Hashable:
            return self._atom(atom) if isinstance(atom, jex.Literal) else known[atom]

        lines = []
        for index, eqn in enumerate(jaxpr.eqns):
            lines.append((self.equation(eqn), *map(read, eqn.invars)))
            for place, var in enumerate(eqn.outvars):
                known[var] = index, place
        taken = tuple(map(_kind, jaxpr.invars))
        key = taken, tuple(map(self._plain, consts)), tuple(lines), tuple(map(read, jaxpr.outvars))
        return self._programs.setdefault(id(jaxpr), self._number(key))

    def _plain(self, value: Any) -> Hashable:
        """Returns a hashable key of a parameter: equal values have equal keys, others do not."""
        if value is None or isinstance(value, bool | int | str | bytes | type):
            return type(value), value
        if isinstance(value, float):
            return repr(value)
        if isinstance(value, jex.ClosedJaxpr):
            return "program", self._program(value.jaxpr, value.consts)
        if isinstance(value, jex.Jaxpr):
            return "program", self._program(value, ())
        if isinstance(value, tuple | list):
            return type(value), tuple(map(self._plain, value))
        if isinstance(value, Mapping):
            return tuple((key, self._plain(value[key])) for key in sorted(value))
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            return self._array(value)
        if callable(value) or hasattr(value, "call_wrapped"):
            return "function"
        if not isinstance(value, Hashable):
            self._held.append(value)
            return id(value)
        return value

    def _array(self, array: Any) -> Hashable:
        if isinstance(array, np.generic):
            return type(array), array.tobytes()
        known = None if jnp.issubdtype(array.dtype, jax.dtypes.extended) else concrete(array)
        if known is None:
            self._held.append(array)
            return id(array)
        digest = hashlib.blake2b(np.ascontiguousarray(known).tobytes()).digest()
        return str(known.dtype), known.shape, digest


def _kind(atom: Any) -> tuple[Hashable, ...]:
    aval = atom.aval
    return getattr(aval, "shape", None), getattr(aval, "dtype", None)
