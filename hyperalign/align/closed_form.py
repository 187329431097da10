"""A grid in canonical coordinates, and the connector of every pair in closed form.

One product per pair gives the cross-covariance C = c_imgᵀ c_txt / n, which maps canonical text to canonical image: a
connector without a gradient step. Two things make it better and cheaper than C alone (measured in reports/LOG.md).
Each encoder's coordinates are turned to the directions that the other side predicts, and cut at r: the eigenvectors
of Σ_j C_ij C_ijᵀ for image encoder i, of Σ_i C_ijᵀ C_ij for text encoder j. And image coordinates are weighted by
σ^p, the strength of the prediction, so that what no caption can tell does not drown what captions do tell.

C is also kept by folds of the pictures, so that what is trained on top of it can be shown connectors that have not
seen the pictures of the batch: C as it is made of all pictures fits them too well to learn from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Canonical, CanonicalConfig, Coordinates, find_canonical, find_moments
from hyperalign.align.grid import BLOCK, Grid, Rows, check_pictures
from hyperalign.align.solution import Solution
from hyperalign.ledger import covariance_flops, eigh_flops, matmul_flops


class CanonicalGrid(NamedTuple):
    """A grid in canonical coordinates, with the closed-form connector of every pair.

    Attributes:
        images: N `Coordinates` of width r, weighted.
        texts: M `Coordinates` of width r.
        cross: (N, M, r, r), connectors from text to image coordinates, from all pictures.
        held_out: (K, N, M, r, r), the same from all pictures but those with index ≡ k modulo K.
        flops: FLOPs of the set-up: moments, eigendecompositions, projections, cross-products.
    """

    images: list[Coordinates]
    texts: list[Coordinates]
    cross: Tensor
    held_out: Tensor
    flops: int


def build_canonical_grid(grid: Grid, config: CanonicalConfig) -> CanonicalGrid:
    """Everything the closed form and the residual hypernetwork start from, without a gradient step.

    Image moments are taken over pictures, text moments over captions, and cross-products over pictures with the mean
    of their captions' coordinates (the same number, as much cheaper as a picture has captions).

    Raises:
        ValueError: If there are fewer than two pictures, or an encoder has no usable row.
    """
    check_pictures(grid)
    widths = [rows.shape[1] for rows in (*grid.images, *grid.texts)]
    if config.max_features:
        widths = [min(width, config.max_features) for width in widths]
    rank = min(config.rank, max(widths))
    keep = 4 * rank * (grid.n_images * len(grid.images) + grid.n_captions * len(grid.texts)) <= config.store_bytes
    flops = 0

    def whiten(rows: Rows, ok: NDArray[np.bool_]) -> Coordinates:
        nonlocal flops
        moments = find_moments(rows, ok, normalise=config.normalise, max_features=config.max_features)
        flops += covariance_flops(moments.n_rows, len(moments.mean)) + eigh_flops(len(moments.mean))
        canonical = find_canonical(moments, rank, ridge=config.ridge, normalise=config.normalise)
        return Coordinates(rows, canonical, keep=keep)

    images = [whiten(rows, ok) for rows, ok in zip(grid.images, grid.image_ok, strict=True)]
    texts = [whiten(rows, ok) for rows, ok in zip(grid.texts, grid.text_ok, strict=True)]
    folds, cross_flops = find_cross(grid, images, texts, n_folds=count_folds(grid.n_images, config))
    cross, held_out, turn_flops = _turn(images, texts, folds, grid.n_images, config)
    flops += cross_flops + turn_flops + sum(c.flops for c in (*images, *texts))
    for coordinates in (*images, *texts):
        coordinates.flops = 0  # booked; what is projected from here on belongs to who asks for it
    return CanonicalGrid(images, texts, cross, held_out, flops)


def count_folds(n_images: int, config: CanonicalConfig) -> int:
    """Parts of the pictures, K: as asked for, or as many as have two pictures each, at least two."""
    return min(config.n_folds, max(2, n_images // 2))


def find_cross(grid: Grid, images: list[Coordinates], texts: list[Coordinates], *, n_folds: int) -> tuple[Tensor, int]:
    """Sums of c_img c̄_txtᵀ of all pairs by fold, in one pass over the pictures.

    Returns:
        (K, N, M, R, R) sums, fold k of the pictures with index ≡ k modulo K, and the FLOPs of the products. Narrow
        encoders are multiplied at their own width; the rest of their R×R is zero.
    """
    rank = images[0].canonical.projection.shape[1]
    r_img = [c.canonical.own_rank for c in images]
    r_txt = [c.canonical.own_rank for c in texts]
    sums = torch.zeros(n_folds, len(images), len(texts), rank, rank)
    ends = np.searchsorted(grid.owner, np.arange(grid.n_images), side="right")
    flops, step = 0, BLOCK - BLOCK % n_folds
    for first in range(0, grid.n_images, step):
        last = min(first + step, grid.n_images)
        captions = range(int(ends[first - 1]) if first else 0, int(ends[last - 1]))
        image = torch.cat(
            [
                c[first:last][:, :r] * _column(ok[first:last])
                for c, r, ok in zip(images, r_img, grid.image_ok, strict=True)
            ],
            1,
        )
        for j, (coordinates, ok) in enumerate(zip(texts, grid.text_ok, strict=True)):
            text = _mean_by_owner(coordinates, ok, grid.owner, captions)[:, : r_txt[j]]
            for k in range(n_folds):  # one product of all image encoders with one text encoder
                parts = (image[k::n_folds].T @ text[k::n_folds]).split(r_img)
                for i, part in enumerate(parts):
                    sums[k, i, j, : r_img[i], : r_txt[j]] += part
        flops += matmul_flops(sum(r_img), last - first, sum(r_txt))
    return sums, flops


def _turn(
    images: list[Coordinates], texts: list[Coordinates], folds: Tensor, n_images: int, config: CanonicalConfig
) -> tuple[Tensor, Tensor, int]:
    """Turn all coordinates to what the other side predicts; connectors between the turned ones, and FLOPs."""
    _, n_img, n_txt, rank, _ = folds.shape
    r = min(config.shared_rank, rank)
    cross = folds.sum(0) / n_images
    on_image = [_directions(torch.cat(list(cross[i]), 1), r) for i in range(n_img)]
    on_text = [_directions(torch.cat(list(cross[:, j].mT), 1), r) for j in range(n_txt)]
    for coordinates, (basis, sigma) in zip(images, on_image, strict=True):
        coordinates.turn(basis * (sigma / sigma[0].clamp_min(1e-12)) ** config.image_power)
    for coordinates, (basis, _) in zip(texts, on_text, strict=True):
        coordinates.turn(basis)
    left, right = torch.stack([b for b, _ in on_image]), torch.stack([b for b, _ in on_text])
    turned = folds.new_empty(*folds.shape[:3], r, r)
    for part, fold in zip(turned, folds, strict=True):
        part.copy_(left.mT.unsqueeze(1) @ fold @ right.unsqueeze(0))
    flops = (n_img + n_txt) * eigh_flops(rank) + 2 * n_img * n_txt * matmul_flops(rank, rank, rank)
    flops += len(folds) * n_img * n_txt * (matmul_flops(r, rank, rank) + matmul_flops(r, rank, r))
    return *leave_one_out(turned, n_images), flops


def leave_one_out(folds: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """Means over all pictures, and over all but those of each fold.

    Args:
        folds: (K, ...) sums over the pictures with index ≡ k modulo K; written over.
        n_images: Pictures in all.

    Returns:
        (...) and (K, ...).
    """
    n_folds = len(folds)
    left = torch.tensor([n_images - len(range(k, n_images, n_folds)) for k in range(n_folds)])
    total = folds.sum(0)
    held_out = folds.neg_().add_(total).div_(left.clamp_min(1).view(-1, *[1] * total.ndim))
    return total / n_images, held_out


def _directions(stacked: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Left singular vectors (R, r) of stacked cross-covariances and their root-mean-square strengths (r,)."""
    stacked = stacked.double()  # in float32 the zeros past an encoder's own rank drown in rounding
    values, vectors = torch.linalg.eigh(stacked @ stacked.T)
    values, vectors = values.flip(0)[:r].clamp_min(0), vectors.flip(1)[:, :r]
    dead = values <= 1e-10 * values[0].clamp_min(1e-30)
    return vectors.masked_fill(dead, 0.0).float(), values.sqrt().float()


def _column(mask: NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(mask).float().unsqueeze(1)


def _mean_by_owner(
    coordinates: Coordinates, ok: NDArray[np.bool_], owner: NDArray[np.int64], captions: range
) -> Tensor:
    """Mean of each picture's usable captions, (n, R) over the n pictures that own these captions; zeros for none."""
    first, n_images = owner[captions.start], owner[captions.stop - 1] + 1 - owner[captions.start]
    total, count = torch.zeros(n_images, coordinates.canonical.projection.shape[1]), torch.zeros(n_images)
    for start in range(captions.start, captions.stop, BLOCK):
        part = slice(start, min(start + BLOCK, captions.stop))
        to, counted = torch.from_numpy(owner[part] - first), _column(ok[part])
        total.index_add_(0, to, coordinates[part] * counted)
        count.index_add_(0, to, counted[:, 0])
    return total / count.clamp_min(1).unsqueeze(1)


def solve_closed_form(canonical: CanonicalGrid, *, sides: str = "both") -> Solution:
    """The connectors without a gradient step; with sides "text" their twin between the encoders' own rows."""
    images, texts = [c.canonical for c in canonical.images], [c.canonical for c in canonical.texts]
    solution = canonical_solution("closed-form", canonical, images, texts)
    return solution if sides == "both" else to_text_sided(solution)


def to_text_sided(solution: Solution) -> Solution:
    """The text-only twin of a solution between canonical coordinates: W = P_img V P_txtᵀ, b = −W μ_txt.

    Text rows are taken as unit vectors where the whitening took them so.
    """
    weights, biases, emit = [], [], 0
    for (i, j), weight in zip(solution.pairs, solution.weights, strict=True):
        image, text = solution.images[i], solution.texts[j]
        assert image is not None, "a solution between canonical coordinates has whitenings"
        assert text is not None, "a solution between canonical coordinates has whitenings"
        w, b = to_text_side(weight, image, text)
        weights.append(torch.zeros(image.width, text.width).index_put_((image.features[:, None], text.features), w))
        biases.append(torch.zeros(image.width).index_put_((image.features,), b))
        (r_img, r_txt), f_img, f_txt = weight.shape, len(image.mean), len(text.mean)
        emit += matmul_flops(f_img, r_img, r_txt) + matmul_flops(f_img, r_txt, f_txt)
    return replace(
        solution,
        sides="text",
        weights=weights,
        biases=biases,
        images=[None] * len(solution.images),
        texts=[_unit_rows(c) for c in solution.texts],
        emit_flops=solution.emit_flops + emit,
    )


def _unit_rows(canonical: Canonical | None) -> Canonical | None:
    """Rows as unit vectors, where a whitening took them so; else as they are."""
    if canonical is None or not canonical.normalise:
        return None
    width = canonical.width
    return Canonical(torch.zeros(width), torch.eye(width), torch.arange(width), width, normalise=True)


def canonical_solution(
    method: str, canonical: CanonicalGrid, images: Sequence[Canonical], texts: Sequence[Canonical]
) -> Solution:
    """The closed-form connectors, each cut to the two encoders' own ranks, between some coordinates."""
    r_img = [c.canonical.own_rank for c in canonical.images]
    r_txt = [c.canonical.own_rank for c in canonical.texts]
    pairs = [(i, j) for i in range(len(images)) for j in range(len(texts))]
    return Solution(
        method=method,
        sides="both",
        pairs=pairs,
        weights=[canonical.cross[i, j, : r_img[i], : r_txt[j]].contiguous() for i, j in pairs],
        biases=[torch.zeros(r_img[i]) for i, _ in pairs],
        images=images,
        texts=texts,
        setup_flops=canonical.flops,
    )


def to_text_side(weight: Tensor, image: Canonical, text: Canonical) -> tuple[Tensor, Tensor]:
    """The text-only twin of a canonical connector: W = P_img V P_txtᵀ, b = −W μ_txt, from text rows to image rows.

    Args:
        weight: (r_img, r_txt), V from canonical text to canonical image.
        image: Whitening of the image encoder.
        text: Whitening of the text encoder.

    Returns:
        (F_img, F_txt) weight and (F_img,) bias, on the features that the whitenings use.
    """
    r_img, r_txt = weight.shape
    mapped = image.projection[:, :r_img] @ weight @ text.projection[:, :r_txt].T
    return mapped, -(mapped @ text.mean)
