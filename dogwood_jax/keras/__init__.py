"""Live Keras models on JAX: ``trace``, ``grow``, and ``fit``, which grows between epochs.

A model is grown to a new one, with its weights, compiled as it was, with the optimizer's moments
and its count of steps. So ``fit`` goes on where it stopped::

    import os

    os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

    import keras
    import dogwood_jax as dw

    model.fit(x, y, epochs=2)
    print(dw.keras.trace(model))  # what can grow, and by which names
    model = dw.keras.grow(model, {"dense_1": 256})
    model.fit(x, y, epochs=10, initial_epoch=2)

The old model stays as it was, and shares no array with the new one. Keras is imported when one of
these functions is called; 3.10 and 3.15 are tested. For models in files, also of Keras 1 and 2, see
``dogwood_jax.keras_h5``.

Names. In a Sequential or Functional model, layers have the names that Keras gives them, as
``model.summary()`` shows them. In layers and models of your own classes, a layer without a name has
that of the attribute that holds it: ``self.up = keras.layers.Dense(8)`` is ``"up"``, and
``self.blocks[0]`` is ``"blocks/0"``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

import dogwood_jax as dw
from dogwood_jax._base.arguments import BY_WIDTH, KEY, expect_given
from dogwood_jax._base.described import first_line
from dogwood_jax._base.trees import PyTree, is_array, struct
from dogwood_jax.keras._compile import compile_like, expect_compilable
from dogwood_jax.keras._larger import larger_models
from dogwood_jax.keras._live import (
    ModelFunction,
    expect_model,
    function_of,
    inputs_of,
    named_variables,
    seeds_kept,
    structs_of,
    values_of,
)
from dogwood_jax.strategies import Strategy


def trace(model: Any, x: PyTree = None) -> dw.Widths:
    """Finds every width of a Keras model by tracing a call of it, as ``dogwood_jax.trace`` does.

    The model is called as ``predict`` calls it. Nothing of it changes.

    Args:
        model: a ``keras.Model`` that has its variables.
        x: an example of its input, arrays or ``jax.ShapeDtypeStruct``. Unless given, that of the
            model's own inputs (``keras.Input``), as far as they say all sizes but the batch.

    Returns:
        The widths, by the names of layers.

    Raises:
        ImportError: if Keras 3 is not installed.
        RuntimeError: if Keras does not compute with JAX.
        TypeError: if the model is none of Keras.
        ValueError: if the model has no variables yet, or does not say what its input is.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> import dogwood_jax as dw
        >>> layers = keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)
        ... # doctest: +SKIP
        >>> dw.keras.trace(keras.Sequential(layers))["dense"].size  # doctest: +SKIP
        8
    """
    expect_model("keras.trace(model, x)", "model", model)
    apply = function_of(model)
    return dw.trace(apply, structs_of(apply.variables), inputs_of(model, x))


def grow(
    model: Any,
    sizes: Mapping[Any, int] | None = None,
    x: PyTree = None,
    *,
    target: Any = None,
    key: jax.Array | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    interface: bool = False,
) -> Any:
    """Returns a larger model that predicts what a Keras model predicts, and goes on training.

    The growth is planned as by ``dogwood_jax.plan``, with the larger model's own function, so both
    are evaluated before any array is made. The new model has the class, layers and names of the old
    one, and is compiled like it, with new metrics. Its optimizer has the old one's settings, step
    count and all that it keeps for weights: moments of old entries stay as they are, and those of
    new entries begin as in a new optimizer.

    Keras counts steps once for all weights. So Adam no longer corrects the bias of the moments of
    new entries: with its defaults and a steady gradient, their first update is 3.16 times the
    learning rate, and later ones are up to 6.6 times. Where this matters, lower the learning rate
    for some steps, or train with Optax and ``dogwood_jax.growable``, which counts for each entry.
    Adafactor keeps only means of second moments along rows and columns, so these are not exact.

    The larger model is made from the config of the old one. Which numbers in it are sizes, Keras
    itself shows: those with which all variables get their new shapes. This works for layers of
    Keras and for classes of your own with ``get_config``; where it does not, pass ``target``.

    Args:
        model: a ``keras.Model`` that has its variables, compiled or not. It stays as it is.
        sizes: new number of units by name of the width, as ``print(dw.keras.trace(model))`` shows
            them, or by ``(path, axis)``.
        x: an example of its input, as for ``trace``.
        target: the larger model, wider, deeper or both, in place of ``sizes`` or beside it. Its
            variables are assigned, and it is returned. It is compiled like the old one unless it
            already is, with an optimizer of the same class then.
        key: PRNG key of JAX for new weights. Without it, they are those with which Keras itself
            begins the larger model: by the initializers of its layers, and repeatable after
            ``keras.utils.set_random_seed``.
        strategy: how new units are filled in, as for ``dogwood_jax.plan``.
        interface: whether inputs and outputs may grow, as for ``dogwood_jax.plan``.

    Returns:
        The larger model. It shares no array with the old one.

    Raises:
        ImportError: if Keras 3 is not installed.
        RuntimeError: if Keras does not compute with JAX.
        TypeError: if the model is none of Keras.
        ValueError: if the growth is refused, as by ``dogwood_jax.plan``; if the config does not
            show how the larger model is made; if the model's ``compile`` takes arguments of its own
            that it does not describe; or if the optimizer keeps something that is not known.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> import numpy as np
        >>> import dogwood_jax as dw
        >>> layers = keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)
        ... # doctest: +SKIP
        >>> model = keras.Sequential(layers)  # doctest: +SKIP
        >>> wide, x = dw.keras.grow(model, {"dense": 16}), np.ones((3, 4))  # doctest: +SKIP
        >>> wide.layers[0].units, np.allclose(wide.predict(x), model.predict(x))  # doctest: +SKIP
        (16, True)
    """
    larger, growth, old, new = _planned(model, sizes, x, target, strategy, interface)
    expect_given("keras.grow", key=(KEY, key))
    fresh = values_of(new.variables) if key is None else None
    arrays = dw.grow(values_of(old.variables), growth, key=key, fresh=fresh, copy=True)
    for name, variable in new.variables.items():
        variable.assign(arrays[name])
    # The states of random numbers, which are no part of the network.
    states = named_variables(model)
    for name, variable in named_variables(larger).items():
        if variable.name == "seed_generator_state" and name in states:
            variable.assign(states[name].value.copy())
    compile_like(model, larger, growth, old.variables, new.variables)
    return larger


def fit(
    model: Any,
    *data: Any,
    grow_at: Mapping[int, Mapping[Any, int]],
    epochs: int = 1,
    initial_epoch: int = 0,
    key: jax.Array | None = None,
    strategy: Strategy | Mapping[str, Strategy] | None = None,
    **options: Any,
) -> Any:
    """Trains a Keras model that grows between epochs: ``model.fit`` for each of its sizes.

    No callback could do it. Within ``fit``, Keras has one model, whose step is compiled for its
    arrays. So ``fit`` is called once for each size, with ``initial_epoch`` going on, and the models
    that follow are those that ``grow`` returns.

    All growths are planned before training begins, so that none is refused half-way.

    Args:
        model: a compiled ``keras.Model``. It is trained as far as the first growth.
        *data: ``x`` and ``y``, as for ``model.fit``.
        grow_at: new sizes, as for ``grow``, by the epoch before which the model grows:
            ``{3: {"dense_1": 256}}``. Epochs count from 0, as in callbacks.
        epochs: the epoch before which training ends, as for ``model.fit``.
        initial_epoch: the epoch with which it begins.
        key: as for ``grow``; each growth has a key of its own.
        strategy: as for ``grow``.
        **options: all else that ``model.fit`` takes. Callbacks begin anew with each size:
            ``on_train_begin`` is called, and they see the new model. If one of them stops training,
            the model does not grow on.

    Returns:
        The ``keras.callbacks.History`` of all epochs. Its ``model`` is the last, largest model.

    Raises:
        ValueError: if a growth is refused, see ``grow``, or is for an epoch that does not come.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> import numpy as np
        >>> import dogwood_jax as dw
        >>> layers = keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)
        ... # doctest: +SKIP
        >>> model = keras.Sequential(layers)  # doctest: +SKIP
        >>> model.compile("adam", "mse")  # doctest: +SKIP
        >>> x, y = np.ones((32, 4)), np.ones((32, 2))
        >>> history = dw.keras.fit(model, x, y, epochs=5, grow_at={2: {"dense": 16}})
        ... # doctest: +SKIP
        >>> history.model.layers[0].units, len(history.history["loss"])  # doctest: +SKIP
        (16, 5)
    """
    call = "keras.fit(model, x, y, grow_at=)"
    expect_model(call, "model", model)
    if not model.compiled:
        raise ValueError(f"{call}: {model.name} is not compiled; call model.compile before")
    if outside := [epoch for epoch in grow_at if not initial_epoch <= epoch < epochs]:
        raise ValueError(
            f"{call}: grow_at has the epochs {outside}, but training goes from {initial_epoch} to "
            f"{epochs - 1}; epochs count from 0"
        )
    given = data[0] if data else options.get("x")
    x = _first_two(given)
    with seeds_kept():
        planned = model
        for epoch in sorted(grow_at):
            planned, *_ = _planned(planned, grow_at[epoch], x, None, strategy, False)
    epoch_lists: list[int] = []
    logs: dict[str, list[Any]] = {}
    ends = [*sorted(grow_at), epochs]
    starts = [initial_epoch, *ends[:-1]]
    history = None
    for start, end in zip(starts, ends, strict=True):
        if start in grow_at:
            own = None if key is None else jax.random.fold_in(key, start)
            model = grow(model, grow_at[start], x, key=own, strategy=strategy)
        if start < end:
            history = model.fit(*data, epochs=end, initial_epoch=start, **options)
            epoch_lists += history.epoch
            for name, values in history.history.items():
                logs.setdefault(name, []).extend(values)
            if model.stop_training:
                break
    assert history is not None
    history.epoch, history.history = epoch_lists, logs
    return history


def _planned(
    model: Any,
    sizes: Mapping[Any, int] | None,
    x: PyTree,
    target: Any,
    strategy: Any,
    interface: bool,
) -> tuple[Any, dw.Growth, ModelFunction, ModelFunction]:
    """Returns the larger model as Keras makes it, the growth, and both as functions."""
    call = "keras.grow(model, sizes)"
    expect_model(call, "model", model)
    if target is not None:
        expect_model(call, "target", target)
    expect_given(call, sizes=(BY_WIDTH, sizes))
    if sizes is None and target is None:
        raise ValueError(f"{call}: needs sizes, {{name: units}}, or target=, the larger model")
    widths, old = trace(model, x), function_of(model)
    if target is None or not target.compiled:
        expect_compilable(model, old.variables)
    if target is None:
        models = larger_models(model, widths, sizes or {}, inputs_of(model, x))
    else:
        models = iter([target])
    refused = None
    for larger in models:
        new = _named_alike(old, function_of(larger))
        try:
            growth = dw.plan(
                widths,
                sizes,
                target=structs_of(new.variables),
                target_apply=new,
                strategy=strategy,
                interface=interface,
            )
        except ValueError as error:
            if refused is None:
                refused = (_not_called(new, widths, sizes) if target is None else None) or error
        else:
            return larger, growth, old, new
    assert refused is not None
    raise refused


def _not_called(
    new: ModelFunction, widths: dw.Widths, sizes: Mapping[Any, int] | None
) -> ValueError | None:
    """Returns what to say if Keras itself fails to call the model in its new sizes."""
    assert widths.network is not None
    try:
        jax.eval_shape(new, structs_of(new.variables), *widths.network.inputs)
    except Exception as error:
        layers = {str(name).partition("/")[0] for name in sizes or {}}
        others = [
            name
            for name, width in widths.items()
            if name.partition("/")[0] in layers and name not in (sizes or {})
            if not (width.fixed or width.interface)
        ]
        return ValueError(
            f"keras.grow(model, sizes): grow more widths of the same layer along, such as {others},"
            f" because Keras cannot call the model in these sizes: {first_line(error)}"
        )
    return None


def _named_alike(old: ModelFunction, new: ModelFunction) -> ModelFunction:
    """Returns a larger model as a function whose variables have the names of the old one's.

    Keras numbers layers on, so that a model made once more has ``dense_3`` where this one has
    ``dense_1``. The first of some numbered name belongs to the first of that name, and so on.
    """
    if old.variables.keys() <= new.variables.keys():
        return new
    names = dict(zip(_counted(old.variables).values(), old.variables))
    alike = {
        names.get(counted, name): new.variables[name]
        for name, counted in _counted(new.variables).items()
    }
    is_clear = len(alike) == len(new.variables)
    return ModelFunction(new.model, alike) if is_clear else new


def _counted(names: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Returns names with other numbers: how many of this name were there before, at this place."""
    counted: dict[str, tuple[Any, ...]] = {}
    seen: dict[tuple[Any, ...], dict[str, int]] = {}
    for name in names:
        here: tuple[Any, ...] = ()
        for part in name.split("/"):
            base = re.sub(r"_\d+$", "", part)
            numbers = seen.setdefault((*here, base), {})
            here = (*here, base, numbers.setdefault(part, len(numbers)))
        counted[name] = here
    return counted


def _first_two(x: Any) -> PyTree:
    """Returns the shapes of two examples of what ``fit`` takes; None unless that is arrays."""
    leaves = jax.tree.leaves(x)
    if not leaves or not all(is_array(leaf) and len(leaf.shape) for leaf in leaves):
        return None
    return jax.tree.map(lambda leaf: struct((2, *leaf.shape[1:]), np.dtype(leaf.dtype)), x)
