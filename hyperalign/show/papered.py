"""The paper's four tables in the terminal, what matters first where space is short."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType

from hyperalign.show.table import Column, fit
from hyperalign.show.words import NONE, clean, count, flops, points

__all__ = ["papered_tables"]

_METHODS = {
    "start": "start",
    "siglip": "SigLIP",
    "hyperclip": "HyperCLIP",
    "hyperclip_flat": "without transformer",
}
_GROUP, _TOP_5 = "_worst_group_score", "_top_5_score"


def papered_tables(sheets: Mapping[str, Mapping[str, Any]], *, width: int) -> Group:
    """Every table that was made, its notes below it.

    Args:
        sheets: `sheets` of `tables.json`.
        width: Columns of the terminal.
    """
    parts: list[RenderableType] = []
    drawn = {"zero-shot": _zero_shot, "worst-group": _worst_group, "overhead": _overhead, "batch-size": _batch_size}
    for name, columns in drawn.items():
        if name in sheets:
            sheet = sheets[name]
            parts += [fit(clean(sheet["title"]), columns(sheet["rows"]), width=width, more=sheet["notes"]), ""]
    return Group(*parts)


def _zero_shot(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [
        *_words(rows, "architecture", "classes"),
        *_compared(rows),
        _column("probe", rows, "probe_score", points, goes=2),
        _column("bound", rows, "bound_score", points, goes=1),
        _column("adapted probe", rows, "adapted_probe_score", points, goes=4),
        *(_column(f"{word} top 5", rows, f"{m}{_TOP_5}", points, goes=6) for m, word in _methods(rows, _TOP_5)),
        _column("pictures", rows, "pictures", _number, goes=5),
    ]


def _worst_group(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [
        *_words(rows, "architecture", "classes"),
        *(_column(word, rows, f"{m}{_GROUP}", points) for m, word in _methods(rows, _GROUP)),
        *(_column(word, rows, f"{word}{_GROUP}", points, goes=2) for word in ("probe", "bound")),
        *(_column(f"{word}, all", rows, f"{m}_average_score", points, goes=3) for m, word in _methods(rows, _GROUP)),
        *(Column("worst", [clean(row["baseline_worst"]) for row in rows], goes=4, left=True) for _ in rows[:1]),
        _column("groups", rows, "groups", _number, goes=5),
    ]


def _overhead(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [
        *_words(rows, "architecture"),
        _column("batch", rows, "batch", _number),
        _column("SigLIP", rows, "siglip_per_second", _rate),
        _column("HyperCLIP", rows, "hyperclip_per_second", _rate),
        _column("slower", rows, "slower_share", _share),
        _column("SigLIP step", rows, "siglip_step_flops", flops, goes=2),
        _column("HyperCLIP step", rows, "hyperclip_step_flops", flops, goes=2),
        _column("added", rows, "added_share", _share, goes=1),
        _column("adapted", rows, "adapted", count, goes=3),
        _column("encoder", rows, "encoder_parameters", count, goes=4),
        _column("hypernetwork", rows, "hypernetwork_parameters", count, goes=4),
        _column("training SigLIP", rows, "training_siglip_per_second", _rate, goes=5),
        _column("training HyperCLIP", rows, "training_hyperclip_per_second", _rate, goes=5),
    ]


def _batch_size(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [
        _column("batch", rows, "batch", _number),
        *_words(rows, "classes"),
        *_compared(rows),
        _column("steps", rows, "steps", _number, goes=1),
    ]


def _compared(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Every method's top 1, and the gain."""
    return [
        *(_column(word, rows, f"{m}_top_1_score", points) for m, word in _methods(rows, "_top_1_score")),
        _column("gain", rows, "gain_score", _signed),
        Column("95 %", [_between(row["low_score"], row["high_score"]) for row in rows], goes=2),
        _column("± seeds", rows, "spread_score", points, goes=3),
    ]


def _methods(rows: Sequence[Mapping[str, Any]], ending: str) -> list[tuple[str, str]]:
    """Methods that have a column with this ending, and what they are called."""
    found = [column.removesuffix(ending) for column in (rows[0] if rows else ()) if column.endswith(ending)]
    return [(method, _METHODS[method]) for method in found if method in _METHODS]


def _words(rows: Sequence[Mapping[str, Any]], *names: str) -> list[Column]:
    return [Column(name, [clean(row[name]) for row in rows], left=True) for name in names]


def _column(
    head: str, rows: Sequence[Mapping[str, Any]], name: str, word: Callable[[Any], str], *, goes: int = 0
) -> Column:
    """One column; – where a row has no value."""
    return Column(head, [NONE if row.get(name) is None else word(row[name]) for row in rows], goes=goes)


def _number(value: int) -> str:
    return f"{value:,}"


def _rate(value: float) -> str:
    return f"{value:,.0f}/s" if value >= 10 else f"{value:.2g}/s"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _between(low: float | None, high: float | None) -> str:
    return NONE if low is None or high is None else f"{low:+.1f} to {high:+.1f}"
