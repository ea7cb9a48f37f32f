"""The package is a house of rooms, in the order in which data flow: imports go one way."""

import ast
from pathlib import Path

import pytest

import dogwood_jax
from dogwood_jax._program.primitives.table import PRIMITIVES

PACKAGE = Path(dogwood_jax.__file__).parent
# Each room, or public file, imports only what stands before it.
ORDER = (
    "_base strategies _program _widths _growth _check _plan _optimizer _front typing "
    "nnx keras plotting mnist training keras_h5 checkpoint decoder __main__"
).split()
KERAS_ORDER = "_files _kinds _weights _models _front __main__".split()
ROOMS = sorted(path.parent for path in PACKAGE.rglob("_*/**/__init__.py"))


def modules():
    """Returns the file of each module of the package, by name."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    return files


def imports(path, files):
    """Returns the modules of the package that a file imports, in functions and for types, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in files else node.module)
    return found


def climbs_within(prefix, order):
    """Returns the files that import a file from a room behind their own, each with that file."""
    files, climbs = modules(), set()
    rooms = {
        name: name.removeprefix(f"{prefix}.").split(".")[0]
        for name in files
        if name.startswith(f"{prefix}.")
    }
    for name, room in rooms.items():
        for other in imports(files[name], files) & rooms.keys():
            if order.index(rooms[other]) > order.index(room):
                climbs.add((str(files[name].relative_to(PACKAGE)), other))
    return climbs


def test_imports_go_one_way():
    assert climbs_within("dogwood_jax", ORDER) == set()
    assert climbs_within("dogwood_jax.keras_h5", KERAS_ORDER) == set()


def test_no_files_import_each_other():
    files = modules()
    graph = {
        name: {other for other in imports(path, files) if other != PACKAGE.name and other in files}
        for name, path in files.items()
        if name != PACKAGE.name
    }

    def reached(start):
        seen, pending = set(), [start]
        while pending:
            new = graph[pending.pop()] - seen
            seen |= new
            pending += new
        return seen

    assert [name for name in sorted(graph) if name in reached(name)] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(PACKAGE)))
def test_the_front_of_a_room_names_everything_in_it(room):
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    inside = {path.stem for path in room.glob("*.py")} | {
        f"{path.parent.name}/" for path in room.glob("*/__init__.py")
    }
    missing = [name for name in inside - {"__init__"} if f"``{name}``" not in text]
    assert not missing
    assert len((room / "__init__.py").read_text().splitlines()) < 200


def test_strategies_decide_for_themselves():
    names = {"zero_outgoing", "zero_incoming", "replicate", "tile", "gradmax", "firefly"}
    compared = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in modules().values()
        if path.name != "strategies.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and part.value in names
    }
    assert not compared


def test_one_loop_runs_over_programs():
    """``interpret`` runs them. Others only count, compare, list, leave out or replace equations."""
    readers = {
        str(path.relative_to(PACKAGE))
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "eqns"
    }
    others = {"subprograms", "kernels", "like_layers", "program", "sameness", "left_out", "values"}
    known = {f"_program/{name}.py" for name in {"interpret", *others}}
    assert readers == known


# Where primitives are named outside of their table, and why. Each file answers one question that is
# its own; what several files want to know is a field of the record.
NAMED_FOR = {
    "_program/kernels.py": "what is a kernel",
    "_widths/attention.py": "scores of attention are contractions of two activations",
    "_plan/search/problem.py": "epsilons are small numbers that are added",
    "_check/constant_tables.py": "an iota and a broadcast, a few rows at a time",
    "_check/evaluate.py": "how programs inside run, and bits that follow from places",
    "_check/resize.py": "how programs inside run in other sizes, and numbers that make means",
    "_check/choices.py": "which choices inputs decide, and what loops hand on",
    "_check/spatial.py": "rows that a network counts, such as positions in an image",
    "_check/seen.py": "into which pieces an operation divides its inputs",
    "_check/check.py": "bits of keys, and integers that ids are compared with",
    "_check/run.py": "how long the tables are that ids look up",
    "_plan/depth/statistics.py": "a mean that is subtracted",
    "_plan/search/statistics.py": "a constant that is added to a variance",
    "_plan/own_function.py": "axes that a function splits into sizes of its own",
    "_optimizer/by_cohort.py": "branches, each with its lanes",
    "_program/shards.py": "what devices compute together",
    "_program/program.py": "sums of products that sum over nothing",
    "_front/smaller/readings.py": "what loops run",
    "_front/rounding.py": "which casts round, and what loops run",
    "_plan/experts/routers.py": "where the largest are chosen, and what finds the chosen ones",
}

# Names of primitives that are also words, as of a role or a kind.
WORDS = set(
    "tile threefry2x32 sqrt scatter copy name add and or not square sign real exp log split round "
    "max min sub".split()
)


def test_primitives_are_named_in_their_table():
    """Only a domain whose own question it is names a primitive besides."""
    named = set()
    for path in PACKAGE.rglob("_*/**/*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(("_program/primitives/", "keras_h5/")):
            strings = (
                {*node.value.split()}
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
            if any(words - WORDS and words <= {*PRIMITIVES} for words in strings):
                named.add(next((k for k in NAMED_FOR if file.startswith(k)), file))
    assert named == set(NAMED_FOR)
