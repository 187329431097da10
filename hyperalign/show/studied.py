"""A study in the terminal: its best trials, what mattered, what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hyperalign.show.table import Column, fit
from hyperalign.show.words import NONE, clean, duration

__all__ = ["in_words", "studied_table", "study_lines"]

_SHOWN = 10


def studied_table(record: Mapping[str, Any], *, width: int) -> Group:
    """The best trials of a study, what mattered and what it cost.

    Args:
        record: `study.json`.
        width: Columns of the terminal.
    """
    trials = {trial["number"]: trial for trial in record["trials"]}
    complete = [trial for trial in record["trials"] if trial["values"]]
    front = [trials[number] for number in record["best"]]
    rest = sorted((one for one in complete if one not in front), key=lambda one: -one["values"][0])
    rows = [*front, *(rest if len(record["objectives"]) == 1 else [])][:_SHOWN]
    title = "Best trials" if len(record["objectives"]) == 1 else "Pareto front"
    parts: list[RenderableType] = [_table(title, rows, record["objectives"], width)]
    parts += [Text(clean(line)) for line in study_lines(record)]
    return Group(*parts)


def _table(title: str, rows: Sequence[Mapping[str, Any]], objectives: Sequence[str], width: int) -> RenderableType:
    columns = [Column("trial", [str(row["number"]) for row in rows], left=False, goes=0)]
    for place, name in enumerate(objectives):
        columns.append(Column(name, [f"{row['values'][place]:.4g}" for row in rows], left=False, goes=0))
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    for number, name in enumerate(names, start=1):
        cells = [in_words(row["params"].get(name)) for row in rows]
        columns.append(Column(name.replace("_", " "), cells, left=True, goes=number))
    columns.append(Column("time", [duration(row["seconds"]) for row in rows], left=False, goes=len(names) + 1))
    return fit(title, columns, width=width, more=[])


def in_words(value: Any) -> str:
    """A parameter's value: a number to four figures, a choice by its name; – where there is none."""
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else clean(value)


def study_lines(record: Mapping[str, Any]) -> list[str]:
    """What else there is to say of a study: states, what mattered, what it cost, and why it ended.

    Args:
        record: `study.json`; names in it are untrusted.
    """
    complete = [trial for trial in record["trials"] if trial["values"]]
    states = ", ".join(f"{count} {state}" for state, count in record["n_trials"].items())
    lines = [f"trials: {states or 'none'}"]
    if record["n_given_back"]:
        lines.append(f"given back, because their workers were gone: {record['n_given_back']}")
    if record["importances"]:
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in record["importances"].items())
        lines.append(f"what mattered, of {len(complete)} trials (PED-ANOVA): {shares}")
    spent = ", ".join(f"{what} {tflop:.3g}" for what, tflop in record["spent_tflop"].items() if tflop)
    lines += [f"spent, in TFLOP: {spent}"] if spent else []
    return lines + ([f"ended early: {record['stopped']}"] if record["stopped"] else [])
