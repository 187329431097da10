"""Canonical coordinates of one encoder: the same width and scale for all.

One pass over an encoder's rows gives its mean and covariance; an eigendecomposition gives coordinates
c = (Λ + λ·mean Λ)^(-1/2) Uᵀ(z − μ) in which every encoder is white and has the same width R. An encoder narrower
than R has zeros in its last coordinates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.grid import BLOCK, Rows, blocks, to_float
from hyperalign.ledger import matmul_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class CanonicalConfig:
    """How canonical coordinates are made; the one home of these defaults.

    Attributes:
        rank: White coordinates kept, R; a grid whose encoders are all narrower uses their largest width.
        shared_rank: Coordinates kept of these, r: those that the other side predicts best.
        image_power: p, how much a predictable image direction counts more than another: its weight is σ^p.
        ridge: λ, the share of the mean eigenvalue added to each before the root is taken.
        normalise: Whether rows are made unit vectors first.
        max_features: Of a wider encoder, only so many features of largest variance are used; 0 for all.
        n_folds: Parts of the pictures, so that a connector can be made without the pictures it is tried on.
        store_bytes: Coordinates are kept in memory up to this size for the whole grid, else made for each batch.
    """

    rank: int = 320
    shared_rank: int = 128
    image_power: float = 0.5
    ridge: float = 0.1
    normalise: bool = True
    max_features: int = 512
    n_folds: int = 5
    store_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        """Refuse values no run could use."""
        least = {"rank": 1, "shared_rank": 1, "n_folds": 2, "image_power": 0, "max_features": 0, "store_bytes": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0, got {self.ridge}")


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


class Canonical(NamedTuple):
    """The way from an encoder's rows to canonical coordinates.

    Attributes:
        mean: (F,)
        projection: (F, R), zero columns past the encoder's own rank.
        features: (F,) which of the encoder's features are used, ascending.
        width: The encoder's own width D.
        normalise: Whether rows are made unit vectors before the mean is taken off.
    """

    mean: Tensor
    projection: Tensor
    features: Tensor
    width: int
    normalise: bool

    @property
    def own_rank(self) -> int:
        """Coordinates that are not always zero, at least one."""
        return max(1, int(self.projection.ne(0).any(0).sum()))


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
    first = _prepared(to_float(rows[chosen[:BLOCK]]), normalise)
    features = torch.arange(first.shape[1])
    if max_features and len(features) > max_features:
        features = first.var(0, unbiased=False).topk(max_features).indices.sort().values
    shift = first[:, features].mean(0)
    total = torch.zeros(len(features), dtype=torch.float64)
    square = torch.zeros(len(features), len(features), dtype=torch.float64)
    for start in range(0, len(chosen), BLOCK):
        block = first if start == 0 else _prepared(to_float(rows[chosen[start : start + BLOCK]]), normalise)
        block = block[:, features] - shift
        total += block.sum(0, dtype=torch.float64)
        square += (block.T @ block).double()
    mean = total / len(chosen)
    return Moments(
        mean + shift.double(), square / len(chosen) - torch.outer(mean, mean), len(chosen), features, rows.shape[1]
    )


def _prepared(block: Tensor, normalise: bool) -> Tensor:
    return F.normalize(block, dim=1) if normalise else block


def find_canonical(moments: Moments, rank: int, *, ridge: float, normalise: bool) -> Canonical:
    """Whitening to at most `rank` coordinates, the strongest first.

    An encoder with constant rows has no direction to keep: its projection is zero and so are its coordinates.
    """
    values, vectors = torch.linalg.eigh(moments.covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    kept = min(rank, len(values), max(moments.n_rows - 1, 1))
    floor = ridge * values.mean()
    rounding = 1e-12 * float(moments.mean.square().sum())  # of rows that are the same but for the last float32 bit
    alive = (values > 1e-9 * values[0]) & (values > rounding)
    scale = torch.where(alive, (values + floor).rsqrt(), 0.0)
    projection = torch.zeros(len(values), rank, dtype=torch.float64)
    projection[:, :kept] = vectors[:, :kept] * scale[:kept]
    return Canonical(moments.mean.float(), projection.float(), moments.features, moments.width, normalise)


def to_coordinates(rows: Tensor, canonical: Canonical) -> Tensor:
    """Canonical coordinates of rows.

    Args:
        rows: (B, D); NaN and Inf are taken as zeros.
        canonical: The encoder's whitening.

    Returns:
        (B, R)
    """
    rows = _prepared(rows.nan_to_num(0.0, 0.0, 0.0), canonical.normalise)
    if len(canonical.features) < canonical.width:
        rows = rows[:, canonical.features]
    return (rows - canonical.mean) @ canonical.projection


class Coordinates:
    """Canonical coordinates of one encoder's rows: kept in memory where they fit, else made when asked for.

    Attributes:
        rows: The encoder's own rows, (n, D).
        canonical: The encoder's whitening.
        flops: FLOPs of all projections executed so far.
    """

    def __init__(self, rows: Rows, canonical: Canonical, *, keep: bool) -> None:
        """Project everything now if `keep`."""
        self.rows, self.canonical = rows, canonical
        self.flops = 0
        self._kept: Tensor | None = None
        if keep:
            kept = torch.empty(rows.shape[0], canonical.projection.shape[1])
            for start, block in blocks(rows):
                kept[start : start + len(block)] = self._project(block)
            self._kept = kept

    def __len__(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]

    def __getitem__(self, index: slice | NDArray[np.int64]) -> Tensor:
        """(B, R) coordinates of the rows asked for."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(index) if isinstance(index, np.ndarray) else index]
        return self._project(to_float(self.rows[index]))

    def turn(self, by: Tensor) -> None:
        """Multiply all coordinates by a matrix from the right.

        Args:
            by: (R, r)
        """
        self.flops += matmul_flops(len(self.canonical.mean), *by.shape)
        self.canonical = self.canonical._replace(projection=self.canonical.projection @ by)
        if self._kept is not None:
            self.flops += matmul_flops(len(self._kept), *by.shape)
            self._kept = self._kept @ by

    def _project(self, block: Tensor) -> Tensor:
        self.flops += matmul_flops(len(block), *self.canonical.projection.shape)
        return to_coordinates(block, self.canonical)
