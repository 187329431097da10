"""Connectors on rows: hits known by hand, both orders of multiplication, and the cost of each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import plant, recalls, spoil
from torch.utils.flop_counter import FlopCounterMode

from hyperalign import scoring
from hyperalign.align.baseline import APE, solve_ape
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.grid import Grid, build_grid
from hyperalign.align.solution import Solution
from hyperalign.grids import LabelGrid
from hyperalign.ledger import mapped_flops, pulled_flops
from hyperalign.scoring import (
    first_captions,
    mean_score,
    retrieval,
    scoring_flops,
    watch_flops,
    watched,
    zero_shot,
    zero_shot_flops,
    zero_shot_parts,
)

CONFIG = CanonicalConfig(rank=8)


def between_rows(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Solution:
    """One pair, connected as told."""
    return Solution(
        method="ape",
        sides="text",
        pairs=[(0, 0)],
        weights=[weight],
        biases=[torch.zeros(len(weight)) if bias is None else bias],
        images=[None],
        texts=[None],
    )


def one_pair(images: list[list[float]], texts: list[list[float]], owner: list[int]) -> Grid:
    return build_grid([np.array(images, np.float32)], [np.array(texts, np.float32)], np.array(owner))


def solutions(grid: Grid) -> dict[str, Solution]:
    """One of each kind: between coordinates, its twin between rows, and one trained there."""
    canonical = build_canonical_grid(grid, CONFIG)
    return {
        "both": solve_closed_form(canonical),
        "twin": solve_closed_form(canonical, sides="text"),
        "text": solve_ape(grid, [(1, 0), (0, 1)], replace(APE, n_epochs=None, n_steps=5, batch_size=8)),
    }


def test_hits_are_known_by_hand() -> None:
    """Three pictures on the axes; the last caption of the third picture points at the first."""
    grid = one_pair([[1, 0, 0], [0, 2, 0], [0, 0, 3]], [[9, 1, 0], [0, 5, 1], [1, 0, 4], [7, 0, 2]], [0, 1, 2, 2])

    (hits,) = retrieval(between_rows(torch.eye(3)), grid, ks=(1, 2))

    assert hits.t2i.tolist() == [[1, 1], [1, 1], [1, 1], [0, 1]]
    assert hits.i2t.tolist() == [[1, 1], [1, 1], [1, 1]]
    assert mean_score(between_rows(torch.eye(3)), grid) == pytest.approx(50 * (3 / 4 + 1))


def test_a_connector_and_its_bias_are_applied() -> None:
    """A weight that swaps the axes, and a bias that swaps them back for every caption alike."""
    grid = one_pair([[1, 0], [0, 1]], [[0, 1], [1, 0]], [0, 1])
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])

    assert mean_score(between_rows(swap), grid) == 100
    assert mean_score(between_rows(torch.eye(2)), grid) == 0
    assert mean_score(between_rows(swap, torch.tensor([5.0, 0.0])), grid) == 75  # both captions say the first picture


def test_a_connector_that_says_nothing_scores_chance() -> None:
    """All similarities are equal: 1/n of n pictures, and of each picture's captions."""
    assert mean_score(between_rows(torch.zeros(2, 3)), plant_one(image=2, text=3)) == pytest.approx(100 / 20)


def plant_one(*, image: int, text: int, n_captions: int = 1) -> Grid:
    return plant(20, image_dims=(image,), text_dims=(text,), n_captions=n_captions)


def test_hits_are_those_of_plainly_written_cosines() -> None:
    grid = plant(60)

    for solution in solutions(grid).values():
        found = [100 * float(hits.t2i[:, 0].mean()) for hits in retrieval(solution, grid)]
        assert dict(zip(solution.pairs, found, strict=True)) == pytest.approx(recalls(solution, grid), abs=1e-3)


@pytest.mark.parametrize(("r_img", "r_txt"), [(40, 6), (6, 40)])
@pytest.mark.parametrize("n_reads", [1, 2])
def test_both_orders_give_the_same_cosines_and_the_cheaper_one_runs(r_img: int, r_txt: int, n_reads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(30, r_img, generator=draw), dim=1)
    text, weight = torch.randn(50, r_txt, generator=draw), torch.randn(r_img, r_txt, generator=draw)
    bias = torch.randn(r_img, generator=draw)

    with FlopCounterMode(display=False) as counter:
        similarity = scoring._similarity(image, text, weight, bias, n_reads=n_reads)
        for _ in range(n_reads):
            found = torch.cat([similarity(0, 20), similarity(20, 50)])

    shape = (50, 30, r_txt, r_img)
    assert counter.get_total_flops() == min(order(*shape, n_reads=n_reads) for order in (mapped_flops, pulled_flops))
    mapped = torch.nn.functional.normalize(text @ weight.T + bias, dim=1)
    torch.testing.assert_close(found, mapped @ image.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["both", "twin", "text"])
@pytest.mark.parametrize("block_values", [2**24, 400])
def test_scoring_costs_what_the_counter_sees(kind: str, block_values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 pictures with 80 captions, at once or in blocks of ten captions that are read twice."""
    monkeypatch.setattr(scoring, "_BLOCK_VALUES", block_values)
    grid = spoil(plant(40, n_captions=2), images={1: [3]})
    solution = solutions(grid)[kind]

    with FlopCounterMode(display=False) as counter:
        retrieval(solution, grid)

    assert scoring_flops(solution, grid) == counter.get_total_flops() > 0


def test_blocks_do_not_change_a_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = plant(40, n_captions=2)
    solution = solutions(grid)["both"]
    whole = retrieval(solution, grid)
    monkeypatch.setattr(scoring, "_BLOCK_VALUES", 700)

    for hits, expected in zip(retrieval(solution, grid), whole, strict=True):
        np.testing.assert_array_equal(hits.t2i, expected.t2i)
        np.testing.assert_array_equal(hits.i2t, expected.i2t)


def test_items_without_a_usable_row_are_misses_and_never_dropped() -> None:
    grid = plant(40, n_captions=2)
    solution = solutions(grid)["both"]
    spoiled = spoil(grid, images={0: [3]}, texts={1: [10]})

    for (i, j), hits in zip(solution.pairs, retrieval(solution, spoiled), strict=True):
        assert hits.t2i.shape == (80, 3)
        assert hits.i2t.shape == (40, 3)
        if i == 0:
            assert hits.i2t[3].max() == hits.t2i[6:8].max() == 0
        if j == 1:
            assert hits.t2i[10].max() == 0


def test_a_bad_row_of_one_encoder_changes_no_hit_of_another() -> None:
    grid = plant(40)
    solution = solutions(grid)["both"]
    plain, other = retrieval(solution, grid), retrieval(solution, spoil(grid, images={0: [3]}, texts={1: [10]}))

    for (i, j), hits, expected in zip(solution.pairs, other, plain, strict=True):
        assert np.array_equal(hits.t2i, expected.t2i) == (i != 0 and j != 1)


def test_encoders_that_know_nothing_on_a_split_score_nothing() -> None:
    grid = plant_one(image=4, text=5)
    all_bad = spoil(grid, images={0: list(range(20))})

    assert mean_score(between_rows(torch.ones(4, 5)), all_bad) == 0


def test_the_order_of_items_does_not_matter() -> None:
    grid, order = plant(40), np.random.default_rng(0).permutation(40)
    shuffled = build_grid([rows[order] for rows in grid.images], [rows[order] for rows in grid.texts], grid.owner)

    for solution in solutions(grid).values():
        assert mean_score(solution, shuffled) == pytest.approx(mean_score(solution, grid))


def test_the_first_caption_of_every_picture_stands_for_all() -> None:
    owner = np.array([0, 0, 0, 1, 2, 2])
    rows = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    spoiled = rows.copy()
    spoiled[3] = np.nan
    grid = first_captions(build_grid([rows[:3]], [rows, spoiled], owner))

    assert grid.owner.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(grid.texts[0][:], rows[[0, 3, 4]])
    assert grid.text_ok.tolist() == [[True, True, True], [True, False, True]]
    assert grid.n_images == 3


def labelled(images: list[list[float]], prompts: list[list[float]], labels: list[int], n_classes: int) -> LabelGrid:
    return LabelGrid(
        name="made up",
        images=(np.array(images, np.float32),),
        texts=(np.array(prompts, np.float32),),
        labels=np.array(labels),
        n_classes=n_classes,
    )


ALL = np.arange(3)


def test_a_class_is_the_mean_of_its_prompts() -> None:
    """Class 0 from two prompts around (1, 1), class 1 from two around (0, −1)."""
    labels = labelled([[2, 2], [0, -3], [1, 1]], [[5, 0], [0, 1], [1, -9], [-1, -9]], [0, 1, 1], 2)

    (hits,) = zero_shot(between_rows(torch.eye(2)), labels, ALL)

    assert hits[:, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("bad", [[np.nan, np.nan], [0.0, 0.0]])
def test_a_bad_prompt_is_left_out_of_its_class(bad: list[float]) -> None:
    """With a bias towards (0, −1) a prompt of zeros would turn class 0 towards the second picture."""
    solution = between_rows(torch.eye(2), torch.tensor([0.0, -0.6]))
    labels = labelled([[1, 0], [0.6, -1], [1, 0]], [[1, 0.6], bad, [0, -1], [0, -1]], [0, 1, 0], 2)

    assert zero_shot(solution, labels, ALL)[0][:, 0].tolist() == [1, 1, 1]


def test_a_class_without_a_usable_prompt_and_a_bad_picture_are_misses() -> None:
    labels = labelled([[1, 0], [np.nan, 1], [0, 1]], [[1, 0], [0, 0]], [0, 0, 1], 2)

    (hits,) = zero_shot(between_rows(torch.eye(2)), labels, ALL)

    assert hits[:, 0].tolist() == [1, 0, 0]


def test_pictures_to_choose_by_and_to_report_on_share_none() -> None:
    labels = labelled([[1, 0]] * 5, [[1, 0], [0, 1]], [0, 0, 1, 1, 0], 2)

    choose, report = zero_shot_parts(labels)

    assert sorted([*choose, *report]) == [0, 1, 2, 3, 4]
    assert {int(labels.labels[k]) for k in choose} == {int(labels.labels[k]) for k in report} == {0, 1}


@pytest.mark.parametrize("kind", ["both", "twin", "text"])
def test_zero_shot_costs_what_the_counter_sees(kind: str) -> None:
    grid, part = plant(30), np.arange(0, 30, 2)
    labels = LabelGrid(
        name="", images=grid.images, texts=grid.texts, labels=np.arange(30) % 10, n_classes=10
    )  # 30 pictures; 10 classes of 3 prompts
    solution = solutions(grid)[kind]

    with FlopCounterMode(display=False) as counter:
        zero_shot(solution, labels, part)

    assert zero_shot_flops(solution, labels, part) == counter.get_total_flops() > 0


def test_the_short_way_at_1_gives_the_numbers_of_the_long_one() -> None:
    grid = plant(40, items=3, n_captions=2)
    for solution in solutions(plant(40, n_captions=2)).values():
        for short, long in zip(retrieval(solution, grid, ks=(1,)), retrieval(solution, grid), strict=True):
            np.testing.assert_array_equal(short.t2i[:, 0], long.t2i[:, 0])
            np.testing.assert_array_equal(short.i2t[:, 0], long.i2t[:, 0])


def test_a_large_grid_is_watched_by_some_of_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(i, j) for i in range(300) for j in range(30)]

    some = watched(pairs)

    assert len(set(some)) == 512
    assert {i for i, _ in some} == set(range(300))
    assert {j for _, j in some} == set(range(30))
    assert watched(pairs[:512]) == pairs[:512]
    grid = plant(40, n_captions=2)
    solution = solutions(grid)["both"]
    every = watch_flops(solution, grid)
    monkeypatch.setattr(scoring, "WATCHED_PAIRS", 2)
    assert watch_flops(solution, grid) < every / 2
