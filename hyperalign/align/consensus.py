"""One basis for the canonical coordinates of all encoders, so that what one encoder learns means something to others.

Canonical coordinates of two encoders span much the same space, each turned as it likes. The connectors say how they
are turned: with orthogonal Q, Q_iᵀ C_ij Q_j is the connector as the consensus sees it, and each Q is turned in its turn
to bring its connectors next to one another, Q_i = polar(Σ_j C_ij Q_j) (generalised Procrustes analysis; Gower 1975).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperalign.ledger import matmul_flops, svd_flops

SWEEPS = 1  # over all encoders; a second one changes no score (reports/LOG.md)


def find_bases(cross: Tensor, widths: Sequence[int]) -> Tensor:
    """Consensus coordinates as each encoder sees them.

    Args:
        cross: (N, M, R, R), connectors from text to image coordinates.
        widths: r of the N + M encoders, image encoders first: their coordinates from r on are always zero.

    Returns:
        (N + M, R, R), rows orthonormal up to r, zero from there on.
    """
    n_img, n_txt, rank = cross.shape[:3]
    bases = torch.zeros(n_img + n_txt, rank, rank)
    for encoder, width in enumerate(widths):
        bases[encoder, :width, :width] = torch.eye(width)
    for _ in range(SWEEPS):
        for i in range(n_img):
            bases[i] = find_basis((cross[i] @ bases[n_img:]).sum(0), widths[i])
        for j in range(n_txt):
            bases[n_img + j] = find_basis((cross[:, j].mT @ bases[:n_img]).sum(0), widths[n_img + j])
    return bases


def bases_flops(image_widths: Sequence[int], text_widths: Sequence[int], rank: int) -> int:
    """FLOPs of `find_bases`: in every sweep two products of each pair, and one decomposition of each encoder."""
    products = 2 * len(image_widths) * len(text_widths) * matmul_flops(rank, rank, rank)
    turned = sum(svd_flops(r, rank) + matmul_flops(r, r, rank) for r in (*image_widths, *text_widths))
    return SWEEPS * (products + turned)


def find_basis(towards: Tensor, width: int) -> Tensor:
    """Shared coordinates as one encoder sees them: Q nearest to a matrix, with orthonormal rows.

    Args:
        towards: (R, S), for S shared coordinates.
        width: r, rows that are not always zero; above S the columns are orthonormal.

    Returns:
        (R, S), zero from row r on.
    """
    left, _, right = torch.linalg.svd(towards[:width], full_matrices=False)
    basis = torch.zeros_like(towards)
    basis[:width] = left @ right
    return basis
