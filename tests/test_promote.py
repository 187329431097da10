"""Promotion: who leaves, what is embedded, and that nothing is embedded twice."""

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from hyperalign.adopt import adopt
from hyperalign.embed.cache import CacheKey, Sample, fill, fill_some, find_entries, is_whole, n_missing, open_entry
from hyperalign.embed.consent import Written
from hyperalign.embed.upkeep import verify
from hyperalign.ladder import Encoders, Items, Ladder, Prices, PromotionConfig, climb
from hyperalign.ledger import SEARCH_STAGES
from hyperalign.pipeline import search
from hyperalign.plan import plan
from hyperalign.promote import draw_samples
from hyperalign.rank.resampling import Contributions
from hyperalign.record import LEADERBOARD_COLUMNS
from hyperalign.relimit import open_run
from hyperalign.request import SearchConfig
from hyperalign.run import Run, load_run, read_result, same_table
from hyperalign.show.page import render_page
from hyperalign.show.payload import describe
from hyperalign.show.table import render_run

# Part of an entry


KEY = CacheKey(
    encoder="e", weights="w", revision="", preprocess="", pooling="", prompt="", dataset="d", content="c", split="train"
)
N_ROWS = 20
MATRIX = np.arange(N_ROWS)[:, None] + np.arange(3) / 8


class Counting:
    """Embeds by looking up and remembers what it was asked for."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        """Nothing was asked for yet."""
        self.asked: list[int] = []
        self.bad = bad

    def some(self, items: NDArray[np.int64]) -> tuple[NDArray[Any], list[tuple[int, str]]]:
        """Single items."""
        self.asked += items.tolist()
        return MATRIX[items], [(k, "torn") for k in items.tolist() if k in self.bad]

    def span(self, start: int, stop: int) -> tuple[NDArray[Any], list[tuple[int, str]]]:
        """Items that follow each other."""
        return self.some(np.arange(start, stop))


def sample(root: Path, embed: Counting, items: Sequence[int]) -> Sample:
    return fill_some(root, KEY, n_rows=N_ROWS, items=np.array(items), embed_some=embed.some, shard_rows=4)


def whole(root: Path, embed: Counting) -> NDArray[Any]:
    entry = fill(root, KEY, n_rows=N_ROWS, embed=embed.span, embed_some=embed.some, shard_rows=6)
    return entry.rows[:]


def test_a_sample_is_read_back_and_does_not_look_whole(tmp_path: Path) -> None:
    found = sample(tmp_path, Counting(), [3, 17, 4, 9, 12])

    assert np.array_equal(found.rows[found.at], MATRIX[[3, 17, 4, 9, 12]])
    assert not is_whole(tmp_path, KEY)
    assert [entry.shape for entry in find_entries(tmp_path)] == [None]
    assert n_missing(tmp_path, KEY, n_rows=N_ROWS) == N_ROWS - 5
    with pytest.raises(FileNotFoundError):
        open_entry(tmp_path, KEY)


def test_a_larger_sample_computes_what_is_new(tmp_path: Path) -> None:
    sample(tmp_path, Counting(), [3, 17, 4, 9, 12])
    second = Counting()

    found = sample(tmp_path, second, [12, 3, 1, 17, 4, 9, 19])

    assert sorted(second.asked) == [1, 19]
    assert np.array_equal(found.rows[found.at], MATRIX[[12, 3, 1, 17, 4, 9, 19]])


def test_a_whole_entry_takes_samples_over_and_leaves_none_behind(tmp_path: Path) -> None:
    sample(tmp_path, Counting(bad=[9]), [3, 17, 4, 9, 12])
    second = Counting()

    assert np.array_equal(whole(tmp_path, second), MATRIX)

    assert sorted(second.asked) == [k for k in range(N_ROWS) if k not in (3, 17, 4, 9, 12)]
    assert open_entry(tmp_path, KEY).bad == {9: "torn"}
    assert not list((tmp_path / KEY.folder).glob("some-*"))
    third = Counting()
    found = sample(tmp_path, third, [9, 2])
    assert (third.asked, found.bad) == ([], {9: "torn"})
    assert np.array_equal(found.rows[found.at], MATRIX[[9, 2]])


def test_a_damaged_sample_is_found_and_computed_again(tmp_path: Path) -> None:
    sample(tmp_path, Counting(), [3, 17, 4, 9, 12])
    path = tmp_path / KEY.folder / "some-00000.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    faults = verify(tmp_path)[tmp_path / KEY.folder]
    second = Counting()

    found = sample(tmp_path, second, [3, 17, 4, 9, 12])

    assert any("some-00000.npy is damaged" in fault for fault in faults)
    assert sorted(second.asked) == [3, 4, 9, 12]  # the first shard of four, in the order of the items
    assert np.array_equal(found.rows[found.at], MATRIX[[3, 17, 4, 9, 12]])


def test_an_interrupted_sample_keeps_its_finished_shards(tmp_path: Path) -> None:
    class Stopped(Counting):
        def some(self, items: NDArray[np.int64]) -> tuple[NDArray[Any], list[tuple[int, str]]]:
            if self.asked:
                raise KeyboardInterrupt
            return super().some(items)

    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, Stopped(), [3, 17, 4, 9, 12])
    second = Counting()
    sample(tmp_path, second, [3, 17, 4, 9, 12])

    assert second.asked == [17]


@pytest.mark.parametrize("items", [[], [-1], [N_ROWS]], ids=str)
def test_items_that_do_not_exist_are_refused(tmp_path: Path, items: list[int]) -> None:
    with pytest.raises(ValueError, match="a sample is of items 0 to 19"):
        sample(tmp_path, Counting(), items)


# The ladder


QUALITY = {0: 0.2, 1: 0.75, 2: 0.7}  # of image encoders: chance of a hit beside the best text encoder
PRICES = Prices(np.array([1.0, 1.0, 5.0]) * 1e9, np.array([0.0, 2e9]))
SAMPLES = tuple(Items(n, n, 2 * n, 2 * n) for n in (64, 128, 256))
WHOLE = Items(4000, 500, 5000, 5000)
PAIRS = [(i, j) for i in range(3) for j in range(2)]


def planted(items: Items, encoders: Encoders, pairs: Sequence[tuple[int, int]]) -> Contributions:
    """Hits of each pair with the planted chance, the same pictures hard for all; text encoder 1 halves the chance."""
    luck = np.random.default_rng(items.n_val).uniform(size=items.n_val)
    chances = [QUALITY[i] * (0.5 if j else 1) for i, j in pairs]
    hits = np.stack([luck < chance for chance in chances], axis=1).astype(np.float32)
    return Contributions(np.stack([hits, hits]), np.ones((2, items.n_val), np.float32))


def climbed(**changes: Any) -> Ladder:
    config = replace(PromotionConfig(), **changes)
    return climb(PAIRS, PRICES, SAMPLES, WHOLE, planted, config)


def test_the_best_pair_stays_and_every_pair_is_ranked_once() -> None:
    ladder = climbed()

    left = ladder.left()
    assert ladder.pairs[0] == (1, 0)
    assert sorted([*ladder.pairs, *(one.pair for one in left)]) == PAIRS
    assert [one.n_train for one in left] == sorted((one.n_train for one in left), reverse=True)
    for one in left:
        assert one.rank > 1 or one.pair == (2, 0)  # the dear one is nearly as good


def test_flops_are_those_of_samples_and_of_who_stayed() -> None:
    ladder = climbed()

    assert ladder.every_flops == 7e9 * 5000 + 2e9 * 5000
    paid = [
        PRICES.flops(rung.encoders, rung.items, since=before)
        for rung, before in zip(ladder.rungs, (None, *(rung.items for rung in ladder.rungs)), strict=False)
    ]
    assert [rung.flops for rung in ladder.rungs] == paid
    assert ladder.flops == sum(paid) + PRICES.flops(ladder.encoders, WHOLE, since=ladder.rungs[-1].items)
    assert ladder.flops < 0.3 * ladder.every_flops


def test_a_rung_that_may_cost_nothing_keeps_the_leader_and_who_is_free() -> None:
    ladder = climbed(rung_share=0.0, least_chance=0.0)

    assert len(ladder.rungs) == 1
    assert ladder.encoders == ((1,), (0,))


def test_who_costs_next_to_nothing_stays_however_bad() -> None:
    ladder = climb(PAIRS, Prices(PRICES.images, np.array([2e9, 0.0])), SAMPLES, WHOLE, planted)

    assert ladder.encoders == ((1,), (0, 1))  # text encoder 1 is worse, and free


def test_pairs_that_nobody_tells_apart_stay_while_there_is_room() -> None:
    def equal(items: Items, encoders: Encoders, pairs: Sequence[tuple[int, int]]) -> Contributions:
        hits = np.random.default_rng(3).integers(0, 2, (2, items.n_val, len(pairs))).astype(np.float32)
        return Contributions(hits, np.ones((2, items.n_val), np.float32))

    ladder = climb(PAIRS, PRICES, SAMPLES, WHOLE, equal, replace(PromotionConfig(), rung_share=1.0, final_share=1.0))

    assert len(ladder.rungs) == len(SAMPLES)
    assert len(ladder.pairs) > 1


def test_samples_are_nested_and_counted_with_their_captions() -> None:
    owner = np.repeat(np.arange(1000), np.random.default_rng(0).integers(1, 4, 1000))

    samples = draw_samples(owner, np.arange(200), seed=5)

    assert [items.n_train for items in samples.items] == [64, 128, 256]
    assert [items.n_val for items in samples.items] == [64, 128, 200]  # used up: nothing more can be told apart
    for items, after in zip(samples.items, samples.items[1:], strict=False):
        for few, many in zip(samples.pictures(items), samples.pictures(after), strict=True):
            assert set(few) < set(many)
    for items in samples.items:
        train, val = samples.pictures(items)
        assert items.n_captions == np.isin(owner, train).sum() + len(val)
        assert items.n_pictures == len(train) + len(val)
    assert not np.array_equal(samples.train, draw_samples(owner, np.arange(200), seed=6).train)


# The whole way


SIZES = {"train": 260, "val": 150, "test": 50}
SIDE = 8
CODE = """
import torch
from torch import nn

class View(nn.Module):
    def __init__(self, seed, width, n_pixels):
        super().__init__()
        self.n_pixels = n_pixels
        draw = torch.randn(192, width, generator=torch.Generator().manual_seed(seed))
        self.view = nn.Parameter(draw[:n_pixels])

    def forward(self, pictures):
        return torch.tanh(pictures.flatten(1)[:, : self.n_pixels] @ self.view / self.n_pixels**0.5)

def sharp():
    return View(1, 24, 192)

def dull():
    return View(2, 16, 4)

def blind():
    return View(3, 12, 1)

def late():
    return View(4, 20, 192)
"""
COSTS = {"blind": 3.0, "sharp": 1.0, "dull": 2.0}  # GFLOP, declared; who stays is not the first of its side


def declared(name: str, gflops: float) -> str:
    """A network of `nets.py` as a zoo has it."""
    return (
        f'[[encoder]]\nname = "{name}"\nmodality = "image"\nloader = "python"\nfactory = "nets.py:{name}"\n'
        f"input_size = {SIDE}\ncrop_pct = 1.0\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
        f'interpolation = "bilinear"\ngflops = {gflops}\n'
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that hold a latent in their pixels, ready rows of captions that share it, and three networks."""
    folder = tmp_path_factory.mktemp("promote")
    rng = np.random.default_rng(0)
    paint, speak = rng.standard_normal((6, SIDE * SIDE * 3)), rng.standard_normal((6, 16))
    lines = [("image", "caption", "split")]
    for split, size in SIZES.items():
        latent = rng.standard_normal((size, 6))
        pixels = np.clip(128 + 40 * latent @ paint, 0, 255).astype(np.uint8).reshape(size, SIDE, SIDE, 3)
        for number in range(size):
            path = f"{split}-{number:03}.png"
            Image.fromarray(pixels[number]).save(folder / path)
            lines += [(path, f"{split} {number} {k}", split) for k in range(2)]
        for name, noise in (("words", 0.1), ("hum", 2.0)):
            rows = np.tanh(latent @ speak / 2).repeat(2, 0) + noise * rng.standard_normal((2 * size, 16))
            np.save(folder / f"{name}-{split}.npy", rows.astype(np.float32))
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    (folder / "nets.py").write_text(CODE)
    images = [declared(name, gflops) for name, gflops in COSTS.items()]
    texts = [
        f'[[encoder]]\nname = "{name}"\nmodality = "text"\nloader = "rows"\ncheckpoint = "{name}-{{split}}.npy"\n'
        f"n_params = 1000\n"
        for name in ("words", "hum")
    ]
    (folder / "zoo.toml").write_text("\n".join([*images, *texts]))
    (folder / "late.toml").write_text(declared("late", 1.5))
    return folder


def config(folder: Path, **changes: Any) -> SearchConfig:
    return replace(
        SearchConfig(
            zoo=(Written(folder / "zoo.toml"),),
            data=str(folder / "pairs.csv"),
            train={"n_steps": 10, "batch_size": 32, "pairs_per_step": 2},
        ),
        **changes,
    )


def searched(folder: Path, cache: Path, out: Path, **changes: Any) -> Run:
    """One search, told to nobody."""
    silent: dict[str, Any] = {"progress": lambda stage, done, total: None, "say": lambda sentence: None}
    return load_run(search(config(folder, **changes), cache_dir=cache, out=out, **silent))


@pytest.fixture(scope="module")
def promoted(world: Path) -> Run:
    """A search from an empty cache."""
    return searched(world, world / "cache", world / "runs", exhaustive=False)


@pytest.fixture
def cache(world: Path, promoted: Run, tmp_path: Path) -> Path:
    """A copy of the cache that it left."""
    return Path(shutil.copytree(world / "cache", tmp_path / "cache"))


def test_every_pair_stands_in_the_table_with_the_sample_at_which_it_left(promoted: Run) -> None:
    table = promoted.leaderboard[promoted.leaderboard["method"] == "hypernet"]

    assert sorted(zip(table["image_encoder"], table["text_encoder"], strict=True)) == sorted(
        (image, text) for image in COSTS for text in ("words", "hum")
    )
    assert table["position"].tolist() == [1, 2, 3, 4, 5, 6]
    stayed = table[table["score"].notna()]
    assert set(stayed["image_encoder"]) == {"sharp"}
    assert set(stayed["text_encoder"]) == {"words", "hum"}  # ready rows cost nothing
    assert (stayed["n_train"] == SIZES["train"]).all()
    left = table[table["score"].isna()]
    assert set(left["n_train"]) <= {64, 128}
    assert (left["position"] > stayed["position"].max()).all()
    assert left["validation_score"].notna().all()


def test_the_ledger_goes_from_pictures_to_the_winner_rung_by_rung(promoted: Run) -> None:
    ledger, record = promoted.ledger, promoted.result["promotion"]

    embedding = ledger[ledger["stage"] == "embedding"]
    rungs = embedding[embedding["what"].str.startswith("rung ")]
    assert len(rungs) == len(record["rungs"])
    assert rungs["flops"].tolist() == [rung["flops"] for rung in record["rungs"]]
    assert embedding["flops"].sum() == record["promoted_flops"]
    assert record["rungs"][0]["flops"] == 6e9 * 128
    assert record["all_flops"] == 6e9 * sum(SIZES.values())
    assert record["winner_flops"] == 1e9 * sum(SIZES.values())
    saved = (record["all_flops"] - record["promoted_flops"]) / (record["all_flops"] - record["winner_flops"])
    assert record["saved_share"] == pytest.approx(saved)
    assert any(f"{100 * saved:.1f} % of what could be saved" in note for note in promoted.result["notes"])


def test_judging_is_on_the_account_of_the_search(promoted: Run) -> None:
    ledger = promoted.ledger[promoted.ledger["stage"].isin(SEARCH_STAGES)]

    assert ledger["what"].str.startswith("rung ").sum() == 2 * len(promoted.result["promotion"]["rungs"])
    assert promoted.result["totals"]["search_flops"] == ledger["flops"].sum()
    assert "6 pairs" in promoted.result["ratios"][0]["baseline"]


def test_who_left_was_never_shown_the_test_pictures(world: Path, promoted: Run) -> None:
    names = [entry.folder.name for entry in find_entries(world / "cache") if entry.shape is None]
    finished = [entry.folder.name for entry in find_entries(world / "cache") if entry.shape is not None]

    assert len(names) == 4  # train and val of dull and blind, none of them whole
    assert {name.split("--")[0] for name in names} == {"dull", "blind"}
    assert {name.split("--")[0] for name in finished} == {"sharp"}
    assert promoted.result["answer"][0].startswith("sharp+words")
    assert "of the 2 that were embedded whole" in promoted.result["answer"][0]


def test_a_promoted_run_is_repeated_from_the_cache_and_gives_the_same_table(
    world: Path, promoted: Run, cache: Path, tmp_path: Path
) -> None:
    again = searched(world, cache, tmp_path / "again", exhaustive=False)

    assert same_table(promoted.path, again.path)
    assert again.ledger.loc[again.ledger["stage"] == "embedding", "flops"].sum() == 0


def test_everything_after_a_sample_is_as_if_there_had_been_none(
    world: Path, promoted: Run, cache: Path, tmp_path: Path
) -> None:
    """The rows of the samples are taken over, so an exhaustive search embeds the rest and finds the same."""
    after = searched(world, cache, tmp_path / "after", exhaustive=True)
    fresh = searched(world, tmp_path / "fresh cache", tmp_path / "fresh", exhaustive=True)

    assert same_table(after.path, fresh.path)
    spent = [run.ledger.loc[run.ledger["stage"] == "embedding", "flops"].sum() for run in (promoted, after, fresh)]
    samples = promoted.result["promotion"]
    assert spent[2] == samples["all_flops"]
    assert spent[0] + spent[1] == samples["all_flops"]  # nothing twice
    best = after.leaderboard.sort_values("position").iloc[0]
    assert (best["image_encoder"], best["text_encoder"]) == ("sharp", "words")


def test_little_data_is_embedded_whole_and_the_run_says_so(world: Path, cache: Path, tmp_path: Path) -> None:
    run = searched(world, cache, tmp_path / "runs")

    assert run.result["configuration"]["exhaustive"] is True
    assert "promotion" not in run.result
    assert run.leaderboard["score"].notna().all()


def test_a_promoted_run_is_shown_with_dashes_where_nothing_is_known(promoted: Run) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_run(promoted, width=160))

    shown = console.export_text()
    assert "blind + hum" in shown
    rows = {row.split()[2]: row.split()[1] for row in shown.splitlines() if " + hum" in row}
    assert rows == {"sharp": "2", "dull": "–", "blind": "–"}
    ranks = describe(promoted, None)["columns"]["rank"]
    assert [rank is None for rank in ranks] == [False] * 2 + [True] * 4
    assert "no network" not in render_page(promoted)
    assert read_result(promoted.path)["configuration"]["exhaustive"] is False


def adopted(world: Path, into: Run, cache: Path, out: Path, name: str) -> Run:
    """A promoted run with one encoder more."""
    silent: dict[str, Any] = {"progress": lambda stage, done, total: None, "say": lambda sentence: None}
    zoo = [Written(world / "late.toml")]
    return load_run(adopt(name, into.path, config(world), zoo=zoo, cache_dir=cache, out=out, **silent))


def test_a_newcomer_stands_beside_who_stayed_and_before_who_left(
    world: Path, promoted: Run, cache: Path, tmp_path: Path
) -> None:
    after = adopted(world, promoted, cache, tmp_path / "runs", "late")

    table = after.leaderboard[after.leaderboard["method"] == "hypernet"]
    assert table["position"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert set(table["image_encoder"][:4]) == {"sharp", "late"}
    assert table["score"].isna().tolist() == [False] * 4 + [True] * 4
    before = promoted.leaderboard
    left = [before[before["score"].isna()], table[table["score"].isna()]]
    for rows in left:
        rows.index = pd.RangeIndex(4)
    then, now = (rows.drop(columns="position") for rows in left)
    pd.testing.assert_frame_equal(then, now)
    assert "of the 4 that were embedded whole" in after.result["answer"][0]
    own = open_run(after).table.set_index(["image_encoder", "text_encoder"])["score"]
    assert own.to_dict() == table[:4].set_index(["image_encoder", "text_encoder"])["score"].to_dict()
    assert "no network" not in render_page(after)


@pytest.mark.parametrize(("name", "sentence"), [("dull", "left .* on a sample"), ("sharp", "already")])
def test_who_was_there_is_not_adopted(
    world: Path, promoted: Run, cache: Path, tmp_path: Path, name: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        adopted(world, promoted, cache, tmp_path / "runs", name)


def test_a_run_of_before_is_read(promoted: Run, tmp_path: Path) -> None:
    """Its table has no `n_train`."""
    for path in promoted.path.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "leaderboard.csv").read_text().splitlines()
    assert lines[0] == ",".join(LEADERBOARD_COLUMNS)
    (tmp_path / "leaderboard.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")

    run = load_run(tmp_path)

    assert run.leaderboard["n_train"].isna().all()
    assert tuple(run.leaderboard.columns) == LEADERBOARD_COLUMNS


@pytest.mark.parametrize("changes", [{"methods": ("ape", "hypernet")}, {"task": "zero-shot"}], ids=str)
def test_what_needs_every_pair_is_not_promoted(changes: dict[str, Any]) -> None:
    assert not SearchConfig(**changes).may_promote()
    with pytest.raises(ValueError, match="promotion is for retrieval"):
        SearchConfig(**changes, exhaustive=False)


def test_a_dry_run_shows_promotion_as_one_step_that_a_run_keeps_to(world: Path, promoted: Run, tmp_path: Path) -> None:
    def silent(stage: str, done: int, total: int) -> None:
        """Nobody is told."""

    told = plan(config(world, exhaustive=False), cache_dir=tmp_path / "cold", progress=silent)
    whole = plan(config(world, exhaustive=True), cache_dir=tmp_path / "cold", progress=silent)

    (step,) = [step for step in told.steps if step.stage == "embedding"]
    record = promoted.result["promotion"]
    assert step.what.startswith("promotion: samples of 64 + 64, 128 + 128 pictures")
    assert record["promoted_flops"] <= step.flops <= record["all_flops"]
    assert sum(one.flops for one in whole.steps if one.stage == "embedding") == record["all_flops"]
