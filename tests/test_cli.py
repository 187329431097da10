"""The command line: words in, one library call, words out; a user's mistake is one sentence and status 2."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import made_up_leaderboard, made_up_ledger, made_up_result

import hyperalign
from hyperalign import pipeline as engine
from hyperalign.cli import main
from hyperalign.embed.zoo import Range, load_zoo
from hyperalign.pipeline import SearchConfig
from hyperalign.record import to_json
from hyperalign.run import Run, create_run, finish_run, log_event, read_result, save_stage

ZOO = """
[[encoder]]
name = "tiny-vit"
modality = "image"
loader = "timm"
architecture = "vit_tiny_patch16_224"
embed_dim = 192
n_params = 5_524_416

[[encoder]]
name = "words"
modality = "text"
loader = "sentence-transformers"
architecture = "nobody/words"
"""


class Said(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def run_command(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run one command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(ZOO)

    def run(*words: str) -> Said:
        capfd.readouterr()
        try:
            main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capfd.readouterr()
        return Said(status, out, err)

    return run


class Engine:
    """Stands in for the pipeline: keeps what it was asked for and finishes a made-up run."""

    def __init__(self) -> None:
        """Has been asked nothing yet."""
        self.config = SearchConfig()
        self.given: dict[str, Any] = {}

    def search(self, config: SearchConfig, **given: Any) -> Path:
        """Finish a made-up run."""
        self.config, self.given = config, given
        run = create_run(given["out"], label="made up", configuration=json.loads(to_json(config)))
        given["progress"]("training", 3, 3)
        given["say"]("three encoders")
        return finish_run(run, made_up_result(), leaderboard=made_up_leaderboard(), ledger=made_up_ledger()).path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A pipeline that computes nothing."""
    fake = Engine()
    monkeypatch.setattr(engine, "search", fake.search)
    return fake


def test_help_is_instant() -> None:
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "hyperalign", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    assert min(took) < 0.4  # processor time, which is wall time on a machine that does nothing else


def test_the_version_is_the_package_s(run_command: Callable[..., Said]) -> None:
    assert run_command("--version").out.strip() == hyperalign.__version__


def test_options_left_out_are_left_to_the_dataclass(run_command: Callable[..., Said], fake: Engine) -> None:
    assert run_command("search").status == 0

    assert fake.config == SearchConfig()
    assert fake.given["cache_dir"] == Path("cache")
    assert fake.given["out"] == Path("reports")
    assert fake.given["resume"] is None


def test_every_option_reaches_the_configuration(run_command: Callable[..., Said], fake: Engine) -> None:
    words = {
        "--zoo": "my.toml",
        "--data": "pairs.csv",
        "--budget": "1M:30M",
        "--text-budget": "2M",
        "--pair-budget": "3M",
        "--max-gflops": "4.5",
        "--max-latency": "5",
        "--dim": "192",
        "--license": "mit,apache-2.0",
        "--method": "ape,closed-form",
        "--decoder": "sliced",
        "--sides": "both",
        "--task": "zero-shot",
        "--labels": "shapes",
        "--verify": "2",
        "--seed": "7",
        "--limit": "100",
        "--max-minutes": "1.5",
        "--steps": "11",
        "--batch-size": "64",
        "--pairs-per-step": "3",
        "--learning-rate": "0.5",
        "--baseline-seeds": "3",
        "--baseline-epochs": "4",
        "--baseline-batch-size": "32",
        "--baseline-learning-rate": "0.25",
    }

    said = run_command(
        "search", "--strict", "--autocast", "--no-scores", *(part for pair in words.items() for part in pair)
    )

    assert said.status == 0, said.err
    config = fake.config
    assert config.zoo == ("my.toml",)
    assert config.data == "pairs.csv"
    limits = config.limits
    assert (limits.image_params, limits.dim) == (Range(1e6, 30e6), Range(192, 192))
    assert (limits.text_params, limits.pair_params) == (Range(high=2e6), Range(high=3e6))
    assert (limits.gflops, limits.latency_ms) == (Range(high=4.5), Range(high=5))
    assert limits.licenses == ("mit", "apache-2.0")
    assert config.methods == ("ape", "closed-form")
    assert (config.decoder, config.sides, config.task, config.labels) == ("sliced", "both", "zero-shot", "shapes")
    assert (config.verify, config.seed, config.limit, config.max_minutes) == (2, 7, 100, 1.5)
    assert (config.strict, config.autocast, config.scores, config.baseline_seeds) == (True, True, False, 3)
    recipe = config.recipe()
    train, baseline = recipe.sliced, recipe.ape
    assert (train.n_steps, train.n_epochs, train.batch_size, train.pairs_per_step) == (11, None, 64, 3)
    assert (baseline.n_epochs, baseline.batch_size, baseline.learning_rate) == (4, 32, 0.25)


def test_the_command_line_stands_above_the_file(run_command: Callable[..., Said], fake: Engine) -> None:
    Path("run.toml").write_text(
        'seed = 1\nlimit = 50\nzoo = "my.toml"\nmethod = ["ape", "hypernet"]\nbudget = 30_000\n'
    )

    assert run_command("search", "--config", "run.toml", "--seed", "2").status == 0

    assert fake.config == replace(
        SearchConfig(),
        seed=2,
        limit=50,
        zoo=("my.toml",),
        methods=("ape", "hypernet"),
        limits=replace(SearchConfig().limits, image_params=Range(high=30_000)),
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[train]\nn_step = 3", "unknown setting 'train.n_step'; did you mean n_steps"),
        ("[baseline]\nbatch_size = 'many'", "baseline.batch_size must be a whole number, got 'many'"),
        ("[canonical]\nrank = 'x'", "canonical.rank must be a whole number, got 'x'"),
    ],
)
def test_a_slip_in_a_table_of_training_fields_is_one_sentence(
    run_command: Callable[..., Said], fake: Engine, line: str, sentence: str
) -> None:
    Path("run.toml").write_text(line)

    said = run_command("search", "--config", "run.toml")

    assert said.status == 2
    assert sentence in said.err


def test_folders_come_from_the_environment_where_no_option_names_them(
    run_command: Callable[..., Said], fake: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERALIGN_CACHE", "kept")
    monkeypatch.setenv("HYPERALIGN_REPORTS", "runs")

    run_command("search", "--cache-dir", "elsewhere")

    assert fake.given["cache_dir"] == Path("elsewhere")
    assert fake.given["out"] == Path("runs")


def test_a_search_prints_results_to_stdout_and_the_rest_to_stderr(
    run_command: Callable[..., Said], fake: Engine
) -> None:
    said = run_command("search")

    assert "small-vit + words" in said.out
    assert "31.0×" in said.out
    assert "report.html" in said.out
    assert "training: 3" not in said.out
    assert said.err == "training: 3\nthree encoders\n"
    assert list(Path("reports").glob("*/report.html"))


def test_json_stands_alone_on_stdout(run_command: Callable[..., Said], fake: Engine) -> None:
    document = json.loads(run_command("search", "--json").out)

    assert [row["score"] for row in document["leaderboard"]][:3] == [47.5, 45.0, 42.5]
    assert document["ledger"][0]["stage"] == "set-up"
    assert document["leaderboard"][0]["latency_ms"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["zoo", "list", "embeded"], "no zoo 'embeded'; did you mean embedded"),
        (["zoo", "show", "tiny-vitt", "--zoo", "my.toml"], "no encoder 'tiny-vitt' in the zoo; did you mean tiny-vit?"),
        (["zoo", "build", "hub"], "only the zoo 'embedded' is made here"),
        (["search", "--budget", "30X"], "'30X' is not a limit such as 30M"),
        (["search", "--budget", "30M:1M"], "a range must rise"),
        (["search", "--steps", "3", "--epochs", "2"], "give --steps or --epochs, not both"),
        (["search", "--config", "none.toml"], "no configuration file none.toml"),
        (["search", "--config", "my.toml"], "my.toml: unknown key 'encoder'"),
        (["search", "--resume", "nowhere"], "no run at nowhere"),
        (["search", "--resume", "nowhere", "--seed", "3"], "a resumed run keeps its own configuration, got --seed"),
        (["rerun", "."], ". is not a run: it has no result.json"),
        (["report", "my.toml"], "no run at my.toml"),
        (["cache", "rm", "nothing*"], "no entry in cache matches 'nothing*'"),
        (["cache", "prune", "--max-bytes", "lots"], "'lots' is not a count such as 30M"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    run_command: Callable[..., Said], words: list[str], sentence: str
) -> None:
    said = run_command(*words)

    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_an_unknown_option_offers_near_ones(run_command: Callable[..., Said]) -> None:
    said = run_command("search", "--budgett", "3")

    assert said.status == 2
    assert "--budget" in said.err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("rows hold NaN:\nencoder a"), 2, "error: rows hold NaN: encoder a\n"),
        (KeyError("no encoder 'a' in the zoo"), 2, "error: no encoder 'a' in the zoo\n"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "error: a.csv: no such file or directory\n"),
        (ImportError("install hyperalign[datasets]"), 2, "error: install hyperalign[datasets]\n"),
        (ValueError("\x1b[31mred \x1b[0m"), 2, "error: \\u001b[31mred \\u001b[0m\n"),
    ],
)
def test_what_the_library_refuses_is_said_without_a_traceback(
    run_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, words: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(engine, "search", refuse)

    said = run_command("search")

    assert (said.status, said.err) == (status, words)


@pytest.mark.parametrize("words", [["--debug", "search"], ["search", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    run_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("a sentence about it")

    monkeypatch.setattr(engine, "search", refuse)

    with pytest.raises(ValueError, match="a sentence about it"):
        run_command(*words)


def test_our_own_slip_is_not_dressed_as_a_user_s_mistake(
    run_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slip(*_: object, **__: object) -> None:
        raise KeyError("n_params")

    monkeypatch.setattr(engine, "search", slip)

    with pytest.raises(KeyError):
        run_command("search")


def test_a_stopped_search_says_what_is_finished_and_how_to_go_on(
    run_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: SearchConfig, *, out: Path, **_: object) -> None:
        run = create_run(out, label="made up", configuration={})
        save_stage(run, "set-up", tensors={}, record={})
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "search", stopped)

    said = run_command("search")

    assert said.status == 130
    assert "finished: set-up" in said.err
    run = next(Path("reports").iterdir())
    assert f"go on with `hyperalign search --resume {run}`" in said.err


def test_a_search_stopped_before_its_run_began_says_so(
    run_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "search", stopped)

    said = run_command("search")

    assert said.status == 130
    assert "stays in the cache" in said.err


def test_any_other_command_can_be_stopped(run_command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hyperalign.embed.zoo.load_zoos", stopped)

    assert run_command("zoo", "list", "my.toml") == Said(130, "", "stopped.\n")


def test_a_resumed_search_keeps_its_configuration(
    run_command: Callable[..., Said], fake: Engine, tmp_path: Path
) -> None:
    asked = replace(SearchConfig(), seed=5, zoo=("my.toml",))
    run = create_run(tmp_path, label="cut", configuration=json.loads(to_json(asked)))
    log_event(run, "resumed", pid=os.getpid())

    assert run_command("search", "--resume", str(run), "--max-minutes", "3").status == 0

    assert fake.config == replace(asked, max_minutes=3.0)
    assert fake.given["resume"] == run


def test_a_run_is_repeated_from_its_own_record(run_command: Callable[..., Said], fake: Engine) -> None:
    run_command("search", "--seed", "9", "--budget", "30M", "--steps", "5")
    asked, first = fake.config, next(Path("reports").iterdir())

    said = run_command("rerun", str(first))

    assert fake.config == asked
    assert f"the table is the same as that of {first}" in said.err
    assert len(list(Path("reports").iterdir())) == 2


def test_the_page_is_drawn_again(run_command: Callable[..., Said], finished_run: Run) -> None:
    assert run_command("report", str(finished_run.path)).out.strip() == str(finished_run.path / "report.html")
    assert (finished_run.path / "report.html").read_text().startswith("<!doctype html>")


def test_a_limit_on_a_run_without_hits_is_one_sentence(run_command: Callable[..., Said], finished_run: Run) -> None:
    said = run_command("report", str(finished_run.path), "--budget", "30M")

    assert said.status == 2
    assert "hits.safetensors" in said.err
    assert said.out == ""


def test_a_run_cut_short_has_no_page_and_says_why(run_command: Callable[..., Said], tmp_path: Path) -> None:
    run = create_run(tmp_path, label="cut", configuration={})

    said = run_command("report", str(run))

    assert said.status == 2
    assert f"hyperalign search --resume {run}" in said.err
    assert read_result(run)["status"] == "running"


def test_a_zoo_is_listed_and_shown(run_command: Callable[..., Said]) -> None:
    assert "5.52M" in run_command("zoo", "list", "my.toml").out
    assert [row["name"] for row in json.loads(run_command("zoo", "list", "my.toml", "--json").out)] == [
        "tiny-vit",
        "words",
    ]
    shown = json.loads(run_command("zoo", "show", "tiny-vit", "--zoo", "my.toml", "--json").out)
    assert shown["architecture"] == "vit_tiny_patch16_224"
    assert "folder" not in shown


def test_what_is_shown_of_an_encoder_is_a_zoo_file(run_command: Callable[..., Said]) -> None:
    (spec, _) = load_zoo("my.toml")
    Path("next").mkdir()
    Path("next/own.toml").write_text(run_command("zoo", "show", "tiny-vit", "--zoo", "my.toml").out)

    (again,) = load_zoo("next/own.toml")

    assert replace(again, folder=spec.folder) == spec


def test_a_check_ends_with_1_where_a_declared_fact_is_wrong(run_command: Callable[..., Said]) -> None:
    Path("my.toml").write_text(ZOO.replace("5_524_416", "5"))

    said = run_command("zoo", "check", "my.toml")

    assert said.status == 1
    assert "declares n_params 5 but has 5,524,416" in " ".join(said.out.split())


def test_an_empty_cache_is_whole(run_command: Callable[..., Said]) -> None:
    assert run_command("cache", "verify") == Said(0, "everything in cache is whole\n", "")
    assert json.loads(run_command("cache", "ls", "--json").out) == []


def test_whoever_stops_reading_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(ZOO)
    command = f"'{sys.executable}' -m hyperalign zoo list my.toml my.toml | true; echo ${{PIPESTATUS[0]}}"

    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "Traceback" not in done.stderr
