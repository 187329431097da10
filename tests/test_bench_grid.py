"""The synthetic grid: rows made alike however they are read, a truth that holds, and sheets that add up."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.bench import grid
from hyperalign.bench.devices import H100_PEAKS, SHARE, device_sheet
from hyperalign.bench.planted import Planted, PlantedRows, View, expected_recall, plant
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.forecast import forecast
from hyperalign.rank.agreement import agreement
from hyperalign.rank.metrics import hits_from_embeddings, recall
from hyperalign.record import to_json
from hyperalign.request import SearchConfig
from hyperalign.run import load_run, read_result
from hyperalign.scoring import scoring_flops
from hyperalign.solve import Method

TINY = {"rank": 24}
CONFIG = SearchConfig(limit=120, canonical=TINY, train={"n_steps": 6, "batch_size": 24})


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Enough items that recall is no accident."""
    return plant((5, 4), (50, 50, 600))


@pytest.fixture(scope="module")
def sheets(tmp_path_factory: pytest.TempPathFactory) -> list[Sheet]:
    """A whole measurement of a tiny grid, with one that is smaller before it."""
    out = tmp_path_factory.mktemp("grid")
    asked = Asked(
        config=CONFIG,
        cache_dir=out,
        out=out / "reports",
        shape=(4, 3),
        progress=lambda stage, done, total: None,
        say=lambda sentence: None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "SMALLER", ((3, 2), (400, 40)))
        return grid.measure(asked)


def rows_of(planted: Planted, side: str, k: int) -> PlantedRows:
    rows = getattr(planted.prepared.test, side)[k]
    assert isinstance(rows, PlantedRows)
    return rows


def test_a_row_is_the_same_however_it_is_read(planted: Planted) -> None:
    rows = rows_of(planted, "images", 1)
    whole = rows[:]

    assert whole.shape == rows.shape
    np.testing.assert_allclose(rows[100:300], whole[100:300], atol=1e-5)
    index = np.array([599, 0, 17, 17])
    np.testing.assert_allclose(rows[index], whole[index], atol=1e-5)


def test_no_two_encoders_splits_or_items_share_their_noise() -> None:
    small = plant((2, 2), (40, 40, 40))
    tables = [rows for part in ("train", "val", "test") for rows in (*getattr(small.prepared, part).images,)]
    tables += [rows for part in ("train", "val", "test") for rows in (*getattr(small.prepared, part).texts,)]
    noise = [torch.from_numpy(rows.maker.draw(_keys(rows), 200)) for rows in tables]

    every = F.normalize(torch.cat(noise), dim=1)
    between = (every @ every.T).fill_diagonal_(0)

    assert between.abs().max() < 0.5  # of 200 independent numbers: 0.35 is the largest of 115,000


def _keys(rows: Any) -> Any:
    return (np.arange(40, dtype=np.uint64) << np.uint64(20)) + np.uint64(2 * rows.salt)


def test_a_larger_zoo_holds_the_smaller_one() -> None:
    small, large = plant((2, 2), (10, 10, 10)), plant((4, 3), (10, 10, 10))

    for side in ("images", "texts"):
        np.testing.assert_array_equal(
            getattr(small.prepared.train, side)[1][:], getattr(large.prepared.train, side)[1][:]
        )
    assert small.truth.tolist() == large.truth.reshape(4, 3)[:2, :2].ravel().tolist()


def test_an_encoder_shows_its_concepts_as_clearly_as_planted(planted: Planted) -> None:
    """The share of a concept's variance that the best linear reading of the rows explains."""
    for side in ("images", "texts"):
        rows = rows_of(planted, side, 2)
        read = torch.from_numpy(rows[:]) @ rows.way.T
        read = read - read.mean(0)
        concepts = rows.latent[:, torch.from_numpy(rows.view.concepts)]
        concepts = concepts - concepts.mean(0)

        explained = (read * concepts).sum(0).square() / (read.square().sum(0) * concepts.square().sum(0))

        assert float(explained.mean()) == pytest.approx(rows.view.clarity, abs=0.03)


def test_the_truth_is_what_perfect_readings_score(planted: Planted) -> None:
    """Readings of what both encoders know, compared by cosine; 600 items, so 2 points are chance."""
    scores = []
    for i in range(5):
        for j in range(4):
            sides = rows_of(planted, "images", i), rows_of(planted, "texts", j)
            shared = np.intersect1d(sides[0].view.concepts, sides[1].view.concepts)
            image, text = (_read(rows, shared) for rows in sides)
            scores.append(recall(hits_from_embeddings(image, text, np.arange(600), ks=(1,)), (1,))["score"])

    assert np.abs(np.array(scores) - planted.truth).mean() < 3
    assert agreement(scores, planted.truth).spearman > 0.98
    assert np.ptp(planted.truth) > 30  # the pairs differ


def _read(rows: PlantedRows, shared: Any) -> torch.Tensor:
    read = torch.from_numpy(rows[:]) @ rows.way.T
    at = torch.from_numpy(np.searchsorted(rows.view.concepts, shared))
    return F.normalize((read - read.mean(0))[:, at], dim=1)


def test_more_shared_concepts_and_clearer_eyes_are_better() -> None:
    def score(n_shared: int, clarity: float) -> float:
        return expected_recall(View(np.arange(30), 0.5, 384), View(np.arange(30 - n_shared, 60), clarity, 384), 1000)

    assert score(2, 0.5) == 0.1  # chance
    assert score(10, 0.5) < score(20, 0.5) < score(30, 0.5)
    assert score(20, 0.4) < score(20, 0.6)


def test_the_measurement_gives_a_row_for_each_size(sheets: list[Sheet]) -> None:
    sizes = sheets[0]

    assert [row["grid"] for row in sizes.rows] == ["3x2", "4x3"]
    for row in sizes.rows:
        assert 0 < row["making_rows_seconds"] < row["search_seconds"]
        assert -1 <= row["spearman_with_truth"] <= 1
        assert row["regret_score"] >= 0
    assert sizes.rows[0]["search_flops"] < sizes.rows[1]["search_flops"]
    assert all(0 < row["ape_both_grid_ratio"] < row["ape_grid_ratio"] for row in sizes.rows)
    both = "ape both: between the 24 coordinates of the search, batch 256, 1 epochs"
    assert f"ape: text-sided, matched batch 24, 10 epochs; {both}" in sizes.notes
    for sheet in sheets:
        assert all(row.keys() == sheet.rows[0].keys() for row in sheet.rows)
    assert to_json([sheet._asdict() for sheet in sheets])


def test_ratios_are_over_the_whole_search_its_set_up_included(sheets: list[Sheet]) -> None:
    config, sizes = grid._settle(CONFIG)
    recipe = config.recipe()
    recipe = replace(recipe, ape=replace(recipe.ape, batch_size=recipe.residual.batch_size))
    for row, shape in zip(sheets[0].rows, ((3, 2), (4, 3)), strict=True):
        small = plant(shape, sizes, seed=CONFIG.seed)
        pairs, prepared = small.candidates.pair_indices(), small.prepared
        for name, sides in (("ape_grid_ratio", "text"), ("ape_both_grid_ratio", "both")):
            cost = forecast(Method("ape", sides, 0), prepared.train, pairs, recipe)
            flops = cost.setup_flops + cost.train_flops + scoring_flops(cost.solution, prepared.val)
            assert row[name] == pytest.approx(flops / row["search_flops"])


def test_stages_add_up_to_the_search(sheets: list[Sheet]) -> None:
    sizes, stages, *_ = sheets

    search = [row for row in stages.rows if row["stage"] != "test evaluation"]
    assert [row["stage"] for row in search] == ["set-up", "training", "validation"]
    assert sum(row["flops"] for row in search) == sizes.rows[-1]["search_flops"]
    seconds = sum(row["seconds"] + row["making_rows_seconds"] for row in search)
    assert seconds == pytest.approx(sizes.rows[-1]["search_seconds"])
    assert all(row["seconds"] > 0 for row in stages.rows)


def test_other_limits_let_fewer_pairs_through(sheets: list[Sheet]) -> None:
    limits = {row["limit"]: row["pairs"] for row in sheets[2].rows}

    assert limits["none"] == 12
    assert limits["a quarter of the image encoders"] == 6  # the two smallest of four
    assert limits["half of the image encoders"] == 9
    assert limits["half of each side"] == 6


def test_the_run_is_one_that_can_be_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperalign.cli import app

    monkeypatch.setattr(grid, "SMALLER", ())
    (tmp_path / "c.toml").write_text("limit = 60\n[train]\nn_steps = 2\nbatch_size = 8\n[canonical]\nrank = 16\n")
    where = ["--out", str(tmp_path / "reports"), "--config", str(tmp_path / "c.toml")]

    app(["bench", "--grid", "3x2", *where], standalone_mode=False)
    (path,) = (tmp_path / "reports").glob("*grid-3x2")
    app(["report", str(path), "--text-budget", "300M"], standalone_mode=False)

    said = capsys.readouterr().out
    assert "Another limit on the finished run" in said
    assert "within the limits: 6 of the 6 pairs of this run" in said
    run = load_run(path)
    assert len(run.leaderboard) == 6
    in_search = run.ledger["stage"].isin(["set-up", "training", "validation"])
    assert run.result["totals"]["search_flops"] == run.ledger.loc[in_search, "flops"].sum() > 0
    assert read_result(path)["configuration"]["canonical"]["rank"] == 16  # what was asked for, not this room's own


def test_eight_devices_need_an_eighth_and_a_slower_type_more(planted: Planted) -> None:
    config = SearchConfig(canonical=TINY)
    sheet = device_sheet(planted.prepared, config.recipe(), config.plan_methods()[0])

    one, eight = sheet.rows[0], sheet.rows[1]
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert one["search_flops"] == eight["search_flops"]
    for name in H100_PEAKS:
        assert one[f"{name}_seconds"] == pytest.approx(8 * eight[f"{name}_seconds"])
    least = one["search_flops"] / (SHARE * H100_PEAKS["float32"])
    assert 0 < one["float32_seconds"] <= least  # decompositions are not in it
    assert one["float32_seconds"] > one["TF32_seconds"] > one["bfloat16_seconds"]
    assert sheet.rows[-1]["items"] == 558_128
    assert sheet.rows[-1]["search_flops"] > one["search_flops"]


def test_the_rank_is_256_where_none_is_asked_for() -> None:
    config, sizes = grid._settle(SearchConfig())

    assert config.recipe().canonical == CanonicalConfig(rank=256)
    assert sizes == (20_000, 1_000, 1_000)
    assert grid._settle(CONFIG)[0].recipe().canonical.rank == TINY["rank"]
    assert grid._settle(CONFIG)[1] == (120, 120, 120)
