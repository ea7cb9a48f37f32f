"""Rules that the whole package keeps."""

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dogwood_jax as dw

SUBMODULES = [
    importlib.import_module(f"dogwood_jax.{module.name}")
    for module in pkgutil.iter_modules(dw.__path__)
    if not module.name.startswith("_")
]


def public_names():
    """Yields every public name of the package with its value."""
    for name in dw.__all__:
        yield f"dogwood_jax.{name}", getattr(dw, name)
    for module in SUBMODULES:
        for name, value in vars(module).items():
            # What a module merely imports is another module's, or not ours at all.
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
                yield f"{module.__name__}.{name}", value


def public_functions():
    """Yields every public function and method, constructors among them."""
    for name, value in public_names():
        if inspect.isclass(value):
            for method, function in inspect.getmembers(value, inspect.isfunction):
                ours = function.__module__.startswith("dogwood_jax")  # not inherited from Mapping
                if ours and (method == "__init__" or not method.startswith("_")):
                    yield f"{name}.{method}", function
        elif inspect.isroutine(value):
            yield name, value


LATE = {"flax", "h5py", "keras", "matplotlib", "optax", "tensorflow", "tensorflow_datasets", "tqdm"}


def modules_after(program):
    """Returns the modules that a program has imported."""
    program = f"import sys\n{program}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_imports_no_other():
    modules = modules_after("import dogwood_jax")
    assert "dogwood_jax" in modules
    assert modules.isdisjoint({"jax", "numpy", *LATE})


def test_the_core_imports_no_optional_or_heavy_package():
    modules = modules_after("import dogwood_jax as dw\n[getattr(dw, name) for name in dw._HOMES]")
    assert {"jax", "dogwood_jax._widths.trace", "dogwood_jax.strategies"} <= modules
    assert modules.isdisjoint(LATE)


def test_type_checkers_are_told_what_is_imported_late():
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse(inspect.getsource(dw)))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dogwood_jax")
        for alias in node.names
    }
    assert sorted(told) == dw.__all__
    for name, module in told.items():
        assert getattr(importlib.import_module(module), name) is getattr(dw, name)
    assert [name for name in dir(dw) if not name.startswith("__")] == dw.__all__
    with pytest.raises(AttributeError, match="module 'dogwood_jax' has no attribute 'grwo'"):
        dw.grwo()
    with pytest.raises(
        AttributeError, match="dogwood_jax.equinox is not needed.*the plain functions"
    ):
        dw.equinox.trace()


@pytest.mark.parametrize("module", SUBMODULES, ids=lambda module: module.__name__)
def test_submodules_are_attributes_of_the_package(module):
    assert getattr(dw, module.__name__.removeprefix("dogwood_jax.")) is module


def test_every_public_name_is_documented():
    undocumented = [
        name
        for name, value in public_names()
        # A dataclass or NamedTuple without a docstring gets its signature as one.
        if not value.__doc__ or value.__doc__.startswith(f"{name.split('.')[-1]}(")
    ]
    assert undocumented == []


def test_help_begins_with_the_public_names():
    text = pydoc.plain(pydoc.render_doc(dw)).partition("PACKAGE CONTENTS")[0]
    assert {*dw.__all__} <= {*re.findall(r"\w+", text)}


def test_key_is_keyword_only():
    positional = []
    for name, function in public_functions():
        parameters = inspect.signature(function).parameters
        if list(parameters) == ["key", "shape", "dtype"]:
            continue  # an initializer, which is called as those of jax.nn.initializers
        if "key" in parameters and parameters["key"].kind is not inspect.Parameter.KEYWORD_ONLY:
            positional.append(name)
    assert positional == []


def test_only_public_jax_is_used():
    sources = Path(dw.__file__).parent.rglob("*.py")
    private = re.compile(r"jax\._src|from jax import .*_src")
    assert [path.name for path in sources if private.search(path.read_text())] == []


def test_the_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("dogwood_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("dogwood_jax is not installed, only importable")
    assert dw.__version__ == installed


def test_the_changelog_has_the_version():
    changelog = Path(__file__).parents[1] / "CHANGELOG.md"
    first = re.search(r"^## \[(.*?)\]", changelog.read_text(), re.M)
    assert first[1] == ("Unreleased" if "dev" in dw.__version__ else dw.__version__)


def test_a_release_whose_tag_is_not_the_version_is_refused():
    script = Path(__file__).parents[1] / ".ci" / "release"
    if not script.is_file():
        pytest.skip("the script that makes a release is not beside the tests")
    run = subprocess.run(["bash", script, "v99.0.0"], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"- the tag says 99.0.0, dogwood_jax/__init__.py says {dw.__version__}" in run.stderr
    assert "- the commit that is checked out has no tag v99.0.0: git tag -a v99.0.0" in run.stderr


def test_the_package_says_that_it_is_typed():
    assert (Path(dw.__file__).parent / "py.typed").is_file()


ROOT = Path(__file__).parents[1]
needs_docs = pytest.mark.skipif(
    not (ROOT / "docs").is_dir(), reason="the documentation is not beside the tests"
)


@needs_docs
def test_the_newest_release_is_the_one_to_install():
    newest = re.search(r"^## \[([\d.]+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.M)
    for page in ("README.md", "docs/index.md"):
        assert re.findall(r"git\+URL@v([\d.]+)", (ROOT / page).read_text()) == [newest[1]], page


@needs_docs
def test_every_public_name_is_in_the_reference():
    text = "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    told = {*re.findall(r"^## (\S+)$", text, re.M)}
    modules = {module.__name__.rpartition(".")[2] for module in SUBMODULES}
    types = {f"typing.{name}" for name in dw.typing.__all__} - {"typing.Layout"}  # one of three
    assert ({*dw.__all__} - modules) | types <= told


@needs_docs
def test_code_of_the_documentation_is_narrow():
    """A page shows 85 columns of code; what is behind them has to be scrolled to."""
    wide = []
    # What is written into the others has the width of the package's files.
    pages = [p for p in (ROOT / "docs").rglob("*.md") if p.parent.name == "guides"]
    for path in (ROOT / "README.md", *pages):
        text = path.read_text()
        cells = re.findall(r"^```python(?: run)?\n(.*?)^```$", text, re.M | re.S)
        lines = "".join(cells).splitlines()
        wide += [f"{path.name}: {line}" for line in lines if len(line) > 85]
    assert wide == []


@needs_docs
def test_pages_read_on_a_code_host():
    """There, directives are blocks of code, and empty links are nothing."""
    directive = re.compile(r"^```\{(?!toctree)|^:::|\{py:|\[\]\(", re.M)
    pages = (ROOT / "docs").rglob("*.md")
    assert [path.name for path in pages if directive.search(path.read_text())] == []


@needs_docs
def test_the_start_page_lists_the_guides_in_the_order_of_the_sidebar():
    text = (ROOT / "docs/index.md").read_text()
    listed = re.findall(r"\]\(([\w/]+)\.md\)", text.partition("## Guides")[2].partition("##")[0])
    sidebar = re.findall(
        r"^([\w/]+)$", "".join(re.findall(r"```\{toctree\}(.*?)```", text, re.S)), re.M
    )
    assert listed == sidebar
