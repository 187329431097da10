"""Measurements that train: a trial is done once and is what a search books, and each sheet says what its rows say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_zoo import IMAGES, TEXTS, small_config, small_search, write_world

from hyperalign.bench import collapse, coordinates, curve, dear, finalists, poster, sweep, trials
from hyperalign.bench.costs import foresee
from hyperalign.bench.measures import take
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.sweep import BEST, CHEAPEST, Point, Space
from hyperalign.bench.trials import Trials, lengthen, part_of, setting_of
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.record import to_json
from hyperalign.run import load_run
from hyperalign.solve import Method, Solved, Workbench, solve

METHODS = [
    Method("closed-form", "both", 0),
    Method("closed-form", "text", 0),
    Method("hypernet", "both", 1),
    Method("hypernet-sliced", "text", 0),
    Method("ape", "text", 1),
    Method("ape", "both", 0),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, captions and rows."""
    return write_world(tmp_path_factory.mktemp("bench") / "world")


def ask(world: Path, out: str, **changes: Any) -> Asked:
    """A measurement of the small world with two seeds."""
    config = small_config(world, **changes)
    cache_dir = world / "cache"
    return Asked(
        config=config, cache_dir=cache_dir, out=world / out, n_seeds=2, progress=lambda *_: None, say=lambda _: None
    )


@pytest.fixture(scope="module")
def opened(world: Path) -> Opened:
    """Its rows."""
    return open_bench(ask(world, "out"))


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the methods that were trained since."""
    done: list[str] = []

    def counted(method: Method, bench: Workbench) -> Solved:
        done.append(method.label)
        return solve(method, bench)

    monkeypatch.setattr(trials, "solve", counted)
    return done


def test_a_trial_is_what_a_search_books_and_scores(world: Path) -> None:
    asked = ask(world, "as-search")
    run = load_run(small_search(world, config=asked.config, out="searched"))

    trial = Trials("x", asked).take(open_bench(asked), Method("hypernet", "both", 0), asked.config.recipe())

    table = run.leaderboard[run.leaderboard["method"] == "hypernet"]
    assert trial.search_flops == run.result["totals"]["search_flops"]
    assert trial.test.mean() == pytest.approx(table["score"].mean(), abs=1e-4)
    assert trial.validation.mean() == pytest.approx(table["validation_score"].mean(), abs=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.stage)
@pytest.mark.parametrize("images", [[0, 1, 2], [1]], ids=["whole", "part"])
def test_what_is_foreseen_is_what_a_trial_books(world: Path, opened: Opened, method: Method, images: list[int]) -> None:
    asked, grid = ask(world, "out"), part_of(opened, images)

    trial = Trials("x", asked).take(grid, method, asked.config.recipe())

    cost = foresee(grid, method, asked.config.recipe())
    assert trial.search_flops == cost.search_flops
    assert trial.n_steps == cost.n_steps


def test_a_part_of_the_grid_has_the_rows_and_pairs_of_its_encoders(world: Path, opened: Opened) -> None:
    asked, method = ask(world, "out"), Method("ape", "text", 1)
    taken = Trials("x", asked)

    whole = taken.take(opened, method, asked.config.recipe())
    part = taken.take(part_of(opened, [1]), method, asked.config.recipe())

    at = [n for n, (i, _) in enumerate(opened.candidates.pair_indices()) if i == 1]
    np.testing.assert_allclose(part.test, whole.test[at])  # pairs of the baseline are independent
    np.testing.assert_allclose(part.validation, whole.validation[at])


def test_a_part_of_the_grid_keeps_what_is_not_usable(opened: Opened) -> None:
    ok = opened.prepared.val.image_ok.copy()
    ok[2, 5] = False
    spoiled = replace(opened.prepared, val=replace(opened.prepared.val, image_ok=ok))

    part = part_of(opened._replace(prepared=spoiled), [0, 2])

    np.testing.assert_array_equal(part.prepared.val.image_ok, ok[[0, 2]])


def test_a_finished_trial_is_taken_from_its_file(world: Path, opened: Opened, count: list[str]) -> None:
    asked, method = ask(world, "again"), Method("hypernet", "both", 0)
    recipe = asked.config.recipe()
    first = Trials("one", asked).take(opened, method, recipe)

    taken = Trials("two", asked)  # another measurement finds it too
    second = taken.take(opened, method, recipe)

    assert count == [method.label]
    assert second.hits is None
    np.testing.assert_array_equal(first.test, second.test)
    assert (first.flops, first.seconds) == (second.flops, second.seconds)
    assert "done now: 0," in taken.notes("")[1]
    assert "finished before: 1;" in taken.notes("")[1]


def test_a_trial_whose_hits_are_missing_is_done_again(world: Path, opened: Opened, count: list[str]) -> None:
    asked, method = ask(world, "hits"), Method("closed-form", "both", 0)
    taken, recipe = Trials("x", asked), asked.config.recipe()
    taken.take(opened, method, recipe)

    with_hits = taken.take(opened, method, recipe, hits=True)
    again = Trials("x", asked).take(opened, method, recipe, hits=True)

    assert len(count) == 2
    assert again.hits is not None
    hits, n_trials = again.hits
    np.testing.assert_allclose(100 * (hits.sum(1) / n_trials.sum(1)[:, None]).mean(0), with_hits.test, rtol=1e-5)


@pytest.mark.parametrize("what", ["seed", "recipe", "encoders", "code"])
def test_a_trial_of_something_else_is_not_taken(
    world: Path, opened: Opened, count: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    asked, method = ask(world, f"else-{what}"), Method("ape", "both", 0)
    recipe = asked.config.recipe()
    Trials("x", asked).take(opened, method, recipe)

    if what == "seed":
        method = method._replace(seed=1)
    if what == "recipe":
        recipe = replace(recipe, ape_both=replace(recipe.ape_both, learning_rate=3e-3))
    if what == "encoders":
        opened = part_of(opened, [0, 1])
    if what == "code":
        monkeypatch.setattr(trials, "_code_digest", lambda: "changed")
    Trials("x", asked).take(opened, method, recipe)

    assert len(count) == 2


def test_other_rows_of_the_same_shape_are_another_grid(tmp_path: Path, opened: Opened, count: list[str]) -> None:
    other = write_world(tmp_path / "other", seed=1)
    asked, method = ask(other, "out"), Method("closed-form", "both", 0)
    taken = Trials("x", asked)
    taken.take(opened, method, asked.config.recipe())

    taken.take(open_bench(asked), method, asked.config.recipe())

    assert len(count) == 2


def test_a_line_that_a_crash_cut_off_is_left_out(world: Path, opened: Opened, count: list[str]) -> None:
    asked = ask(world, "crash")
    recipe, methods = asked.config.recipe(), [Method("ape", "both", seed) for seed in (0, 1)]
    for method in methods:
        Trials("x", asked).take(opened, method, recipe)
    path = asked.out / "bench-x.jsonl"
    path.write_text(path.read_text()[:-40])
    count.clear()

    for method in methods:
        Trials("x", asked).take(opened, method, recipe)
    for method in methods:
        Trials("x", asked).take(opened, method, recipe)

    assert count == [methods[1].label]


def test_a_length_is_scaled_in_what_it_is_given_in(world: Path) -> None:
    recipe = small_config(world).recipe()

    assert lengthen(recipe.residual, 0.25).n_steps == 2  # of ten
    assert lengthen(recipe.ape, 0.25).n_epochs == 1.5  # of six


def test_a_setting_names_what_differs(world: Path) -> None:
    recipe = small_config(world).recipe()

    words = [setting_of(method, recipe) for method in METHODS]

    assert words[0] == "no training"
    assert words[2] == "batch 16, 10 steps x 3 pairs, rate 2.7"
    assert words[4] == "batch 16, 6 epochs, rate 0.05"
    assert words[5] == "batch 16, 2 epochs, rate 0.002"


SPACE = Space((128, 256, 512, 1024), (1.0, 2.0, 3.0, 5.0, 10.0, 20.0), (1e-3, 2e-3, 3e-3, 5e-3))


def hill(top: Point) -> Any:
    """A score with one top, falling by the number of steps away from it."""
    axes = (SPACE.batches, SPACE.epochs, SPACE.rates)
    return lambda point: -sum(abs(axis.index(a) - axis.index(b)) for axis, a, b in zip(axes, point, top, strict=True))


@pytest.mark.parametrize("top", [Point(128, 20.0, 1e-3), Point(1024, 1.0, 5e-3), Point(512, 5.0, 2e-3)])
def test_climbing_ends_at_the_top(top: Point) -> None:
    assert sweep.climb(SPACE, hill(top)) == top


def test_descending_ends_at_the_cheapest_that_is_good_enough() -> None:
    def cost(point: Point) -> float:
        return point.n_epochs * (300 + point.batch_size)

    def enough(point: Point) -> bool:
        return point.n_epochs >= 3 and point.batch_size >= 256 and (point.n_epochs > 3 or point.learning_rate == 5e-3)

    found = sweep.descend(SPACE, Point(1024, 10.0, 3e-3), cost=cost, enough=enough)

    good = [p for b in SPACE.batches for e in SPACE.epochs for r in SPACE.rates if enough(p := Point(b, e, r))]
    assert cost(found) == min(cost(point) for point in good)
    assert found == Point(256, 3.0, 5e-3)


@pytest.mark.parametrize("start", SPACE.epochs)
def test_the_shortest_that_is_good_enough_is_found_from_anywhere(start: float) -> None:
    point = Point(512, start, 1e-3)

    assert sweep.settle(SPACE, point, enough=lambda p: p.n_epochs >= 3) == point._replace(n_epochs=3.0)
    assert sweep.settle(SPACE, point, enough=lambda p: False) is None


def test_the_cheapest_setting_is_the_cheapest_of_those_that_are_good_enough(world: Path, opened: Opened) -> None:
    asked = ask(world, "out")
    sweeping = sweep._Sweep("text", asked, opened, part_of(opened, [0]), Trials("x", asked))
    tried = ((16, 4.0, 7.0), (16, 2.0, 6.95), (8, 2.0, 6.96), (16, 8.0, 7.1))
    scores = {Point(batch, epochs, 1e-3): score for batch, epochs, score in tried}
    own = Trials("x", asked).take(opened, Method("ape", "text", 1), asked.config.recipe())
    for point, score in scores.items():
        sweeping.tried[3, point] = replace(own, validation=np.array([score]))

    assert sweeping.cheapest(opened, 7.05) == Point(16, 8.0, 1e-3)
    assert sweeping.cheapest(opened, 6.98) == Point(16, 4.0, 1e-3)
    assert sweeping.cheapest(opened, 6.90) == Point(8, 2.0, 1e-3)  # not the one of the lowest score


@pytest.fixture(scope="module")
def swept(world: Path) -> Asked:
    """A sweep with its record."""
    asked = ask(world, "measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "BATCHES", (8, 16))
        patch.setattr(sweep, "EPOCHS", (2.0, 4.0))
        patch.setattr(sweep, "RATES", (0.02, 0.05))
        patch.setattr(sweep, "EPOCHS_BOTH", (0.5, 1.0, 2.0))
        patch.setattr(sweep, "RATES_BOTH", (1e-3,))
        record = take("sweep", asked)
    (asked.out / "bench-sweep.json").write_text(to_json(record))
    return asked


def sheets_of(asked: Asked, name: str) -> list[Sheet]:
    """The sheets of a measurement that was kept."""
    return [Sheet(**sheet) for sheet in json.loads((asked.out / f"bench-{name}.json").read_text())["sheets"]]


def test_a_sweep_marks_the_best_and_the_cheapest_by_validation(swept: Asked) -> None:
    sheets = sheets_of(swept, "sweep")

    assert [sheet.rows[0]["sides"] for sheet in sheets] == ["text", "text", "both", "both"]
    assert [sheet.rows[0]["n_image_encoders"] for sheet in sheets] == [1, 3, 1, 3]
    for sheet in sheets:
        marked = {mark: row for row in sheet.rows for mark in row["mark"].split(", ") if mark}
        top = max(row["validation_score"] for row in sheet.rows)
        assert marked[BEST]["validation_score"] == top
        near = [row["grid_flops"] for row in sheet.rows if row["validation_score"] >= top - 0.1]
        assert marked[CHEAPEST]["grid_flops"] == min(near)
    for row in sheets[1].rows:
        assert row["grid_flops"] == row["tried_flops"]  # the whole grid as foreseen and as booked


def test_a_sweep_without_a_better_neighbour_has_tried_them_all(swept: Asked) -> None:
    rows = sheets_of(swept, "sweep")[0].rows
    points = {(row["batch_size"], row["n_epochs"], row["learning_rate"]) for row in rows}
    best = next(row for row in rows if BEST in row["mark"])

    space = Space((8, 16), (2.0, 4.0), (0.02, 0.05))

    assert set(space.near(Point(*(best[name] for name in Point._fields)))) <= points


def test_what_a_sweep_chose_is_read_back_for_the_same_data_alone(world: Path, swept: Asked) -> None:
    best = next(row for row in sheets_of(swept, "sweep")[1].rows if BEST in row["mark"])

    found = sweep.swept(swept, "text")[BEST]

    assert (found.batch_size, found.n_epochs, found.learning_rate) == tuple(best[name] for name in Point._fields)
    assert sweep.swept(replace(swept, config=replace(swept.config, data="scenes")), "text") == {}
    assert sweep.swept(replace(swept, out=world / "nowhere"), "text") == {}


@pytest.fixture(scope="module")
def curved(swept: Asked) -> list[Sheet]:
    """A curve after a sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "HYPER_FACTORS", (0.5,))
        patch.setattr(curve, "TEXT_FACTORS", (0.5,))
        patch.setattr(curve, "BOTH_FACTORS", (0.5,))
        patch.setattr(curve, "SLICED_STEPS", (2,))
        return [Sheet(**sheet) for sheet in take("curve", swept)["sheets"]]


def test_a_curve_has_every_method_under_every_seed(swept: Asked, curved: list[Sheet]) -> None:
    rows = curved[0].rows
    names = {(row["method"], row["sides"]) for row in rows}
    chosen = sweep.swept(swept, "text")[BEST]

    assert names == {(method.name, method.sides) for method in METHODS}
    for name in names:
        own = [(row["setting"], row["seed"]) for row in rows if (row["method"], row["sides"]) == name]
        seeds = (0,) if name[0] == "closed-form" else (0, 1)
        assert sorted(own) == sorted((setting, seed) for setting in {s for s, _ in own} for seed in seeds)
    assert any(f"batch {chosen.batch_size}, {chosen.n_epochs:g} epochs" in row["setting"] for row in rows)


def test_the_dear_end_costs_two_epochs_of_pair_by_pair_training(opened: Opened, world: Path) -> None:
    recipe = small_config(world, train={"n_steps": 10, "batch_size": 4, "pairs_per_step": 1}).recipe()
    recipe = replace(recipe, ape_both=replace(recipe.ape_both, batch_size=60))

    n_steps = dear.dear_steps(opened, recipe)

    goal = foresee(opened, Method("ape", "both", 0), recipe).search_flops
    costs = [
        foresee(
            opened, Method("hypernet", "both", 0), replace(recipe, residual=replace(recipe.residual, n_steps=n))
        ).search_flops
        for n in (max(1, n_steps - 3), n_steps + 3)
    ]
    assert n_steps == 1 or costs[0] <= goal <= costs[1]


def test_the_claims_are_read_off_the_rows(curved: list[Sheet]) -> None:
    rows, costs, differences, orders = (sheet.rows for sheet in curved)

    def mean(method: str, setting: str, column: str) -> float:
        return float(np.mean([r[column] for r in rows if r["method"] == method and r["setting"] == setting]))

    own, base = "batch 16, 10 steps x 3 pairs, rate 2.7", "batch 16, 6 epochs, rate 0.05"
    gain = mean("hypernet", own, "test_score") - mean("ape", base, "test_score")
    assert differences[0]["score"] == pytest.approx(gain, abs=2e-3)
    assert differences[0]["low_score"] < gain < differences[0]["high_score"]
    assert differences[1]["score"] == pytest.approx(mean("hypernet", own, "regret_at_1_score"), abs=2e-3)
    dear = [r for r in rows if r["method"] == "hypernet" and " 1 steps" in r["setting"]]  # it costs more than that
    both = [r["test_score"] for r in rows if (r["sides"], r["setting"]) == ("both", "batch 16, 2 epochs, rate 0.002")]
    tops = [mean("hypernet", setting, "test_score") for setting in {r["setting"] for r in dear}]
    assert any(differences[2]["score"] == pytest.approx(top - np.mean(both), abs=2e-3) for top in tops)
    matched = mean("ape", base, "search_flops") / mean("hypernet", own, "search_flops")
    assert costs[0]["flops_ratio"] == pytest.approx(matched)
    assert costs[0]["wall_ratio"] == pytest.approx(costs[0]["baseline_seconds"] / costs[0]["search_seconds"])
    best = next(r for r in costs if "best mean validation" in r["baseline"])["validation_score"]
    text = {r["setting"] for r in rows if (r["method"], r["sides"]) == ("ape", "text")}
    assert best == pytest.approx(max(mean("ape", setting, "validation_score") for setting in text), abs=2e-3)
    for order in orders:
        assert order["difference"] == pytest.approx(order["spearman"] - order["ceiling"])


def test_the_mean_score_minus_itself_is_nothing(world: Path, opened: Opened) -> None:
    asked = ask(world, "itself")
    taken, recipe = Trials("x", asked), asked.config.recipe()
    own = [taken.take(opened, Method("ape", "text", seed), recipe, hits=True) for seed in (0, 1)]

    gain, regret = curve._differences(own, own, 0).rows

    assert (gain["score"], gain["low_score"], gain["high_score"]) == (0, 0, 0)
    assert regret["score"] >= 0


def test_a_clear_difference_has_an_interval_on_its_own_side_of_nothing(world: Path, opened: Opened) -> None:
    asked, method = ask(world, "itself"), Method("ape", "text", 0)
    taken, recipe = Trials("x", asked), asked.config.recipe()
    long = [taken.take(opened, method, recipe, hits=True)]
    brief = [taken.take(opened, method, replace(recipe, ape=lengthen(recipe.ape, 0.1)), hits=True)]

    gain = curve.gain("long minus brief", long, brief, seed=0)

    assert 5 < gain["low_score"] < gain["score"] < gain["high_score"]
    assert gain["score"] == pytest.approx(long[0].test.mean() - brief[0].test.mean(), abs=2e-3)


def test_a_collapse_counts_what_its_rows_say(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse, "RATES", (0.1, 1e5))
    monkeypatch.setattr(collapse, "SLICED_RATES", (1e-3, 0.3))
    monkeypatch.setattr(collapse, "BATCHES", (4, 16))
    monkeypatch.setattr(collapse, "SLICED_STEPS", 2)

    rows, verdicts = (sheet.rows for sheet in collapse.measure(ask(world, "collapse")))

    assert len(rows) == 2 * 3 * 4
    assert {row["grid"] for row in rows} == {"3 x 2", "1 x 2"}
    for verdict in verdicts:
        own = [row for row in rows if (row["method"], row["rollback"]) == (verdict["method"], verdict["rollback"])]
        assert verdict["n_trainings"] == len(own) == 8
        assert verdict["n_above_closed_form"] == sum(row["above_closed_form_score"] > 0 for row in own)
        assert verdict["worst_test_above_closed_form_score"] == min(row["test_above_closed_form_score"] for row in own)
    off, on, sliced = verdicts
    assert off["worst_test_above_closed_form_score"] < -20  # a rate of 2e5 throws the closed form away
    assert on["worst_test_above_closed_form_score"] > off["worst_test_above_closed_form_score"] + 10
    assert on["n_rolled_back"] > 0 == off["n_rolled_back"]
    assert off["holds"] == "no"
    assert sliced["n_above_closed_form"] == 0


@pytest.mark.parametrize(
    ("n_images", "sizes"),
    [
        (1, [1]),
        (3, [3]),
        (4, [3, 4]),
        (12, [3, 6, 9, 12]),
        (14, [12, 14]),
        (30, [12, 15, 18, 21, 24, 27, 30]),
        (44, [12, 15, 18, 21, 24, 27, 30]),
    ],
)
def test_zoos_grow_as_the_poster_has_them(n_images: int, sizes: list[int]) -> None:
    assert poster.growing(n_images) == sizes


def test_classes_of_scale_have_the_bounds_of_the_poster() -> None:
    facts = [(384, 1.0), (384, 29.9), (768, 30.0), (768, 120.0), (1024, 120.1)]
    specs = [
        EncoderSpec(
            name=f"encoder-{n}",
            modality="image",
            loader="rows",
            checkpoint="x.npy",
            folder=Path(),
            embed_dim=width,
            n_params=round(size * 1e6),
        )
        for n, (width, size) in enumerate(facts)
    ]

    assert poster.classes(specs) == {
        "width 384": [0, 1],
        "width 768": [2, 3],
        "width 1,024": [4],
        "below 30M": [0, 1],
        "30M to 120M": [2, 3],
        "above 120M": [4],
    }
    assert "above 120M" not in poster.classes(specs[:3])


def test_a_poster_has_the_best_pair_of_each_part(world: Path, opened: Opened) -> None:
    asked = ask(world, "poster")

    growth, scale = poster.measure(asked)

    assert {row["part"] for row in growth.rows} == {"3 image encoders"}
    assert {row["part"] for row in scale.rows} == {"width 12", "width 16", "width 24", "below 30M"}
    for row in (*growth.rows, *scale.rows):
        assert row["ape_score"] <= row["best_ape_score"]
        assert row["image_encoder"] in IMAGES
        assert row["text_encoder"] in TEXTS
    for part, name in (("width 12", "dull"), ("width 16", "sharp"), ("width 24", "wide")):
        assert {row["image_encoder"] for row in scale.rows if row["part"] == part} == {name}
    dull = next(row for row in scale.rows if row["part"] == "width 12" and row["method"].startswith("ape"))
    cost = foresee(part_of(opened, [1]), Method("ape", "text", 0), asked.config.recipe())
    assert dull["search_flops"] == cost.search_flops
    assert dull["flops_ratio"] == 1


def test_all_coordinates_get_the_cost_of_the_dear_end(
    world: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinates, "RANKS", (4, 8))
    monkeypatch.setattr(dear, "DEAR_EPOCHS", 8.0)  # a step of the hypernetwork is dear on so few rows
    asked = ask(world, "coordinates")
    goal = dear.dear_flops(opened, asked.config.recipe())

    found, differences = (sheet.rows for sheet in coordinates.measure(asked))

    rows, usual = pd.DataFrame(found), asked.config.recipe().canonical
    kinds = {(usual.rank, usual.max_features), (4, "all"), (8, "all")}
    assert set(zip(rows["rank"], rows["features"], strict=True)) == kinds
    assert rows.value_counts("method").to_dict() == {"closed-form": 3, "hypernet": 12, "ape": 6}
    for _, kind in rows.groupby(["rank", "features"]):
        closed = kind["method"] == "closed-form"
        assert kind[closed]["search_flops"].item() < kind[~closed]["search_flops"].min()
    assert rows["search_flops"].max() <= goal
    best, settings = {}, ["rank", "features", "setting"]
    for name in ("hypernet", "ape"):
        scores = rows[rows["method"] == name].groupby(settings)[["validation_score", "test_score"]].mean()
        best[name] = float(scores["test_score"].iloc[int(scores["validation_score"].argmax())])
    at_home = rows[(rows["method"] == "ape") & (rows["features"] == usual.max_features)]["test_score"].mean()
    gains = [row["score"] for row in differences]
    assert gains[:2] == pytest.approx([best["hypernet"] - one for one in (at_home, best["ape"])], abs=2e-3)
    assert len(differences) == 2 + len(kinds)
    assert all(row["low_score"] <= row["score"] <= row["high_score"] for row in differences)


def test_finalists_cost_more_and_are_chosen_by_the_better_of_their_connectors(
    world: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists, "FINALISTS", (0, 2, 99))

    rows, means = (sheet.rows for sheet in finalists.measure(ask(world, "finalists")))

    assert [row["polished"] for row in rows] == [0, 0, 2, 2]  # no more than there are pairs
    for without, chosen in zip(rows[:2], rows[2:], strict=True):
        assert without["polishing_flops"] == 0 < chosen["polishing_flops"]
        assert without["flops_ratio"] > chosen["flops_ratio"]
        assert without["taken_score"] == without["hypernet_score"]
        assert chosen["regret_at_1_score"] >= 0
    for mean in means:
        of = [row for row in rows if row["polished"] == mean["polished"]]
        assert mean["regret_at_1_score"] == pytest.approx(np.mean([row["regret_at_1_score"] for row in of]), abs=2e-3)
        assert mean["regret_low_score"] <= mean["regret_at_1_score"] <= mean["regret_high_score"]
        best = of[0]["ape_score"] + of[0]["regret_at_1_score"]
        gain = np.mean([row["taken_score"] for row in of]) - best
        assert mean["taken_minus_best_of_ape_score"] == pytest.approx(gain, abs=2e-3)
    asked = replace(ask(world, "searched"), config=replace(ask(world, "x").config, polish=2))
    run = load_run(small_search(world, config=asked.config, out="with-finalists"))
    booked = run.ledger[run.ledger["stage"] == "polishing"]
    assert rows[2]["polishing_flops"] == booked["flops"].sum()
    first = run.leaderboard[run.leaderboard["method"] == "hypernet"].sort_values("position").iloc[0]
    assert (rows[2]["image_encoder"], rows[2]["text_encoder"]) == (first["image_encoder"], first["text_encoder"])
