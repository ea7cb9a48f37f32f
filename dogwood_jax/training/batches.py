"""Batches for the training loop, from arrays on the devices or from a source read in chunks."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from numpy.typing import NDArray

from dogwood_jax._base.described import described
from dogwood_jax._base.meshes import automatic, constrained, on_axes, on_mesh, parts
from dogwood_jax._base.trees import PyTree, is_array, struct

_CHUNK_BYTES = 64 * 2**20  # holds many steps, and is small next to most models
_READERS = 8  # threads; more would not read faster from a disk, nor decode faster on most hosts


class Source(Protocol):
    """A data set whose samples are read when they are needed, by several threads.

    If it also has ``__getitems__``, which maps a list of indices to a list of pairs, this is called
    instead, once per batch.
    """

    def __len__(self) -> int:
        """Returns the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> tuple[ArrayLike, ArrayLike]:
        """Returns a sample's input and label; all samples have the same shapes and dtypes."""
        ...


Data: TypeAlias = tuple[ArrayLike, ArrayLike] | Source


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["batches", "arrays"],
    meta_fields=["sharding"],
)
@dataclasses.dataclass(frozen=True)
class Piece:
    """Batches of the same size for one compiled call.

    Attributes:
        batches: Arrays ``[steps, batch_size, ...]``.
        arrays: Inputs and labels, if ``batches`` are indices into them; None if they are the data.
        sharding: How a batch is split over devices.
    """

    batches: PyTree
    arrays: tuple[jax.Array, jax.Array] | None
    sharding: NamedSharding | None

    def inputs_and_labels(self, batch: PyTree) -> tuple[jax.Array, jax.Array]:
        """Returns the inputs and labels of one of the batches, within the compiled call."""
        batch = constrained(batch, self.sharding)
        if self.arrays is not None:
            batch = tuple(array[batch] for array in self.arrays)
        inputs, labels = constrained(batch, self.sharding)
        return inputs, labels

    def whole(self, values: PyTree) -> PyTree:
        """Returns values computed from the batches, copied to every device."""
        return constrained(values, None if self.sharding is None else on_axes(self.sharding))


Pieces: TypeAlias = Generator[Piece, None, None]


@dataclasses.dataclass(frozen=True)
class Batches(abc.ABC):
    """A data set that is cut into batches.

    Attributes:
        size: The number of samples.
        labels: The number of labels, which is larger if samples have several labels.
        batch_size: Samples per batch. The last batch may be smaller.
        sharding: How a batch is split over devices. A smaller last batch that cannot be split
            evenly is whole on every device.
    """

    size: int
    labels: int
    batch_size: int
    sharding: NamedSharding | None

    def sizes(self) -> NDArray[np.int64]:
        """Returns the number of samples of each batch."""
        return np.diff(np.append(np.arange(0, self.size, self.batch_size), self.size))

    @property
    @abc.abstractmethod
    def inputs(self) -> jax.ShapeDtypeStruct:
        """The shape of a batch of inputs."""

    @abc.abstractmethod
    def pieces(self, order: NDArray[np.int32], most_steps: int | None = None) -> Pieces:
        """Yields batches of samples in this order, in pieces of at most ``most_steps`` steps."""

    def _cut(self, order: NDArray[np.int32], most_steps: int) -> list[NDArray[np.int32]]:
        """Returns samples ``[steps, batch_size]`` for pieces of nearly equal numbers of steps."""
        whole = len(order) - len(order) % self.batch_size
        steps = order[:whole].reshape(-1, self.batch_size)
        cut = np.array_split(steps, -(-len(steps) // most_steps)) if whole else []
        return cut if whole == len(order) else [*cut, order[None, whole:]]

    def _sharding_of(self, steps: NDArray[np.int32]) -> NamedSharding | None:
        if self.sharding is None or steps.shape[1] % parts(self.sharding) == 0:
            return self.sharding
        return on_axes(self.sharding)


@dataclasses.dataclass(frozen=True)
class ArrayBatches(Batches):
    """Batches of arrays that are whole on every device, or split by the caller."""

    arrays: tuple[jax.Array, jax.Array]

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """The shape of a batch of inputs."""
        return struct((self.batch_size, *self.arrays[0].shape[1:]), self.arrays[0].dtype)

    def pieces(self, order: NDArray[np.int32], most_steps: int | None = None) -> Pieces:
        """Yields as few pieces as the limit allows, and a piece for a smaller last batch."""
        for steps in self._cut(order, most_steps or self.size):
            yield Piece(steps, self.arrays, self._sharding_of(steps))


@dataclasses.dataclass(frozen=True)
class SourceBatches(Batches):
    """Batches of a source, in chunks; the next chunk is read during training on the present one.

    Each process only reads the samples for its own devices.
    """

    source: Source
    first: tuple[NDArray[Any], NDArray[Any]]  # data[0]; all samples have its shapes and dtypes

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        """The shape of a batch of inputs."""
        return struct((self.batch_size, *self.first[0].shape), self.first[0].dtype)

    def pieces(self, order: NDArray[np.int32], most_steps: int | None = None) -> Pieces:
        """Yields the chunks, and a piece for a smaller last batch."""
        batch_bytes = self.batch_size * sum(part.nbytes for part in self.first)
        of_chunk = max(1, _CHUNK_BYTES // max(1, batch_bytes))
        chunks = self._cut(order, min(of_chunk, most_steps or of_chunk))
        with ThreadPoolExecutor(_READERS) as readers:
            try:
                chunk = self._start_reading(chunks[0], readers)
                for ahead in chunks[1:]:
                    piece = chunk()
                    chunk = self._start_reading(ahead, readers)
                    yield piece
                yield chunk()
            finally:
                readers.shutdown(cancel_futures=True)

    def _start_reading(
        self, steps: NDArray[np.int32], readers: ThreadPoolExecutor
    ) -> Callable[[], Piece]:
        """Starts to read a piece; returns a function that waits for it."""
        sharding = self._sharding_of(steps)
        rows = _rows_of_this_process(steps.shape[1], sharding)
        arrays = tuple(np.empty(steps.shape + part.shape, part.dtype) for part in self.first)
        reads = [
            readers.submit(self._read, samples[rows], [array[step] for array in arrays], rows)
            for step, samples in enumerate(steps)
        ]

        def finish() -> Piece:
            for read in reads:
                read.result()
            return Piece(_chunk_on_devices(arrays, sharding), None, sharding)

        return finish

    def _read(
        self, samples: NDArray[np.int32], batch: list[NDArray[Any]], rows: NDArray[np.intp]
    ) -> None:
        """Reads samples into the given rows of a batch."""
        indices = samples.tolist()
        if hasattr(self.source, "__getitems__"):
            pairs = self.source.__getitems__(indices)
        else:
            pairs = [self.source[index] for index in indices]
        for index, row, pair in zip(indices, rows, pairs, strict=True):
            values = tuple(np.asarray(part) for part in pair)
            if [(v.shape, v.dtype) for v in values] != [(v.shape, v.dtype) for v in self.first]:
                raise ValueError(
                    f"data[{index}]: expected {_specs(self.first)}, input and label as in "
                    f"data[0], got {_specs(values)}; give all samples the same shapes and dtypes"
                )
            for array, value in zip(batch, values):
                array[row] = value


class Passes:
    """Passes over a data set, each in a new order, which can be interrupted after any step.

    Attributes:
        steps: The number of steps of a pass.
        number: The number of the present pass, starting at 1.
        done: How many of its steps have been taken.
    """

    def __init__(self, batches: Batches, key: jax.Array) -> None:
        # Shuffling on the host is much faster than sorting random values in XLA.
        self._rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        self._batches, self._sizes = batches, batches.sizes()
        self.number, self.steps = 0, len(self._sizes)
        self.done = self.steps

    def samples(self, most_steps: float) -> NDArray[np.int32]:
        """Returns the samples of the next steps of this pass, or of the next pass at its end."""
        if self.done == self.steps:
            self._order = self._rng.permutation(self._batches.size).astype(np.int32)
            self.number, self.done = self.number + 1, 0
        size, until = self._batches.batch_size, min(self.done + most_steps, self.steps)
        return self._order[self.done * size : int(until) * size]

    def take(self, steps: int) -> NDArray[np.int64]:
        """Records that steps have been taken; returns the number of samples of each step."""
        self.done += steps
        return self._sizes[self.done - steps : self.done]


def batches_of(data: Data, batch_size: int, sharding: NamedSharding | None) -> Batches:
    """Returns the batches of data, which must have no `data_problems`."""
    if sharding is not None:
        sharding = automatic(sharding)
    if isinstance(data, tuple):
        inputs, labels = arrays = _whole_on_devices(data, sharding)
        size = len(inputs)
        return ArrayBatches(size, labels.size, min(batch_size, size), sharding, arrays)
    size, (first_input, first_label) = len(data), data[0]
    first = np.asarray(first_input), np.asarray(first_label)
    batch_size = min(batch_size, size)
    return SourceBatches(size, size * first[1].size, batch_size, sharding, data, first)


def data_problems(data: Any) -> list[str]:
    """Returns problems of a data set."""
    if isinstance(data, tuple) and len(data) == 2:
        inputs, labels = (np.shape(array) for array in data)
        if inputs[:1] != labels[:1] or not inputs:
            return [
                "data: expected inputs and labels with the same number of samples as first axis, "
                f"got shapes {inputs} and {labels}"
            ]
        if inputs[0] == 0:
            return [f"data: expected at least one sample, got inputs of shape {inputs}"]
        return []
    if isinstance(data, (tuple, list, Mapping)) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        return [
            "data: expected a tuple of arrays (inputs, labels), or a source of samples with "
            f"__len__ and __getitem__, got {type(data).__name__}"
        ]
    if is_array(data):
        return [f"data: expected a pair of arrays, got {described(data)}; pass (inputs, labels)"]
    if len(data) == 0:
        return ["data: expected at least one sample, got an empty source"]
    if not isinstance(data[0], tuple) or len(data[0]) != 2:
        return [
            f"data: expected data[0] to be a tuple (input, label), got {type(data[0]).__name__}; "
            "grain.MapDataset.source(data).map(function) converts the items of a source"
        ]
    return []


def _whole_on_devices(
    data: tuple[ArrayLike, ArrayLike], sharding: NamedSharding | None
) -> tuple[jax.Array, jax.Array]:
    inputs, labels = (a if isinstance(a, jax.Array) else np.asarray(a) for a in data)
    if sharding is None:
        # Unlike jnp.asarray, device_put does not copy NumPy memory that the device can use.
        return jax.device_put(inputs), jax.device_put(labels)
    return on_mesh(inputs, sharding), on_mesh(labels, sharding)


def _chunk_on_devices(
    chunk: tuple[NDArray[Any], ...], sharding: NamedSharding | None
) -> tuple[jax.Array, ...]:
    """Puts inputs and labels ``[steps, batch_size, ...]`` on devices, and splits each batch."""
    if sharding is None:
        return tuple(jax.device_put(array) for array in chunk)
    of_chunk = on_axes(sharding, None, *sharding.spec)
    return tuple(
        jax.make_array_from_callback(array.shape, of_chunk, array.__getitem__) for array in chunk
    )


def _rows_of_this_process(batch_size: int, sharding: NamedSharding | None) -> NDArray[np.intp]:
    rows = np.zeros(batch_size, bool)
    if sharding is None:
        rows[:] = True
    else:
        for part in sharding.addressable_devices_indices_map((batch_size,)).values():
            rows[part] = True
    return np.flatnonzero(rows)


def _specs(sample: tuple[NDArray[Any], ...]) -> str:
    return " and ".join(f"{part.dtype}{list(part.shape)}" for part in sample)
