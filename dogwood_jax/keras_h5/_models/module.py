"""The Flax module that calls the layers of a Keras model: ``KerasLayers``."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from dogwood_jax._base.problems import UnfitArrays
from dogwood_jax.keras_h5._kinds.kind import CHANNELS, Config, kind_of
from dogwood_jax.keras_h5._kinds.nested import MODELS
from dogwood_jax.keras_h5._kinds.quantized import refusal
from dogwood_jax.keras_h5._models.channels import read_channels
from dogwood_jax.keras_h5._models.frozen import FrozenConfig, frozen
from dogwood_jax.keras_h5._models.graph import ALL, Ref, parse, refs_in, replaced
from dogwood_jax.keras_h5._models.masks import (
    given_to,
    handed_on,
    seen_by,
    taken_off,
    with_masks,
)
from dogwood_jax.keras_h5._models.sizes import Given, inputs_of, resized_layer


class KerasLayers(nn.Module):
    """The layers of a Keras model, called as in Keras; the base class of ``KerasModel``.

    Attributes:
        config: the model's config as Keras has it, ``{"class_name": ..., "config": {...}}``.
    """

    config: FrozenConfig

    @nn.compact
    def __call__(self, *inputs: Any, deterministic: bool = True) -> Any:
        """Computes the outputs.

        Args:
            *inputs: one array for each input of the model, in order, or a list of these arrays, or
                a dict of them by input name.
            deterministic: whether to evaluate rather than to train.
        """
        graph = parse(self.config["class_name"], self.config["config"])
        params = self.variables.get("params", {})
        with _at():
            channels = read_channels(graph, params)
        layers = {}
        for name, (class_name, config) in graph.layers.items():
            with _at(name, class_name):
                config = resized_layer(class_name, config, params.get(name, {}))
                if name in channels:
                    config = {**config, CHANNELS: channels[name]}
                layers[name] = make_layer(class_name, config, name, deterministic)
        values: dict[tuple[str, int], Any] = {}
        for ref, value in _assigned(graph.inputs, inputs).items():
            values[ref[:2]] = layers[ref.layer](value) if ref.layer else value

        def found(tree: Any) -> Any:
            if not isinstance(tree, Ref):
                return None
            value = values[tree[:2]]
            if tree.output != ALL:
                return jax.tree.leaves(value)[tree.output]
            return [*value] if isinstance(value, tuple) else value

        masks: dict[tuple[str, int], Any] = {}
        gone = taken_off(graph)
        for call in graph.calls:
            class_name, config = graph.layers[call.layer]
            args, kwargs = replaced([call.args, call.kwargs], found)
            self.sow("intermediates", inputs_of(call.layer), _given(args, kwargs))
            if new_mask := kind_of(class_name).new_mask(config):
                mask = new_mask(args[0])
            else:
                seen = seen_by(call, masks, gone)
                mask = handed_on(class_name, config, given_to(class_name, call, seen))
                kwargs = with_masks(graph, call, seen, kwargs)
            with _at(call.layer, class_name):
                values[call.layer, call.number] = layers[call.layer](*args, **kwargs)
            masks[call.layer, call.number] = mask
        outputs = list(refs_in(graph.outputs))
        return replaced(outputs[0] if len(outputs) == 1 else graph.outputs, found)

    def __repr__(self) -> str:
        return f"KerasModel({self.config['config'].get('name')!r})"


@contextlib.contextmanager
def _at(name: str = "", class_name: str = "") -> Iterator[None]:
    """Reraises errors of a layer as ``UnfitArrays``, with the layer's name and class."""
    try:
        yield
    except UnfitArrays as error:  # from a layer of an inner model
        raise UnfitArrays(f"{name}/{error}") from error
    except Warning:  # warnings may be set to raise
        raise
    except Exception as error:  # JAX and Flax raise all kinds
        what = re.sub(r" \(https://flax\S+\)$", "", str(error))  # link to Flax's docs
        raise UnfitArrays(f"{name} ({class_name}): {what}" if name else what) from error


def make_layer(
    class_name: str, config: Config, name: str | None, deterministic: bool
) -> Callable[..., Any]:
    """Returns a layer as a function of arrays; its variables are under the layer's name.

    Raises:
        ValueError, KeyError or TypeError: if the class or config is not supported.
    """
    kind = kind_of(class_name)
    if class_name not in MODELS and (why := refusal(class_name, config)):
        raise ValueError(why)
    if kind.function is not None:
        return kind.function(config)
    if kind.module is not None:
        return kind.module(config, name, deterministic)
    if class_name in MODELS:
        inner = frozen({"class_name": class_name, "config": config})
        module = KerasLayers(inner, name=name)
        return lambda *inputs: module(*inputs, deterministic=deterministic)
    if class_name == "TimeDistributed":
        layer = config["layer"]
        each = make_layer(layer["class_name"], layer["config"], name, deterministic)

        def spread(x: jax.Array, mask: Any = None) -> jax.Array:
            y: jax.Array = each(x.reshape(-1, *x.shape[2:]))
            return y.reshape(*x.shape[:2], *y.shape[1:])

        return spread
    if ">" in class_name:
        raise ValueError(
            "its class is not part of Keras, and its code is not in the file; load reads its "
            "weights, for a module of your own"
        )
    raise ValueError("this class of layers is not supported")


def _given(args: Any, kwargs: Mapping[str, Any]) -> Given:
    """Returns the arrays that a layer is called with."""

    def arrays(tree: Any) -> list[Any]:
        return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]

    found = [arrays(arg) for arg in args], {key: arrays(arg) for key, arg in kwargs.items()}
    return Given([some for some in found[0] if some], {k: v for k, v in found[1].items() if v})


def _assigned(expected: Any, inputs: tuple[Any, ...]) -> dict[Ref, Any]:
    """Returns the given arrays by the input of the model that each belongs to."""
    refs = list(refs_in(expected))
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        names = sorted(expected) if isinstance(expected, Mapping) else [ref.layer for ref in refs]
        given = [inputs[0][name] for name in names]
    else:
        given = jax.tree.leaves(inputs)
    if len(given) != len(refs):
        wanted = ", ".join(ref.layer or "x" for ref in refs)
        raise ValueError(f"expected {len(refs)} inputs ({wanted}), got {len(given)}")
    return dict(zip(refs, given))
