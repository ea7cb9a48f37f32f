"""The default path in a hundred lines: widths found by tracing, and zero outgoing weights.

Dense layers, convolutions and attention, without refusals, recipes or an evaluation.
``test_reference`` holds the library to it.
"""

import jax
import jax.numpy as jnp
from jax.extend import core


class Dim:
    """A dimension of an array. Dimensions that must have one size have one root."""

    def __init__(self, size):
        self.size, self.parent = size, self

    @property
    def root(self):
        return self if self.parent is self else self.parent.root


def unify(a, b):
    if a.size == b.size:
        a.root.parent = b.root


def trace(apply, params, *inputs):
    """Returns the dimensions of each array, and the axes of arrays that are contracted."""
    flat = jax.tree.leaves((params, inputs))
    arrays = [[Dim(size) for size in jnp.shape(array)] for array in flat]
    contracted = set()

    def contract(dims, axes):
        contracted.update((n, a) for n, array in enumerate(arrays) for a in axes if array is dims)

    def rule(eqn, values):
        name, p, new = eqn.primitive.name, eqn.params, [Dim(n) for n in eqn.outvars[0].aval.shape]
        if (inner := p.get("jaxpr") or p.get("call_jaxpr")) is not None:  # jit, a custom derivative
            return read(inner.jaxpr, values)
        if name == "dot_general":
            (left, right), ((over, its), (batch, others)) = values, p["dimension_numbers"]
            contract(left, over), contract(right, its)
            for i, j in (*zip(over, its), *zip(batch, others)):
                unify(left[i], right[j])
            free = [d for i, d in enumerate(left) if i not in (*batch, *over)]
            rest = [d for j, d in enumerate(right) if j not in (*others, *its)]
            new = [*(left[i] for i in batch), *free, *rest]
        elif name == "conv_general_dilated":
            (left, right), numbers = values, p["dimension_numbers"]
            contract(right, [numbers.rhs_spec[1]])
            unify(left[numbers.lhs_spec[1]], right[numbers.rhs_spec[1]])
            new[numbers.out_spec[0]] = left[numbers.lhs_spec[0]]
            new[numbers.out_spec[1]] = right[numbers.rhs_spec[0]]
        elif name == "transpose":
            new = [values[0][axis] for axis in p["permutation"]]
        elif name.startswith("reduce_"):
            new = [dim for axis, dim in enumerate(values[0]) if axis not in p["axes"]]
        else:  # a broadcast, or a function of single entries
            axes = p.get("broadcast_dimensions", range(len(new)))
            for value in values:
                for axis, dim in zip(axes, value):
                    unify(new[axis], dim)
        return [new]

    def read(program, arguments):
        known = dict(zip(program.invars, arguments))

        def dims(atom):
            literal = isinstance(atom, core.Literal)
            return [Dim(n) for n in atom.aval.shape] if literal else known[atom]

        for eqn in program.eqns:
            known.update(zip(eqn.outvars, rule(eqn, [*map(dims, eqn.invars)])))
        return [*map(dims, program.outvars)]

    read(jax.make_jaxpr(apply)(params, *inputs).jaxpr, arrays)
    return arrays, contracted


def grow(params, traced, place, size, key):
    """Returns larger arrays: random numbers for new units, and zeros where these are read.

    Args:
        params: a pytree of arrays.
        traced: what ``trace`` has returned.
        place: a place of the width that grows: the number of an array, and an axis.
        size: how many units there are then.
        key: for random numbers.
    """
    (arrays, contracted), (leaves, tree) = traced, jax.tree.flatten(params)
    root = arrays[place[0]][place[1]].root
    for n, leaf in enumerate(leaves):
        axes = [axis for axis, dim in enumerate(arrays[n]) if dim.root is root]
        for axis in axes:
            shape = [size - d if a == axis else d for a, d in enumerate(leaf.shape)]
            zero = (n, axis) in contracted
            new = jnp.zeros(shape) if zero else jax.random.normal(jax.random.fold_in(key, n), shape)
            leaf = jnp.concatenate([leaf, new.astype(leaf.dtype)], axis)
        leaves[n] = leaf
    return tree.unflatten(leaves)
