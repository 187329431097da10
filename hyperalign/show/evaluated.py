"""Scores of a model on sets, in the terminal: a row for each set, and what is worst in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType

from hyperalign.show.table import Column, fit
from hyperalign.show.words import clean, points

__all__ = ["evaluated_table"]

_RECALLS = [f"{way}_recall_at_{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]


def evaluated_table(name: str, records: Sequence[Mapping[str, Any]], *, width: int) -> Group:
    """Every set in the table of its task.

    Args:
        name: Of the model.
        records: As `use.evaluate.evaluate` gives them.
        width: Columns of the terminal.
    """
    parts: list[RenderableType] = []
    if found := [record for record in records if record["task"] == "zero-shot"]:
        parts += [
            fit(f"{clean(name)}: zero-shot, per cent", _label_columns(found), width=width, more=_worst(found)),
            "",
        ]
    if found := [record for record in records if record["task"] == "retrieval"]:
        parts += [fit(f"{clean(name)}: retrieval, per cent", _split_columns(found), width=width, more=[]), ""]
    return Group(*parts[:-1])


def _label_columns(records: Sequence[Mapping[str, Any]]) -> list[Column]:
    names = {"top 1": "zero_shot_top_1", "top 5": "zero_shot_top_5", "mean per class": "mean_per_class"}
    columns = [Column(head, [points(record[name]) for record in records]) for head, name in names.items()]
    between = Column("95 %", [_between(record, "zero_shot_top_1") for record in records], goes=1)
    worst = [Column("worst class", [points(record["worst_class"]["top_1"]) for record in records], goes=2)]
    if any("worst_group" in record for record in records):
        scores = [record.get("worst_group", {}).get("top_1") for record in records]
        worst.append(Column("worst group", [points(score) for score in scores]))
    sizes = [
        Column("pictures", [f"{record['n_pictures']:,}" for record in records], goes=3),
        Column("classes", [str(record["n_classes"]) for record in records], goes=4),
    ]
    return [_sets(records), columns[0], between, *columns[1:], *worst, *sizes]


def _split_columns(records: Sequence[Mapping[str, Any]]) -> list[Column]:
    return [
        _sets(records),
        Column("split", [clean(record["split"]) for record in records], left=True, goes=4),
        Column("score", [points(record["score"]) for record in records]),
        Column("95 %", [_between(record, "score") for record in records], goes=1),
        *(
            Column(name.replace("_recall_at_", " R@"), [points(record[name]) for record in records], goes=2)
            for name in _RECALLS
        ),
        Column("pictures", [f"{record['n_pictures']:,}" for record in records], goes=3),
        Column("captions", [f"{record['n_captions']:,}" for record in records], goes=3),
    ]


def _sets(records: Sequence[Mapping[str, Any]]) -> Column:
    return Column("set", [clean(record["set"]) for record in records], left=True)


def _between(record: Mapping[str, Any], name: str) -> str:
    return f"{record[f'{name}_low']:.1f}–{record[f'{name}_high']:.1f}"


def _worst(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """In words, what each set is worst at."""
    lines = []
    for record in records:
        for what in ("class", "group"):
            if worst := record.get(f"worst_{what}"):
                count = f"{worst['n']:,} picture{'s' * (worst['n'] != 1)}"
                lines.append(f"{clean(record['set'])}: worst {what} {clean(worst['name'])!r}, {count}")
    return lines
