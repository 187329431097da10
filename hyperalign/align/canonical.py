"""Canonical coordinates of one encoder: the same width and scale for all.

One pass over an encoder's rows gives mean and covariance Σ; with Σ + λ·mean(diag Σ)·I = L Lᵀ the rows L⁻¹(z − μ) are
white. Which R directions of white space are kept is not this module's business (see `directions`): here a direction
becomes part of a projection, and a projection is applied to rows. An encoder narrower than R has zeros in its last
coordinates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.grid import Rows, blocks, to_float
from hyperalign.align.moments import Moments, only, prepared
from hyperalign.ledger import matmul_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class CanonicalConfig:
    """How canonical coordinates are made; the one home of these defaults.

    Attributes:
        rank: Coordinates kept, R: those that the other side predicts best. An encoder narrower than R keeps all.
        image_power: p, how much a predictable image direction counts more than another: its weight is σ^p.
        image_ridge: κ of image encoders. λ = κF/n of the mean variance is added to each of F features, for the
            covariance of n pictures is the noisier the wider it is and the fewer they are.
        text_ridge: κ of text encoders; n is pictures here too, for captions of one picture are alike.
        normalise: Whether rows are made unit vectors first.
        max_features: Of a wider encoder, only so many features of largest variance are used; 0 for all.
        targets_per_rank: Directions are found from so many times R coordinates of the other side, where that is
            cheaper than from all; at least 1.
        sketch_per_rank: Which ones, from so many times R random combinations of image coordinates; at least as many.
        store_bytes: Rows and coordinates are kept in memory up to this size for the whole grid, else read and made
            again where they are needed.
    """

    rank: int = 80
    image_power: float = 0.5
    image_ridge: float = 6.0
    text_ridge: float = 0.3
    normalise: bool = True
    max_features: int = 512
    targets_per_rank: float = 1.6
    sketch_per_rank: float = 6.4
    store_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        """Refuse values no run could use."""
        least = {"rank": 1, "image_power": 0, "max_features": 0, "store_bytes": 0, "targets_per_rank": 1}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("image_ridge", "text_ridge"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.sketch_per_rank >= self.targets_per_rank:
            raise ValueError(
                f"sketch_per_rank must be at least targets_per_rank, got {self.sketch_per_rank} and "
                f"{self.targets_per_rank}"
            )


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


class Whitening(NamedTuple):
    """How an encoder's rows become white: L⁻¹(z − μ).

    Attributes:
        mean: μ, (F,)
        root: L, (F, F), lower triangular.
        features: (F,) which of the encoder's features are used, ascending.
        width: The encoder's own width D.
        normalise: Whether rows are made unit vectors first.
        varies: Whether the rows differ at all; of constant rows nothing can be kept.
        n_rows: Usable rows it comes from.
    """

    mean: Tensor
    root: Tensor
    features: Tensor
    width: int
    normalise: bool
    varies: bool
    n_rows: int

    def project(self, directions: Tensor) -> Tensor:
        """The projection of centred rows to some directions of white space: L⁻ᵀ V for V of (F, r)."""
        if not self.varies:
            return torch.zeros_like(directions)
        solved: Tensor = torch.linalg.solve_triangular(self.root.mT, directions, upper=True)
        return solved

    def whiten(self, centred: Tensor) -> Tensor:
        """White rows (n, F) of centred rows (n, F)."""
        if not self.varies:
            return torch.zeros_like(centred)
        solved: Tensor = torch.linalg.solve_triangular(self.root, centred.mT, upper=False)
        return solved.mT

    def canonical(self, projection: Tensor, rank: int) -> Canonical:
        """A projection of centred rows as the way to `rank` coordinates, the last of them zero where it is narrower."""
        padded = projection.new_zeros(len(self.mean), rank)
        padded[:, : projection.shape[1]] = projection
        return Canonical(self.mean, padded, self.features, self.width, self.normalise)


def find_whitening(moments: Moments, *, ridge: float, normalise: bool) -> Whitening:
    """Whitening from moments; of rows that are the same but for rounding nothing is left."""
    scale = float(moments.covariance.diagonal().mean())
    rounding = 1e-12 * float(moments.mean.square().sum())  # of rows that are the same but for the last float32 bit
    varies = scale > rounding and moments.n_rows > 1
    eye = torch.eye(len(moments.mean), dtype=torch.float64)
    root = torch.linalg.cholesky(moments.covariance + ridge * scale * eye) if varies else eye
    return Whitening(
        moments.mean.float(), root.float(), moments.features, moments.width, normalise, varies, moments.n_rows
    )


def to_coordinates(rows: Tensor, canonical: Canonical) -> Tensor:
    """Canonical coordinates of rows.

    Args:
        rows: (B, D); NaN and Inf are taken as zeros.
        canonical: The encoder's whitening.

    Returns:
        (B, R)
    """
    rows = prepared(rows.nan_to_num(0.0, 0.0, 0.0), canonical.normalise)
    return only(rows, canonical.features, canonical.width).sub_(canonical.mean) @ canonical.projection


def centred(rows: Tensor, whitening: Whitening) -> Tensor:
    """The features used of rows (B, D), the mean off, (B, F); NaN and Inf are taken as zeros."""
    rows = prepared(rows.nan_to_num(0.0, 0.0, 0.0), whitening.normalise)
    return only(rows, whitening.features, whitening.width).sub_(whitening.mean)


class Coordinates:
    """Canonical coordinates of one encoder's rows: kept in memory, or made when asked for.

    Attributes:
        rows: The encoder's own rows, (n, D).
        canonical: The way to coordinates.
        flops: FLOPs of all projections executed so far.
    """

    def __init__(self, rows: Rows, canonical: Canonical, kept: Tensor | None = None) -> None:
        """Nothing is computed yet; `kept` are coordinates (n, R) that are there already."""
        self.rows, self.canonical = rows, canonical
        self.flops = 0
        self._kept = kept

    def __len__(self) -> int:
        """Number of rows."""
        return self.rows.shape[0]

    def __getitem__(self, index: slice | NDArray[np.int64]) -> Tensor:
        """(B, R) coordinates of the rows asked for."""
        if self._kept is not None:
            return (
                self._kept[index] if isinstance(index, slice) else self._kept.index_select(0, torch.from_numpy(index))
            )
        return self._project(to_float(self.rows[index]))

    def keep(self) -> None:
        """Project everything now, for whoever goes through all rows more than once."""
        if self._kept is None:
            self._kept = torch.cat([self._project(block) for _, block in blocks(self.rows)])

    def _project(self, block: Tensor) -> Tensor:
        self.flops += matmul_flops(len(block), *self.canonical.projection.shape)
        return to_coordinates(block, self.canonical)
