"""What a page is made of, without a browser: draws and comparisons packed, runs held against each other, pictures."""

import base64
import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_grid import made_up_grid
from numpy.typing import NDArray
from small_zoo import small_config, small_search, write_world
from typer.testing import CliRunner

from hyperalign.cli import app
from hyperalign.embed.zoo import Limits, Range
from hyperalign.glimpse import take_glimpse
from hyperalign.record import PICTURES
from hyperalign.relimit import open_run
from hyperalign.run import Run, load_run, read_log
from hyperalign.show import chances as packing
from hyperalign.show.address import address_of
from hyperalign.show.against import hold_against
from hyperalign.show.chances import LEVELS, Chances, pack_chances
from hyperalign.show.page import render_page, write_page
from hyperalign.show.payload import describe

runner = CliRunner()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 12 × 3 pairs that was made up."""
    return made_up_grid(tmp_path_factory.mktemp("grid"), 12, 3)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small world, beside the world."""
    folder = write_world(tmp_path_factory.mktemp("searched") / "world")
    return small_search(folder)


def drawn_again(chances: Chances) -> NDArray[np.float64]:
    """The draws (P, D) as the page reads them."""
    levels = np.frombuffer(chances.draws.encode(), np.uint8).reshape(len(chances.mean), -1) - 63.0
    return chances.mean[:, None] + chances.step[:, None] * (levels - (LEVELS - 1) / 2)


def test_draws_come_back_to_half_a_step(grid: Run) -> None:
    opened = open_run(grid)
    chances = pack_chances(opened)

    draws = opened.standings.draws(10**9)[opened.places]

    assert chances.n_draws == draws.shape[1] == 2_000
    assert (np.abs(drawn_again(chances) - draws) <= 0.51 * chances.step[:, None]).all()
    assert (chances.step < 0.15 * draws.std(1)).all()


def test_the_page_s_draws_give_the_chances_of_the_run(grid: Run) -> None:
    opened = open_run(grid)

    winners = drawn_again(pack_chances(opened)).argmax(0)

    counted = np.bincount(winners, minlength=len(opened.table)) / 2_000
    np.testing.assert_allclose(counted, opened.table["p_best"], atol=0.01)


def test_comparisons_come_back_to_the_bit(grid: Run) -> None:
    opened = open_run(grid)
    chances = pack_chances(opened)
    n_pairs = len(opened.table)

    flat = np.frombuffer(zlib.decompress(base64.b64decode(chances.better)), np.uint8).reshape(n_pairs, -1)
    rows = np.bitwise_xor.accumulate(flat, axis=0)
    better = np.unpackbits(rows, axis=1, count=n_pairs, bitorder="little")

    assert (1 + better.sum(1)).tolist() == opened.table["rank"].to_numpy()[chances.by_score].tolist()
    assert not np.tril(better.T).any(), "only a higher score can be better"


def test_what_would_take_too_much_room_is_thinned_or_left_out(grid: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MOST_DRAWS", 36 * 100)
    monkeypatch.setattr(packing, "_MOST_BITS", 10)

    chances = pack_chances(open_run(grid))

    assert chances.n_draws == 100
    assert len(chances.draws) == 3_600
    assert chances.better == ""


def test_no_character_of_the_draws_means_anything_to_a_page(grid: Run) -> None:
    assert not set(pack_chances(open_run(grid)).draws) & set("<&>\"'\n")


def test_a_page_of_four_hundred_pairs_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    run = made_up_grid(tmp_path, 40, 10)

    page = write_page(run)

    first = page.read_bytes()
    assert len(first) < 3_000_000
    assert write_page(load_run(run.path)).read_bytes() == first


def test_a_run_is_held_against_another_pair_by_pair(grid: Run, tmp_path: Path) -> None:
    other = made_up_grid(tmp_path, 12, 2, seed=5)
    beside = {(row["image_encoder"], row["text_encoder"]): row["score"] for row in other.leaderboard.to_dict("records")}

    found = hold_against(grid, other)

    table = grid.leaderboard.sort_values("position").to_dict("records")
    for row, score in zip(table, found["score"], strict=True):
        expected = beside.get((row["image_encoder"], row["text_encoder"]))
        assert score == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert found["same_test"]
    assert found["only"] == []
    assert hold_against(other, grid)["only"] == [f"image-{k:03}+text-2" for k in _order_of(grid, "text-2")]


def _order_of(run: Run, text: str) -> list[int]:
    table = run.leaderboard.sort_values("position")
    return [int(name[-3:]) for name in table.loc[table["text_encoder"] == text, "image_encoder"]]


def test_a_run_does_not_differ_from_itself(grid: Run) -> None:
    found = hold_against(grid, grid)

    assert found["low"] == found["high"] == [0.0] * len(grid.leaderboard)


def test_the_interval_of_a_difference_lies_around_it(grid: Run, tmp_path: Path) -> None:
    other = made_up_grid(tmp_path, 12, 3, seed=3)

    found = hold_against(grid, other)

    table = grid.leaderboard.sort_values("position")
    change = table["score"].to_numpy() - np.array(found["score"])
    low, high = np.array(found["low"]), np.array(found["high"])
    np.testing.assert_allclose((low + high) / 2, change, atol=2e-3)
    assert (high > low).all()


def test_runs_with_other_test_images_are_compared_without_intervals(grid: Run, tmp_path: Path) -> None:
    other = made_up_grid(tmp_path, 12, 3, seed=2)
    other.result["data"]["splits"]["test"]["image_digest"] = "another"

    found = hold_against(grid, other)

    assert not found["same_test"]
    assert set(found["low"]) == {None}


def test_runs_of_other_tasks_are_not_compared(grid: Run) -> None:
    other = replace(grid, result={**grid.result, "configuration": {"task": "zero-shot"}})

    with pytest.raises(ValueError, match="two runs are held against each other by one score"):
        hold_against(grid, other)


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path) -> None:
    answer = runner.invoke(app, ["report", str(tmp_path / "nothing")])

    assert answer.exit_code == 2
    assert "no run at" in answer.output


def test_the_curve_of_the_training_reaches_the_page(searched: Path) -> None:
    run = load_run(searched)

    [curve] = [one for one in describe(run, None)["curves"] if one["name"].startswith("hypernet")]

    assert [step for step, _ in curve["losses"]] == list(range(1, 11))
    assert all(math.isfinite(loss) for _, loss in curve["losses"])
    assert curve["looks"][0][0] == 0


def test_a_rolled_back_and_a_collapsed_training_are_told(searched: Path, tmp_path: Path) -> None:
    run = load_run(searched)
    lines = [
        {"event": "look", "stage": "x", "step": 0, "loss": None, "validation": 5.0},
        {"event": "look", "stage": "x", "step": 40, "loss": 3.0, "validation": 4.0},
        {"event": "rolled back", "stage": "x", "to_step": 0, "of": 40},
        {"event": "diverged", "stage": "y", "at_step": 7},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))

    x, y = describe(replace(run, path=tmp_path), None)["curves"]

    assert (x["kept"], x["n_steps"], x["looks"]) == (0, 40, [[0, 5.0], [40, 4.0]])
    assert y["diverged"] == 7


def test_an_address_says_the_limits() -> None:
    limits = Limits(image_params=Range(high=30e6), dim=Range(low=384, high=768), licenses=("MIT", "Apache-2.0"))

    assert address_of(limits) == "#budget=:30000000&dim=384:768&license=MIT&license=Apache-2.0"
    assert address_of(Limits()) == ""


def test_the_first_pairs_retrieve_pictures_for_test_captions(searched: Path) -> None:
    run, folder = load_run(searched), searched.parent.parent
    config = small_config(folder)

    kept = json.loads(take_glimpse(run, config, cache_dir=folder / "cache", progress=lambda *_: None).read_text())

    assert len(kept["captions"]) == 6
    assert set(kept["pairs"]) == {f"{i}+{t}" for i in ("sharp", "dull", "wide") for t in ("words", "phrases")}
    assert all(len(found) == 4 for pair in kept["pairs"].values() for found in pair)
    assert all(base64.b64decode(one).startswith(b"\xff\xd8") for one in kept["thumbnails"])
    own = [one["image"] for one in kept["captions"]]
    right = sum(place in found for place, found in zip(own, kept["pairs"]["sharp+words"], strict=True))
    assert right >= 3, "chance is 4 of 20 pictures for each of 6 captions, 1.2"
    assert kept["captions"][0]["caption"] in render_page(run)
    (run.path / PICTURES).unlink()


def test_pictures_are_not_taken_from_other_data(searched: Path) -> None:
    run, folder = load_run(searched), searched.parent.parent
    run.result["data"]["splits"]["test"]["image_digest"] = "another"

    with pytest.raises(ValueError, match="have changed since the search"):
        take_glimpse(run, small_config(folder), cache_dir=folder / "cache", progress=lambda *_: None)


def test_the_log_keeps_the_losses_on_one_line(searched: Path) -> None:
    [line] = [line for line in read_log(searched) if line["event"] == "losses"]

    assert len(line["curve"]) == 10


def test_report_writes_the_page_of_one_run_and_of_two(grid: Run, searched: Path, tmp_path: Path) -> None:
    other = made_up_grid(tmp_path, 6, 2)

    alone = runner.invoke(app, ["report", str(searched)])
    against = runner.invoke(app, ["report", str(grid.path), str(other.path)])

    assert alone.stdout.strip() == str(searched / "report.html")
    assert against.stdout.strip() == str(grid.path / f"report-against-{other.path.name}.html")
    assert (grid.path / f"report-against-{other.path.name}.html").is_file()


def test_open_shows_the_page_at_the_limits(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: shown.append(url) or True)  # type: ignore[func-returns-value]

    answer = runner.invoke(app, ["report", str(searched), "--budget", "2M", "--open"])

    assert answer.exit_code == 0
    assert shown == [(searched / "report.html").resolve().as_uri() + "#budget=:2000000"]
    assert "within the limits: 4 of the 6 pairs" in answer.stdout
