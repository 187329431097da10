"""The paper's four tables: drawn from made-up records by hand, and made from end to end on scenes."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_zoo import write_labels, write_world
from typer.testing import CliRunner

from hyperalign.cli import app
from hyperalign.config import build
from hyperalign.hyperclip import paper
from hyperalign.hyperclip.adapt import AdaptConfig, read_record
from hyperalign.hyperclip.overhead import Overhead
from hyperalign.hyperclip.paper import TablesConfig, make_tables, read_tables
from hyperalign.hyperclip.paper_sheets import (
    CAPTIONS,
    Found,
    Timed,
    batch_sheet,
    norms_sheet,
    overhead_sheet,
    worst_group_sheet,
    zero_shot_sheet,
)
from hyperalign.show.papered import papered_tables

HITS = {"siglip": [1, 0, 0, 0, 1, 0], "hyperclip": [1, 1, 0, 1, 1, 0]}
LOOK = {"step": 1, "loss": 2.0, "parameter_norm": 3.0, "update_norm": 0.1, "emitted_norm": 0.5}


def made_up(arch: str = "M1", batch_size: int = 8, seed: int = 0, **changes: Any) -> Found:
    """Six pictures, of which the last four are scored; nothing in it was measured."""
    hits = {**HITS, **changes.get("hits", {})}
    scores = {
        method: {
            "classes": {"shapes": {"hits": own, "top_1": 0.0, "top_5": 80.0}},
            "retrieval": {"score": 10.0 if method == "siglip" else 12.0},
        }
        for method, own in hits.items()
    }
    trainings = {m: {"n_steps": 100, "images_per_second": 50.0, "looks": [LOOK] * 30} for m in hits}
    extras = {
        "test": [2, 3, 4, 5],
        "groups": changes.get("groups", ["day", "day", "night", "night"]),
        "hits": changes.get("extras", {"probe": [1, 0, 1, 0], "adapted probe": [1, 1, 1, 0], "bound": [1, 1, 1, 1]}),
    }
    record = {"scores": scores, "trainings": trainings, "pair": None}
    return Found(arch, batch_size, seed, record, {"shapes": extras})


# --- by hand -------------------------------------------------------------------------------------------------------


def test_columns_compare_on_the_pictures_that_nothing_was_trained_on() -> None:
    row, recall = zero_shot_sheet([made_up()]).rows

    assert (row["architecture"], row["classes"], row["pictures"]) == ("M1", "shapes", 4)
    assert (row["siglip_top_1_score"], row["hyperclip_top_1_score"]) == (25.0, 50.0)
    assert (row["probe_score"], row["adapted_probe_score"], row["bound_score"]) == (50.0, 75.0, 100.0)
    assert row["gain_score"] == 25.0
    spread = 1.96 * math.sqrt(np.var([0, 100, 0, 0]) / 4)
    assert (row["low_score"], row["high_score"]) == pytest.approx((25 - spread, 25 + spread))
    assert row["spread_score"] is None
    assert recall["classes"] == CAPTIONS
    assert (recall["siglip_top_1_score"], recall["hyperclip_top_1_score"]) == (10.0, 12.0)
    assert recall["gain_score"] == pytest.approx(2.0)
    assert recall["low_score"] is None
    assert list(recall) == list(row)


def test_seeds_are_averaged_and_their_spread_is_told() -> None:
    same = {"hyperclip": HITS["siglip"]}

    row = zero_shot_sheet([made_up(), made_up(seed=1, hits=same)]).rows[0]

    assert row["siglip_top_1_score"] == 25.0
    assert row["hyperclip_top_1_score"] == 37.5
    assert row["gain_score"] == 12.5
    assert row["spread_score"] == pytest.approx(math.sqrt(2) * 12.5)
    error = math.sqrt(np.var([0, 100, 0, 0]) / 4 + 0) / 2
    assert row["high_score"] == pytest.approx(12.5 + 1.96 * error)


def test_a_class_set_that_cannot_be_cut_has_no_probe() -> None:
    row = zero_shot_sheet([made_up(extras={})]).rows[0]

    assert (row["probe_score"], row["bound_score"]) == (None, None)
    assert row["siglip_top_1_score"] == 25.0


def test_the_worst_group_is_each_methods_own() -> None:
    (row,) = worst_group_sheet([made_up()]).rows

    assert row["baseline_worst"] == "day"
    assert row["siglip_worst_group_score"] == 0.0
    assert row["hyperclip_worst_group_score"] == 50.0
    assert (row["probe_worst_group_score"], row["bound_worst_group_score"]) == (50.0, 100.0)
    assert row["groups"] == 2


def test_sets_without_groups_leave_a_note() -> None:
    sheet = worst_group_sheet([made_up(groups=None)])

    assert not sheet.rows
    assert "no class set has groups" in sheet.notes[0]


def test_every_batch_size_has_its_rows_in_order() -> None:
    sheet = batch_sheet([made_up(batch_size=16), made_up(batch_size=4)])

    assert [(row["batch"], row["classes"]) for row in sheet.rows] == [
        (4, "shapes"),
        (4, CAPTIONS),
        (16, "shapes"),
        (16, CAPTIONS),
    ]
    assert sheet.rows[0]["steps"] == 100


def test_overhead_stands_beside_what_the_trainings_reached() -> None:
    measured = Overhead(16, 12, 1000, 2000, 100, 105, 80.0, 60.0)
    counted = Overhead(8, 1, 2, 3, 4, 5, None, None)

    sheet = overhead_sheet([Timed("M1", measured), Timed("B0", counted)], [made_up()], device="cpu", length=32)

    assert (sheet.rows[0]["slower_share"], sheet.rows[0]["added_share"]) == pytest.approx((0.25, 0.05))
    assert sheet.rows[0]["training_siglip_per_second"] == 50.0
    assert sheet.rows[1]["training_siglip_per_second"] is None


def test_the_start_of_a_winner_stands_in_the_tables_and_has_no_training() -> None:
    one = made_up(hits={"start": [1, 1, 1, 1, 1, 1]})
    del one.record["trainings"]["start"]

    assert zero_shot_sheet([one]).rows[0]["start_top_1_score"] == 100.0
    assert worst_group_sheet([one]).rows[0]["start_worst_group_score"] == 100.0
    assert batch_sheet([one]).rows[0]["start_top_1_score"] == 100.0
    assert {row["method"] for row in norms_sheet([one]).rows} == {"siglip", "hyperclip"}


def test_norms_keep_the_first_and_the_last_look() -> None:
    one = made_up()
    looks = [{**LOOK, "step": step} for step in range(1, 51)]
    for training in one.record["trainings"].values():
        training["looks"] = looks

    rows = norms_sheet([one]).rows

    assert [row["step"] for row in rows[:10]] == [1, 6, 12, 17, 23, 28, 34, 39, 45, 50]
    assert [row["method"] for row in rows] == ["siglip"] * 10 + ["hyperclip"] * 10


def test_names_that_steer_a_terminal_are_written_out() -> None:
    sheets = {"zero-shot": zero_shot_sheet([made_up(arch="a\x1b[31m[b]b")])._asdict()}
    console = Console(width=200, record=True, file=None, force_terminal=False)

    with console.capture() as shown:
        console.print(papered_tables(sheets, width=200))

    assert "a\\u001b[31m[b]b" in shown.get()
    assert "\x1b[31m" not in shown.get()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sheets": ("speed",)}, "a table is one of zero-shot, worst-group, overhead, batch-size"),
        ({"sheets": ()}, "at least one table"),
        ({"n_seeds": 0}, "seeds and rounds"),
        ({"batch_sizes": (1,)}, "batch sizes must be at least 2"),
        ({"archs": ("M1", "M1")}, "wanted once"),
        ({"train_share": 1.0}, r"in \(0, 1\)"),
        ({"base": AdaptConfig(arch="M1", methods=("hyperclip",))}, "compare siglip and hyperclip"),
        ({"probe": {"n_epoch": 1}}, "unknown setting 'n_epoch'; did you mean n_epochs"),
    ],
)
def test_tables_that_cannot_be_made_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TablesConfig(**{"base": AdaptConfig(arch="M1"), "archs": ("M1",), **changes})


def test_the_ablation_takes_the_base_and_its_parts_and_sees_as_many_pictures() -> None:
    config = TablesConfig(
        base=AdaptConfig(arch="M1", train={"batch_size": 64, "n_steps": 100}), archs=("M1", "T0"), n_seeds=2
    )

    jobs = paper._jobs(config)

    assert [(job.arch, job.batch_size, job.seed) for job in jobs] == [
        *(("M1", 64, seed) for seed in (0, 1)),
        *(("T0", 64, seed) for seed in (0, 1)),
        *(("M1", size, seed) for size in (16, 32) for seed in (0, 1)),
    ]
    assert {job.config.training().n_steps * job.batch_size for job in jobs} == {6400}  # type: ignore[operator]
    assert paper._jobs(replace(config, sheets=("overhead",))) == []


# --- from end to end -----------------------------------------------------------------------------------------------

WORDS = [
    *("adapt", "--table", "--arch", "M1", "--input-size", "32", "--embed-dim", "12", "--steps", "2"),
    *("--batch-size", "12", "--batch-sizes", "6", "--layers", "1", "--width", "16", "--heads", "2"),
    *("--feed-forward", "16", "--bottleneck", "8", "--text-layers", "1", "--text-width", "16", "--text-heads", "2"),
    *("--overhead-batch", "2"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four tables of M1 at 32 pixels after two steps, on 60 pictures and a class set of 18 in two groups."""
    folder = write_world(tmp_path_factory.mktemp("tables") / "world")
    labels = write_labels(folder)
    names = [f"{path.parent.name}/{path.name}" for path in labels.glob("*/*")]
    lines = ["filename,parity", *(f"{name},{'even' if name[-5] in '02468' else 'odd'}" for name in names)]
    (folder / "metadata.csv").write_text("\n".join(lines))
    (folder / "shapes.json").write_text('{"groups": "metadata.csv:parity"}')
    data = ["--data", str(folder / "pairs.csv"), "--labels", str(labels)]
    where = [*data, "--out", str(folder / "out"), "--cache-dir", str(folder / "cache")]

    done = CliRunner().invoke(app, [*WORDS, *where, "--json"], catch_exceptions=False)

    assert done.exit_code == 0, done.stderr
    return Path(json.loads(done.stdout)["folder"])


def test_one_command_makes_the_four_tables(made: Path) -> None:
    record = read_tables(made)

    assert record["status"] == "finished"
    assert list(record["sheets"]) == ["zero-shot", "worst-group", "overhead", "batch-size", "norms"]
    assert [row["classes"] for row in record["sheets"]["zero-shot"]["rows"]] == ["shapes", CAPTIONS]
    assert [row["groups"] for row in record["sheets"]["worst-group"]["rows"]] == [2]
    assert {row["batch"] for row in record["sheets"]["batch-size"]["rows"]} == {6}
    for name, sheet in record["sheets"].items():
        with (made / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(sheet["rows"])
        assert list(rows[0]) == list(sheet["rows"][0])


def test_what_stands_in_the_table_is_what_the_adaptation_scored(made: Path) -> None:
    (folder,) = (path.parent for path in made.glob("M1-batch12-seed0/*/adapted.json"))
    scores = read_record(folder)["scores"]["hyperclip"]["classes"]["shapes"]
    extras = json.loads((folder / "extras.json").read_text())["shapes"]

    row = read_tables(made)["sheets"]["zero-shot"]["rows"][0]

    assert row["hyperclip_top_1_score"] == pytest.approx(100 * np.mean(np.array(scores["hits"])[extras["test"]]))
    assert row["bound_score"] == pytest.approx(100 * np.mean(extras["hits"]["bound"]))
    assert len(extras["test"]) == len(extras["groups"]) == row["pictures"] == 9


def test_tables_that_were_cut_short_go_on_and_train_nothing_twice(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(made, begun)
    (extras,) = begun.glob("M1-batch6-seed0/*/extras.json")
    extras.unlink()
    record = read_tables(begun)
    record["status"] = "running"
    (begun / "tables.json").write_text(json.dumps(record))
    for path in begun.glob("*.csv"):
        path.unlink()
    monkeypatch.setattr(paper, "measure_overhead", lambda *_, **__: pytest.fail("every step was timed already"))
    monkeypatch.setattr(paper, "adapt", lambda *_, **__: pytest.fail("everything was trained already"))

    make_tables(build(TablesConfig, record["configuration"]), cache_dir=tmp_path / "cache", out=tmp_path, resume=begun)

    assert extras.is_file()
    assert read_tables(begun)["sheets"]["zero-shot"] == read_tables(made)["sheets"]["zero-shot"]
    assert (begun / "zero-shot.csv").read_text() == (made / "zero-shot.csv").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["adapt", "--arch", "M1", "--seeds", "2"], "--seeds belongs to the paper's tables; give --table too"),
        (["adapt", "--table", "--arch", "M1,Q7"], "no architecture 'Q7'"),
        (["adapt", "--table", "--arch", ","], "--arch names architectures"),
        (["adapt", "--table", "--arch", "M1", "--only", "speed"], "a table is one of"),
        (["adapt", "--table", "--arch", "M1", "--batch-sizes", "8;9"], "whole numbers with commas"),
        (["adapt", "--table"], "adapt the winner of a RUN or train an --arch"),
        (["adapt", "--table", "--resume", "nowhere"], "no tables in nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")])

    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()
