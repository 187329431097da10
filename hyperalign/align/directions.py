"""The directions of white space that the other side predicts: the strongest left singular vectors of a cross-product.

A wide encoder's are found by subspace iteration, which costs a fraction of an eigendecomposition and finds the same
space (measured in reports/LOG.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hyperalign.align.moments import add_gram
from hyperalign.ledger import eigh_flops, gram_flops, matmul_flops, qr_flops

_MORE = 32  # directions carried along beyond those asked for
_ROUNDS = 3


class Directions(NamedTuple):
    """An orthonormal basis of what can be predicted, the strongest first.

    Attributes:
        basis: (F, r), zero columns where nothing is left to predict.
        strength: σ, (r,), singular values.
    """

    basis: Tensor
    strength: Tensor

    def weights(self, power: float) -> Tensor:
        """σ^p of each direction, (r,), the strongest 1."""
        weights: Tensor = (self.strength / self.strength[0].clamp_min(1e-12)) ** power
        return weights

    def beside(self, cross: Tensor) -> Tensor:
        """(F, m + r), a cross-product between white coordinates and what these directions have told already."""
        return torch.cat([cross, self.basis * self.strength], 1)


def find_directions(cross: Tensor, rank: int) -> Directions:
    """The `rank` strongest left singular vectors of a cross-product between white coordinates.

    They come from cross·crossᵀ, or where that is the smaller of the two from crossᵀ·cross.

    Args:
        cross: (F, m)
        rank: r, at most F.
    """
    from_columns = _is_from_columns(len(cross), cross.shape[1], rank)
    rows = cross.double() if from_columns else cross.mT.double()
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    add_gram(gram, rows)
    values, vectors = _strongest(gram.triu() + gram.triu(1).mT, rank)
    dead = values <= 1e-10 * values[0].clamp_min(1e-30)
    if from_columns:
        vectors = rows @ vectors / values.masked_fill(dead, 1.0).sqrt()
    return Directions(vectors.masked_fill(dead, 0.0).float(), values.sqrt().float())


def _strongest(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (r,) and their eigenvectors (n, r), the largest first.

    Source of the iteration: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, Algorithm 4.4.
    """
    if not _is_iterated(len(gram), rank):
        values, vectors = torch.linalg.eigh(gram)
    else:
        start = torch.Generator().manual_seed(0)
        basis = torch.randn(len(gram), rank + _MORE, generator=start, dtype=torch.float64)
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(gram @ basis).Q
        values, turn = torch.linalg.eigh(basis.mT @ (gram @ basis))
        vectors, values = basis @ turn[:, -rank:], values[-rank:]
    return values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]


def directions_flops(width: int, n_columns: int, rank: int) -> int:
    """FLOPs of `find_directions` on a cross-product of (width, n_columns)."""
    if _is_from_columns(width, n_columns, rank):
        return gram_flops(width, n_columns) + _strongest_flops(n_columns, rank) + matmul_flops(width, n_columns, rank)
    return gram_flops(n_columns, width) + _strongest_flops(width, rank)


def _strongest_flops(width: int, rank: int) -> int:
    if not _is_iterated(width, rank):
        return eigh_flops(width)
    carried = rank + _MORE
    flops = _ROUNDS * (matmul_flops(width, width, carried) + qr_flops(width, carried))
    flops += matmul_flops(width, width, carried) + matmul_flops(carried, width, carried) + eigh_flops(carried)
    return flops + matmul_flops(width, carried, rank)


def _is_from_columns(width: int, n_columns: int, rank: int) -> bool:
    """Whether the columns are fewer, and enough."""
    return rank <= n_columns < width


def _is_iterated(width: int, rank: int) -> bool:
    """Whether iteration is the cheaper way."""
    return width > 2 * (rank + _MORE)
