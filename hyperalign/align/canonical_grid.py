"""A grid in canonical coordinates, and the connector of every pair in closed form.

One product per pair gives the cross-covariance C = c_imgᵀ c_txt / n, which maps canonical text to canonical image: a
connector without a gradient step. Three things make it better and cheaper than C of white coordinates alone (measured
in reports/LOG.md). Each encoder keeps the R directions that the other side predicts best: the strongest left singular
vectors of its cross-product with all encoders of the other side at once, so that no R×R product is made before it is
narrow. Image coordinates are weighted by σ^p, the strength of the prediction, so that what no caption can tell does
not drown what captions do tell. And each encoder has a ridge of its own, by its side, its width and how much there is
to learn from.

Everything goes through the pictures in blocks: beside the connectors, N·M·R², nothing grows with them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import (
    CanonicalConfig,
    Coordinates,
    Whitening,
    find_whitening,
)
from hyperalign.align.directions import Directions, directions_flops, find_directions
from hyperalign.align.grid import CaptionMeans, Grid, check_pictures
from hyperalign.align.moments import Moments, find_caption_moments, find_moments, moment_rows
from hyperalign.align.sides import Captions, KeptRows, Pictures, Side, picture_blocks
from hyperalign.align.targets import (
    TargetShapes,
    find_image_targets,
    find_text_targets,
    image_targets_flops,
    text_targets_at,
    text_targets_flops,
)
from hyperalign.ledger import cholesky_flops, gram_flops, matmul_flops, triangular_flops

Known = Sequence[Whitening | None] | None  # of each encoder, image encoders first; None where there is none yet
Told = Sequence[Directions | None] | None  # the same of directions that others have told before


class CanonicalGrid(NamedTuple):
    """A grid in canonical coordinates, with the closed-form connector of every pair.

    Attributes:
        images: N `Coordinates` of width R, weighted; kept in memory where `keeps`.
        texts: M `Coordinates` of width R.
        cross: (N, M, R, R), connectors from text to image coordinates, from all pictures.
        flops: FLOPs of the set-up: moments, decompositions, projections, cross-products.
        keeps: Whether coordinates of the whole grid fit the memory that was allowed.
        whitenings: How the rows of each encoder become white, image encoders first.
        directions: Which directions of white space each keeps; None of a narrow text encoder, which keeps all.
    """

    images: list[Coordinates]
    texts: list[Coordinates]
    cross: Tensor
    flops: int
    keeps: bool
    whitenings: list[Whitening]
    directions: list[Directions | None]

    @property
    def widths(self) -> list[int]:
        """Coordinates of each encoder that are not always zero, image encoders first."""
        return [side.canonical.own_rank for side in (*self.images, *self.texts)]

    def images_at(self, encoders: NDArray[np.int64], pictures: NDArray[np.int64]) -> Tensor:
        """(P, B, R) coordinates of some pictures by P image encoders."""
        return torch.stack([self.images[i][pictures] for i in encoders])


class SetupShapes(NamedTuple):
    """What the cost of a set-up depends on.

    Attributes:
        image_features: Features used of each image encoder, F.
        text_features: The same of each text encoder.
        image_rows: Usable rows of each image encoder.
        text_rows: Rows that the moments of each text encoder are products of.
        n_images: Pictures.
        n_captions: Captions.
        rank: R, at most the widest encoder's features.
        most_targets: Coordinates of the other side from which directions are found, where it is a choice of them.
        sketch: Random combinations from which that choice is made.
        keeps: Whether rows and coordinates stay in memory.
        told: Directions of each encoder that others have told before, image encoders first.
    """

    image_features: list[int]
    text_features: list[int]
    image_rows: list[int]
    text_rows: list[int]
    n_images: int
    n_captions: int
    rank: int
    most_targets: int
    sketch: int
    keeps: bool
    told: list[int]

    @property
    def image_ranks(self) -> list[int]:
        """Coordinates of each image encoder; texts predict no more directions than they have."""
        told = self.told[: len(self.image_features)]
        return [
            min(self._most(self.text_features, n), width) for width, n in zip(self.image_features, told, strict=True)
        ]

    @property
    def text_ranks(self) -> list[int]:
        """Coordinates of each text encoder; of a wide one as many as images predict."""
        told, others = self.told[len(self.image_features) :], self.image_ranks
        widths = zip(self.text_features, told, strict=True)
        return [self._most(others, n) if width > self.rank else width for width, n in widths]

    def _most(self, others: list[int], told: int) -> int:
        """Directions that the other side's coordinates can predict, beside those that were told before."""
        return min(self.rank, sum(others) + told, max(self.n_images - 1, 1))

    @property
    def targets(self) -> TargetShapes:
        """Widths that decide how directions are found."""
        wide = [width for width in self.text_features if width > self.rank]
        return TargetShapes(
            self.image_features,
            self.text_features,
            self.image_ranks,
            wide,
            self.n_images,
            self.most_targets,
            self.sketch,
        )


def setup_shapes(grid: Grid, config: CanonicalConfig, told: Told = None) -> SetupShapes:
    """The shapes of a grid's set-up; of a grid without numbers too."""
    used = [min(rows.shape[1], config.max_features or rows.shape[1]) for rows in (*grid.images, *grid.texts)]
    n_img, rank = len(grid.images), min(config.rank, max(used))
    n_values = grid.n_images * (sum(used) + n_img * rank) + grid.n_captions * len(grid.texts) * rank
    return SetupShapes(
        image_features=used[:n_img],
        text_features=used[n_img:],
        image_rows=grid.image_ok.sum(1).tolist(),
        text_rows=[moment_rows(ok, grid.owner) for ok in grid.text_ok],
        n_images=grid.n_images,
        n_captions=grid.n_captions,
        rank=rank,
        most_targets=math.ceil(config.targets_per_rank * rank),
        sketch=math.ceil(config.sketch_per_rank * rank),
        keeps=4 * n_values <= config.store_bytes,
        told=[0 if one is None else len(one.strength) for one in told or [None] * len(used)],
    )


def setup_flops(shapes: SetupShapes, known: Sequence[object | None] | None = None) -> int:
    """FLOPs of `build_canonical_grid`; of `known` it matters who is None."""
    s, n = shapes, shapes.n_images
    widths, n_rows = [*s.image_features, *s.text_features], [*s.image_rows, *s.text_rows]
    fresh = [e for e in range(len(widths)) if known is None or known[e] is None]
    flops = sum(gram_flops(n_rows[e], widths[e]) + cholesky_flops(widths[e]) for e in fresh)
    targets = s.targets
    passes = 2 if targets.wide and not s.keeps else 1  # over image coordinates: wide texts' directions, then products
    flops += text_targets_flops(targets) + image_targets_flops(targets)
    told = iter(s.told)
    for width, rank, known_before in zip(s.image_features, s.image_ranks, told, strict=False):
        flops += matmul_flops(width, n, targets.n_text_targets) + triangular_flops(width, targets.n_text_targets)
        flops += directions_flops(width, targets.n_text_targets + known_before, rank) + triangular_flops(width, rank)
        flops += passes * matmul_flops(n, width, rank)
    for width, rank, known_before in zip(s.text_features, s.text_ranks, told, strict=True):
        if width > s.rank:
            flops += matmul_flops(width, n, targets.n_image_targets) + triangular_flops(width, targets.n_image_targets)
            flops += directions_flops(width, targets.n_image_targets + known_before, rank)
        flops += triangular_flops(width, rank)
        flops += matmul_flops(s.n_captions, width, s.rank) if s.keeps else matmul_flops(n, width, rank)
    return flops + matmul_flops(sum(s.image_ranks), n, sum(s.text_ranks))


def build_canonical_grid(
    grid: Grid, config: CanonicalConfig, *, known: Known = None, told: Told = None
) -> CanonicalGrid:
    """Everything the closed form and the residual hypernetwork start from, without a gradient step.

    Image moments are taken over pictures, text moments over captions, and cross-products over pictures with the mean
    of their captions (the same number, as much cheaper as a picture has captions).

    Args:
        grid: Training rows.
        config: How coordinates are made.
        known: Whitenings of encoders that have one, None for others, image encoders first; their moments are not
            taken again.
        told: Directions that encoders of other searches have told these, None for others: what is kept is found from
            both together, each as strong as it was.

    Raises:
        ValueError: If there are fewer than two pictures, or an encoder has no usable row.
    """
    check_pictures(grid)
    shapes, told = setup_shapes(grid, config, told), told or [None] * sum(grid.shape)
    images, texts = _sides(grid, config, known or [None] * sum(grid.shape), keep=shapes.keeps)
    found, sums = _image_directions(images, texts, shapes, told)
    projections = [_project(image, one) for image, one in zip(images, found, strict=True)]
    crosses = (projection.mT @ total for projection, total in zip(projections, sums, strict=True))
    image_targets = find_image_targets(crosses, shapes.targets)
    del sums, crosses
    stacked = torch.zeros(len(images), grid.n_images, shapes.rank) if shapes.keeps else None
    seen = _Seen(images, projections, stacked)
    on_side = _text_directions(seen, texts, image_targets, shapes, told)
    text_projections = [_project(text, one) for text, one in zip(texts, on_side, strict=True)]
    on_text = _text_coordinates(grid, texts, text_projections, shapes)
    cross = _cross(seen, on_text, shapes)
    coordinates = []
    for i, (image, projection, one) in enumerate(zip(images, projections, found, strict=True)):
        weight = one.weights(config.image_power)
        canonical = image.whitening.canonical(projection * weight, shapes.rank)
        if stacked is not None:
            stacked[i, :, : len(weight)] *= weight
        coordinates.append(Coordinates(grid.images[i], canonical, None if stacked is None else stacked[i]))
    return CanonicalGrid(
        images=coordinates,
        texts=[text.coordinates for text in on_text],
        cross=cross,
        flops=setup_flops(shapes, known),
        keeps=shapes.keeps,
        whitenings=[side.whitening for side in (*images, *texts)],
        directions=[*found, *on_side],
    )


def _sides(
    grid: Grid, config: CanonicalConfig, known: Sequence[Whitening | None], *, keep: bool
) -> tuple[list[Side], list[Side]]:
    """Moments and whitening of every encoder that has none yet."""
    n_img, features, normalise = len(grid.images), config.max_features, config.normalise
    images: list[Side] = []
    for rows, ok, given in zip(grid.images, grid.image_ok, known[:n_img], strict=True):
        if given is None:
            moments = find_moments(rows, ok, normalise=normalise, max_features=features)
            ridge = _ridge(config.image_ridge, moments, int(ok.sum()))
            given = find_whitening(moments, ridge=ridge, normalise=normalise)
        images.append(Pictures(rows, ok, given))
    texts: list[Side] = []
    for rows, ok, given in zip(grid.texts, grid.text_ok, known[n_img:], strict=True):
        if given is None:
            moments = find_caption_moments(rows, ok, grid.owner, normalise=normalise, max_features=features)
            ridge = _ridge(config.text_ridge, moments, len(np.unique(grid.owner[ok])))
            given = find_whitening(moments, ridge=ridge, normalise=normalise)
        texts.append(Captions(rows, ok, given, grid.owner))
    if keep:
        return [KeptRows(side, grid.n_images) for side in images], [KeptRows(side, grid.n_images) for side in texts]
    return images, texts


def _ridge(kappa: float, moments: Moments, n_pictures: int) -> float:
    """λ = κF/n of F features and n pictures that have a usable row."""
    return kappa * len(moments.mean) / max(1, n_pictures)


def _image_directions(
    images: Sequence[Side], texts: Sequence[Side], shapes: SetupShapes, told: Sequence[Directions | None]
) -> tuple[list[Directions], list[Tensor]]:
    """What texts predict of each image encoder, and its products with their targets, (F, m), that this comes from."""
    targets = shapes.targets
    maps = find_text_targets(images, texts, targets)
    sums = [torch.zeros(width, targets.n_text_targets) for width in shapes.image_features]
    for first, last in picture_blocks(shapes.n_images):
        aims = text_targets_at(texts, maps, first, last)
        for total, image in zip(sums, images, strict=True):
            total += image.block(first, last).mT @ aims
    found = []
    for image, total, rank, before in zip(images, sums, shapes.image_ranks, told, strict=False):
        found.append(_find(_white(total, image.whitening), rank, before))
    return found, sums


def _find(white: Tensor, rank: int, before: Directions | None) -> Directions:
    """What a cross-product of white rows tells, beside what was told before."""
    return find_directions(white if before is None else before.beside(white), rank)


def _white(cross: Tensor, whitening: Whitening) -> Tensor:
    """A cross-product (F, m) of centred rows as one of white rows."""
    return whitening.whiten(cross.mT).mT


class _Seen:
    """Coordinates of image encoders by blocks of pictures, their weights not in them yet."""

    def __init__(self, images: Sequence[Side], projections: Sequence[Tensor], stacked: Tensor | None):
        self.images, self.projections, self.stacked = images, projections, stacked
        if stacked is not None:
            for image, projection, kept in zip(images, projections, stacked, strict=True):
                for first, last in picture_blocks(len(kept)):
                    kept[first:last, : projection.shape[1]] = image.block(first, last) @ projection

    def block(self, first: int, last: int) -> Tensor:
        """(last − first, Σr), encoder by encoder."""
        if self.stacked is not None:
            parts = [kept[first:last, : p.shape[1]] for kept, p in zip(self.stacked, self.projections, strict=True)]
        else:
            parts = [image.block(first, last) @ p for image, p in zip(self.images, self.projections, strict=True)]
        return torch.cat(parts, 1)


def _text_directions(
    seen: _Seen,
    texts: Sequence[Side],
    image_targets: Tensor | None,
    shapes: SetupShapes,
    told: Sequence[Directions | None],
) -> list[Directions | None]:
    """What images predict of each wide text encoder; None of a narrow one, which keeps all of its white space."""
    wide = [text for text, width in zip(texts, shapes.text_features, strict=True) if width > shapes.rank]
    sums = [torch.zeros(len(text.whitening.mean), shapes.targets.n_image_targets) for text in wide]
    for first, last in picture_blocks(shapes.n_images) if wide else ():
        aims = seen.block(first, last)
        if image_targets is not None:
            aims = aims @ image_targets
        for total, text in zip(sums, wide, strict=True):
            total += text.block(first, last).mT @ aims
    totals = iter(sums)
    found: list[Directions | None] = []
    before = told[len(shapes.image_features) :]
    for text, width, rank, one in zip(texts, shapes.text_features, shapes.text_ranks, before, strict=True):
        if width <= shapes.rank:
            found.append(None)
            continue
        found.append(_find(_white(next(totals), text.whitening), rank, one))
    return found


def _project(side: Side, directions: Directions | None) -> Tensor:
    """From centred rows to the directions that are kept, (F, r); all of white space where none was chosen."""
    width = len(side.whitening.mean)
    return side.whitening.project(torch.eye(width) if directions is None else directions.basis)


class _Said:
    """Coordinates of a text encoder by blocks of pictures, the mean over each picture's captions."""

    def __init__(self, side: Side, projection: Tensor, coordinates: Coordinates, means: CaptionMeans | None):
        """With `means` the coordinates of all captions are kept."""
        self.side, self.projection, self.coordinates, self.means = side, projection, coordinates, means
        if means is not None:
            coordinates.keep()
            coordinates.flops = 0  # booked with the set-up

    def block(self, first: int, last: int) -> Tensor:
        """(last − first, r) coordinates."""
        if self.means is None:
            return self.side.block(first, last) @ self.projection
        return self.means(self.coordinates.__getitem__, first, last)[:, : self.projection.shape[1]]


def _text_coordinates(
    grid: Grid, texts: Sequence[Side], projections: Sequence[Tensor], shapes: SetupShapes
) -> list[_Said]:
    """The way to coordinates of every text encoder, and those of all captions where they are kept."""
    found = []
    for j, (rows, text, projection) in enumerate(zip(grid.texts, texts, projections, strict=True)):
        coordinates = Coordinates(rows, text.whitening.canonical(projection, shapes.rank))
        means = CaptionMeans(grid.text_ok[j], grid.owner) if shapes.keeps else None
        found.append(_Said(text, projection, coordinates, means))
    return found


def _cross(seen: _Seen, texts: Sequence[_Said], shapes: SetupShapes) -> Tensor:
    """Means of c_img c̄_txtᵀ over the pictures, of all pairs, (N, M, R, R).

    Narrow encoders are multiplied at their own width; the rest of their R×R is zero.
    """
    ranks, rank = shapes.image_ranks, shapes.rank
    sums = torch.zeros(len(ranks), len(texts), rank, rank)
    for first, last in picture_blocks(shapes.n_images):
        image = seen.block(first, last)
        for j, text in enumerate(texts):
            coordinates = text.block(first, last)
            parts = (image.mT @ coordinates).split(ranks)  # one product of all image encoders with one text encoder
            for i, part in enumerate(parts):
                sums[i, j, : ranks[i], : coordinates.shape[1]] += part
    return sums.div_(shapes.n_images)
