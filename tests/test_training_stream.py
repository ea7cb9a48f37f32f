"""Training on a source that is read in chunks gives what the same data in arrays give."""

import time

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiers import long

from dogwood_jax import training
from dogwood_jax.training import batches as _batches

SETTINGS = {"epochs": 2, "batch_size": 4, "key": jax.random.key(0)}
TX = optax.adam(0.1)
SIZE = 38  # nine batches and a smaller one
BATCH_BYTES = 4 * (3 * 8 + 4)


def apply(kernel, inputs):
    return inputs @ kernel


class Source:
    """Reads one sample at a time, and notes down which."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels
        self.read = []

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.read.append(index)
        return self.inputs[index], self.labels[index]


class ManyAtOnce(Source):
    """Reads whole batches, as the sources of tensorflow-datasets do."""

    def __getitems__(self, indices):
        return [Source.__getitem__(self, index) for index in indices]

    def __getitem__(self, index):
        assert index == 0  # for its shape
        return super().__getitem__(index)


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(SIZE, 3)), rng.integers(0, 4, SIZE).astype(np.int32)


@pytest.fixture
def kernel():
    return np.random.default_rng(2).normal(size=(3, 4))


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), actual, expected)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        *((Source, 4), (ManyAtOnce, 1), (ManyAtOnce, 100)),
        long(Source, 1),
    ],
)
def test_chunks_do_not_change_the_result(kind, steps, kernel, data, monkeypatch):
    monkeypatch.setattr(_batches, "_CHUNK_BYTES", steps * BATCH_BYTES)
    source = kind(*data)
    assert_close(
        training.fit(apply, kernel, TX, source, **SETTINGS),
        training.fit(apply, kernel, TX, data, **SETTINGS),
    )
    # Once an epoch, but for sample 0, read before for its shape.
    assert sorted(filter(None, source.read)) == sorted(2 * list(range(1, SIZE)))
    source = kind(*data)
    assert training.evaluate(apply, kernel, source, batch_size=4) == pytest.approx(
        training.evaluate(apply, kernel, data, batch_size=4), rel=1e-12
    )


def test_a_chunk_is_read_while_another_is_trained_on(kernel, data, monkeypatch):
    monkeypatch.setattr(_batches, "_CHUNK_BYTES", BATCH_BYTES)
    source, seen = Source(*data), []

    def wait_for_the_second_chunk(_):
        until = time.monotonic() + 30
        while not seen and len(set(source.read)) < 8 and time.monotonic() < until:
            time.sleep(0.01)
        seen.append(len(set(source.read)))

    def preprocess(inputs):
        jax.debug.callback(wait_for_the_second_chunk, inputs[0])
        return inputs

    training.fit(apply, kernel, TX, source, preprocess=preprocess, **SETTINGS)
    jax.effects_barrier()
    assert seen[0] >= 8


@pytest.mark.skipif(jax.device_count() < 8, reason="takes eight devices")
def test_chunks_on_a_mesh(kernel, data, monkeypatch):
    monkeypatch.setattr(_batches, "_CHUNK_BYTES", 4 * BATCH_BYTES)
    sharding = NamedSharding(jax.make_mesh((4, 2), ("data", "model")), PartitionSpec("data"))
    run = training.fit(apply, kernel, TX, Source(*data), sharding=sharding, **SETTINGS)
    assert_close(run, training.fit(apply, kernel, TX, data, **SETTINGS))
    assert training.evaluate(
        apply, kernel, Source(*data), batch_size=4, sharding=sharding
    ) == pytest.approx(training.evaluate(apply, kernel, data, batch_size=4), rel=1e-12)


def test_what_is_wrong_with_a_source_is_named(kernel, data):
    class Empty(Source):
        def __len__(self):
            return 0

    class Dicts(Source):
        def __getitem__(self, index):
            return {"image": self.inputs[index]}

    class Uneven(Source):
        def __getitem__(self, index):
            return self.inputs[index, : 2 + (index != 7)], self.labels[index]

    for source, message in [
        (Empty(*data), "data: expected at least one sample"),
        (Dicts(*data), r"data\[0\] to be a tuple \(input, label\), got dict; grain"),
        (Uneven(*data), r"data\[7\]: expected float64\[3\] and int32\[\], .* got float64\[2\]"),
        (list(zip(*data)), "data: expected a tuple of arrays .* got list"),
        (iter(zip(*data)), "data: expected a tuple of arrays .* got zip"),
        ((*data, data[1]), "data: expected a tuple of arrays .* got tuple"),
    ]:
        with pytest.raises(ValueError, match=message):
            training.fit(apply, kernel, TX, source, **SETTINGS)


def test_grain(kernel, data):
    grain = pytest.importorskip("grain", reason="the source is grain's")

    class Records(Source):
        def __getitem__(self, index):
            return {"input": self.inputs[index], "label": self.labels[index]}

    source = grain.MapDataset.source(Records(*data)).map(lambda r: (r["input"], r["label"]))
    assert_close(
        training.fit(apply, kernel, TX, source, **SETTINGS),
        training.fit(apply, kernel, TX, data, **SETTINGS),
    )
