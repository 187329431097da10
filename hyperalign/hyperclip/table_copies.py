"""Tables copied row by row, with some of their captions left out.

All columns are kept as they are. A relative path of a picture is written anew, so that it holds from the folder of
the copy.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from hyperalign.embed.plain import first_line
from hyperalign.embed.samples import captions_in
from hyperalign.embed.tables import (
    find_captions,
    find_pictures,
    listed,
    parquet_batches,
    plain_batch,
    rows_of,
    separator,
)
from hyperalign.hyperclip.rules import Item, as_score
from hyperalign.run import drafted

__all__ = ["Judge", "Layout", "copy_table", "table_scores"]

Judge = Callable[[Sequence[Item]], list[list[int]]]
Row = Mapping[str, Any]

_BATCH = 1024  # rows held at a time


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a table or a shard holds what is judged.

    Attributes:
        score: Column or key of the score; None where scores do not matter.
        captions: Column of the captions; None for one that is known by its name.
    """

    score: str | None = None
    captions: str | None = None


def copy_table(path: Path, to: Path, judge: Judge, layout: Layout) -> None:
    """Copy the rows of which `judge` keeps a caption; where it keeps none, nothing is written.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet.
        to: Where the copy goes.
        judge: Says which captions of each item are kept, as positions.
        layout: Which columns hold what.
    """
    if path.suffix.lower() == ".parquet":
        _copy_parquet(path, to, judge, layout)
        return
    kept = _kept_rows(path, to, judge, layout)
    first = next(kept, None)
    if first is None:
        return
    with drafted(to) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        write = _writer(file, path, list(first))
        for row in chain([first], kept):
            write(row)


def table_scores(path: Path, score: str) -> Iterator[float | None]:
    """The score of every row."""
    if path.suffix.lower() == ".parquet":
        for batch in _parquet_batches(path, score):
            yield from (as_score(row[score]) for row in plain_batch(batch.select([score]), path))
        return
    for number, row in rows_of(path):
        yield as_score(row[_present(score, row, path, number)])


def _kept_rows(path: Path, to: Path, judge: Judge, layout: Layout) -> Iterator[Row]:
    """The rows of which a caption is kept, as they stand in the copy, one batch after the other."""
    rows = iter(rows_of(path))
    while batch := list(islice(rows, _BATCH)):
        columns = [_columns(row, path, number, layout) for number, row in batch]
        items = [
            _item(row, column, path, number, layout) for (number, row), (column, _) in zip(batch, columns, strict=True)
        ]
        for (_, row), (column, picture), item, kept in zip(batch, columns, items, judge(items), strict=True):
            if kept:
                moved = {} if picture is None else {picture: _moved(row[picture], path, to)}
                yield {**row, column: _left(row[column], item, kept), **moved}


def _copy_parquet(path: Path, to: Path, judge: Judge, layout: Layout) -> None:
    """Copy a .parquet batch by batch, its types kept."""
    import pyarrow.parquet as parquet

    kept = _kept_batches(path, to, judge, layout)
    first = next(kept, None)
    if first is None:
        return
    with drafted(to) as draft, parquet.ParquetWriter(draft, first.schema) as writer:
        for batch in chain([first], kept):
            writer.write_batch(batch)


def _kept_batches(path: Path, to: Path, judge: Judge, layout: Layout) -> Iterator[Any]:
    """Batches of the rows of which a caption is kept; what is not judged stays in arrow's own form."""
    import pyarrow

    number = 0
    for batch in _parquet_batches(path, layout.score):
        column, picture = _columns(batch.schema.names, path, 0, layout)
        wanted = [name for name in (column, picture, layout.score) if name is not None]
        rows = plain_batch(batch.select(list(dict.fromkeys(wanted))), path)
        items = [_item(row, column, path, number + place, layout) for place, row in enumerate(rows, start=1)]
        number += len(rows)
        judged = list(zip(rows, items, judge(items), strict=True))
        left = batch.filter(pyarrow.array([bool(kept) for _, _, kept in judged]))
        if not len(left):
            continue
        changed = {column: [_left(row[column], item, kept) for row, item, kept in judged if kept]}
        if picture is not None:
            changed[picture] = [_moved(row[picture], path, to) for row, _, kept in judged if kept]
        for name, values in changed.items():
            at = left.schema.get_field_index(name)
            about = left.schema.field(at)
            try:
                left = left.set_column(at, about, pyarrow.array(values, type=about.type))
            except (pyarrow.ArrowException, TypeError, ValueError) as error:
                raise ValueError(f"{path}: column {name!r} cannot be written: {first_line(error)}") from None
        yield left


def _parquet_batches(path: Path, score: str | None) -> Iterator[Any]:
    def choose(names: Sequence[str]) -> Sequence[str]:
        if score is not None:
            _present(score, names, path, 0)
        return names

    return parquet_batches(path, choose, n_rows=_BATCH)


def _columns(names: Iterable[str], path: Path, number: int, layout: Layout) -> tuple[str, str | None]:
    """The column of captions, and that of pictures if there is one."""
    names = list(names)
    found = find_captions(names) if layout.captions is None else _present(layout.captions, names, path, number)
    if found is None:
        raise ValueError(
            f"{path} has no column that is known to hold captions: its columns are "
            f"{', '.join(map(repr, names)) or 'none'}; name it with --captions"
        )
    return found, find_pictures(names)


def _present(name: str, names: Iterable[str], path: Path, number: int) -> str:
    """The name of a column that must be there."""
    found = list(names)
    if name not in found:
        where = f"{path}, line {number}," if number else f"{path}"
        raise ValueError(f"{where} has no column {name!r}; its columns are {', '.join(map(repr, found)) or 'none'}")
    return name


def _item(row: Row, column: str, path: Path, number: int, layout: Layout) -> Item:
    """What of a row is judged."""
    score = None if layout.score is None else row[_present(layout.score, row, path, number)]
    return Item(captions_in(listed(row[column]), path, f"line {number}"), as_score(score))


def _left(value: Any, item: Item, kept: Sequence[int]) -> Any:
    """A cell of captions with those that are kept, in the form that it had."""
    if len(kept) == len(item.captions):
        return value
    left = [item.captions[place] for place in kept]
    return json.dumps(left, ensure_ascii=False) if isinstance(value, str) else left


def _moved(picture: Any, path: Path, to: Path) -> Any:
    """A relative path as it is written from the copy; addresses, absolute paths and what is no path stay."""
    if not isinstance(picture, str) or not picture.strip() or "://" in picture or Path(picture.strip()).is_absolute():
        return picture
    return os.path.normpath(Path(_way(path.parent, to.parent)) / picture.strip())


@lru_cache(maxsize=16)
def _way(folder: Path, of: Path) -> str:
    """How to write a folder from another one; kept, since it is asked for every row."""
    return os.path.relpath(folder.resolve(), of.resolve())


def _line(row: Row) -> str:
    """A row of a .jsonl; half of a surrogate pair, which no file can hold, stays written as it was."""
    line = json.dumps(row, ensure_ascii=False)
    return line if line.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in line) else json.dumps(row)


def _writer(file: Any, path: Path, names: Sequence[str]) -> Callable[[Row], Any]:
    """How a row is written, in the form that its table has."""
    if path.suffix.lower() == ".jsonl":
        return lambda row: file.write(_line(row) + "\n")
    writer = csv.DictWriter(file, names, delimiter=separator(path), lineterminator="\n")
    writer.writeheader()
    return writer.writerow
