"""An encoder adopted into a finished run: near a full search for its own pairs, and nothing else is touched."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_zoo import read_rows, small_config, small_search, write_rows, write_world

from hyperalign import cli
from hyperalign.adopt import adopt
from hyperalign.embed.zoo import Limits, parse_range
from hyperalign.hyperclip.winner import _kept_connectors
from hyperalign.kept import read_notes
from hyperalign.packing import unpack
from hyperalign.relimit import open_run
from hyperalign.run import (
    Run,
    find_finished,
    find_unfinished,
    load_run,
    load_stage,
    load_tensors,
    read_log,
    read_result,
    save_stage,
    write_result,
    write_tensors,
)
from hyperalign.show.view import draw_board
from hyperalign.use.chosen import choose_pair

OWN = ["position", "rank", "p_best"]
PAIR = ["image_encoder", "text_encoder"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small world, with `few.toml` that lacks `wide` and `words` and a file for each of the two."""
    world = write_world(tmp_path)
    tables = (world / "zoo.toml").read_text().split("\n\n")
    named = {table.split("'")[1]: table for table in tables}
    for name in ("wide", "words"):
        (world / f"{name}.toml").write_text(named.pop(name) + "\n")
    (world / "few.toml").write_text("\n\n".join(named.values()) + "\n")
    return world


def searched(folder: Path, *zoos: str, **changes: Any) -> Run:
    """A search of 60 steps over some of the zoo files."""
    train = {"n_steps": 60, "batch_size": 16, "pairs_per_step": 3}
    zoo = tuple(str(folder / f"{name}.toml") for name in ("few", *zoos))
    return load_run(small_search(folder, config=small_config(folder, **{"zoo": zoo, "train": train, **changes})))


def adopted(folder: Path, run: Run, name: str, *, zoo: str | None = None, **changes: Any) -> Run:
    """That run with one encoder more."""
    given = {"zoo": tuple(run.result["configuration"]["zoo"]), "train": run.result["configuration"]["train"]}
    config = small_config(folder, **{**given, **changes})
    path = adopt(
        name,
        run.path,
        config,
        zoo=[str(folder / f"{zoo or name}.toml")],
        cache_dir=folder / "cache",
        out=folder / "reports",
        progress=lambda stage, done, total: None,
        say=lambda sentence: None,
    )
    return load_run(path)


def of_encoder(run: Run, name: str) -> pd.DataFrame:
    """Rows of an encoder's pairs."""
    table = run.leaderboard
    return table[(table["image_encoder"] == name) | (table["text_encoder"] == name)]


@pytest.mark.parametrize(("name", "other"), [("wide", "words"), ("words", "wide")])
def test_rows_of_other_encoders_are_the_same_to_the_last_bit(folder: Path, name: str, other: str) -> None:
    before = searched(folder, other, methods=("closed-form", "hypernet"))

    after = adopted(folder, before, name, methods=("closed-form", "hypernet"))

    table = after.leaderboard
    others = table[(table["image_encoder"] != name) & (table["text_encoder"] != name)]
    keys = [*PAIR, "method", "sides"]
    left, right = (one.drop(columns=OWN).sort_values(keys, ignore_index=True) for one in (before.leaderboard, others))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    hits, kept = (load_tensors(after.path / f"{file}.safetensors") for file in ("hits", "kept"))
    n_before = len(load_tensors(before.path / "kept.safetensors")["pairs"])
    assert len(kept["pairs"]) == n_before + len(of_encoder(after, name)) == len(hits["hypernet-both-0/t2i"])
    for key, array in load_tensors(before.path / "hits.safetensors").items():
        assert np.array_equal(hits[key][: len(array)], array)


@pytest.mark.parametrize(("name", "other"), [("wide", "words"), ("words", "wide")])
def test_a_newcomer_among_the_first_is_polished_as_a_search_does_it(folder: Path, name: str, other: str) -> None:
    before = searched(folder, other, polish=1)

    after = adopted(folder, before, name, polish=4)

    table = after.leaderboard
    hypernet, polished = (table[table["method"] == one] for one in ("hypernet", "polished"))
    first = hypernet.nlargest(4, "validation_score")
    mine = of_encoder(after, name)
    assert set(zip(*of_pairs(polished), strict=True)) == (
        set(zip(*of_pairs(before.leaderboard[before.leaderboard["method"] == "polished"]), strict=True))
        | set(zip(*of_pairs(first[first.index.isin(mine.index)]), strict=True))
    )
    assert 1 < len(polished) < len(hypernet)
    assert sorted(polished["position"]) == list(range(1, len(polished) + 1))
    full = searched(folder, "wide", "words", polish=6).leaderboard
    full = full[full["method"] == "polished"].set_index(PAIR)
    for row in polished.to_dict("records"):  # directions are of who is polished together: a caption more or less
        same = full.loc[(row["image_encoder"], row["text_encoder"])]
        assert row["validation_score"] == pytest.approx(same["validation_score"], abs=2.5)
        assert row["score"] == pytest.approx(same["score"], abs=2.5)
    (sentence,) = (one for one in after.result["answer"] if "Polished" in one)
    assert sentence.startswith(f"Polished, {len(polished)} pairs by themselves; {'+'.join(polished.iloc[0][PAIR])} ")
    hits = load_tensors(after.path / "hits.safetensors")
    assert len(hits["polished-both-0/t2i"]) == len(polished)
    assert open_run(after).table["position"].tolist() == list(range(1, len(hypernet) + 1))
    both = _kept_connectors(after)
    assert set(both) == {f"{image}+{text}" for image, text in zip(*of_pairs(hypernet), strict=True)}


def test_two_newcomers_are_polished_one_after_the_other(folder: Path) -> None:
    first = adopted(folder, searched(folder, polish=0), "words", polish=2)

    second = adopted(folder, first, "wide", polish=3)

    table = second.leaderboard
    polished = table[table["method"] == "polished"]
    assert {*of_encoder(second, "wide").index, *of_encoder(second, "words").index} >= {*polished.index}
    assert len(polished) > len(first.leaderboard[first.leaderboard["method"] == "polished"]) > 0
    assert sorted(polished["position"]) == list(range(1, len(polished) + 1))
    assert len(load_tensors(second.path / "hits.safetensors")["polished-both-0/i2t"]) == len(polished)
    assert len(_kept_connectors(second)) == 6


@pytest.mark.parametrize("polish", [0, 6])
def test_a_newcomer_whose_pairs_are_limited_keeps_the_connectors_of_its_own_partners(folder: Path, polish: int) -> None:
    limits = Limits(pair_params=parse_range(":3200000"))  # sharp and words have more

    after = adopted(folder, searched(folder, "wide", limits=limits, polish=0), "words", limits=limits, polish=polish)

    mine = of_encoder(after, "words")
    pairs = set(zip(*of_pairs(mine), strict=True))
    assert pairs == {("dull", "words"), ("wide", "words")}
    notes = [note for note in read_notes(after) if note.prefix.startswith("adopted/words")]
    assert len(notes) == (2 if polish else 1)
    assert all(set(note.pairs) == pairs for note in notes)
    tensors = load_tensors(after.path / "connectors.safetensors")
    for note in notes:
        made = unpack(note.own(tensors), note.record)
        for (image, _), (i, _) in zip(note.pairs, made.pairs, strict=True):
            way = made.images[i]
            assert way is not None
            assert way.width == {"dull": 12, "wide": 24}[image]
    assert set(_kept_connectors(after)) >= {"dull+words", "wide+words"}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([0], "validation"),
        ([0, 1, 2], "validation, the first 3 pairs by the better of their connectors"),
        ([1, 3], "validation, the 2 polished pairs among each other by the better of their connectors"),
    ],
)
def test_the_table_says_which_pairs_stand_by_what_they_score_polished(
    folder: Path, places: list[int], words: str
) -> None:
    run = searched(folder, "wide", "words", polish=0)
    own = run.leaderboard.sort_values("position", ignore_index=True)

    table = pd.concat([own, own.iloc[places].assign(method="polished")], ignore_index=True)

    assert draw_board(replace(run, leaderboard=table)).chosen == words


def of_pairs(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Names of both encoders of its rows."""
    return table["image_encoder"].tolist(), table["text_encoder"].tolist()


@pytest.mark.parametrize(("name", "other"), [("wide", "words"), ("words", "wide")])
def test_new_pairs_are_near_those_of_a_full_search(folder: Path, name: str, other: str) -> None:
    full = of_encoder(searched(folder, "wide", "words"), name)["score"].mean()

    after = adopted(folder, searched(folder, other), name)

    mine = of_encoder(after, name)
    assert mine["score"].mean() > 0.9 * full  # chance is 100/20
    assert full > 30
    assert after.ledger.loc[after.ledger["stage"] == "training", "what"].item().endswith("emission alone")
    assert {one["name"] for one in after.result["encoders"]} == {"sharp", "dull", "wide", "words", "phrases"}
    modalities = [one["modality"] for one in after.result["encoders"]]
    assert modalities == ["image"] * 3 + ["text"] * 2


@pytest.mark.parametrize(("name", "other"), [("wide", "words"), ("words", "wide")])
def test_an_adopted_run_under_other_limits_reads_its_own_hits(folder: Path, name: str, other: str) -> None:
    """The pairs of an adopted text encoder stand behind all others, and not in the order of the grid."""
    after = adopted(folder, searched(folder, other), name)

    found = open_run(after).under(Limits()).table

    own = after.leaderboard.sort_values("position", ignore_index=True)
    assert found["rank"].tolist() == own["rank"].tolist()
    np.testing.assert_allclose(found["p_best"], own["p_best"], atol=1e-9)


def test_old_and_new_pairs_are_ranked_together(folder: Path) -> None:
    after = adopted(folder, searched(folder, "words"), "wide").leaderboard

    assert sorted(after["position"]) == list(range(1, 7))
    assert after["validation_score"].is_monotonic_decreasing
    assert after["p_best"].sum() == pytest.approx(1)
    best = after.iloc[int(after["score"].to_numpy().argmax())]
    assert best["rank"] == 1


def test_an_adopted_run_adopts_another(folder: Path) -> None:
    first = adopted(folder, searched(folder), "wide")

    second = adopted(folder, first, "words")

    assert len(second.leaderboard) == 6
    assert [one["encoder"] for one in second.result["adopted"]] == ["wide", "words"]
    columns = [*PAIR, "score", "score_low", "score_high"]
    joined = second.leaderboard.merge(first.leaderboard[columns], on=columns)
    assert len(joined) == 3


@pytest.mark.parametrize("pair", ["wide+phrases", "wide+words", "sharp+words", "sharp+phrases"])
def test_every_pair_of_an_adopted_run_has_its_connector(folder: Path, pair: str) -> None:
    """Ready rows make no model, and that is said when the connector is found."""
    run = adopted(folder, adopted(folder, searched(folder), "wide"), "words")

    with pytest.raises(ValueError, match="is a file of ready embeddings"):
        choose_pair(run.path, pair)


def test_a_run_whose_kept_file_lacks_what_was_learned_is_refused(folder: Path) -> None:
    run = searched(folder, "words")
    path = run.path / "kept.safetensors"
    write_tensors(path, {name: array for name, array in load_tensors(path).items() if not name.endswith("/transform")})

    with pytest.raises(ValueError, match=r"lacks 'image/0/transform': the run is damaged or old; search anew"):
        adopted(folder, run, "wide")


def test_newcomers_of_which_all_pictures_tie_score_what_chance_does(folder: Path) -> None:
    """Hits of ties are fractions; what is kept of them must add up to the score, there and in the next adoption."""
    for split in ("train", "val", "test"):
        write_rows(folder, "wide", split, np.ones_like(read_rows(folder, "wide", split)))

    first = adopted(folder, searched(folder), "wide")
    second = adopted(folder, first, "words")

    assert of_encoder(first, "wide")["score"].tolist() == pytest.approx([100 / 20])
    assert of_encoder(second, "wide")["score"].tolist() == pytest.approx([100 / 20] * 2)


def test_a_search_that_an_earlier_release_cut_short_trains_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("hyperalign.pipeline.score_on_test", _stop)
        with pytest.raises(KeyboardInterrupt):
            searched(folder)
    (cut,) = (folder / "reports").iterdir()
    stage = load_stage(cut, "hypernet-both-0")
    assert stage is not None
    older = {name: array for name, array in stage.tensors.items() if not name.endswith("/transform")}
    save_stage(cut, "hypernet-both-0", tensors=older, record=stage.record)

    again = searched(folder)

    assert again.path == cut
    assert len(again.leaderboard) == 2
    (line,) = (line for line in read_log(cut) if line["event"] == "made anew")
    assert "lacks 'image/0/transform'" in line["reason"]


def test_an_adoption_that_is_cut_short_is_gone_on_with_by_no_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the zoo of the run has the encoder by now, so that both look at the same."""
    before = searched(folder, "words")
    with monkeypatch.context() as patched:
        patched.setattr("hyperalign.adopt.score_on_test", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            adopted(folder, before, "wide")
    (cut,) = (path.parent for path in (folder / "reports").glob("*/result.json") if path.parent != before.path)

    assert read_result(cut)["status"] == "running"
    assert not [line for line in read_log(cut) if line["event"] == "inputs"]  # by which a search knows its own


def test_an_encoder_that_no_zoo_has_gets_a_near_name(folder: Path) -> None:
    run = searched(folder, "words")

    with pytest.raises(KeyError, match="no encoder 'wyde' in the zoo; did you mean wide"):
        adopted(folder, run, "wyde", zoo="wide")


def test_an_encoder_of_the_run_is_refused(folder: Path) -> None:
    run = searched(folder, "words")

    with pytest.raises(ValueError, match=r"'words' is in .* already"):
        adopted(folder, run, "words", zoo="wide")


def test_an_unfinished_run_is_refused(folder: Path) -> None:
    run = searched(folder, "words")
    write_result(run.path, {**read_result(run.path), "status": "running"})

    with pytest.raises(ValueError, match="was cut short; go on with"):
        adopted(folder, run, "wide")


def test_a_run_of_another_method_is_refused(folder: Path) -> None:
    run = searched(folder, "words", methods=("closed-form",))

    with pytest.raises(ValueError, match="was answered by closed-form; search with --method hypernet"):
        adopted(folder, run, "wide", methods=("closed-form",))


def test_rows_that_have_changed_are_refused(folder: Path) -> None:
    run = searched(folder, "words")
    write_rows(folder, "sharp", "train", read_rows(folder, "sharp", "train") + 1)

    with pytest.raises(ValueError, match=r"the encoders or the data of .* have changed since it was made"):
        adopted(folder, run, "wide")


def test_an_encoder_beyond_the_limits_is_refused(folder: Path) -> None:
    limits = Limits(image_params=parse_range(":1500000"))
    run = searched(folder, "words", limits=limits)

    with pytest.raises(ValueError, match="'wide' is beyond the limits of"):
        adopted(folder, run, "wide", limits=limits)


def test_the_newest_finished_run_is_found(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        find_finished(folder / "reports")

    run = searched(folder, "words")

    assert find_finished(folder / "reports") == run.path


def test_a_run_that_cannot_be_read_is_passed_over_with_a_note(folder: Path) -> None:
    run, said = searched(folder, "words"), list[str]()
    for name, text in (("2", '{"name"'), ("1", "[]"), ("9", "\0")):
        (folder / "reports" / name).mkdir()
        (folder / "reports" / name / "result.json").write_text(text)

    assert find_finished(folder / "reports", say=said.append) == run.path
    assert find_unfinished(folder / "reports", pid=os.getpid()) is None
    assert [sentence.split()[1] for sentence in said] == [str(folder / "reports" / name) for name in "129"]


def test_the_command_adopts_into_the_newest_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = searched(folder, "words")
    where = ["--cache-dir", str(folder / "cache"), "--out", str(folder / "reports")]
    words = ["search", "--add", "wide", "--zoo", str(folder / "wide.toml"), *where]

    with pytest.raises(SystemExit) as status:
        cli.main(words)

    assert status.value.code == 0
    made = find_finished(folder / "reports")
    assert made != run.path
    assert len(load_run(made).leaderboard) == 6
    for wrong, sentence in (
        (["search", "--run", str(run.path), *where], "give --add NAME too"),
        ([*words, "--budget", "1M"], "got --budget too"),
        (["rerun", str(made), *where], f"--add wide --run {run.path}"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as status:
            cli.main(wrong)
        assert status.value.code == 2
        assert sentence in capsys.readouterr().err


def test_an_adoption_cut_short_is_not_gone_on_with_as_a_search(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = searched(folder, "words")
    where = ["--cache-dir", str(folder / "cache"), "--out", str(folder / "reports")]
    words = ["search", "--add", "wide", "--run", str(run.path)]
    monkeypatch.setattr("hyperalign.adopt.solve_newcomer", _stop)
    with pytest.raises(SystemExit):
        cli.main([*words, "--zoo", str(folder / "wide.toml"), *where])
    (cut,) = {*(folder / "reports").iterdir()} - {run.path}
    before = {path.name: path.read_bytes() for path in cut.iterdir() if path.is_file()}

    with pytest.raises(SystemExit) as status:
        cli.main(["search", "--resume", str(cut), *where])

    assert status.value.code == 2
    assert f"`hyperalign {shlex.join(words)}`, with its --zoo if it had one, does it again" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in cut.iterdir() if path.is_file()} == before


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt
