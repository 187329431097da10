"""Connectors without a gradient step: laws they obey, pictures they have not seen, and what they cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from planted import IMAGE_DIMS, TEXT_DIMS, plant, recalls, similarities, spoil
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align import closed_form as closed_form_module
from hyperalign.align.canonical import CanonicalConfig, Coordinates, find_canonical, find_moments, to_coordinates
from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid, count_folds, leave_one_out
from hyperalign.align.closed_form import solve_closed_form, to_text_sided
from hyperalign.align.grid import Grid, Rows, build_grid, to_float
from hyperalign.ledger import eigh_flops

CONFIG = CanonicalConfig(rank=8, n_folds=3)
WHOLE = CanonicalConfig(rank=16, n_folds=3, image_power=0)


def whitened(grid: Grid) -> tuple[list[Coordinates], list[Coordinates]]:
    """Coordinates of both sides that are not turned yet."""

    def side(tables: Sequence[Rows], masks: NDArray[np.bool_]) -> list[Coordinates]:
        found = []
        for rows, ok in zip(tables, masks, strict=True):
            moments = find_moments(rows, ok, normalise=True)
            found.append(Coordinates(rows, find_canonical(moments, 12, ridge=0.1, normalise=True), keep=False))
        return found

    return side(grid.images, grid.image_ok), side(grid.texts, grid.text_ok)


def assert_same_similarities(first: dict[tuple[int, int], Tensor], second: dict[tuple[int, int], Tensor]) -> None:
    assert first.keys() == second.keys()
    for pair, cosine in first.items():
        torch.testing.assert_close(cosine, second[pair], atol=2e-4, rtol=0)


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


def test_the_connector_is_the_cross_covariance_of_the_coordinates() -> None:
    grid = plant(60, n_captions=2)
    canonical = build_canonical_grid(grid, WHOLE)

    for i, j in grid.pairs():
        text = canonical.texts[j][0:120].reshape(60, 2, -1).mean(1)
        torch.testing.assert_close(canonical.cross[i, j], canonical.images[i][0:60].T @ text / 60, atol=1e-5, rtol=1e-4)


def test_image_coordinates_are_weighted_by_what_captions_tell_of_them() -> None:
    """By σ^p, the strongest by 1; σ is the length of a row of all connectors of an encoder."""
    grid = plant(60)
    plain, weighted = build_canonical_grid(grid, WHOLE), build_canonical_grid(grid, replace(WHOLE, image_power=0.7))

    for i, side in enumerate(weighted.images):
        own = side.canonical.own_rank
        sigma = torch.cat(list(plain.cross[i]), 1).norm(dim=1)[:own]
        weight = side[0:60][:, :own].norm(dim=0) / plain.images[i][0:60][:, :own].norm(dim=0)
        torch.testing.assert_close(weight, (sigma / sigma[0]) ** 0.7, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(weighted.cross, plain.cross)


def test_the_order_of_encoders_does_not_matter() -> None:
    grid = plant(60)
    swapped = build_grid([grid.images[k] for k in (2, 0, 1)], [grid.texts[k] for k in (1, 0)], grid.owner)

    plain = similarities(solve_closed_form(build_canonical_grid(grid, CONFIG)), grid)
    other = similarities(solve_closed_form(build_canonical_grid(swapped, CONFIG)), swapped)

    assert_same_similarities(plain, {((2, 0, 1)[i], (1, 0)[j]): cosine for (i, j), cosine in other.items()})


def test_the_order_of_items_does_not_matter() -> None:
    grid, order = plant(60), np.random.default_rng(1).permutation(60)
    shuffled = build_grid([rows[order] for rows in grid.images], [rows[order] for rows in grid.texts], grid.owner)

    plain = similarities(solve_closed_form(build_canonical_grid(grid, CONFIG)), grid)
    other = similarities(solve_closed_form(build_canonical_grid(shuffled, CONFIG)), grid)

    assert_same_similarities(plain, other)


def test_how_an_encoder_lies_in_its_space_does_not_matter() -> None:
    grid = plant(60)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0].astype(np.float32)
    turned = build_grid([5 * grid.images[0][:] @ rotation, *grid.images[1:]], list(grid.texts), grid.owner)

    plain = similarities(solve_closed_form(build_canonical_grid(grid, CONFIG)), grid)
    other = similarities(solve_closed_form(build_canonical_grid(turned, CONFIG)), turned)

    assert_same_similarities(plain, other)


def test_bad_rows_of_one_encoder_change_nothing_for_the_others() -> None:
    """Without weights and cuts; with them the directions that a side keeps are those its partners predict together."""
    grid = plant(60)
    spoiled = spoil(grid, images={1: [0, 7]}, texts={0: [3]})

    plain = similarities(solve_closed_form(build_canonical_grid(grid, WHOLE)), grid)
    other = similarities(solve_closed_form(build_canonical_grid(spoiled, WHOLE)), grid)

    kept = [pair for pair in plain if pair[0] != 1 and pair[1] != 0]
    assert_same_similarities({pair: plain[pair] for pair in kept}, {pair: other[pair] for pair in kept})
    assert not torch.allclose(plain[1, 1], other[1, 1], atol=2e-4)
    assert all(cosine.isfinite().all() for cosine in other.values())


def test_an_item_that_is_bad_for_both_sides_might_as_well_not_be_there() -> None:
    grid, left = plant(61), np.arange(61) != 30
    one_pair = build_grid([grid.images[0]], [grid.texts[0]], grid.owner)
    spoiled = spoil(one_pair, images={0: [30]}, texts={0: [30]})
    shorter = build_grid([grid.images[0][left]], [grid.texts[0][left]], np.arange(60))

    first = similarities(solve_closed_form(build_canonical_grid(spoiled, CONFIG)), one_pair)
    second = similarities(solve_closed_form(build_canonical_grid(shorter, CONFIG)), one_pair)

    assert_same_similarities(first, second)


def test_sums_by_fold_are_products_of_pictures_with_their_mean_caption() -> None:
    grid = plant(20, n_captions=3)
    images, texts = whitened(grid)

    sums, _ = find_cross(grid, images, texts, n_folds=3)

    for i, j in grid.pairs():
        text = texts[j][0:60].reshape(20, 3, -1).mean(1)
        for k in range(3):
            expected = images[i][0:20][k::3].T @ text[k::3]
            torch.testing.assert_close(sums[k, i, j], expected, atol=1e-4, rtol=1e-4)


def test_captions_that_are_bad_are_left_out_of_their_pictures_mean() -> None:
    grid = spoil(plant(20, n_captions=3), texts={0: [4], 1: [6, 7, 8]})  # one of picture 1's, all of picture 2's
    images, texts = whitened(grid)

    sums, _ = find_cross(grid, images, texts, n_folds=2)

    rows = texts[0][0:60].reshape(20, 3, -1)
    mean = rows.mean(1)
    mean[1] = rows[1, [0, 2]].mean(0)
    torch.testing.assert_close(sums.sum(0)[0, 0], images[0][0:20].T @ mean, atol=1e-4, rtol=1e-4)
    mean = texts[1][0:60].reshape(20, 3, -1).mean(1)
    mean[2] = 0
    torch.testing.assert_close(sums.sum(0)[0, 1], images[0][0:20].T @ mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block", [3, 7])
def test_blocks_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = plant(20, n_captions=3)
    whole, _ = find_cross(grid, *whitened(grid), n_folds=3)
    monkeypatch.setattr(closed_form_module, "BLOCK", block)

    parts, _ = find_cross(grid, *whitened(grid), n_folds=3)

    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


def test_leaving_out_a_fold_is_the_mean_over_the_others() -> None:
    """Five pictures in two folds: {0, 2, 4} and {1, 3}."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])

    total, held_out = leave_one_out(torch.stack([values[0::2].sum(), values[1::2].sum()]), 5)

    assert total.item() == 3
    assert held_out.tolist() == [3, 3]
    assert leave_one_out(torch.tensor([9.0, 6.0]), 5)[1].tolist() == [3, 3]


def test_a_held_out_connector_has_not_seen_the_pictures_of_its_fold() -> None:
    grid, k, n_folds = plant(31), 1, 4
    images, texts = whitened(grid)
    changed = np.array(grid.images[0][:])
    changed[k::n_folds] = changed[k::n_folds][::-1] * 3 + 1
    other = [Coordinates(changed, images[0].canonical, keep=False), *images[1:]]

    _, before = leave_one_out(find_cross(grid, images, texts, n_folds=n_folds)[0], 31)
    _, after = leave_one_out(find_cross(grid, other, texts, n_folds=n_folds)[0], 31)

    torch.testing.assert_close(after[k], before[k], atol=1e-5, rtol=0)
    for seen in (0, 2, 3):
        assert (after[seen, 0] - before[seen, 0]).abs().max() > 0.05
    assert torch.equal(after[:, 1:], before[:, 1:])


def test_the_mean_of_the_held_out_connectors_is_the_connector() -> None:
    """Of folds of equal size, up to the size of the others."""
    canonical = build_canonical_grid(plant(60), CONFIG)

    torch.testing.assert_close(canonical.held_out.mean(0), canonical.cross, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("n_images", "folds"), [(2, 2), (3, 2), (9, 4), (10, 5), (1000, 5)])
def test_every_fold_has_two_pictures_where_there_are_enough(n_images: int, folds: int) -> None:
    assert count_folds(n_images, CanonicalConfig(n_folds=5)) == folds


def test_padded_coordinates_are_zero() -> None:
    canonical = build_canonical_grid(plant(60, image_dims=(3, 16)), WHOLE)

    narrow = canonical.images[0]
    assert narrow.canonical.own_rank == 3
    assert narrow[np.arange(60)][:, 3:].abs().max() == 0
    assert canonical.cross[0, :, 3:].abs().max() == 0
    assert canonical.held_out[:, 0, :, 3:].abs().max() == 0


def test_directions_that_the_other_side_cannot_predict_are_cut() -> None:
    """A text encoder of width 4 predicts no more than 4 directions of any image encoder."""
    canonical = build_canonical_grid(plant(60, text_dims=(4,)), WHOLE)

    assert [side.canonical.own_rank for side in canonical.images] == [4, 4, 4]
    assert [tuple(w.shape) for w in solve_closed_form(canonical).weights] == [(4, 4)] * 3


def test_coordinates_that_do_not_fit_are_made_when_asked_for() -> None:
    grid = plant(60)

    kept, made = (build_canonical_grid(grid, CanonicalConfig(rank=8, store_bytes=b)) for b in (2**20, 0))

    torch.testing.assert_close(kept.cross.abs(), made.cross.abs(), atol=1e-4, rtol=1e-3)
    assert_same_similarities(similarities(solve_closed_form(kept), grid), similarities(solve_closed_form(made), grid))


@pytest.mark.parametrize("store_bytes", [0, 2**20])
@pytest.mark.parametrize("max_features", [0, 9])
def test_the_set_up_costs_what_the_counter_sees_and_the_eigendecompositions(
    store_bytes: int, max_features: int
) -> None:
    config = CanonicalConfig(rank=8, n_folds=3, store_bytes=store_bytes, max_features=max_features)
    grid = spoil(plant(40, n_captions=2), images={0: [1, 2]}, texts={1: [5]})

    with FlopCounterMode(display=False) as counter:
        canonical = build_canonical_grid(grid, config)

    widths = [min(width, max_features or width) for width in (*IMAGE_DIMS, *TEXT_DIMS)]
    unseen = sum(eigh_flops(width) for width in widths) + 5 * eigh_flops(min(12, max(widths)))
    assert canonical.flops == counter.get_total_flops() + unseen
    assert all(side.flops == 0 for side in (*canonical.images, *canonical.texts))


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
        (plant(5), CONFIG),
        (plant(40), CanonicalConfig(rank=500)),
        (plant(4), CanonicalConfig(n_folds=9)),
        (plant(2), CONFIG),
        (plant(3), CONFIG),
        (spoil(plant(40), images={0: list(range(39))}), CONFIG),
    ],
    ids=["one pair", "width 1", "n < D", "rank > D", "folds > pictures", "2 pictures", "3 pictures", "1 usable row"],
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


def test_pictures_with_different_numbers_of_captions_count_alike() -> None:
    """Repeating a picture's caption changes text moments a little and the pictures' weight not at all."""
    grid = plant(20)
    owner = np.repeat(np.arange(20), [1 + (k % 3) for k in range(20)])
    uneven = build_grid(list(grid.images), [rows[owner] for rows in grid.texts], owner)
    images, texts = whitened(grid)

    plain, _ = find_cross(grid, images, texts, n_folds=2)
    again = [Coordinates(rows, side.canonical, keep=False) for rows, side in zip(uneven.texts, texts, strict=True)]
    found, _ = find_cross(uneven, images, again, n_folds=2)

    torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


def test_an_encoder_without_a_usable_row_is_refused() -> None:
    with pytest.raises(ValueError, match="all 40 are NaN, Inf or zero"):
        build_canonical_grid(spoil(plant(40), images={1: list(range(40))}), CONFIG)


def test_one_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 pictures"):
        build_canonical_grid(plant(1, n_captions=4), CONFIG)
