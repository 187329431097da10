"""First two moments of an encoder's rows, by blocks."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.grid import BLOCK, CaptionMeans, Rows, to_float
from hyperalign.ledger import STRIP


class Moments(NamedTuple):
    """First two moments of an encoder's rows.

    Attributes:
        mean: (F,), float64, of the features used.
        covariance: (F, F), float64, divided by the number of rows.
        n_rows: Usable rows they come from.
        features: (F,) which of the encoder's features are used, ascending.
        width: The encoder's own width D.
    """

    mean: Tensor
    covariance: Tensor
    n_rows: int
    features: Tensor
    width: int


def find_moments(rows: Rows, ok: NDArray[np.bool_], *, normalise: bool, max_features: int = 0) -> Moments:
    """Mean and covariance over the usable rows, in one pass by blocks.

    Products are taken in float32 of rows from which the first block's mean is already off, and added up in float64.
    Of a wide encoder the features of largest variance are used; the variance is the first 4,096 usable rows'.

    Args:
        rows: (n, D)
        ok: (n,) which rows are usable.
        normalise: Whether rows are made unit vectors first.
        max_features: At most so many features; 0 for all.

    Raises:
        ValueError: Where no row is usable.
    """
    reader = _Reader(rows, np.flatnonzero(ok), normalise, max_features)
    sums = _Sums(len(reader.features))
    for block in reader:
        sums.total += block.sum(0).double()
        add_gram(sums.square, block)
    return reader.moments(sums)


def find_caption_moments(
    rows: Rows, ok: NDArray[np.bool_], owner: NDArray[np.int64], *, normalise: bool, max_features: int = 0
) -> Moments:
    """Mean and covariance of captions, from fewer products where pictures have many.

    The covariance is that of the pictures' mean captions and the mean covariance around them. The first part is taken
    from all captions, the second from two of each picture, each counting as much as half of its picture's captions
    (measured in reports/LOG.md: nothing is lost). Where that saves nothing, it is `find_moments`.

    Args:
        rows: (n, D)
        ok: (n,) which rows are usable.
        owner: (n,) picture of each caption, non-decreasing.
        normalise: Whether rows are made unit vectors first.
        max_features: At most so many features; 0 for all.

    Raises:
        ValueError: Where no row is usable.
    """
    if moment_rows(ok, owner) == int(ok.sum()):
        return find_moments(rows, ok, normalise=normalise, max_features=max_features)
    reader, means = _Reader(rows, np.flatnonzero(ok), normalise, max_features), CaptionMeans(ok, owner)
    counts, pair = np.bincount(owner[ok], minlength=int(owner[-1]) + 1), _two_of_each(ok, owner)
    sums = _Sums(len(reader.features))
    for first in range(0, len(counts), BLOCK):
        count = torch.from_numpy(counts[first : first + BLOCK])
        mean = means(reader.__getitem__, first, first + len(count))
        sums.total += (mean * count.unsqueeze(1)).sum(0).double()
        add_gram(sums.square, mean[count > 0] * count[count > 0].sqrt().unsqueeze(1))
        two = pair[slice(*np.searchsorted(owner[pair], (first, first + len(count))))]
        around = torch.from_numpy(owner[two] - first)
        add_gram(sums.square, (reader[two] - mean[around]) * (count[around] / 2).sqrt().unsqueeze(1))
    return reader.moments(sums)


def moment_rows(ok: NDArray[np.bool_], owner: NDArray[np.int64]) -> int:
    """Rows of which `find_caption_moments` takes products."""
    counts = np.bincount(owner[ok])
    return int(min(counts.sum(), (counts > 0).sum() + 2 * (counts > 1).sum()))


def _two_of_each(ok: NDArray[np.bool_], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two usable captions of each picture that has so many, other places in other pictures."""
    usable = np.flatnonzero(ok)
    own = owner[usable]
    place, count = np.arange(len(own)) - np.searchsorted(own, own), np.bincount(own, minlength=1)[own]
    taken = (place == own % count) | (place == (own + count // 2) % count)
    pairs: NDArray[np.int64] = usable[taken & (count > 1)]
    return pairs


class _Reader:
    """Features of an encoder's rows, the mean of the first block off."""

    def __init__(self, rows: Rows, chosen: NDArray[np.int64], normalise: bool, max_features: int):
        if not len(chosen):
            raise ValueError(f"an encoder needs usable rows; all {rows.shape[0]} are NaN, Inf or zero")
        self.rows, self.chosen, self.normalise, self.n_rows = rows, chosen, normalise, len(chosen)
        first = prepared(to_float(rows[chosen[:BLOCK]]), normalise)
        self.features = torch.arange(first.shape[1])
        if max_features and len(self.features) > max_features:
            spread = (first - first.mean(0)).square_().mean(0)  # an eighth of the time of `var`
            self.features = spread.topk(max_features).indices.sort().values
        self.first = only(first, self.features, first.shape[1])
        self.shift = self.first.mean(0)

    def __iter__(self) -> Iterator[Tensor]:
        """Blocks of the usable rows; the first was read already."""
        yield self.first - self.shift
        for start in range(BLOCK, len(self.chosen), BLOCK):
            yield self[self.chosen[start : start + BLOCK]]

    def __getitem__(self, index: slice | NDArray[np.int64]) -> Tensor:
        found = to_float(self.rows[index]).nan_to_num_(0.0, 0.0, 0.0)  # of rows that means leave out
        return only(prepared(found, self.normalise), self.features, found.shape[1]).sub_(self.shift)

    def moments(self, sums: "_Sums") -> Moments:
        """What the sums over all rows come to."""
        square = sums.square.triu() + sums.square.triu(1).T
        mean = sums.total / self.n_rows
        covariance = square / self.n_rows - torch.outer(mean, mean)
        return Moments(mean + self.shift.double(), covariance, self.n_rows, self.features, self.rows.shape[1])


class _Sums:
    """Sums of rows and of their products, in float64, the latter on and above the diagonal."""

    def __init__(self, width: int):
        self.total = torch.zeros(width, dtype=torch.float64)
        self.square = torch.zeros(width, width, dtype=torch.float64)


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rowsᵀ rows to `total`, in strips, so that most of the lower one is never computed.

    Args:
        total: (D, D), written to on and above the diagonal.
        rows: (n, D)
    """
    for start in range(0, rows.shape[1], STRIP):
        total[start : start + STRIP, start:] += rows[:, start : start + STRIP].T @ rows[:, start:]


def prepared(block: Tensor, normalise: bool) -> Tensor:
    """Rows as they are, or as unit vectors, in their place where they have no gradient."""
    return F.normalize(block, dim=1, out=None if block.requires_grad else block) if normalise else block


def only(block: Tensor, features: Tensor, width: int) -> Tensor:
    """(n, F) of (n, D): some features, or the block itself where they are all D."""
    return block if len(features) == width else block.index_select(1, features)
