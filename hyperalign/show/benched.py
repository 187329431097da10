"""A measurement in the terminal: its sheets as tables."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hyperalign.show.table import Column, fit
from hyperalign.show.words import NONE, clean, duration, flops, points, size, times

__all__ = ["benched_table", "in_words"]


def benched_table(record: Mapping[str, Any], *, width: int) -> Group:
    """Every sheet of a measurement, its notes below it.

    Args:
        record: As `bench.measures.take` gives it.
        width: Columns of the terminal.
    """
    parts: list[RenderableType] = []
    for sheet in record["sheets"]:
        rows = sheet["rows"]
        heads = list(rows[0]) if rows else []
        columns = [
            Column(
                head.replace("_", " "),
                [in_words(head, row[head]) for row in rows],
                left=bool(rows) and isinstance(rows[0][head], str),
                goes=max(0, n - 3),
            )
            for n, head in enumerate(heads)
        ]
        parts += [fit(clean(sheet["title"]), columns, width=width, more=[])]
        parts += [Text(clean(note)) for note in sheet["notes"]] + [""]
    return Group(*parts)


def in_words(column: str, value: Any) -> str:
    """One cell, in the unit that the column's name ends with."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, str | bool):
        return clean(value)
    for ending, word in (
        ("flops_per_second", lambda v: f"{flops(v)}/s"),
        ("per_second", lambda v: f"{v:,.0f}/s"),
        ("flops", flops),
        ("seconds", duration),
        ("bytes", size),
        ("ratio", times),
        ("share", lambda v: f"{100 * v:.1f} %"),
        ("score", points),
    ):
        if column.endswith(ending):
            return str(word(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
