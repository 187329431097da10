"""What a page shows of a study: read from `study.json` alone, with names as text and a bound on its size."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_study import ATTACKS, made_up_study
from typer.testing import CliRunner

from hyperalign.cli import app
from hyperalign.run import Run
from hyperalign.show import trials as module
from hyperalign.show.page import render_page
from hyperalign.show.study_page import render_study, write_study_page
from hyperalign.show.trials import StudyView, view_study

runner = CliRunner()


def viewed(folder: Path) -> StudyView:
    found = view_study(folder)
    assert found is not None
    return found


def test_the_best_trial_is_said_with_its_unit_and_stands_first(tmp_path: Path) -> None:
    made_up_study(tmp_path, 12)

    study = viewed(tmp_path)

    assert study.answer.startswith("Trial 11 is the best, with a mean score on validation of 21 %: batch_size 256")
    assert study.about == "Optuna (tpe) searched training settings on pairs.csv, 12 of 12 trials."
    assert [head for head, _ in study.heads] == [
        *("trial", "state", "mean score on validation / %"),
        *("learning rate", "decoy", "batch size", "time", "remark"),
    ]
    assert [row[0] for row in study.rows[:3]] == ["11", "9", "8"]
    assert study.rows[-1][1:3] == ("pruned", "–")
    assert study.first == 1


def test_the_best_so_far_rises_and_leaves_out_what_is_beyond_a_limit(tmp_path: Path) -> None:
    record = made_up_study(tmp_path, 4, best=[3])
    for number, (score, over) in enumerate([(5.0, 0), (9.0, 0.5), (4.0, 0), (6.0, -0.5)]):
        record["trials"][number] |= {"state": "complete", "values": [score], "constraints": {"image parameters": over}}
    (tmp_path / "study.json").write_text(json.dumps(record))

    study = viewed(tmp_path)

    assert study.data["rising"] == [(0, 5.0), (3, 6.0)]
    assert study.data["number"] == [3, 1, 0, 2]
    assert study.data["within"] == [True, False, True, True]
    assert study.rows[1][-1].startswith("image parameters 50 % beyond")


def test_a_front_is_said_from_the_highest_score_to_the_cheapest(tmp_path: Path) -> None:
    made_up_study(tmp_path, 7, objectives=2)

    study = viewed(tmp_path)

    assert study.answer == (
        "The Pareto front (mean score on validation at search) holds 4 of 7 trials: "
        "from 16 % at 0.7 TFLOP to 10 % at 0.1 TFLOP."
    )
    assert study.data["best"] == study.first == 4


def test_a_choice_among_numbers_is_a_choice(tmp_path: Path) -> None:
    made_up_study(tmp_path)

    scales = {param["name"]: param["scale"] for param in viewed(tmp_path).data["params"]}

    assert scales == {"learning rate": "log", "batch size": "choices", "decoy": "choices"}


def test_the_same_study_gives_the_same_bytes_and_names_stay_text(tmp_path: Path) -> None:
    made_up_study(tmp_path / "study")

    page = render_study(viewed(tmp_path / "study"))

    assert page == render_study(viewed(tmp_path / "study"))
    assert ATTACKS[0] not in page
    assert ATTACKS[1] not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script") == 4, "the data, BokehJS in two parts, and our own"


def test_a_study_of_many_trials_shows_the_best_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 10)
    made_up_study(tmp_path, 40)

    study = viewed(tmp_path)

    assert len(study.rows) == len(study.data["number"]) == 10
    assert study.lines[-1] == "shown: the best 10 of 40 trials; study.json has all"
    assert study.rows[0][0] == "39"


def test_ten_thousand_trials_keep_the_page_below_3_mb(tmp_path: Path) -> None:
    made_up_study(tmp_path, 10_000)

    assert write_study_page(tmp_path).stat().st_size < 3_000_000


def test_a_study_begun_for_a_run_stands_on_its_page(finished_run: Run) -> None:
    before = render_page(finished_run)
    made_up_study(finished_run.path)

    after = render_page(finished_run)

    assert 'id="study"' not in before
    assert "Trial 11 is the best" in after
    assert f"hyperalign study --best reports/{finished_run.path.name}" in after


def test_a_study_that_has_no_trial_yet_says_so(tmp_path: Path) -> None:
    made_up_study(tmp_path, 0, importances={})

    page = render_study(viewed(tmp_path))

    assert "No trial is finished and within the limits yet." in page
    assert 'id="figure-study-history"' not in page


@pytest.mark.parametrize("damage", [{"trials": 5}, {"trials": [{"number": 1}]}, {"best": 3}, {"asked": []}])
def test_a_damaged_record_is_one_sentence(tmp_path: Path, damage: dict[str, Any]) -> None:
    made_up_study(tmp_path, **damage)

    answer = runner.invoke(app, ["report", str(tmp_path)])

    assert answer.exit_code == 2
    assert "study.json is not the record of a study: " in answer.output.replace("\n", " ")
    assert "Traceback" not in answer.output
    assert not (tmp_path / "report.html").exists()


def test_report_draws_a_study_that_belongs_to_no_run(tmp_path: Path) -> None:
    made_up_study(tmp_path)

    answer = runner.invoke(app, ["report", str(tmp_path)])

    assert answer.stdout.strip() == str(tmp_path / "report.html")
    assert "Trial 11 is the best" in (tmp_path / "report.html").read_text()
    assert runner.invoke(app, ["report", str(tmp_path), "--json"]).exit_code == 2
    assert "got budget too" in runner.invoke(app, ["report", str(tmp_path), "--budget", "2M"]).output
