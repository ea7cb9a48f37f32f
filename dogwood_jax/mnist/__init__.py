"""The MNIST handwritten digits: a shipped subset, or all 70,000 through tensorflow-datasets.

Images are uint8 ``[n, 28, 28]``, 0 where the paper is blank and 255 where the ink is full. Labels
are int32 ``[n]``, 0 to 9. Training and test digits come from MNIST's own two splits.

MNIST is the work of Yann LeCun, Corinna Cortes and Christopher J. C. Burges, who made it from
NIST's Special Databases 1 and 3. Its license is commonly given as Creative Commons
Attribution-ShareAlike 3.0, which applies to the shipped subset (``dogwood_jax/mnist/README.md``).
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import io
import os
import threading
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# tensorflow-datasets imports the last three only for reading, and does not declare all of them.
_MODULES_OF_EXTRA = ("tensorflow_datasets", "array_record", "importlib_resources", "PIL")
_ORIGIN = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # tensorflow-datasets' source
_PATIENCE = 3.0  # seconds to wait for an answer of the origin


class Digits(NamedTuple):
    """Handwritten digits with their labels, in a training and a test split.

    Attributes:
        train_images: uint8 ``[n, 28, 28]``.
        train_labels: int32 ``[n]``.
        test_images: uint8 ``[m, 28, 28]``.
        test_labels: int32 ``[m]``.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]


def load(
    source: Literal["subset", "tfds"] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
) -> Digits:
    """Loads MNIST as NumPy arrays.

    Only the named source is read, never the other one as a fallback. The same source always gives
    the same digits in the same order.

    Args:
        source: ``"subset"`` for the digits in this package, 1,000 training and 200 test images of
            each class, without download or other packages; ``"tfds"`` for all 60,000 training and
            10,000 test images of tensorflow-datasets' ``mnist``, which needs the extra ``mnist``.
            Once prepared, it is read without TensorFlow and without network access. There is no
            default, so that every script names its digits.
        data_dir: For ``"tfds"``, the folder in which tensorflow-datasets keeps its data sets. By
            default the environment variable ``TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
        The training and test digits.

    Raises:
        TypeError: No source.
        ValueError: An unknown source, or a ``data_dir`` for the subset.
        ImportError: A package of the extra ``mnist`` is missing.
        FileNotFoundError: MNIST is not prepared in ``data_dir``, and cannot be prepared because
            the network or TensorFlow is missing. Raised within five seconds.
        RuntimeError: MNIST is prepared in a file format that only TensorFlow reads.

    Example:
        >>> from dogwood_jax import mnist
        >>> digits = mnist.load("subset")
        >>> digits.train_images.shape, digits.train_images.dtype
        ((10000, 28, 28), dtype('uint8'))
        >>> digits.test_labels.shape, digits.test_labels.dtype
        ((2000,), dtype('int32'))
    """
    if source is None:
        raise TypeError(
            "mnist.load: pass a source: mnist.load('subset') for 12,000 digits that come with the "
            "package, or mnist.load('tfds') for all 70,000 through tensorflow-datasets"
        )
    if source == "subset":
        if data_dir is not None:
            raise ValueError(
                "mnist.load('subset') reads the digits inside dogwood_jax and takes no data_dir, "
                f"got {os.fspath(data_dir)!r}; leave it out, or load 'tfds'"
            )
        return _load_subset()
    if source == "tfds":
        return _load_tfds(data_dir)
    raise ValueError(f"mnist.load: source must be 'subset' or 'tfds', got {source!r}")


def _load_subset() -> Digits:
    file = importlib.resources.files("dogwood_jax.mnist") / "mnist_subset.npz"
    with file.open("rb") as stream, np.load(stream) as arrays:
        return Digits(
            arrays["train_images"],
            arrays["train_labels"].astype(np.int32),
            arrays["test_images"],
            arrays["test_labels"].astype(np.int32),
        )


def _load_tfds(data_dir: str | os.PathLike[str] | None) -> Digits:
    missing = [name for name in _MODULES_OF_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"mnist.load('tfds') needs {', '.join(missing)}, not installed here; run: "
            "pip install 'dogwood_jax[mnist]'"
        )
    import tensorflow_datasets as tfds

    # Read at each call, because tensorflow-datasets reads the variable only on import.
    builder = tfds.builder("mnist", data_dir=data_dir or os.environ.get("TFDS_DATA_DIR") or None)
    if not builder.is_prepared():
        _prepare(builder)
    return Digits(*_read_split(builder, "train"), *_read_split(builder, "test"))


def _prepare(builder: Any) -> None:
    """Downloads MNIST; checks the requirements first, because a failing try takes minutes."""
    missing = []
    if importlib.util.find_spec("tensorflow") is None:
        missing.append("TensorFlow is not installed (pip install tensorflow)")
    if not _origin_answers():
        missing.append(f"the network is unreachable ({_ORIGIN} does not answer)")
    if missing:
        raise FileNotFoundError(
            f"mnist.load('tfds'): MNIST is not prepared, there is no dataset_info.json in "
            f"{builder.data_path}. If it is prepared elsewhere, pass the folder that holds "
            "mnist/ as data_dir= or TFDS_DATA_DIR. Preparing it needs the network and "
            f"TensorFlow, but {' and '.join(missing)}. On a machine with both, run: python -c "
            "\"from dogwood_jax import mnist; mnist.load('tfds', data_dir='tfds')\" and copy the "
            "folder tfds here. mnist.load('subset') needs none of this"
        )
    builder.download_and_prepare(file_format="array_record")


def _origin_answers() -> bool:
    import requests  # uses the same proxies and certificates as tensorflow-datasets

    answers = threading.Event()

    def ask() -> None:
        try:
            requests.head(_ORIGIN, timeout=_PATIENCE)
        except requests.RequestException:
            return
        answers.set()

    # In a thread, because the timeout of requests does not cover looking up the host name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answers.is_set()


def _read_split(builder: Any, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    import tensorflow_datasets as tfds
    from PIL import Image

    # Decoded here, because tensorflow-datasets is slower, and warns if it decodes with Pillow.
    undecoded = {"image": tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split, decoders=undecoded)
    except NotImplementedError as error:
        raise RuntimeError(
            f"mnist.load('tfds'): {builder.data_path} holds MNIST as "
            f"{builder.info.file_format.value} files, which only TensorFlow reads; expected "
            "array_record files. Pass another folder as data_dir= or TFDS_DATA_DIR, or delete "
            "this one and load again"
        ) from error
    records = source.__getitems__(range(len(source)))
    images = [np.asarray(Image.open(io.BytesIO(record["image"]))) for record in records]
    return np.stack(images), np.array([record["label"] for record in records], np.int32)
