"""The set-up: laws its connectors obey, and what it costs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from counting import count_all
from numpy.typing import NDArray
from planted import plant, recalls, similarities, spoil
from torch import Tensor

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import (
    CanonicalGrid,
    build_canonical_grid,
    setup_flops,
    setup_shapes,
)
from hyperalign.align.closed_form import solve_closed_form, to_text_side
from hyperalign.align.grid import Grid, PairIndex, Rows, build_grid
from hyperalign.forecast import hollow_grid

CONFIG = CanonicalConfig(rank=8)  # cuts two of the image encoders and both text encoders
WHOLE = CanonicalConfig(rank=16, image_power=0)
ITERATED = CanonicalConfig(rank=6, targets_per_rank=99, sketch_per_rank=99)  # of encoders wider than 76
CHOSEN = CanonicalConfig(rank=6, normalise=False)
NOT_KEPT: dict[str, Any] = {"store_bytes": 0}


def iterated_grid(n_images: int = 120) -> Grid:
    return plant(n_images, image_dims=(90, 8), text_dims=(10, 85))


def wide_grid(n_images: int, *, n_captions: int = 1) -> Grid:
    """Past a strip of the symmetric product, and with a text encoder that is cut."""
    return plant(n_images, n_captions=n_captions, image_dims=(130, 8), text_dims=(10, 90))


def chosen_grid(n_images: int, *, items: int = 0, n_captions: int = 1) -> Grid:
    """Wide enough for targets to be chosen on both sides."""
    return plant(n_images, items=items, n_captions=n_captions, image_dims=(60, 50, 70), text_dims=(90, 85, 40))


def cosines(grid: Grid, config: CanonicalConfig, on: Grid | None = None) -> dict[PairIndex, Tensor]:
    """What the connectors of a grid say of its rows or of another's."""
    return similarities(solve_closed_form(build_canonical_grid(grid, config)), on or grid)


def between_rows(canonical: CanonicalGrid, connectors: Tensor) -> list[Tensor]:
    """Connectors (N, M, R, R) as maps between the encoders' own rows, which know no sign and no basis."""
    return [
        to_text_side(connectors[i, j], image.canonical, text.canonical)[0]
        for i, image in enumerate(canonical.images)
        for j, text in enumerate(canonical.texts)
    ]


def assert_close(first: list[Tensor], second: list[Tensor], rtol: float = 1e-3) -> None:
    """Up to a share of the largest number."""
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=rtol * float(other.abs().max()), rtol=0)


def assert_same_similarities(first: dict[PairIndex, Tensor], second: dict[PairIndex, Tensor]) -> None:
    assert first.keys() == second.keys()
    for pair, cosine in first.items():
        torch.testing.assert_close(cosine, second[pair], atol=2e-4, rtol=0)


def mean_products(grid: Grid, canonical: CanonicalGrid, pictures: list[int]) -> Tensor:
    """(N, M, R, R) means over pictures of c_img c̄_txtᵀ, picture by picture; what is unusable counts as zeros."""
    rank = canonical.images[0].canonical.projection.shape[1]
    total = torch.zeros(*grid.shape, rank, rank)
    for picture in pictures:
        owned = np.flatnonzero(grid.owner == picture)
        for i, j in grid.pairs():
            good = owned[grid.text_ok[j, owned]]
            if grid.image_ok[i, picture] and len(good):
                image, text = canonical.images[i][np.array([picture])][0], canonical.texts[j][good].mean(0)
                total[i, j] += torch.outer(image, text)
    return total / len(pictures)


# what a connector is


UNEVEN = np.repeat(np.arange(31), [1 + (k % 3) for k in range(31)])
GRIDS = {
    "plain": plant(31, n_captions=2),
    "uneven captions": build_grid(list(plant(31).images), [rows[UNEVEN] for rows in plant(31).texts], UNEVEN),
    "bad rows": spoil(plant(31, n_captions=3), images={1: [5, 6]}, texts={0: [4], 1: [6, 7, 8]}),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("config", [WHOLE, replace(CONFIG, image_power=0)], ids=["whole", "cut"])
@pytest.mark.parametrize("store_bytes", [0, 2**20])
def test_a_connector_is_the_mean_product_of_pictures_with_their_mean_caption(
    name: str, config: CanonicalConfig, store_bytes: int
) -> None:
    """Every picture counts once, however many captions it has."""
    grid = GRIDS[name]

    canonical = build_canonical_grid(grid, replace(config, store_bytes=store_bytes))

    expected = mean_products(grid, canonical, list(range(31)))
    torch.testing.assert_close(canonical.cross, expected, atol=1e-4, rtol=1e-3)


# which directions are kept, and what they weigh


@pytest.mark.parametrize("store_bytes", [0, 2**20])
def test_image_coordinates_are_weighted_by_what_captions_tell_of_them(store_bytes: int) -> None:
    """By σ^p, the strongest by 1; σ is the length of a row of all connectors of an encoder."""
    grid, config = plant(60), replace(WHOLE, store_bytes=store_bytes)
    plain, weighted = build_canonical_grid(grid, config), build_canonical_grid(grid, replace(config, image_power=0.7))

    for i, side in enumerate(weighted.images):
        own = side.canonical.own_rank
        sigma = torch.cat(list(plain.cross[i]), 1).norm(dim=1)[:own]
        weight = side[0:60][:, :own].norm(dim=0) / plain.images[i][0:60][:, :own].norm(dim=0)
        torch.testing.assert_close(weight, (sigma / sigma[0]) ** 0.7, atol=1e-3, rtol=1e-2)
        assert weight[-1] < 0.5
    torch.testing.assert_close(weighted.cross, plain.cross)


@pytest.mark.parametrize("make", [lambda: plant(200), lambda: iterated_grid(200)], ids=["decomposed", "iterated"])
def test_what_the_other_side_predicts_is_kept_and_the_rest_is_cut(make: Callable[[], Grid]) -> None:
    """Six latents are all there is to predict; of random directions 6 of 14 would keep 0.65 of it on a side.

    Rows are taken as they are: made unit vectors, their lengths would be one more thing that views share.
    """
    grid, config = make(), replace(WHOLE, normalise=False)

    whole, cut = (build_canonical_grid(grid, replace(config, rank=rank)).cross for rank in (90, 6))

    assert cut.shape[-2:] == (6, 6)
    for i, j in grid.pairs():
        assert cut[i, j].norm() > 0.97 * whole[i, j].norm()


def test_directions_that_the_other_side_cannot_predict_are_cut() -> None:
    """A text encoder of width 4 predicts no more than 4 directions of any image encoder."""
    canonical = build_canonical_grid(plant(60, text_dims=(4,)), WHOLE)

    assert [side.canonical.own_rank for side in canonical.images] == [4, 4, 4]
    assert canonical.widths == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("grid", "config", "widths"),
    [
        (plant(60), CONFIG, [8, 8, 8, 8, 8]),
        (plant(60, image_dims=(3,)), CONFIG, [3, 3, 3]),
        (plant(60, text_dims=(4,)), CONFIG, [4, 4, 4, 4]),
        (plant(60), replace(CONFIG, rank=12), [12, 8, 12, 10, 12]),
        (chosen_grid(60), CHOSEN, [6, 6, 6, 6, 6, 6]),
        (plant(5), CONFIG, [4, 4, 4, 4, 4]),
    ],
    ids=["cut", "few images' directions", "few texts' directions", "one text cut", "chosen targets", "few pictures"],
)
def test_how_many_directions_there_are_is_known_before_they_are_made(
    grid: Grid, config: CanonicalConfig, widths: list[int]
) -> None:
    shapes = setup_shapes(grid, config)

    assert build_canonical_grid(grid, config).widths == widths
    assert [*shapes.image_ranks, *shapes.text_ranks] == widths


def test_few_pictures_show_one_direction_less_than_there_are() -> None:
    canonical = build_canonical_grid(plant(5), CONFIG)

    assert [side.canonical.own_rank for side in canonical.images] == [4, 4, 4]


def test_padded_coordinates_are_zero() -> None:
    canonical = build_canonical_grid(plant(60, image_dims=(3, 16)), WHOLE)

    narrow = canonical.images[0]
    assert narrow.canonical.own_rank == 3
    assert narrow[np.arange(60)][:, 3:].abs().max() == 0
    assert canonical.cross[0, :, 3:].abs().max() == 0


def test_targets_that_are_chosen_show_what_all_of_them_do() -> None:
    """The six latents are found again; a random choice of as many coordinates would lose most of them."""
    grid, config = chosen_grid(300), replace(CHOSEN, image_power=0)

    whole, chosen = (
        build_canonical_grid(grid, replace(config, targets_per_rank=t, sketch_per_rank=99)) for t in (99, 1.6)
    )

    assert setup_flops(setup_shapes(grid, config)) < 0.8 * whole.flops
    kept = chosen.cross.flatten(2).norm(dim=2) / whole.cross.flatten(2).norm(dim=2)
    assert kept.min() > 0.97
    assert min(recalls(solve_closed_form(chosen), chosen_grid(50, items=1)).values()) > 20  # chance is 2


@pytest.mark.parametrize(
    ("image_dims", "text_dims", "sketch", "mixes"),
    [
        ((60, 50, 70), (90, 85, 40), 6.4, (True, True)),
        ((12,), (90, 85, 40), 6.4, (False, False)),
        ((60, 50, 70), (9,), 6.4, (False, False)),
        ((3, 300), (400, 400), 6.4, (True, False)),
        ((3, 300), (400, 400), 1.6, (False, False)),
    ],
    ids=[
        "many on both sides",
        "one narrow image encoder",
        "few text coordinates",
        "few image directions",
        "few samples",
    ],
)
def test_targets_are_chosen_where_that_is_cheaper(
    image_dims: tuple[int, ...], text_dims: tuple[int, ...], sketch: float, mixes: tuple[bool, bool]
) -> None:
    """And where the sample, of which a narrow encoder gives little, has as many columns as targets are chosen."""
    grid = hollow_grid(image_dims, text_dims, np.arange(500))
    targets = setup_shapes(grid, replace(CHOSEN, sketch_per_rank=sketch)).targets

    assert (targets.mixes_texts, targets.mixes_images) == mixes


def test_samples_are_drawn_the_same_again_and_leave_the_global_generator_alone() -> None:
    grid = chosen_grid(40)
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), build_canonical_grid(grid, CHOSEN)
    untouched = torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)

    second = build_canonical_grid(grid, CHOSEN)

    assert untouched
    assert torch.equal(first.cross, second.cross)


# what does not matter


@pytest.mark.parametrize("n_images", [50, 100])
@pytest.mark.parametrize(("image_ridge", "text_ridge"), [(15.0, 1.5), (1.5, 15.0)])
def test_each_side_has_a_ridge_of_its_own(n_images: int, image_ridge: float, text_ridge: float) -> None:
    """A pair of one feature each: coordinates have variance 1/(1 + λ), and λ = κ/n."""
    config = CanonicalConfig(rank=1, normalise=False, image_power=0, image_ridge=image_ridge, text_ridge=text_ridge)

    canonical = build_canonical_grid(plant(n_images, image_dims=(1,), text_dims=(1,)), config)

    for side, ridge in ((canonical.images[0], image_ridge), (canonical.texts[0], text_ridge)):
        variance = float(side[0:n_images].square().mean())
        assert variance == pytest.approx(1 / (1 + ridge / n_images), rel=1e-4)


@pytest.mark.parametrize("max_features", [0, 3])
def test_a_ridge_grows_with_the_features_that_are_used(max_features: int) -> None:
    config = CanonicalConfig(image_ridge=10.0, text_ridge=5.0, normalise=False, max_features=max_features)
    grid = plant(50, image_dims=(4,), text_dims=(3,))

    image, text = build_canonical_grid(grid, config).whitenings

    for whitening, rows, ridge in ((image, grid.images[0], 10.0), (text, grid.texts[0], 5.0)):
        covariance = np.cov(rows[:][:, whitening.features].T, bias=True)
        share = ridge * len(whitening.features) / 50
        expected = covariance + share * covariance.diagonal().mean() * np.eye(len(covariance))
        np.testing.assert_allclose((whitening.root @ whitening.root.mT).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "config"),
    [(plant(60), CONFIG), (iterated_grid(), ITERATED), (chosen_grid(90), CHOSEN)],
    ids=["decomposed", "iterated", "chosen"],
)
def test_the_order_of_encoders_does_not_matter(grid: Grid, config: CanonicalConfig) -> None:
    images, texts = (list(range(n))[::-1] for n in grid.shape)
    swapped = build_grid([grid.images[k] for k in images], [grid.texts[k] for k in texts], grid.owner)

    plain, other = cosines(grid, config), cosines(swapped, config)

    assert_same_similarities(plain, {(images[i], texts[j]): cosine for (i, j), cosine in other.items()})


@pytest.mark.parametrize(
    ("grid", "config"),
    [(plant(60), CONFIG), (iterated_grid(60), ITERATED), (chosen_grid(60), CHOSEN)],
    ids=["decomposed", "iterated", "chosen"],
)
def test_the_order_of_items_does_not_matter(grid: Grid, config: CanonicalConfig) -> None:
    order = np.random.default_rng(1).permutation(60)
    shuffled = build_grid([rows[order] for rows in grid.images], [rows[order] for rows in grid.texts], grid.owner)

    assert_same_similarities(cosines(grid, config), cosines(shuffled, config, on=grid))


@pytest.mark.parametrize(
    ("grid", "config"), [(plant(60), CONFIG), (iterated_grid(), ITERATED)], ids=["decomposed", "iterated"]
)
def test_how_an_encoder_lies_in_its_space_does_not_matter(grid: Grid, config: CanonicalConfig) -> None:
    def turned(rows: NDArray[Any]) -> NDArray[np.float32]:
        rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(rows.shape[1], rows.shape[1])))[0]
        return np.asarray(5 * rows @ rotation, dtype=np.float32)

    images: list[Rows] = [turned(grid.images[0][:]), *grid.images[1:]]
    other = build_grid(images, [grid.texts[0], turned(grid.texts[1][:])], grid.owner)

    assert_same_similarities(cosines(grid, config), cosines(other, config))


def test_bad_rows_of_one_encoder_change_nothing_for_the_others() -> None:
    """Without weights and cuts; with them the directions that a side keeps are those its partners predict together."""
    grid = plant(60)
    spoiled = spoil(grid, images={1: [0, 7]}, texts={0: [3]})

    plain, other = cosines(grid, WHOLE), cosines(spoiled, WHOLE, on=grid)

    kept = [pair for pair in plain if pair[0] != 1 and pair[1] != 0]
    assert_same_similarities({pair: plain[pair] for pair in kept}, {pair: other[pair] for pair in kept})
    assert not torch.allclose(plain[1, 1], other[1, 1], atol=2e-4)
    assert all(cosine.isfinite().all() for cosine in other.values())


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, rank=6, store_bytes=0)], ids=["kept", "not kept"])
def test_an_item_that_is_bad_for_both_sides_might_as_well_not_be_there(config: CanonicalConfig) -> None:
    grid, left = plant(61), np.arange(61) != 30
    one_pair = build_grid([grid.images[0]], [grid.texts[0]], grid.owner)
    spoiled = spoil(one_pair, images={0: [30]}, texts={0: [30]})
    shorter = build_grid([grid.images[0][left]], [grid.texts[0][left]], np.arange(60))

    assert_same_similarities(cosines(spoiled, config, on=one_pair), cosines(shorter, config, on=one_pair))


@pytest.mark.parametrize("block", [3, 7])
@pytest.mark.parametrize("changes", [{}, NOT_KEPT], ids=["kept", "not kept"])
@pytest.mark.parametrize("make", [plant, chosen_grid], ids=["all targets", "chosen targets"])
def test_blocks_do_not_matter(
    block: int, changes: dict[str, Any], make: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks cut pictures' captions apart."""
    grid = spoil(make(40, n_captions=4), images={0: [8]}, texts={1: [4, 60, 61, 62, 63]})
    config = replace(CHOSEN, **changes)
    whole = build_canonical_grid(grid, config)
    for module in ("grid", "moments", "sides"):
        monkeypatch.setattr(f"hyperalign.align.{module}.BLOCK", block)

    parts = build_canonical_grid(grid, config)

    assert_close(between_rows(parts, parts.cross), between_rows(whole, whole.cross))
    assert parts.flops == whole.flops


def test_coordinates_that_do_not_fit_are_made_when_asked_for() -> None:
    grid, pictures = spoil(plant(60, n_captions=2), images={0: [9]}, texts={1: [5]}), np.array([[5, 2, 41], [0, 9, 3]])

    kept, made = (build_canonical_grid(grid, replace(CONFIG, rank=6, store_bytes=b)) for b in (2**20, 0))

    assert (kept.keeps, made.keeps) == (True, False)
    assert all(side._kept is None for side in made.images)
    assert_close(between_rows(kept, kept.cross), between_rows(made, made.cross))
    for canonical in (kept, made):
        found = canonical.images_at(np.array([2, 0]), pictures[0])
        expected = torch.stack([canonical.images[i][pictures[0]] for i in (2, 0)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for one, other in zip((*kept.images, *kept.texts), (*made.images, *made.texts), strict=True):
        torch.testing.assert_close(one[pictures[0]].abs(), other[pictures[0]].abs(), atol=1e-3, rtol=1e-2)


def test_what_is_kept_is_counted_before_it_is_made() -> None:
    """Rows of all encoders at every picture, and coordinates of all rows."""
    grid, n_bytes = plant(60, n_captions=2), 4 * (60 * (12 + 8 + 16 + 10 + 14 + 3 * 8) + 120 * 2 * 8)

    assert setup_shapes(grid, replace(CONFIG, store_bytes=n_bytes)).keeps
    assert not setup_shapes(grid, replace(CONFIG, store_bytes=n_bytes - 1)).keeps


# what it costs


@pytest.mark.parametrize("store_bytes", [0, 2**24], ids=["not kept", "kept"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"rank": 16}, {"rank": 6}, {"max_features": 9}, {"rank": 6, "targets_per_rank": 1, "sketch_per_rank": 2}],
    ids=["cut texts", "whole", "narrow", "cut features", "few targets"],
)
@pytest.mark.parametrize("make", [plant, wide_grid, chosen_grid], ids=["plain", "wide", "chosen"])
@pytest.mark.parametrize("n_captions", [2, 5])
def test_the_set_up_costs_what_runs(
    store_bytes: int, changes: dict[str, Any], make: Callable[..., Grid], n_captions: int
) -> None:
    """Products by the counter, decompositions and triangular systems by formula at the shapes that ran."""
    config = replace(CONFIG, store_bytes=store_bytes, **changes)
    grid = spoil(make(40, n_captions=n_captions), images={0: [1, 2]}, texts={1: [5]})
    made: list[CanonicalGrid] = []

    found = count_all(lambda: made.append(build_canonical_grid(grid, config)))

    assert made[0].flops == found > 0
    assert all(side.flops == 0 for side in (*made[0].images, *made[0].texts))


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, **NOT_KEPT)], ids=["kept", "not kept"])
@pytest.mark.parametrize("make", [plant, chosen_grid], ids=["all targets", "chosen targets"])
def test_the_cost_is_known_before_there_are_rows(config: CanonicalConfig, make: Callable[..., Grid]) -> None:
    grid = make(40, n_captions=4)
    image_dims, text_dims = ([rows.shape[1] for rows in side] for side in (grid.images, grid.texts))
    hollow = hollow_grid(image_dims, text_dims, grid.owner)

    assert setup_flops(setup_shapes(hollow, config)) == build_canonical_grid(grid, config).flops


# what is refused


def test_an_encoder_without_a_usable_row_is_refused() -> None:
    with pytest.raises(ValueError, match="all 40 are NaN, Inf or zero"):
        build_canonical_grid(spoil(plant(40), images={1: list(range(40))}), CONFIG)


def test_one_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 pictures"):
        build_canonical_grid(plant(1, n_captions=4), CONFIG)
