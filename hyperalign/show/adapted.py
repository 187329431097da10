"""An adaptation in the terminal: every method's scores, and what it gains over the baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType

from hyperalign.show.table import Column, fit
from hyperalign.show.words import NONE, clean, duration, points

__all__ = ["adapted_table"]

_GAINS = "gains in points, 95 % over pictures; one seed"

_NAMES = {
    "start": "the winner before",
    "siglip": "SigLIP baseline",
    "hyperclip": "HyperCLIP",
    "hyperclip-flat": "HyperCLIP, no transformer",
}


def adapted_table(record: Mapping[str, Any], *, width: int) -> Group:
    """One row a method; below it the gains over the winner before and over the baseline, with their intervals.

    Args:
        record: `adapted.json` of the folder.
        width: Columns of the terminal.
    """
    methods = list(record["scores"])
    scores = [record["scores"][method] for method in methods]
    columns = [Column("method", [_named(method) for method in methods], left=True)]
    for name in scores[0]["classes"] if scores else ():
        own = [one["classes"][name] for one in scores]
        columns.append(Column(f"{clean(name)} top 1", [points(one["top_1"]) for one in own]))
        columns.append(Column("95 %", [_between(one, "top_1") for one in own], goes=4))
        columns.append(Column("top 5", [points(one["top_5"]) for one in own], goes=5))
        worst = [one.get("worst_group") for one in own]
        if any(value is not None for value in worst):
            columns.append(Column("worst group", [points(value) for value in worst], goes=1))
    searched = record["configuration"].get("split", "test")
    columns.append(Column(f"{searched} R@1", [points(one["retrieval"]["score"]) for one in scores]))
    columns.append(Column("95 %", [_between(one["retrieval"], "score") for one in scores], goes=4))
    trained = [record["trainings"].get(method, {}) for method in methods]
    if any("kept_step" in one for one in trained):
        columns.append(Column("kept", [_kept(one) for one in trained], goes=3))
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
    if gains := record.get("compared"):
        parts += ["", fit(_GAINS, _gains(gains, f"{searched} R@1"), width=width, more=[])]
    return Group(*parts)


def _gains(gains: Sequence[Mapping[str, Any]], searched: str) -> list[Column]:
    """A row for each two that are compared, a column for each set."""
    rows = list(dict.fromkeys((one["method"], one.get("over", "siglip")) for one in gains))
    columns = [Column("over", [f"{_named(method)} over {_named(over)}" for method, over in rows], left=True)]
    for name in dict.fromkeys(one["classes"] for one in gains):
        own = {(one["method"], one.get("over", "siglip")): one for one in gains if one["classes"] == name}
        cells = [_gain(own[row]) if row in own else NONE for row in rows]
        columns.append(Column(searched if name is None else f"{clean(name)} top 1", cells))
    return columns


def _gain(one: Mapping[str, Any]) -> str:
    return f"{one['gain']:+.1f} ({one['low']:.1f} to {one['high']:.1f})".replace("-", "−")


def _named(method: str) -> str:
    return _NAMES.get(method, clean(method))


def _between(record: Mapping[str, Any], name: str) -> str:
    """An interval; records of older runs have none."""
    return f"{record[f'{name}_low']:.1f}–{record[f'{name}_high']:.1f}" if f"{name}_low" in record else NONE


def _kept(training: Mapping[str, Any]) -> str:
    """The step whose state was kept; of what was not trained, or by an older version, there is none."""
    return f"{training['kept_step']:,} of {training['n_steps']:,}" if "kept_step" in training else NONE


def _rate(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"
