"""The chosen pair is made as good as it gets, by itself, and the connector that validates best is the one exported."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted import plant, recalls, similarities
from rich.text import Text
from small_zoo import small_config, small_search, write_world

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid, setup_flops, setup_shapes
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.grid import PairIndex
from hyperalign.align.polish import POLISH, alone, of_their_own, solve_polished
from hyperalign.align.residual import RESIDUAL, solve_residual
from hyperalign.embed.zoo import Limits
from hyperalign.kept import best_row, read_notes
from hyperalign.packing import restrict
from hyperalign.plan import plan
from hyperalign.relimit import open_run
from hyperalign.run import Run, load_run
from hyperalign.show.page import render_page
from hyperalign.show.table import render_order
from hyperalign.show.view import draw_board
from hyperalign.solve import Solved, Workbench, polish

NARROW = CanonicalConfig(rank=2)
BRIEF = replace(POLISH, batch_size=32)
PLACE = ("position", "rank", "p_best")  # of a pair among all


@pytest.mark.parametrize("pair", [(1, 1), (2, 0)])
def test_a_polished_pair_is_better_than_narrow_coordinates_for_all_let_it_be(pair: PairIndex) -> None:
    grid, test = plant(200), plant(100, items=1)

    polished = solve_polished(grid, [pair], NARROW, BRIEF)

    shared = restrict(solve_closed_form(build_canonical_grid(grid, NARROW)), [pair])
    assert polished.pairs == [pair]
    assert recalls(polished, test)[pair] > recalls(shared, test)[pair] + 10


def test_a_pair_is_polished_as_if_no_other_encoder_were_there() -> None:
    grid, test, pair = plant(80), plant(30, items=1), (2, 1)
    part, own = alone(grid, [pair])

    among = solve_polished(grid, [pair], NARROW, BRIEF)
    by_itself = solve_polished(part, own, NARROW, BRIEF)

    assert own == [(0, 0)]
    found, expected = similarities(among, test)[pair], similarities(by_itself, alone(test, [pair])[0])[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [side is None for side in (*among.images, *among.texts)] == [True, True, False, True, False]


def test_pairs_that_share_an_encoder_are_polished_in_the_order_given() -> None:
    polished = solve_polished(plant(80), [(2, 1), (0, 1)], NARROW, BRIEF)

    assert polished.pairs == [(2, 1), (0, 1)]
    assert [weight.shape[1] for weight in polished.weights] == [4, 4]
    assert len(polished.fits) == 2


@pytest.mark.parametrize(("n_images", "dims"), [(3, (12,)), (40, (1,))])
def test_few_pictures_and_a_single_number_are_polished_too(n_images: int, dims: tuple[int, ...]) -> None:
    polished = solve_polished(plant(n_images, image_dims=dims, text_dims=(5,)), [(0, 0)], CanonicalConfig(), BRIEF)

    assert all(bool(weight.isfinite().all()) for weight in polished.weights)


def test_coordinates_of_their_own_are_twice_as_many_of_all_features() -> None:
    own = of_their_own(CanonicalConfig(rank=7, max_features=9))

    assert (own.rank, own.max_features) == (14, 0)
    assert own.image_ridge == CanonicalConfig().image_ridge


@pytest.mark.parametrize("max_features", [0, 12])
def test_whitenings_of_all_features_are_not_found_again(max_features: int) -> None:
    config = CanonicalConfig(rank=2, max_features=max_features)
    grid, pairs = plant(80), [(2, 1), (0, 1)]
    kept = solve_residual(grid, build_canonical_grid(grid, config), replace(RESIDUAL, batch_size=32)).kept
    assert kept is not None
    whole = [
        one.whitening.width <= (max_features or one.whitening.width)
        for one in (kept.images[0], kept.images[2], kept.texts[1])
    ]

    anew = solve_polished(grid, pairs, config, BRIEF)
    found = solve_polished(grid, pairs, config, BRIEF, kept=kept)

    for one, other in zip(anew.weights, found.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    part, _ = alone(grid, pairs)
    known = [True if is_whole else None for is_whole in whole]
    assert found.setup_flops == setup_flops(setup_shapes(part, of_their_own(config)), known)
    assert (found.setup_flops < anew.setup_flops) == any(whole)
    assert any(whole)
    assert all(whole) == (max_features == 0)


# in a search


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("polish") / "world")


@pytest.fixture(scope="module")
def polished(world: Path) -> Run:
    return load_run(small_search(world, config=small_config(world, polish=2), out="polished"))


def rows(run: Run, method: str) -> pd.DataFrame:
    return run.leaderboard[run.leaderboard["method"] == method].sort_values("position", kind="stable")


def names(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["image_encoder"], table["text_encoder"], strict=True))


def named(row: dict[Hashable, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def test_the_pairs_that_validate_best_are_polished_and_the_answer_says_so(polished: Run) -> None:
    own = rows(polished, "hypernet").sort_values("validation_score", ascending=False, kind="stable")

    mine = rows(polished, "polished").sort_values("validation_score")
    image, text = names(mine)[-1]
    (sentence,) = polished.result["answer"][1:]
    assert sorted(names(mine)) == sorted(names(own)[:2])
    assert sentence.startswith("Polished, 2 pairs by themselves; ")
    assert f"{image}+{text} validates best: {mine['score'].iloc[-1]:.1f}" in sentence
    used = "The polished connector validates better" in sentence
    assert (f", the best of them with probability {mine['p_best'].iloc[-1]:.2f}; hypernet gave " in sentence) == used
    assert mine["p_best"].sum() == pytest.approx(1), "chances among the polished"


def test_the_winner_is_chosen_by_what_polished_pairs_score_on_validation(
    world: Path, polished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = names(rows(polished, "hypernet"))[:2]

    def turned(pairs: Sequence[PairIndex], bench: Workbench, after: Solved) -> Solved:
        made = polish(pairs, bench, after)
        order = [after.validation[after.solution.pairs.index(pair)] for pair in made.solution.pairs]
        return replace(made, validation=200.0 - np.array(order))  # who was second is the first now

    monkeypatch.setattr("hyperalign.pipeline.polish", turned)
    config = small_config(world, polish=2, methods=("ape", "hypernet"))
    run = load_run(small_search(world, config=config, out=str(tmp_path)))

    assert names(rows(run, "hypernet"))[:2] == [second, first]
    assert run.result["answer"][0].startswith(f"{'+'.join(second)} scores ")
    assert f"; {'+'.join(second)} validates best: " in run.result["answer"][1]
    assert rows(run, "hypernet")["position"].tolist() == list(range(1, len(rows(run, "hypernet")) + 1))
    truth = rows(run, "ape").groupby(["image_encoder", "text_encoder"])["score"].mean()
    (agreed,) = [one for one in run.result["agreement"] if one["order"].startswith("hypernet")]
    assert agreed["regret_at_1"] == pytest.approx(truth.max() - truth[second], abs=1e-3)
    assert draw_board(run).chosen == "validation, the first 2 pairs by the better of their connectors"
    opened = open_run(run).under(Limits()).table
    assert names(opened)[:2] == [second, first]


def test_polishing_is_no_part_of_what_the_search_cost(world: Path, polished: Run) -> None:
    plain = load_run(small_search(world, config=small_config(world, polish=0), out="plain"))

    booked = polished.ledger[polished.ledger["stage"] == "polishing"]
    assert len(booked) == 1
    assert rows(plain, "polished").empty
    assert polished.result["totals"]["search_flops"] == plain.result["totals"]["search_flops"]
    assert polished.result["totals"]["all_flops"] > plain.result["totals"]["all_flops"] + booked["flops"].item()
    pd.testing.assert_frame_equal(
        rows(polished, "hypernet").drop(columns="latency_ms").reset_index(drop=True),
        rows(plain, "hypernet").drop(columns="latency_ms").reset_index(drop=True),
    )


def test_polishing_is_planned_to_the_unit_where_every_pair_is_polished(world: Path, tmp_path: Path) -> None:
    config = small_config(world, polish=99)

    told = plan(config, cache_dir=tmp_path, progress=lambda stage, done, total: None)
    run = load_run(small_search(world, config=config, out=str(tmp_path / "runs")))

    (step,) = (step for step in told.steps if step.stage == "polishing")
    assert step.flops == run.ledger.set_index("stage").loc["polishing", "flops"]
    assert run.result["totals"]["all_flops"] == told.all_flops


@pytest.mark.parametrize(("gain", "method"), [(1.0, "polished"), (-1.0, "hypernet")])
def test_the_connector_that_validates_best_is_taken(polished: Run, gain: float, method: str) -> None:
    table, mine = polished.leaderboard.copy(), rows(polished, "polished").iloc[0]
    pair = table["image_encoder"].eq(mine["image_encoder"]) & table["text_encoder"].eq(mine["text_encoder"])
    (asked,) = table[pair & table["method"].eq("hypernet")].to_dict("records")
    table.loc[pair & table["method"].eq("polished"), "validation_score"] = asked["validation_score"] + gain

    chosen = best_row(replace(polished, leaderboard=table), named(asked), read_notes(polished))

    assert chosen["method"] == method
    assert {fact: chosen[fact] for fact in PLACE} == {fact: asked[fact] for fact in PLACE}


@pytest.mark.parametrize(("gain", "shown"), [(1.0, True), (-1.0, False)])
def test_the_page_shows_the_score_of_the_connector_that_is_used(polished: Run, gain: float, shown: bool) -> None:
    table = polished.leaderboard.copy()
    (first,) = rows(polished, "hypernet").query("position == 1").to_dict("records")
    pair = table["image_encoder"].eq(first["image_encoder"]) & table["text_encoder"].eq(first["text_encoder"])
    mine = pair & table["method"].eq("polished")
    table.loc[mine, "validation_score"] = first["validation_score"] + gain

    run = replace(polished, leaderboard=table)

    own = draw_board(run).used
    assert (own is not None) == shown
    if own is not None:
        assert own.score == table.loc[mine, "score"].item()
    assert ("the one used" in render_page(run)) == shown


@pytest.mark.parametrize("gain", [1.0, -1.0])
def test_the_terminal_says_first_which_connector_is_written(polished: Run, gain: float) -> None:
    table = polished.leaderboard.copy()
    (first,) = rows(polished, "hypernet").query("position == 1").to_dict("records")
    pair = table["image_encoder"].eq(first["image_encoder"]) & table["text_encoder"].eq(first["text_encoder"])
    mine = pair & table["method"].eq("polished")
    table.loc[mine, "validation_score"] = first["validation_score"] + gain
    score = table.loc[mine, "score"].item()

    order = render_order(replace(polished, leaderboard=table), width=80)
    sentences = [part.plain for part in order.renderables if isinstance(part, Text) and part.style == "bold"]

    taken = f"Take {first['image_encoder']}+{first['text_encoder']} with its polished connector: {score:.1f} (95 %"
    assert sentences[0].startswith(taken) == (gain > 0)
    assert sentences[gain > 0] == polished.result["answer"][0]


def test_a_pair_that_was_not_polished_is_that_of_the_method_that_answers(polished: Run) -> None:
    last = named(rows(polished, "hypernet").iloc[-1].to_dict())

    assert best_row(polished, last, read_notes(polished)) == last


def test_what_was_polished_is_not_polished_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(world, polish=1)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hyperalign.pipeline.score_on_test", cut)
        with pytest.raises(KeyboardInterrupt):
            small_search(world, config=config, out=str(tmp_path))
    monkeypatch.setattr("hyperalign.solve.solve_polished", cut)

    (found,) = tmp_path.iterdir()
    run = load_run(small_search(world, config=config, out=str(tmp_path), resume=found))

    assert len(rows(run, "polished")) == 1
    assert np.isfinite(rows(run, "polished")["validation_score"]).all()
