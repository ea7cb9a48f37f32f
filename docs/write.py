"""Writes what the documentation is made of, so that it reads on a code host.

    python docs/write.py [--check] [FILE ...]

Three things are written into the Markdown of ``docs/``:

- behind each block of code that says ``python run``, what it prints and draws.
  The blocks of a page run one after the other, in a process of their own;
- between ``<!-- begin: api NAME -->`` and ``<!-- end -->``, the docstring of a
  public name, or of all names of a module;
- between ``<!-- begin: file PATH -->`` and ``<!-- end -->``, a file, by its path
  from ``docs/``: text, code, or a table if it is CSV.

With ``--check`` nothing is written, and what differs is an error. Lines that were
measured, as a point in a number shows, may have other numbers.
"""

import argparse
import base64
import concurrent.futures
import csv
import difflib
import functools
import importlib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"^```python run\n(?P<code>.*?)^```\n(-->\n)?", re.M | re.S)
_OUTPUT = re.compile(
    r"\n(```output\n.*?^```\n|!\[[^\n]*\]\(pictures/\S*\)\n)", re.M | re.S
)
_REGION = re.compile(r"(<!-- begin: (\w+) (\S+) -->\n).*?(<!-- end -->\n)", re.S)


def written(path: Path) -> tuple[str, dict[Path, bytes]]:
    """Returns a page with all that is written into it, and its pictures by path."""
    text = path.read_text()
    text = _REGION.sub(lambda m: m[1] + REGIONS[m[2]](m[3]) + m[4], text)
    blocks = [*_BLOCK.finditer(text)]
    if not blocks:
        return text, {}
    pictures: dict[Path, bytes] = {}
    parts, at = list[str](), 0
    cells = zip(blocks, _run(path, blocks), strict=True)
    for number, (block, cell) in enumerate(cells, 1):
        parts.append(text[at : block.end()])
        at = block.end()
        while output := _OUTPUT.match(text, at):
            at = output.end()
        if said := _said(cell):
            parts.append(f"\n```output\n{said}\n```\n")
        for picture in _drawn(cell):
            name = f"pictures/{path.stem}_{number}.png"
            pictures[path.parent / name] = picture
            parts.append(f"\n![what the code above draws]({name})\n")
    return "".join((*parts, text[at:])), pictures


# What code prints and draws --------------------------------------------------------


def _run(path: Path, blocks: list[re.Match[str]]) -> list[Any]:
    """Runs blocks of code in turn; returns them as cells of a notebook."""
    import nbclient
    import nbformat

    cells = [nbformat.v4.new_code_cell(block["code"]) for block in blocks]
    notebook = nbformat.v4.new_notebook(cells=cells)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=where
    ).execute()
    return cells


def _said(cell: Any) -> str:
    """Returns what a cell prints, and its value; not what is logged."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(output.text)
        elif output.output_type == "execute_result":
            parts.append(output.data["text/plain"] + "\n")
    lines = "".join(parts).split("\n")
    said = "\n".join(line.rstrip() for line in lines).strip("\n")
    return re.sub(r"\b\d{6,}\.py\b", "page.py", said)  # what IPython calls a block


def _drawn(cell: Any) -> Iterator[bytes]:
    for output in cell.outputs:
        if output.output_type == "display_data" and "image/png" in output.data:
            yield base64.b64decode(output.data["image/png"])


# What docstrings say ---------------------------------------------------------------

_SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
    "Warns": "Warns",
    "Example": "Example",
    "Reference": "Reference",
}


def _api(name: str) -> str:
    """Returns what is said of a public name, or of all public names of a module."""
    package, *parts = name.split(".")
    value: Any = functools.reduce(getattr, parts, importlib.import_module(package))
    if not inspect.ismodule(value):
        return _entry(name, value)
    public = getattr(value, "__all__", None) or [
        n
        for n, v in vars(value).items()
        if not n.startswith("_") and getattr(v, "__module__", "") == name
    ]
    entries = [
        _entry(f"{name}.{n}", getattr(value, n))
        for n in public
        if callable(vars(value)[n])
    ]
    return "\n".join((f"{_text(inspect.getdoc(value) or '')}\n", *entries))


def _entry(name: str, value: Any) -> str:
    """Returns a heading, the signature and the docstring, also of public methods."""
    short = name.removeprefix("dogwood_jax.")
    lines = [f"## {short}\n"]
    if inspect.isclass(value) and issubclass(value, Exception):
        lines.append(
            _fenced([f"class {short}({value.__bases__[0].__name__})"], "python")
        )
    elif callable(value) and (signature := _signature(short, value)):
        lines.append(_fenced([signature], "python"))
    if callable(value):
        lines.append(_text(inspect.getdoc(value) or "") + "\n")
    for member, its in vars(value).items() if inspect.isclass(value) else ():
        function = its.fget if isinstance(its, property) else its
        function = getattr(function, "func", getattr(function, "__func__", function))
        is_public = not member.startswith("_") and inspect.isfunction(function)
        if is_public and (doc := inspect.getdoc(function)):
            call = _signature(member, its) if function is its else member
            lines += [
                f"### {short}.{member}\n",
                _fenced([call], "python"),
                _text(doc) + "\n",
            ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _signature(name: str, value: Any) -> str:
    """Returns how a function is called, without annotations."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    parts = list[str]()
    for p in parameters:
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not any(
            part.startswith("*") for part in parts
        ):
            parts.append("*")
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = "" if p.default is p.empty else f"={_default(p.default)}"
        parts.append(f"{star}{p.name}{default}")
    call = f"{name}({', '.join(parts)})"
    if len(call) <= 85:
        return call
    return "".join((f"{name}(\n", *(f"    {part},\n" for part in parts), ")"))


def _default(value: Any) -> str:
    name = getattr(value, "__name__", "") if callable(value) else ""
    return name or repr(value)


def _text(doc: str) -> str:
    """Returns a docstring in Markdown: sections as lists, examples as code."""
    parts = []
    for title, body in _sections(doc):
        text = textwrap.dedent(body).strip("\n")
        if title:
            parts.append(f"**{_SECTIONS[title]}**")
        parts.append(
            _listed(text)
            if title in ("Args", "Attributes", "Raises")
            else _prose(text)
        )
    return "\n\n".join(parts)


def _sections(doc: str) -> Iterator[tuple[str, str]]:
    """Yields the sections of a docstring: title, or "", and text."""
    title, lines = "", list[str]()
    for line in doc.split("\n"):
        is_title = line.endswith(":") and line[:-1] in _SECTIONS
        if is_title or (title and line[:1].strip()):
            yield title, "\n".join(lines)
            title, lines = (line[:-1], []) if is_title else ("", [line])
        else:
            lines.append(line)
    yield title, "\n".join(lines)


def _listed(text: str) -> str:
    """Returns items ``name: text``, each with lines that are indented, as a list."""
    found = []
    for item in re.split(r"\n(?=\S)", text):
        name, _, rest = item.partition(":")
        first, _, more = rest.strip().partition("\n")
        said = _prose("\n".join((first, textwrap.dedent(more))))
        found.append(f"- `{name}`: " + textwrap.indent(said, "  ").strip())
    return "\n".join(found)


def _prose(text: str) -> str:
    """Returns text with its literal blocks and doctests as code."""
    parts, code, language = list[str](), list[str](), ""
    for line in text.split("\n"):
        is_in = (
            line.startswith("    ")
            if language == "python"
            else language and line.strip()
        )
        if is_in or (language == "python" and not line.strip()):
            code.append(line)
            continue
        if language:
            parts.append(_fenced(code, language))
            code, language = [], ""
        if line.lstrip().startswith(">>>"):
            code, language = [line], "pycon"
        elif line.endswith("::"):
            parts.append(line[:-1] if line.strip() != "::" else "")
            language = "python"
        else:
            parts.append(line)
    if language:
        parts.append(_fenced(code, language))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip("\n")


def _fenced(code: list[str], language: str) -> str:
    text = textwrap.dedent("\n".join(code)).strip("\n")
    return f"\n```{language}\n{text}\n```\n"


# Files -----------------------------------------------------------------------------


def _file(name: str) -> str:
    """Returns a file's text, or a table of what is in a CSV file."""
    path = DOCS / name
    if path.suffix == ".py":
        return f"```python\n{path.read_text().rstrip()}\n```\n"
    if path.suffix != ".csv":
        return path.read_text().rstrip() + "\n"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


REGIONS = {"api": _api, "file": _file}

# -----------------------------------------------------------------------------------


# What stands in a line whose numbers may differ.
_MEASURED = re.compile(r"\d\.\d|\de[-+]\d|\b0\b")


def without_numbers(text: str) -> str:
    """Returns a page without what may differ: measured numbers, and spaces."""
    lines = text.split("\n")
    lines = [
        re.sub(r"\d", "", line) if _MEASURED.search(line) else line for line in lines
    ]
    return re.sub(r"[-+.e\s]+", " ", "\n".join(lines))


def main() -> int:
    """Writes pages, or says what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="all pages by default")
    parser.add_argument("--check", action="store_true", help="only say what differs")
    options = parser.parse_args()
    pages = options.files or [
        path
        for path in DOCS.rglob("*.md")
        if not {"_build", "results"} & {*path.relative_to(DOCS).parts}
    ]
    # The longest first.
    pages.sort(key=lambda path: (-path.read_text().count("```python run"), path))
    differ = list[str]()
    importlib.import_module("jax")  # two threads must not import it at once
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, (text, pictures) in zip(
            pages, pool.map(written, pages), strict=True
        ):
            old = path.read_text()
            if not options.check:
                for picture, content in pictures.items():
                    picture.parent.mkdir(exist_ok=True)
                    picture.write_bytes(content)
                if old != text:
                    path.write_text(text)
                    print(f"wrote {path}", flush=True)
                continue
            differ += [
                f"{picture} is missing"
                for picture in pictures
                if not picture.exists()
            ]
            if without_numbers(old) != without_numbers(text):
                both = old.split("\n"), text.split("\n")
                differ += difflib.unified_diff(
                    *both, f"{path}", "as it runs", n=1, lineterm=""
                )
    print(*differ, sep="\n")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main())
