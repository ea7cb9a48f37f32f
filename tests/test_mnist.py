import io
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dogwood_jax import mnist

EXTRA = "the extra mnist is not installed"
SPLITS = ("train", "test")


def split_of(digits, split):
    return getattr(digits, f"{split}_images"), getattr(digits, f"{split}_labels")


# The shipped subset


@pytest.fixture(scope="module")
def subset():
    return mnist.load("subset")


@pytest.mark.parametrize(("split", "of_each"), [("train", 1000), ("test", 200)])
def test_the_subset_has_as_many_of_every_digit(subset, split, of_each):
    images, labels = split_of(subset, split)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert images.shape == (10 * of_each, 28, 28)
    assert np.bincount(labels).tolist() == [of_each] * 10


def test_the_subset_is_mixed(subset):
    # Stored in class order, an unshuffled minibatch would hold a single class.
    assert all(len(set(batch)) > 3 for batch in subset.train_labels.reshape(-1, 100))


def test_labels_belong_to_their_images(subset):
    means = np.stack(
        [subset.train_images[subset.train_labels == d].mean(0).ravel() for d in range(10)]
    )
    images = subset.test_images.reshape(-1, 784).astype(float)
    distances = ((images[:, None] - means) ** 2).sum(-1)
    # Nearest class mean: about 82 % on the whole of MNIST.
    assert np.mean(distances.argmin(1) == subset.test_labels) > 0.78


def test_the_subset_is_one_file_of_two_megabytes_with_its_licence_beside_it():
    folder = Path(mnist.__file__).parent
    (subset,) = (path for path in folder.iterdir() if path.suffix not in (".py", ".md", ""))
    assert subset.name == "mnist_subset.npz" and subset.stat().st_size < 2.1e6
    assert "Attribution-ShareAlike 3.0" in (folder / "README.md").read_text()


def test_every_load_is_the_callers_own(subset):
    mine = mnist.load("subset")
    mine.train_images[:] = 0
    assert mnist.load("subset").train_images.any()


# On one worker, which loads the set once.
of_the_full_set = pytest.mark.xdist_group("the full set")


@pytest.fixture(scope="module")
def full():
    pytest.importorskip("tensorflow_datasets", reason=EXTRA)
    if not (Path(os.environ.get("TFDS_DATA_DIR", "no such folder")) / "mnist").is_dir():
        pytest.skip("TFDS_DATA_DIR holds no prepared MNIST")
    return mnist.load("tfds")


@pytest.mark.long
@of_the_full_set
def test_the_full_set_has_seventy_thousand_digits(full):
    # Counts of every digit as published with MNIST.
    train, test = np.bincount(full.train_labels), np.bincount(full.test_labels)
    assert train.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert full.train_images.shape == (60000, 28, 28)
    assert full.test_images.shape == (10000, 28, 28)


@pytest.mark.long
@of_the_full_set
def test_the_subset_comes_from_the_same_split_of_the_full_set(subset, full):
    def digits(images, labels):
        return [image.tobytes() + bytes([label]) for image, label in zip(images, labels)]

    whole = {split: set(digits(*split_of(full, split))) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        taken = digits(*split_of(subset, split))
        assert len(set(taken)) == len(taken)
        assert set(taken) <= whole[split]
        assert whole[other].isdisjoint(taken)


# tensorflow-datasets, on a set of a few digits written without it


def write_prepared(data_dir, seed):
    """Writes a random MNIST of three training and two test digits; returns its Digits."""
    pytest.importorskip("tensorflow_datasets", reason=EXTRA)
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    rng = np.random.default_rng(seed)
    folder = describe_prepared(data_dir, "array_record")
    arrays = []
    for split, size in zip(SPLITS, (3, 2)):
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        labels = rng.integers(0, 10, size, np.int32)
        path = folder / f"mnist-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(images, labels):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
        arrays += [images, labels]
    return mnist.Digits(*arrays)


def describe_prepared(data_dir, file_format):
    folder = Path(data_dir) / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    info = {
        "name": "mnist",
        "version": "3.0.1",
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "shardLengths": [size],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, size in zip(SPLITS, ("3", "2"))
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").touch()
    return folder


def assert_same(digits, expected):
    for got, wanted in zip(digits, expected):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_tfds_reads_what_is_prepared(tmp_path, monkeypatch):
    named = write_prepared(tmp_path / "named", seed=0)
    in_environment = write_prepared(tmp_path / "environment", seed=1)
    # Set after the import of tensorflow_datasets, which looks at the variable only then.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    assert_same(mnist.load("tfds"), in_environment)
    assert_same(mnist.load("tfds", data_dir=tmp_path / "named"), named)


def test_tfds_reads_without_tensorflow(tmp_path, monkeypatch):
    expected = write_prepared(tmp_path, seed=0)

    def hiding(finder):
        def find_spec(name, *others):
            is_hidden = name.partition(".")[0] == "tensorflow"
            return None if is_hidden else finder.find_spec(name, *others)

        return SimpleNamespace(find_spec=find_spec)

    # Not by None in sys.modules, which tensorflow-datasets takes for a module that is loaded.
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", [hiding(finder) for finder in sys.meta_path])
    assert_same(mnist.load("tfds", data_dir=tmp_path), expected)


def test_files_that_only_tensorflow_reads_are_named(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason=EXTRA)
    folder = describe_prepared(tmp_path, "tfrecord")
    with pytest.raises(RuntimeError, match="tfrecord.*array_record") as error:
        mnist.load("tfds", data_dir=tmp_path)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("with_tensorflow", [False, True])
@pytest.mark.parametrize("with_network", [False, True])
def test_unprepared_says_what_is_missing(tmp_path, monkeypatch, with_tensorflow, with_network):
    prepared = []
    builder = SimpleNamespace(
        data_path=tmp_path / "mnist" / "3.0.1",
        download_and_prepare=lambda file_format: prepared.append(file_format),
    )
    monkeypatch.setattr(mnist, "_origin_answers", lambda: with_network)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: object() if with_tensorflow else None
    )
    if with_tensorflow and with_network:
        mnist._prepare(builder)
        assert prepared == ["array_record"]
        return
    with pytest.raises(FileNotFoundError) as error:
        mnist._prepare(builder)
    message = str(error.value)
    assert str(builder.data_path) in message
    assert ("pip install tensorflow" in message) is not with_tensorflow
    assert ("the network is unreachable" in message) is not with_network
    assert prepared == []


def test_a_missing_data_dir_is_not_created(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets", reason=EXTRA)
    monkeypatch.setattr(mnist, "_origin_answers", lambda: False)
    with pytest.raises(FileNotFoundError, match="mnist.3.0.1"):
        mnist.load("tfds", data_dir=tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_a_network_that_never_answers_is_given_up(monkeypatch):
    requests = pytest.importorskip("requests", reason=EXTRA)
    over = threading.Event()
    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: over.wait())
    monkeypatch.setattr(mnist, "_PATIENCE", 0.01)
    assert not mnist._origin_answers()
    over.set()


def test_a_network_that_refuses_is_told_from_one_that_answers(monkeypatch):
    requests = pytest.importorskip("requests", reason=EXTRA)

    def refuse(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", lambda *args, **kwargs: None)
    assert mnist._origin_answers()
    monkeypatch.setattr(requests, "head", refuse)
    assert not mnist._origin_answers()


# Arguments


def test_an_unknown_source_names_the_choices():
    with pytest.raises(TypeError, match="'subset'.*12,000.*'tfds'.*70,000"):
        mnist.load()
    with pytest.raises(ValueError, match="'subset' or 'tfds', got 'full'"):
        mnist.load("full")


def test_the_subset_takes_no_data_dir(tmp_path):
    with pytest.raises(ValueError, match="takes no data_dir"):
        mnist.load("subset", data_dir=tmp_path)


def test_all_missing_packages_are_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"tensorflow_datasets.*PIL.*'dogwood_jax\[mnist\]'"):
        mnist.load("tfds")
