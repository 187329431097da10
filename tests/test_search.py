"""The whole way: from pictures, captions and rows to a run on disk that agrees with itself."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_zoo import CLASSES, IMAGES, N_CAPTIONS, SPLITS, TEXTS, small_config, small_search, write_labels, write_world

from hyperalign.embed.zoo import Limits, Range
from hyperalign.ledger import SEARCH_STAGES
from hyperalign.record import LEADERBOARD_COLUMNS, LEDGER_COLUMNS
from hyperalign.run import Run, load_run, load_tensors, read_log, read_result, same_table

PAIRS = [(image, text) for image in IMAGES for text in TEXTS]
METHODS = [
    ("closed-form", "both", 0),
    ("closed-form", "text", 0),
    ("hypernet", "both", 0),
    ("hypernet-sliced", "text", 0),
    *(("ape", sides, seed) for sides in ("text", "both") for seed in (0, 1)),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, captions, rows and a label set."""
    folder = write_world(tmp_path_factory.mktemp("search") / "world")
    write_labels(folder)
    return folder


@pytest.fixture(scope="module")
def grid(world: Path) -> Run:
    """Every method on every pair, the baseline with both sides under two seeds."""
    methods = ("ape", "closed-form", "hypernet", "hypernet-sliced")
    return load_run(small_search(world, config=small_config(world, methods=methods, sides="text,both"), out="grid"))


@pytest.fixture(scope="module")
def plain(world: Path) -> Run:
    """The default method with two verified pairs."""
    return load_run(small_search(world, config=small_config(world, verify=2), out="plain"))


def pairs_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs in the rows of a leaderboard."""
    return list(zip(table["image_encoder"], table["text_encoder"], strict=True))


def test_a_search_writes_every_file_of_a_run(plain: Run) -> None:
    found = sorted(path.name for path in plain.path.iterdir())

    tables, tensors = ["leaderboard.csv", "ledger.csv"], [f"{n}.safetensors" for n in ("connectors", "hits", "kept")]
    assert found == sorted([*tables, *tensors, "log.jsonl", "result.json"])
    assert (plain.path / "leaderboard.csv").read_text().split("\n")[0] == ",".join(LEADERBOARD_COLUMNS)
    assert (plain.path / "ledger.csv").read_text().split("\n")[0] == ",".join(LEDGER_COLUMNS)
    assert plain.result["status"] == "finished"


def test_the_leaderboard_has_one_row_for_each_pair_method_and_seed(grid: Run) -> None:
    rows = grid.leaderboard.groupby(["method", "sides", "seed"], sort=False)

    assert set(rows.groups) == set(METHODS)
    for _, table in rows:
        assert sorted(pairs_of(table)) == sorted(PAIRS)
        assert sorted(table["position"]) == list(range(1, len(PAIRS) + 1))
        assert table["p_best"].sum() == pytest.approx(1)
        assert table["validation_score"].is_monotonic_decreasing  # validation decides the order


def test_a_score_is_the_mean_of_both_recalls_and_lies_in_its_interval(grid: Run) -> None:
    table = grid.leaderboard

    recalls = (table["t2i_recall_at_1"] + table["i2t_recall_at_1"]) / 2
    np.testing.assert_allclose(table["score"], recalls, atol=1e-9)
    assert (table["score_low"] <= table["score"]).all()
    assert (table["score"] <= table["score_high"]).all()


def test_hits_on_disk_give_the_scores_of_the_table(grid: Run) -> None:
    hits = load_tensors(grid.path / "hits.safetensors")
    table = grid.leaderboard.set_index(["method", "sides", "seed", "image_encoder", "text_encoder"])["score"]

    n_test = SPLITS["test"]
    for method in METHODS:
        name = "-".join(map(str, method))
        t2i, i2t = hits[f"{name}/t2i"].astype(np.float64), hits[f"{name}/i2t"].astype(np.float64)
        assert t2i.shape == (len(PAIRS), n_test * N_CAPTIONS)
        assert i2t.shape == (len(PAIRS), n_test)
        scores = [table[(*method, *pair)] for pair in PAIRS]
        np.testing.assert_allclose(50 * (t2i.mean(1) + i2t.mean(1)), scores, atol=1e-3)
    np.testing.assert_array_equal(hits["owner"], np.repeat(np.arange(n_test), N_CAPTIONS))


def test_the_world_is_learned_by_all_that_start_from_the_closed_form(grid: Run) -> None:
    """Chance is 100 / 20 = 5 %; the sharp encoder with exact words is the best by construction, the dull one the worst.

    Where texts alone are mapped the sharp and the wide encoder are within a validation picture or two of each other,
    so there the best need only be no worse than whoever comes first by more than the interval allows.
    """
    for method, rows in grid.leaderboard.groupby(["method", "sides", "seed"]):
        if "hypernet-sliced" in method:
            continue  # ten steps are far too few for it
        ordered = rows.sort_values("position")
        best = ordered[(ordered["image_encoder"] == "sharp") & (ordered["text_encoder"] == "words")]
        assert (best["score"] > 60).all()
        assert best["rank"].tolist() == [1]
        assert (best["position"] <= (1 if "both" in method else 2)).all()
        assert ordered["image_encoder"].tolist()[-2:] == ["dull", "dull"]


def test_every_method_is_held_against_both_grids_and_each_grid_against_itself(grid: Run) -> None:
    found = [(item["order"], item["reference"]) for item in grid.result["agreement"]]

    labels = ["closed-form · both", "closed-form · text", "hypernet · both", "hypernet-sliced · text"]
    for sides, other in (("text", "both"), ("both", "text")):
        held = [order for order, reference in found if reference == f"ape · {sides}, mean of 2 seeds"]
        assert held == [*labels, f"ape · {other}", f"ape · {other} · seed 1"]
        assert (f"ape · {sides}", "itself under another seed (the noise ceiling)") in found
    assert all(item["n_pairs"] == len(PAIRS) for item in grid.result["agreement"])
    assert all(-1 <= item["spearman"] <= 1 for item in grid.result["agreement"])


def test_one_seed_has_no_noise_ceiling(world: Path) -> None:
    config = small_config(world, methods=("ape", "closed-form"), baseline_seeds=1, baseline={"n_epochs": 1.0})

    run = load_run(small_search(world, config=config, out="one seed"))

    assert [item["reference"] for item in run.result["agreement"]] == ["ape · text", "ape · text"]
    assert run.result["method"] == "closed-form"
    assert run.result["seeds"] == [0]


def test_ratios_and_totals_are_those_of_the_ledger(grid: Run) -> None:
    ledger, result = grid.ledger, grid.result

    searched = ledger[ledger["stage"].isin(SEARCH_STAGES)].groupby("method")["flops"].sum()
    baseline = ledger[(ledger["method"] == "ape · text") & ledger["stage"].isin(["training", "validation"])]
    ran = ledger[(ledger["seconds"] > 0) | (ledger["stage"] == "optimiser")]
    matched, own = result["ratios"]
    assert matched["method_flops"] == own["method_flops"] == searched["hypernet · both"]
    assert matched["baseline_flops"] == own["baseline_flops"] == baseline["flops"].sum()  # both at batch 16
    assert "batch 16, 6 epochs, 6 pairs" in own["baseline"]
    assert "batch 16, 10 steps" in own["method"]
    assert result["totals"] == {"search_flops": searched["hypernet · both"], "all_flops": ran["flops"].sum()}


def test_the_ratio_at_matched_batch_gives_the_baseline_the_batch_of_the_method(world: Path) -> None:
    config = small_config(world, baseline={"n_epochs": 4.0, "batch_size": 8})

    matched, own = load_run(small_search(world, config=config, out="batches")).result["ratios"]

    assert "batch 16, 4 epochs" in matched["baseline"]
    assert "batch 8, 4 epochs" in own["baseline"]
    assert matched["baseline_flops"] > own["baseline_flops"]


def test_a_set_up_is_booked_to_all_who_start_from_it_and_timed_once(grid: Run) -> None:
    setups = grid.ledger[grid.ledger["stage"] == "set-up"]

    assert len(setups) == 5
    assert setups["flops"].nunique() == 1
    assert (setups["seconds"] > 0).tolist() == [True, False, False, False, False]
    assert "shared with closed-form · both" in setups["what"].iloc[1]


def test_the_answer_is_the_hypernetwork_s_and_names_the_verified_pairs(plain: Run) -> None:
    own = plain.leaderboard[plain.leaderboard["method"] == "hypernet"].sort_values("position")
    verified = plain.leaderboard[plain.leaderboard["method"] == "ape"]

    assert plain.result["method"] == "hypernet"
    assert sorted(pairs_of(verified)) == sorted(pairs_of(own)[:2])
    assert plain.result["answer"][0].startswith("+".join(pairs_of(own)[0]))
    assert len(plain.result["answer"]) == 3
    for sentence, row in zip(plain.result["answer"][1:], verified.itertuples(), strict=True):
        assert f"trained for {row.image_encoder}+{row.text_encoder} alone: {row.score:.1f}" in sentence
    assert (plain.ledger["stage"] == "verification").sum() == 1


def test_verifying_every_pair_agrees_with_the_grid_pair_by_pair(world: Path, grid: Run) -> None:
    run = load_run(small_search(world, config=small_config(world, verify=99), out="verified"))

    mine, theirs = (
        table[table["method"].eq("ape") & table["sides"].eq("text") & table["seed"].eq(0)]
        .set_index(["image_encoder", "text_encoder"])["score"]
        .sort_index()
        for table in (run.leaderboard, grid.leaderboard)
    )
    pd.testing.assert_series_equal(mine, theirs)
    assert [item["order"] for item in run.result["agreement"]] == ["hypernet · both"]


def test_the_same_seed_gives_the_same_table_and_another_seed_another(world: Path, plain: Run) -> None:
    again = small_search(world, config=small_config(world, verify=2), out="again")
    other = small_search(world, config=small_config(world, verify=2, seed=1), out="other")

    assert same_table(plain.path, again)
    assert (plain.path / "leaderboard.csv").read_bytes() == (again / "leaderboard.csv").read_bytes()
    for name in ("connectors.safetensors", "hits.safetensors"):
        assert (plain.path / name).read_bytes() == (again / name).read_bytes()
    assert not same_table(plain.path, other)


@pytest.mark.parametrize(
    ("limits", "images", "texts", "pairs"),
    [
        (Limits(image_params=Range(high=2e6)), ["dull", "wide"], ["words", "phrases"], 4),
        (Limits(dim=Range(16, 16)), ["sharp"], ["words", "phrases"], 2),
        (Limits(text_params=Range(high=1e5)), ["sharp", "dull", "wide"], ["phrases"], 3),
        (Limits(pair_params=Range(high=2.2e6)), ["dull", "wide"], ["words", "phrases"], 3),
        (Limits(pair_params=Range(low=3.3e6)), ["sharp"], ["words"], 1),
    ],
    ids=["image", "dim", "text", "pair", "one"],
)
def test_limits_change_the_set_and_say_so(
    world: Path, limits: Limits, images: list[str], texts: list[str], pairs: int
) -> None:
    said: list[str] = []
    config = small_config(world, limits=limits, scores=False, train={"n_steps": 1, "batch_size": 8})

    run = load_run(small_search(world, config=config, out="limits", say=said.append))

    found = pairs_of(run.leaderboard)
    assert {image for image, _ in found} == set(images)
    assert {text for _, text in found} == set(texts)
    assert len(found) == pairs
    words = f"{len(images)} of 3 image encoders, {len(texts)} of 2 text encoders, {pairs} of 6 pairs"
    assert said == run.result["counts"] == [f"within the limits: {words}"]


def test_a_pair_budget_drops_single_pairs(world: Path) -> None:
    """Of the two encoders of 2.0M and 0.4M parameters each stays, the pair of them goes."""
    limits = Limits(pair_params=Range(high=2.2e6))

    run = load_run(small_search(world, config=small_config(world, limits=limits, methods=("ape", "hypernet"))))

    for method in ("ape", "hypernet"):
        table = run.leaderboard[run.leaderboard["method"].eq(method) & run.leaderboard["seed"].eq(0)]
        assert sorted(pairs_of(table)) == [("dull", "phrases"), ("dull", "words"), ("wide", "phrases")]
        assert (table["n_params_image"] + table["n_params_text"]).max() <= 2.2e6
    assert "3 pairs" in run.result["ratios"][0]["baseline"]
    hypernet = run.leaderboard[run.leaderboard["method"] == "hypernet"]
    trained = run.ledger[(run.ledger["method"] == "hypernet · both") & (run.ledger["stage"] == "training")]
    assert hypernet["train_flops"].sum() == pytest.approx(trained["flops"].iloc[0], abs=3)


@pytest.mark.parametrize(
    ("methods", "answer"),
    [
        (("ape",), "ape"),
        (("closed-form", "ape"), "closed-form"),
        (("hypernet-sliced", "closed-form"), "hypernet-sliced"),
    ],
)
def test_the_answer_is_that_of_the_cheapest_method_that_learns(
    world: Path, methods: tuple[str, ...], answer: str
) -> None:
    quick = {"n_steps": 1, "batch_size": 8}
    config = small_config(world, methods=methods, baseline_seeds=1, train=quick, baseline=quick, scores=False)

    run = load_run(small_search(world, config=config, out="answers"))

    assert run.result["method"] == answer
    assert (run.result["ratios"] == []) == (answer == "ape")


def test_the_word_hypernet_means_the_decoder_that_was_asked_for(world: Path) -> None:
    quick = {"n_steps": 1, "batch_size": 8}

    run = load_run(small_search(world, config=small_config(world, decoder="sliced", train=quick, scores=False)))

    assert set(run.leaderboard["method"]) == {"hypernet-sliced"}


def test_zero_shot_scores_classes_and_orders_by_them(world: Path) -> None:
    config = small_config(world, task="zero-shot", labels=str(world / "shapes"), methods=("hypernet", "closed-form"))

    run = load_run(small_search(world, config=config, out="zero-shot"))

    table = run.leaderboard
    np.testing.assert_allclose(table["score"], table["zero_shot_top_1"])
    best = table[table["position"] == 1]
    assert (best["score"] > 100 / len(CLASSES) + 30).all()  # chance is a third
    assert run.result["data"]["label_set"]["name"] == "shapes"
    hits = load_tensors(run.path / "hits.safetensors")
    assert hits["hypernet-both-0/top_1"].shape == (len(PAIRS), 9)  # every second of 18 pictures


def test_labels_stand_beside_the_retrieval_score(world: Path, plain: Run) -> None:
    config = small_config(world, labels=str(world / "shapes"), verify=2)

    run = load_run(small_search(world, config=config, out="labels"))

    assert run.leaderboard["zero_shot_top_1"].notna().all()
    pd.testing.assert_series_equal(run.leaderboard["score"], plain.leaderboard["score"])
    assert plain.leaderboard["zero_shot_top_1"].isna().all()


def test_training_free_scores_are_columns_that_can_be_left_out(world: Path, plain: Run) -> None:
    run = load_run(small_search(world, config=small_config(world, scores=False), out="no scores"))

    assert run.leaderboard[["cka", "mutual_knn"]].isna().all().all()
    assert plain.leaderboard[["cka", "mutual_knn"]].notna().all().all()
    by_cka = plain.leaderboard[plain.leaderboard["method"] == "hypernet"].sort_values("cka").iloc[-1]
    assert by_cka["image_encoder"] != "dull"  # mostly noise


def test_a_place_for_runs_that_cannot_be_written_to_is_known_before_anything_is_computed(world: Path) -> None:
    steps: list[str] = []
    out = world / "zoo.toml"  # a file: a folder without rights is none to who may everything

    with pytest.raises(OSError, match=r"^could not make .*zoo\.toml: File exists; choose another folder with --out$"):
        small_search(world, out=out.name, progress=lambda stage, done, total: steps.append(stage))

    assert {*steps} == {"encoders", "reading pictures"}, "what is asked for is looked at, nothing more"


def test_no_time_at_all_still_ranks_what_needs_no_training(world: Path) -> None:
    run = load_run(small_search(world, config=small_config(world, max_minutes=0.0, polish=2), out="no time"))

    assert sorted(pairs_of(run.leaderboard)) == sorted(PAIRS)
    assert run.result["notes"] == [
        "hypernet · both: training was stopped after 0 steps, for the time was up",
        "0 of the first 2 pairs were polished in the time given",
    ]
    assert all(", stopped after 0 steps, " in ratio["method"] for ratio in run.result["ratios"])
    steps = run.ledger[run.ledger["stage"] == "training"]["what"].tolist()
    assert steps == ["6 pairs, 0 steps"]


def test_a_baseline_without_time_is_left_out_and_missed(world: Path) -> None:
    config = small_config(world, methods=("closed-form", "ape"), max_minutes=0.0)

    run = load_run(small_search(world, config=config, out="no time for ape"))

    assert set(run.leaderboard["method"]) == {"closed-form"}
    assert run.result["notes"] == [
        "ape · text: 0 of 6 pairs were finished in the time given",
        "ape · text · seed 1: 0 of 6 pairs were finished in the time given",
    ]
    assert run.result["agreement"] == []


def test_a_search_that_finished_nothing_says_how_to_go_on(world: Path) -> None:
    config = small_config(world, methods=("ape",), max_minutes=0.0)

    with pytest.raises(ValueError, match="no pair was finished in 0 minutes"):
        small_search(world, config=config, out="nothing")

    run = next((world / "nothing").iterdir())
    assert read_result(run)["status"] == "running"


def test_connectors_on_disk_score_as_the_table_says(world: Path, plain: Run) -> None:
    from hyperalign.align.grid import build_grid
    from hyperalign.packing import unpack
    from hyperalign.rank.metrics import recall
    from hyperalign.scoring import retrieval

    event = next(line for line in read_log(plain.path) if line["event"] == "connectors")
    solution = unpack(load_tensors(plain.path / "connectors.safetensors"), event["solution"])
    images, texts = (
        [np.load(world / "rows" / f"{name}-test.npy") for name in event[side]] for side in ("images", "texts")
    )
    test = build_grid(images, texts, np.repeat(np.arange(SPLITS["test"]), N_CAPTIONS))

    scores = [recall(hits)["score"] for hits in retrieval(solution, test)]

    own = plain.leaderboard[plain.leaderboard["method"] == "hypernet"].set_index(["image_encoder", "text_encoder"])
    names = [(event["images"][i], event["texts"][j]) for i, j in solution.pairs]
    assert names == list(own.index)  # the ten best, of six
    np.testing.assert_allclose(scores, own["score"], atol=1e-3)


def test_the_record_says_what_was_searched(world: Path, plain: Run) -> None:
    result = json.loads((plain.path / "result.json").read_text())

    assert result["data"]["name"] == "pairs"
    assert result["data"]["splits"]["test"]["n_captions"] == SPLITS["test"] * N_CAPTIONS
    assert [spec["name"] for spec in result["encoders"]] == [*IMAGES, *TEXTS]
    assert all(len(spec["weights"]) == 64 for spec in result["encoders"])
    assert all("folder" not in spec for spec in result["encoders"])
    assert result["wall_seconds"] > 0
    assert result["roofline"]["flops_per_second"] > 1e8
    assert str(world) not in json.dumps({key: result[key] for key in result if key != "configuration"})


def test_progress_names_each_stage_and_comes_to_its_end(world: Path) -> None:
    told: list[tuple[str, int, int]] = []
    config = small_config(world, methods=("ape", "hypernet"), baseline_seeds=1, verify=None)

    small_search(world, config=config, out="progress", progress=lambda *event: told.append(event))

    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[0] == "encoders"
    assert stages[-4:] == [
        "canonical coordinates",
        "hypernetwork, steps",
        "ape · text, pairs",
        "test evaluation, methods",
    ]
    for stage in stages[-4:]:
        done = [(at, of) for name, at, of in told if name == stage]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ("apes",)}, "a method is one of ape, closed-form, hypernet, hypernet-sliced, got 'apes'"),
        ({"methods": ()}, "a search needs a method"),
        ({"decoder": "cut"}, "decoder must be residual or sliced, got 'cut'"),
        ({"sides": "text,left"}, "sides must be text or both, got 'left'"),
        ({"task": "retrieve"}, "task must be retrieval or zero-shot, got 'retrieve'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"baseline_seeds": 0}, "baseline_seeds must be at least 1, got 0"),
        ({"verify": -1}, "verify must be at least 0 pairs, got -1"),
        ({"max_minutes": -1.0}, "max_minutes must be at least 0, got -1.0"),
        ({"train": {"steps": 3}}, "unknown setting train.steps; known are batch_size"),
        ({"train": {"seed": 3}}, "a search has one seed for everything, got train.seed = 3"),
        ({"canonical": {"rank": 0}}, "rank must be at least 1, got 0"),
        ({"baseline": {"batch_size": 1}}, "batch_size must be at least 2, got 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_no_search_could_do_is_refused_when_it_is_asked(changes: dict[str, Any], sentence: str) -> None:
    base = small_config(Path("nowhere"))

    with pytest.raises(ValueError, match=f"^{sentence}"):
        replace(base, **changes)


def test_sides_that_are_named_twice_are_run_once(world: Path) -> None:
    assert small_config(world, sides="both, text,both").all_sides() == ["both", "text"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """How often a solver was called since the fixture was made."""
    counts: dict[str, int] = {}

    def counted(name: str) -> None:
        from hyperalign import solve

        real = getattr(solve, name)

        def call(*given: Any, **named: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return real(*given, **named)

        monkeypatch.setattr(solve, name, call)

    for name in ("build_canonical_grid", "solve_residual", "solve_closed_form", "solve_ape"):
        counted(name)
    return lambda name: counts.get(name, 0)


def test_canonical_coordinates_are_made_once_for_all_methods(world: Path, calls: Callable[[str], int]) -> None:
    quick = {"n_steps": 1, "batch_size": 8}
    methods = ("closed-form", "hypernet", "ape")
    config = small_config(world, methods=methods, sides="both", train=quick, baseline_both=quick, scores=False)

    small_search(world, config=config, out="once")

    assert calls("build_canonical_grid") == 1
    assert calls("solve_residual") == 1
    assert calls("solve_closed_form") == 2  # its twin between the rows too
    assert calls("solve_ape") == 2 * len(IMAGES)  # two seeds, an image encoder at a time
