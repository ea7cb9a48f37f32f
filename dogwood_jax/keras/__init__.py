"""Grows live Keras models on JAX: ``trace``, ``grow``, and ``fit``, which grows between epochs.

``grow`` returns a new, compiled model with the old weights, optimizer moments and step count. So
training continues where it stopped::

    import os

    os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

    import keras
    import dogwood_jax as dw

    model.fit(x, y, epochs=2)
    print(dw.keras.trace(model))  # the widths that can grow, with their names
    model = dw.keras.grow(model, {"dense_1": 256})
    model.fit(x, y, epochs=10, initial_epoch=2)

The old model is unchanged and shares no array with the new one. Keras is imported when one of these
functions is called; 3.10 and 3.15 are tested. For models in files, also of Keras 1 and 2, see
``dogwood_jax.keras_h5``.

Names: in a Sequential or Functional model, layers have their Keras names, as ``model.summary()``
shows them. In your own layer and model classes, a layer without a name has the name of the
attribute that holds it: ``self.up = keras.layers.Dense(8)`` is ``"up"``, and ``self.blocks[0]`` is
``"blocks/0"``.
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

    The model is called as ``predict`` calls it, and is not changed.

    Args:
        model: a built ``keras.Model``.
        x: an example input: arrays or ``jax.ShapeDtypeStruct``. The default is the shape of the
            model's own inputs (``keras.Input``), which must fix all sizes except the batch.

    Returns:
        The widths, by the names of layers.

    Raises:
        ImportError: if Keras 3 is not installed.
        RuntimeError: if Keras does not use the JAX backend.
        TypeError: if the model is not a Keras model.
        ValueError: if the model has no variables yet, or does not define its input shapes.

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
    """Returns a larger Keras model with the same predictions, ready to continue training.

    The growth is planned as by ``dogwood_jax.plan``, with the larger model's own function, so both
    are evaluated before any array is made. The new model has the class, layers and names of the old
    one, and is compiled like it, with new metrics. Its optimizer has the old one's settings, step
    count and arrays per weight: moments of old entries are unchanged, and those of new entries
    start as in a new optimizer.

    Keras counts steps once for all weights. So Adam does not correct the bias of new entries'
    moments: with its defaults and a constant gradient, their first update is 3.16 times the
    learning rate, and later updates are up to 6.6 times. If this matters, lower the learning rate
    for some steps, or train with Optax and ``dogwood_jax.growable``, which counts for each entry.
    Adafactor keeps only means of second moments along rows and columns, so these are not exact.

    The larger model is made from the config of the old one. The numbers that are sizes are found by
    trial: with their new values, Keras must create all variables in their new shapes. This works
    for Keras layers and for your own classes with ``get_config``; otherwise, pass ``target``.

    Args:
        model: a built ``keras.Model``, compiled or not. It is not changed.
        sizes: new number of units by name of the width, as ``print(dw.keras.trace(model))`` shows
            them, or by ``(path, axis)``.
        x: an example input, as for ``trace``.
        target: the larger model (wider, deeper or both), instead of ``sizes`` or in addition. Its
            variables are assigned, and it is returned. If it is not compiled, it is compiled like
            the old model; otherwise its optimizer must have the same class.
        key: JAX PRNG key for new weights. Without it, new weights are the initial weights of the
            larger model in Keras, from the initializers of its layers. They are repeatable after
            ``keras.utils.set_random_seed``.
        strategy: how new units are filled in, as for ``dogwood_jax.plan``.
        interface: whether inputs and outputs may grow, as for ``dogwood_jax.plan``.

    Returns:
        The larger model. It shares no array with the old one.

    Raises:
        ImportError: if Keras 3 is not installed.
        RuntimeError: if Keras does not use the JAX backend.
        TypeError: if the model is not a Keras model.
        ValueError: if the growth is refused, as by ``dogwood_jax.plan``; if the larger model cannot
            be made from the config; if the model's ``compile`` has its own arguments but the model
            has no ``compile_from_config``; or if the optimizer keeps unknown arrays.

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
    # The states of random generators, which are not part of the network.
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

    A callback cannot grow a model, because ``model.fit`` compiles its step for the arrays of one
    model. So ``model.fit`` is called once for each size, with increasing ``initial_epoch``, on the
    models that ``grow`` returns.

    All growths are planned before training starts, so none is refused half-way.

    Args:
        model: a compiled ``keras.Model``. It is trained up to the first growth.
        *data: ``x`` and ``y``, as for ``model.fit``.
        grow_at: new sizes, as for ``grow``, by the epoch before which the model grows:
            ``{3: {"dense_1": 256}}``. Epochs count from 0, as in callbacks.
        epochs: the epoch before which training ends, as for ``model.fit``.
        initial_epoch: the first epoch.
        key: as for ``grow``; each growth gets its own key, derived from it.
        strategy: as for ``grow``.
        **options: other arguments of ``model.fit``. Callbacks restart with each size:
            ``on_train_begin`` is called, and they get the new model. If a callback stops training,
            the model does not grow further.

    Returns:
        The ``keras.callbacks.History`` of all epochs. Its ``model`` is the last, largest model.

    Raises:
        ValueError: if a growth is refused, see ``grow``, or its epoch is not trained.

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
        raise ValueError(f"{call}: {model.name} is not compiled; call model.compile first")
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
    """Returns the larger model before assignment, the growth, and both models as functions."""
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
    """Returns the error to raise if Keras itself cannot call the model in its new sizes."""
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
            f"keras.grow(model, sizes): also grow other widths of the same layer, such as {others},"
            f" because Keras cannot call the model in these sizes: {first_line(error)}"
        )
    return None


def _named_alike(old: ModelFunction, new: ModelFunction) -> ModelFunction:
    """Returns a larger model as a function whose variables have the names in the old model.

    Keras numbers layers globally, so a second model of the class may have ``dense_3`` in place of
    ``dense_1``. Names that differ only in numbers are matched by their order.
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
    """Returns names with new numbers: how often the name occurred before at the same place."""
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
    """Returns the shapes of the first two examples; ``None`` if the data are not all arrays."""
    leaves = jax.tree.leaves(x)
    if not leaves or not all(is_array(leaf) and len(leaf.shape) for leaf in leaves):
        return None
    return jax.tree.map(lambda leaf: struct((2, *leaf.shape[1:]), np.dtype(leaf.dtype)), x)
