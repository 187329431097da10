"""The rows that all methods see: N image encoders and M text encoders over the same items.

Rows may be memory maps larger than memory: nothing here or above reads them but by block or by batch. Items whose
row is unusable for an encoder (NaN, Inf, all zeros) are masked for that encoder alone and never dropped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PairIndex = tuple[int, int]  # which image and which text encoder

BLOCK = 4096  # rows read at a time: 12 MB of float32 at width 768
KEEP_BYTES = 256 * 2**20  # of a table that is kept in memory as float32; of a side whose tables are used at once


class Rows(Protocol):
    """A (n, D) table of embeddings, in memory or on disk; NumPy arrays are one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The rows of a slice or of an index array, as a copy."""


@dataclass(frozen=True, slots=True)
class Picked:
    """Some rows of a table, by index; nothing is copied until it is asked for.

    Attributes:
        rows: (n, D)
        index: (m,) which rows, ascending.
    """

    rows: Rows
    index: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, D)."""
        return (len(self.index), self.rows.shape[1])

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Rows of the selection."""
        return self.rows[self.index[index]]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Embeddings of the same items by N image and M text encoders.

    Attributes:
        images: N tables (n_images, D_i).
        texts: M tables (n_captions, D_j).
        owner: (n_captions,) index of each caption's image, non-decreasing; every image has a caption.
        image_ok: (N, n_images), False where an encoder gave no usable row.
        text_ok: (M, n_captions), the same.
    """

    images: tuple[Rows, ...]
    texts: tuple[Rows, ...]
    owner: NDArray[np.int64]
    image_ok: NDArray[np.bool_]
    text_ok: NDArray[np.bool_]

    @property
    def n_images(self) -> int:
        """Pictures in the split."""
        return int(self.image_ok.shape[1])

    @property
    def n_captions(self) -> int:
        """Captions in the split."""
        return len(self.owner)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return len(self.images), len(self.texts)

    def pairs(self) -> list[PairIndex]:
        """All N×M pairs, image-major."""
        n_image_encoders, n_text_encoders = self.shape
        return [(i, j) for i in range(n_image_encoders) for j in range(n_text_encoders)]


def build_grid(images: list[Rows], texts: list[Rows], owner: NDArray[np.int64]) -> Grid:
    """Look once through all rows for unusable ones and put the tables together.

    Raises:
        ValueError: Where a side has no encoder, a table's length does not fit the items, or captions are not in the
            order of their pictures.
    """
    n_images = int(owner.max()) + 1 if len(owner) else 0
    if n_images == 0:
        raise ValueError("a grid needs at least one picture with a caption, got none")
    if not images or not texts:
        raise ValueError(
            f"a grid needs an encoder on each side, got {len(images)} for images and {len(texts)} for texts"
        )
    if owner[0] != 0 or not np.isin(np.diff(owner), (0, 1)).all():
        raise ValueError("captions must stand in the order of their pictures, each picture with at least one")
    for kind, tables, n_rows in (("image", images, n_images), ("text", texts, len(owner))):
        for k, rows in enumerate(tables):
            if rows.shape[0] != n_rows:
                raise ValueError(f"{kind} encoder {k} must have {n_rows} rows, one for each item, got {rows.shape[0]}")
    image_ok = np.stack([usable(rows) for rows in images])
    text_ok = np.stack([usable(rows) for rows in texts])
    return Grid(images=tuple(images), texts=tuple(texts), owner=owner, image_ok=image_ok, text_ok=text_ok)


def check_pictures(grid: Grid) -> None:
    """Refuse a grid that nothing can be learned from.

    Raises:
        ValueError: If there are fewer than two pictures.
    """
    if grid.n_images < 2:
        raise ValueError(f"training needs at least 2 pictures to tell apart, got {grid.n_images}")


def usable(rows: Rows) -> NDArray[np.bool_]:
    """(n,), True where a row is finite and not all zeros."""
    ok = np.empty(rows.shape[0], dtype=np.bool_)
    for start, block in blocks(rows):
        ok[start : start + len(block)] = (block.isfinite().all(1) & block.ne(0).any(1)).numpy()
    return ok


def blocks(rows: Rows, size: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
    """Float32 blocks of a table and where they start."""
    for start in range(0, rows.shape[0], size):
        yield start, to_float(rows[start : start + size])


def to_float(rows: NDArray[Any]) -> Tensor:
    """A float32 tensor of its own memory; what is too large for float32 becomes Inf."""
    return torch.from_numpy(np.array(rows)).float()  # torch converts float16 several times as fast as NumPy


class CaptionMeans:
    """Means over the usable captions of each picture."""

    def __init__(self, ok: NDArray[np.bool_], owner: NDArray[np.int64]) -> None:
        """Which captions are usable, (n,), and the picture of each, (n,), non-decreasing."""
        self.ok, self.owner = ok, owner

    def __call__(self, rows: Callable[[slice], Tensor], first: int, last: int) -> Tensor:
        """(last − first, D) from the rows (B, D) of slices of captions; zeros where a picture has none."""
        start, stop = np.searchsorted(self.owner, (first, last)).tolist()
        total, count = None, torch.zeros(last - first)
        for at in range(start, stop, BLOCK):
            part = slice(at, min(at + BLOCK, stop))
            to, counted = torch.from_numpy(self.owner[part] - first), torch.from_numpy(self.ok[part]).float()
            found = rows(part)
            found = found if self.ok[part].all() else found * counted.unsqueeze(1)
            total = found.new_zeros(last - first, found.shape[1]) if total is None else total
            total.index_add_(0, to, found)
            count.index_add_(0, to, counted)
        assert total is not None, "every picture has a caption"
        return total / count.clamp_min(1).unsqueeze(1)


class Gather:
    """Float32 batches of one table: kept in memory where it is small, else read from the table each time."""

    def __init__(self, rows: Rows, *, keep_bytes: int = KEEP_BYTES) -> None:
        """Nothing is read yet; at the first batch everything, if it takes at most `keep_bytes` as float32."""
        self.rows = rows
        self._small = 4 * rows.shape[0] * rows.shape[1] <= keep_bytes
        self._kept: Tensor | None = None

    def __getitem__(self, index: NDArray[np.int64]) -> Tensor:
        """(B, D) rows, NaN and Inf as zeros."""
        if self._kept is None and self._small:
            self._kept = torch.cat([block for _, block in blocks(self.rows)]).nan_to_num_(0.0, 0.0, 0.0)
        if self._kept is not None:
            return self._kept.index_select(0, torch.from_numpy(index))
        return to_float(self.rows[index]).nan_to_num_(0.0, 0.0, 0.0)
