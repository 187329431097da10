"""Connectors without a gradient step: every pair is learned, the text-sided twin agrees, little data breaks nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from planted import plant, recalls, similarities, spoil
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align.canonical import CanonicalConfig, to_coordinates
from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form, to_text_sided
from hyperalign.align.grid import Grid, build_grid, to_float

CONFIG = CanonicalConfig(rank=8)


def test_every_pair_is_learned_without_a_step() -> None:
    canonical = build_canonical_grid(plant(200), CONFIG)

    found = recalls(solve_closed_form(canonical), plant(50, items=1))

    assert len(found) == 6
    assert min(found.values()) > 30  # chance is 2


def test_more_noise_makes_a_worse_pair() -> None:
    scores = []
    for noise in (0.1, 1.0, 3.0):
        canonical = build_canonical_grid(plant(200, noise=noise), CONFIG)
        scores.append(np.mean(list(recalls(solve_closed_form(canonical), plant(50, items=1, noise=noise)).values())))

    assert scores[0] > scores[1] > scores[2]


def test_connectors_are_cut_to_what_either_side_has() -> None:
    """A text encoder of width 4 has 4 coordinates and predicts no more than 4 of any image encoder."""
    canonical = build_canonical_grid(plant(60, text_dims=(4, 10)), CanonicalConfig(rank=16))
    narrow = build_canonical_grid(plant(60, text_dims=(4,)), CanonicalConfig(rank=16))

    assert [tuple(w.shape) for w in solve_closed_form(canonical).weights] == [
        (12, 4), (12, 10), (8, 4), (8, 10), (14, 4), (14, 10)
    ]  # fmt: skip
    assert [tuple(w.shape) for w in solve_closed_form(narrow).weights] == [(4, 4)] * 3


def built(**overrides: object) -> tuple[Grid, CanonicalGrid]:
    grid = plant(40)
    config = {"rank": 8, **overrides}
    return grid, build_canonical_grid(grid, CanonicalConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize("overrides", [{}, {"normalise": False}, {"max_features": 9}])
def test_the_text_sided_twin_gives_the_inner_products_of_canonical_space(overrides: dict[str, object]) -> None:
    """With the image row as it is: what the image's mean adds is the same for all images."""
    grid, canonical = built(**overrides)
    both = solve_closed_form(canonical)
    twin = to_text_sided(both)

    for n, (i, j) in enumerate(both.pairs):
        image, text = both.images[i], both.texts[j]
        assert image is not None
        assert text is not None
        (r_img, r_txt), rows = both.weights[n].shape, to_float(grid.texts[j][:])
        inner = to_coordinates(rows, text)[:, :r_txt] @ both.weights[n].T
        coordinates = to_coordinates(to_float(grid.images[i][:]), image)[:, :r_img]
        images, texts = to_float(grid.images[i][:]), rows
        if text.normalise:
            images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)

        mapped = texts @ twin.weights[n].T + twin.biases[n]
        found, expected = mapped @ images.T, inner @ coordinates.T

        offset = (found - expected).mean(1, keepdim=True)
        torch.testing.assert_close(found - offset, expected, atol=1e-3, rtol=1e-3)
        cosine = F.normalize(mapped, dim=1) @ F.normalize(images, dim=1).T
        torch.testing.assert_close(similarities(twin, grid)[i, j], cosine, atol=1e-5, rtol=0)
        assert twin.weights[n].shape == (grid.images[i].shape[1], grid.texts[j].shape[1])


def test_the_text_sided_twin_costs_what_the_counter_sees() -> None:
    _, canonical = built()
    both = solve_closed_form(canonical)

    with FlopCounterMode(display=False) as counter:
        twin = to_text_sided(both)

    assert twin.emit_flops - both.emit_flops == counter.get_total_flops() > 0


def test_the_text_sided_twin_is_better_than_chance() -> None:
    canonical = build_canonical_grid(plant(200), CONFIG)

    found = recalls(solve_closed_form(canonical, sides="text"), plant(50, items=1))

    assert min(found.values()) > 20  # chance is 2


@pytest.mark.parametrize(
    ("grid", "config"),
    [
        (plant(40, image_dims=(12,), text_dims=(10,)), CONFIG),
        (plant(40, image_dims=(1, 8), text_dims=(1, 10)), CONFIG),
        (plant(40, image_dims=(90, 8), text_dims=(10, 90)), CONFIG),
        (plant(40, image_dims=(60, 50, 70), text_dims=(90, 85, 40)), CanonicalConfig(rank=1, targets_per_rank=1)),
        (plant(5), CONFIG),
        (plant(40), CanonicalConfig(rank=500)),
        (plant(4), CanonicalConfig()),
        (plant(2), CONFIG),
        (plant(3), CONFIG),
        (spoil(plant(40), images={0: list(range(39))}), CONFIG),
    ],
    ids=[
        "one pair",
        "width 1",
        "iterated",
        "one target",
        "n < D",
        "rank > D",
        "folds > pictures",
        "2 pictures",
        "3 pictures",
        "1 usable row",
    ],
)
def test_little_is_still_something(grid: Grid, config: CanonicalConfig) -> None:
    for sides in ("both", "text"):
        solution = solve_closed_form(build_canonical_grid(grid, config), sides=sides)
        assert solution.pairs == grid.pairs()
        assert all(cosine.isfinite().all() for cosine in similarities(solution, grid).values())


def test_duplicated_encoders_have_the_same_connectors() -> None:
    grid = plant(60)
    twice = build_grid([grid.images[0], grid.images[0]], list(grid.texts), grid.owner)

    found = similarities(solve_closed_form(build_canonical_grid(twice, CONFIG)), twice)

    for j in range(2):
        torch.testing.assert_close(found[0, j], found[1, j], atol=1e-4, rtol=0)


def test_an_encoder_with_constant_rows_knows_nothing_and_breaks_nothing() -> None:
    grid = plant(60)
    constant = build_grid([np.full((60, 7), 2, np.float32), grid.images[1]], list(grid.texts), grid.owner)

    found = similarities(solve_closed_form(build_canonical_grid(constant, CONFIG)), constant)

    assert found[0, 0].abs().max() == 0
    assert recalls(solve_closed_form(build_canonical_grid(constant, CONFIG)), constant)[1, 0] > 50  # chance is 2
