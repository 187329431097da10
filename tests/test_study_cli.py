"""`study` as it is typed: its mistakes are one sentence, its end says how to go on and what repeats the best trial."""

import json
from pathlib import Path

import pytest
from small_zoo import write_world

from hyperalign.cli import main
from hyperalign.cli.studying import parse_seconds

SMALL = ["--space", "learning_rate=2e-1:2e1:log", "--trials", "2", "--storage", "journal"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with a configuration file for it."""
    folder = write_world(tmp_path_factory.mktemp("study-cli") / "world")
    (folder / "run.toml").write_text(
        f'zoo = ["{folder / "zoo.toml"}"]\ndata = "{folder / "pairs.csv"}"\n\n[train]\nn_steps = 8\nbatch_size = 16\n'
    )
    return folder


def run(words: list[str]) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def study(world: Path, *words: str) -> int:
    """The exit status of a study of the small world."""
    places = ["--cache-dir", str(world / "cache"), "--out", str(world / "reports")]
    known = {"--resume", "--run", "--best"} & {*words}
    return run(["study", *([] if known else ["--config", str(world / "run.toml")]), *words, *places])


def test_a_study_prints_its_best_trials_and_what_repeats_them(
    world: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status = study(world, *SMALL, "--json")
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    folder = next((world / "reports").glob("*/study.json")).parent

    assert status == 0
    assert record["n_trials"] == {"complete": 2}
    assert record["configuration"]["train"] == {"n_steps": 8, "batch_size": 16, "n_epochs": None}
    assert "trial 1: learning_rate" in printed.err

    assert run(["study", "--best", str(folder)]) == 0
    command = capsys.readouterr().out.split()
    assert command[:3] == ["hyperalign", "search", "--config"]
    words = [*command[1:], "--out", str(tmp_path), "--cache-dir", str(world / "cache"), "--json"]
    assert run(words) == 0
    table = json.loads(capsys.readouterr().out)["leaderboard"]
    rows = [row for row in table if row["method"] == "hypernet"]
    best = max(trial["values"][0] for trial in record["trials"])
    assert sum(row["validation_score"] for row in rows) / len(rows) == pytest.approx(best)

    assert run(["study", "--resume", str(folder), "--trials", "3", "--cache-dir", str(world / "cache")]) == 0
    said = capsys.readouterr()
    assert "2 of 3 trials were finished before" in said.err
    assert "Best trials" in said.out
    assert "optuna-dashboard" in said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--resume", "nowhere"], "no study at nowhere"),
        (["--best", "nowhere"], "no study at nowhere"),
        (["--run", "nowhere"], "no run at nowhere"),
        (["--space", "rate"], "FIELD=SPACE"),
        (["--space", "rate=1:2"], "unknown setting 'rate'"),
        (["--timeout", "soon"], "90s, 30m or 2h"),
        (["--objective", "flops"], "objective score"),
        (["--sampler", "best"], "sampler must be one of"),
        (["--storage", "cloud"], "got 'cloud'"),
        (["--storage", "nosuch://host/db"], "cannot be opened"),
        (["--method", "closed-form"], "no training to tune"),
        (["--over", "pairs", "--task", "zero-shot"], "scores retrieval"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((world / "reports").glob("*"))

    assert study(world, *words) == 2

    said = capsys.readouterr()
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert said.err.strip().splitlines()[-1].startswith("error: ")
    assert sorted((world / "reports").glob("*")) == before


def test_a_resumed_study_keeps_what_it_was_asked_for(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(world, "--resume", "anywhere", "--sampler", "gp") == 2
    assert "got --sampler" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_a_time_is_read(words: str, seconds: float) -> None:
    assert parse_seconds(words) == seconds
