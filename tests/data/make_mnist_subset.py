"""Makes dogwood_jax/mnist/mnist_subset.npz from the full MNIST.

    TFDS_DATA_DIR=... python tests/data/make_mnist_subset.py

Every run writes the same arrays; the bytes may differ with another zlib.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dogwood_jax import mnist

SUBSET = Path(__file__).parents[2] / "dogwood_jax" / "mnist" / "mnist_subset.npz"


def choose(labels: NDArray[np.int32], of_each: int, seed: int) -> NDArray[np.intp]:
    """The indices of `of_each` random digits of every class, in ascending order."""
    rng = np.random.default_rng(seed)
    of_class = (np.flatnonzero(labels == digit) for digit in range(10))
    return np.sort(np.concatenate([rng.choice(i, of_each, replace=False) for i in of_class]))


def main() -> None:
    full = mnist.load("tfds")
    train = choose(full.train_labels, 1000, seed=0)
    test = choose(full.test_labels, 200, seed=1)
    np.savez_compressed(
        SUBSET,
        train_images=full.train_images[train],
        train_labels=full.train_labels[train].astype(np.uint8),
        test_images=full.test_images[test],
        test_labels=full.test_labels[test].astype(np.uint8),
    )


if __name__ == "__main__":
    main()
