"""The sizes that the shapes of a larger model tell, and what is said where they do not tell."""

import ast
import re
from math import prod

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import dogwood_jax as dw
from dogwood_jax._plan import target as _target
from dogwood_jax._widths import layout as _layout
from dogwood_jax._widths.widths import Facts
from dogwood_jax.typing import Concat, Leaf, Product, Units


def units(name, size):
    return Units(name, size, "incoming")


def times(*parts):
    return Product(parts)


def joined(*parts):
    return Concat(parts)


def make(sizes, arrays, fixed=()):
    """Returns widths of these sizes in arrays given by the layout of each axis."""
    leaves = tuple(
        Leaf(path, tuple(map(_layout.size_of, axes)), axes) for path, axes in arrays.items()
    )
    facts = {name: Facts(size, fixed="sorted" if name in fixed else None) for name, size in sizes}
    return dw.Widths(leaves, tuple(facts.items()))


def shaped(**shapes):
    return {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in shapes.items()}


def target_of(widths, **sizes):
    """Returns the shapes of the model in which some widths have other sizes."""
    return shaped(
        **{
            leaf.path: tuple(_layout.size_of(layout, sizes) for layout in leaf.axes)
            for leaf in widths.leaves
        }
    )


def sizes_in(growth):
    return {change.width: change.new for change in growth.changes}


def found(widths, sizes=None, **options):
    """Returns the sizes of the widths that grow; none if ``plan`` says that nothing grows."""
    try:
        return sizes_in(dw.plan(widths, sizes, **options))
    except ValueError as error:
        if not str(error).startswith("plan: nothing grows: "):
            raise
        return {}


def problems(widths, target, **arguments):
    """Returns the problems that the target gives, each with its thoughts on one line."""
    with pytest.raises(ValueError) as error:
        dw.plan(widths, target=target, **arguments)
    first, *problems = str(error.value).replace("\n  ", "; ").split("\n- ")
    assert first == "cannot plan this growth:"
    return problems


def choices(line):
    """Returns the choices that a line shows, and how many there are in all."""
    shown = [ast.literal_eval(found) for found in re.findall(r"\{.*?\}", line)]
    others = re.search(r"or (\d+) others", line)
    return shown, len(shown) + (int(others[1]) if others else 0)


# Every system of equations, against trying all sizes ----------------------------------------------

# A layout is written as a name or as ("product" | "concat", parts).
LAYOUTS = st.recursive(
    st.sampled_from("xyz"),
    lambda parts: st.tuples(
        st.sampled_from(["product", "concat"]), st.lists(parts, min_size=2, max_size=3)
    ),
    max_leaves=5,
)


def build(spec, sizes):
    if isinstance(spec, str):
        return units(spec, sizes[spec])
    kind, parts = spec
    return (times if kind == "product" else joined)(*(build(part, sizes) for part in parts))


def length(spec, sizes):
    if isinstance(spec, str):
        return sizes[spec]
    kind, parts = spec
    lengths = [length(part, sizes) for part in parts]
    return prod(lengths) if kind == "product" else sum(lengths)


@st.composite
def systems(draw):
    """Draws today's sizes, which of them are fixed, layouts of axes, and their lengths."""
    today = {name: draw(st.integers(1, 4)) for name in "xyz"}
    fixed = draw(st.sets(st.sampled_from("xyz"), max_size=1))
    larger = {
        name: size + (0 if name in fixed else draw(st.integers(0, 3)))
        for name, size in today.items()
    }
    axes = draw(st.lists(LAYOUTS, min_size=1, max_size=4))
    lengths = [length(spec, larger) for spec in axes]
    if draw(st.booleans()):
        lengths[draw(st.integers(0, len(axes) - 1))] += draw(st.integers(-2, 3))
    hypothesis.assume(all(n > 0 for n in lengths))
    return today, fixed, axes, lengths


def solutions(today, fixed, axes, lengths):
    """Returns all sizes of all widths that give these lengths, by trying them."""
    longest = {
        name: max([today[name], *(n for spec, n in zip(axes, lengths) if name in str(spec))])
        for name in today
    }
    hypothesis.assume(prod(longest.values()) < 500_000)
    upto = {name: today[name] if name in fixed else longest[name] for name in today}
    grid = np.meshgrid(*(np.arange(today[n], upto[n] + 1) for n in "xyz"), indexing="ij")
    tried = dict(zip("xyz", (axis.ravel() for axis in grid)))
    fits = np.ones(tried["x"].shape, bool)
    for spec, n in zip(axes, lengths):
        fits &= length(spec, tried) == n
    return [dict(zip("xyz", map(int, found))) for found in zip(*(tried[n][fits] for n in "xyz"))]


@hypothesis.given(systems())
@hypothesis.settings(max_examples=200)
def test_sizes_are_those_that_trying_all_of_them_finds(system):
    today, fixed, axes, lengths = system
    ways = solutions(*system)
    arrays = {f"x{i}": (build(spec, today),) for i, spec in enumerate(axes)}
    widths = make(today.items(), arrays, fixed)
    target = shaped(**{f"x{i}": (n,) for i, n in enumerate(lengths)})
    if len(ways) == 1:
        hypothesis.event("one way")
        assert today | found(widths, target=target) == ways[0]
        return
    lines = problems(widths, target)
    if not ways:
        hypothesis.event("no way")
        told = "no growth explains|growing never drops units|, but . = |cannot grow from"
        assert any(re.search(told, line) for line in lines), lines
        return
    hypothesis.event("several ways")
    settled = {}
    for line in lines:
        assert "the shapes do not say" in line
        shown, count = choices(line)
        possible = {tuple(way[name] for name in shown[0]) for way in ways}
        assert len(possible) == count > 1
        assert {tuple(choice.values()) for choice in shown} <= possible
        settled |= shown[-1]
    assert today | found(widths, settled, target=target) in ways


@hypothesis.given(systems(), st.sets(st.sampled_from("xyz")))
@hypothesis.settings(max_examples=100)
def test_sizes_that_are_asked_for_settle_what_is_left_open(system, names):
    today, fixed, axes, lengths = system
    ways = solutions(*system)
    hypothesis.assume(ways)
    asked = {name: ways[-1][name] for name in sorted(names)}
    left = [way for way in ways if asked.items() <= way.items()]
    hypothesis.assume(len(left) == 1)
    arrays = {f"x{i}": (build(spec, today),) for i, spec in enumerate(axes)}
    target = shaped(**{f"x{i}": (n,) for i, n in enumerate(lengths)})
    assert today | found(make(today.items(), arrays, fixed), asked, target=target) == left[0]


# Real layouts -------------------------------------------------------------------------------------


def attention(heads=3, dim=4, value=4, prefix=""):
    """Returns the arrays and sizes of a fused query | key | value projection and its output."""
    h, d, v = (
        units(prefix + name, size)
        for name, size in (("heads", heads), ("dim", dim), ("value", value))
    )
    model = units("model", 12)
    arrays = {
        f"{prefix}qkv": (model, joined(times(h, d), times(h, d), times(h, v))),
        f"{prefix}bias": (joined(times(h, d), times(h, d), times(h, v)),),
        f"{prefix}out": (times(h, v), model),
    }
    return arrays, {u.width: u.size for u in (model, h, d, v)}


ARRAYS, SIZES = attention()
ATTENTION = make(SIZES.items(), ARRAYS)


@pytest.mark.parametrize(
    "larger",
    [
        {},
        {"dim": 5, "value": 5, "model": 15},
        {"heads": 4, "model": 16},
        {"dim": 7},
        {"heads": 5, "value": 7},
        {"model": 13},
    ],
    ids=str,
)
def test_fused_attention(larger):
    assert found(ATTENTION, target=target_of(ATTENTION, **larger)) == larger


def test_heads_that_the_shapes_leave_open():
    target = target_of(ATTENTION, heads=6, model=24)
    (line,) = problems(ATTENTION, target)
    assert line == (
        "qkv[1]: is 72 long in the target (like bias[0]), but for heads * dim | heads * dim | "
        "heads * value the shapes do not say whether {'heads': 6} or {'heads': 3} or {'heads': 4}; "
        "say so with sizes= and target=, or pass target_apply=, the larger model's function"
    )
    for heads, dim in [(6, 4), (3, 8), (4, 6)]:
        new = {"heads": heads, "dim": dim, "value": dim, "model": 24}
        for name in ("heads", "dim", "value"):
            growth = dw.plan(ATTENTION, {name: new[name]}, target=target)
            assert SIZES | sizes_in(growth) == new


def test_a_fixed_factor_keeps_its_size():
    widths = make(SIZES.items(), ARRAYS, fixed={"dim"})
    growth = dw.plan(widths, target=target_of(ATTENTION, heads=6))
    assert sizes_in(growth) == {"heads": 6}


@pytest.mark.parametrize(
    "larger",
    [{"state": 7}, {"heads": 4}, {"dim": 8}, {"heads": 5, "dim": 6, "state": 6, "model": 9}],
    ids=str,
)
def test_fused_state_space_projection(larger):
    # gate | input | B | C | step, as Mamba 2 has them; only the fused axes know of each width.
    model, heads, dim, state = (
        units(*unit) for unit in [("model", 6), ("heads", 3), ("dim", 4), ("state", 5)]
    )
    inner = times(heads, dim)
    widths = make(
        [("model", 6), ("heads", 3), ("dim", 4), ("state", 5)],
        {
            "in": (model, joined(inner, inner, state, state, heads)),
            "conv": (joined(inner, state, state),),
            "out": (inner, model),
        },
    )
    assert sizes_in(dw.plan(widths, target=target_of(widths, **larger))) == larger


def test_an_empty_axis_is_no_trouble():
    widths = make([("none", 0), ("dim", 3)], {"x": (times(units("none", 0), units("dim", 3)),)})
    assert found(widths, target=target_of(widths)) == {}


# What is said -------------------------------------------------------------------------------------

H, D, C, T, X = (units(*unit) for unit in [("h", 3), ("d", 4), ("c", 2), ("t", 5), ("x", 6)])
NAMES = {u.width: u.size for u in (H, D, C, T, X)}
NEVER_LESS = "growing never drops units, dw.narrow removes them"

# Layouts of the arrays, shapes in the target, sizes that are asked for, and the lines of the error.
LINES = {
    "no growth explains a product": (
        {"a": (times(H, D), D)},
        {"a": (12, 12)},
        {},
        ["a[0]: is 12 long in the target, which no growth explains: h * d with h >= 3, d = 12"],
    ),
    "nor with a fixed factor": (
        {"a": (times(T, C), C)},
        {"a": (18, 3)},
        {},
        [
            "a[0]: is 18 long in the target, which no growth explains: t * c with "
            "t = 5 (fixed: sorted), c = 3"
        ],
    ),
    "nor in other arrays": (
        {"a": (times(H, D),), "b": (times(H, D),), "c": (times(D, H),)},
        {"a": (17,), "b": (17,), "c": (12,)},
        {},
        [
            "a[0]: is 17 long in the target (like b[0]), which no growth explains: h * d with "
            "h >= 3, d >= 4"
        ],
    ),
    "axes exclude each other": (
        {"a": (times(H, D),), "b": (times(H, C),), "c": (joined(D, C, H),)},
        {"a": (16,), "b": (6,), "c": (10,)},
        {},
        [
            "a[0]: is 16 long in the target: h * d and b[0]: is 6 long in the target: h * c; "
            "no growth explains these together, with h >= 3, d >= 4, c >= 2"
        ],
    ),
    "two independent problems": (
        {"a": (times(H, D),), "b": (joined(C, X),), "c": (times(C, X),)},
        {"a": (13,), "b": (9,), "c": (17,)},
        {},
        [
            "a[0]: is 13 long in the target, which no growth explains: h * d with h >= 3, d >= 4",
            "c[0]: is 17 long in the target, which no growth explains: c * x with c >= 2, x >= 6",
        ],
    ),
    "two problems of one width": (
        {"a": (times(H, D),), "b": (times(H, C),), "c": (times(H, X),)},
        {"a": (13,), "b": (11,), "c": (24,)},
        {},
        [
            "a[0]: is 13 long in the target, which no growth explains: h * d with h >= 3, d >= 4",
            "b[0]: is 11 long in the target, which no growth explains: h * c with h >= 3, c >= 2",
        ],
    ),
    "a smaller width": (
        {"a": (D, H), "b": (D,), "c": (times(H, D),)},
        {"a": (3, 3), "b": (3,), "c": (9,)},
        {},
        [f"d: 3 units are fewer than today's 4; {NEVER_LESS}; see a[0], b[0] in the target"],
    ),
    "a smaller product": (
        {"a": (times(H, D),)},
        {"a": (8,)},
        {},
        [f"a[0]: is 8 long in the target, fewer than today's 12; {NEVER_LESS}"],
    ),
    "axes disagree": (
        {"a": (D,), "b": (D,), "c": (D,), "e": (D,), "f": (times(H, D),)},
        {"a": (4,), "b": (6,), "c": (6,), "e": (6,), "f": (20,)},
        {},
        ["a[0]: is 4 long in the target, but d = 6 in b[0], c[0] and 1 more"],
    ),
    "another size was asked for": (
        {"a": (D,), "b": (times(D, H),)},
        {"a": (6,), "b": (18,)},
        {"d": 5},
        ["a[0]: is 6 long in the target, but d = 5 in sizes="],
    ),
    "a smaller one was asked for": (
        {"a": (times(D, H),), "b": (times(H, X),)},
        {"a": (24,), "b": (36,)},
        {"d": 3},
        ["d: say which units stay, keep={name: [0, 2, ...]}, or use dw.narrow; 3 units are fewer"],
    ),
    "the same smaller one was asked for": (
        {"a": (D,)},
        {"a": (3,)},
        {"d": 3},
        ["d: say which units stay, keep={name: [0, 2, ...]}, or use dw.narrow; 3 units are fewer"],
    ),
    "what was asked for does not fit": (
        {"a": (times(H, D),)},
        {"a": (24,)},
        {"h": 5},
        ["a[0]: is 24 long in the target, which no growth explains: h * d with h = 5, d >= 4"],
    ),
    "a fixed width is larger": (
        {"a": (T,), "b": (times(T, C), C)},
        {"a": (6,), "b": (12, 2)},
        {},
        ["t: cannot grow from 5 to 6: sorted"],
    ),
    "arrays are missing": (
        {"a": (H,), "b": (times(H, D),), "c": (C,)},
        {"b": (24,), "e": (2,)},
        {},
        ["a: not in the target", "c: not in the target", "e: only in the target"],
    ),
    "another number of axes": (
        {"a": (H, D), "b": (times(H, D),)},
        {"a": (24,), "b": (24,)},
        {},
        ["a: has 2 axes, in the target 1"],
    ),
    "one more axis": (
        {"a": (H, D), "b": (times(H, D),)},
        {"a": (2, 3, 4), "b": (24,)},
        {},
        ["a: has 2 axes, in the target 3"],
    ),
    "some widths follow where others are open": (
        {"a": (times(H, D),), "b": (joined(times(H, D), C),)},
        {"a": (24,), "b": (27,)},
        {},
        [
            "a[0]: is 24 long in the target, but for h * d the shapes do not say whether "
            "{'h': 3} or {'h': 6} or {'h': 4}; "
            "say so with sizes= and target=, or pass target_apply=, the larger model's function"
        ],
    ),
    "many ways": (
        {"a": (joined(H, D),)},
        {"a": (30,)},
        {},
        [
            "a[0]: is 30 long in the target, but for h | d the shapes do not say whether "
            "{'h': 3} or {'h': 26} or {'h': 4} or 21 others; "
            "say so with sizes= and target=, or pass target_apply=, the larger model's function"
        ],
    ),
    "more ways than are listed": (
        {"a": (joined(C, H, D),)},
        {"a": (50_000,)},
        {},
        [
            "a[0]: is 50000 long in the target, but for c | h | d the shapes do not say whether "
            "{'c': 2, 'h': 3, 'd': 49995} or {'c': 2, 'h': 4, 'd': 49994} or "
            "{'c': 2, 'h': 5, 'd': 49993} or more than 97 others; say so with "
            "sizes= and target=, or pass target_apply=, the larger model's function"
        ],
    ),
}


@pytest.mark.parametrize("case", LINES.values(), ids=LINES)
def test_each_problem_is_said_once(case):
    arrays, shapes, asked, lines = case
    used = {u.width for axes in arrays.values() for x in axes for u in _layout.units_of(x)}
    sizes = [(name, size) for name, size in NAMES.items() if name in used]
    found = problems(make(sizes, arrays, fixed={"t"}), shaped(**shapes), sizes=asked)
    assert len(found) == len(lines), found
    for line, start in zip(found, lines):
        assert line.startswith(start)


# What it costs ------------------------------------------------------------------------------------


def sizes_of(widths, target, problems):
    return _target.sizes_of_target(widths, target, {}, problems)


def calls_of_size_of(monkeypatch, run):
    count = 0

    def counted(*arguments):
        nonlocal count
        count += 1
        return _layout.size_of(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(_target, "size_of", counted)
        run()
    return count


def layers(number):
    arrays, sizes = {}, {}
    for i in range(number):
        more, known = attention(prefix=f"{i}/")
        up, model = units(f"{i}/up", 48), units("model", 12)
        arrays |= more | {f"{i}/up": (model, up), f"{i}/down": (up, model)}
        sizes |= known | {f"{i}/up": 48}
    return make(sizes.items(), arrays)


@pytest.mark.parametrize(
    ("larger", "shape"),
    [
        ({}, None),
        ({"heads": 4, "up": 64}, None),  # one way
        ({"heads": 6, "up": 96}, None),  # several ways
        ({"up": 96}, (17, 12)),  # no way
    ],
    ids=["unchanged", "one way", "several ways", "no way"],
)
def test_the_cost_is_linear_in_the_number_of_layers(larger, shape, monkeypatch):
    def cost(number):
        widths = layers(number)
        sizes = {f"{i}/{name}": size for name, size in larger.items() for i in range(number)}
        target = target_of(widths, **sizes, model=4 * larger.get("heads", 3))
        if shape:
            target |= shaped(**{f"{i}/out": shape for i in range(number)})
        found = []
        count = calls_of_size_of(monkeypatch, lambda: sizes_of(widths, target, found))
        assert len(found) == (number if shape or larger.get("heads") == 6 else 0)
        return count

    once, twice = cost(24), cost(48)
    assert 0 < once < 24 * 1000
    assert twice <= 2.1 * once


def test_a_search_ends(monkeypatch):
    # The second sum cannot be odd, which bounds on each width show only one size at a time.
    widths = make([("h", 3), ("d", 4)], {"a": (joined(H, D),), "b": (joined(H, H, D, D),)})
    target = shaped(a=(100_000,), b=(200_001,))
    monkeypatch.setattr(_target, "_MOST_WORK", 1_000)
    found = []
    assert calls_of_size_of(monkeypatch, lambda: sizes_of(widths, target, found)) < 1_000 * 20
    assert found == [
        "a[0], b[0]: there are too many sizes to try; pass some with sizes= and target=, "
        "or pass target_apply=: h >= 3, d >= 4"
    ]


# How the larger model splits its axes -------------------------------------------------------------


def test_splits_are_noted_where_the_shapes_do_not_show_them():
    note = "the larger model must split {} into {}"
    assert dw.plan(ATTENTION, {"model": 13}).notes == ()
    growth = dw.plan(ATTENTION, target=target_of(ATTENTION, model=13))
    assert note.format(12, "3 (heads) x 4 (dim)") in growth.notes
    growth = dw.plan(ATTENTION, {"heads": 5})
    assert growth.notes == (note.format(20, "5 (heads) x 4 (dim)"),)
    assert "\nnote: the larger model must split 20 into 5 (heads) x 4 (dim)" in str(growth)
    assert dw.plan(ATTENTION, {"heads": 5, "dim": 6, "value": 7}).notes == (
        note.format(30, "5 (heads) x 6 (dim)"),
        note.format(35, "5 (heads) x 7 (value)"),
    )


def test_splits_are_told_in_terms_of_the_module():
    def layer(path):
        h, d = units(f"{path}[heads]", 2), units(f"{path}[head_dim]", 4)
        return {path: (times(h, d), times(units("height", 3), h, d))}

    sizes = {"height": 3} | {f"{i}/query[{n}]": k for i in "ab" for n, k in NAMED.items()}
    widths = make(sizes.items(), layer("a/query") | layer("b/query"), fixed={"height"})
    growth = dw.plan(widths, {"a/query[heads]": 5, "b/query[head_dim]": 6})
    assert growth.notes == (
        "a/query: the larger model must split 20 into 5 [heads] x 4 [head_dim]",
        "b/query: the larger model must split 12 into 2 [heads] x 6 [head_dim]",
    )
    growth = dw.plan(widths, {"a/query[heads]": 5, "b/query[heads]": 5})
    note = "a/query, b/query: the larger model must split 20 into 5 [heads] x 4 [head_dim]"
    assert growth.notes == (note,)


NAMED = {"heads": 2, "head_dim": 4}


def test_halves_of_a_factor_are_told_as_its_layout():
    h, d = units("q[heads]", 2), units("q[pairs]", 3)
    widths = make([("q[heads]", 2), ("q[pairs]", 3)], {"q": (times(h, joined(d, d)),)})
    assert dw.plan(widths, {"q[heads]": 5}).notes == (
        "q: the larger model must split 30 into 5 [heads] x 6 ([pairs] | [pairs])",
    )


@pytest.mark.parametrize(
    "arrays",
    [
        {"conv": (C,), "dense": (times(T, H, C), D)},  # a flatten
        {"temperature": (H,), "query": (times(H, C),)},
        {"fused": (joined(C, C, C),), "query": (times(H, C),)},
    ],
    ids=["flatten", "scale of each head", "fused"],
)
def test_splits_that_the_shapes_show_are_not_noted(arrays):
    used = {u.width for axes in arrays.values() for x in axes for u in _layout.units_of(x)}
    widths = make([(n, k) for n, k in NAMES.items() if n in used], arrays)
    assert dw.plan(widths, {"c": 9}).notes == ()
