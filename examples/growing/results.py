"""Results of the runs: the file of results, ratios, the table and the plot."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from growing.runs import End, Task, Way

COLUMNS = End._fields


def read(path: Path) -> list[End]:
    """Returns the rows of a file of results; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_end(row) for row in csv.DictReader(file)]


def _end(row: dict[str, str]) -> End:
    kinds = End.__annotations__
    return End(*(kinds[name](row[name]) for name in COLUMNS))


def add(path: Path, end: End) -> None:
    """Adds a row to a file of results."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if is_new:
            rows.writerow(COLUMNS)
        rows.writerow([round(x, 6) if isinstance(x, float) else x for x in end])


# Ratios -------------------------------------------------------------------------------------------


def needed(loss: float, budgets: Sequence[float], losses: Sequence[float]) -> float:
    """Returns the budget that is needed to end with a loss.

    It is interpolated between the measured budgets. It is infinite for a loss that no budget
    reaches, and zero for a loss that is worse than that of the smallest budget. A budget that ends
    with a higher loss than a smaller budget counts as if it ended with the same loss.

    Args:
        loss: the loss.
        budgets: the measured budgets, in rising order.
        losses: their final losses.
    """
    best = np.minimum.accumulate(losses)
    if loss > best[0]:
        return 0.0
    if loss < best[-1]:
        return float("inf")
    first = int(np.argmax(best <= loss))  # that reaches the loss
    around = [max(first - 1, 0), first]
    return float(np.interp(-loss, -best[around], np.asarray(budgets)[around]))


class Ratio(NamedTuple):
    """A budget divided by that from scratch for the same loss; a bound outside of measurements."""

    value: float
    sign: str = ""  # ``>`` if from scratch ends better with any budget, ``<`` if with none

    def __str__(self) -> str:
        return "" if np.isnan(self.value) else f"{self.sign}{self.value:.2f}"


Curve = tuple[list[float], list[float]]  # budgets in rising order, and their mean losses


def by_budget(ends: Iterable[End]) -> list[list[End]]:
    """Returns the ends of each requested budget, in rising order of budgets."""
    groups: dict[float, list[End]] = {}
    for end in sorted(ends, key=lambda end: end.asked):
        groups.setdefault(end.asked, []).append(end)
    return [*groups.values()]


def curve(ends: Iterable[End]) -> Curve:
    """Returns the mean budget and the mean loss of the ends of each requested budget."""
    groups = by_budget(ends)
    return (
        [float(np.mean([end.budget for end in group])) for group in groups],
        [float(np.mean([end.loss for end in group])) for group in groups],
    )


def ratio(budget: float, loss: float, scratch: Curve) -> Ratio:
    """Returns the ratio of a budget to the budget from scratch with the same loss."""
    alike = needed(loss, *scratch)
    if alike == 0:
        return Ratio(budget / scratch[0][0], ">")
    if alike == np.inf:
        return Ratio(budget / scratch[0][-1], "<")
    return Ratio(budget / alike)


def budget_for(loss: float, grown: Curve) -> float:
    """Returns the budget with which a way reaches a loss; infinite if it never does."""
    found = needed(loss, *grown)
    return grown[0][0] if found == 0 else found


class Row(NamedTuple):
    """The results of a way.

    Attributes:
        way: the way.
        seeds: number of runs.
        loss: the mean loss with the full budget, or NaN.
        error: its standard error.
        last: the mean loss over the last quarter of the positions.
        ratio: budget divided by the full budget from scratch, for the final loss from scratch.
        second: the same for the second way from scratch, if the task has one.
        singles: ``ratio`` for each seed alone.
        without: the ratio if the small network's training costs nothing.
    """

    way: Way
    seeds: int
    loss: float
    error: float
    last: float
    ratio: Ratio
    second: Ratio
    singles: tuple[Ratio, ...]
    without: Ratio


def rows_of(task: Task, ends: Sequence[End]) -> list[Row]:
    """Returns a row for each way of a task, in the order of the ways."""
    by_way = {way.name: [end for end in ends if end.way == way.name] for way in task.ways}
    bases = [by_way[way.name] for way in task.ways[: task.baselines]]
    return [_row(task, way, by_way[way.name], *bases) for way in task.ways]


def _row(
    task: Task, way: Way, ends: list[End], scratch: list[End], second: Sequence[End] = ()
) -> Row:
    seeds = sorted({end.seed for end in ends})
    full = [end for end in ends if end.asked == max(task.budgets)]
    losses = [end.loss for end in full]
    nothing = Ratio(float("nan"))
    row = Row(
        way,
        len(seeds),
        float(np.mean(losses)) if losses else float("nan"),
        float(np.std(losses, ddof=1) / len(losses) ** 0.5) if len(losses) > 1 else float("nan"),
        float(np.mean([end.last for end in full])) if full else float("nan"),
        nothing,
        nothing,
        (),
        nothing,
    )
    if not ends or not scratch or way == task.ways[0]:
        return row
    if task.until is not None:
        return row._replace(
            ratio=_of_budgets([end.budget for end in ends], scratch),
            singles=tuple(_of_budgets([end.budget], scratch) for end in ends),
            without=_of_budgets([end.budget - end.before for end in ends], scratch),
        )
    target = curve(scratch)[1][-1]
    single = [[end for end in ends if end.seed == seed] for seed in seeds]
    return row._replace(
        ratio=_at(target, curve(ends), scratch),
        second=_at(curve(second)[1][-1], curve(ends), second)
        if second and way not in task.ways[: task.baselines]
        else nothing,
        singles=tuple(_at(target, curve(some), scratch) for some in single),
        without=_at(target, curve(ends), scratch, free=max(end.before for end in ends)),
    )


def _of_budgets(budgets: Sequence[float], scratch: Sequence[End]) -> Ratio:
    """Returns the ratio of mean budgets; a bound if one of them is infinite."""
    ours, theirs = np.mean(budgets), np.mean([end.budget for end in scratch])
    if np.isinf(ours):
        # If neither reaches the accuracy, the ratio is unknown.
        return Ratio(float("nan") if np.isinf(theirs) else float(scratch[0].asked / theirs), ">")
    if np.isinf(theirs):
        return Ratio(float(ours / scratch[0].asked), "<")
    return Ratio(float(ours / theirs))


def _at(loss: float, grown: Curve, scratch: Sequence[End], free: float = 0.0) -> Ratio:
    """Returns the ratio of budgets for the final loss from scratch.

    If a way does not reach this loss with any budget, the loss of its largest budget is compared.

    Args:
        loss: the loss.
        grown: the way.
        scratch: the runs from scratch.
        free: the share of the full budget that is not counted.
    """
    base = curve(scratch)
    budget = budget_for(loss, grown)
    if np.isinf(budget):
        return ratio(grown[0][-1] - free, grown[1][-1], base)
    sign = "<" if budget == grown[0][0] and grown[1][0] < loss else ""
    return Ratio((budget - free) / base[0][-1], sign)


def table(task: Task, ends: Sequence[End]) -> str:
    """Returns a Markdown table with a row for each way of a task, even if it has no runs."""
    measure = "budget until it is learned" if task.until else "test loss"
    heads = [task.name, "seeds", measure, "last quarter", "ratio", "single seeds"]
    heads += ["small network for nothing"]
    heads += [f"ratio to: {way.name}" for way in task.ways[1 : task.baselines]]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows_of(task, ends):
        cells = [row.way.name, str(row.seeds) if row.seeds else "not run"]
        if not row.seeds:
            cells += [""] * (len(heads) - 2)
        else:
            if task.until:
                own = [end.budget for end in ends if end.way == row.way.name]
                most = max(task.budgets)
                cells += [f"{np.mean(own):.2f}" if np.isfinite(own).all() else f"> {most:.2f}", ""]
            else:
                error = "" if np.isnan(row.error) else f" ± {row.error:.4f}"
                cells += [f"{row.loss:.4f}{error}", f"{row.last:.4f}"]
            singles = sorted(row.singles)
            ranges = f"{singles[0]} to {singles[-1]}" if len(singles) > 1 else ""
            cells += [str(row.ratio), ranges, str(row.without) if row.way.grows else ""]
            cells += [str(row.second)] * (task.baselines - 1)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# The plot -----------------------------------------------------------------------------------------


def picture(task: Task, ends: Sequence[End], ways: Sequence[Way] | None = None) -> Any:
    """Returns a figure: the final loss of each way for each budget, mean and range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=120)
    ax = figure.subplots()
    for way in ways or task.ways:
        own = [end for end in ends if end.way == way.name and np.isfinite(end.budget)]
        if not own:
            continue
        budgets, losses = curve(own)
        style: dict[str, Any] = {"color": "black", "linewidth": 2} if way == task.ways[0] else {}
        if not way.grows and way != task.ways[0]:
            style = {"linestyle": "--"}
        (line,) = ax.plot(budgets, losses, marker="o", markersize=4, label=way.name, **style)
        ranges = [[end.loss for end in group] for group in by_budget(own)]
        low, high = [min(some) for some in ranges], [max(some) for some in ranges]
        ax.fill_between(budgets, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    seeds = len({end.seed for end in ends})
    title = f"{task.name}: mean of {seeds} seeds, and their range" if seeds > 1 else task.name
    ax.set(xlabel="FLOPs, as a share of the full budget", ylabel="test loss", title=title)
    if ax.lines:
        ax.legend()
    ax.grid(alpha=0.3)
    return figure
