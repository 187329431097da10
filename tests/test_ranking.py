"""The table in order and the sentence that says which pair to take."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hyperalign.rank.ranking import answer, rank_pairs, reorder
from hyperalign.rank.resampling import Bootstrap

TABLE = pd.DataFrame(
    {
        "method": "hypernet",
        "image_encoder": ["a", "b", "c", "a", "b"],
        "text_encoder": ["x", "x", "x", "y", "y"],
        "n_params_image": [9_000_000, 2_000_000, 2_000_000, 9_000_000, 1_000_000],
        "n_params_text": [1_000_000, 1_000_000, 1_000_000, 500_000, 500_000],
    }
)
SCORE = np.array([30.0, 30.0, 30.0, 31.0, 5.0])
RESAMPLED = Bootstrap(
    score=SCORE,
    low=SCORE - 2,
    high=SCORE + 2,
    rank=np.array([1, 1, 1, 1, 5]),
    p_best=np.array([0.2, 0.2, 0.2, 0.4, 0.0]),
)


def only(rows: list[int]) -> pd.DataFrame:
    return rank_pairs(TABLE.iloc[rows], Bootstrap._make(column[rows] for column in RESAMPLED))


def test_position_is_by_score_then_size_then_name() -> None:
    ranked = rank_pairs(TABLE, RESAMPLED)

    assert (ranked["image_encoder"] + ranked["text_encoder"]).tolist() == ["ay", "bx", "cx", "ax", "by"]
    assert ranked["position"].tolist() == [1, 2, 3, 4, 5]
    assert ranked["rank"].tolist() == [1, 1, 1, 1, 5]
    assert ranked["score_low"].tolist() == [29, 28, 28, 28, 3]


def test_other_columns_are_kept_behind() -> None:
    ranked = rank_pairs(TABLE, RESAMPLED)

    assert ranked.columns.tolist() == [
        *("position", "rank", "image_encoder", "text_encoder", "score", "score_low", "score_high", "p_best"),
        *("method", "n_params_image", "n_params_text"),
    ]


def test_order_of_the_input_does_not_matter() -> None:
    pd.testing.assert_frame_equal(only([3, 1, 4, 0, 2]), rank_pairs(TABLE, RESAMPLED))


def test_the_input_is_left_as_it_was() -> None:
    before = TABLE.copy()

    rank_pairs(TABLE, RESAMPLED)

    pd.testing.assert_frame_equal(TABLE, before)


@pytest.mark.parametrize("wrong", [np.nan, 12.0])
def test_a_missing_or_foreign_score_is_an_error(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"score of c\+x is missing or is not that of its hits"):
        rank_pairs(TABLE.assign(score=[30, 30, wrong, 31, 5]), RESAMPLED)


def test_a_pair_is_ranked_once_and_has_one_score() -> None:
    with pytest.raises(ValueError, match=r"a\+x twice"):
        rank_pairs(TABLE.iloc[[0, 0, 1, 2, 3]], RESAMPLED)
    with pytest.raises(ValueError, match="got 2 pairs and 5 scores"):
        rank_pairs(TABLE.iloc[:2], RESAMPLED)


def test_a_clear_winner_is_named() -> None:
    assert answer(only([3, 4])) == (
        "a+y scores 31.0 (95 % interval 29.0 to 33.0) and is the best pair with probability 0.40; "
        "every other pair is worse with 95 % confidence."
    )


def test_indistinguishable_pairs_are_named_with_the_cheapest() -> None:
    assert answer(only([0, 1, 3])) == (
        "a+y scores 31.0 (95 % interval 29.0 to 33.0) and is the best pair with probability 0.40, "
        "but 3 pairs are indistinguishable at 95 %: a+y, b+x, a+x. "
        "The cheapest of them is b+x, which scores 30.0, with 3M parameters."
    )


def test_the_first_may_be_the_cheapest() -> None:
    assert answer(only([0, 1, 2])).endswith("The cheapest of them is the first, with 3M parameters.")


def test_many_indistinguishable_pairs_are_counted() -> None:
    table = pd.concat([TABLE.assign(text_encoder=f"t{i}") for i in range(2)], ignore_index=True).iloc[
        [0, 1, 2, 5, 6, 7]
    ]
    equal = Bootstrap._make(np.repeat(column[:1], 6) for column in RESAMPLED)

    assert "6 pairs are indistinguishable at 95 %: b+t0, b+t1, c+t0 and 3 more." in answer(rank_pairs(table, equal))


def test_one_pair_is_not_called_better_than_others() -> None:
    assert answer(only([0])).endswith("no other pair was compared.")


def test_a_pair_that_alone_was_embedded_whole_is_said_to_be_alone() -> None:
    sentence = answer(only([3]), n_left=1234)

    assert sentence == (
        "a+y scores 31.0 (95 % interval 29.0 to 33.0): no other pair was embedded whole, for 1,234 left on samples of "
        "the data."
    )


def test_a_probability_among_those_embedded_whole_says_so() -> None:
    assert "is the best pair of the 5 that were embedded whole with probability 0.40" in answer(
        rank_pairs(TABLE, RESAMPLED), n_left=3
    )


@pytest.mark.parametrize(
    ("n_params", "told"),
    [(950, "950"), (1_000, "1k"), (9_990, "9.99k"), (1_500_000, "1.5M"), (2_000_000_000, "2G")],
)
def test_the_size_of_the_cheapest_is_told_in_its_unit(n_params: int, told: str) -> None:
    small = TABLE.assign(n_params_image=[9e9, n_params - 1, 9e9, 9e9, 9e9], n_params_text=1)

    assert answer(rank_pairs(small, RESAMPLED)).endswith(f" {told} parameters.")


@pytest.mark.parametrize(("rank", "told"), [(2, "1 pair is"), (3, "2 pairs are"), (1500, "1,499 pairs are")])
def test_a_choice_of_validation_that_others_beat_on_the_test_says_how_many_and_who(rank: int, told: str) -> None:
    table = TABLE.assign(validation_score=[1.0, 9.0, 3.0, 4.0, 5.0])
    resampled = RESAMPLED._replace(rank=np.array([5, rank, 1, 1, 5]))

    sentence = answer(rank_pairs(table, resampled))

    assert sentence == (
        "b+x scores 30.0 (95 % interval 28.0 to 32.0) and is the best pair with probability 0.20: validation chose it, "
        f"but on the test images {told} better with 95 % confidence. At rank 1: a+y, c+x; "
        "the cheapest of them is c+x, with 3M parameters."
    )


@pytest.mark.parametrize(("off", "refused"), [(0.0009, False), (0.0015, True), (-0.0015, True)])
def test_a_score_may_differ_from_its_hits_by_rounding_alone(off: float, refused: bool) -> None:
    table = TABLE.assign(score=SCORE + np.array([0, 0, 0, 0, off]))

    if not refused:
        assert rank_pairs(table, RESAMPLED)["score"].tolist()[-1] == 5
        return
    with pytest.raises(ValueError, match=r"the score of b\+y is missing or is not that of its hits"):
        rank_pairs(table, RESAMPLED)


def test_positions_are_by_validation_where_it_was_scored_and_only_rounding_is_a_tie() -> None:
    table = TABLE.assign(validation_score=[7.0, 7.0000002, 7.00001, 4.0, 5.0])

    ranked = rank_pairs(table, RESAMPLED)

    assert (ranked["image_encoder"] + ranked["text_encoder"]).tolist() == ["cx", "bx", "ax", "by", "ay"]


def test_five_indistinguishable_pairs_are_named_and_of_six_three() -> None:
    five = rank_pairs(TABLE, RESAMPLED._replace(rank=np.ones(5, np.int64)))
    extra = TABLE.iloc[[4]].assign(image_encoder="z")
    six_table = pd.concat([TABLE, extra], ignore_index=True)
    six = rank_pairs(six_table, Bootstrap._make(np.append(column, column[-1]) for column in RESAMPLED)._replace(
        rank=np.ones(6, np.int64)))  # fmt: skip

    assert "but 5 pairs are indistinguishable at 95 %: a+y, b+x, c+x, a+x, b+y. The cheapest" in answer(five)
    assert "but 6 pairs are indistinguishable at 95 %: a+y, b+x, c+x and 3 more. The cheapest" in answer(six)


# a closer look at some


def looked(**validation: float) -> pd.DataFrame:
    """Rows of another method for pairs like `ax`."""
    names = [(name[0], name[1]) for name in validation]
    images, texts = ([name[side] for name in names] for side in (0, 1))
    return pd.DataFrame({"image_encoder": images, "text_encoder": texts, "validation_score": validation.values()})


def names(table: pd.DataFrame) -> list[str]:
    return (table["image_encoder"] + table["text_encoder"]).tolist()


@pytest.mark.parametrize(
    ("closer", "order"),
    [
        (looked(ay=32.0, bx=33.0), ["bx", "ay", "cx", "ax", "by"]),
        (looked(ay=33.0, bx=32.0), ["ay", "bx", "cx", "ax", "by"]),
        (looked(ay=1.0, bx=30.5), ["ay", "bx", "cx", "ax", "by"]),  # its own connector validates better, and is used
        (looked(ay=1.0, bx=31.5), ["bx", "ay", "cx", "ax", "by"]),
        (looked(ay=32.0, bx=32.0), ["ay", "bx", "cx", "ax", "by"]),
        (looked(bx=40.0, by=50.0), ["ay", "by", "cx", "ax", "bx"]),  # places that they hold, and no others'
        (looked(bx=99.0), ["ay", "bx", "cx", "ax", "by"]),
        (looked(), ["ay", "bx", "cx", "ax", "by"]),
    ],
)
def test_pairs_that_were_looked_at_closer_change_places_among_themselves(
    closer: pd.DataFrame, order: list[str]
) -> None:
    ranked = rank_pairs(TABLE.assign(validation_score=SCORE), RESAMPLED)

    found = reorder(ranked, closer)

    assert names(found) == order
    assert found["position"].tolist() == [1, 2, 3, 4, 5]
    facts = ["image_encoder", "text_encoder", "score", "rank", "p_best", "validation_score"]
    expected = ranked.set_index(["image_encoder", "text_encoder"])[facts[2:]]
    pd.testing.assert_frame_equal(found[facts].set_index(facts[:2]).loc[expected.index], expected)
    assert found.index.tolist() == [0, 1, 2, 3, 4]
