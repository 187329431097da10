"""A planted zoo: items share a latent, and each encoder is a fixed random view of it.

The views depend on an encoder's place and width alone, so that grids over different items belong to the same zoo.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Canonical, to_coordinates
from hyperalign.align.grid import Grid, PairIndex, Rows, build_grid, to_float
from hyperalign.align.solution import Solution

IMAGE_DIMS, TEXT_DIMS = (12, 8, 16), (10, 14)
N_LATENT = 6


def plant(
    n_images: int,
    *,
    items: int = 0,
    n_captions: int = 1,
    image_dims: Sequence[int] = IMAGE_DIMS,
    text_dims: Sequence[int] = TEXT_DIMS,
    noise: float = 0.1,
) -> Grid:
    """A grid over items of its own.

    Args:
        n_images: Pictures.
        items: Seeds the items; grids of different numbers share none.
        n_captions: Of each picture.
        image_dims: Widths of the image encoders.
        text_dims: Widths of the text encoders.
        noise: What each row has to itself.
    """
    owner = np.repeat(np.arange(n_images, dtype=np.int64), n_captions)
    latent = np.random.default_rng([0, items]).normal(size=(n_images, N_LATENT))
    images: list[Rows] = [_view(latent, dim, [1, k], items, noise) for k, dim in enumerate(image_dims)]
    texts: list[Rows] = [_view(latent[owner], dim, [2, k], items, noise) for k, dim in enumerate(text_dims)]
    return build_grid(images, texts, owner)


def _view(latent: NDArray[np.float64], dim: int, encoder: list[int], items: int, noise: float) -> NDArray[np.float32]:
    way = np.random.default_rng([*encoder, dim]).normal(size=(N_LATENT, dim))
    own = np.random.default_rng([3, items, *encoder]).normal(size=(len(latent), dim))
    return np.asarray(latent @ way + noise * own + 0.5, dtype=np.float32)


def spoil(grid: Grid, *, images: dict[int, list[int]] | None = None, texts: dict[int, list[int]] | None = None) -> Grid:
    """The grid with some rows of some encoders NaN."""

    def with_nan(tables: Sequence[Rows], bad: dict[int, list[int]]) -> list[Rows]:
        copies = [np.array(rows[:]) for rows in tables]
        for encoder, index in bad.items():
            copies[encoder][index] = np.nan
        return list(copies)

    return build_grid(with_nan(grid.images, images or {}), with_nan(grid.texts, texts or {}), grid.owner)


def similarities(solution: Solution, grid: Grid) -> dict[PairIndex, Tensor]:
    """(n_captions, n_images) cosines of every pair, written out plainly."""
    found = {}
    for (i, j), weight, bias in zip(solution.pairs, solution.weights, solution.biases, strict=True):
        image = _seen(grid.images[i], solution.images[i])[:, : weight.shape[0]]
        text = _seen(grid.texts[j], solution.texts[j])[:, : weight.shape[1]]
        found[i, j] = F.normalize(text @ weight.T + bias, dim=1) @ F.normalize(image, dim=1).T
    return found


def _seen(rows: Rows, canonical: Canonical | None) -> Tensor:
    every = to_float(rows[:]).nan_to_num(0.0, 0.0, 0.0)
    return every if canonical is None else to_coordinates(every, canonical)


def recalls(solution: Solution, grid: Grid) -> dict[PairIndex, float]:
    """Share of captions whose own image comes first, in per cent, pair by pair."""
    owner = torch.from_numpy(grid.owner)
    return {
        pair: 100 * float((cosine.argmax(1) == owner).float().mean())
        for pair, cosine in similarities(solution, grid).items()
    }


def mean_recall(solution: Solution, grid: Grid) -> float:
    """Mean of `recalls`."""
    return float(np.mean(list(recalls(solution, grid).values())))
