"""Agreement of two orders against values known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperalign.rank.agreement import agreement, ndcg, noise_ceiling, regret_interval
from hyperalign.rank.resampling import per_picture

SCORES = [10.0, 40.0, 30.0, 20.0]


def test_an_order_agrees_with_itself() -> None:
    same = agreement(SCORES, SCORES)

    assert (same.spearman, same.kendall, same.ndcg_at_5, same.regret_at_1) == pytest.approx((1, 1, 1, 0))


def test_the_reverse_order_disagrees_and_regrets_most() -> None:
    """The worst pair is taken: 40 − 10."""
    reverse = agreement([-score for score in SCORES], SCORES)

    assert (reverse.spearman, reverse.kendall, reverse.regret_at_1) == pytest.approx((-1, -1, 30))


def test_one_swap_of_four_neighbours() -> None:
    """Spearman 1 − 6·2/(4·15) = 0.8; Kendall (5 − 1)/6."""
    swapped = agreement([1, 4, 2, 3], [1, 4, 3, 2])

    assert (swapped.spearman, swapped.kendall) == pytest.approx((0.8, 2 / 3))


def test_kendall_allows_for_ties() -> None:
    """Tau-b of one tie among three: (2 − 0)/√(3·2)."""
    assert agreement([1, 2, 2], [1, 2, 3]).kendall == pytest.approx(2 / math.sqrt(6))


def test_regret_is_of_the_pair_chosen_on_validation() -> None:
    assert agreement(SCORES, SCORES, chosen=2).regret_at_1 == 10


def test_ndcg_discounts_by_place() -> None:
    """Gains 0, 1, 2 in the order 1, 2, 0: (1 + 2/log₂3) / (2 + 1/log₂3)."""
    wanted = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))

    assert ndcg([0, 3, 2], [5, 6, 7]) == pytest.approx(wanted)


def test_ndcg_looks_at_the_first_five() -> None:
    reference = np.arange(10.0)
    own = reference.copy()
    own[:5] = own[:5][::-1]

    assert ndcg(own, reference) == 1
    assert ndcg(own, reference, k=10) < 1


def test_ndcg_of_tied_scores_is_that_of_a_random_order() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random(4)
    drawn = [ndcg(rng.permutation(4), reference) for _ in range(4000)]

    assert ndcg(np.zeros(4), reference) == pytest.approx(np.mean(drawn), abs=0.01)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_pairs_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, truth, order = rng.integers(0, 5, 8), rng.random(8), rng.permutation(8)
    own[0] = 9  # one first

    assert agreement(own[order], truth[order])[:5] == pytest.approx(agreement(own, truth)[:5])


def test_one_pair_and_equal_scores_have_no_correlation_and_say_why() -> None:
    """Warnings are errors here: none is given."""
    alone, flat, blind = agreement([3], [4]), agreement([1, 1], [1, 2]), agreement([1, 2], [3, 3])

    assert [math.isnan(one.spearman) and math.isnan(one.kendall) for one in (alone, flat, blind)] == [True] * 3
    assert alone.reason == "an order needs two pairs"
    assert flat.reason == "all scores are equal"
    assert blind.reason == "all scores of the reference are equal"
    assert (alone.regret_at_1, blind.regret_at_1, blind.ndcg_at_5) == (0, 0, 1)


def test_a_missing_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="one finite score"):
        agreement([1, np.nan], [1, 2])
    with pytest.raises(ValueError, match="the same pairs"):
        agreement([1, 2, 3], [1, 2])


def test_the_interval_of_the_regret_is_paired() -> None:
    """Both pairs fail on the same half; one fails on 10 of 200 more: 5 ± 1.96·√(0.05·0.95/200) points."""
    hits = np.zeros((2, 200), np.float32)
    hits[0, :100], hits[1, :90] = 1, 1

    low, high = regret_interval(per_picture(hits), chosen=1, best=0)

    assert (low, high) == pytest.approx((2, 8), abs=0.6)


def test_the_right_choice_has_no_regret() -> None:
    hits = per_picture(np.random.default_rng(0).integers(0, 2, (3, 50)).astype(np.float32))

    one = agreement([1, 3, 2], [10, 30, 20], hits=hits)

    assert (one.regret_at_1, one.regret_low, one.regret_high) == (0, 0, 0)


def test_the_noise_ceiling_is_the_mean_over_all_two_seeds() -> None:
    seeds = [[1, 2, 3], [1, 2, 3], [1, 3, 2]]

    ceiling = noise_ceiling(seeds)

    assert ceiling.spearman == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert ceiling.regret_at_1 == pytest.approx(4 / 6), "one point in four of the six ordered couples"


def test_one_seed_has_no_noise_ceiling() -> None:
    ceiling = noise_ceiling([[1, 2, 3]])

    assert math.isnan(ceiling.spearman)
    assert ceiling.reason == "the reference has one seed"


def test_scores_of_no_pair_are_an_error_and_no_seed_has_no_ceiling() -> None:
    with pytest.raises(ValueError, match=r"every pair needs one finite score, got \[\]"):
        agreement([], [])

    assert noise_ceiling([]).n_pairs == 0
