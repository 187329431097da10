"""Training-free scores against naive formulas, planted truth and laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from planted import plant
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align.grid import Grid
from hyperalign.board import score_without_training
from hyperalign.rank.metrics import nearest
from hyperalign.rank.scores import TrainingFree, cca_flops, cka_flops, mutual_knn_flops, training_free_scores

Rows = NDArray[np.float32]


def draw(*shape: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def score(image: Rows, text: Rows, k: int = 3, rank: int = 4) -> TrainingFree:
    return training_free_scores([image], [text], k=k, rank=rank)


def hsic_1(image: Rows, text: Rows) -> float:
    """Song et al. 2012, eq. 5, word for word."""
    n, ones = len(image), np.ones(len(image))
    grams = [rows.astype(np.float64) @ rows.T.astype(np.float64) for rows in (image, text)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    a, b = grams
    trace = np.trace(a @ b)
    sums = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
    return float((trace + sums - 2 / (n - 2) * (ones @ a @ b @ ones)) / (n * (n - 3)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(8, 30), shift=st.sampled_from([0, 3]))
def test_cka_is_the_unbiased_estimate_written_out(seed: int, n: int, shift: int) -> None:
    image, text = draw(n, 6, seed=seed) + shift, draw(n, 9, seed=seed + 1)
    text[:, :6] += image

    cka = score(image, text).cka[0, 0]

    assert cka == pytest.approx(hsic_1(image, text) / np.sqrt(hsic_1(image, image) * hsic_1(text, text)), abs=1e-4)


def test_the_same_rows_turned_moved_and_scaled_are_alike() -> None:
    image = draw(100, 12)
    turn = np.linalg.qr(draw(12, 12, seed=1))[0]
    text = 7 * image @ turn

    turned, moved = score(image, text, rank=12), score(image, text + 5, rank=12)

    assert (turned.cka[0, 0], turned.mutual_knn[0, 0], turned.cca[0, 0]) == pytest.approx((1, 1, 1), abs=1e-4)
    assert (moved.cka[0, 0], moved.cca[0, 0]) == pytest.approx((1, 1), abs=1e-4)


def test_unrelated_rows_score_at_chance() -> None:
    """CKA 0, neighbours k / (n − 1), CCA 0.85 √(R / n)."""
    many = [training_free_scores([draw(200, 30, seed=s)], [draw(200, 20, seed=99 + s)], rank=20) for s in range(20)]

    cka, mutual_knn, cca = (np.mean([getattr(one, name) for one in many]) for name in TrainingFree._fields)

    assert cka == pytest.approx(0, abs=0.01)
    assert mutual_knn == pytest.approx(10 / 199, abs=0.01)
    assert cca == pytest.approx(0.85 * np.sqrt(20 / 200), abs=0.03)


def test_a_closer_pair_scores_higher() -> None:
    """Rows share a latent and differ in noise; each score must tell 0.3 from 3."""
    latent = draw(300, 8)
    image = latent @ draw(8, 40, seed=1)
    texts = [latent @ draw(8, 30, seed=2) + noise * draw(300, 30, seed=3) for noise in (0.3, 3)]

    for values in training_free_scores([image], texts, rank=8):
        assert values[0, 0] > values[0, 1] + 0.1


def test_mutual_neighbours_are_counted() -> None:
    image, text = draw(40, 5), draw(40, 7, seed=1)
    image.flags.writeable = False

    found = score(image, text, k=6).mutual_knn[0, 0]

    lists = zip(nearest(image, 6), nearest(text, 6), strict=True)
    assert found == pytest.approx(np.mean([len(set(a) & set(b)) / 6 for a, b in lists]))


def test_cca_is_the_mean_canonical_correlation() -> None:
    """By the textbook: singular values of Σ_aa^(-1/2) Σ_ab Σ_bb^(-1/2), all directions kept."""
    image, text = draw(80, 5), draw(80, 3, seed=1)
    text[:, 0] += image[:, 0]
    a, b = (rows - rows.mean(0) for rows in (image, text))

    def whiten(rows: Rows) -> Rows:
        values, vectors = np.linalg.eigh(rows.T @ rows)
        return np.asarray(rows @ (vectors / np.sqrt(values)) @ vectors.T)

    wanted = np.linalg.svd(whiten(a).T @ whiten(b), compute_uv=False).mean()

    assert score(image, text, rank=5).cca[0, 0] == pytest.approx(wanted, abs=1e-4)


def test_the_grid_is_that_of_its_pairs() -> None:
    images, texts = [draw(40, d, seed=d) for d in (5, 90, 12)], [draw(40, d, seed=d) for d in (7, 30)]

    grid = training_free_scores(images, texts, k=4, rank=6)

    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            for whole, alone in zip(grid, score(image, text, k=4, rank=6), strict=True):
                assert whole[i, j] == pytest.approx(alone[0, 0], abs=1e-5)


def test_the_sides_and_the_order_of_the_items_do_not_matter() -> None:
    image, text = draw(60, 8), draw(60, 5, seed=1) + 0.0
    text[:, :4] += image[:, :4]
    order = np.random.default_rng(0).permutation(60)

    one = score(image, text)

    for other in (score(text, image), score(image[order], text[order])):
        for before, after in zip(one, other, strict=True):
            np.testing.assert_allclose(after, before, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_rows_without_direction_say_nothing(value: float) -> None:
    image, text = draw(60, 8), draw(60, 5, seed=1)
    text[3] = value

    result = score(image, text)

    assert all(np.isfinite(values).all() for values in result)
    assert abs(result.cka[0, 0] - score(image, draw(60, 5, seed=1)).cka[0, 0]) < 0.1


def test_constant_rows_are_like_nothing() -> None:
    result = score(draw(30, 6), np.full((30, 4), 3.3, np.float32))

    assert (result.cka[0, 0], result.cca[0, 0]) == (0, 0)


def test_an_encoder_of_width_one_is_scored() -> None:
    image = draw(50, 1)

    result = score(image, -2 * image)

    assert (result.cka[0, 0], result.cca[0, 0]) == pytest.approx((1, 1), abs=1e-5)


def test_few_items_are_scored_with_fewer_neighbours() -> None:
    """Of 4 items everyone is everyone's neighbour."""
    assert score(draw(4, 6), draw(4, 6, seed=1), k=10).mutual_knn[0, 0] == 1


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="same items"):
        score(draw(30, 4), draw(29, 4))
    with pytest.raises(ValueError, match="at least 4 items"):
        score(draw(3, 4), draw(3, 4))
    with pytest.raises(ValueError, match="both sides"):
        training_free_scores([], [draw(30, 4)])


def test_the_formulas_count_what_the_counter_sees() -> None:
    """The neighbours are Faiss's; the counter sees neither QR, eigenvectors nor singular values."""
    image_dims, text_dims, n, rank = (5, 90), (7, 30, 64), 40, 6
    images, texts = [draw(n, d, seed=d) for d in image_dims], [draw(n, d, seed=d) for d in text_dims]

    with FlopCounterMode(display=False) as counter:
        training_free_scores(images, texts, k=4, rank=rank)

    widths = [min(dim, rank + 8) for dim in (*image_dims, *text_dims)]
    hidden = sum(3 * 4 * n * width**2 + 9 * width**3 for width in widths) + 6 * (8 * rank**3 // 3)
    seen = cka_flops(n, image_dims, text_dims) + cca_flops(n, image_dims, text_dims, rank=rank) - hidden
    assert counter.get_total_flops() == seen
    assert mutual_knn_flops(n, image_dims, text_dims) == 2 * n * n * sum((*image_dims, *text_dims))


def test_nothing_global_is_seeded() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()

    first, second = score(draw(30, 20), draw(30, 20, seed=1)), score(draw(30, 20), draw(30, 20, seed=1))

    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first.cca, second.cca)


def test_a_row_without_direction_lies_where_the_others_have_their_mean() -> None:
    image, text = draw(40, 5) + 2, draw(40, 6, seed=1) + 1
    text[:, :5] += image
    spoiled, filled = image.copy(), image.copy()
    spoiled[[3, 8]] = np.nan
    filled[[3, 8]] = np.delete(image, [3, 8], 0).mean(0)

    bad, good = score(spoiled, text), score(filled, text)

    assert bad.cka[0, 0] == pytest.approx(good.cka[0, 0], abs=1e-5)
    assert bad.cca[0, 0] == pytest.approx(good.cca[0, 0], abs=1e-5)


def test_unlike_numbers_of_items_and_one_sided_zoos_are_refused() -> None:
    with pytest.raises(ValueError, match="all encoders must see the same items, got 8 and 9 rows"):
        score(draw(8, 3), draw(9, 3))
    with pytest.raises(ValueError, match="scores need encoders on both sides, got 1 and 0"):
        training_free_scores([draw(8, 3)], [])
    with pytest.raises(ValueError, match="at least 4 items"):
        score(draw(3, 3), draw(3, 3))

    assert score(draw(4, 3), draw(4, 3)).cka[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("side", ["images", "texts"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_counts_as_nothing(side: str, value: float) -> None:
    grid = plant(40)

    def with_first(number: float) -> Grid:
        rows = np.array(getattr(grid, side)[1])
        rows[3, :2] = number
        tables = list(getattr(grid, side))
        tables[1] = rows
        changed: dict[str, Any] = {side: tuple(tables)}
        return replace(grid, **changed)

    found, expected = (score_without_training(with_first(number))[0] for number in (value, 0.0))

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(found.cka, score_without_training(grid)[0].cka)
