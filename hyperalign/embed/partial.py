"""Rows of some items of an entry, embedded before the rest.

    <entry>/some-00000.npy, some-00000.json, …

They lie in the folder of the entry that they belong to, in the order in which they were asked for; their records say
which items they are. A folder that holds only these has no manifest and is unfinished like any other. Whoever makes
the entry whole takes them over and removes them. Nothing here locks: the cache does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.plain import misfit
from hyperalign.embed.shards import Part, Rows, damage, read_part, read_record, write_part

__all__ = ["Stored", "find_stored", "store"]

_STEM = "some"


class Stored(NamedTuple):
    """What of an entry has been embedded item by item.

    Attributes:
        items: (n,) which item each stored row belongs to.
        rows: (n, D); None where there is nothing.
        bad: Index and reason of the items that could not be embedded; their rows are NaN.
    """

    items: NDArray[np.int64]
    rows: Rows | None
    bad: dict[int, str]

    def find(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) where the rows of stored items lie.

        Raises:
            KeyError: If an item is not stored.
        """
        order = np.argsort(self.items, kind="stable")
        place = np.searchsorted(self.items[order], items)
        inside = place < len(order)
        if not inside.all() or not np.array_equal(self.items[order][place], items):
            raise KeyError("some of the items are not stored")
        return np.asarray(order[place], dtype=np.int64)


def find_stored(folder: Path, *, shards: bool) -> Stored:
    """All sound shards of single items in an entry's folder; a damaged one counts as not there.

    Args:
        folder: Of the entry.
        shards: Whether the finished shards of an entry that is not whole count too.
    """
    parts: list[Part] = []
    items: list[NDArray[np.int64]] = []
    start = 0
    for path in sorted([*folder.glob(f"{_STEM}-*.json"), *(folder.glob("part-*.json") if shards else ())]):
        part, record = read_part(path), read_record(path)
        if part is None or record is None or part.dim != (parts[0].dim if parts else part.dim):
            continue
        if damage(folder, part) is not None:  # first: a record may say that there are more rows than memory can count
            continue
        own = record.get("items", None if path.name.startswith(_STEM) else [*range(part.start, part.stop)])
        if _is_items(own, part.stop - part.start):
            stop = start + part.stop - part.start
            items.append(np.array(own, dtype=np.int64))
            parts.append(replace(part, start=start, stop=stop))
            start = stop
    if not parts:
        return Stored(np.empty(0, np.int64), None, {})
    bad = {index: reason for part in parts for index, reason in part.bad}
    return Stored(np.concatenate(items), Rows(folder, parts, checked=True), bad)


def _is_items(own: Any, n_rows: int) -> bool:
    """Whether what a record says of its rows is one item for each."""
    return misfit(own, list[int]) is None and len(own) == n_rows and all(0 <= item < 2**62 for item in own)


def store(folder: Path, items: NDArray[np.int64], rows: NDArray[Any], bad: Sequence[tuple[int, str]]) -> None:
    """Keep the rows of some items; when this returns, they survive a power cut."""
    used = {path.stem for path in folder.glob(f"{_STEM}-*.npy")}
    number = next(k for k in range(len(used) + 1) if f"{_STEM}-{k:05}" not in used)
    write_part(folder, number, 0, rows, bad, stem=_STEM, items=items.tolist())
