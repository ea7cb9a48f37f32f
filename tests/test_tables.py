"""What is printed: what repeats is told once, and what cannot grow in a line."""

import re
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from networks import dense, f64

import dogwood_jax as dw
from dogwood_jax._base.problems import listed
from dogwood_jax._base.tables import layers_together, merged, table

X = f64(2, 5)


def shown(growth: dw.Growth) -> str:
    """Returns what is printed of a growth, without how many samples there were."""
    return re.sub(r"in \d+ samples", "in some samples", str(growth))


def apply(params: Any, x: Any) -> Any:
    x = x @ params["stem"]
    for i in range(4):
        block = params[f"block_{i}"]
        y = jnp.tanh(x * block["scale"][None])
        y = (y @ block["up"]["kernel"] + block["up"]["bias"][None]) * (y @ block["gate"]["kernel"])
        x = x + y @ block["down"]["kernel"] + block["down"]["bias"][None]
    x = x / jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1)
    return x @ params["head"] + params["token"][:, None] * jnp.ones((2, 2))


def shapes(*up: int) -> Any:
    def block(up: int) -> Any:
        gate = {"kernel": f64(6, up)}
        return {"scale": f64(6), "up": dense(6, up), "gate": gate, "down": dense(up, 6)}

    blocks = {f"block_{i}": block(n) for i, n in enumerate(up)}
    return blocks | {"stem": f64(5, 6), "head": f64(6, 2), "token": f64(1)}


def test_repeated_layers_and_modules_share_rows() -> None:
    widths = dw.trace(apply, shapes(7, 7, 7, 8), X)
    assert str(widths) == textwrap.dedent("""\
        width            size  occurs in                            status
        ---------------  ----  -----------------------------------  -----------------------
        stem             6     -> stem[1]                           growable
                               -> block_{0..3}/scale[0]
                               <- block_{0..3}/{up,gate}/kernel[0]
                               -> block_{0..3}/down/kernel[1]
                               -> block_{0..3}/down/bias[0]
                               <- head[0]
        stem[0]          5     <- stem[0]                           interface
        block_{0..2}/up  7     -> block_{0..2}/{up,gate}/kernel[1]  3 widths, each growable
                               -> block_{0..2}/up/bias[0]
                               <- block_{0..2}/down/kernel[0]
        block_3/up       8     -> block_3/{up,gate}/kernel[1]       growable
                               -> block_3/up/bias[0]
                               <- block_3/down/kernel[0]
        head             2     -> head[1]                           interface
        fixed (of size 1): token
        (-> weights that make the units; <- weights that read them; [1] an axis of the array)""")
    growth = dw.plan(widths, {f"block_{i}/up": 9 for i in range(4)})
    table, rest = shown(growth).split("\n(")
    legend, evidence = rest.splitlines()
    assert evidence == "checked: equal to rounding in some samples"
    assert table == textwrap.dedent("""\
        array                          before  after  new entries
        -----------------------------  ------  -----  -----------------------------
        block_{0..2}/{up,gate}/kernel  6x7     6x9    axis 1 free (block_{0..2}/up)
        block_{0..2}/up/bias           7       9      axis 0 free (block_{0..2}/up)
        block_{0..2}/down/kernel       7x6     9x6    axis 0 zero (block_{0..2}/up)
        block_3/{up,gate}/kernel       6x8     6x9    axis 1 free (block_3/up)
        block_3/up/bias                8       9      axis 0 free (block_3/up)
        block_3/down/kernel            8x6     9x6    axis 0 zero (block_3/up)""")
    free, zero = "free: as in a new layer, or from fresh=", "zero: 0 until they learn"
    assert legend == f"by axis, for each width; {free}; {zero})"
    with pytest.raises(ValueError) as error:
        dw.plan(widths, {f"block_{i}/up": 5 for i in range(4)})
    what, ask = "cannot plan this growth:", "say which units stay, keep={name: [0, 2, ...]}, "
    assert str(error.value).splitlines() == [
        what,
        f"- block_{{0..2}}/up: {ask}or use dw.narrow",
        "  5 units are fewer than today's 7, and growing never drops any",
        f"- block_3/up: {ask}or use dw.narrow",
        "  5 units are fewer than today's 8, and growing never drops any",
    ]


def test_rows_that_are_too_wide_for_the_terminal_become_blocks(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    widths = dw.trace(apply, shapes(7, 7, 7, 8), X)
    lines = str(widths).splitlines()
    assert max(map(len, lines)) <= 60
    at = lines.index("block_{0..2}/up: 7 units, 3 widths, each growable")
    assert lines[at + 1] == "  -> block_{0..2}/{up,gate}/kernel[1]"
    assert lines[-1].endswith("[1] an axis of the array)")
    growth = dw.plan(widths, {f"block_{i}/up": 9 for i in range(4)})
    assert str(growth).splitlines()[:2] == [
        "block_{0..2}/{up,gate}/kernel: 6x7 -> 6x9",
        "  axis 1 free (block_{0..2}/up)",
    ]
    assert "\n(before -> after; by axis, for each width; free: " in str(growth)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("b_0 b_1 b_2", "b_{0..2}"),
        ("a/0/b a/1/b a/2/b", "a/{0..2}/b"),
        ("b_0 b_2 b_4", "b_{0,2,4}"),
        ("b_0 b_1", "b_0 b_1"),  # too few
        ("b_0:c_0 b_1:c_1 b_2:c_2", "b_{0..2}:c_{0..2}"),
        ("b_0:c_1 b_1:c_2 b_2:c_3", "b_0:c_1 b_1:c_2 b_2:c_3"),  # which goes with which?
        ("b_0[1] b_1[1] b_2[2]", "b_0[1] b_1[1] b_2[2]"),
        ("b_0:4x6 b_1:4x6 b_2:4x7 b_3:4x6", "b_{0,1,3}:4x6 b_2:4x7"),
    ],
)
def test_layers_together(names: str, expected: str) -> None:
    assert " ".join(name for (name,), _ in layers_together((n,) for n in names.split())) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("a/x b/x", "{a,b}/x"),
        ("a/x a/y b/x b/y", "{a,b}/{x,y}"),
        ("a/x a/y b/x", "a/{x,y} b/x"),
        ("a_0/x a_1/x", "a_{0,1}/x"),
        ("a x/a x/b/a", "a x/a x/b/a"),  # of different depth
    ],
)
def test_merged(paths: str, expected: str) -> None:
    assert " ".join(path for _, path in merged((0, path) for path in paths.split())) == expected
    assert [path for _, path in merged(enumerate(paths.split()))] == paths.split()


def test_variables_that_are_one_array() -> None:
    widths = dw.trace(lambda kernel, x: x @ kernel, f64(5, 3), X)
    assert str(widths).splitlines()[2:4] == [
        "       3     -> [1]     interface",
        "[0]    5     <- [0]     interface",
    ]


def test_layers_that_are_inserted_share_lines() -> None:
    def deeper(params: Any, x: Any) -> Any:
        for block in params:
            x = x + jnp.tanh(x @ block["up"]) @ block["down"]
        return x

    blocks = [{"up": f64(5, 7), "down": f64(7, 5)}] * 4
    widths = dw.trace(deeper, blocks[:1], X)
    assert shown(dw.plan(widths, target=blocks, target_apply=deeper)) == textwrap.dedent("""\
        inserted: {1,2,3}/down: 0
        inserted: {1,2,3}/up: free
        checked: equal to rounding in some samples""")
    rng = jax.eval_shape(lambda: {"key": jax.random.key(0), "count": jnp.zeros((), int)})
    counts = [{**block, "rng": rng} for block in blocks]
    widths = dw.trace(deeper, counts[:1], X)
    growth = dw.plan(widths, target=counts, target_apply=deeper)
    assert len(growth.inserted) == 12 and "rng" not in str(growth)


def f32(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_notes_on_layers_that_are_alike_are_one() -> None:
    def scored(params: Any, x: Any) -> Any:
        for block in params.values():
            query, key = x @ block["query"], x @ block["key"]
            scores = query @ key.T * 0.3
            x = x + jax.nn.softmax(scores) @ x @ block["out"]
        return x

    block = {"query": f32(5, 8), "key": f32(5, 8), "out": f32(5, 5)}
    params = {f"block_{i}": block for i in range(3)}
    growth = dw.plan(
        dw.trace(scored, params, f32(2, 5)), {(f"{name}/query", 1): 16 for name in params}
    )
    assert len(growth.notes) == 3
    assert " ".join(shown(growth).split()).startswith(
        "note: block_{0..2}/query: the constant 0.3 scales what is summed over it: the larger "
        "model must have the same; if it has another, pass its function as target_apply= array"
    )


def test_long_cells_are_broken() -> None:
    lines = table([("a", "b"), ("x\ny", "word " * 30)]).splitlines()
    assert lines[2].startswith("x  word word") and lines[3].startswith("y  word")
    assert len(lines) == 5 and max(map(len, lines)) <= 63
    assert "".join(lines[2:]).count("word") == 30


def test_different_problems_stay_apart() -> None:
    problems = [f"up_{i}: asked for {n} units" for i, n in enumerate((4, 4, 4, 5))]
    assert listed("bad", problems).splitlines() == [
        "bad:",
        "- up_{0..2}: asked for 4 units",
        "- up_3: asked for 5 units",
    ]
