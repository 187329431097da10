"""Embedded pictures on disk, shard by shard, each row with the place of its picture.

    rows/part-00000.npy, part-00000.json, …

Shards are only ever added, and removed when they are damaged or mostly of pictures that are gone. Where a place stands
twice, the later row counts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.plain import misfit
from hyperalign.embed.shards import Part, Rows, damage, read_part, read_record, store_dtype, write_part
from hyperalign.use.sources import Place

__all__ = ["Stock", "compact", "place_of", "read_stock", "store_rows"]

_STEM = "part"

Progress = Callable[[str, int, int], None]


class Stock(NamedTuple):
    """All rows of a folder.

    Attributes:
        parts: Its shards, numbered on from the first row.
        rows: (n, D) over them; None where there are none.
        places: (n,) where each row's picture lies.
        bad: Row and reason of the pictures that could not be decoded; their rows are NaN.
    """

    parts: list[Part]
    rows: Rows | None
    places: list[Place]
    bad: dict[int, str]

    def latest(self) -> dict[Place, int]:
        """The row of each place."""
        return {place: row for row, place in enumerate(self.places)}


def read_stock(folder: Path) -> Stock:
    """All sound shards of a folder; a damaged one is removed, its pictures are embedded again."""
    parts: list[Part] = []
    places: list[Place] = []
    start = 0
    for path in sorted(folder.glob(f"{_STEM}-*.json")):
        part, items = read_part(path), (read_record(path) or {}).get("items", [])
        sound = part is not None and part.file == path.with_suffix(".npy").name and damage(folder, part) is None
        alike = part is not None and part.dim == (parts[0].dim if parts else part.dim)
        if part is None or not (sound and alike) or not _are_places(items, part.stop - part.start):
            path.with_suffix(".npy").unlink(missing_ok=True)
            path.unlink()
            continue
        n_rows = part.stop - part.start
        bad = tuple((start + row, reason) for row, reason in part.bad)
        parts.append(replace(part, start=start, stop=start + n_rows, bad=bad))
        places += [Place(*item) for item in items]
        start += n_rows
    rows = Rows(folder, parts, checked=True) if parts else None
    return Stock(parts, rows, places, {row: reason for part in parts for row, reason in part.bad})


def store_rows(folder: Path, rows: NDArray[Any], places: Sequence[Place], bad: Sequence[tuple[int, str]]) -> None:
    """Add one shard; when this returns, it survives a power cut.

    Args:
        folder: Of the stock.
        rows: (n, D)
        places: (n,) where their pictures lie.
        bad: Which of the n could not be decoded, with the reason.
    """
    numbers = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{_STEM}-*.npy")]
    write_part(
        folder,
        max(numbers, default=-1) + 1,
        0,
        rows.astype(store_dtype(rows, "float16")),
        bad,
        stem=_STEM,
        items=[list(place) for place in places],
    )


def compact(folder: Path, stock: Stock, keep: NDArray[np.int64], *, shard_rows: int, progress: Progress) -> None:
    """Write the rows `keep` once more and remove the shards that held them; a cut in the middle loses nothing."""
    assert stock.rows is not None, "there is something to keep"
    for low in range(0, len(keep), shard_rows):
        some = keep[low : low + shard_rows]
        bad = [(n, stock.bad[row]) for n, row in enumerate(some.tolist()) if row in stock.bad]
        store_rows(folder, stock.rows[some], [stock.places[row] for row in some.tolist()], bad)
        progress("clearing out", low + len(some), len(keep))
    for part in stock.parts:
        (folder / part.file).unlink()
        (folder / part.file).with_suffix(".json").unlink()


def place_of(folder: Path, parts: Sequence[tuple[str, int, int]], rows: Sequence[int]) -> Iterator[Place]:
    """Where the pictures of a few rows lie; only the shards that hold them are asked.

    Args:
        folder: Of the stock.
        parts: File, first row and one past the last row of each shard.
        rows: Which rows.
    """
    starts = [start for _, start, _ in parts]
    records: dict[int, Any] = {}
    for row in rows:
        which = int(np.searchsorted(starts, row, side="right")) - 1
        file, start, _ = parts[which]
        if which not in records:
            records[which] = (read_record((folder / file).with_suffix(".json")) or {}).get("items")
            if not _are_places(records[which], parts[which][2] - start):
                raise ValueError(f"{folder / file} has no sound record; run `hyperalign index` again")
        yield Place(*records[which][row - start])


def _are_places(items: Any, n_rows: int) -> bool:
    """Whether a record says of each row where its picture lies, below the folders that were named."""
    if misfit(items, list[tuple[int, str, str, str]]) is not None or len(items) != n_rows:
        return False
    paths = [kind(name) for _, *both, _ in items for name in both for kind in (PurePosixPath, Path)]
    return not any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)  # Windows has drives too
