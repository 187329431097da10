"""What each method will cost, from shapes alone: the ledger's formulas with nothing computed.

A grid without numbers stands in for the rows, and solutions without numbers for the connectors, so that what a run
books and what is forecast come from the same functions. Usable rows of full rank are assumed; a test holds every
forecast to the ledger of a run.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyperalign.align.batches import FoldSampler, PairOrder, Sampler
from hyperalign.align.canonical import Canonical, CanonicalConfig
from hyperalign.align.closed_form import count_folds
from hyperalign.align.connectors import is_tiled
from hyperalign.align.grid import Grid, PairIndex
from hyperalign.align.hypernetwork import ResidualConfig, transform_step_flops
from hyperalign.align.solution import Solution
from hyperalign.align.train import TrainConfig
from hyperalign.ledger import (
    adamw_flops,
    connector_step_flops,
    covariance_flops,
    eigh_flops,
    infonce_flops,
    matmul_flops,
    mlp_step_flops,
)
from hyperalign.solve import Method, Recipe

__all__ = ["Forecast", "Hollow", "canonical_bytes", "forecast", "hollow_grid", "setup_flops"]


class Forecast(NamedTuple):
    """What a method will do.

    Attributes:
        setup_flops: Canonical coordinates and connectors in closed form; 0 where the method needs none.
        train_flops: Forward and backward of all steps, and the emission.
        optimiser_flops: AdamW's updates.
        n_steps: Optimiser steps, of all pairs or networks together.
        n_looks: How often validation is looked at while training.
        solution: The connectors, without numbers: their shapes say what scoring them costs.
    """

    setup_flops: int
    train_flops: int
    optimiser_flops: int
    n_steps: int
    n_looks: int
    solution: Solution


class Hollow(NamedTuple):
    """Rows of which only the shape is known."""

    shape: tuple[int, ...]

    def __getitem__(self, index: Any) -> NDArray[Any]:  # type: ignore[override]
        """Nothing."""
        raise TypeError("rows that are not computed yet have a shape and no numbers")


class _Ranks(NamedTuple):
    """Widths on the way to canonical coordinates.

    Attributes:
        rank: White coordinates, R.
        shared: Coordinates that are kept of these, r.
        features: For each encoder, image encoders first, how many of its features are used.
        white: For each, how many of its R coordinates are not always zero.
        turned: For each, how many of its r coordinates are not always zero.
        kept: Whether coordinates stay in memory.
    """

    rank: int
    shared: int
    features: list[int]
    white: list[int]
    turned: list[int]
    kept: bool


def hollow_grid(image_widths: Sequence[int], text_widths: Sequence[int], owner: NDArray[np.int64]) -> Grid:
    """A grid of the given widths over the pictures and captions of a split, without rows.

    Args:
        image_widths: N widths.
        text_widths: M widths.
        owner: (n_captions,) index of each caption's image.
    """
    n_images, n_captions = int(owner[-1]) + 1, len(owner)
    return Grid(
        images=tuple(Hollow((n_images, width)) for width in image_widths),
        texts=tuple(Hollow((n_captions, width)) for width in text_widths),
        owner=owner,
        image_ok=np.broadcast_to(np.True_, (len(image_widths), n_images)),
        text_ok=np.broadcast_to(np.True_, (len(text_widths), n_captions)),
    )


def forecast(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    """What a method will do on the training rows.

    Args:
        method: Which.
        grid: Of the training split; its rows are not looked at.
        pairs: (image, text) indices of the pairs within the limits.
        recipe: How each method is trained.
    """
    if method.name == "ape":
        return _ape(method, grid, pairs, recipe)
    return _FORECASTS[method.name](method, grid, pairs, recipe)


def setup_flops(grid: Grid, config: CanonicalConfig) -> int:
    """FLOPs of `build_canonical_grid`."""
    ranks = _ranks(grid, config)
    n_img, n_txt = grid.shape
    rows = [grid.n_images] * n_img + [grid.n_captions] * n_txt
    n_folds = count_folds(grid.n_images, config)
    flops = 0
    for n_rows, width in zip(rows, ranks.features, strict=True):
        flops += covariance_flops(n_rows, width) + eigh_flops(width)
        flops += matmul_flops(n_rows, width, ranks.rank)  # to white coordinates, once for the cross-products
        flops += matmul_flops(width, ranks.rank, ranks.shared)
        flops += matmul_flops(n_rows, ranks.rank, ranks.shared) if ranks.kept else 0
    flops += matmul_flops(sum(ranks.white[:n_img]), grid.n_images, sum(ranks.white[n_img:]))
    flops += (n_img + n_txt) * eigh_flops(ranks.rank)
    flops += 2 * n_img * n_txt * matmul_flops(ranks.rank, ranks.rank, ranks.rank)
    turning = matmul_flops(ranks.shared, ranks.rank, ranks.rank) + matmul_flops(ranks.shared, ranks.rank, ranks.shared)
    return flops + n_folds * n_img * n_txt * turning


def canonical_bytes(grid: Grid, config: CanonicalConfig) -> int:
    """Memory that canonical coordinates and the connectors of all folds take while they are made."""
    ranks, (n_img, n_txt) = _ranks(grid, config), grid.shape
    coordinates = 4 * ranks.rank * (grid.n_images * n_img + grid.n_captions * n_txt) if ranks.kept else 0
    return coordinates + 4 * (2 * config.n_folds + 1) * n_img * n_txt * ranks.rank**2


def _ranks(grid: Grid, config: CanonicalConfig) -> _Ranks:
    n_img, _ = grid.shape
    features = [min(rows.shape[1], config.max_features or rows.shape[1]) for rows in (*grid.images, *grid.texts)]
    n_rows = [grid.n_images] * n_img + [grid.n_captions] * (len(features) - n_img)
    rank = min(config.rank, max(features))
    white = [min(rank, width, max(n - 1, 1)) for width, n in zip(features, n_rows, strict=True)]
    shared = min(config.shared_rank, rank)
    other = [sum(white[n_img:])] * n_img + [sum(white[:n_img])] * (len(features) - n_img)
    turned = [min(shared, own, most) for own, most in zip(white, other, strict=True)]
    n_bytes = 4 * rank * sum(n_rows)
    return _Ranks(rank, shared, features, white, turned, n_bytes <= config.store_bytes)


def _closed_form(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    ranks, (n_img, _) = _ranks(grid, recipe.canonical), grid.shape
    emit = 0
    if method.sides == "text":
        for i, j in grid.pairs():
            f_img, f_txt = ranks.features[i], ranks.features[n_img + j]
            r_img, r_txt = ranks.turned[i], ranks.turned[n_img + j]
            emit += matmul_flops(f_img, r_img, r_txt) + matmul_flops(f_img, r_txt, f_txt)
    solution = _canonical(grid, pairs, ranks) if method.sides == "both" else _between_rows(grid, pairs)
    if method.sides == "text" and recipe.canonical.normalise:
        texts = [_whitening(rows.shape[1], rows.shape[1], rows.shape[1]) for rows in grid.texts]
        solution = replace(solution, texts=texts)
    return Forecast(setup_flops(grid, recipe.canonical), emit, 0, 0, 0, solution)


def _residual(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    config, ranks, network = (
        replace(recipe.residual, seed=method.seed),
        _ranks(grid, recipe.canonical),
        ResidualConfig(),
    )
    k, r = min(network.transform_rank, ranks.shared), ranks.shared
    widths = (network.code_dim + 1, *network.hidden, r * (1 + 2 * k))
    n_folds = count_folds(grid.n_images, recipe.canonical)
    sampler = FoldSampler(grid.owner, n_folds, config.batch_size, config.seed)
    order = PairOrder(grid.pairs(), config.pairs_per_step, config.seed)
    n_steps = config.steps(sampler.steps_per_epoch)
    flops = 0
    for step in range(n_steps):
        batch, drawn = sampler.samplers[step % n_folds].batch_size, order.draw()
        used = [*np.unique(drawn[:, 0]), *(grid.shape[0] + np.unique(drawn[:, 1]))]
        logits = infonce_flops(batch, r, both_sides=True, tiled=is_tiled(len(drawn), batch))
        flops += len(drawn) * (2 * matmul_flops(batch, r, r) + logits)
        flops += len(used) * transform_step_flops(batch, r, k) + mlp_step_flops(len(used), widths, input_grad=True)
        flops += 0 if ranks.kept else sum(matmul_flops(batch, ranks.features[e], r) for e in used)
    emit = sum(matmul_flops(len(ranks.features), a, b) for a, b in pairwise(widths))
    emit += sum(2 * matmul_flops(width, r, k) for width in ranks.features)
    n_looks = _n_looks(config, n_steps)
    flops += (n_looks + 1) * emit  # every look emits all transforms
    n_params = len(ranks.features) * network.code_dim + _mlp_params(widths) + config.learn_scale
    updates = adamw_flops(n_params, n_steps)
    solution = _canonical(grid, pairs, ranks)
    return Forecast(setup_flops(grid, recipe.canonical), flops, updates, n_steps, n_looks, solution)


def _sliced(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    config = replace(recipe.sliced, seed=method.seed)
    sampler = Sampler(grid.owner, config.batch_size, config.seed)
    n_steps, d_max = config.steps(sampler.steps_per_epoch), max(rows.shape[1] for rows in grid.images)
    flops = updates = 0
    for j, rows in enumerate(grid.texts):
        d_txt = rows.shape[1]
        widths = (d_max, 32, 128, 512, d_max * d_txt + d_max)
        order = PairOrder([(i, j) for i in range(grid.shape[0])], config.pairs_per_step, config.seed)
        flops += sum(matmul_flops(grid.shape[0], a, b) for a, b in pairwise(widths))  # the emission
        for _ in range(n_steps):
            drawn = [grid.images[i].shape[1] for i in order.draw()[:, 0]]
            flops += mlp_step_flops(len(drawn), widths, input_grad=False)
            flops += sum(_connector_step(sampler.batch_size, d_txt, d_img) for d_img in drawn)
        updates += adamw_flops(_mlp_params(widths) + config.learn_scale, n_steps)
    return Forecast(0, flops, updates, n_steps * grid.shape[1], 0, _between_rows(grid, pairs))


def _ape(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    both = method.sides == "both"
    config = recipe.ape_both if both else recipe.ape
    sampler = Sampler(grid.owner, config.batch_size, config.seed)
    n_steps, batch = config.steps(sampler.steps_per_epoch), sampler.batch_size
    ranks = _ranks(grid, recipe.canonical)
    solution = _canonical(grid, pairs, ranks) if both else _between_rows(grid, pairs)
    flops = n_steps * sum(_connector_step(batch, w.shape[1], w.shape[0]) for w in solution.weights)
    if both and not ranks.kept:
        used = [e for i, j in pairs for e in (i, grid.shape[0] + j)]
        flops += n_steps * sum(matmul_flops(batch, ranks.features[e], ranks.shared) for e in used)
    n_params = sum(w.numel() + w.shape[0] + config.learn_scale for w in solution.weights)
    setup = setup_flops(grid, recipe.canonical) if both else 0
    return Forecast(setup, flops, adamw_flops(n_params, n_steps), n_steps * len(pairs), 0, solution)


def _connector_step(batch: int, d_txt: int, d_img: int) -> int:
    return connector_step_flops(batch, d_txt, d_img, tiled=is_tiled(1, batch))


def _mlp_params(widths: Sequence[int]) -> int:
    return sum((a + 1) * b for a, b in pairwise(widths))


def _n_looks(config: TrainConfig, n_steps: int) -> int:
    """Looks at validation: one at the start, and those after a step."""
    looks = {round(n_steps * (k + 1) / config.n_validations) for k in range(config.n_validations)}
    return 1 + len(looks - {0})


def _between_rows(grid: Grid, pairs: Sequence[PairIndex]) -> Solution:
    """Connectors between the encoders' own rows."""
    shapes = [(grid.images[i].shape[1], grid.texts[j].shape[1]) for i, j in pairs]
    return _solution(pairs, shapes, [None] * grid.shape[0], [None] * grid.shape[1])


def _canonical(grid: Grid, pairs: Sequence[PairIndex], ranks: _Ranks) -> Solution:
    """Connectors between canonical coordinates."""
    n_img = grid.shape[0]
    widths = [rows.shape[1] for rows in (*grid.images, *grid.texts)]
    sides = [_whitening(f, ranks.shared, width) for f, width in zip(ranks.features, widths, strict=True)]
    shapes = [(ranks.turned[i], ranks.turned[n_img + j]) for i, j in pairs]
    return _solution(pairs, shapes, sides[:n_img], sides[n_img:])


def _solution(
    pairs: Sequence[PairIndex],
    shapes: Sequence[tuple[int, int]],
    images: Sequence[Canonical | None],
    texts: Sequence[Canonical | None],
) -> Solution:
    weights = [torch.empty(shape, device="meta") for shape in shapes]
    biases = [torch.empty(shape[0], device="meta") for shape in shapes]
    return Solution(method="", sides="", pairs=list(pairs), weights=weights, biases=biases, images=images, texts=texts)


def _whitening(n_features: int, rank: int, width: int) -> Canonical:
    mean, projection, features = (torch.empty(s, device="meta") for s in (n_features, (n_features, rank), n_features))
    return Canonical(mean, projection, features, width, normalise=True)


_FORECASTS: dict[str, Callable[[Method, Grid, Sequence[PairIndex], Recipe], Forecast]] = {
    "closed-form": _closed_form,
    "hypernet": _residual,
    "hypernet-sliced": _sliced,
}
