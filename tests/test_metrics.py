"""Retrieval and zero-shot scores against values known by hand, brute force and laws."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import normalize

from hyperalign.rank.metrics import (
    Hits,
    _bounds,
    first_hits,
    group_accuracy,
    hits_from_embeddings,
    nearest,
    recall,
    recall_at_1_batch,
    retrieval_hits,
    usable,
    zero_shot,
    zero_shot_hits,
)

FIVE_EACH = np.repeat(np.arange(6), 5)


def hits_of(similarity: torch.Tensor, owner: NDArray[np.int64], block: int | None = None) -> Hits:
    return retrieval_hits(lambda i, j: similarity[i:j], owner, similarity.shape[1], ks=(1, 2, 5), block=block)


def chance_of_hit(values: list[float], right: list[bool], k: int) -> float:
    """Every order of the tied is tried; an unusable item comes after all others and is never right."""
    usable_items = [i for i, value in enumerate(values) if np.isfinite(value)]
    orders = [order for order in permutations(usable_items) if all(values[a] >= values[b] for a, b in pairwise(order))]
    return float(np.mean([any(right[i] for i in order[:k]) for order in orders])) if orders else 0.0


def test_a_right_item_before_all_others_is_a_hit() -> None:
    hits = hits_from_embeddings(torch.eye(4), torch.eye(4), np.arange(4))

    assert recall(hits) == dict.fromkeys(recall(hits), 100.0)


def test_the_place_of_the_right_item_decides_which_cut_offs_it_meets() -> None:
    """Caption 0 finds its image third; image 0 finds its caption first."""
    similarity = torch.tensor([[0.5, 0.9, 0.8], [0.1, 1.0, 0.2], [0.0, 0.3, 1.0]])

    hits = hits_of(similarity, np.arange(3))

    assert hits.t2i.tolist() == [[0, 0, 1], [1, 1, 1], [1, 1, 1]]
    assert hits.i2t.tolist() == [[1, 1, 1]] * 3


@pytest.mark.parametrize("n_values", [2, 5, 10_000])
def test_one_look_gives_the_hits_that_counting_gives(n_values: int) -> None:
    """Few different values make ties of every kind: among the right, among the wrong, and between them."""
    generator = torch.Generator().manual_seed(n_values)
    for _ in range(20):
        similarity = torch.randint(n_values, (30, 6), generator=generator).float()

        counted = retrieval_hits(lambda i, j, s=similarity: s[i:j], FIVE_EACH, 6, ks=(1,))  # type: ignore[misc]
        found = first_hits(similarity.clone(), torch.from_numpy(FIVE_EACH))

        assert found is not None
        np.testing.assert_allclose(found.t2i, counted.t2i, rtol=1e-6)
        np.testing.assert_allclose(found.i2t, counted.i2t, rtol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_look_is_not_enough_where_a_value_is_not_finite(value: float) -> None:
    similarity = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    similarity[7, 1] = value  # its own image
    wrong = similarity.clone()
    wrong[7, 1], wrong[7, 4] = 0.5, value

    assert first_hits(similarity, torch.from_numpy(FIVE_EACH)) is None
    assert value == -torch.inf or first_hits(wrong, torch.from_numpy(FIVE_EACH)) is None
    assert first_hits(torch.rand(3, 1), torch.zeros(3, dtype=torch.long)) is None


def test_equal_similarities_give_every_query_its_chance() -> None:
    """30 captions of 6 images: k/6 for captions; for images 1 − C(25, k)/C(30, k)."""
    hits = hits_of(torch.ones(30, 6), FIVE_EACH)

    np.testing.assert_allclose(hits.t2i, np.tile([1 / 6, 2 / 6, 5 / 6], (30, 1)), rtol=1e-6)
    np.testing.assert_allclose(hits.i2t, np.tile([5 / 30, 1 - 300 / 435, 1 - 53130 / 142506], (6, 1)), rtol=1e-6)


def test_any_of_an_image_s_captions_is_right() -> None:
    similarity = torch.tensor([[0.1, 0.0], [0.9, 0.0], [0.5, 0.6]])

    hits = hits_of(similarity, np.array([0, 0, 1]))

    assert hits.i2t[:, 0].tolist() == [1, 1]


def test_a_tie_of_two_right_captions_and_one_wrong_is_two_thirds_of_a_hit() -> None:
    similarity = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.5, 0.6]])

    hits = hits_of(similarity, np.array([0, 0, 1]))

    np.testing.assert_allclose(hits.i2t[0], [2 / 3, 1, 1], rtol=1e-6)


def test_an_unusable_caption_is_a_miss_and_beats_nothing() -> None:
    text = torch.eye(3)
    text[0] = torch.nan

    hits = hits_from_embeddings(torch.eye(3), text, np.arange(3))

    assert hits.t2i[:, 0].tolist() == [0, 1, 1]
    assert hits.i2t[:, 0].tolist() == [0, 1, 1], "image 0 has no usable caption left"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_an_unusable_image_is_a_miss_in_both_directions_and_the_others_are_untouched(value: float) -> None:
    image = torch.eye(3)
    image[2] = value

    hits = hits_from_embeddings(image, torch.eye(3), np.arange(3))

    assert hits.t2i[:, 0].tolist() == [1, 1, 0]
    assert hits.i2t[:, 0].tolist() == [1, 1, 0]


def test_other_captions_of_the_image_stand_in_for_an_unusable_one() -> None:
    text = torch.tensor([[torch.nan, torch.nan], [1.0, 0.0], [0.0, 1.0]])

    hits = hits_from_embeddings(torch.eye(2), text, np.array([0, 0, 1]))

    assert hits.i2t[:, 0].tolist() == [1, 1]


def test_all_unusable_is_all_missed() -> None:
    hits = hits_from_embeddings(torch.eye(3), torch.zeros(3, 3), np.arange(3))

    assert recall(hits)["score"] == 0


def test_an_image_without_captions_is_a_miss() -> None:
    hits = hits_of(torch.eye(3)[:2], np.arange(2))

    assert hits.i2t[:, 0].tolist() == [1, 1, 0]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan, np.inf]), min_size=12, max_size=12),
    owner=st.lists(st.integers(0, 2), min_size=4, max_size=4).map(sorted),
    block=st.integers(1, 4),
)
def test_hits_are_those_of_trying_every_order_of_the_tied(values: list[float], owner: list[int], block: int) -> None:
    matrix = np.array(values, dtype=np.float32).reshape(4, 3)
    owners = np.array(owner)

    hits = hits_of(torch.from_numpy(matrix), owners, block)

    matrix[~np.isfinite(matrix)] = np.nan
    for column, k in enumerate((1, 2, 5)):
        t2i = [chance_of_hit(matrix[c].tolist(), (np.arange(3) == owners[c]).tolist(), k) for c in range(4)]
        i2t = [chance_of_hit(matrix[:, i].tolist(), (owners == i).tolist(), k) for i in range(3)]
        np.testing.assert_allclose(hits.t2i[:, column], t2i, atol=1e-6)
        np.testing.assert_allclose(hits.i2t[:, column], i2t, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), block=st.integers(1, 40))
def test_reading_in_blocks_changes_nothing(seed: int, block: int) -> None:
    similarity = torch.randint(0, 5, (30, 6), generator=torch.Generator().manual_seed(seed)).float()

    whole, blocked = hits_of(similarity, FIVE_EACH), hits_of(similarity, FIVE_EACH, block)

    np.testing.assert_array_equal(whole.t2i, blocked.t2i)
    np.testing.assert_array_equal(whole.i2t, blocked.i2t)


def test_the_order_of_the_items_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    similarity = torch.from_numpy(rng.integers(0, 9, (30, 6)).astype(np.float32))
    captions, images = rng.permutation(30), rng.permutation(6)
    place = np.argsort(images)

    hits = hits_of(similarity, FIVE_EACH)
    moved = hits_of(similarity[captions][:, images], place[FIVE_EACH[captions]])

    np.testing.assert_array_equal(moved.t2i, hits.t2i[captions])
    np.testing.assert_array_equal(moved.i2t, hits.i2t[images])


def test_equal_rows_tie_exactly_wherever_they_stand_and_whatever_the_block() -> None:
    """Identical captions of two pictures share the hit; a one-row block would break the tie by rounding."""
    rng = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(401, 96, generator=rng), dim=1)
    text = image.clone()
    image[400], text[400] = image[0], text[0]

    for block in (None, 50, 200, 400):
        hits = hits_from_embeddings(image, text, np.arange(401), block=block)
        assert hits.t2i[[0, 400], 0].tolist() == [0.5, 0.5]
        assert hits.i2t[[0, 400], 0].tolist() == [0.5, 0.5]


def test_similarities_are_compared_in_float32() -> None:
    """In half precision the two images would tie."""
    image = normalize(torch.tensor([[1.0, 0.0], [1.0, 1e-3]]), dim=1)

    hits = hits_from_embeddings(image, image[:1], np.array([0]))

    assert hits.t2i[0, 0] == 1


def test_read_only_arrays_are_read() -> None:
    """Memory-mapped ones are; torch warns of them, and a warning is an error here."""
    owner, ok = np.arange(3), np.ones(3, dtype=bool)
    ok[0] = False
    for array in (owner, ok):
        array.flags.writeable = False

    hits = retrieval_hits(lambda i, j: torch.eye(3)[i:j], owner, 3, caption_ok=ok, image_ok=ok)

    assert hits.t2i[:, 0].tolist() == [0, 1, 1]


def test_a_block_is_all_that_is_asked_for_at_once() -> None:
    asked = []

    def similarity(start: int, stop: int) -> torch.Tensor:
        asked.append(stop - start)
        return torch.zeros(stop - start, 6)

    retrieval_hits(similarity, FIVE_EACH, 6, block=8)

    assert max(asked) <= 8
    assert sum(asked) == 2 * 30, "two readings of each caption"


def test_unrelated_embeddings_score_at_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(n, 32, generator=rng), dim=1) for n in (500, 2500))

    scores = recall(hits_from_embeddings(image, text, np.repeat(np.arange(500), 5)))

    assert scores["t2i_recall_at_10"] == pytest.approx(100 * 10 / 500, abs=1)
    assert scores["i2t_recall_at_10"] == pytest.approx(100 * 10 / 500, abs=2)


def test_recall_names_every_direction_and_cut_off_and_the_score_is_the_mean_at_one() -> None:
    hits = Hits(np.array([[0, 1, 1], [1, 1, 1]], np.float32), np.array([[0, 0, 1]], np.float32))

    assert recall(hits) == {
        "t2i_recall_at_1": 50,
        "t2i_recall_at_5": 100,
        "t2i_recall_at_10": 100,
        "i2t_recall_at_1": 0,
        "i2t_recall_at_5": 0,
        "i2t_recall_at_10": 100,
        "score": 25,
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), levels=st.sampled_from([1, 3, 1000]), spoiled=st.booleans())
def test_the_batch_for_validation_agrees_with_the_full_count(seed: int, levels: int, spoiled: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    similarity = torch.randint(0, levels, (3, 30, 6), generator=rng).float()
    if spoiled:
        similarity[0, 4] = torch.nan
        similarity[1, :, 2] = torch.inf

    scores = recall_at_1_batch(similarity, torch.from_numpy(FIVE_EACH))

    for pair, values in zip(scores, similarity, strict=True):
        hits = hits_of(values, FIVE_EACH)
        np.testing.assert_allclose(pair, [100 * hits.t2i[:, 0].mean(), 100 * hits.i2t[:, 0].mean()], rtol=1e-5)


def test_zero_shot_ties_and_unusable_rows() -> None:
    """Right and first, tied with one other, unusable picture, unusable class."""
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [torch.nan] * 3, [0.1, 0.2, torch.nan]])

    hits = zero_shot_hits(similarity, np.array([0, 1, 0, 2]), ks=(1, 2))

    assert hits.tolist() == [[1, 1], [0.5, 1], [0, 0], [0, 0]]
    assert zero_shot(hits, (1, 2)) == {"zero_shot_top_1": 37.5, "zero_shot_top_2": 50.0}


def test_masked_pictures_and_classes_are_misses() -> None:
    hits = zero_shot_hits(
        torch.zeros(3, 3),
        np.arange(3),
        ks=(1,),
        image_ok=np.array([True, False, True]),
        class_ok=np.array([True, True, False]),
    )

    assert hits[:, 0].tolist() == [0.5, 0, 0]


def test_equal_classes_give_every_picture_its_chance() -> None:
    hits = zero_shot_hits(torch.zeros(2, 10), np.array([3, 7]))

    np.testing.assert_allclose(hits, [[0.1, 0.5]] * 2, rtol=1e-6)


def test_groups_are_scored_apart() -> None:
    hits = np.array([[1, 1], [0, 1], [1, 1]], np.float32)

    assert group_accuracy(hits, np.array([7, 7, 2])) == {2: 100.0, 7: 50.0}


def test_usable_rows_are_finite_and_have_a_direction() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [torch.nan, 1.0], [-torch.inf, 1.0], [-1.0, -1.0]])

    assert usable(rows).tolist() == [True, False, False, False, True]


def test_nearest_agrees_with_sorting_all_cosines() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)

    found = nearest(rows, 5)

    np.testing.assert_array_equal(found, np.argsort(-cosine, axis=1)[:, :5])


def test_nearest_leaves_the_row_itself_out_even_among_equal_rows() -> None:
    found = nearest(np.ones((20, 4), np.float32), 3)

    assert found.shape == (20, 3)
    assert not (found == np.arange(20)[:, None]).any()


@pytest.mark.parametrize("k", [0, 5])
def test_nearest_refuses_more_neighbours_than_there_are(k: int) -> None:
    with pytest.raises(ValueError, match="1 to 4 neighbours"):
        nearest(np.eye(5, dtype=np.float32), k)


def test_owners_and_labels_must_exist() -> None:
    with pytest.raises(ValueError, match="owners must be in 0 … 5"):
        hits_of(torch.ones(1, 6), np.array([6]))
    with pytest.raises(ValueError, match="labels must be in 0 … 2"):
        zero_shot_hits(torch.ones(1, 3), np.array([3]))
    with pytest.raises(ValueError, match="share a width"):
        hits_from_embeddings(torch.eye(3), torch.eye(4), np.arange(4))
    with pytest.raises(ValueError, match="at least 1"):
        retrieval_hits(lambda i, j: torch.ones(j - i, 6), FIVE_EACH, 6, ks=(0,))


def test_a_score_of_nothing_is_refused() -> None:
    nothing = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="retrieval needs captions and images, got 0 and 6"):
        hits_of(torch.ones(0, 6), nothing)
    with pytest.raises(ValueError, match="retrieval needs captions and images, got 2 and 0"):
        retrieval_hits(lambda i, j: torch.ones(j - i, 0), np.array([0, 0]), 0)
    for labels in (nothing, np.array([0])):
        with pytest.raises(ValueError, match=f"every picture needs one label, got 2 pictures and {len(labels)} labels"):
            zero_shot_hits(torch.ones(2, 3), labels)
    with pytest.raises(ValueError, match="got 0 pictures and 0 labels"):
        zero_shot_hits(torch.ones(0, 3), nothing)


def test_a_row_that_is_not_finite_is_at_cosine_0_from_all_others() -> None:
    rows = np.array([[1, 0], [np.nan, 3], [1, 0.1], [-1, 0.2], [0.9, -0.1]], np.float32)

    assert nearest(rows, 1)[[0, 2, 3, 4], 0].tolist() == [2, 0, 1, 0]
    assert nearest(rows, 4).shape == (5, 4)
    below = np.array([[-1, -1], [np.nan, 3], [-1, 0.3]], np.float32)
    assert nearest(below, 1)[[0, 2], 0].tolist() == [2, 0]


@pytest.mark.parametrize(("n_rows", "block", "ends"), [(10, 4, [0, 3, 7, 10]), (3, 0, [0, 1, 2, 3]), (4, 9, [0, 4])])
def test_blocks_are_about_equal_and_none_is_larger_than_asked(n_rows: int, block: int, ends: list[int]) -> None:
    assert _bounds(n_rows, block) == ends
