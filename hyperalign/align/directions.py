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


def find_directions(cross: Tensor, rank: int) -> Directions:
    """The `rank` strongest left singular vectors of a cross-product between white coordinates.

    Args:
        cross: (F, m)
        rank: r, at most F.

    Source of the iteration: Halko, Martinsson and Tropp 2011, arXiv:0909.4061, Algorithm 4.4, on cross·crossᵀ.
    """
    width = len(cross)
    gram = torch.zeros(width, width, dtype=torch.float64)
    add_gram(gram, cross.mT.double())
    gram = gram.triu() + gram.triu(1).mT
    carried = rank + _MORE
    if not _is_iterated(width, rank):
        values, vectors = torch.linalg.eigh(gram)
    else:
        start = torch.Generator().manual_seed(0)
        basis = torch.randn(width, carried, generator=start, dtype=torch.float64)
        for _ in range(_ROUNDS):
            basis = torch.linalg.qr(gram @ basis).Q
        values, turn = torch.linalg.eigh(basis.mT @ (gram @ basis))
        vectors = basis @ turn[:, -rank:]
        values = values[-rank:]
    values, vectors = values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]
    dead = values <= 1e-10 * values[0].clamp_min(1e-30)
    return Directions(vectors.masked_fill(dead, 0.0).float(), values.sqrt().float())


def directions_flops(width: int, n_columns: int, rank: int) -> int:
    """FLOPs of `find_directions` on a cross-product of (width, n_columns)."""
    flops, carried = gram_flops(n_columns, width), rank + _MORE
    if not _is_iterated(width, rank):
        return flops + eigh_flops(width)
    flops += _ROUNDS * (matmul_flops(width, width, carried) + qr_flops(width, carried))
    flops += matmul_flops(width, width, carried) + matmul_flops(carried, width, carried) + eigh_flops(carried)
    return flops + matmul_flops(width, carried, rank)


def _is_iterated(width: int, rank: int) -> bool:
    """Whether iteration is the cheaper way."""
    return width > 2 * (rank + _MORE)
