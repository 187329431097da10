"""A study of the small world: its best trial can be repeated, no pair is tried twice, no test item is looked at."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from small_zoo import IMAGES, TEXTS, read_rows, small_config, small_search, write_rows, write_world

from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid
from hyperalign.align.residual import RESIDUAL
from hyperalign.align.train import TrainConfig
from hyperalign.config import place_words, read_words
from hyperalign.embed.zoo import EncoderSpec, Limits, Range
from hyperalign.prepare import fill_cache
from hyperalign.request import SearchConfig, from_record
from hyperalign.run import load_run
from hyperalign.study.asked import StudyConfig, tuned
from hyperalign.study.conduct import Place, begin, best_commands, find_study, go_on
from hyperalign.study.kept import read_study
from hyperalign.study.pairs import excesses
from hyperalign.study.space import Knob, defaults, read_space, turned, usual_space
from hyperalign.study.storage import quiet

SPACE = {"learning_rate": "2e-1:2e1:log", "n_steps": "5:20"}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, captions and rows."""
    return write_world(tmp_path_factory.mktemp("study") / "world")


def place_in(world: Path, out: Path, **given: Any) -> Place:
    """Where a study is done, silently."""
    plain: dict[str, Any] = {"progress": lambda stage, done, total: None, "say": lambda sentence: None}
    return Place(cache_dir=world / "cache", out=out, **{"storage": "journal", **plain, **given})


def small_study(world: Path, out: Path, *, config: SearchConfig | None = None, **asked: Any) -> Path:
    """A study of the small world."""
    given = StudyConfig(**{"trials": 4, "space": {} if asked.get("over") == "pairs" else SPACE, **asked})
    return begin(config or small_config(world), given, place_in(world, out))


def values_of(record: Mapping[str, Any]) -> dict[int, float]:
    """The score of each complete trial."""
    return {trial["number"]: trial["values"][0] for trial in record["trials"] if trial["values"]}


def repeated(command: str, world: Path, out: Path) -> Any:
    """The leaderboard of the search that a command asks for."""
    words = command.split()
    assert words[:3] == ["hyperalign", "search", "--config"]
    tables = ("train", "baseline", "baseline_both", "canonical")
    known = [*SearchConfig.__slots__, "method", "budget", "exhaustive"]
    read = read_words(Path(words[3]), known, tables=tables)
    config = from_record(place_words(read))
    return load_run(small_search(world, config=config, out=str(out))).leaderboard


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {}),
        ({}, {"pruner": "none", "seeds": 1}),
        ({"methods": ("ape",), "baseline_seeds": 1}, {"space": {"learning_rate": "1e-3:1e-1:log", "n_epochs": "1:4"}}),
    ],
)
def test_the_search_of_the_best_trial_scores_what_the_trial_has(
    changes: dict[str, Any], asked: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    folder = small_study(world, tmp_path, config=small_config(world, seed=3, **changes), **asked)
    record = read_study(folder)
    ((_, command),) = best_commands(folder)

    table = repeated(command, world, tmp_path / "again")

    best = max(values_of(record).values())
    assert values_of(record)[record["best"][0]] == best
    assert table["validation_score"].mean() == pytest.approx(best, abs=1e-9)


def test_todays_defaults_are_the_first_trial(world: Path, tmp_path: Path) -> None:
    record = read_study(small_study(world, tmp_path, trials=1))

    assert record["trials"][0]["params"] == {"learning_rate": RESIDUAL.learning_rate, "n_steps": 10}


def test_a_set_up_that_trials_share_is_in_no_trial_s_training(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*given: Any) -> CanonicalGrid:
        time.sleep(1.5)
        return build_canonical_grid(*given)

    monkeypatch.setattr("hyperalign.solve.build_canonical_grid", slow)
    record = read_study(small_study(world, tmp_path, trials=2))

    assert [trial["facts"]["training / s"] > 0 for trial in record["trials"]] == [True, True]


def test_a_study_of_another_seed_draws_other_trials_and_of_the_same_the_same(world: Path, tmp_path: Path) -> None:
    drawn = [
        [t["params"] for t in read_study(small_study(world, tmp_path, config=small_config(world, seed=s)))["trials"]]
        for s in (0, 0, 1)
    ]

    assert drawn[0] == drawn[1] != drawn[2]


def test_a_study_looks_at_no_test_item(world: Path, tmp_path: Path) -> None:
    other = write_world(tmp_path / "other")
    for name in (*IMAGES, *TEXTS):
        write_rows(other, name, "test", np.random.default_rng(9).standard_normal(read_rows(other, name, "test").shape))

    for over in ("training", "pairs"):
        found = [read_study(small_study(one, tmp_path / over, over=over, pruner="none")) for one in (world, other)]

        assert values_of(found[0]) == values_of(found[1])


def test_a_pruned_trial_costs_less_and_does_not_count(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 2)

    record = read_study(small_study(world, tmp_path, space={"learning_rate": "1e-3:1e-1:log"}))

    states = [trial["state"] for trial in record["trials"]]
    spent = [trial["facts"]["spent / TFLOP"] for trial in record["trials"]]
    assert states == ["complete", "complete", "pruned", "complete"]
    assert spent[2] < min(spent[:2])
    assert len(record["trials"][0]["curve"]) == 4
    assert len(record["trials"][2]["curve"]) == 1
    assert 2 not in values_of(record)
    assert record["spent_tflop"]["pruned"] == pytest.approx(spent[2])


def test_two_objectives_give_the_front_and_a_command_for_each(world: Path, tmp_path: Path) -> None:
    record = read_study(folder := small_study(world, tmp_path, objectives=("score", "flops"), trials=6))

    values = {trial["number"]: trial["values"] for trial in record["trials"]}
    front = [values[number] for number in record["best"]]
    assert record["directions"] == ["maximize", "minimize"]
    assert front == sorted(front, reverse=True)
    assert [cost for _, cost in front] == sorted((cost for _, cost in front), reverse=True)
    for one in values.values():
        assert any(other[0] >= one[0] and other[1] <= one[1] for other in front)
    assert len(best_commands(folder)) == len(front)


def test_several_seeds_are_averaged(world: Path, tmp_path: Path) -> None:
    one, two, both = (
        read_study(small_study(world, tmp_path, config=small_config(world, seed=s), seeds=n, trials=1, pruner="none"))
        for s, n in ((0, 1), (1, 1), (0, 2))
    )

    assert values_of(both)[0] == pytest.approx((values_of(one)[0] + values_of(two)[0]) / 2)
    assert both["trials"][0]["facts"]["spread of the seeds / points"] >= 0


def test_a_study_goes_on_with_more_trials_in_the_folder_it_is_in(world: Path, tmp_path: Path) -> None:
    folder = small_study(world, tmp_path, trials=2)
    first = values_of(read_study(folder))
    moved = folder.rename(tmp_path / "moved")

    go_on(moved, place_in(world, tmp_path, storage=None), {"trials": 3})

    with pytest.raises(ValueError, match="keeps its data, got 'scenes'"):
        go_on(moved, place_in(world, tmp_path, storage=None), {}, data="scenes")
    again = values_of(read_study(moved))
    assert len(again) == 3
    assert {number: again[number] for number in first} == first
    assert find_study(tmp_path, pid=0) is None


def test_a_study_begins_with_the_best_trials_of_another(world: Path, tmp_path: Path) -> None:
    folder = small_study(world, tmp_path, trials=4, config=small_config(world, seed=5))
    best = read_study(folder)["trials"][read_study(folder)["best"][0]]["params"]
    asked = StudyConfig(trials=3, space=SPACE)

    found = begin(small_config(world), asked, place_in(world, tmp_path), warm=folder)
    elsewhere = begin(small_config(world), StudyConfig(trials=2), place_in(world, tmp_path), warm=folder)

    assert best in [trial["params"] for trial in read_study(found)["trials"][:2]]
    assert all(set(trial["params"]) != set(best) for trial in read_study(elsewhere)["trials"])


def test_a_study_of_a_run_lies_in_its_folder_and_leaves_the_run_as_it_was(world: Path, tmp_path: Path) -> None:
    run = small_search(world, config=small_config(world), out=str(tmp_path / "runs"))
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "log.jsonl"}

    begin(small_config(world), StudyConfig(trials=1, space=SPACE), place_in(world, tmp_path), folder=run)

    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before
    assert load_run(run).result["status"] == "finished"
    assert read_study(run)["n_trials"] == {"complete": 1}
    with pytest.raises(ValueError, match="has a study already"):
        begin(small_config(world), StudyConfig(), place_in(world, tmp_path), folder=run)


def test_two_processes_share_a_study(world: Path, tmp_path: Path) -> None:
    asked = StudyConfig(trials=4, space=SPACE)

    folder = begin(small_config(world), asked, place_in(world, tmp_path, jobs=2, storage=None))

    record = read_study(folder)
    assert record["storage"] == "journal"
    assert record["status"] == "finished"
    assert record["n_trials"] == {"complete": 4}


def test_a_study_of_other_data_does_not_go_on(world: Path, tmp_path: Path) -> None:
    own = write_world(tmp_path / "own")
    folder = small_study(own, tmp_path, trials=1)
    lines = (own / "pairs.csv").read_text().splitlines()
    (own / "pairs.csv").write_text("\n".join([*lines[:-40], *lines[-38:]]))

    with pytest.raises(ValueError, match=r"changed since it began|one row for each"):
        go_on(folder, place_in(own, tmp_path, storage=None), {"trials": 2})


def test_a_record_of_another_release_is_one_sentence_and_left_as_it_was(world: Path, tmp_path: Path) -> None:
    folder = small_study(world, tmp_path, trials=1)
    path = folder / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7, "version": "3.1"}))
    before = {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}

    for attempt in (
        lambda: go_on(folder, place_in(world, tmp_path), {}),
        lambda: best_commands(folder),
        lambda: begin(small_config(world), StudyConfig(), place_in(world, tmp_path), folder=folder),
    ):
        with pytest.raises(ValueError, match=r"hyperalign 3\.1 in form 7|has a study already"):
            attempt()

    assert {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()} == before


def test_every_pair_is_tried_once_and_then_the_study_ends(world: Path, tmp_path: Path) -> None:
    record = read_study(small_study(world, tmp_path, over="pairs", trials=50))

    tried = Counter(tuple(trial["params"].values()) for trial in record["trials"])
    assert tried == Counter((image, text) for image in IMAGES for text in TEXTS)
    assert record["status"] == "finished"


def test_the_search_of_the_best_pair_scores_what_the_trial_has(world: Path, tmp_path: Path) -> None:
    told_apart = small_config(world, canonical={"image_ridge": 1.0})  # else two pairs have the same validation score
    folder = small_study(world, tmp_path, config=told_apart, over="pairs", trials=6)
    record = read_study(folder)
    ((_, command),) = best_commands(folder)

    table = repeated(command, world, tmp_path / "again")

    best = record["trials"][record["best"][0]]
    assert table[["image_encoder", "text_encoder"]].to_numpy().tolist() == [list(best["params"].values())]
    assert table["validation_score"].iloc[0] == pytest.approx(best["values"][0], abs=1e-9)
    assert best["params"]["image_encoder"] == "sharp"


def test_a_pair_beyond_a_limit_is_never_proposed_and_limits_are_constraints(world: Path, tmp_path: Path) -> None:
    limits = Limits(image_params=Range(high=2_000_000))

    record = read_study(small_study(world, tmp_path, config=small_config(world, limits=limits), over="pairs", trials=9))

    assert {trial["params"]["image_encoder"] for trial in record["trials"]} == {"dull", "wide"}
    assert {trial["constraints"]["image parameters"] for trial in record["trials"]} == {-0.5, 0.0}


def test_only_what_a_trial_needs_is_embedded(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def noting(jobs: Sequence[Any], **given: Any) -> Any:
        seen.extend((job.spec.name, job.part) for job in jobs)
        return fill_cache(jobs, **given)

    monkeypatch.setattr("hyperalign.study.pairs.fill_cache", noting)

    record = read_study(small_study(world, tmp_path, over="pairs", trials=1))

    assert {name for name, _ in seen} == set(record["trials"][0]["params"].values())
    assert {part for _, part in seen} == {"train", "val"}


@pytest.mark.parametrize(
    ("limits", "latency", "found"),
    [
        (Limits(image_params=Range(high=10)), None, {"image parameters": 1.0}),
        (Limits(image_params=Range(low=40)), None, {"image parameters": 0.5}),
        (Limits(pair_params=Range(low=25, high=50)), None, {"parameters of both": -0.2}),
        (Limits(latency_ms=Range(high=4.0)), 3.0, {"ms of a picture": -0.25}),
        (Limits(licenses=("mit",)), None, {"licences": 1.0}),
        (Limits(), 3.0, {}),
    ],
)
def test_a_limit_is_a_constraint_of_at_most_nought(
    limits: Limits, latency: float | None, found: dict[str, float]
) -> None:
    rows: dict[str, Any] = {"loader": "rows", "checkpoint": "{split}.npy"}
    image = EncoderSpec(name="i", modality="image", n_params=20, license="MIT", **rows)
    text = EncoderSpec(name="t", modality="text", n_params=10, **rows)

    assert excesses(image, text, limits, latency) == pytest.approx(found)


@pytest.mark.parametrize(
    ("words", "knob"),
    [
        ({"learning_rate": "1e-4:1e-1:log"}, Knob(name="learning_rate", low=1e-4, high=0.1, log=True)),
        ({"n_visits": "5:40"}, Knob(name="n_visits", low=5, high=40)),
        ({"batch_size": [128, 256]}, Knob(name="batch_size", choices=(128, 256))),
        ({"learn_scale": "true,false"}, Knob(name="learn_scale", choices=(True, False))),
    ],
)
def test_a_space_is_read_from_words(words: dict[str, Any], knob: Knob) -> None:
    assert read_space(words, RESIDUAL) == (knob,)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"rate": "1:2"}, "unknown setting 'rate'"),
        ({"seed": "1:2"}, "seed cannot vary"),
        ({"learning_rate": "1:0.1"}, "must rise"),
        ({"learning_rate": "0:1"}, "above 0"),
        ({"warmup_frac": "0:0.5:log"}, "begin above 0"),
        ({"warmup_frac": "0:1"}, r"in \[0, 1\)"),
        ({"batch_size": "1:2:3:4"}, "LOW:HIGH"),
        ({"batch_size": "256"}, "two values or more"),
        ({"batch_size": "some"}, "must hold numbers"),
        ({"batch_size": "128.5,256"}, "whole number"),
        ({"n_steps": "1:2", "n_epochs": "1:2"}, "one field says how long"),
    ],
)
def test_a_space_that_no_training_has_is_refused(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_space(words, RESIDUAL)


@pytest.mark.parametrize("base", [RESIDUAL, TrainConfig(n_epochs=10), TrainConfig(n_steps=75, logit_scale=60.0)])
def test_the_usual_space_holds_the_defaults_and_every_end_can_be_trained(base: TrainConfig) -> None:
    knobs = usual_space(base, hypernet=True)

    assert turned(base, defaults(knobs, base)) == base
    for knob in knobs:
        for value in knob.choices or (knob.low, knob.high):
            turned(base, {knob.name: value})


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"over": "encoders"}, "over must be one of training, pairs"),
        ({"sampler": "best"}, "sampler must be one of"),
        ({"objectives": ("flops",)}, "objective score"),
        ({"trials": 0}, "at least 1"),
        ({"objectives": ("score", "flops"), "pruner": "median"}, "pruner is for one objective"),
        ({"sampler": "nsga2"}, "two objectives"),
        ({"over": "pairs", "seeds": 2}, "tries each pair once"),
    ],
)
def test_what_no_study_could_do_is_refused(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        StudyConfig(**asked)


def test_the_closed_form_has_nothing_to_tune(world: Path) -> None:
    with pytest.raises(ValueError, match="no training to tune"):
        tuned(replace(small_config(world), methods=("closed-form",)))


def test_callbacks_want_one_process(world: Path, tmp_path: Path) -> None:
    with quiet(), pytest.raises(ValueError, match="one process"):
        begin(
            small_config(world), StudyConfig(), place_in(world, tmp_path, jobs=2), callbacks=[lambda study, trial: None]
        )
