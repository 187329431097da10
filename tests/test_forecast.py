"""Forecasts from shapes, added up by hand for 2 image encoders by 1 text encoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperalign.align.canonical import Whitening
from hyperalign.align.canonical_grid import setup_flops, setup_shapes
from hyperalign.align.train import update_flops
from hyperalign.board import training_free_flops
from hyperalign.forecast import forecast, hollow_grid
from hyperalign.ledger import cholesky_flops, connector_step_flops, gram_flops
from hyperalign.rank.scores import cka_flops, mutual_knn_flops
from hyperalign.request import SearchConfig
from hyperalign.solve import Method

GRID = hollow_grid([8, 12], [5], np.arange(100) // 2)


@pytest.mark.parametrize("learn_scale", [True, False])
def test_the_baseline_updates_its_maps_their_biases_and_its_scale(learn_scale: bool) -> None:
    recipe = SearchConfig().recipe()
    config = replace(recipe.ape, batch_size=16, n_steps=10, n_epochs=None, learn_scale=learn_scale)

    cost = forecast(Method("ape", "text", 0), GRID, GRID.pairs(), replace(recipe, ape=config))

    n_params = (8 * 5 + 8 + learn_scale) + (12 * 5 + 12 + learn_scale)
    assert cost.optimiser_flops == update_flops(config, n_params, 10)
    assert cost.train_flops == 10 * (connector_step_flops(16, 5, 8) + connector_step_flops(16, 5, 12))
    assert (cost.setup_flops, cost.n_steps, cost.n_looks) == (0, 20, 0)
    assert [bias.shape for bias in cost.solution.biases] == [(8,), (12,)]


def test_training_free_scores_cost_both_of_their_kinds_on_the_sample() -> None:
    widths = ([8, 12], [5])
    expected = [cka_flops(n, *widths) + mutual_knn_flops(n, *widths) for n in (50, 1000)]

    assert training_free_flops(GRID) == expected[0]
    assert training_free_flops(hollow_grid(*widths, np.arange(5000))) == expected[1]


def test_moments_that_are_known_are_not_booked_again() -> None:
    shapes = setup_shapes(GRID, SearchConfig().recipe().canonical)
    none = torch.empty(0)
    known = Whitening(none, none, none, width=12, normalise=True, varies=True, n_rows=50)

    saved = setup_flops(shapes) - setup_flops(shapes, [None, known, known])

    assert saved == gram_flops(50, 12) + cholesky_flops(12) + gram_flops(shapes.text_rows[0], 5) + cholesky_flops(5)
    assert setup_flops(shapes, [None] * 3) == setup_flops(shapes)
