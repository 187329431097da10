"""First two moments of an encoder's rows, in one pass by blocks."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.grid import BLOCK, Rows, to_float
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
    chosen = np.flatnonzero(ok)
    if not len(chosen):
        raise ValueError(f"an encoder needs usable rows; all {len(ok)} are NaN, Inf or zero")
    first = prepared(to_float(rows[chosen[:BLOCK]]), normalise)
    features = torch.arange(first.shape[1])
    if max_features and len(features) > max_features:
        features = first.var(0, unbiased=False).topk(max_features).indices.sort().values
    shift = first[:, features].mean(0)
    total = torch.zeros(len(features), dtype=torch.float64)
    square = torch.zeros(len(features), len(features), dtype=torch.float64)
    for start in range(0, len(chosen), BLOCK):
        block = first if start == 0 else prepared(to_float(rows[chosen[start : start + BLOCK]]), normalise)
        block = block[:, features] - shift
        total += block.sum(0).double()
        add_gram(square, block)
    square = square.triu() + square.triu(1).T
    mean = total / len(chosen)
    return Moments(
        mean + shift.double(), square / len(chosen) - torch.outer(mean, mean), len(chosen), features, rows.shape[1]
    )


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rowsᵀ rows to `total`, in strips, so that most of the lower one is never computed.

    Args:
        total: (D, D), written to on and above the diagonal.
        rows: (n, D)
    """
    for start in range(0, rows.shape[1], STRIP):
        total[start : start + STRIP, start:] += rows[:, start : start + STRIP].T @ rows[:, start:]


def prepared(block: Tensor, normalise: bool) -> Tensor:
    """Rows as they are, or as unit vectors."""
    return F.normalize(block, dim=1) if normalise else block
