"""Intervals, ranks and chances of being the best, against values known by hand, planted truth and laws."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hyperalign.bench.intervals import calibration_error, cover, measure
from hyperalign.bench.sheet import Asked
from hyperalign.bench.worlds import WORLDS, Size, World, plant_grid, play_grid
from hyperalign.rank import resampling
from hyperalign.rank.best import chance_of_best
from hyperalign.rank.resampling import (
    Contributions,
    bootstrap,
    find_linear,
    find_scores,
    interval,
    per_image,
    per_picture,
    resample,
    select,
)
from hyperalign.request import SearchConfig


def planted(truth: list[float], n_images: int, seed: int) -> Contributions:
    """Pairs that hit each picture with the given chance, the same pictures being hard for all."""
    rng = np.random.default_rng(seed)
    hardness = 0.5 * rng.random(n_images) + 0.5 * rng.random((len(truth), n_images))
    cut = np.array([np.quantile(0.5 * rng.random(20_000) + 0.5 * rng.random(20_000), p) for p in truth])
    return per_picture((hardness < cut[:, None]).astype(np.float32))


def test_an_image_is_resampled_with_all_its_captions() -> None:
    t2i = np.array([[1, 0, 0.5]], np.float32)
    i2t = np.array([[0, 1]], np.float32)

    hits, trials = per_image(t2i, i2t, np.array([0, 0, 1]))

    assert hits[:, :, 0].tolist() == [[1, 0.5], [0, 1]]
    assert trials.tolist() == [[2, 1], [1, 1]]


def test_the_score_is_the_mean_of_both_directions() -> None:
    """Captions hit 1.5 of 3, images 1 of 2."""
    contributions = per_image(np.array([[1, 0, 0.5]], np.float32), np.array([[0, 1]], np.float32), np.array([0, 0, 1]))

    assert bootstrap(contributions).score.tolist() == [50]


def test_read_only_hits_are_read() -> None:
    """Those of a finished run are; torch warns of them, and a warning is an error here."""
    t2i, i2t, owner = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32), np.array([0, 0, 1])
    for array in (t2i, i2t, owner):
        array.flags.writeable = False

    contributions = per_image(t2i, i2t, owner)
    contributions.hits.flags.writeable = False

    assert bootstrap(contributions).score.tolist() == [100]


@pytest.mark.parametrize("dtype", [np.uint64, np.uint8, np.int16])
def test_whole_numbers_of_any_kind_are_owners(dtype: type[np.integer[Any]]) -> None:
    t2i, i2t, owner = np.eye(1, 3, dtype=np.float32), np.ones((1, 2), np.float32), np.array([0, 0, 1])

    assert bootstrap(per_image(t2i, i2t, owner.astype(dtype))).score == bootstrap(per_image(t2i, i2t, owner)).score
    with pytest.raises(ValueError, match="whole numbers, got float64"):
        per_image(t2i, i2t, owner / 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("stranger", [-1, 2])
def test_a_caption_of_no_picture_is_refused(stranger: int) -> None:
    t2i, i2t = np.ones((1, 3), np.float32), np.ones((1, 2), np.float32)

    with pytest.raises(ValueError, match=f"must belong to one of 2 images, got {min(0, stranger)} to"):
        per_image(t2i, i2t, np.array([0, 0, stranger]))


def test_resamples_agree_with_drawing_images_one_by_one() -> None:
    rng = np.random.default_rng(3)
    owner = np.sort(rng.integers(0, 8, 20))
    t2i, i2t = rng.random((2, 20)).astype(np.float32), rng.random((2, 8)).astype(np.float32)

    scores = resample(per_image(t2i, i2t, owner), n_boot=50, seed=9)

    weights = np.random.default_rng(9).multinomial(8, np.full(8, 1 / 8), size=50)
    for row, drawn in zip(scores, weights, strict=True):
        images = np.repeat(np.arange(8), drawn)
        captions = np.concatenate([np.flatnonzero(owner == image) for image in images])
        np.testing.assert_allclose(row, 50 * (t2i[:, captions].mean(1) + i2t[:, images].mean(1)), atol=1e-3)


def test_two_calls_draw_the_same_images() -> None:
    contributions = planted([0.2, 0.5, 0.4], 60, seed=0)

    alone = resample(select(contributions, [2]), n_boot=40, seed=5)

    np.testing.assert_array_equal(alone[:, 0], resample(contributions, n_boot=40, seed=5)[:, 2])


def test_pairs_with_the_same_hits_share_rank_and_chance() -> None:
    one = planted([0.4], 100, seed=0)

    result = bootstrap(select(one, [0, 0, 0]))

    assert result.rank.tolist() == [1, 1, 1]
    np.testing.assert_allclose(result.p_best, [1 / 3] * 3, rtol=1e-6)


def test_equal_scores_in_a_resample_are_a_tie_although_the_hits_differ() -> None:
    """Pair 0 hits only captions and pair 1 only images, of the same image: equal in every resample but for rounding."""
    n_images = 7
    owner = np.repeat(np.arange(n_images), 3)
    t2i = np.stack([np.repeat(np.arange(n_images) < 3, 3), np.zeros(3 * n_images)]).astype(np.float32)
    i2t = np.stack([np.zeros(n_images), np.arange(n_images) < 3]).astype(np.float32)

    result = bootstrap(per_image(t2i, i2t, owner))

    assert result.p_best.tolist() == [0.5, 0.5]


def test_a_pair_that_is_right_wherever_another_is_and_more_often_is_better() -> None:
    """Only pairing shows it: the two intervals overlap."""
    hits = np.zeros((2, 200), np.float32)
    hits[0, :90], hits[1, :80] = 1, 1

    result = bootstrap(per_picture(hits))

    assert result.low[0] < result.high[1]
    assert result.rank.tolist() == [1, 2]


def test_rank_1_keeps_the_truly_best_pair() -> None:
    """Two equally good pairs and one that is worse by less than the noise: at 95 % each stays in about 95 of 100 runs.

    A rank by score alone would leave the truly best in rank 1 in half of the runs.
    """
    ranks = [bootstrap(planted([0.4, 0.4, 0.37], 200, seed), n_boot=300).rank for seed in range(100)]

    kept = np.mean(np.array(ranks) == 1, axis=0)

    assert kept[:2].min() > 0.9
    assert kept[2] > 0.5


def test_clearly_different_pairs_get_ranks_of_their_own() -> None:
    result = bootstrap(planted([0.1, 0.7, 0.4], 400, seed=1))

    assert result.rank.tolist() == [3, 1, 2]
    assert result.p_best[1] > 0.99, "chance is 1/3"


def test_the_chance_of_being_the_best_is_shared_by_equals() -> None:
    """Over many test sets each of two equally good pairs is as likely to be the best as the other."""
    shares = [bootstrap(planted([0.4, 0.4, 0.1], 200, seed), n_boot=200).p_best for seed in range(60)]

    mean = np.mean(shares, axis=0)

    assert mean[:2] == pytest.approx([0.5, 0.5], abs=0.12)  # three standard errors of 60 runs of spread 0.3
    assert mean[2] < 0.01


@pytest.mark.parametrize("truth", [0.01, 0.05, 0.3, 0.6, 0.95])
def test_intervals_cover_the_truth_as_often_as_they_say(truth: float) -> None:
    """400 test sets of 300 images: 95 % ± 3.3 points is three standard errors."""
    rng = np.random.default_rng(int(1000 * truth))
    hits = (rng.random((400, 300)) < truth).astype(np.float32)

    result = bootstrap(per_picture(hits), n_boot=500)

    covered = (result.low <= 100 * truth) & (100 * truth <= result.high)
    assert covered.mean() == pytest.approx(0.95, abs=0.033)


def test_no_hit_at_all_still_leaves_room_above() -> None:
    """Wilson for 0 of 100: 100 · 3.8415 / 103.8415 = 3.70 %."""
    result = bootstrap(per_picture(np.zeros((1, 100), np.float32)))

    assert result.low.tolist() == [0]
    assert result.high[0] == pytest.approx(3.6994, abs=1e-3)


def test_the_interval_of_independent_trials_is_wilson_s() -> None:
    """50 of 100: 0.5 ± 0.0962 after Wilson 1927."""
    low, high = interval(np.array([50.0]), np.array([25.0]), 100)

    assert low[0] == pytest.approx(40.38, abs=0.01)
    assert high[0] == pytest.approx(59.62, abs=0.01)


def test_scores_that_cannot_vary_have_an_interval_of_no_width() -> None:
    """Constant embeddings give every query the same expected hit."""
    result = bootstrap(per_picture(np.full((1, 50), 0.25, np.float32)))

    assert (result.low[0], result.high[0]) == pytest.approx((25, 25), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_pairs_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contributions = per_picture(rng.integers(0, 2, (6, 30)).astype(np.float32))
    order = rng.permutation(6)

    one = bootstrap(contributions, n_boot=100)
    other = bootstrap(select(contributions, order.tolist()), n_boot=100)

    for before, after in zip(one[:-1], other[:-1], strict=True):
        np.testing.assert_allclose(after, before[order], rtol=1e-6)
    np.testing.assert_allclose(other.p_best, one.p_best[order], atol=0.06)  # 2,000 draws that differ


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_laws_of_the_columns_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contributions = per_picture(rng.random((5, 12)).astype(np.float32))

    result = bootstrap(contributions, n_boot=100)

    assert result.p_best.sum() == pytest.approx(1)
    assert result.rank[result.score.argmax()] == 1
    assert (result.low <= result.score).all()
    assert (result.score <= result.high).all()
    assert ((result.low >= 0) & (result.high <= 100)).all()


def test_many_pairs_are_ranked_nearly_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    contributions = planted(np.linspace(0.2, 0.6, 80).tolist(), 400, seed=2)
    exact = bootstrap(contributions).rank

    monkeypatch.setattr(resampling, "_EXACT_PAIRS", 10)
    near = bootstrap(contributions).rank

    assert np.abs(near - exact).max() <= 3
    assert set(np.flatnonzero(near == 1)) >= {int(np.argmin(exact))}


def test_blocks_do_not_change_the_many_pair_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    contributions = planted(np.linspace(0.2, 0.6, 30).tolist(), 100, seed=2)
    monkeypatch.setattr(resampling, "_EXACT_PAIRS", 1)
    whole = bootstrap(contributions).rank

    monkeypatch.setattr(resampling, "_BLOCK_VALUES", 210)  # 7 pairs and 2 resamples at a time
    blocked = bootstrap(contributions, n_boot=2).rank

    np.testing.assert_array_equal(blocked, whole)


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        (np.array([[1, 0], [np.nan, 1]], np.float32), "none for 1 of them, the first at 1"),
        (np.zeros((0, 5), np.float32), "needs pairs"),
        (np.zeros((3, 0), np.float32), "needs pairs"),
    ],
)
def test_what_cannot_be_ranked_is_refused(hits: NDArray[np.float32], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(per_picture(hits))


def test_the_chance_of_two_pairs_is_that_of_their_difference() -> None:
    """Written out for one τ² after another: the chance is Φ(√g · difference / its standard error)."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(5_000, 2)) / np.sqrt(5_000)
    score = np.array([1.5, 0.0])

    chance = chance_of_best(score, rows, n_draws=200_000)

    error = np.sqrt(np.square(rows[:, 0] - rows[:, 1]).sum())
    ratio = np.geomspace(1e-3, 1e5, 4_001)  # τ² over the noise of one pair
    seen = 1.5 / error / np.sqrt(1 + ratio)  # a difference has twice of both
    weight = np.exp(-(seen**2) / 2) / np.sqrt(1 + ratio) * ratio / (1 + ratio) ** 2
    gain = ratio / (1 + ratio)
    normal = np.array([NormalDist().cdf(x) for x in np.sqrt(gain) * 1.5 / error])
    assert chance[0] == pytest.approx((weight * normal).sum() / weight.sum(), abs=0.01)


def test_a_lead_that_luck_explains_counts_for_less_than_its_share_of_resamples() -> None:
    """Sixteen equal pairs: the first of them is no better than the others, but leads most resamples."""
    stated, shares = [], []
    for seed in range(30):
        contributions = planted([0.3] * 16, 200, seed)
        scores = resample(contributions, n_boot=300, seed=seed)
        stated.append(bootstrap(contributions, n_boot=300, seed=seed).p_best.max())
        shares.append(np.bincount(scores.argmax(1), minlength=16).max() / 300)

    assert np.mean(stated) < 0.8 * np.mean(shares)
    assert np.mean(stated) < 0.25, "chance is 1/16"


@pytest.mark.parametrize("n_images", [30, 2_000])
def test_a_clear_lead_is_believed_with_more_pairs_than_images_and_with_fewer(n_images: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n_images, 300)) / np.sqrt(n_images)
    score = rng.normal(size=300)
    score[7] = 20

    chance = chance_of_best(score, rows)

    assert chance[7] > 0.99, "chance is 1/300"
    assert chance.sum() == pytest.approx(1)


def test_noise_free_scores_leave_no_doubt() -> None:
    assert chance_of_best(np.array([1.0, 2.0, 2.0]), np.zeros((9, 3))).tolist() == [0, 0.5, 0.5]


def test_p_best_comes_true_as_often_as_it_says() -> None:
    """Retrieval with a planted best pair, 120 grids: the chances stated add up, where shares of resamples overstate.

    One standard error of the named pairs' share is 0.04.
    """
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    stated, came_true, every, best = [], [], [], []
    for n in range(120):
        noise = plant_grid((4, 3), rng)
        contributions = play_grid(noise, Size(100, 1), world=WORLDS[n % len(WORLDS)], generator=generator)
        p_best = bootstrap(contributions, n_boot=2, seed=n).p_best
        is_best = np.arange(noise.size) == noise.argmin()
        stated.append(p_best.max())
        came_true.append(is_best[p_best.argmax()])
        every.append(p_best)
        best.append(is_best)

    error, bins = calibration_error(np.concatenate(every), np.concatenate(best), np.linspace(0, 1, 6))

    assert np.mean(stated) == pytest.approx(np.mean(came_true), abs=0.11)
    assert error < 0.04
    assert sum(row["n"] for row in bins) == 120 * 12


def test_the_calibration_error_of_known_statements() -> None:
    """Half of the statements are 10 points off, half are right."""
    stated = np.repeat([0.1, 0.6], 10)
    came_true = np.array([1] * 2 + [0] * 8 + [1] * 6 + [0] * 4, dtype=bool)

    error, rows = calibration_error(stated, came_true, np.linspace(0, 1, 6))

    assert error == pytest.approx(0.05)
    assert [row["came_true_share"] for row in rows] == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_intervals_cover_the_expected_score_of_retrieval(world: World) -> None:
    """Queries and gallery drawn anew, 300 test sets; 5 points are four standard errors, and the score is as asked."""
    found = cover(Size(60, 2), (10, 30), world=world, n_sets=300, seed=1)

    assert found.expected == pytest.approx(17, abs=6)
    assert found.shown.mean() == pytest.approx(0.95, abs=0.05)


def test_the_measurement_gives_every_sheet() -> None:
    asked = Asked(
        config=SearchConfig(limit=2),
        cache_dir=Path(),
        out=Path(),
        n_seeds=1,
        progress=lambda *_: None,
        say=lambda _: None,
    )

    sheets = measure(asked, sizes=(Size(30, 1), Size(20, 2)))

    assert [row["size"] for row in sheets[1].rows] == ["30 images × 1", "20 images × 2"]
    assert sheets[0].rows[0]["n_test_sets"] == 4
    assert [row["what"] for row in sheets[4].rows] == ["P(best)", "share of resamples"]
    assert all(list(row) == list(sheet.rows[0]) for sheet in sheets for row in sheet.rows)


def test_hits_of_other_captions_and_too_few_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"t2i must hold 2 pairs by 3 captions, got \(2, 4\)"):
        per_image(np.ones((2, 4), np.float32), np.ones((2, 3), np.float32), np.arange(3))
    with pytest.raises(ValueError, match="n_boot must be at least 2, got 1"):
        bootstrap(per_picture(np.eye(3, dtype=np.float32)), n_boot=1)

    assert bootstrap(per_picture(np.eye(3, dtype=np.float32)), n_boot=2).rank.shape == (3,)


def two_sided() -> Contributions:
    """Hits in two directions of seven images with one to three captions, four pairs."""
    rng = np.random.default_rng(5)
    owner = np.repeat(np.arange(7), [1, 3, 2, 2, 1, 3, 2])
    return per_image(rng.random((4, len(owner))).astype(np.float32), rng.random((4, 7)).astype(np.float32), owner)


def test_what_an_image_adds_is_the_slope_of_the_score_in_its_weight() -> None:
    hits, trials = (part.astype(np.float64) for part in two_sided())

    def score(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        ratios = np.einsum("n,gnp->gp", weights, hits) / (trials @ weights)[:, None]
        return np.asarray(100 * ratios.mean(0))

    steps = 1e-6 * np.eye(7)
    slopes = np.stack([(score(1 + step) - score(1 - step)) / 2e-6 for step in steps])
    np.testing.assert_allclose(find_linear(two_sided()), slopes * math.sqrt(7 / 6), rtol=1e-4, atol=1e-4)


def test_the_interval_is_of_the_resamples_variance_as_it_would_be_of_fresh_images() -> None:
    contributions = two_sided()
    variance = resample(contributions, n_boot=300, seed=4).astype(np.float64).var(0, ddof=1) * 7 / 6

    found = bootstrap(contributions, n_boot=300, seed=4)

    low, high = interval(find_scores(contributions), variance, 7)
    np.testing.assert_allclose(found.low, low, rtol=1e-6)
    np.testing.assert_allclose(found.high, high, rtol=1e-6)


def test_one_image_can_be_resampled() -> None:
    contributions = per_picture(np.array([[1.0], [0.0]], np.float32))

    found = bootstrap(contributions, n_boot=10)

    assert found.score.tolist() == [100, 0]
    assert found.rank.tolist() == [1, 2]
    assert find_linear(contributions).tolist() == [[0, 0]]
    assert find_scores(contributions).tolist() == [100, 0]
    one = 100 * 1.959963984540054**2 / (1 + 1.959963984540054**2)
    assert found.high[1] == pytest.approx(one)
    assert found.low[0] == pytest.approx(100 - one)


def test_resamples_drawn_in_blocks_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = resample(two_sided(), n_boot=11, seed=2)

    monkeypatch.setattr(resampling, "_BLOCK_VALUES", 3 * 7)

    np.testing.assert_array_equal(resample(two_sided(), n_boot=11, seed=2), at_once)


def test_pairs_are_selected_in_the_order_given() -> None:
    chosen = select(two_sided(), [2, 0])

    np.testing.assert_array_equal(chosen.hits, two_sided().hits[:, :, [2, 0]])
    np.testing.assert_array_equal(chosen.trials, two_sided().trials)


def test_all_captions_may_belong_to_one_image() -> None:
    hits, trials = per_image(np.ones((1, 2), np.float32), np.ones((1, 1), np.float32), np.array([0, 0]))

    assert (hits.tolist(), trials.tolist()) == ([[[2]], [[1]]], [[2], [1]])
