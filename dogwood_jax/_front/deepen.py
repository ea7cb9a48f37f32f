"""Insert layers that compute the identity: ``deepen``.

Arrays of the deeper network that the old network lacks belong to new layers. ``new_layers``
proposes values for them, an evaluation of both networks chooses a proposal, and ``edited_arrays``
fills the arrays in.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax import Array

from dogwood_jax._base.arguments import (
    FUNCTION,
    KEY,
    VARIABLES,
    ArgumentKind,
    expect,
    expect_call,
    expect_given,
    expect_values,
)
from dogwood_jax._base.failed_calls import explaining
from dogwood_jax._base.problems import Refused, listed
from dogwood_jax._base.trees import (
    PyTree,
    arrays_of,
    in_order_of,
    is_array,
    leaves_by_path,
    struct,
    struct_of,
)
from dogwood_jax._front.verify import verify_if_possible
from dogwood_jax._growth.edit import Edit, Fill
from dogwood_jax._growth.grown import edited_arrays, filled, places_of, problems_of_new
from dogwood_jax._growth.growth import Growth
from dogwood_jax._plan.depth.fillings import new_layers
from dogwood_jax._plan.depth.statistics import with_statistics
from dogwood_jax._plan.programs import Programs
from dogwood_jax._plan.shown import first_shown, shown_by
from dogwood_jax._widths.trace import trace
from dogwood_jax._widths.widths import Widths, no_such

_LAYERS = ArgumentKind(
    "a mapping from layer to layer, {name: name}",
    lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(name, str) for pair in value.items() for name in pair)
    ),
)
_NO_VALUES = (
    "pass key= to draw them, copy=True to copy those of a similar layer, if there is one, or a "
    "target that holds arrays"
)
_NOTHING_SHOWN = (
    "deepen: nothing was evaluated, so outputs stay only if what follows each layer, such as a "
    "relu, has no effect when it is applied a second time; a tanh has. Pass target=, apply= and "
    "target_apply= to have outputs compared"
)
_INPUTS = ArgumentKind("a tuple of inputs, (x,)", lambda value: isinstance(value, tuple | list))


def deepen(
    variables: PyTree,
    target: PyTree = None,
    *,
    layers: Mapping[str, str] | None = None,
    apply: Callable[..., Any] | None = None,
    target_apply: Callable[..., Any] | None = None,
    inputs: Sequence[Any] = (),
    rename: Mapping[str, str] | None = None,
    copy: bool = False,
    interleave: bool = False,
    batch: Sequence[Any] | None = None,
    key: Array | None = None,
    verify: bool = True,
) -> PyTree:
    """Inserts layers without changing what the network computes.

    There are two ways. The first takes the deeper model's own variables as ``target``. ``deepen``
    finds the layers that the network lacks, and fills them so that they compute the identity:

    - A Dense layer gets an identity kernel, a convolution a centred identity kernel.
    - A normalization by running statistics gets mean 0, variance 1, and the scale that undoes them.
    - In a residual block, only the last projection of each branch is zero, or the scale behind
      it. The rest is free.

    Before anything is written, both programs are evaluated as in ``plan``: the deeper network must
    compute the same, with finite gradients that reach the new layers after one step at the latest.
    If it does not, other arrays are set to zero: in weight norm it is the scale, because dividing
    by the norm of zero weights is not possible. A layer for which no values work is refused, such
    as a Dense layer before a tanh.

    The second way is by name, for nested dicts of plain Dense and convolution layers: ``layers``
    maps each new layer to the existing layer that it follows. Without ``apply`` and
    ``target_apply``, nothing is evaluated, and a warning says so. Then you must know that the
    function behind the new layer, such as a relu, has no effect when it is applied a second time.

    Args:
        variables: pytree of the network's arrays.
        target: pytree of arrays or ``jax.ShapeDtypeStruct`` of the deeper model. If it holds
            arrays, free values of new layers are taken from it. Stacked layers, over which a loop
            runs, are longer along their first axis.
        layers: instead of a target, the path of each new layer and of the existing layer that it
            follows, ``{"dense_1a": "dense_1"}``.
        apply: the network, a function of variables and inputs.
        target_apply: the deeper network.
        inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``, the same for both networks.
        rename: modules that have another path in the target, ``{"layers_2": "layers_4"}``. By
            default, layers keep their names if their shapes allow it. If an inserted layer shifts
            the numbers in names, layers keep their order, and among layers of equal shapes the new
            layers come last. The evaluation covers whichever choice is made.
        copy: whether free values of a new layer are copied from the closest layer of its kind
            before it, instead of being new.
        interleave: whether new layers of a stack are spread between the old layers, instead of
            following them.
        batch: a tuple of input arrays. Inserted normalizations get the statistics of this batch,
            and the scale and bias that undo them. Then outputs also stay in training mode: on this
            batch, the deeper network computes the same with the batch's own statistics, as far as
            the running statistics of old normalizations equal those of the batch. Without
            ``batch``, the running mean is 0 and the variance 1, and outputs stay only in evaluation
            mode.
        key: PRNG key for free values, if there are any and the target holds only shapes.
        verify: whether to run both networks on the inputs, and raise if outputs moved by more than
            rounding explains, see ``verify``. It costs some calls, and is skipped if arrays have
            no values, as under ``jax.jit``.

    Returns:
        The variables of the deeper model, in its tree structure. Old arrays keep their dtypes.
        The growth itself, for ``grow_opt_state``, is ``plan(widths, target=, target_apply=)``.

    Raises:
        TypeError: if arguments are of the wrong kind.
        ValueError: if no values make the deeper network compute the same, if old arrays are
            missing in the target or have another shape there, if there are free values but
            neither ``copy``, ``key`` nor a target with arrays, or if outputs moved.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dogwood_jax as dw
        >>> def apply(params, x):
        ...     for name in params:
        ...         x = jax.nn.relu(x @ params[name])
        ...     return x
        >>> params = {"a": jnp.ones((3, 2)), "c": jnp.ones((2, 4))}
        >>> target = params | {"b": jnp.ones((2, 2))}
        >>> x = jnp.ones((1, 3))
        >>> deeper = dw.deepen(params, target, apply=apply, target_apply=apply, inputs=(x,))
        >>> deeper["b"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Reference:
        Chen, Goodfellow and Shlens, 2016, Net2Net; Gesmundo and Maile, 2023, Composable
        Function-preserving Expansions; Wu et al., 2024, LLaMA Pro (``copy``).
    """
    if (target is None) == (layers is None):
        raise ValueError("deepen needs either target=, the deeper model's variables, or layers=")
    by_name = layers is not None and apply is None and target_apply is None and batch is None
    if not by_name and (apply is None or target_apply is None):
        raise ValueError("deepen needs apply= and target_apply= to compare the two networks")
    expect("deepen", variables=(VARIABLES, variables))
    expect_given(
        "deepen",
        target=(VARIABLES, target),
        layers=(_LAYERS, layers),
        apply=(FUNCTION, apply),
        target_apply=(FUNCTION, target_apply),
        inputs=(_INPUTS, inputs),
        rename=(_LAYERS, rename),
        batch=(_INPUTS, batch),
        key=(KEY, key),
    )
    if layers is not None:
        target, named = _named_layers(variables, layers)
    if apply is None or target_apply is None:
        deeper = _inserted(variables, Growth(Widths((), ()), (), inserted=named), target, None)
        warnings.warn(_NOTHING_SHOWN, stacklevel=2)
        return deeper
    expect_call("deepen", "apply", apply, variables, *inputs)
    expect_call("deepen", "target_apply", target_apply, target, *inputs)
    with explaining("deepen", "apply", apply, variables, inputs, variables_are="variables"):
        widths = trace(apply, variables, *inputs)
    with explaining("deepen", "target_apply", target_apply, target, inputs, variables_are="target"):
        larger = trace(target_apply, target, *inputs)
    proposals = new_layers(widths, larger, rename=rename, copy=copy, interleave=interleave)

    def show(found: tuple[Edit, ...]) -> Growth | Refused:
        growth = Growth(widths, (), inserted=found)
        return shown_by(growth, Programs(growth, widths, larger))

    growth = first_shown(show, proposals)
    if isinstance(growth, Refused):
        raise growth
    deeper = _inserted(variables, growth, target, key)
    if batch is not None:
        deeper = with_statistics(target_apply, deeper, growth.inserted, batch)
    if verify:
        verify_if_possible(apply, variables, target_apply, deeper, tuple(inputs), growth)
    return deeper


def _inserted(variables: PyTree, growth: Growth, target: PyTree, key: Array | None) -> PyTree:
    """Returns variables with new layers; free values come from arrays of the target, if any."""
    leaves, theirs = leaves_by_path(variables), leaves_by_path(target)
    expect_values("deepen", leaves, "jax.eval_shape calls dw.deepen with shapes")
    arrays = arrays_of(theirs)
    fresh = {p: a for p, a in arrays.items() if not isinstance(a, jax.ShapeDtypeStruct)}
    needed = {edit.source: edit.path for edit in growth.inserted if edit.source is not None}
    inserted = {edit.path for edit in growth.inserted}
    needed |= {path: path for path in arrays if path not in inserted}
    problems = [
        f"{path}: missing, but {place} is made from it"
        for path, place in needed.items()
        if path not in leaves
    ]
    problems += problems_of_new(growth, fresh, key, _NO_VALUES)
    if problems:
        raise ValueError(listed("cannot insert layers", problems))
    where = places_of(leaves, growth, fresh)
    made = edited_arrays(leaves, growth, fresh, key, where=where)
    others = {path: leaf for path, leaf in theirs.items() if not is_array(leaf)}
    return filled(jax.tree.structure(target), made | others, like=target)


# By name ------------------------------------------------------------------------------------------


def _named_layers(variables: PyTree, layers: Mapping[str, str]) -> tuple[PyTree, tuple[Edit, ...]]:
    """Returns the tree with new layers after existing layers, and the edits that fill them."""
    paths = leaves_by_path(variables)
    collection = "params/" if any(path.startswith("params/") for path in paths) else ""
    target = jax.tree.map(lambda leaf: struct_of(leaf) if is_array(leaf) else leaf, variables)
    target = in_order_of(variables, target)
    edits: list[Edit] = []
    problems: list[str] = []
    for name, after in layers.items():
        before = collection + after.removeprefix("params/")
        path = collection + name.removeprefix("params/")
        arrays = {
            p.removeprefix(f"{before}/"): leaf
            for p, leaf in leaves_by_path(target).items()
            if p.startswith(f"{before}/")
        }
        kernel = arrays.get("kernel")
        if not arrays:
            problems.append(f"{after}: {no_such('layer', after, _layers(paths))}")
        elif kernel is None or kernel.ndim < 2 or not arrays.keys() <= {"kernel", "bias"}:
            problems.append(
                f"{after}: expected a kernel of shape [..., in, out] and at most one bias, "
                f"found {', '.join(arrays)}; pass target=, apply= and target_apply= instead"
            )
        elif path.rpartition("/")[0] != before.rpartition("/")[0]:
            problems.append(f"{name}: must be in the same module as {after}, which it follows")
        elif any(p == path or p.startswith(f"{path}/") for p in leaves_by_path(target)):
            problems.append(f"{name}: already exists; choose another name")
        else:
            units, n = kernel.shape[-1], kernel.ndim
            shapes = {"kernel": (*kernel.shape[:-2], units, units), "bias": (units,)}
            layer = {key: struct(shapes[key], arrays[key].dtype) for key in arrays}
            for key, array in layer.items():
                fill = (
                    Fill("identity", axes=(n - 2, n - 1)) if key == "kernel" else Fill("constant")
                )
                edits.append(Edit(f"{path}/{key}", array.shape, str(array.dtype), fill=fill))
            target = _with_layer(target, path.split("/"), before.split("/"), layer)
    if problems:
        raise ValueError(listed("cannot insert layers", problems))
    return target, tuple(edits)


def _layers(paths: Iterable[str]) -> list[str]:
    modules = (path.rpartition("/")[0].removeprefix("params/") for path in paths)
    return list(dict.fromkeys(module for module in modules if module))


def _with_layer(tree: Any, path: list[str], after: list[str], layer: Any) -> Any:
    """Returns nested dicts with a new layer inserted after an existing layer."""
    if len(path) > 1:
        inner = _with_layer(tree[path[0]], path[1:], after[1:], layer)
        return {k: inner if k == path[0] else v for k, v in tree.items()}
    items: dict[str, Any] = {}
    for name, value in tree.items():
        items[name] = value
        if name == after[0]:
            items[path[0]] = layer
    return items
