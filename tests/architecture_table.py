"""The table of architectures, as it was recorded and as it is printed."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs/results"
CSV, MARKDOWN = RESULTS / "architectures.csv", RESULTS / "architectures.md"

Rows = Iterable[Mapping[str, str]]


def read() -> list[dict[str, str]]:
    """Returns the rows that were recorded."""
    with CSV.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: Rows) -> None:
    rows = list(rows)
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Rows) -> str:
    """Returns the page of these rows: counts, the table, and what was refused."""
    rows = list(rows)
    days = sorted({row["date"] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    by_size = sum(_growable(row) == int(row["by_size"]) for row in rows)
    by_target = sum(row["by_target"] == row["sizes"] for row in rows)
    layers = [row["layers"] for row in rows if row["layers"]]
    largest = max(float(row["change"]) for row in rows)
    said = [
        f"Recorded by `python tests/benchmarks/architectures.py`, {when}, in float32.",
        f"Of {len(rows)} architectures, {by_size} grow by size in all widths that are not fixed,",
        f"and {by_target} by target in all their numbers.",
        f"{layers.count('yes')} of {len(layers)} get a layer more.",
        f"No output moved by more than {largest:.0e}, relative to the largest.",
    ]
    lines = [
        " ".join(said),
        "",
        "| architecture | package | widths not fixed | by size | by target | layers | change |",
        "|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        "What was refused:",
        "",
        *(f"- {row['name']}: {_refused(row['refused'])}." for row in rows if row["refused"]),
    ]
    return "\n".join(lines) + "\n"


def in_short(rows: Rows, topics: Mapping[str, str]) -> str:
    """Returns the table of the README: how many architectures of each topic grow in which way.

    Args:
        rows: the rows.
        topics: of each architecture.
    """
    lines = []
    for topic in dict.fromkeys(topics.values()):
        its = [row for row in rows if topics[row["name"]] == topic]
        layers = [row["layers"] for row in its if row["layers"]]
        by_size = sum(_growable(row) == int(row["by_size"]) for row in its)
        by_target = sum(row["by_target"] == row["sizes"] for row in its)
        more = f"{layers.count('yes')} of {len(layers)}"
        lines.append(f"| {topic} | {len(its)} | {by_size} | {by_target} | {more} |\n")
    return "".join(lines)


def _growable(row: Mapping[str, str]) -> int:
    return int(row["widths"]) - int(row["fixed"])


def _line(row: Mapping[str, str]) -> str:
    cells = [row["name"], row["package"], f"{_growable(row)} of {row['widths']}"]
    cells += [f"{row['by_size']} of {_growable(row)}", f"{row['by_target']} of {row['sizes']}"]
    cells += [row["layers"], row["change"] if float(row["change"]) else "0"]
    return f"| {' | '.join(cells)} |"


def _refused(text: str) -> str:
    """Returns what was refused, by its reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for one in text.split("; "):
        what, _, why = one.partition(": ")
        name, _, way = what.rpartition(" by ")
        names.setdefault((way, why), []).append(name)
    return "; ".join(
        f"`{first}`{f' and {len(rest)} more' if rest else ''} by {way}: {why}"
        for (way, why), (first, *rest) in names.items()
    )
