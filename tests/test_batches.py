"""What a step sees: every caption and every pair in its turn, and no picture against itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hyperalign.align.batches import PairOrder, Sampler, SubgridOrder, valid_items


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


@settings(deadline=None, max_examples=50)
@given(n_image=st.integers(1, 6), n_text=st.integers(1, 4), per_step=st.integers(1, 8), seed=st.integers(0, 3))
def test_every_pair_of_sub_grids_comes_once_before_any_comes_twice(
    n_image: int, n_text: int, per_step: int, seed: int
) -> None:
    """Of one text encoder; text encoders take turns, each once in a round."""
    order, seen = SubgridOrder(n_image, n_text, per_step, seed), np.zeros((n_text, n_image), np.int64)

    for step in range(4 * n_text):
        images, text = order.draw()
        assert images.tolist() == sorted(set(images.tolist()))
        assert len(images) == min(per_step, n_image)
        seen[text, images] += 1
        assert seen[text].max() - seen[text].min() <= 1
        drawn = seen.sum(1) // min(per_step, n_image)
        assert drawn.max() - drawn.min() <= 1
        if (step + 1) % n_text == 0:
            assert drawn.max() == drawn.min() == (step + 1) // n_text


def test_every_pair_of_the_grid_comes_once_in_an_epoch_of_sub_grids() -> None:
    order = SubgridOrder(6, 3, 2, seed=0)

    epochs = [[(int(i), text) for images, text in (order.draw() for _ in range(9)) for i in images] for _ in range(2)]

    every = [(i, j) for i in range(6) for j in range(3)]
    assert all(sorted(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_order_of_sub_grids_is_the_seed_s() -> None:
    first, again, other = (SubgridOrder(6, 3, 2, seed) for seed in (3, 3, 4))

    draws = [[(images.tolist(), text) for images, text in (o.draw() for _ in range(9))] for o in (first, again, other)]

    assert draws[0] == draws[1] != draws[2]


def test_text_encoders_do_not_all_draw_the_same_image_encoders() -> None:
    order = SubgridOrder(8, 4, 2, seed=0)

    assert len({tuple(order.draw()[0]) for _ in range(4)}) > 1


@pytest.mark.parametrize(("image", "text", "expected"), [(True, True, None), (False, True, [[False, True]])])
def test_items_count_where_both_rows_are_usable(image: bool, text: bool, expected: list[list[bool]] | None) -> None:
    found = valid_items(np.array([[image, True]]), np.array([[text, True]]))

    assert (None if found is None else found.tolist()) == expected
