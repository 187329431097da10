"""What a step sees: every caption and every pair in its turn, and no picture against itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hyperalign.align.batches import FoldSampler, PairOrder, Sampler, valid_items


def owners(counts: list[int]) -> NDArray[np.int64]:
    """Owner of each caption, for pictures with so many captions."""
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(1, 5), min_size=2, max_size=30), batch=st.integers(2, 40), seed=st.integers(0, 5))
def test_no_caption_comes_twice_in_an_epoch(counts: list[int], batch: int, seed: int) -> None:
    sampler = Sampler(owners(counts), batch, seed)
    assert sampler.batch_size == min(batch, len(counts))

    epoch = np.concatenate([sampler.draw() for _ in range(sampler.steps_per_epoch)])

    assert len(np.unique(epoch)) == len(epoch) > sum(counts) - sampler.batch_size


def test_batches_of_a_round_have_distinct_pictures() -> None:
    """12 pictures with 5 captions in batches of 4: three batches make a round, and no batch spans two."""
    owner = owners([5] * 12)
    sampler = Sampler(owner, 4, seed=1)

    for _ in range(2 * sampler.steps_per_epoch):
        assert len(np.unique(owner[sampler.draw()])) == 4


def test_a_picture_with_many_captions_is_spread_over_the_epoch() -> None:
    """One of 100 pictures has 100 captions; together they would fill five batches of 20."""
    owner = owners([100] + [1] * 99)
    sampler = Sampler(owner, 20, seed=0)

    repeats = [int((owner[sampler.draw()] == 0).sum()) for _ in range(sampler.steps_per_epoch)]

    assert max(repeats) <= 14  # half of a batch on average


def test_the_order_is_the_seeds() -> None:
    owner = owners([2] * 20)
    first, again, other = (Sampler(owner, 8, seed) for seed in (3, 3, 4))

    draws = [np.concatenate([sampler.draw() for _ in range(7)]) for sampler in (first, again, other)]

    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_epochs_differ_in_their_order() -> None:
    sampler = Sampler(owners([1] * 12), 12, seed=0)

    assert not np.array_equal(sampler.draw(), sampler.draw())


def test_a_batch_of_folds_has_pictures_of_one_fold_and_the_folds_take_turns() -> None:
    owner = owners([1, 2, 3] * 7)
    sampler = FoldSampler(owner, 3, 4, seed=0)

    for step in range(2 * sampler.steps_per_epoch):
        fold, captions = sampler.draw()
        assert fold == step % 3
        assert len(captions) == 4
        assert (owner[captions] % 3 == fold).all()


def test_every_caption_belongs_to_a_fold() -> None:
    sampler = FoldSampler(owners([2] * 10), 4, 100, seed=0)

    seen = np.concatenate([sampler.draw()[1] for _ in range(12)])

    assert set(seen) == set(range(20))


@settings(deadline=None, max_examples=50)
@given(n_image=st.integers(1, 5), n_text=st.integers(1, 4), per_step=st.integers(1, 25), seed=st.integers(0, 3))
def test_every_pair_comes_once_before_any_comes_twice(n_image: int, n_text: int, per_step: int, seed: int) -> None:
    pairs = [(i, j) for i in range(n_image) for j in range(n_text)]
    order = PairOrder(pairs, per_step, seed)
    seen: dict[tuple[int, int], int] = dict.fromkeys(pairs, 0)

    for _ in range(12):
        drawn = [(int(i), int(j)) for i, j in order.draw()]
        assert drawn == sorted(set(drawn))
        assert len(drawn) == min(per_step, len(pairs))
        for pair in drawn:
            seen[pair] += 1
        assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize(("image", "text", "expected"), [(True, True, None), (False, True, [[False, True]])])
def test_items_count_where_both_rows_are_usable(image: bool, text: bool, expected: list[list[bool]] | None) -> None:
    found = valid_items(np.array([[image, True]]), np.array([[text, True]]))

    assert (None if found is None else found.tolist()) == expected
