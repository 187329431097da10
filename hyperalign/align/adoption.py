"""One more encoder beside those that were trained together: a set-up of its own, and what the others have learned.

A newcomer is paired with every encoder of the other side, its partners. Their whitenings are known; its own moments
are taken, and the directions of its pairs are found from what it tells of its partners, beside what others have told of
them before. Nothing is trained. The network emits in coordinates that all encoders share, so that what it has learned
there fits a newcomer too, once the connectors in closed form say how it is turned: it takes the mean of its side's
transforms, and its partners keep theirs (steps on top gain nothing; measured in reports/LOG.md). Nothing that belongs
to a pair of other encoders is touched.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hyperalign.align.canonical import Canonical, CanonicalConfig, Whitening
from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid
from hyperalign.align.closed_form import canonical_solution
from hyperalign.align.consensus import find_basis
from hyperalign.align.directions import Directions
from hyperalign.align.grid import Grid
from hyperalign.align.hypernetwork import fold_into, in_own
from hyperalign.align.solution import Kept, Learned, Solution
from hyperalign.ledger import matmul_flops, svd_flops


def meet(grid: Grid, side: str, kept: Kept, config: CanonicalConfig) -> CanonicalGrid:
    """Canonical coordinates of a newcomer and its partners, found for these pairs alone.

    Args:
        grid: Training rows of the newcomer, alone on its side, and of its partners.
        side: The newcomer's: "image" or "text".
        kept: What the search has left, of the partners alone on their side.
        config: How the search made coordinates.
    """
    known: list[Whitening | None] = [one.whitening for one in _partners(side, kept)]
    told = [one.directions for one in _partners(side, kept)]
    if side == "image":
        return build_canonical_grid(grid, config, known=[None, *known], told=[None, *told])
    return build_canonical_grid(grid, config, known=[*known, None], told=[*told, None])


def adopt(side: str, met: CanonicalGrid, kept: Kept, config: CanonicalConfig) -> Solution:
    """Connectors of a newcomer with its partners, with what the search has learned of all others.

    Args:
        side: The newcomer's: "image" or "text".
        met: The newcomer and its partners in canonical coordinates, as `meet` has it.
        kept: What the search has left, of all encoders of the newcomer's side and of its partners on the other.
        config: How the search made coordinates.

    Returns:
        Its pairs; `kept` has the newcomer behind the others of its side.
    """
    image = side == "image"
    own, other = (met.images, met.texts) if image else (met.texts, met.images)
    n_img, rank, power = len(met.images), met.cross.shape[-1], 0.0 if image else config.image_power
    directions = met.directions[n_img:] if image else met.directions[:n_img]
    carried = [_carry(one, now, rank, power) for one, now in zip(_partners(side, kept), directions, strict=True)]
    connectors = met.cross[0] if image else met.cross[:, 0].mT  # from a partner's coordinates to the newcomer's
    learned = _learn(met, side, connectors, [one.basis for one in carried], _peers(side, kept))
    changes = [in_own(learned.transform, learned.basis), *(one.transform for one in carried)]
    canonical = [one.canonical for one in (*own, *other)]
    moved = [c._replace(projection=fold_into(c.projection, by)) for c, by in zip(canonical, changes, strict=True)]
    solution = canonical_solution("hypernet", met, *((moved[:1], moved[1:]) if image else (moved[1:], moved[:1])))
    welcomed = kept._replace(images=[*kept.images, learned]) if image else kept._replace(texts=[*kept.texts, learned])
    flops = _adopt_flops(canonical, rank, [len(one.basis) for one in _partners(side, kept)], len(learned.transform))
    return replace(solution, emit_flops=flops, kept=welcomed)


_LEAST = 1e-4  # squared weight of a direction: nothing is made much of that hardly counted


class _Carried(NamedTuple):
    """What a partner has learned, in coordinates that were found for a newcomer.

    Attributes:
        transform: (R, R)
        basis: (R, S), the S shared coordinates as the partner sees them now.
    """

    transform: Tensor
    basis: Tensor


def _carry(learned: Learned, now: Directions | None, rank: int, power: float) -> _Carried:
    """A partner's transform and basis, from the directions it was trained with to those it has now.

    Coordinates are c = Gᵀz of white rows z with weighted orthogonal directions G; what T changes in Gᵀz changes
    Hᵀz by HᵀG g⁻² T GᵀH h⁻² of it, with g and h the lengths of the columns. With G = H that is T.

    Args:
        learned: Of the search.
        now: Its directions now.
        rank: Coordinates now, R.
        power: p of its side: directions are weighted by σ^p.
    """
    width, before = len(learned.whitening.mean), learned.basis.shape[0]
    then, there = _axes(learned.directions, width, before, power), _axes(now, width, rank, power)
    turned = there.mT @ then
    lengths, lengths_now = (axes.square().sum(0).clamp_min(_LEAST) for axes in (then, there))
    own = in_own(learned.transform, learned.basis)
    transform = turned / lengths @ own @ (turned.mT / lengths_now)
    plain = turned / lengths.sqrt() / lengths_now.sqrt()[:, None]
    return _Carried(transform, find_basis(plain @ learned.basis, int(there.ne(0).any(0).sum())))


def _axes(directions: Directions | None, width: int, rank: int, power: float) -> Tensor:
    """(F, R) weighted directions, zero columns past its own rank; all of white space where none was chosen."""
    weighted = torch.eye(width) if directions is None else directions.basis * directions.weights(power)
    axes = torch.zeros(width, rank)
    axes[:, : weighted.shape[1]] = weighted
    return axes


def _learn(
    met: CanonicalGrid, side: str, connectors: Tensor, bases: Sequence[Tensor], peers: Sequence[Learned]
) -> Learned:
    """What a newcomer is given: how it is turned, from its connectors (as in `consensus`), and its side's mean change.

    Args:
        met: The newcomer and its partners.
        side: The newcomer's.
        connectors: (M, R, R), from each partner's coordinates to the newcomer's.
        bases: (R, S) of each partner.
        peers: The other encoders of its side.
    """
    at = 0 if side == "image" else -1
    basis = find_basis((connectors @ torch.stack(list(bases))).sum(0), met.widths[at])
    change = torch.stack([one.transform for one in peers]).mean(0)
    return Learned(met.whitenings[at], met.directions[at], basis, change)


def _adopt_flops(canonical: Sequence[Canonical], rank: int, before: Sequence[int], shared: int) -> int:
    """FLOPs of `adopt`: the newcomer's coordinates come first, R of them; partners had `before`; S are shared."""
    widths = [one.own_rank for one in canonical]
    bases = sum(svd_flops(*sorted((r, shared))) + matmul_flops(r, min(r, shared), shared) for r in widths)
    own = matmul_flops(rank, shared, shared) + matmul_flops(rank, shared, rank)  # a transform by its basis
    folds = sum(matmul_flops(len(one.mean), rank, rank) for one in canonical)
    carried = 0
    for one, old in zip(canonical[1:], before, strict=True):
        carried += matmul_flops(rank, len(one.mean), old)
        carried += matmul_flops(old, shared, shared) + matmul_flops(old, shared, old)  # its transform by its basis,
        carried += matmul_flops(rank, old, old) + matmul_flops(rank, old, rank)  # then in other coordinates
        carried += matmul_flops(rank, old, shared) + matmul_flops(rank, rank, shared)  # its basis, and their mean
    return bases + own + folds + carried


def _partners(side: str, kept: Kept) -> list[Learned]:
    return kept.texts if side == "image" else kept.images


def _peers(side: str, kept: Kept) -> list[Learned]:
    return kept.images if side == "image" else kept.texts
