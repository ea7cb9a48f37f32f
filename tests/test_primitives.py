"""Every rule has an example, and every example keeps the laws.

The examples are in ``primitive_examples_*``.
"""

import csv
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import primitive_examples_axes  # noqa: F401, for their examples
import primitive_examples_control  # noqa: F401
import primitive_examples_sums  # noqa: F401
import pytest
from primitive_examples import EXAMPLES, Example, X
from primitive_examples_elementwise import BINARY, UNARY, WHOLE, primitive_of

import dogwood_jax as dw
from dogwood_jax._program.interpret import evaluated as evaluated_eqn
from dogwood_jax._program.primitives.entries import OfEntries, folded
from dogwood_jax._program.primitives.table import PRIMITIVES, axes_of, is_linear, primitive
from dogwood_jax._program.subprograms import equations

strategies = dw.strategies
ENTRIES = {name: record for name, record in PRIMITIVES.items() if record.is_of_entries}
READ = {name for name, record in PRIMITIVES.items() if record.read}
STATE = Path(__file__).parents[1] / "docs/results/state.csv"

STRATEGIES: dict[str, dict[str, Any]] = {
    "default": {},
    "zeros": {"strategy": strategies.zeros()},
    "replicate": {"strategy": strategies.replicate(split="uneven")},
    # For widths under a norm, which can grow no other way.
    "zero_incoming": {"strategy": strategies.zero_incoming()},
    "tile": {"strategy": strategies.tile()},
}

# One network around a function is enough for laws that do not depend on what is around it.
AROUND = "summed in_heads twice a_norm in_bfloat16 with_itself themselves crosswise".split()
PLAIN = [name for name in EXAMPLES if not name.endswith(tuple(f"_{place}" for place in AROUND))]
# Functions of each kind of law, which stand in all networks.
FEW = "tanh abs sqrt sign integer_pow exp add mul div max select_n lt".split()
OF_FEW = [f"{function}_" for function in FEW]

# Whose networks take long to compile.
RARE = set(
    "cholesky eig eigh hessenberg householder_product lu lu_pivots_to_permutation qr random_gamma "
    "schur svd triangular_solve tridiagonal tridiagonal_solve geqrf geqp3 ormqr random_seed "
    "igamma igamma_grad_a igammac regularized_incomplete_beta unvmap_max unvmap_any "
    "rng_bit_generator select_if_vmap ragged_dot_general select_and_scatter_add".split()
)
# Which most networks are made of.
CORE = ("dot_general", "reshape")
FIRST = {primitive: name for name in reversed(EXAMPLES) for primitive in EXAMPLES[name].reaches}
ENTRIES_ALONE = [n for n in EXAMPLES if EXAMPLES[n].apply.__module__.endswith("_elementwise")]
STRUCTURAL = [n for n in EXAMPLES if not EXAMPLES[n].apply.__module__.endswith("_elementwise")]


def of_few(names: Iterable[str]) -> list[str]:
    """Returns those of networks around a function that are around one of a few."""
    return [name for name in names if name.startswith(tuple(OF_FEW))]


def by_primitive(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns examples by the primitive that they are of."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(EXAMPLES[name].reaches[0], []).append(name)
    return found


def cases(law: str, arguments: Iterable[tuple[str, ...]], *, long: bool = False) -> list[Any]:
    """Returns the cases of a law, in groups: what one primitive compiles is compiled once."""
    marks = [pytest.mark.long] * long

    def group(name: str) -> str:
        return EXAMPLES[name].reaches[0] if name in EXAMPLES else law

    return [
        pytest.param(*case, marks=[*marks, pytest.mark.xdist_group(group(case[-1]))])
        for case in arguments
    ]


@functools.cache
def reached(name: str) -> frozenset[str]:
    """The primitives in an example's program and in all programs within it."""
    example = EXAMPLES[name]
    program = jax.make_jaxpr(example.apply)(example.structs(), *example.arguments())
    return frozenset(_primitives(program.jaxpr))


def _primitives(jaxpr: Any) -> Iterator[str]:
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                if isinstance(item, jex.ClosedJaxpr | jex.Jaxpr):
                    yield from _primitives(getattr(item, "jaxpr", item))


@functools.cache
def traced(name: str) -> dw.Widths:
    example = EXAMPLES[name]
    return dw.trace(example.apply, example.structs(), *example.arguments())


@functools.cache
def outputs(name: str) -> tuple[Any, ...]:
    example = EXAMPLES[name]
    found = jax.tree.leaves(example.apply(example.parameters(), *example.arguments()))
    assert all(np.isfinite(y).all() for y in found), "an example must be finite before it grows"
    return tuple(np.asarray(y) for y in found)


def growable(name: str, times: bool = False) -> dict[str, int]:
    """A larger size of each width that can grow, but inputs and outputs without a named size."""
    example = EXAMPLES[name]
    named = {place for size in example.sizes for place in _places(example, size)}
    return {
        width.name: width.size * 2 if times else width.size + 2
        for width in traced(name).values()
        if not width.fixed
        if not width.interface or named & {(o.path, o.axis) for o in width.occurrences}
    }


def _places(example: Example, name: str) -> set[tuple[str, int]]:
    """The axes of arrays that depend on a size."""
    before, after = example.shapes(), example.shapes(**{name: example.sizes[name] + 1})
    return {(k, a) for k in before for a, n in enumerate(before[k]) if n != after[k][a]}


def requests(name: str, times: bool = False) -> Iterator[dict[str, int]]:
    """Yields what is asked for: each width alone, and all together."""
    sizes = growable(name, times)
    yield from ({name: size} for name, size in sizes.items())
    if len(sizes) > 1:
        yield sizes


def sizes_like(example: Example, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Returns the sizes of an example with which it has these shapes, if there are any."""
    sizes = example.sizes
    for more in (5, 9):  # few first, because there may be many sizes
        choices = [range(size, size + more) for size in sizes.values()]
        for chosen in itertools.product(*choices):
            larger = dict(zip(sizes, chosen))
            if dict(example.shapes(**larger)) == dict(shapes):
                return larger
    return None


# Coverage -----------------------------------------------------------------------------------------


def test_every_primitive_has_an_example() -> None:
    covered = {primitive for example in EXAMPLES.values() for primitive in example.reaches}
    assert READ - covered == set(), "primitives without an example"


def test_every_primitive_of_an_example_is_read() -> None:
    assert {p for e in EXAMPLES.values() for p in e.reaches} <= READ


@pytest.mark.parametrize("primitive", by_primitive(EXAMPLES))
def test_examples_reach_their_primitives(primitive: str) -> None:
    names = by_primitive(PLAIN)[primitive]
    missing = {name: {*EXAMPLES[name].reaches} - reached(name) for name in names}
    assert not any(missing[name] for name in names if not EXAMPLES[name].somewhere), missing


HALVE = jex.Primitive("halve")
HALVE.def_impl(lambda a: a / 2)
HALVE.def_abstract_eval(lambda a: a)


def halved(p: Any, x: Any) -> Any:
    return jnp.tanh(HALVE.bind(x @ p["up"])) @ p["down"]


def test_a_primitive_is_added_by_one_description(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read, evaluated without JAX, and grown through; without it, the width is fixed."""
    params = {"up": jnp.ones((5, 4)), "down": jnp.ones((4, 2))}
    with pytest.raises(dw.Refused, match="passes through the primitive halve"):
        dw.plan(dw.trace(halved, params, X), {"up": 6})
    halve = OfEntries(lambda a: a / 2, linear=True)
    monkeypatch.setitem(PRIMITIVES, "halve", halve)
    widths = dw.trace(halved, params, X)
    wide = dw.grow(params, dw.plan(widths, {"up": 6}), key=jax.random.key(0))
    assert wide["up"].shape == (5, 6)
    np.testing.assert_allclose(halved(wide, X), halved(params, X), 1e-12)
    monkeypatch.setattr(halve, "evaluate", lambda a, **_: a * a.shape[-1])
    assert "times 0.666667" in f"{dw.plan(widths, {'up': 6})}"  # which makes up for 6 / 4


# Growth -------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("primitive", [*by_primitive(PLAIN)][::4])
def test_dimensions_hold_in_a_second_size(primitive: str) -> None:
    """Axes of one width have one size in whatever sizes the network runs, and others need not."""
    for name in by_primitive(PLAIN)[primitive]:
        example = EXAMPLES[name]
        old = [y.shape for y in outputs(name)]
        for sizes in requests(name):
            try:
                growth = dw.plan(traced(name), sizes, strategy=strategies.random(), interface=True)
            except ValueError:
                continue
            larger = sizes_like(example, growth.shapes)
            assert larger is not None, f"{name}: {sizes}: no such sizes: {growth.shapes}"
            arguments = example.structs(**larger), *example.arguments(**larger)
            found = jax.eval_shape(example.apply, *arguments)
            if not any(traced(name)[width].interface for width in sizes):
                shapes = [y.shape for y in jax.tree.leaves(found)]
                assert shapes == old, f"{name}: {sizes}: outputs change shape"


# How JAX writes programs differs between its versions, and so what can be shown of them.
IS_RECORDED = jax.__version_info__[:2] == (0, 10)


@functools.cache
def recorded() -> dict[str, str]:
    """What became of growths by default when ``state.py`` ran them last."""
    with STATE.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[0].startswith("primitive, ")]
    return {what: outcome for _, what, outcome, _ in rows}


def fresh(name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """New parameters, without regard to the ranges of old ones; to draw them compiles for long.

    Scales, which are ones in a new network, are positive.
    """
    random = np.random.default_rng(1)
    scales = {leaf.path for leaf in traced(name).leaves if leaf.kind == "ones"}
    found = {}
    for k, struct in EXAMPLES[name].structs(**sizes).items():
        numbers = random.normal(0, 0.5, struct.shape).astype(struct.dtype)
        found[k] = np.abs(numbers).astype(struct.dtype) if k in scales else numbers
    return found


def growing() -> Iterator[Any]:
    """Yields what grows how: examples of one primitive in each case."""
    first = [name for of, name in FIRST.items() if of not in RARE]
    core = by_primitive(STRUCTURAL)["reshape"]
    between = [name for name in of_few(ENTRIES_ALONE) if name.endswith("_between")]
    normed = [name for name in EXAMPLES if "_a_norm" in name]
    short = {
        "default": [*dict.fromkeys([*first[::3], *core[::2], *between[::3]])],
        "replicate": [name for name in first if EXAMPLES[name].reaches[0] in CORE],
        "zeros": of_few(first)[::4],
        "zero_incoming": of_few(normed)[::4],
        "tile": of_few(normed)[::6],
    }
    others = [name for name in PLAIN if name not in first]
    long = {
        "zeros": [name for name in of_few(first)[::2] if name not in short["zeros"]],
        "zero_incoming": [n for n in of_few(normed)[::2] if n not in short["zero_incoming"]],
        "tile": [name for name in of_few(normed)[::2] if name not in short["tile"]],
        "default": [n for n in dict.fromkeys([*first, *others[::4]]) if n not in short["default"]],
        "replicate": [name for name in first if name in STRUCTURAL][::2],
    }
    for tier, growths in ("short", short), ("long", long):
        for how, names in growths.items():
            for one, group in by_primitive(names).items():
                marks = [*[pytest.mark.long] * (tier == "long"), pytest.mark.xdist_group(one)]
                yield pytest.param(how, group, marks=marks, id=f"{how}-{one}-{tier}")


@pytest.mark.parametrize(("how", "names"), [*growing()])
def test_growth_is_exact(how: str, names: list[str]) -> None:
    """Whatever plan does not refuse leaves outputs as they were, and finite."""
    problems = {}
    for name in names:
        for sizes in requests(name, how == "tile"):
            interface = any(traced(name)[width].interface for width in sizes)
            what = f"{name}: {sizes}"
            try:
                growth = dw.plan(traced(name), sizes, interface=interface, **STRATEGIES[how])
            except ValueError as error:
                if how == "default" and IS_RECORDED and recorded().get(what) == "exact":
                    problems[what] = f"was exact, and is refused: {error}"
            else:
                if far := moved(name, growth):
                    problems[what] = far
    assert problems == {}


def moved(name: str, growth: dw.Growth) -> str:
    """Says how outputs of an example have changed, nothing if they have not."""
    example, sizes = EXAMPLES[name], sizes_like(EXAMPLES[name], growth.shapes)
    if sizes is None:
        return f"the network has no such sizes: {growth.shapes}"
    # One operation after the other: what is compiled serves other examples, too.
    grown = dw.grow(example.parameters(), growth, fresh=fresh(name, sizes))
    found = jax.tree.leaves(example.apply(grown, *example.arguments(**sizes)))
    for new, old in zip(found, outputs(name), strict=True):
        new = np.asarray(new)[tuple(map(slice, old.shape))]
        if far := _moved(new, old, example.rounding):
            return far
    return ""


def _moved(new: Any, old: Any, rounding: float) -> str:
    """Says by how much outputs have moved, relative to the largest in their row."""
    if new.shape != old.shape:
        return f"shape {old.shape} has become {new.shape}"
    if not np.isfinite(new).all():
        return "not finite"
    wide = np.complex128 if np.iscomplexobj(old) else np.float64
    scale = np.abs(old.astype(wide)).max(axis=-1 if old.ndim > 1 else None, keepdims=True)
    moved = np.abs(new.astype(wide) - old.astype(wide)) / np.maximum(scale, 1e-300)
    return f"moved by {moved.max():.1e}" if moved.max() > rounding else ""


# Facts --------------------------------------------------------------------------------------------

DTYPES = {"float64": jnp.float64, "bfloat16": jnp.bfloat16, "complex128": jnp.complex128}
NUMBERS = np.array(
    [0, -0.0, 1, -1, 0.5, -0.5, 2, -3, 1e-3, 40, -40, 1e300, np.inf, -np.inf, np.nan]
)


def evaluated(name: str, dtype: Any, *arrays: Any) -> np.ndarray:
    """Returns what a function of ``UNARY`` or ``BINARY`` makes of arrays, where it takes them."""
    function = (UNARY if len(arrays) == 1 else BINARY)[name][0]
    try:
        result = function(*(jnp.asarray(x, dtype) for x in arrays))
    except (TypeError, Warning):  # such as that imaginary parts are dropped
        pytest.skip(f"{name} does not take {dtype.__name__}")
    wide = np.complex128 if jnp.iscomplexobj(result) else np.float64
    return np.asarray(result).astype(wide)


def domain(name: str, dtype: Any, seed: int = 0) -> np.ndarray:
    """Returns numbers in the domain of a function, complex ones if its dtype is."""
    random = np.random.default_rng(seed)
    _, low, high = UNARY[name]
    x = random.uniform(low, high, 20)
    return x + 1j * random.uniform(-0.1, 0.1, 20) if dtype is jnp.complex128 else x


def entries(*primitives: str) -> list[str]:
    """Returns the functions of ``UNARY`` that are of these primitives."""
    return [name for name in UNARY if primitive_of(name) in primitives and name not in WHOLE]


LAWS = {name: law for name, law in ENTRIES.items() if law.takes == 1 or law.same}
LINEAR = entries(*(name for name, law in LAWS.items() if law.linear))
FLOATS = [
    *"abs acos acosh add asin asinh atan atan2 atanh cbrt ceil clamp cos cosh div eq erf".split(),
    *"erfc exp exp2 expm1 floor ge gt is_finite le log log1p logistic lt max min mul ne".split(),
    *"neg pow rsqrt sign sin sinh sqrt square sub tan tanh".split(),
    *(["log2"] if hasattr(jax.lax, "log2") else []),
]


@pytest.mark.parametrize(("dtype", "name"), cases("linear", itertools.product(DTYPES, LINEAR)))
def test_what_is_linear_is_known(dtype: str, name: str) -> None:
    """All of these are linear, but those with a cast to integers or a comparison."""
    a, b = (domain(name, DTYPES[dtype], seed) for seed in (1, 2))
    f = functools.partial(evaluated, name, DTYPES[dtype])
    rounding = 0.05 if dtype == "bfloat16" or name == "reduce_precision" else 1e-6
    found = np.concatenate([f(a + b), f(0.3 * a)])
    expected = np.concatenate([f(a) + f(b), 0.3 * f(a)])
    program = jax.make_jaxpr(UNARY[name][0])(jnp.asarray(a, DTYPES[dtype])).jaxpr
    said = all(
        is_linear(eqn.primitive.name, eqn.params)
        for eqn in program.eqns
        if eqn.primitive.name not in ("mul", "complex")  # which make complex numbers of reals
    )
    assert said == np.allclose(found, expected, rounding, rounding)


@pytest.mark.parametrize("name", cases("fold", ((name,) for name in FLOATS)))
def test_folded_numbers_are_what_jax_computes(name: str) -> None:
    """Numbers that tracing knows are those that the program computes, whatever the numbers."""
    primitive = getattr(jax.lax, name, None) or getattr(jnp, name, None) or UNARY[name][0]
    count = ENTRIES[name].takes
    (eqn,) = jax.make_jaxpr(primitive)(*[np.float64(0.5)] * count).eqns
    wrong = []
    for numbers in itertools.product(NUMBERS.tolist()[:: 1 if count < 3 else 3], repeat=count):
        found = folded(eqn, numbers)
        expected = float(primitive(*(np.float64(n) for n in numbers)))
        if name == "pow" and numbers == (-np.inf, 0.5):  # of which NumPy takes the square root
            continue
        if found is None or not np.isclose(found, expected, 1e-12, 0, equal_nan=True):
            wrong.append((numbers, found, expected))
    assert not wrong


def test_integers_are_folded_as_integers() -> None:
    for function, expected in ((jax.lax.div, 2.0), (jnp.bitwise_and, 2.0)):
        (eqn,) = jax.make_jaxpr(function)(jnp.int32(7), jnp.int32(3)).eqns
        assert folded(eqn, (6.0, 3.0)) == expected


def _with_axes() -> dict[str, Any]:
    """Returns one equation for each primitive of the examples whose axes have names."""
    ones = jax.make_jaxpr(lambda x: jnp.reshape(x, (2, 1, 3)))(jnp.ones((2, 3)))
    found = {eqn.primitive.name: eqn for eqn in ones.eqns}
    for example in EXAMPLES.values():
        if any(primitive(name).axes and name not in found for name in example.reaches):
            program = jax.make_jaxpr(example.apply)(example.structs(), *example.arguments())
            for eqn in equations(program.jaxpr):
                record = primitive(eqn.primitive.name)
                is_float = all(jnp.issubdtype(atom.aval.dtype, np.inexact) for atom in eqn.invars)
                if record.axes and not record.same and is_float and _axes(eqn) is not None:
                    found.setdefault(eqn.primitive.name, eqn)
    return found


def _axes(eqn: Any) -> Any:
    *operands, result = (atom.aval.shape for atom in (*eqn.invars, eqn.outvars[0]))
    return axes_of(eqn.primitive.name, eqn.params, operands, result)


def test_axes_of_one_name_are_the_same() -> None:
    """Entries in another order along a name are in that order in the result, or are summed."""
    rng, checked = np.random.default_rng(0), set[str]()
    for name, eqn in _with_axes().items():
        arrays = [rng.uniform(0.2, 0.8, a.aval.shape).astype(a.aval.dtype) for a in eqn.invars]
        axes, before = _axes(eqn), np.asarray(evaluated_eqn(eqn, arrays)[0])
        named = [each for side in (*axes.operands, axes.result) for each in side]
        in_result = frozenset[str]().union(*axes.result)
        for one in frozenset[str]().union(*(each for each in named if len(each) == 1)):
            # Windows move along space, and of groups only whole ones have another order.
            is_grouped = any(one in each and len(each) > 1 for each in named)
            is_place = one.startswith(("#", "1 ", "new", "space", "window"))
            if is_grouped or is_place or (name.startswith("arg") and one not in in_result):
                continue
            order = None

            def moved(array: Any, side: Any, one: str = one) -> Any:
                nonlocal order
                for axis, each in enumerate(side):
                    if one in each:
                        order = rng.permutation(array.shape[axis]) if order is None else order
                        array = np.take(array, order, axis)
                return array

            after = evaluated_eqn(eqn, [*map(moved, arrays, axes.operands)])[0]
            expected = moved(before, axes.result)
            np.testing.assert_allclose(after, expected, 1e-5, 1e-5, err_msg=f"{name}: {one}")
            checked.add(name)
    moves = {"broadcast_in_dim", "reshape", "squeeze", "transpose"}
    sums = {"conv_general_dilated", "dot_general", "reduce_sum", "reduce_max", "argmax"}
    assert checked >= moves | sums | {"mul", "tanh"}


# Functions that are not finite, or not of finite slope, everywhere. Zero weights do not silence
# what is not finite.
PARTIAL = frozenset(
    "acos acosh asin atanh cbrt cholesky digamma div erf_inv igamma igamma_grad_a igammac "
    "integer_pow lgamma log log1p log2 polygamma pow regularized_incomplete_beta rem rsqrt sqrt "
    "triangular_solve tridiagonal_solve zeta".split()
)
PARTLY_FINITE = [name for name in PLAIN if not PARTIAL.isdisjoint(EXAMPLES[name].reaches)]


FIRST_PARTLY_FINITE = [names[0] for names in by_primitive(PARTLY_FINITE).values()]
SOME_PARTLY_FINITE = [n for n in PARTLY_FINITE if n not in FIRST_PARTLY_FINITE][::2]


@pytest.mark.parametrize(
    "name",
    [
        *cases("insert", ((name,) for name in FIRST_PARTLY_FINITE)),
        *cases("insert", ((name,) for name in SOME_PARTLY_FINITE), long=True),
    ],
)
def test_inserted_networks_change_nothing(name: str) -> None:
    """Whatever deepen inserts beside a layer leaves outputs as they were, for rows of zeros, too.

    JAX runs the deeper network on inputs that ``deepen`` was not given.
    """
    example = EXAMPLES[name]
    old = {"layer": np.random.default_rng(0).normal(size=(5, 2))}

    def apply(p: Any, x: Any, *_: Any) -> Any:
        return x @ p["layer"]

    def deeper(p: Any, x: Any, *inputs: Any) -> Any:
        found = jax.tree.leaves(example.apply(p, *inputs))
        return apply(p, x) + sum(jnp.real(y).astype(float).sum() for y in found)

    inputs = (X, *example.arguments())
    try:
        new = dw.deepen(
            old,
            old | example.structs(),
            apply=apply,
            target_apply=deeper,
            inputs=inputs,
            key=jax.random.key(0),
            verify=False,  # the evaluation alone must refuse
        )
    except ValueError as refusal:
        assert re.match("cannot (plan this growth|show that the deeper network)", str(refusal))
        return
    others = [_with_rows_of_zeros(x) for x in inputs]
    np.testing.assert_allclose(deeper(new, *others), apply(old, *others), 1e-9, 1e-9)


def _with_rows_of_zeros(x: Any) -> Any:
    """Returns inputs in which every second row is zero, and the others have another sign."""
    x = np.array(x)
    if x.ndim and x.dtype.kind == "f":
        x[::2], x[1::2] = 0, -x[1::2]
    return x


# What may become of units h, and of f(h), with new arrays that make it change nothing.
DEEPER: dict[str, Callable[..., Any]] = {
    "branch": lambda f, p, h: h + f(h @ p["w"]) @ p["w2"],
    "factor": lambda f, p, h: h * f(p["s"])[None],
    "shift": lambda f, p, h: h + f(p["s"])[None],
    "again": lambda f, p, h: f(f(h) @ p["w"]),
}
NEW_ARRAYS = {"branch": ("w", "w2"), "factor": "s", "shift": "s", "again": "w"}


FOLDED_UNARY = [name for name in UNARY if primitive_of(name) in FLOATS]
SHORT_UNARY = [name for name in UNARY if name in FEW]
LONG_UNARY = [name for name in FOLDED_UNARY if name not in FEW][::2]
DEEPER_ONCE = "branch", "factor", "shift"
ONCE_ONLY = ("complex", "conj")  # they do not take what they return


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *cases("deepen", (("again", n) for n in UNARY if n in FEW)),
        *cases("deepen", (("again", n) for n in LONG_UNARY if n not in ONCE_ONLY), long=True),
        *cases("deepen", itertools.product(DEEPER_ONCE, SHORT_UNARY)),
        *cases("deepen", itertools.product(DEEPER_ONCE, LONG_UNARY), long=True),
    ],
)
@pytest.mark.filterwarnings("ignore:verify cannot tell")  # of functions that are constant
def test_deepening_is_exact(how: str, name: str) -> None:
    """Whatever deepen does not refuse leaves outputs as they were, and finite."""
    function = UNARY[name][0]
    example = EXAMPLES[f"{name}_between"]
    of_function = how == "again"

    def apply(p: Any, x: Any) -> Any:
        h = x @ p["i"]
        return (function(h) if of_function else h) @ p["o"]

    def deeper(p: Any, x: Any) -> Any:
        return DEEPER[how](function, p, x @ p["i"]) @ p["o"]

    new = {"w": (4, 4), "w2": (4, 4), "s": (4,)}
    new = {k: jax.ShapeDtypeStruct(new[k], float) for k in NEW_ARRAYS[how]}
    old = example.parameters()
    try:
        found = dw.deepen(
            old,
            example.structs() | new,
            apply=apply,
            target_apply=deeper,
            inputs=example.arguments(),
            key=jax.random.key(0),
        )
    except ValueError as refusal:
        # Both programs were taken to compute the same, until they were run.
        assert "please report" not in str(refusal), refusal
        return
    before, after = (np.asarray(f(p, X)) for f, p in ((apply, old), (deeper, found)))
    assert not _moved(after, before, example.rounding)
