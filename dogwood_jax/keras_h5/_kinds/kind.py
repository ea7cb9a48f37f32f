"""All that is known of a class of Keras layers, in one record: ``Kind``; ``KINDS`` has them all."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dogwood_jax.keras_h5._kinds.masking import dropped, forgotten, handed_on, unknown

Config = Mapping[str, Any]
Params = Mapping[str, Any]  # of one layer in Flax, or their shapes
Path = tuple[str, ...]
Function = Callable[..., Any]  # of arrays
Shape = tuple[int, ...]

# In configs of modules, beside what Keras has there: for a Reshape, or what repeats by a count, how
# many channels are read, for a GroupNormalization how many there were before the model grew, for a
# convolution in groups that it has other filters than before.
CHANNELS = "channels, says dogwood_jax"
# For a layer whose arrays Keras 1 laid out in another way. For a convolution, "th", "tf" or "1D"
# says how, and " turned" after it that its kernel is turned around, as Theano has kernels.
KERAS_1 = "of Keras 1, says dogwood_jax"
# For a BatchNormalization of three arrays whose names are unknown: that it has one of the two.
EITHER = "scale or center, says dogwood_jax"

# Beside a class's name in configs: what the file calls it, where that is not the same.
NAMED = "class_name, says the file"


@dataclass(frozen=True)
class Weight:
    """One array of Keras, and the arrays of Flax that it becomes.

    Attributes:
        name: its path in the Keras layer, ``"kernel"``, or ``"cell/kernel"`` where it belongs to a
            layer inside, by the attribute that holds it.
        places: paths of the Flax arrays, the collection first: ``(("params", "kernel"),)``.
        to_flax: makes them of the Keras array.
        to_keras: the inverse.
        trainable: whether Keras lists it among the trainable weights, that is first.
        repeats: the weight that it is once more, in files alone that name layers by position.
        quantized: whether it is what a quantized layer has in a weight's place, which Keras stores
            there and does not train: integers, and scales.
    """

    name: str
    places: tuple[Path, ...]
    to_flax: Callable[[np.ndarray], Sequence[np.ndarray]] = lambda array: [array]
    to_keras: Callable[[Sequence[np.ndarray]], np.ndarray] = lambda arrays: arrays[0]
    trainable: bool = True
    repeats: str | None = None
    quantized: bool = False


@dataclass(frozen=True)
class Kind:
    """All that is known of a class of layers; what is not said is unknown, or not supported.

    What computes it, its weights, its sizes, and what it does with masks:

    Attributes:
        function: makes it from its config, where it has neither weights nor noise in training.
        module: makes it from its config, its name and whether it is evaluated rather than trained;
            it has the variables that ``weights`` says.
        keywords: keyword arguments with which it may be called; ``None`` for any.

        weights: its arrays in Keras and in Flax, by its config; see ``layout``.
        axes: their axes by name, by its config; see ``_weights.shapes``.
        told: as much of its config as conversion needs, by the shapes of arrays that have numbers
            in place of names; ``None`` if they do not tell. Unless given, their count tells.
        holds: keys of layers in its config, with the place of their parameters in its own.
        own_name: what Keras itself calls the class, if not as in configs.
        inner_names: what files call the layers in it, by the attributes that hold them.

        sizes: what its config says, by its parameters.
        sizes_by_input: what else it says, by its parameters, the shape of its input, and how many
            channels of its output are read, if known.
        passes_channels: whether its output has the channels of its input, whatever their number.
        counted: the axis of its output whose size is a number in its config, which may follow its
            readers, -1 for channels; and that number, ``None`` if it is none.
        moved_to: which axis of its output an axis of its input is, both counted from the end, by
            its config; ``None`` if that is not known. Only of layers that move axes.
        reads: how many channels its input has, by its config and parameters, if they tell and
            channels are last.

        on_mask: the mask of its output, by its config and the masks of its inputs; see ``masking``.
        takes_masks: how it is called with the masks of its inputs: with that of the first as
            ``mask``, with a list of all, or with each by the name of its input, ``query_mask``.
        new_mask: what makes a mask of its input, by its config; ``None`` if it makes none.
        masks_in: which of ``MASKS`` holds in a version of Keras.

        looked_up: of a layer that is not computed, because a model can take what it returns for an
            input: the shape of that, by its config and the shape of its input, if they tell.
    """

    function: Callable[[Config], Function] | None = None
    module: Callable[[Config, str | None, bool], Function] | None = None
    keywords: Collection[str] | None = ()

    weights: Callable[[Config], list[Weight]] | None = None
    axes: Callable[[Config], Mapping[str, str]] = lambda config: {}
    told: Callable[[Mapping[str, Shape]], Config | None] | None = None
    holds: Mapping[str, str] = field(default_factory=dict)
    own_name: str | None = None
    inner_names: Mapping[str, str] = field(default_factory=dict)

    sizes: Callable[[Config, Params], dict[str, Any]] | None = None
    sizes_by_input: Callable[[Config, Params, Shape, int | None], dict[str, Any]] | None = None
    passes_channels: bool = False
    counted: Callable[[Config], tuple[int, int | None]] | None = None
    moved_to: Callable[[Config, int], int | None] | None = None
    reads: Callable[[Config, Params], int | None] = lambda config, params: None

    on_mask: Callable[[Config, list[Any]], Any] = unknown
    takes_masks: Literal["first", "all", "by name"] | None = None
    new_mask: Callable[[Config], Function | None] = lambda config: None
    masks_in: Callable[[tuple[int, ...]], str | None] = lambda version: None

    looked_up: Callable[[Config, Shape], tuple[Any, ...] | None] | None = None

    @property
    def ignores_masks(self) -> bool:
        """Whether it computes the same with and without a mask."""
        return self.on_mask in (dropped, handed_on) and self.takes_masks is None


KINDS: dict[str, Kind] = {}  # by class name; the files beside this one fill it


def kind_of(class_name: str | None) -> Kind:
    """Returns what is known of a class, also of one that is not in the table."""
    if class_name in KINDS:
        return KINDS[class_name]
    return Kind(on_mask=forgotten if str(class_name).startswith("ops.") else unknown)


def layout(class_name: str | None, config: Config) -> list[Weight]:
    """Returns the weights of a layer in Keras's order: trainable ones first, then the others.

    Args:
        class_name: as in a model's config. Classes that are not known here have no weights.
        config: the layer's config. What it leaves out has the default that Keras had before the
            option came.
    """
    weights = kind_of(class_name).weights
    return sorted(weights(config), key=lambda weight: not weight.trainable) if weights else []
