"""What grows of which architecture: writes ``docs/results/architectures.csv`` and ``.md``.

Rows whose package is not installed keep what was found of them before, with its date.

    python tests/benchmarks/architectures.py [NAME ...]
"""

import argparse
import dataclasses
import datetime
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported
# Compiling takes longer than running, and most optimizations save less than they take.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from architecture import load, measured
from architecture_table import CSV, MARKDOWN, markdown, read, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of architectures; by default, all")
    names = parser.parse_args().names
    table = load()
    if unknown := set(names) - table.keys():
        parser.error(f"no architecture {', '.join(sorted(unknown))}; there are {', '.join(table)}")
    recorded = {row["name"]: row for row in read()} if CSV.exists() else {}
    for name in names or table:
        entry = table[name]
        if not entry.is_installed:
            print(f"not run, no {entry.needs}: {name}", flush=True)
            continue
        start = time.process_time()
        row = dataclasses.asdict(measured(entry))
        today = datetime.date.today().isoformat()
        recorded[name] = {k: str(v) for k, v in row.items()} | {"date": today}
        print(f"{time.process_time() - start:5.1f} s {name}", flush=True)
        write([recorded[name] for name in table if name in recorded])
    MARKDOWN.write_text(markdown(read()))


if __name__ == "__main__":
    main()
