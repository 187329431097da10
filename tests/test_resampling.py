"""Intervals, ranks and chances of being the best, against values known by hand, planted truth and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hyperalign.rank import resampling
from hyperalign.rank.resampling import (
    Contributions,
    bootstrap,
    interval,
    per_image,
    per_picture,
    resample,
    select,
)


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
    """Over many test sets two equally good pairs are the best in half of the resamples each."""
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

    for before, after in zip(one, other, strict=True):
        np.testing.assert_allclose(after, before[order], rtol=1e-6)


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
