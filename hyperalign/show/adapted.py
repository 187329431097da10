"""An adaptation in the terminal: every method's scores, and what it gains over the baseline."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hyperalign.show.table import Column, fit
from hyperalign.show.words import NONE, clean, duration, points

__all__ = ["adapted_table"]

_NAMES = {
    "start": "the winner before",
    "siglip": "SigLIP baseline",
    "hyperclip": "HyperCLIP",
    "hyperclip-flat": "HyperCLIP, no transformer",
}


def adapted_table(record: Mapping[str, Any], *, width: int) -> Group:
    """One row a method; below it the gains over the baseline with their intervals.

    Args:
        record: `adapted.json` of the folder.
        width: Columns of the terminal.
    """
    methods = list(record["scores"])
    scores = [record["scores"][method] for method in methods]
    columns = [Column("method", [_NAMES.get(method, clean(method)) for method in methods], left=True)]
    for name in scores[0]["classes"] if scores else ():
        own = [one["classes"][name] for one in scores]
        columns.append(Column(f"{clean(name)} top 1", [points(one["top_1"]) for one in own]))
        worst = [one.get("worst_group") for one in own]
        if any(value is not None for value in worst):
            columns.append(Column("worst group", [points(value) for value in worst], goes=1))
    columns.append(Column("test R@1", [points(one["retrieval"]["score"]) for one in scores]))
    trained = [record["trainings"].get(method, {}) for method in methods]
    columns.append(Column("adapted", [f"{one.get('n_adapted', 0):,}" for one in trained], goes=2))
    columns.append(Column("pictures/s", [_rate(one.get("images_per_second")) for one in trained], goes=2))
    columns.append(
        Column(
            "took",
            [duration(record["seconds"][method]) if method in record["seconds"] else NONE for method in methods],
            goes=3,
        )
    )
    what = record["pair"] or record["image_encoder"]
    title = f"{clean(what)} on {clean(record['data'])}, {record['n_train']:,} pictures"
    parts: list[RenderableType] = [fit(title, columns, width=width, more=[])]
    return Group(*parts, *(Text(line) for line in _gains(record)))


def _gains(record: Mapping[str, Any]) -> list[str]:
    return [
        f"{_NAMES.get(one['method'], clean(one['method']))} over the SigLIP baseline on {clean(one['classes'])}: "
        f"{one['gain']:+.1f} points (95 % over pictures: {one['low']:+.1f} to {one['high']:+.1f}; one seed)"
        for one in record.get("compared", [])
    ]


def _rate(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"
