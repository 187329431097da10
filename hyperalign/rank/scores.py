"""Training-free scores of pairs: how alike two sets of rows are before any connector is learned.

Row i of an image encoder and row i of a text encoder describe the same item (the mean of its captions). What belongs
to one encoder, its Gram matrix, neighbours and principal directions, is computed once and not once per pair. A row
without direction (NaN, Inf, zeros) counts as the encoder's mean, so it says nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.ledger import eigh_flops, matmul_flops
from hyperalign.rank.metrics import nearest, usable

__all__ = ["TrainingFree", "cca_flops", "cka_flops", "mutual_knn_flops", "training_free_scores"]

N_NEIGHBOURS = 10  # as in Huh et al. 2024
N_DIRECTIONS = 64  # principal directions compared by CCA
_N_SPARE = 8  # further directions of the random sketch, and
_N_POWERS = 2  # its power iterations: enough for the leading ones to be exact to three digits


class TrainingFree(NamedTuple):
    """Scores of N image encoders joined to M text encoders; higher is more alike.

    Attributes:
        cka: (N, M) linear centred kernel alignment, unbiased: 1 for equal Gram matrices, 0 expected for unrelated
            rows, where it may be slightly negative. Source: Kornblith et al. 2019, arXiv:1905.00414, with the
            U-statistic of Song et al. 2012, J. Mach. Learn. Res. 13, as in Nguyen et al. 2021, arXiv:2010.15327.
        mutual_knn: (N, M) share of the k nearest neighbours that both see; k / (n − 1) expected for unrelated rows.
            Source: Huh et al. 2024, arXiv:2405.07987.
        cca: (N, M) mean canonical correlation of the leading principal directions, which is what regularises it;
            about 0.85 √(R / n) for unrelated rows. Source: Raghu et al. 2017, arXiv:1706.05806.
    """

    cka: NDArray[np.float64]
    mutual_knn: NDArray[np.float64]
    cca: NDArray[np.float64]


class _View(NamedTuple):
    """One encoder's rows as the three scores see them.

    Attributes:
        gram: (n²,) U-centred Gram matrix of unit length; zeros where nothing varies.
        neighbours: (n, k) indices.
        basis: (n, R) orthonormal principal directions of the items; zero columns where there are fewer.
        n_directions: Columns that are not zero.
    """

    gram: Tensor
    neighbours: Tensor
    basis: Tensor
    n_directions: int


@torch.no_grad()
def training_free_scores(
    images: Sequence[NDArray[np.float32]],
    texts: Sequence[NDArray[np.float32]],
    *,
    k: int = N_NEIGHBOURS,
    rank: int = N_DIRECTIONS,
) -> TrainingFree:
    """Score every pair of N image and M text encoders on a sample of n items.

    Memory is that of M Gram matrices (4 n² bytes each) and as many tables of neighbours (n² bytes): 1,000 items are
    plenty.

    Args:
        images: For each image encoder (n, D_i); read one at a time, so that the sequence may open them as it goes.
        texts: For each text encoder (n, D_j), the same items.
        k: Neighbours; at most n − 1 are taken.
        rank: Principal directions R; at most n / 4 are taken, or any two encoders would look alike.
    """
    seen = [_view(rows, k, rank) for rows in texts]
    if not seen or len(images) == 0:
        raise ValueError(f"scores need encoders on both sides, got {len(images)} and {len(texts)}")
    n_items = len(seen[0].neighbours)
    grams, bases = torch.stack([view.gram for view in seen]), torch.stack([view.basis for view in seen])
    known = torch.zeros(len(seen), n_items, n_items, dtype=torch.bool)
    known.scatter_(2, torch.stack([view.neighbours for view in seen]), True)
    n_directions = torch.tensor([view.n_directions for view in seen])
    cka, mutual_knn, cca = [], [], []
    for rows in images:
        view = _view(rows, k, rank)
        if len(view.neighbours) != n_items:
            raise ValueError(f"all encoders must see the same items, got {len(view.neighbours)} and {n_items} rows")
        cka.append((grams @ view.gram[:, None])[:, 0])
        both = known.gather(2, view.neighbours.expand(len(seen), -1, -1))
        mutual_knn.append(both.double().mean((1, 2)))
        shared = n_directions.clamp(max=view.n_directions)
        correlations = torch.linalg.svdvals(bases.mT @ view.basis)
        cca.append(correlations.sum(1) / shared.clamp(min=1))
    return TrainingFree(*(torch.stack(part).double().numpy() for part in (cka, mutual_knn, cca)))


def cka_flops(n_items: int, image_dims: Sequence[int], text_dims: Sequence[int]) -> int:
    """FLOPs of `cka`: a Gram matrix per encoder, one product of two Gram matrices per pair."""
    per_encoder = sum(matmul_flops(n_items, dim, n_items) for dim in (*image_dims, *text_dims))
    return per_encoder + len(image_dims) * len(text_dims) * matmul_flops(1, n_items**2, 1)


def mutual_knn_flops(n_items: int, image_dims: Sequence[int], text_dims: Sequence[int]) -> int:
    """FLOPs of `mutual_knn`: all similarities per encoder; neighbours are compared, not multiplied, per pair."""
    return sum(matmul_flops(n_items, dim, n_items) for dim in (*image_dims, *text_dims))


def cca_flops(n_items: int, image_dims: Sequence[int], text_dims: Sequence[int], *, rank: int = N_DIRECTIONS) -> int:
    """FLOPs of `cca`: a random sketch per encoder, one small product and its singular values per pair.

    No counter sees a QR factorisation of n rows and q columns, booked at 4·n·q², an eigendecomposition (`eigh_flops`)
    and the singular values of an R×R matrix, booked at 8·R³/3.
    """
    rank = _n_kept(n_items, rank)
    per_encoder = 0
    for dim in (*image_dims, *text_dims):
        width = min(dim, rank + _N_SPARE, n_items)
        sketches = (2 * _N_POWERS + 2) * matmul_flops(n_items, dim, width) + (_N_POWERS + 1) * 4 * n_items * width**2
        directions = (
            matmul_flops(width, dim, width) + eigh_flops(width) + matmul_flops(n_items, width, min(rank, width))
        )
        per_encoder += sketches + directions
    per_pair = matmul_flops(rank, n_items, rank) + 8 * rank**3 // 3
    return per_encoder + len(image_dims) * len(text_dims) * per_pair


def _view(rows: NDArray[np.float32], k: int, rank: int) -> _View:
    if rows.ndim != 2 or len(rows) < 4:
        raise ValueError(f"scores need rows of at least 4 items, got an array of shape {rows.shape}")
    given = torch.tensor(rows, dtype=torch.float32)
    ok = usable(given)[:, None]
    kept = torch.where(ok, given, 0)
    centred = torch.where(ok, kept - kept.sum(0) / ok.sum().clamp(min=1), 0)
    largest = kept.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # so that squares cannot overflow
    centred /= largest
    if centred.norm() <= 1e-6 * (kept / largest).norm():  # equal rows but for rounding
        centred = torch.zeros_like(centred)
    basis, n_directions = _directions(centred, _n_kept(len(rows), rank))
    neighbours = torch.from_numpy(nearest(kept.numpy(), min(k, len(rows) - 1)))
    return _View(_centred_gram(centred), neighbours, basis, n_directions)


def _centred_gram(rows: Tensor) -> Tensor:
    """(n²,) Gram matrix of (n, D) without its diagonal, centred so that products are unbiased, at unit length.

    ⟨A, B⟩ / (n (n − 3)) of two such matrices (before scaling) is HSIC₁ of Song et al. 2012, eq. 5; the centring in this
    form is that of Székely & Rizzo 2014, Ann. Stat. 42, 2382–2412.
    """
    n = len(rows)
    gram = (rows @ rows.T).fill_diagonal_(0)
    mean = gram.sum(1) / (n - 2)
    centred = gram - mean - mean[:, None] + mean.sum() / (n - 1)
    flat = centred.fill_diagonal_(0).flatten()
    return flat.div_(flat.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _directions(rows: Tensor, rank: int) -> tuple[Tensor, int]:
    """Leading left singular vectors (n, rank) of centred rows (n, D), zeros behind the last, and how many there are.

    By a random sketch with power iterations: Halko et al. 2011, SIAM Rev. 53, 217–288, algorithm 4.4.
    """
    n_items, dim = rows.shape
    width = min(dim, rank + _N_SPARE, n_items)
    sketch = torch.randn(dim, width, generator=torch.Generator().manual_seed(0))
    span = torch.linalg.qr(rows @ sketch).Q
    for _ in range(_N_POWERS):
        span = torch.linalg.qr(rows @ (rows.T @ span)).Q
    inside = (span.T @ rows).double()
    squares, vectors = torch.linalg.eigh(inside @ inside.T)
    squares, vectors = squares.flip(0)[:rank], vectors.flip(1)[:, :rank]
    n_found = int((squares > 1e-10 * squares[0].clamp(min=1e-10)).sum())
    basis = torch.zeros(n_items, rank)
    basis[:, :n_found] = span @ vectors[:, :n_found].float()
    return basis, n_found


def _n_kept(n_items: int, rank: int) -> int:
    return max(1, min(rank, n_items // 4))
