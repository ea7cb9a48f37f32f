"""Random programs that look for growths that change outputs, for ``test_random_programs``.

    python tests/random_programs.py 0 1000
    python tests/random_programs.py 0 1000 large

makes a thousand programs from the seeds 0 to 999, grows each in several ways, and reports how the
growths ended. A failure is printed as the shortest program that fails in the same way. Large
programs have more entries than the check evaluates, so that it decides by reduced models.

A program is a small graph of steps. Each step makes one value, with a named axis for the batch
(``b``) and for each width (``n``, ``m``, ``h``, ``d``), from earlier values, weights and sizes.
It is written down as Python. Sizes are numbers to a program: where it reads them off its weights,
the program is its own larger model; where they are closed over, the larger model is the same
program with larger numbers.

Programs are traced in float64, float32 or bfloat16, and computed by ``evaluate`` in float64. A
growth that is accepted must keep each output that is finite, for inputs of all kinds in ``ROWS``.
"""

import collections
import dataclasses
import functools
import gc
import math
import random
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from evaluate import evaluate
from evaluate import program as evaluated
from jax import lax

import dogwood_jax as dw

WIDTHS = "nmhd"
INTERFACE = "iov"  # features of the input, of the output, and words
TOLERANCE = 1e-9
# What rows of inputs are like. Programs are made so that their outputs are finite for normal ones.
ROWS = ("normal", "large", "one of zeros", "zeros", "equal")


# Programs -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """One value of a program.

    Attributes:
        kind: the operation.
        text: its expression, with ``{0}``, ``{1}`` for earlier values.
        args: which values these are.
        axes: the names of its axes.
    """

    kind: str
    text: str
    args: tuple[int, ...]
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """Steps, the weights that they use, and the sizes of all axes.

    Attributes:
        sizes: of each axis that has a name.
        leaves: axes of each array of weights.
        values: what the numbers of each array are like.
        steps: in order; the last ones are outputs.
        outputs: how many.
        closed: whether sizes are closed over; otherwise they are read off the weights.
        positive: whether the input is positive.
    """

    sizes: Mapping[str, int]
    leaves: Mapping[str, tuple[str, ...]]
    values: Mapping[str, str]
    steps: tuple[Step, ...]
    outputs: int
    closed: bool
    positive: bool

    @property
    def text(self) -> str:
        return "\n".join(step.text for step in self.steps)

    @property
    def used(self) -> list[str]:
        """The arrays that are used."""
        return [name for name in self.leaves if f'p["{name}"]' in self.text]

    @property
    def widths(self) -> list[str]:
        """The axes that may grow."""
        found = {a for name in self.used for axis in self.leaves[name] for a in atoms(axis)}
        return [a for a in WIDTHS + INTERFACE if a in found]

    @property
    def numbers(self) -> list[str]:
        """The sizes that the text computes with."""
        text = re.sub(r'"[^"]*"', "", self.text)
        return [a for a in self.sizes if re.search(rf"\b{a}\b", text)]

    def read(self, axis: str) -> str | None:
        """Returns how to read a size off the weights."""
        if axis == "b":
            return "x.shape[0]"
        if axis == "i":
            return "x.shape[1]"
        for name in self.used:
            if axis in self.leaves[name]:
                return f'p["{name}"].shape[{self.leaves[name].index(axis)}]'
        return None

    @property
    def is_recognized(self) -> bool:
        """Whether numbers are computed from sizes in ways that a planner may recognize alone."""
        return all(
            step.kind in RECOGNIZED
            for step in self.steps
            if dataclasses.replace(self, steps=(step,)).numbers
        )

    @property
    def is_own(self) -> bool:
        """Whether all sizes can be read off the weights."""
        return all(self.read(axis) for axis in self.numbers)

    def source(self) -> str:
        """The program as Python."""
        own = not self.closed
        lines = [f"    {a} = {self.read(a)}" for a in self.numbers if own]
        for index, step in enumerate(self.steps):
            lines.append(f"    v{index} = {filled(step)}")
        names = ", ".join(f"v{k}" for k in range(len(self.steps) - self.outputs, len(self.steps)))
        lines.append(f"    return {names}" + "," * (self.outputs == 1))
        if own:
            return "\n".join(["def apply(p, x, t):", *lines])
        lines = ["def apply(p, x, t):", *lines, "return apply"]
        signature = ", ".join(self.numbers)
        return "\n".join([f"def build({signature}):", *(f"    {line}" for line in lines)])

    def apply(self, sizes: Mapping[str, int]) -> Callable[..., Any]:
        """The function of weights, an input of numbers and one of words, in these sizes."""
        namespace = {"jax": jax, "jnp": jnp, "np": np, "lax": lax, "functools": functools}
        exec(self.source(), namespace)
        if self.closed:
            return namespace["build"](**{a: sizes[a] for a in self.numbers})
        return namespace["apply"]

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(size_of(axis, sizes) for axis in self.leaves[name]) for name in self.used
        }


def filled(step: Step) -> str:
    text = step.text
    for place, arg in enumerate(step.args):
        text = text.replace(f"{{{place}}}", f"v{arg}")
    return text


def atoms(axis: str) -> list[str]:
    return [a for a in re.split(r"[*+]", axis) if not a.isdigit()]


def size_of(axis: str, sizes: Mapping[str, int]) -> int:
    """Size of an axis such as ``n``, ``h*d``, ``n+m`` or ``2``."""
    return sum(
        math.prod(int(a) if a.isdigit() else sizes[a] for a in term.split("*"))
        for term in axis.split("+")
    )


# Operations ---------------------------------------------------------------------------------------
# {0} is a value, {a} the place of one of its axes, {n} the size of this axis, {k} a size of any
# axis, and {s} the value's own slices up to the axis.

GROUPS = {
    "zero at zero": {
        "tanh": "jnp.tanh({0})",
        "sin": "jnp.sin({0})",
        "relu": "jax.nn.relu({0})",
        "abs": "jnp.abs({0})",
        "square": "jnp.square({0})",
        "cube": "{0} ** 3",
        "silu": "jax.nn.silu({0})",
        "gelu": "jax.nn.gelu({0})",
        "softsign": "{0} / (1 + jnp.abs({0}))",
        "by_itself": "{0} * {0}",
        "by_own_tanh": "{0} * jnp.tanh({0})",
        "by_own_sigmoid": "{0} * jax.nn.sigmoid({0})",
        "expm1": "jnp.expm1({0})",
        "log1p_abs": "jnp.log1p(jnp.abs({0}))",
        "sign": "jnp.sign({0})",
        "threshold": "jnp.where(jnp.abs({0}) > 0.3, {0}, 0)",
        "round": "jnp.round(3 * {0}) / 3",
        "floor": "jnp.floor({0})",
        "clip": "jnp.clip({0}, -1, 1)",
        "clip_above": "jnp.clip({0}, 0.1, 1)",
        "times_step": "{0} * ({0} > 0)",
        "int": "(4 * {0}).astype(jnp.int32).astype({0}.dtype)",
        "bool": "{0}.astype(bool).astype({0}.dtype)",
        "erf": "jax.scipy.special.erf({0})",
        "double": "2 * {0}",
        "negative": "-{0}",
    },
    "not zero at zero": {
        "exp": "jnp.exp(-jnp.abs({0}))",
        "sigmoid": "jax.nn.sigmoid({0})",
        "softplus": "jax.nn.softplus({0})",
        "cos": "jnp.cos({0})",
        "plus_one": "1 + {0}",
        "one_minus": "1 - {0}",
        "minus": "{0} - 0.1",
        "step": "({0} > 0).astype({0}.dtype)",
        "one_where_zero": "jnp.where({0} > 0, {0}, 1)",
        "is_zero": "({0} == 0).astype({0}.dtype)",
    },
    "finite on part of the line": {
        "sqrt": "jnp.sqrt({0})",
        "log": "jnp.log({0})",
        "rsqrt": "lax.rsqrt({0})",
        "reciprocal": "1 / {0}",
        "power_half": "jnp.power({0}, 0.5)",
        "power_minus": "jnp.power({0}, -0.5)",
        "arccosh": "jnp.arccosh(1 + {0})",
        "log_half": "jnp.log(0.5 + {0})",
        "log1p": "jnp.log1p({0})",
        "lgamma": "lax.lgamma({0})",
        "digamma": "lax.digamma(1 + {0})",
        "arcsin": "jnp.arcsin({0})",
        "arctanh": "jnp.arctanh({0} / 4)",
        "xlogx": "jax.scipy.special.xlogy({0}, {0})",
        "plogp": "-{0} * jnp.log({0})",
        "logit": "jax.scipy.special.logit({0})",
        "erf_inv": "lax.erf_inv({0} / 5)",
        "over_itself": "{0} / jnp.abs({0})",
        "over_root": "{0} / jnp.sqrt({0} * {0})",
        "sqrt_one_minus_square": "jnp.sqrt(1 - jnp.square({0} / 3))",
        "minus_inverse": "1 / (2 - {0})",
        "cube_root": "jnp.cbrt({0})",
    },
    "finite everywhere": {
        "sqrt_square_plus": "jnp.sqrt({0} * {0} + 1)",
        "sqrt_abs": "jnp.sqrt(jnp.abs({0}))",
        "sqrt_relu": "jnp.sqrt(jax.nn.relu({0}))",
        "log_square_plus": "jnp.log({0} * {0} + 0.5)",
        "rsqrt_square_plus": "lax.rsqrt({0} ** 2 + 0.1)",
        "inverse_exp": "1 / (1 + jnp.exp(-{0}))",
        "log_sigmoid": "jnp.log(jax.nn.sigmoid({0}))",
        "log_softplus": "jnp.log(jax.nn.softplus({0}) + 1)",
        "sqrt_one_minus_tanh": "jnp.sqrt(1 - jnp.tanh({0}) ** 2)",
        "arccosh_abs": "jnp.arccosh(1 + jnp.abs({0}))",
        "over_abs_eps": "{0} / (jnp.abs({0}) + 1e-6)",
        "where_log": "jnp.where({0} > 0.1, jnp.log(jnp.where({0} > 0.1, {0}, 1)), 0)",
        "log_of_max": "jnp.log(jnp.maximum({0}, 1e-3))",
        "lgamma_square": "lax.lgamma(1 + {0} * {0})",
    },
    "along an axis": {
        "softmax": "jax.nn.softmax({0}, {a})",
        "log_softmax": "jax.nn.log_softmax({0}, {a})",
        "unit": "{0} / jnp.linalg.norm({0}, axis={a}, keepdims=True)",
        "unit_eps": "{0} / (jnp.linalg.norm({0}, axis={a}, keepdims=True) + 1e-6)",
        "unit_inner_eps": "{0} * lax.rsqrt(jnp.sum({0} ** 2, {a}, keepdims=True) + 1e-6)",
        "unit_one": "{0} / jnp.sum(jnp.abs({0}), {a}, keepdims=True)",
        "unit_max": "{0} / jnp.max(jnp.abs({0}), {a}, keepdims=True)",
        "unit_max_all": "{0} / jnp.abs({0}).max()",
        "rms": "{0} * lax.rsqrt(jnp.mean({0} ** 2, {a}, keepdims=True) + 1e-6)",
        "rms_by_size": "{0} * lax.rsqrt(jnp.sum({0} ** 2, {a}, keepdims=True) / {n})",
        "rms_bare": "{0} * lax.rsqrt(jnp.mean({0} ** 2, {a}, keepdims=True))",
        "rms_by_number": "{0} * lax.rsqrt(jnp.sum({0} ** 2, {a}, keepdims=True) / {#n})",
        "layer_norm": "jax.nn.standardize({0}, {a}, epsilon=1e-5)",
        "layer_norm_bare": "jax.nn.standardize({0}, {a}, epsilon=0.0)",
        "centred": "{0} - jnp.mean({0}, {a}, keepdims=True)",
        "less_max": "{0} - jnp.max({0}, {a}, keepdims=True)",
        "less_min": "{0} - jnp.min({0}, {a}, keepdims=True)",
        "winner": "{0} * ({0} >= jnp.max({0}, {a}, keepdims=True))",
        "ranks": "jnp.argsort(jnp.argsort({0}, {a}), {a}).astype({0}.dtype)",
        "over_sum": "{0} / jnp.sum({0}, {a}, keepdims=True)",
        "plus_sum": "{0} + jnp.sum({0}, {a}, keepdims=True)",
        "times_sum": "{0} * jnp.sum({0}, {a}, keepdims=True)",
        "plus_first": "{0} + lax.slice_in_dim({0}, 0, 1, axis={a})",
        "cumsum": "jnp.cumsum({0}, {a})",
        "cumprod": "jnp.cumprod({0}, {a})",
        "cummax": "lax.cummax({0}, {a})",
        "flip": "jnp.flip({0}, {a})",
        "roll": "jnp.roll({0}, 1, {a})",
        "sort": "jnp.sort({0}, {a})",
        "hard": "({0} >= jnp.max({0}, {a}, keepdims=True)).astype({0}.dtype)",
        "recurrence": "lax.associative_scan(lambda c, z: 0.5 * c + z, {0}, axis={a})",
        "fft": "jnp.abs(jnp.fft.fft({0}, axis={a}))",
        "first_of": "{0} * {row:(jnp.arange({n}) < 2)}",
        "last_masked": "{0} * {row:(jnp.arange({n}) != {n} - 1)}",
        "ramp": "{0} * {row:jnp.arange({n})}",
        "spaced": "{0} * {row:jnp.linspace(0, 1, {n})}",
        "waves": "{0} + {row:jnp.sin(jnp.arange({n}))}",
        "ones_row": "{0} + {row:jnp.ones({n})}",
        "alternate": "{0} * {row:(-1.0) ** jnp.arange({n})}",
        "table": "{0} * {row:np.cos(np.arange({n}))}",
        "reordered": "jnp.take({0}, jnp.argsort(jnp.sin(jnp.arange({n}))), axis={a})",
    },
    "norms over the batch": {
        "instance": "({0} - jnp.mean({0}, 0, keepdims=True)) "
        "* lax.rsqrt(jnp.var({0}, 0, keepdims=True) + 1e-5)",
        "instance_bare": "({0} - jnp.mean({0}, 0, keepdims=True)) "
        "* lax.rsqrt(jnp.var({0}, 0, keepdims=True))",
        "over_max_of_first": "{0} / jnp.max(jnp.abs({0}), 0, keepdims=True)",
        "over_max_of_first_eps": "{0} / (jnp.max(jnp.abs({0}), 0, keepdims=True) + 1e-3)",
        "softmax_first": "jax.nn.softmax({0}, 0)",
        "over_sum_of_first": "{0} / jnp.sum(jnp.abs({0}), 0, keepdims=True)",
        "cumsum_first": "jnp.cumsum({0}, 0)",
    },
    "numbers computed from a size": {
        "times_inverse_root": "{0} * {k} ** -0.5",
        "over_size": "{0} / {k}",
        "times_root": "{0} * {k} ** 0.5",
        "tenth": "{0} * ({k} / 10)",
        "plus_size": "{0} + {k}",
        "plus_tenth": "{0} + 0.1 * {k}",
        "power_of_size": "jnp.tanh({0}) ** {k}",
        "size_minus_one": "{0} * ({k} - 1)",
        "half_of_size": "{0} * ({k} // 2)",
        "sine_of_size": "{0} * np.sin({k})",
        "two_to_minus": "{0} * 2.0**-{k}",
        "log_of_size": "{0} * np.log({k})",
        "number_root": "{0} * {#k} ** -0.5",
        "number_inverse": "{0} / {#k}",
        "number_root_up": "{0} * {#k} ** 0.5",
        "one_less_inverse": "{0} * (1 - 4 / {k})",
        "number": "{0} + {#k}",
        "sum_of_ones": "{0} / jnp.ones({k}).sum()",
        "sum_of_range": "{0} + jnp.arange({k}).sum()",
        "last_of_range": "{0} * jnp.arange({k})[-1]",
        "second_of_spaced": "{0} * jnp.linspace(0, 1, {k} + 1)[1]",
        "trace_of_eye": "{0} * jnp.trace(jnp.eye({k}))",
        "sum_of_table": "{0} * np.sin(np.arange({k})).sum()",
        "key_of_size": "{0} * jax.random.normal(jax.random.key({k}), ())",
    },
    "programs that follow a size": {
        "as_many_times": "functools.reduce(lambda z, _: jnp.sin(z), range({k}), {0})",
        "as_many_turns": "lax.fori_loop(0, {k}, lambda _, z: 0.9 * z, {0})",
        "scan_of_zeros": "lax.scan(lambda z, c: (jnp.sin(z) + c, None), {0}, jnp.zeros({k}))[0]",
        "if_small": "jnp.sin({0}) if {k} < 5 else {0}",
        "if_even": "{0} if {k} % 2 else jnp.sin({0})",
        "rolled_by_size": "jnp.roll({0}, {k}, 0)",
        "padded_by_size": "jnp.pad({0}, (({k} - 2, 0),) + ((0, 0),) * ({0}.ndim - 1))[: {0}.shape[0]]",  # noqa: E501
        "tiled": "jnp.tile({0}[None], ({k},) + (1,) * {0}.ndim).sum(0)",
        "tiled_mean": "jnp.tile({0}[None], ({k},) + (1,) * {0}.ndim).mean(0)",
        "broadcast": "jnp.broadcast_to({0}, ({k}, *{0}.shape)).sum(0)",
        "repeated": "jnp.repeat({0}[None], {k}, axis=0).sum(0)",
        "segments": "jax.ops.segment_sum({0}, np.arange({0}.shape[0]) % {k}, {k})"
        "[np.arange({0}.shape[0]) % {k}]",
        "first_by_size": "{0}[np.arange({0}.shape[0]) % {k}]",
        "resized": "jax.image.resize({0}, ({k}, *{0}.shape[1:]), 'linear').mean(0, keepdims=True) "
        "+ 0 * {0}",
        "top_by_size": "{0} * ({0} >= jnp.sort({0}, 0)[-min({k}, {0}.shape[0])][None])",
        "windows": "lax.reduce_window({0}, 0.0, lax.add, ({k},) + (1,) * ({0}.ndim - 1), "
        "(1,) * {0}.ndim, 'SAME')",
        "turned_if_small": "{0} @ jnp.full((2, 2), 0.5) if {0}.shape[-1] == 2 else {0}",
    },
    "random numbers": {
        "mask": "{0} * jax.random.bernoulli(jax.random.key(0), 0.5, {0}.shape)",
        "noise": "{0} + jax.random.normal(jax.random.key(0), {0}.shape)",
        "mask_first": "{0} * jax.random.bernoulli(jax.random.key(0), 0.5, "
        "{0}.shape[:1] + (1,) * ({0}.ndim - 1))",
        "mask_axis": "{0} * {row:jax.random.bernoulli(jax.random.key(1), 0.5, ({n},))}",
    },
    "control flow and transformations": {
        "cond_sum": "lax.cond({0}.sum() > 0, jnp.tanh, jnp.sin, {0})",
        "cond_input": "lax.cond(x[0, 0] > 0, jnp.tanh, lambda z: 2 * z, {0})",
        "cond_exp": "lax.cond(x[0, 0] > 0, jnp.cos, lambda z: 2 * z, {0})",
        "while_large": "lax.while_loop(lambda z: jnp.max(jnp.abs(z)) > 1, lambda z: 0.7 * z, {0})",
        "while_counted": "lax.while_loop(lambda c: c[0] < 2, "
        "lambda c: (c[0] + 1, jnp.sin(c[1])), (0, {0}))[1]",
        "scan_first": "lax.scan(lambda c, z: (jnp.tanh(c + z), c + z), 0 * {0}[0], {0})[1]",
        "map_first": "lax.map(jnp.tanh, {0})",
        "scan_along": "jnp.moveaxis(lax.scan(lambda c, z: (c + z, c), "
        "0 * jnp.take({0}, 0, {a}), jnp.moveaxis({0}, {a}, 0))[1], 0, {a})",
        "vmap": "jax.vmap(jnp.tanh, {a}, {a})({0})",
        "vmap_norm": "jax.vmap(lambda z: z / jnp.sqrt(1 + jnp.sum(z * z)), {a}, {a})({0})",
        "vmap_softmax": "jax.vmap(lambda z: jax.nn.softmax(z, -1), {a}, {a})({0})",
        "checkpoint": "jax.checkpoint(jnp.tanh)({0})",
        "jit": "jax.jit(lambda z: jnp.sin(z) * 0.5)({0})",
        "grad": "jax.grad(lambda z: jnp.sum(jnp.sin(z) ** 2))({0})",
        "stop": "lax.stop_gradient({0})",
        "barrier": "lax.optimization_barrier({0})",
        "fori_written": "lax.fori_loop(0, 2, lambda k, z: z.at[..., k].multiply(0.5), {0})",
        "fori_by_size": "lax.fori_loop(0, {0}.shape[-1], lambda k, z: z.at[..., k].multiply(0.5), {0})",  # noqa: E501
        "first_set": "{0}.at[..., 0].set(1.0)",
        "last_set": "{0}.at[..., -1].set(0.5)",
        "last_of_first_set": "{0}.at[-1].set(0.5)",
    },
    "quantized": {
        "fake_quantized": "jnp.round({0} / jnp.max(jnp.abs({0}), {a}, keepdims=True) * 7) / 7 "
        "* jnp.max(jnp.abs({0}), {a}, keepdims=True)",
        "fake_quantized_eps": "jnp.round({0} / (jnp.max(jnp.abs({0}), {a}, keepdims=True) + 1e-6) * 7) "  # noqa: E501
        "/ 7 * jnp.max(jnp.abs({0}), {a}, keepdims=True)",
        "quantized_all": "jnp.round({0} / jnp.abs({0}).max() * 7) / 7 * jnp.abs({0}).max()",
        "binary": "jnp.sign({0}) * jnp.mean(jnp.abs({0}), {a}, keepdims=True)",
        "straight_through": "{0} + lax.stop_gradient(jnp.round({0}) - {0})",
        "int8": "jnp.round(20 * jnp.clip({0}, -6, 6)).astype(jnp.int8).astype({0}.dtype) / 20",
    },
    "complex": {
        "plus_imaginary": "jnp.abs({0} + 1j)",
        "times_complex": "jnp.imag({0} * (1 + 2j))",
        "times_imaginary": "jnp.abs({0} * 2j)",
        "phase": "jnp.real(jnp.exp(1j * {0}))",
        "phase_imag": "jnp.imag(jnp.exp(1j * {0}))",
        "complex_root": "jnp.real(jnp.sqrt({0} + 0j))",
        "complex_abs": "jnp.abs(lax.complex({0}, jnp.sin({0})))",
        "complex_product": "jnp.real(lax.complex({0}, {0}) * (2 - 1j))",
    },
}
SAME = {kind: text for group in GROUPS.values() for kind, text in group.items()}

OVER = {
    "sum": "jnp.sum({0}, {a})",
    "mean": "jnp.mean({0}, {a})",
    "max": "jnp.max({0}, {a})",
    "min": "jnp.min({0}, {a})",
    "prod": "jnp.prod({0}, {a})",
    "logsumexp": "jax.nn.logsumexp({0}, {a})",
    "std": "jnp.std({0}, {a})",
    "var": "jnp.var({0}, {a})",
    "norm": "jnp.linalg.norm({0}, axis={a})",
    "any": "jnp.any({0} > 0.5, {a}).astype({0}.dtype)",
    "all": "jnp.all({0} > -0.5, {a}).astype({0}.dtype)",
    "first": "jnp.take({0}, 0, {a})",
    "last": "jnp.take({0}, -1, {a})",
    "last_by_size": "jnp.take({0}, {n} - 1, {a})",
    "argmax": "jnp.argmax({0}, {a}).astype({0}.dtype)",
    "argmin": "jnp.argmin({0}, {a}).astype({0}.dtype)",
    "any_nonzero": "jnp.any({0} != 0, {a}).astype({0}.dtype)",
    "min_or_less": "jnp.minimum(jnp.min({0}, {a}), -1)",
    "min_of_half": "jnp.min(lax.slice_in_dim({0}, 0, {n} // 2, axis={a}), {a})",
    "how_many": "jnp.sum({0} > 0, {a}).astype({0}.dtype)",
    "sum_of_squares": "jnp.sum({0} ** 2, {a})",
    "mean_of_squares": "jnp.mean({0} ** 2, {a})",
    "sum_over_size": "jnp.sum({0}, {a}) / {n}",
    "sum_over_number": "jnp.sum({0}, {a}) / {#n}",
    "sum_over_root": "jnp.sum({0}, {a}) * {n} ** -0.5",
    "dot_ones": "jnp.tensordot({0}, jnp.ones({n}), [[{a}], [0]])",
    "dot_mean": "jnp.tensordot({0}, jnp.full({n}, 1 / {n}), [[{a}], [0]])",
    "dot_range": "jnp.tensordot({0}, 1.0 * jnp.arange({n}), [[{a}], [0]])",
    "first_half": "jnp.sum(lax.slice_in_dim({0}, 0, {n} // 2, axis={a}), {a})",
    "all_but_first": "jnp.sum(lax.slice_in_dim({0}, 1, None, axis={a}), {a})",
    "median": "jnp.median({0}, {a})",
    "top": "lax.top_k(jnp.moveaxis({0}, {a}, -1), 2)[0].sum(-1)",
    "scan_sum": "lax.scan(lambda c, z: (c + z, None), 0 * jnp.take({0}, 0, {a}), "
    "jnp.moveaxis({0}, {a}, 0))[0]",
    "for_sum": "sum(jnp.take({0}, k, {a}) for k in range({n}))",
    "fori_sum": "lax.fori_loop(0, {n}, lambda k, c: c + jnp.take({0}, k, {a}), "
    "0 * jnp.take({0}, 0, {a}))",
    "vmap_sum": "jax.vmap(jnp.tanh, {a})({0}).sum(0)",
}

TWO = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "divide_one": "{0} / (1 + jnp.abs({1}))",
    "divide_exp": "{0} / jnp.exp({1} / 4)",
    "divide_eps": "{0} / (jnp.abs({1}) + 0.01)",
    "maximum": "jnp.maximum({0}, {1})",
    "where": "jnp.where({1} > 0, {0}, 0)",
    "where_less": "jnp.where({0} < {1}, {0}, {1})",
    "where_else": "jnp.where({1} > 0, 1, {0})",
    "glu": "{0} * jax.nn.sigmoid({1})",
    "swiglu": "{0} * jax.nn.silu({1})",
    "gate_softplus": "{0} * jax.nn.softplus({1})",
    "gate_plus_one": "{0} * (1 + {1})",
    "gate_exp": "{0} * jnp.exp(-jnp.abs({1}))",
    "power": "(jnp.abs({0}) + 0.1) ** jnp.tanh({1})",
    "hypot": "jnp.hypot({0}, {1})",
    "atan2": "jnp.arctan2({0}, {1})",
    "logaddexp": "jnp.logaddexp({0}, {1})",
    "remainder": "{0} % (1 + jnp.abs({1}))",
    "complex": "jnp.abs(lax.complex({0}, {1}))",
    "phase_of_two": "jnp.real({0} * jnp.exp(1j * {1}))",
    "cond_two": "lax.cond(x[0, 0] > 0, lambda y, z: y, lambda y, z: z, {0}, {1})",
    "interpolate": "jax.nn.sigmoid({1}) * {0} + (1 - jax.nn.sigmoid({1})) * {1}",
    "stacked_mean": "jnp.stack([{0}, {1}]).mean(0)",
    "stacked_max": "jnp.stack([{0}, {1}]).max(0)",
    "softmax_of_two": "jax.nn.softmax(jnp.stack([{0}, {1}]), 0)[0]",
    "normed_by_other": "{0} / jnp.sqrt(jnp.sum({1} ** 2) + 1e-6)",
    "polynomial": "{0} * {1} + {1} ** 2",
    "scan_two": "lax.scan(lambda c, z: (0.5 * c + z, None), {0}, jnp.stack([{1}, {0}]))[0]",
}

TOKENS = {
    "tokens": "t",
    "tokens_negative": "-t",
    "tokens_negative_after": "-1 - t",
    "tokens_from_end": "v - 1 - t",
    "tokens_clipped": "jnp.minimum(t, v - 1)",
    "tokens_shifted": "(t + 1) % v",
    "tokens_wrapped": "t % v",
    "tokens_last_masked": "jnp.where(t == v - 1, 0, t)",
    "tokens_start": "jnp.concatenate([jnp.full_like(t[:1], v - 1), t[:-1]])",
    "tokens_rolled": "jnp.roll(t, 1)",
    "tokens_zero_start": "jnp.concatenate([jnp.zeros_like(t[:1]), t[:-1]])",
    "tokens_half": "t // 2",
    "tokens_double": "(2 * t) % v",
    "tokens_past_end": "t + v - v",
    "tokens_by_number": "(t + {#v} - 1) % {#v}",
    "tokens_max": "jnp.maximum(t, 1)",
}


# Numbers that a planner knows to follow a size. Of others, it may take for granted that they stay.
RECOGNIZED = {"times_inverse_root", "over_size", "times_root", "rms_by_size", "sum_over_size"}
RECOGNIZED |= {"sum_over_root", "attention", "tenth", "plus_tenth"}


class InapplicableError(Exception):
    """An operation does not apply to the values that there are."""


class Maker:
    """Makes a program, step by step."""

    def __init__(self, seed: int, is_large: bool = False) -> None:
        self.rng = random.Random(seed)
        choose = self.rng.choice
        self.sizes = {"b": choose([3, 4, 4, 6]), "i": choose([3, 5]), "o": 2, "v": choose([5, 6])}
        self.widths = WIDTHS[: choose([1, 2, 2, 3, 4])]
        self.sizes |= {axis: choose([2, 3, 3, 4, 4, 5]) for axis in self.widths}
        if is_large:
            self.widths = self.widths[:2]
            self.sizes = {"b": 64, "i": choose([50, 80]), "o": 2, "v": choose([60, 90])}
            self.sizes |= {axis: choose([32, 45, 60, 64, 81, 100]) for axis in self.widths}
        self.positive = self.chance(0.25)
        self.leaves: dict[str, tuple[str, ...]] = {}
        self.steps: list[Step] = []

    def add(self, kind: str, text: str, axes: Sequence[str], *args: int) -> int:
        text = re.sub(r"\{#(\w)\}", lambda match: str(self.sizes[match[1]]), text)
        self.steps.append(Step(kind, text, args, tuple(axes)))
        return len(self.steps) - 1

    def leaf(self, *axes: str) -> str:
        name = f"w{len(self.leaves)}"
        self.leaves[name] = axes
        return f'p["{name}"]'

    def axes(self, value: int) -> tuple[str, ...]:
        return self.steps[value].axes

    def pick(self, suits: Callable[[tuple[str, ...]], Any] = lambda axes: True) -> int:
        """Picks a value whose axes suit, rather one of the last."""
        found = [k for k in range(len(self.steps)) if suits(self.axes(k))]
        if not found:
            raise InapplicableError
        back = min(int(self.rng.expovariate(0.7)), len(found) - 1)
        return found[-1 - back]

    def new(self, but: Sequence[str] = ()) -> str:
        """Picks a width that is not among these axes."""
        return self.one([axis for axis in self.widths if axis not in but])

    def one(self, choices: Sequence[str]) -> str:
        if not choices:
            raise InapplicableError
        return self.rng.choice(choices)

    def function(self) -> str:
        """Picks a function that keeps a value's axes."""
        return self.one([*GROUPS[self.one([*GROUPS])]])

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


def fit(text: str, axes: Sequence[str], to: Sequence[str]) -> str:
    """Returns the text of a value with its axes in place for those of another."""
    order = [axis for axis in to if axis in axes]
    if len(order) != len(axes):
        raise InapplicableError
    if order != list(axes):
        text = f'jnp.einsum({subscripts(axes)}->{"".join(order)}", {text})'
    if len(order) < len(to):
        text += f"[{', '.join(':' if axis in axes else 'None' for axis in to)}]"
    return text


def subscripts(*axes: Sequence[str]) -> str:
    """Returns the beginning of an equation for einsum, with its quotation mark."""
    if any(len(axis) > 1 or axis.isdigit() for value in axes for axis in value):
        raise InapplicableError
    return '"' + ",".join("".join(value) for value in axes)


def simple(axes: Sequence[str]) -> bool:
    return all(axis in "b" + WIDTHS for axis in axes)


OPERATIONS: dict[str, Callable[[Maker], Any]] = {}
COMMON = (
    "lift",
    "dense",
    "same",
    "same",
    "same",
    "over",
    "two",
    "two",
    "weighted",
    "through",
    "partial",
)


def operation(function: Callable[[Maker], Any]) -> Callable[[Maker], Any]:
    OPERATIONS[function.__name__] = function
    return function


@operation
def lift(m: Maker) -> int:
    axes = m.rng.sample(m.widths, min(len(m.widths), m.rng.choice([1, 1, 2])))
    letters = "".join(axes)
    return m.add(
        "lift", f'jnp.einsum("bi,i{letters}->b{letters}", x, {m.leaf("i", *axes)})', ["b", *axes]
    )


@operation
def parameter(m: Maker) -> int:
    axes = m.rng.sample(m.widths, min(len(m.widths), m.rng.choice([1, 2])))
    return m.add("parameter", m.leaf(*axes), axes)


@operation
def embed(m: Maker) -> int:
    axis = m.new()
    kind = m.one(list(TOKENS))
    text = TOKENS[kind]
    if m.chance(0.2):
        one_hot = f"jax.nn.one_hot({text}, v, dtype=x.dtype)"
        return m.add(f"one_hot_{kind}", f"{one_hot} @ {m.leaf('v', axis)}", ["b", axis])
    return m.add(kind, f"{m.leaf('v', axis)}[{text}]", ["b", axis])


@operation
def dense(m: Maker) -> int:
    v = m.pick(lambda axes: axes and axes[-1] != "b")
    *rest, last = m.axes(v)
    out = m.new(m.axes(v)) if len(m.widths) > len(rest) else m.new(rest)
    text = f"{{0}} @ {m.leaf(last, out)}"
    if m.chance(0.3):
        text += " + " + fit(m.leaf(out), [out], [*rest, out])
    return m.add("dense", text, [*rest, out], v)


@operation
def square(m: Maker) -> int:
    v = m.pick(lambda axes: axes and axes[-1] in m.widths)
    axis = m.axes(v)[-1]
    w = m.leaf(axis, axis)
    kind, text = m.rng.choice(
        [
            ("square", f"{{0}} @ {w}"),
            (
                "recurrent",
                f"lax.scan(lambda c, _: (jnp.tanh(c @ {w} + {{0}}), None), 0 * {{0}}, length=2)[0]",
            ),
            ("turned", f"{{0}} @ ({w} if {axis} < 5 else {w}.T)"),
            ("symmetric", f"{{0}} @ ({w} + {w}.T)"),
            ("triangular", f"{{0}} @ jnp.tril({w})"),
            ("exponential", f"{{0}} @ jax.scipy.linalg.expm({w} / 9)"),
            ("residual_eye", f"{{0}} @ ({w} + jnp.eye({axis}))"),
            ("diagonal", f"{{0}} * jnp.diagonal({w})[(None,) * ({{0}}.ndim - 1)]"),
            ("gram_of_square", f"{{0}} @ ({w}.T @ {w})"),
            ("inverse", f"{{0}} @ jnp.linalg.inv({w} + 9 * jnp.eye({axis}))"),
        ]
    )
    return m.add(kind, text, m.axes(v), v)


@operation
def tied(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) > 1 and axes[-1] in m.widths)
    axis = m.axes(v)[-1]
    w = m.leaf(axis, m.new([axis]))
    f = m.rng.choice(["jnp.tanh", "jax.nn.softplus", "jax.nn.relu", "jax.nn.softmax", ""])
    return m.add("tied", f"{f}({{0}} @ {w}) @ {w}.T", m.axes(v), v)


@operation
def stacked_layers(m: Maker) -> int:
    v = m.pick(lambda axes: axes and axes[-1] in m.widths)
    axis = m.axes(v)[-1]
    w = m.leaf("2", axis, axis)
    f = m.rng.choice(["jnp.tanh(c @ z)", "c + jnp.sin(c @ z)", "c * jax.nn.sigmoid(c @ z)"])
    return m.add(
        "stacked_layers", f"lax.scan(lambda c, z: ({f}, None), {{0}}, {w})[0]", m.axes(v), v
    )


@operation
def halves(m: Maker) -> int:
    axis = m.new()
    v = m.add("lift_two", f"x @ {m.leaf('i', f'2*{axis}')}", ["b", f"2*{axis}"])
    gate = m.rng.choice(["jax.nn.sigmoid", "jax.nn.silu", "jnp.tanh", "jnp.exp", ""])
    text = m.rng.choice(
        [
            "jnp.split({0}, 2, axis=-1)[0] * GATE(jnp.split({0}, 2, axis=-1)[1])",
            f"{{0}}[:, :{axis}] * GATE({{0}}[:, {axis}:])",
            "{0}[:, ::2] * GATE({0}[:, 1::2])",
            f"lax.dynamic_slice_in_dim({{0}}, 0, {axis}, 1) * GATE(lax.dynamic_slice_in_dim({{0}}, {axis}, {axis}, 1))",  # noqa: E501
            f"{{0}}.reshape(-1, {axis}, 2)[..., 0] * GATE({{0}}.reshape(-1, {axis}, 2)[..., 1])",
        ]
    ).replace("GATE", gate)
    m.leaf(axis)
    return m.add("halves", f"{text} + {fit(m.leaf(axis), [axis], ['b', axis])}", ["b", axis], v)


@operation
def parted(m: Maker) -> int:
    one = m.new()
    two = m.new([one])
    v = m.add("lift_parts", f"x @ {m.leaf('i', f'{one}+{two}')}", ["b", f"{one}+{two}"])
    if m.chance(0.5):
        kind = m.one([k for k in SAME if not re.search(r"\{[^0]", SAME[k])])
        v = m.add(kind, SAME[kind], ["b", f"{one}+{two}"], v)
    a = m.add("part_one", f"{{0}}[:, :{one}]", ["b", one], v)
    return a, m.add("part_two", f"{{0}}[:, {one}:]", ["b", two], v)


@operation
def joined(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    w = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    axis = f"{m.axes(v)[1]}+{m.axes(w)[1]}"
    y = m.add("joined", "jnp.concatenate([{0}, {1}], axis=-1)", ["b", axis], v, w)
    if m.chance(0.4):
        kind = m.one(
            [
                k
                for k in SAME
                if "{k}" not in SAME[k] and "#" not in SAME[k] and "{n}" not in SAME[k]
            ]
        )
        y = m.add(kind, SAME[kind].replace("{a}", "1"), ["b", axis], y)
    out = m.new()
    return m.add("dense", f"{{0}} @ {m.leaf(axis, out)}", ["b", out], y)


@operation
def copies(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    axis = m.axes(v)[1]
    kind, text = m.rng.choice(
        [
            ("repeat_units", "jnp.repeat({0}, 2, axis=-1)"),
            ("tile_units", "jnp.tile({0}, (1, 2))"),
            ("stack_units", "jnp.stack([{0}, jnp.sin({0})], -1).reshape({0}.shape[0], -1)"),
            ("join_itself", "jnp.concatenate([{0}, jnp.cos({0})], -1)"),
        ]
    )
    y = m.add(kind, text, ["b", f"2*{axis}"], v)
    out = m.new()
    return m.add("dense", f"{{0}} @ {m.leaf(f'2*{axis}', out)}", ["b", out], y)


@operation
def flat(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 3 and axes[0] == "b" and simple(axes))
    axis = "*".join(m.axes(v)[1:])
    text = m.rng.choice(
        ["{0}.reshape({0}.shape[0], -1)", "{0}.swapaxes(1, 2).reshape({0}.shape[0], -1)"]
    )
    if "swap" in text:
        axis = "*".join(m.axes(v)[:0:-1])
    y = m.add("flat", text, ["b", axis], v)
    out = m.new()
    return m.add("dense", f"{{0}} @ {m.leaf(axis, out)}", ["b", out], y)


@operation
def heads(m: Maker) -> int:
    one = m.new()
    two = m.new([one])
    v = m.add("lift_heads", f"x @ {m.leaf('i', f'{one}*{two}')}", ["b", f"{one}*{two}"])
    by = m.rng.choice([f"{one}, -1", f"-1, {two}", f"{one}, {two}"])
    return m.add("heads", f"{{0}}.reshape({{0}}.shape[0], {by})", ["b", one, two], v)


@operation
def same(m: Maker) -> int:
    kind = m.function()
    v = m.pick(lambda axes: axes and simple(axes))
    axes = m.axes(v)
    a = m.one([axis for axis in axes if axis != "b"])
    return m.add(kind, in_place(m, SAME[kind], axes, a), axes, v)


@operation
def partial(m: Maker) -> int:
    """Applies a function that is finite on part of the line to a value that is within."""
    v = m.pick(lambda axes: axes and simple(axes))
    axes = m.axes(v)
    if not (m.positive and m.chance(0.6)):
        guard = m.rng.choice(
            ["abs", "square", "softplus", "exp", "sigmoid", "step", "sqrt_square_plus", "softmax"]
        )
        v = m.add(guard, SAME[guard].replace("{a}", "-1"), axes, v)
    group = "finite on part of the line"
    kind = m.one([*GROUPS[group], "over_sum", "unit", "unit_one", "unit_max", "instance_bare"])
    a = m.one([axis for axis in axes if axis != "b"])
    return m.add(kind, in_place(m, SAME[kind], axes, a), axes, v)


def in_place(m: Maker, text: str, axes: Sequence[str], a: str) -> str:
    def row(match: re.Match[str]) -> str:
        return fit(match[1], [a], axes) if len(axes) > 1 else match[1]

    text = text.replace("{n}", a).replace("{#n}", f"{{#{a}}}").replace("{a}", str(axes.index(a)))
    k = m.one(m.widths)
    text = text.replace("{k}", k).replace("{#k}", f"{{#{k}}}")
    return re.sub(r"\{row:(.*?)\}$", row, text)


@operation
def over(m: Maker) -> int:
    kind = m.one(list(OVER))
    v = m.pick(lambda axes: len(axes) > 1 and simple(axes))
    axes = m.axes(v)
    a = m.one([axis for axis in axes if axis != "b"])
    return m.add(kind, in_place(m, OVER[kind], axes, a), [x for x in axes if x != a], v)


@operation
def two(m: Maker) -> int:
    kind = m.one(list(TWO))
    v = m.pick(simple)
    w = m.pick(lambda axes: simple(axes) and {*axes} <= {*m.axes(v)})
    if m.chance(0.3):
        w = m.pick(lambda axes: axes == m.axes(v))
    text = TWO[kind]
    other = fit("{1}", m.axes(w), m.axes(v))
    if m.axes(w) != m.axes(v) and (
        "cond" in kind or "stack" in kind or kind in ("scan_two", "complex", "softmax_of_two")
    ):
        raise InapplicableError
    return m.add(kind, text.replace("{1}", other), m.axes(v), v, w)


@operation
def weighted(m: Maker) -> int:
    """Multiplies by weights, or adds some."""
    v = m.pick(lambda axes: {*axes} - {"b"} and simple(axes))
    axes = m.axes(v)
    own = [a for a in axes if a != "b"]
    own = m.rng.sample(own, m.rng.randint(1, len(own)))
    own.sort(key=axes.index)
    w = m.add("parameter", m.leaf(*own), own)
    if m.chance(0.4):
        kind = m.function()
        w = m.add(kind, in_place(m, SAME[kind], own, m.one(own)), own, w)
    kind = m.rng.choice(
        [
            "multiply",
            "multiply",
            "multiply",
            "add",
            "gate_softplus",
            "gate_plus_one",
            "divide_one",
            "divide_exp",
        ]
    )
    return m.add(kind, TWO[kind].replace("{1}", fit("{1}", own, axes)), axes, v, w)


@operation
def through(m: Maker) -> int:
    """Contracts with weights that a function was applied to."""
    v = m.pick(lambda axes: axes and axes[-1] in m.widths)
    *rest, last = m.axes(v)
    own = [last, m.new([last, *rest])]
    w = m.add("parameter", m.leaf(*own), own)
    for _ in range(m.rng.choice([1, 1, 2])):
        kind = m.function()
        w = m.add(kind, in_place(m, SAME[kind], own, m.one(own)), own, w)
    return m.add("contract", "{0} @ {1}", [*rest, own[1]], v, w)


@operation
def contract(m: Maker) -> int:
    v, w = m.pick(simple), m.pick(simple)
    one, other = m.axes(v), m.axes(w)
    shared = [a for a in one if a in other and a != "b"]
    if v == w or not shared:
        raise InapplicableError
    gone = m.rng.sample(shared, m.rng.randint(1, len(shared)))
    axes = [a for a in dict.fromkeys([*one, *other]) if a not in gone]
    if len(axes) > 3:
        raise InapplicableError
    return m.add(
        "contract",
        f'jnp.einsum({subscripts(one, other)}->{"".join(axes)}", {{0}}, {{1}})',
        axes,
        v,
        w,
    )


@operation
def outer(m: Maker) -> int:
    v = m.pick(lambda axes: 0 < len(axes) < 3 and simple(axes))
    axes = m.axes(v)
    new = m.new(axes)
    own = [
        *m.rng.sample([a for a in axes if a != "b"], m.rng.choice([0, 1]) if axes != ("b",) else 0),
        new,
    ]
    equation = (
        f'jnp.einsum({subscripts(axes, own)}->{"".join([*axes, new])}", {{0}}, {m.leaf(*own)})'
    )
    return m.add("outer", equation, [*axes, new], v)


@operation
def scores(m: Maker) -> int:
    q = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    axis = m.axes(q)[1]
    k = m.pick(lambda axes: axes == m.axes(q))
    v = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b")
    if m.chance(0.6):
        q, k = (m.add("lift", f"x @ {m.leaf('i', axis)}", ["b", axis]) for _ in "qk")
    scale = m.rng.choice(
        ["", f" * {axis} ** -0.5", f" / {m.sizes[axis]} ** 0.5", f" / {axis}", f" * {axis} ** 0.5"]
    )
    f = m.rng.choice(["jax.nn.softmax", "jax.nn.softmax", "jax.nn.relu", "jax.nn.sigmoid", ""])
    feature = m.rng.choice(["", "", "", "jax.nn.relu", "jnp.exp", "jax.nn.softplus"])
    return m.add(
        "attention",
        f"{f}({feature}({{0}}) @ {feature}({{1}}).T{scale}) @ {{2}}",
        m.axes(v),
        q,
        k,
        v,
    )


@operation
def state_space(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    axis = m.axes(v)[1]
    new = m.new([axis])
    y = m.add(
        "outer",
        f'jnp.einsum("b{axis},{axis}{new}->b{axis}{new}", {{0}}, {m.leaf(axis, new)})',
        ["b", axis, new],
        v,
    )
    if m.chance(0.5):
        a = m.leaf(axis, new)
        decay = m.rng.choice([f"jnp.exp(-jnp.abs({a}))", f"jax.nn.sigmoid({a})", a])
        y = m.add(
            "recurrence",
            f"lax.scan(lambda c, z: (({decay} * c + z,) * 2), 0 * {{0}}[0], {{0}})[1]",
            ["b", axis, new],
            y,
        )
    y = m.add("multiply", f"{{0}} * {m.leaf(axis, new)}[None]", ["b", axis, new], y)
    if m.chance(0.5):
        return m.add("sum", "{0}.sum(2)", ["b", axis], y)
    return m.add("sum_of_both", "{0}.sum((1, 2))", ["b"], y)


@operation
def vmapped(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 3 and axes[0] == "b" and simple(axes))
    _, head, axis = m.axes(v)
    new = m.new([head]) if m.chance(0.5) else axis
    w = m.leaf(head, axis, new)
    f = m.rng.choice(["jnp.tanh", "jax.nn.softplus", ""])
    y = m.add(
        "vmap_heads",
        f"jax.vmap(lambda y, w: {f}(y @ w), (1, 0), 1)({{0}}, {w})",
        ["b", head, new],
        v,
    )
    if m.chance(0.5):
        y = m.add("sum", "{0}.sum(1)", ["b", new], y)
    return y


@operation
def experts(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    axis = m.axes(v)[1]
    e = m.new([axis])
    gates, up = m.leaf("i", e), m.leaf(e, axis, axis)
    each = f'jnp.tanh(jnp.einsum("b{axis},{e}{axis}z->b{e}z", {{0}}, {up}))'
    kind, text = m.rng.choice(
        [
            ("experts_soft", f'jnp.einsum("b{e},b{e}z->bz", jax.nn.softmax(x @ {gates}), {each})'),
            ("experts_gated", f"((x @ {gates})[..., None] * {each}).sum(1)"),
            ("experts_sigmoid", f"(jax.nn.sigmoid(x @ {gates})[..., None] * {each}).sum(1)"),
            ("experts_mean", f"{each}.mean(1) + 0 * (x @ {gates})[:, :1]"),
            (
                "experts_best",
                f"(lax.top_k(x @ {gates}, 2)[0][..., None] "
                f"* jnp.take_along_axis({each}, lax.top_k(x @ {gates}, 2)[1][..., None], 1)).sum(1)",  # noqa: E501
            ),
            (
                "experts_capacity",
                f"jnp.einsum('kb,kbz->bz', (lambda s: (s >= -jnp.sort(-s, 1)[:, b // {e}][:, None]) * s)"  # noqa: E501
                f"((x @ {gates}).T), {each}.swapaxes(0, 1))",
            ),
            (
                "expert_chosen",
                f"jnp.take_along_axis({each}, jnp.argmax(x @ {gates}, 1)[:, None, None], 1)[:, 0]",
            ),
        ]
    )
    return m.add(kind, text, ["b", axis], v)


@operation
def convolved(m: Maker) -> int:
    v = m.pick(lambda axes: len(axes) == 2 and axes[0] == "b" and axes[1] in m.widths)
    axis = m.axes(v)[1]
    if m.chance(0.5):
        w, groups, out = m.leaf("3", "1", axis), f", feature_group_count={axis}", axis
    else:
        out = m.new()
        w, groups = m.leaf("3", axis, out), ""
    text = f"lax.conv_general_dilated({{0}}[None], {w}, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'){groups})[0]"  # noqa: E501
    return m.add("depthwise" if groups else "conv", text, ["b", out], v)


@operation
def indexed(m: Maker) -> int:
    """Looks up rows of weights by numbers that are computed."""
    axis = m.new()
    row = m.new([axis]) if len(m.widths) > 1 else axis
    w = m.leaf(row, axis)
    kind, index = m.rng.choice(
        [
            ("rows_by_position", f"jnp.arange(x.shape[0]) % {row}"),
            ("rows_by_number", f"jnp.arange(x.shape[0]) % {m.sizes[row]}"),
            ("rows_first", "jnp.zeros(x.shape[0], int)"),
            ("rows_last", "jnp.full(x.shape[0], -1)"),
            ("rows_clipped", f"jnp.minimum(jnp.arange(x.shape[0]), {row} - 1)"),
            ("rows_by_input", f"(jnp.abs(x[:, 0]) * 2).astype(int) % {row}"),
            ("rows_by_best", f"jnp.argmax(x, 1) % {row}"),
        ]
    )
    return m.add(kind, f"{w}[{index}]", ["b", axis])


def make(seed: int, is_large: bool = False) -> Program:
    """Returns the random program of this seed."""
    m = Maker(seed, is_large)
    (embed if m.chance(0.15) else lift)(m)
    names = [*COMMON * 2, *OPERATIONS]
    wanted = m.rng.randint(2, 8)
    for _ in range(60):
        if len(m.steps) >= wanted:
            break
        try:
            OPERATIONS[m.one(names)](m)
        except InapplicableError:
            continue
    last = len(m.steps) - 1
    ends = [last]
    if m.chance(0.2):
        ends.append(m.pick(lambda axes: True))
    raw = m.chance(0.07)
    outputs = [m.steps[v] and (_raw(m, v) if raw else _read_out(m, v)) for v in ends]
    kinds = (
        ["positive"]
        if m.positive
        else ["normal"] * 6 + ["positive", "negative", "ones", "zeros", "row", "whole", "opposed"]
    )
    values = {name: m.rng.choice(kinds) for name in m.leaves}
    program = Program(
        m.sizes, m.leaves, values, tuple(m.steps), len(outputs), m.chance(0.35), m.positive
    )
    program = without_unused(program)
    return program if program.is_own else dataclasses.replace(program, closed=True)


def _raw(m: Maker, v: int) -> int:
    return m.add("output", "{0}", m.axes(v), v)


def _read_out(m: Maker, v: int) -> int:
    """Contracts all widths of a value with weights."""
    axes = m.axes(v)
    own = [a for a in axes if a != "b"]
    if not own:
        return m.add("output", "{0}", axes, v)
    if all(len(a) == 1 for a in axes):
        out = ["b", "o"] if "b" in axes else ["o"]
        equation = f'jnp.einsum({subscripts(axes, [*own, "o"])}->{"".join(out)}", {{0}}, {m.leaf(*own, "o")})'  # noqa: E501
        return m.add("output", equation, out, v)
    return m.add("output", f"{{0}} @ {m.leaf(own[-1], 'o')}", ["b", "o"], v)


def without_unused(program: Program) -> Program:
    """Returns a program without steps and weights that no output needs."""
    needed = set(range(len(program.steps) - program.outputs, len(program.steps)))
    for index in reversed(range(len(program.steps))):
        if index in needed:
            needed |= {*program.steps[index].args}
    new = {old: index for index, old in enumerate(sorted(needed))}
    steps = [
        dataclasses.replace(step, args=tuple(new[arg] for arg in step.args))
        for index, step in enumerate(program.steps)
        if index in needed
    ]
    program = dataclasses.replace(program, steps=tuple(steps))
    leaves = {name: program.leaves[name] for name in program.used}
    return dataclasses.replace(program, leaves=leaves)


# Growths ------------------------------------------------------------------------------------------

STRATEGIES: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "zero_outgoing": dw.strategies.zero_outgoing,
    "zeros": dw.strategies.zeros,
    "replicate": dw.strategies.replicate,
    "uneven": lambda: dw.strategies.replicate(split="uneven"),
    "zero_incoming": dw.strategies.zero_incoming,
    "tile": dw.strategies.tile,
}


@dataclasses.dataclass(frozen=True)
class Request:
    """How a program is to grow.

    Attributes:
        larger: new sizes by axis.
        strategy: a key of ``STRATEGIES``.
        by: ``"sizes"``, ``"target"`` (the larger model's shapes) or ``"apply"`` (its function).
        dtype: in which the program is traced and planned. It is evaluated in float64.
        fresh: whether new weights come from the larger model instead of being drawn.
    """

    larger: tuple[tuple[str, int], ...]
    strategy: str
    by: str
    dtype: str
    fresh: bool


def requests(program: Program, seed: int, most: int) -> Iterator[Request]:
    """Yields ways to grow a program: each width alone, and all together."""
    rng = random.Random(seed)
    axes = [a for a in program.widths if a in WIDTHS]
    outer = [a for a in program.widths if a in INTERFACE]
    sets: list[tuple[str, ...]] = [(a,) for a in axes]
    sets += [tuple(axes)] * (len(axes) > 1)
    sets = [s for s in sets for _ in range(2)]
    sets += [(a,) for a in outer if rng.random() < (0.8 if a == "v" else 0.1)]
    rng.shuffle(sets)
    seen: set[tuple[str, ...]] = set()
    for chosen in sets[:most]:
        more = rng.choice(["add", "add", "times"])
        larger = tuple(
            (a, program.sizes[a] + rng.randint(1, 3) if more == "add" else 2 * program.sizes[a])
            for a in chosen
        )
        strategy = "default"
        if chosen in seen or rng.random() < 0.3:
            strategy = rng.choice(
                ["zeros", "replicate", "uneven", "uneven", "zero_incoming", "tile", "zero_outgoing"]
            )
        seen.add(chosen)
        by = rng.choice(["sizes", "sizes", "target", "apply"])
        which = rng.random()
        dtype = "bfloat16" if which < 0.2 else "float32" if which < 0.4 else "float64"
        yield Request(larger, strategy, by, dtype, rng.random() < 0.4)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a growth ended, and what to say of it."""

    status: str
    detail: str = ""


FAILURES = ("WRONG", "NaN", "crash", "does not run")


def weights(
    program: Program, shapes: Mapping[str, tuple[int, ...]], seed: int, free: bool = False
) -> dict[str, Any]:
    """Random weights: free, or of the kind that each array asks for."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        w = rng.normal(size=shape)
        match "normal" if free else program.values[name]:
            case "positive":
                w = abs(w) + 0.1
            case "negative":
                w = -abs(w) - 0.1
            case "ones":
                w = np.ones(shape)
            case "zeros":
                w = np.zeros(shape)
            case "row":
                w[..., 0] = 0
            case "whole":
                w = np.round(2 * w)
            case "opposed":  # the second half along an axis is the first one with another sign
                axis = int(rng.integers(w.ndim))
                half = np.take(w, range(w.shape[axis] // 2), axis)
                rest = np.take(w, range(2 * (w.shape[axis] // 2), w.shape[axis]), axis)
                w = np.concatenate([half, -half, rest], axis)
        found[name] = jnp.asarray(w)
    return found


def inputs(program: Program, sizes: Mapping[str, int], seed: int, rows: str) -> tuple[Any, Any]:
    """Numbers [b, i] and words [b] that the old network knows. More features come behind its own.

    Args:
        program: the program.
        sizes: its sizes, or larger ones.
        seed: where random numbers begin.
        rows: one of ``ROWS``.
    """
    rng, b = np.random.default_rng(seed + 1), program.sizes["b"]
    x = rng.normal(size=(b, program.sizes["i"]))
    more = np.random.default_rng(3).normal(size=(b, sizes["i"] - program.sizes["i"]))
    x = np.concatenate([x, more], axis=1)
    t = rng.integers(0, program.sizes["v"], b)
    t[0] = program.sizes["v"] - 1  # the last word is the one that is special, if any is
    if program.positive:
        x = abs(x) + 0.1
    match rows:
        case "large":
            x = 1e3 * x
        case "one of zeros":
            x[0] = 0
        case "zeros":
            x = 0 * x
        case "equal":
            x[:], t[:] = x[0], t[0]
    return jnp.asarray(x), jnp.asarray(t, jnp.int32)


Outputs = dict[str, list[np.ndarray]]


def run(apply: Callable[..., Any], p: Any, xs: Mapping[str, tuple[Any, Any]]) -> Outputs:
    """Returns the outputs of a function of weights, for each of the inputs."""
    function = jax.jit(apply) if COMPILED else evaluated(apply, p, *xs["normal"])
    return {rows: [np.asarray(y) for y in function(p, *x)] for rows, x in xs.items()}


COMPILED = False


def outputs_of(program: Program, seed: int) -> Outputs | None:
    """The program's outputs for inputs of all kinds, if they are finite for normal ones."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            old = _old_outputs(program, seed, lambda array: array)
    except Exception as error:
        if STRICT:
            raise
        BROKEN[program.steps[-1].kind + ": " + str(error)[:200]] += 1
        return None
    return old if all(np.isfinite(y).all() and np.size(y) for y in old["normal"]) else None


def _old_outputs(program: Program, seed: int, near: Callable[[Any], Any]) -> Outputs:
    p = weights(program, program.shapes(program.sizes), seed)
    xs = {}
    for rows in ROWS:
        x, t = inputs(program, program.sizes, seed, rows)
        xs[rows] = near(x), t
    return run(program.apply(program.sizes), {name: near(w) for name, w in p.items()}, xs)


STRICT = False
BROKEN: collections.Counter[str] = collections.Counter()


def shapes_of(program: Program, dtype: str, seed: int) -> tuple[Any, Any, Any]:
    x, t = inputs(program, program.sizes, seed, "normal")
    p = weights(program, program.shapes(program.sizes), seed)
    p, x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.dtype(dtype)), (p, x))
    return p, x, t


def has_dtype(program: Program, dtype: str, seed: int) -> bool:
    """Whether JAX computes a program in a dtype; some functions have no bfloat16."""
    try:
        jax.eval_shape(program.apply(program.sizes), *shapes_of(program, dtype, seed))
    except Exception:
        return False
    return True


def traced(program: Program, dtype: str, seed: int) -> dw.Widths:
    return dw.trace(program.apply(program.sizes), *shapes_of(program, dtype, seed))


def planned(program: Program, request: Request, widths: dw.Widths, **other: Any) -> dw.Growth:
    sizes = {**program.sizes, **dict(request.larger)}
    strategy = STRATEGIES[request.strategy]()
    if strategy is not None:
        strategy = dict.fromkeys(changing(program, request, widths), strategy) or strategy
    arguments: dict[str, Any] = {
        "strategy": strategy,
        "interface": any(a in INTERFACE for a, _ in request.larger),
    }
    arguments |= other
    if request.by == "sizes":
        return dw.plan(widths, changing(program, request, widths), **arguments)
    big = {
        name: jax.ShapeDtypeStruct(s, jnp.dtype(request.dtype))
        for name, s in program.shapes(sizes).items()
    }
    if request.by == "apply":
        arguments["target_apply"] = program.apply(sizes)
    return dw.plan(widths, target=big, **arguments)


def changing(program: Program, request: Request, widths: dw.Widths) -> dict[str, int]:
    """The library's names of the widths that grow."""
    found = {}
    for name in program.used:
        for place, axis in enumerate(program.leaves[name]):
            for a, size in request.larger:
                if a == axis:
                    leaf = next(leaf for leaf in widths.leaves if leaf.path == name)
                    # Where an axis is cut into pieces, one of them grows: the last, which is at
                    # the end in outputs, too.
                    piece = _last(leaf.axes[place])
                    if piece is None:
                        raise ValueError("the axis is a product to the library")
                    found[piece] = widths[piece].size + size - program.sizes[a]
    if not found:
        raise ValueError("the width is part of axes only")
    return found


def _last(layout: Any) -> str | None:
    if isinstance(layout, dw.typing.Units):
        return layout.width
    return _last(layout.parts[-1]) if isinstance(layout, dw.typing.Concat) else None


def judge(
    program: Program,
    request: Request,
    seed: int,
    old: Outputs,
    widths: dw.Widths | None = None,
    **other: Any,
) -> Verdict:
    """Grows a program, and compares."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if widths is None:
                if not has_dtype(program, request.dtype, seed):
                    return Verdict("skipped", "the program has no such dtype")
                widths = traced(program, request.dtype, seed)
            try:
                growth = planned(program, request, widths, **other)
            except ValueError as error:
                return Verdict(_refused_by(error), str(error))
            noted = [note for note in growth.notes if "in the larger model" in note]
            if noted and request.by != "apply":
                return Verdict("another constant", "; ".join(noted))
            sizes = {**program.sizes, **dict(request.larger)}
            p = weights(program, program.shapes(program.sizes), seed)
            how: dict[str, Any] = {"key": jax.random.key(seed)}
            if request.fresh:
                shapes = growth.shapes | {edit.path: edit.shape for edit in growth.inserted}
                big = {name: shapes[name] for name in program.used}
                how = {"fresh": weights(program, big, seed + 7, free=True)}
            if COMPILED:
                grown = dw.grow(p, growth, **how)
            else:
                grown = evaluate(lambda p, how: dw.grow(p, growth, **how), p, how)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        name = last.filename.rpartition("/")[2]
        return Verdict(
            "crash", f"{type(error).__name__} at {name}:{last.lineno}: {str(error)[:150]}"
        )
    xs = {rows: inputs(program, sizes, seed, rows) for rows in ROWS}
    # A function that has closed over numbers may be the larger model's function itself.
    functions = [program.apply(sizes)]
    if program.closed and request.by != "apply":
        functions.append(program.apply(program.sizes))
    # Where arrays make up for the program's own numbers, they make up for the rounded ones.
    is_rounded = any("the larger model has" in note for note in growth.notes)
    tolerance = max(TOLERANCE, 8 * float(jnp.finfo(request.dtype).eps) * is_rounded)
    verdicts = [
        compared(program, seed, old, function, grown, xs, tolerance) for function in functions
    ]
    verdict = next((v for v in verdicts if v.status == "exact"), verdicts[0])
    if verdict.status == "NaN" and "fresh" in how:
        own = run(functions[0], how["fresh"], {"normal": xs["normal"]})
        if not all(np.isfinite(y).all() for y in own["normal"]):
            return Verdict("skipped", "the larger model itself is not finite")
    if verdict.status in FAILURES and program.closed and not program.is_recognized:
        if growth.evidence is not None and growth.evidence.assumes:
            return Verdict("numbers stay", growth.evidence.assumes)
    if verdict.status != "exact":
        return Verdict(verdict.status, f"{verdict.detail}; {growth!r} {growth.notes}")
    return verdict


def _refused_by(error: ValueError) -> str:
    """Says whether rules or the check have refused a growth, or nobody could be asked for it."""
    shown = [error, error.__cause__] if error.__cause__ else [error]
    files = [[f.filename for f in traceback.extract_tb(e.__traceback__)] for e in shown]
    if files[0][-1] == __file__:
        return "not asked"
    is_shown = any(name.endswith("shown.py") for names in files for name in names)
    return "refused by the check" if is_shown else "refused by rules"


def compared(
    program: Program,
    seed: int,
    old: Outputs,
    function: Any,
    grown: Any,
    xs: Any,
    tolerance: float,
) -> Verdict:
    """Compares the outputs of a grown network with the old ones, which come first in them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = run(function, grown, xs)
    except Exception as error:
        return Verdict("does not run", f"{type(error).__name__}: {str(error)[:150]}")
    nudged: Outputs = {}
    for rows in ROWS:
        for place, (a, b) in enumerate(zip(old[rows], new[rows])):
            if any(k < n for k, n in zip(b.shape, a.shape)) or a.ndim != b.ndim:
                return Verdict("does not run", f"an output {a.shape} became {b.shape}")
            b = b[tuple(slice(n) for n in a.shape)]
            off = _far(a, b, tolerance)
            if off.any():
                nudged = nudged or sensitivity(program, seed)
                by = nudged[rows][place] / _largest(a)
                off = _far(a, b, max(tolerance, 1e4 * _largest(by))) & (by <= 1e-4)
            if off.any():
                if not np.isfinite(b[off]).all():
                    return Verdict("NaN", f"where rows are {rows}")
                by = _largest((abs(a - b) / _largest(a))[off])
                return Verdict("WRONG", f"by {by:.1e} where rows are {rows}")
    return Verdict("exact")


def _largest(a: np.ndarray) -> float:
    """The largest absolute value, one if all are zero."""
    return float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a))) or 1.0


def _far(a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray:
    """Where outputs are finite and move by more than a share of the largest."""
    with np.errstate(all="ignore"):
        return np.isfinite(a) & ~(np.abs(a - b) <= tolerance * _largest(a))


def sensitivity(program: Program, seed: int) -> Outputs:
    """How much outputs move when all numbers move by rounding: much where a program jumps."""
    old, moved = _old_outputs(program, seed, lambda array: array), {}
    for k in range(2):
        noise = np.random.default_rng(k)
        near = lambda w: w * (1 + 1e-15 * noise.normal(size=w.shape))  # noqa: B023, E731
        for rows, outputs in _old_outputs(program, seed, near).items():
            by = [np.nan_to_num(abs(b - a), nan=np.inf) for a, b in zip(old[rows], outputs)]
            moved[rows] = list(map(np.maximum, moved.get(rows, by), by))
    return moved


# Shorter programs ---------------------------------------------------------------------------------


def shortened(
    program: Program, request: Request, seed: int, fails: Callable[..., bool]
) -> tuple[Program, Request]:
    """Returns the shortest program and the simplest request that fail in the same way."""
    found = True
    while found:
        found = False
        for shorter, simpler in _shorter(program, request):
            try:
                if fails(shorter, simpler):
                    program, request, found = shorter, simpler, True
                    break
            except Exception:  # a program that does not run is no program
                continue
    return program, request


def _shorter(program: Program, request: Request) -> Iterator[tuple[Program, Request]]:
    replace = dataclasses.replace
    if program.outputs > 1:
        last = len(program.steps) - 1
        yield without_unused(replace(program, steps=program.steps[:-1], outputs=1)), request
        yield (
            without_unused(
                replace(program, steps=(*program.steps[:-2], program.steps[last]), outputs=1)
            ),
            request,
        )
    end = len(program.steps) - program.outputs
    for index in reversed(range(end)):
        step = program.steps[index]
        for arg in step.args:
            if program.steps[arg].axes == step.axes:
                yield _instead(program, index, Step("same", "{0}", (arg,), step.axes)), request
        axes = step.axes
        if step.kind not in ("lift", "parameter") and simple(axes):
            name = f"u{index}"
            if axes[:1] == ("b",) and len(axes) > 1:
                own = "".join(axes[1:])
                new = Step("lift", f'jnp.einsum("bi,i{own}->b{own}", x, p["{name}"])', (), axes)
                leaf: tuple[str, ...] = ("i", *axes[1:])
            elif "b" not in axes and axes:
                new, leaf = Step("parameter", f'p["{name}"]', (), axes), axes
            else:
                continue
            other = replace(
                program,
                leaves={**program.leaves, name: leaf},
                values={**program.values, name: "positive" if program.positive else "normal"},
            )
            yield _instead(other, index, new), request
    if len(request.larger) > 1:
        for k in range(len(request.larger)):
            yield program, replace(request, larger=request.larger[:k] + request.larger[k + 1 :])
    for name, kind in program.values.items():
        if kind not in ("normal", "positive") and name in program.leaves:
            yield replace(program, values={**program.values, name: "normal"}), request
    if program.positive:
        values = dict.fromkeys(program.values, "normal")
        yield replace(program, positive=False, values=values), request
    if program.closed and program.is_own:
        yield replace(program, closed=False), request
    if request.dtype != "float64":
        yield program, replace(request, dtype="float64")
    if request.fresh:
        yield program, replace(request, fresh=False)
    if request.by != "sizes" and not program.closed:
        yield program, replace(request, by="sizes")
    if request.by == "apply" and not program.closed:
        yield program, replace(request, by="target")
    if request.strategy not in ("default", "zeros"):
        yield program, replace(request, strategy="default")
    if request.strategy == "uneven":
        yield program, replace(request, strategy="replicate")


def _instead(program: Program, index: int, step: Step) -> Program:
    """Returns a program with another step, which is dropped if it passes a value on."""
    steps = list(program.steps)
    if step.kind != "same":
        steps[index] = step
        return without_unused(dataclasses.replace(program, steps=tuple(steps)))
    (instead,) = step.args
    steps = [
        dataclasses.replace(s, args=tuple(instead if a == index else a for a in s.args))
        for s in steps
    ]
    return without_unused(dataclasses.replace(program, steps=tuple(steps)))


# Reports ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Failure:
    seed: int
    program: Program
    request: Request
    verdict: Verdict

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it is a failure of: operations that have to be there, and how it grew."""
        common = {"lift", "parameter", "output", "dense"}
        kinds = sorted({step.kind for step in self.program.steps} - common)
        many = "together" if len(self.request.larger) > 1 else "alone"
        return (self.verdict.status, self.request.strategy, many, self.request.by, *kinds)

    def __str__(self) -> str:
        p = self.program
        sizes = {a: n for a, n in p.sizes.items() if a in {*p.widths, *p.numbers, "b", "i"}}
        values = {n: p.values[n] for n in p.used if p.values[n] != "normal"}
        shapes = {name: "x".join(axes) for name, axes in p.leaves.items() if name in p.used}
        return (
            f"{self.verdict.status} (seed {self.seed}): {self.verdict.detail}\n{p.source()}\n"
            f"# leaves {shapes}, sizes {sizes}, values {values or 'normal'}"
            f"{', positive' * p.positive}\n# {self.request}\n"
        )


def cases(
    seed: int, most: int, is_large: bool = False
) -> Iterator[tuple[Program, Outputs, Request]]:
    program = make(seed, is_large)
    old = outputs_of(program, seed)
    if old is not None:
        for request in requests(program, seed, most):
            yield program, old, request


def failure(seed: int, program: Program, request: Request, verdict: Verdict) -> Failure:
    """Returns a failure with the shortest program."""

    def fails(program: Program, request: Request) -> bool:
        if {a for a, _ in request.larger} - {*program.widths} or not (
            program.closed or program.is_own
        ):
            return False
        old = outputs_of(program, seed)
        return old is not None and judge(program, request, seed, old).status == verdict.status

    program, request = shortened(program, request, seed, fails)
    old = outputs_of(program, seed)
    assert old is not None
    return Failure(seed, program, request, judge(program, request, seed, old))


def explains(kinds: tuple[str, ...], program: Program, request: Request, verdict: Verdict) -> bool:
    """Whether a failure probably is of a kind that was seen several times."""
    status, strategy, many, _, *steps = kinds
    together = "together" if len(request.larger) > 1 else "alone"
    if (status, strategy) != (verdict.status, request.strategy) or "alone" not in (many, together):
        return False
    return {*steps} <= {step.kind for step in program.steps} and bool(steps)


def judge_compiled(failed: Failure) -> Verdict:
    """Repeats a failure with compiled programs instead of NumPy."""
    global COMPILED
    COMPILED = True
    try:
        old = outputs_of(failed.program, failed.seed)
        return (
            Verdict("NaN before")
            if old is None
            else judge(failed.program, failed.request, failed.seed, old)
        )
    finally:
        COMPILED = False


def main(first: int, count: int, is_large: bool = False, most: int = 6) -> None:
    tally: collections.Counter[str] = collections.Counter()
    exercised: collections.Counter[str] = collections.Counter()
    found: dict[tuple[str, ...], list[Failure]] = {}
    for seed in range(first, first + count):
        if seed % 50 == 0 and seed > first:
            print(f"seeds {first} to {seed - 1}: {dict(sorted(tally.items()))}", flush=True)
            jax.clear_caches()  # each growth leaves programs in them
            gc.collect()
        for program, old, request in cases(seed, most, is_large):
            verdict = judge(program, request, seed, old)
            tally[verdict.status] += 1
            exercised.update({step.kind for step in program.steps})
            if verdict.status in FAILURES:
                known = [kinds for kinds, failures in found.items() if len(failures) > 1]
                known = [kinds for kinds in known if explains(kinds, program, request, verdict)]
                if known:
                    found[known[0]].append(found[known[0]][0])
                    continue
                failed = failure(seed, program, request, verdict)
                if failed.kinds not in found:
                    print(failed, flush=True)
                    compiled = judge_compiled(failed)
                    if compiled.status != verdict.status:
                        print(f"# compiled by JAX, it is {compiled}\n", flush=True)
                found.setdefault(failed.kinds, []).append(failed)
    print("\nBy kind, the commonest first:")
    for kinds, failures in sorted(found.items(), key=lambda item: -len(item[1])):
        print(f"{len(failures):4} {' '.join(kinds)}")
    print(dict(tally), f"{len(exercised)} kinds of operations")
    if BROKEN:
        print("programs that do not run:", BROKEN.most_common(9))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(int(sys.argv[1]), int(sys.argv[2]), is_large=sys.argv[3:] == ["large"])
