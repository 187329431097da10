"""Groups of a label set's pictures from a table beside it, for the accuracy of the worst one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.label_sets import LabelSet
from hyperalign.embed.tables import find_picture_column, plain_rows

__all__ = ["CLASS", "read_groups"]

CLASS = "class"  # stands for the picture's class where the table has no column of that name


def read_groups(
    table: Path | None, columns: Sequence[str], labels: LabelSet
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Group pictures by the values of columns, such as `place`, or `class` and `place`.

    Args:
        table: With a column of pictures, named by `class/picture` or by file name; None where "class" is all there is
            to group by.
        columns: Whose values make a group together.
        labels: The label set.

    Returns:
        (n_images,) group of each picture, and the groups' names.

    Raises:
        ValueError: If a column is missing, or a picture has no row or two that differ.
    """
    if not columns or (table is None and [*columns] != [CLASS]):
        raise ValueError("groups need a table and its columns; give both --metadata FILE and --group-by COLUMN")
    given = {} if table is None else _values(table, columns, labels)
    names = []
    for picture, label in zip(labels.image_ids, labels.labels.tolist(), strict=True):
        if table is not None and picture not in given:
            raise ValueError(f"{table} has no row for the picture {picture!r}; give all or none")
        row = given.get(picture, {})
        names.append(", ".join(row.get(column, labels.class_names[label]) for column in columns))
    known = tuple(sorted(set(names)))
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([numbers[name] for name in names], dtype=np.int64), known


def _values(table: Path, columns: Sequence[str], labels: LabelSet) -> dict[str, dict[str, str]]:
    """Values of each picture of the label set that the table has a row of."""
    files = Counter(name.rpartition("/")[2] for name in labels.image_ids)
    named = {name: name for name in labels.image_ids}
    named |= {file: name for name in labels.image_ids if files[file := name.rpartition("/")[2]] == 1}
    found: dict[str, dict[str, str]] = {}
    for number, row in plain_rows(table):
        missing = [column for column in columns if column not in row and column != CLASS]
        if missing:
            raise ValueError(f"{table} has no column {missing[0]!r}; its columns are {', '.join(map(repr, row))}")
        picture = _picture(str(row[find_picture_column([*row], table)]), named)
        values = {column: f"{column}={row[column]}" for column in columns if column in row}
        if picture is not None and found.setdefault(picture, values) != values:
            raise ValueError(f"{table}, line {number}: {picture!r} has a row with other values above; keep one")
    return found


def _picture(written: str, named: Mapping[str, str]) -> str | None:
    """The picture that a row is of: as it is written, by `class/picture` at its end, or by a file name of its own."""
    parts = written.replace("\\", "/").split("/")
    return next((named[tail] for n in (len(parts), 2, 1) if (tail := "/".join(parts[-n:])) in named), None)
