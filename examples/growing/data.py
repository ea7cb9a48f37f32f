"""The data sets: inputs and labels, drawn again for each step."""

import abc
import argparse
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dogwood_jax import mnist

Batch = tuple[NDArray[np.generic], NDArray[np.int32]]  # inputs [n, ...], labels [n] or [n, time]

CHARACTERS = 96  # the printable characters of ASCII, and the end of a line


class Data(abc.ABC):
    """Samples for training and for testing.

    Attributes:
        test: the test samples.
    """

    test: Batch

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Returns random training samples."""

    def batches(self, seed: int, first: int, steps: int, size: int) -> Batch:
        """Returns batches ``[steps, size, ...]``; each depends only on seed, step and size."""
        drawn = [
            self.draw(np.random.default_rng([seed, step]), size)
            for step in range(first, first + steps)
        ]
        inputs, labels = zip(*drawn, strict=True)
        return np.stack(inputs), np.stack(labels)


class Text(Data):
    """The source code of Python's standard library, or other files, with all sub-folders.

    Every tenth file is held out for tests. A checksum of file names divides the files into two
    halves, so that ways can be chosen on one half and reported on the other.

    Args:
        half: 0 or 1.
        files: a folder of text; by default the standard library.
        context: number of characters of a sample.
        tests: number of test windows.
    """

    def __init__(
        self, half: int, files: Path | None = None, context: int = 64, tests: int = 2000
    ) -> None:
        self._context = context
        root, pattern = (Path(argparse.__file__).parent, "*.py") if files is None else (files, "*")
        train: list[NDArray[np.uint8]] = []
        held_out: list[NDArray[np.uint8]] = []
        for path in sorted(path for path in root.rglob(pattern) if path.is_file()):
            name = path.relative_to(root)
            number = zlib.crc32(name.as_posix().encode())
            if number % 2 == half and not {"site-packages", "dist-packages"} & {*name.parts}:
                (train if number // 2 % 10 else held_out).append(
                    codes_of(path.read_text("utf-8", "replace"))
                )
        if not train or not held_out:
            raise ValueError(f"{root}: expected a folder with at least twenty text files")
        self._train = np.concatenate(train)
        self.test = self._windows(np.concatenate(held_out), np.random.default_rng(0), tests)

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Returns windows: characters, and the next character of each."""
        return self._windows(self._train, rng, count)

    def _windows(self, codes: NDArray[np.uint8], rng: np.random.Generator, count: int) -> Batch:
        starts = rng.integers(0, len(codes) - self._context, count)
        windows = codes[starts[:, None] + np.arange(self._context + 1)].astype(np.int32)
        return windows[:, :-1], windows[:, 1:]


def codes_of(text: str) -> NDArray[np.uint8]:
    """Returns the characters of a text as integers below ``CHARACTERS``."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    ends = codes == ord("\n")
    return np.where(ends, CHARACTERS - 1, np.clip(codes - 32, 0, CHARACTERS - 2)).astype(np.uint8)


class Hops(Data):
    """Chains of look-ups: each hop maps the current symbol to the next one.

    A sample is a permutation of symbols as pairs in random order, then a start symbol, then a sign
    for each further hop. The labels are the symbol after one hop, after two, and so on. Each hop
    needs the result of the hop before, which is not part of the sample.

    Args:
        symbols: number of symbols.
        hops: number of hops.
        tests: number of test samples.
    """

    def __init__(self, symbols: int, hops: int, tests: int = 1000) -> None:
        self._symbols, self._hops = symbols, hops
        self.test = self.draw(np.random.default_rng(0), tests)

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Returns inputs ``[n, symbols + hops]`` and labels ``[n, hops]``."""
        n = self._symbols
        follower = rng.random((count, n)).argsort(-1)
        order = rng.random((count, n)).argsort(-1)
        pairs = order * n + np.take_along_axis(follower, order, -1)
        at = rng.integers(0, n, (count, 1))
        labels, signs = [], [n * n + at]
        for hop in range(self._hops):
            at = np.take_along_axis(follower, at, -1)
            labels.append(at)
            if hop:
                signs.append(np.full((count, 1), n * n + n))
        inputs = np.concatenate([pairs, *signs], -1)
        return inputs.astype(np.int32), np.concatenate(labels, -1).astype(np.int32)


class Parities(Data):
    """Many tasks at once: each is the parity of three bits; some tasks are rare.

    After Michaud et al., 2023, The Quantization Model of Neural Scaling.

    Args:
        tasks: number of tasks.
        bits: number of bits from which each task has three.
        tests: number of test samples.
    """

    def __init__(self, tasks: int, bits: int, tests: int = 20000) -> None:
        rng = np.random.default_rng(0)
        self._bits = bits
        self._chosen = np.stack([rng.choice(bits, 3, replace=False) for _ in range(tasks)])
        chances = np.arange(1, tasks + 1) ** -1.4
        self._chances = chances / chances.sum()
        self.test = self.draw(rng, tests)

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Returns inputs ``[n, tasks + bits]``, with a one for the task, and labels ``[n]``."""
        task = rng.choice(len(self._chances), count, p=self._chances)
        bits = rng.integers(0, 2, (count, self._bits))
        labels = np.take_along_axis(bits, self._chosen[task], -1).sum(-1) % 2
        inputs = np.concatenate([np.eye(len(self._chances))[task], bits], -1)
        return inputs.astype(np.float32), labels.astype(np.int32)


class MovedDigits(Data):
    """MNIST digits as images in [0, 1], moved by up to four pixels, differently in each batch.

    Args:
        digits: ``"subset"`` or ``"tfds"``, see ``mnist.load``.
        tests: number of test images.
    """

    _most = 4

    def __init__(self, digits: str, tests: int = 10000) -> None:
        found = mnist.load(digits)  # type: ignore[arg-type]
        self._train = self._padded(found.train_images), found.train_labels.astype(np.int32)
        images = self._padded(found.test_images[:tests])
        labels = found.test_labels[:tests].astype(np.int32)
        self.test = self._moved(images, np.random.default_rng(0)), labels

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Returns images ``[n, 28, 28]`` and labels ``[n]``."""
        images, labels = self._train
        chosen = rng.integers(0, len(images), count)
        return self._moved(images[chosen], rng), labels[chosen]

    def _padded(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.pad(images, [(0, 0), *[(self._most,) * 2] * 2])

    def _moved(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        rows, columns = rng.integers(0, 2 * self._most + 1, (2, len(images), 1)) + np.arange(28)
        moved = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None]]
        return np.asarray(moved / 255, np.float32)
