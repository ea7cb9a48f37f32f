"""The record of a class of Keras layers, ``Kind``, and the table of all records, ``KINDS``."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dogwood_jax.keras_h5._kinds.masking import dropped, forgotten, handed_on, unknown

Config = Mapping[str, Any]
Params = Mapping[str, Any]  # parameters of one layer in Flax, or their shapes
Path = tuple[str, ...]
Function = Callable[..., Any]  # takes and returns arrays
Shape = tuple[int, ...]

# Keys that this library adds to configs. For a Reshape or a layer that repeats by a count: how many
# channels are read. For a GroupNormalization: how many channels there were before the model grew.
# For a convolution in groups: ``True`` if its number of filters has changed.
CHANNELS = "channels, says dogwood_jax"
# For a layer whose arrays Keras 1 laid out in another way. For a convolution, "th", "tf" or "1D" is
# the layout, followed by " turned" if its kernel is turned around, as in Theano.
KERAS_1 = "of Keras 1, says dogwood_jax"
# For a BatchNormalization with three arrays of unknown names: it has either a scale or a center.
EITHER = "scale or center, says dogwood_jax"

# The name of the class in the file, if it differs from ``class_name``.
NAMED = "class_name, says the file"


@dataclass(frozen=True)
class Weight:
    """One array of Keras, and the arrays of Flax that it becomes.

    Attributes:
        name: its path in the Keras layer: ``"kernel"``, or ``"cell/kernel"`` for an array of an
            inner layer that the attribute ``cell`` holds.
        places: paths of the Flax arrays, the collection first: ``(("params", "kernel"),)``.
        to_flax: converts the Keras array to the Flax arrays.
        to_keras: the inverse of ``to_flax``.
        trainable: whether Keras lists it among the trainable weights, which come first.
        repeats: the weight of which it is a copy; only files that name layers by position have it.
        quantized: whether a quantized layer has it in place of a weight: integers or scales, which
            Keras stores and does not train.
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
    """The record of a class of layers; whatever it leaves out is unknown or not supported.

    The groups of attributes are computation, weights, sizes, masks and vocabularies.

    Attributes:
        function: makes a layer without weights and without noise in training, from its config.
        module: makes a layer from its config, its name and whether it is deterministic, as in
            evaluation; its variables are those in ``weights``.
        keywords: keyword arguments that calls may have; ``None`` for any.

        weights: returns the layer's arrays in Keras and in Flax, from its config; see ``layout``.
        axes: returns the names of the axes of each array, from the config; see ``_weights.shapes``.
        told: returns as much of the config as conversion needs, from the shapes of arrays with
            numbers as names; ``None`` if they do not determine it. Default: by their count.
        holds: config keys of inner layers, each with the place of their parameters in the layer's.
        own_name: the name of the class in Keras itself, if configs have another.
        inner_names: names of inner layers in files, by the attributes that hold them.

        sizes: returns sizes in the config, from the parameters.
        sizes_by_input: returns further sizes in the config, from the parameters, the input's shape
            and the number of channels of the output that are read, if known.
        passes_channels: whether the output has the channels of the input, whatever their number.
        counted: returns the output axis (-1: channels) whose size is a number in the config that
            may follow the layers that read it; and the number, ``None`` if there is none.
        moved_to: maps an input axis to its output axis, both counted from the end, by the config;
            ``None`` if that is unknown. Only for layers that move axes.
        reads: returns the input's number of channels, from the config and the parameters, if they
            determine it and channels are last.

        on_mask: returns the output's mask, from the config and the inputs' masks; see ``masking``.
        takes_masks: how calls pass the masks of inputs: the first mask as ``mask``, a list of all
            masks, or each mask under the name of its input, such as ``query_mask``.
        new_mask: returns a function from the input to a new mask; ``None`` if there is no new mask.
        masks_in: returns the value of ``MASKS`` in a version of Keras.

        looked_up: for a layer that is not computed, because a model takes its output as an input:
            the shape of that output, from the config and the input's shape, if they determine it.
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
        """Whether the layer computes the same with and without a mask."""
        return self.on_mask in (dropped, handed_on) and self.takes_masks is None


KINDS: dict[str, Kind] = {}  # by class name; the other files in this folder fill it


def kind_of(class_name: str | None) -> Kind:
    """Returns the record of a class; a class that is not in the table has an empty record."""
    if class_name in KINDS:
        return KINDS[class_name]
    return Kind(on_mask=forgotten if str(class_name).startswith("ops.") else unknown)


def layout(class_name: str | None, config: Config) -> list[Weight]:
    """Returns the weights of a layer in Keras's order: trainable ones first, then the others.

    Args:
        class_name: as in a model's config. Unknown classes have no weights.
        config: the layer's config. A missing option counts as in the versions of Keras that did not
            have it.
    """
    weights = kind_of(class_name).weights
    return sorted(weights(config), key=lambda weight: not weight.trainable) if weights else []
