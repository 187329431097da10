"""One row for each picture, whichever side an encoder is on: its own, or the mean over the picture's captions."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Whitening, centred
from hyperalign.align.grid import BLOCK, CaptionMeans, Rows, to_float


class Side(Protocol):
    """Centred rows of one encoder, one for each picture."""

    whitening: Whitening

    def block(self, first: int, last: int) -> Tensor:
        """(last − first, F) rows of some pictures; zeros where a picture has none."""


class Pictures:
    """Centred rows of an image encoder."""

    def __init__(self, rows: Rows, ok: NDArray[np.bool_], whitening: Whitening) -> None:
        """Rows (n, D), which of them are usable (n,), and how they become white."""
        self.rows, self.ok, self.whitening = rows, ok, whitening

    def block(self, first: int, last: int) -> Tensor:
        """(last − first, F), zeros where a row is unusable."""
        found = centred(to_float(self.rows[first:last]), self.whitening)
        return found * torch.from_numpy(self.ok[first:last]).unsqueeze(1)


class Captions:
    """Centred rows of a text encoder, the mean over each picture's usable captions."""

    def __init__(self, rows: Rows, ok: NDArray[np.bool_], whitening: Whitening, owner: NDArray[np.int64]) -> None:
        """Rows (n_captions, D), which of them are usable, how they become white, and the picture of each."""
        self.rows, self.whitening = rows, whitening
        self.means = CaptionMeans(ok, owner)

    def block(self, first: int, last: int) -> Tensor:
        """(last − first, F), zeros where no caption is usable."""
        return self.means(lambda part: centred(to_float(self.rows[part]), self.whitening), first, last)


class KeptRows:
    """A side whose rows are read once and kept."""

    def __init__(self, side: Side, n_images: int) -> None:
        """Read everything."""
        self.whitening = side.whitening
        self.rows = torch.cat([side.block(first, last) for first, last in picture_blocks(n_images)])

    def block(self, first: int, last: int) -> Tensor:
        """(last − first, F)."""
        return self.rows[first:last]


def picture_blocks(n_images: int) -> Iterator[tuple[int, int]]:
    """Where blocks of pictures begin and end."""
    for first in range(0, n_images, BLOCK):
        yield first, min(first + BLOCK, n_images)
