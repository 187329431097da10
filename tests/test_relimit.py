"""Another limit on a finished run: the same numbers as if only those let through had taken part."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small_zoo import IMAGES, small_config, small_search, write_labels, write_world

from hyperalign.embed.zoo import Limits, Range
from hyperalign.rank import resampling
from hyperalign.rank.best import draw_scores
from hyperalign.rank.resampling import (
    Contributions,
    bootstrap,
    find_linear,
    find_scores,
    per_picture,
    select,
)
from hyperalign.rank.standings import Standings, pareto
from hyperalign.relimit import OpenRun, open_run
from hyperalign.run import load_run
from hyperalign.show.table import render_order


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, captions, rows and a label set."""
    folder = write_world(tmp_path_factory.mktemp("relimit") / "world")
    write_labels(folder)
    return folder


@pytest.fixture(scope="module")
def opened(world: Path) -> OpenRun:
    """A small finished run with a verified pair, whose row must not take part."""
    return open_run(load_run(small_search(world, config=small_config(world, verify=1), out="plain")))


def drawn(n_pairs: int, n_images: int = 60, seed: int = 0) -> Contributions:
    """Pairs of all qualities, some of them equal."""
    rng = np.random.default_rng(seed)
    hits = (rng.random((n_pairs, n_images)) < np.linspace(0.2, 0.7, n_pairs)[:, None]).astype(np.float32)
    hits[n_pairs // 2] = hits[n_pairs // 3]
    return per_picture(hits)


@pytest.mark.parametrize("exact", [500, 5])
def test_some_pairs_are_ordered_as_if_the_others_had_never_been(exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_EXACT_PAIRS", exact)
    contributions = drawn(21)
    standings = Standings(contributions, seed=3)
    for seed in range(8):
        kept = np.random.default_rng(seed).random(21) < 0.6

        rank, p_best = standings.among(kept)

        alone = bootstrap(select(contributions, np.flatnonzero(kept).tolist()), seed=3)
        np.testing.assert_array_equal(rank, alone.rank)
        assert p_best.sum() == pytest.approx(1)
        np.testing.assert_allclose(
            p_best, alone.p_best, atol=0.15
        )  # who is left out still says how far apart pairs are


def test_all_pairs_have_the_chances_of_the_run_and_some_share_those_of_the_others() -> None:
    contributions = drawn(21)
    standings = Standings(contributions, seed=3)
    kept = np.arange(21) < 15
    draws = torch.cat([*draw_scores(find_scores(contributions), find_linear(contributions), seed=3)])

    _, p_best = standings.among(kept)

    np.testing.assert_allclose(standings.among(np.ones(21, np.bool_))[1], bootstrap(contributions, seed=3).p_best)
    counted = torch.bincount(draws[:, :15].argmax(1), minlength=15).numpy() / len(draws)
    np.testing.assert_allclose(p_best, counted, atol=2 / len(draws))


def test_an_order_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        Standings(drawn(3)).among(np.zeros(3, np.bool_))


def test_the_front_is_who_nobody_beats_at_their_size() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        score, size = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)

        kept = pareto(score, size)

        for p in range(12):
            better = (score > score[p]) & (size <= size[p]) | (score >= score[p]) & (size < size[p])
            same = (score == score[p]) & (size == size[p])
            assert kept[p] == (not better.any() and np.flatnonzero(same)[0] == p)


def test_no_limit_gives_the_order_of_the_run(opened: OpenRun) -> None:
    found = opened.under(Limits())

    own = opened.run.leaderboard[opened.run.leaderboard["method"] == "hypernet"].sort_values("position")
    assert len(found.table) == 6
    for name in ("image_encoder", "text_encoder", "position", "rank", "score"):
        assert found.table[name].tolist() == own[name].tolist()
    np.testing.assert_allclose(found.table["p_best"], own["p_best"], atol=1e-9)
    assert found.answer == opened.run.result["answer"][0]


def test_a_budget_leaves_out_the_larger_encoders_and_counts_again(opened: OpenRun) -> None:
    found = opened.under(Limits(image_params=Range(high=2_000_000)))

    assert set(found.table["image_encoder"]) == {name for name, (*_, n_params) in IMAGES.items() if n_params <= 2e6}
    assert found.counts == "within the limits: 4 of the 6 pairs of this run"
    assert found.table["position"].tolist() == [1, 2, 3, 4]
    assert found.table["p_best"].sum() == pytest.approx(1)
    assert found.table["rank"].min() == 1
    assert found.pareto[0]
    assert found.answer.startswith(f"{found.table['image_encoder'][0]}+{found.table['text_encoder'][0]} scores")


def test_a_limit_on_both_encoders_together_counts_both(opened: OpenRun) -> None:
    found = opened.under(Limits(pair_params=Range(high=1_400_000)))

    assert sorted(zip(found.table["image_encoder"], found.table["text_encoder"], strict=True)) == [
        ("dull", "phrases"),
        ("dull", "words"),
    ]


def test_a_limit_that_nothing_meets_names_the_nearest(opened: OpenRun) -> None:
    with pytest.raises(ValueError, match="the smallest is dull with 1,000,000"):
        opened.under(Limits(image_params=Range(high=10)))
    with pytest.raises(ValueError, match=r"the smallest is dull\+phrases with 1,100,000"):
        opened.under(Limits(pair_params=Range(high=1_000_500)))


def test_limits_that_pairs_meet_one_by_one_and_none_of_the_run_together_are_refused(opened: OpenRun) -> None:
    table = opened.table[opened.table["image_encoder"] != "dull"]
    places = opened.places[(opened.table["image_encoder"] != "dull").to_numpy()]

    with pytest.raises(ValueError, match="no pair of this run is within these limits; search anew for others"):
        replace(opened, table=table, places=places).under(Limits(image_params=Range(high=1_000_000)))


def test_a_zero_shot_run_is_ordered_by_its_own_hits(world: Path) -> None:
    config = small_config(world, task="zero-shot", labels=str(world / "shapes"))
    opened = open_run(load_run(small_search(world, config=config, out="zero-shot")))

    found = opened.under(Limits())

    own = opened.run.leaderboard[opened.run.leaderboard["method"] == "hypernet"].sort_values("position")
    assert found.table["rank"].tolist() == own["rank"].tolist()
    np.testing.assert_allclose(found.table["p_best"], own["p_best"], atol=1e-9)


def test_what_is_shown_are_the_pairs_let_through(opened: OpenRun) -> None:
    console = Console(file=io.StringIO(), width=150)

    console.print(render_order(opened.as_run(Limits(image_params=Range(high=2_000_000))), width=150))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()

    assert "within the limits: 4 of the 6 pairs of this run" in text
    assert "wide + words" in text
    assert "sharp" not in text
    assert "The best for its size" in text


def test_who_is_better_than_whom_is_unpacked_pair_by_pair() -> None:
    standings = Standings(drawn(21), seed=3)

    better = standings.better()

    assert better.shape == (21, 21)
    assert not better.diagonal().any()
    assert not (better & better.T).any()
    np.testing.assert_array_equal(1 + better.sum(1), standings.among(np.ones(21, np.bool_))[0])
    assert better[0, 20]


def test_draws_are_thinned_evenly_to_as_many_as_are_asked_for() -> None:
    standings = Standings(drawn(5), seed=3)
    all_of_them = standings.draws(10**6)

    assert all_of_them.shape == (5, 2_000)
    np.testing.assert_array_equal(standings.draws(2), all_of_them[:, [0, 1999]])
    np.testing.assert_array_equal(standings.draws(4), all_of_them[:, [0, 666, 1333, 1999]])


def test_a_limit_on_both_together_lets_in_a_pair_that_meets_it_to_the_parameter(opened: OpenRun) -> None:
    sizes = opened.table["n_params_image"] + opened.table["n_params_text"]
    smallest = int(sizes.min())

    assert len(opened.under(Limits(pair_params=Range(high=smallest))).table) == 1
    least = opened.under(Limits(pair_params=Range(low=3_100_000))).table
    assert sorted(least["image_encoder"] + "+" + least["text_encoder"]) == ["sharp+phrases", "sharp+words"]


def test_a_run_without_a_seed_is_compared_as_seed_0(opened: OpenRun) -> None:
    configuration = {name: value for name, value in opened.run.result["configuration"].items() if name != "seed"}
    run = replace(opened.run, result={**opened.run.result, "configuration": configuration})

    np.testing.assert_array_equal(open_run(run).standings.draws(50), opened.standings.draws(50))
