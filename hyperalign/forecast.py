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

from hyperalign.align.batches import PairOrder, Sampler, SubgridOrder
from hyperalign.align.canonical import Canonical
from hyperalign.align.canonical_grid import SetupShapes, setup_flops, setup_shapes
from hyperalign.align.connectors import is_tiled
from hyperalign.align.consensus import bases_flops
from hyperalign.align.grid import Grid, PairIndex
from hyperalign.align.hypernetwork import ResidualConfig, ResidualNetwork
from hyperalign.align.polish import alone, back_among
from hyperalign.align.residual import emission_flops, residual_step_flops
from hyperalign.align.solution import Solution
from hyperalign.align.train import TrainConfig, update_flops
from hyperalign.ledger import (
    connector_step_flops,
    matmul_flops,
    mlp_step_flops,
)
from hyperalign.solve import Method, Recipe, polishing_recipe

__all__ = ["Forecast", "Hollow", "forecast", "forecast_polishing", "hollow_grid", "sliced_widths"]


class Forecast(NamedTuple):
    """What a method will do.

    Attributes:
        setup_flops: Canonical coordinates and connectors in closed form; 0 where the method needs none.
        train_flops: Forward and backward of all steps, and the emission.
        optimiser_flops: Updates.
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


def forecast_polishing(grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe, *, after: Method) -> Forecast:
    """What polishing some pairs together does.

    Args:
        grid: Of the training split; its rows are not looked at.
        pairs: Which; their indices stay those of `grid`.
        recipe: Of the search.
        after: The method that answers; the hypernetwork leaves whitenings, which are not found again.
    """
    part, own = alone(grid, pairs)
    shapes, way = setup_shapes(part, recipe.canonical), polishing_recipe(recipe)
    widths = [rows.shape[1] for rows in (*part.images, *part.texts)]
    used = [*shapes.image_features, *shapes.text_features]
    leaves = after.name == "hypernet" and after.sides == "both"
    known = [True if leaves and width == all_of else None for width, all_of in zip(used, widths, strict=True)]
    cost = forecast(Method("ape", "both", after.seed), part, own, way)
    return cost._replace(
        setup_flops=setup_flops(setup_shapes(part, way.canonical), known),
        solution=back_among(grid, cost.solution, dict(zip(own, pairs, strict=True))),
    )


def _setup(grid: Grid, recipe: Recipe) -> int:
    return setup_flops(setup_shapes(grid, recipe.canonical))


def _closed_form(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    shapes, emit = setup_shapes(grid, recipe.canonical), 0
    if method.sides == "text":
        for i, j in grid.pairs():
            f_img, f_txt = shapes.image_features[i], shapes.text_features[j]
            r_img, r_txt = shapes.image_ranks[i], shapes.text_ranks[j]
            emit += matmul_flops(f_img, r_img, r_txt) + matmul_flops(f_img, r_txt, f_txt)
    solution = _canonical(grid, pairs, shapes) if method.sides == "both" else _between_rows(grid, pairs)
    if method.sides == "text" and recipe.canonical.normalise:
        texts = [_whitening(rows.shape[1], rows.shape[1], rows.shape[1]) for rows in grid.texts]
        solution = replace(solution, texts=texts)
    return Forecast(_setup(grid, recipe), emit, 0, 0, 0, solution)


def _residual(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    config, shapes = replace(recipe.residual, seed=method.seed), setup_shapes(grid, recipe.canonical)
    features, shape = [*shapes.image_features, *shapes.text_features], ResidualConfig()
    bases = torch.empty(len(features), shapes.rank, shapes.rank, device="meta")
    with torch.device("meta"):
        network = ResidualNetwork(bases, grid.shape[0], shape, torch.Generator())
    sampler = Sampler(grid.owner, config.batch_size, config.seed)
    order = SubgridOrder(*grid.shape, config.pairs_per_step, config.seed)
    n_steps, batch = config.steps(sampler.steps_per_epoch, grid.shape), sampler.batch_size
    flops = bases_flops(shapes.image_ranks, shapes.text_ranks, shapes.rank)
    for _ in range(n_steps):
        encoders, j = order.draw()
        flops += residual_step_flops(network, batch, len(encoders), shapes.text_ranks[j])
        used = [] if shapes.keeps else [*encoders, grid.shape[0] + j]
        flops += sum(matmul_flops(batch, features[e], shapes.rank) for e in used)
    n_looks = _n_looks(config, n_steps)
    flops += (n_looks + 1) * emission_flops(network, features)  # every look emits all transforms
    n_params = sum(p.numel() for p in network.parameters()) + config.learn_scale
    updates = update_flops(config, n_params, n_steps)
    return Forecast(_setup(grid, recipe), flops, updates, n_steps, n_looks, _canonical(grid, pairs, shapes))


def _sliced(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    config = replace(recipe.sliced, seed=method.seed)
    sampler = Sampler(grid.owner, config.batch_size, config.seed)
    n_steps = config.steps(sampler.steps_per_epoch)
    flops = updates = 0
    for j, rows in enumerate(grid.texts):
        d_txt, widths = rows.shape[1], sliced_widths(grid, j)
        order = PairOrder([(i, j) for i in range(grid.shape[0])], config.pairs_per_step, config.seed)
        flops += sum(matmul_flops(grid.shape[0], a, b) for a, b in pairwise(widths))  # the emission
        for _ in range(n_steps):
            drawn = [grid.images[i].shape[1] for i in order.draw()[:, 0]]
            flops += mlp_step_flops(len(drawn), widths, input_grad=False)
            flops += sum(_connector_step(sampler.batch_size, d_txt, d_img) for d_img in drawn)
        updates += update_flops(config, _mlp_params(widths) + config.learn_scale, n_steps)
    return Forecast(0, flops, updates, n_steps * grid.shape[1], 0, _between_rows(grid, pairs))


def sliced_widths(grid: Grid, text: int) -> tuple[int, ...]:
    """Widths of the poster's network for one text encoder: its condition, hidden layers and the widest connector."""
    d_max, d_txt = max(rows.shape[1] for rows in grid.images), grid.texts[text].shape[1]
    return (d_max, 32, 128, 512, d_max * d_txt + d_max)


def _ape(method: Method, grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> Forecast:
    both = method.sides == "both"
    config = recipe.ape_both if both else recipe.ape
    sampler = Sampler(grid.owner, config.batch_size, config.seed)
    n_steps, batch = config.steps(sampler.steps_per_epoch), sampler.batch_size
    shapes = setup_shapes(grid, recipe.canonical)
    solution = _canonical(grid, pairs, shapes) if both else _between_rows(grid, pairs)
    flops = n_steps * sum(_connector_step(batch, w.shape[1], w.shape[0]) for w in solution.weights)
    if both and not shapes.keeps:
        widths = [shapes.image_features[i] + shapes.text_features[j] for i, j in pairs]
        flops += n_steps * matmul_flops(batch, sum(widths), shapes.rank)
    n_params = sum(w.numel() + w.shape[0] + config.learn_scale for w in solution.weights)
    setup = _setup(grid, recipe) if both else 0
    return Forecast(setup, flops, update_flops(config, n_params, n_steps), n_steps * len(pairs), 0, solution)


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


def _canonical(grid: Grid, pairs: Sequence[PairIndex], shapes: SetupShapes) -> Solution:
    """Connectors between canonical coordinates."""
    n_img, features = grid.shape[0], [*shapes.image_features, *shapes.text_features]
    widths = [rows.shape[1] for rows in (*grid.images, *grid.texts)]
    sides = [_whitening(f, shapes.rank, width) for f, width in zip(features, widths, strict=True)]
    ranks = [(shapes.image_ranks[i], shapes.text_ranks[j]) for i, j in pairs]
    return _solution(pairs, ranks, sides[:n_img], sides[n_img:])


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
