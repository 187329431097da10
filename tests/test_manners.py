"""What a user meets when something is wrong or is stopped: one sentence, nothing lost, and a way to go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from small_zoo import (
    IMAGES,
    SPLITS,
    TEXTS,
    read_rows,
    small_config,
    small_search,
    write_rows,
    write_table,
    write_world,
    write_zoo,
)

from hyperalign.cli import main
from hyperalign.request import SearchConfig
from hyperalign.run import finished_stages, load_run, read_log, read_result, same_table

QUICK = ("--steps", "2", "--batch-size", "8", "--no-scores")


class Said(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small world, and the working folder."""
    folder = write_world(tmp_path / "world")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run one command in this process."""

    def run(*words: str) -> Said:
        capfd.readouterr()
        status = 0
        try:
            main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Said(status, *capfd.readouterr())

    return run


def search_words(*more: str, zoo: str = "zoo.toml", data: str = "pairs.csv") -> list[str]:
    """The words of a short search."""
    return ["search", "--zoo", zoo, "--data", data, *QUICK, *more]


def mistake(said: Said) -> str:
    """The one sentence of a user's mistake; everything else that must hold for one is asserted."""
    sentences = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.status == 2, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert len(sentences) == 1
    assert said.err.endswith(f"{sentences[0]}\n")
    return sentences[0].removeprefix("error: ")


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--zoo", "zoo.tom"], "no zoo 'zoo.tom'"),
        (["--zoo", "embeded"], "did you mean embedded?"),
        (["--budget", "10k"], "no image encoder has at most 10,000 parameters; the smallest is dull with 1,000,000"),
        (["--text-budget", "10"], "the smallest is phrases with 100,000"),
        (
            ["--pair-budget", "1M"],
            "no pair has at most 1,000,000 parameters; the smallest is dull+phrases with 1,100,000",
        ),
        (["--dim", "99"], "no image encoder has exactly 99 dimensions; the widest is wide with 24"),
        (["--license", "mit"], "no image encoder has the licence mit; theirs are undeclared"),
        (["--max-gflops", "1"], "image encoder 'sharp', whose value is unknown; declare it in the zoo"),
        (["--method", "apes"], "a method is one of ape, closed-form, hypernet, hypernet-sliced, got 'apes'"),
        (["--task", "zero-shot"], "the task zero-shot needs a label set; give --labels"),
        (["--labels", "nowhere"], "a label set is a folder or a .tar of class/picture, and 'nowhere' is neither"),
        (["--batch-size", "1"], "batch_size must be at least 2, got 1"),
        (["--resume", "."], "a resumed run keeps its own configuration"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_words_that_cannot_be_meant_are_one_sentence(
    command: Callable[..., Said], words: list[str], sentence: str
) -> None:
    assert sentence in mistake(command(*search_words(*words)))


ZOOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "not TOML": (lambda world: (world / "zoo.toml").write_text("[[encoder]\nname"), "zoo.toml: not a TOML file"),
    "an unknown key": (
        lambda world: write_zoo(world, sharp={"embed_dimm": 16}),
        "zoo.toml: encoder 'sharp': unknown key 'embed_dimm'; did you mean embed_dim?",
    ),
    "rows that are missing": (
        lambda world: write_zoo(world, sharp={"checkpoint": "rows/none-{split}.npy"}),
        "encoder 'sharp': no checkpoint rows/none-{split}.npy; put it there or correct the zoo file",
    ),
    "rows of one split missing": (
        lambda world: (world / "rows" / "words-val.npy").unlink(),
        "encoder 'words': no embeddings rows/words-val.npy for split 'val'",
    ),
    "a width that is declared wrong": (
        lambda world: write_zoo(world, sharp={"embed_dim": 17}),
        "encoder 'sharp' declares embed_dim 17 but rows/sharp-test.npy has 16; correct its zoo file",
    ),
    "too few rows": (
        lambda world: write_rows(world, "words", "val", read_rows(world, "words", "val")[:-1]),
        "encoder 'words' must have one row for each caption: val has 40 and its file 39",
    ),
    "rows that are no table": (
        lambda world: np.save(world / "rows" / "words-val.npy", np.arange(5)),
        "rows/words-val.npy must hold (n, D) floats, got (5,) int64",
    ),
    "rows that are all NaN": (
        lambda world: write_rows(world, "words", "train", np.full((120, 10), np.nan)),
        "encoder 'words' has no usable row for train: all 120 are NaN, Inf or zero",
    ),
    "no text encoder": (
        lambda world: (world / "zoo.toml").write_text((world / "zoo.toml").read_text().split("\n\n")[0]),
        "the zoo has no text encoder, and a pair needs one",
    ),
    "weights that are missing": (
        lambda world: add_timm(world, checkpoint="none.safetensors"),
        "encoder 'tiny': no checkpoint none.safetensors; put it there or correct the zoo file",
    ),
    "a factory that is missing": (
        lambda world: add_factory(world, file="none.py"),
        "encoder 'mean': no factory file none.py; put it there or correct the zoo file",
    ),
}


def add_timm(world: Path, *, checkpoint: str) -> None:
    """Declare a timm encoder beside the others."""
    lines = ["[[encoder]]", 'name = "tiny"', 'modality = "image"', 'loader = "timm"']
    lines += ['architecture = "test_efficientnet"', f'checkpoint = "{checkpoint}"']
    with (world / "zoo.toml").open("a") as file:
        file.write("\n" + "\n".join(lines) + "\n")


def add_factory(world: Path, *, file: str, name: str = "mean", **facts: object) -> None:
    """Declare a python encoder beside the others."""
    given: dict[str, object] = {"name": name, "modality": "image", "loader": "python", "factory": f"{file}:{name}"}
    given |= {"input_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], **facts}
    with (world / "zoo.toml").open("a") as zoo:
        zoo.write("\n[[encoder]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))


@pytest.mark.parametrize("case", ZOOS)
def test_a_zoo_that_does_not_fit_is_one_sentence(world: Path, command: Callable[..., Said], case: str) -> None:
    spoil, sentence = ZOOS[case]
    spoil(world)

    assert sentence in mistake(command(*search_words()))


def table(world: Path, keep: Callable[[str, str, str], list[str] | None]) -> None:
    """Write `pairs.csv` again."""
    rows = []
    for line in (world / "pairs.csv").read_text().splitlines()[1:]:
        path, rest = line.split(",", 1)
        caption, split = rest.rsplit(",", 1)
        rows.append(keep(path, caption.strip('"'), split))
    write_table(world, [row for row in rows if row is not None])


DATA: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "an open quote": (
        lambda world: (world / "pairs.csv").write_text('image,caption\npictures/train-000.png,"a\n'),
        "pairs.csv",
        "pairs.csv, after line 1: ",
    ),
    "no column of captions": (
        lambda world: (world / "pairs.csv").write_text("image,size\npictures/train-000.png,3\n"),
        "pairs.csv",
        "pairs.csv, line 2, has no column of captions: its columns are 'image', 'size'; call it one of captions",
    ),
    "no captions": (
        lambda world: table(world, lambda path, caption, split: [path, "", split]),
        "pairs.csv",
        "pairs has no captions: of its 100 pictures none has a text; give each picture at least one caption",
    ),
    "an empty split": (
        lambda world: table(world, lambda *row: None if row[2] == "test" else list(row)),
        "pairs.csv",
        "pairs has an empty split, 'test' (pictures: train 60, val 20, test 0)",
    ),
    "captions of the wrong type": (
        lambda world: (world / "pairs.jsonl").write_text('{"image": "pictures/train-000.png", "captions": [1, 2]}\n'),
        "pairs.jsonl",
        "pairs.jsonl: captions of line 1 must be a text or a list of texts, got a list with int 1",
    ),
    "no pictures": (
        lambda world: (world / "pairs.csv").write_text("image,caption\nnone.png,words\n"),
        "pairs.csv",
        "none of the 1 pictures of pairs is there",
    ),
    "a tar that is none": (
        lambda world: (world / "pairs.tar").write_bytes(b"no tar at all " * 100),
        "pairs.tar",
        "pairs.tar must be a plain, uncompressed tar and cannot be read as one",
    ),
    "a parquet that is none": (
        lambda world: (world / "pairs.parquet").write_bytes(b"PAR1 and no more"),
        "pairs.parquet",
        "pairs.parquet is not a parquet file that can be read",
    ),
    "nothing there": (lambda world: None, "none.csv", "there is no none.csv; data is scenes, a .csv, .tsv"),
    "an address": (lambda world: None, "https://example.org/a.csv", "is an address; download it first"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_read_are_one_sentence(world: Path, command: Callable[..., Said], case: str) -> None:
    spoil, data, sentence = DATA[case]
    spoil(world)

    assert sentence in mistake(command(*search_words(data=data)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seedd = 3\n", "run.toml: unknown key 'seedd'; did you mean seed?"),
        ("seed = \n", "run.toml: not a TOML file"),
        ("[train]\nn_stepps = 3\n", "unknown setting 'train.n_stepps'; did you mean n_steps"),
        ('[train]\nlearning_rate = "fast"\n', "train.learning_rate must be a number, got 'fast'"),
        ("[canonical]\nrank = 0\n", "rank must be at least 1, got 0"),
        ("[train]\nseed = 4\n", "a search has one seed for everything, got train.seed = 4"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_one_sentence(
    world: Path, command: Callable[..., Said], text: str, sentence: str
) -> None:
    (world / "run.toml").write_text(text)

    said = command("search", "--zoo", "zoo.toml", "--data", "pairs.csv", "--config", "run.toml")

    assert sentence in mistake(said)


@pytest.mark.usefixtures("world")
def test_json_stands_alone_on_stdout(command: Callable[..., Said]) -> None:
    said = command(*search_words("--json"))

    document = json.loads(said.out)
    assert said.status == 0
    methods = [row["method"] for row in document["leaderboard"]]
    assert methods == ["hypernet"] * len(IMAGES) * len(TEXTS) + 2 * ["polished"]
    assert document["method"] == "hypernet"
    assert "hypernetwork, steps: 2" in said.err


@pytest.mark.usefixtures("world")
def test_a_plan_can_be_asked_for_in_words_and_in_json(command: Callable[..., Said]) -> None:
    told, said = command(*search_words("--dry-run")), command(*search_words("--dry-run", "--json"))

    assert "What the search would do" in told.out
    assert json.loads(said.out)["steps"][0]["what"] == "sharp: ready rows"
    assert not Path("reports").exists()


def test_resuming_what_is_finished_or_no_run_is_one_sentence(world: Path, command: Callable[..., Said]) -> None:
    command(*search_words())
    run = next((world / "reports").iterdir())

    said = mistake(command("search", "--resume", f"reports/{run.name}"))
    assert f"`hyperalign rerun reports/{run.name}` repeats it" in said
    assert f"`hyperalign report reports/{run.name}` draws its page" in said
    assert not (run / ".locks").exists()
    assert "is not a run: it has no result.json" in mistake(command("search", "--resume", "rows"))
    assert "no run at nowhere: there is no such folder" in mistake(command("search", "--resume", "nowhere"))


# Nothing that is computed is lost


FACTORY = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, width)

    def forward(self, pictures):
        return self.linear(pictures.mean((2, 3)))

def mean():
    return Mean(5)

def broken():
    raise ValueError("this network cannot be built")

def other():
    return Mean(7)
"""


def test_what_earlier_encoders_embedded_stays_when_a_later_one_fails(
    world: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperalign.embed import encoders

    (world / "nets.py").write_text(FACTORY)
    facts: dict[str, Any] = {"n_params": 20, "gflops": 0.0}
    add_factory(world, file="nets.py", embed_dim=5, **facts)
    add_factory(world, file="nets.py", name="other", embed_dim=5, **facts)  # which gives seven
    built: list[str] = []
    real = encoders.load_encoder

    def load(spec: Any, **given: Any) -> Any:
        built.append(spec.name)
        return real(spec, **given)

    monkeypatch.setattr(encoders, "load_encoder", load)

    first = command(*search_words())
    write_zoo(world)
    add_factory(world, file="nets.py", embed_dim=5, **facts)
    add_factory(world, file="nets.py", name="other", embed_dim=7, **facts)
    second = command(*search_words())

    assert "encoder 'other' declares embed_dim 5 but gives 7 numbers; correct its zoo file" in mistake(first)
    assert second.status == 0, second.err
    assert built == ["mean", "other", "other"]
    assert f"embedding by mean: {sum(SPLITS.values())}" in first.err
    assert "embedding by mean" not in second.err


# Ctrl-C


EVERYTHING: dict[str, Any] = {"methods": ("closed-form", "hypernet", "ape"), "sides": "text"}
VERIFIED: dict[str, Any] = {"verify": 3}
STOPS = [
    (EVERYTHING, "canonical coordinates", 0),
    (EVERYTHING, "hypernetwork, steps", 5),
    (EVERYTHING, "ape · text, pairs", 3),
    (EVERYTHING, "ape · text · seed 1, pairs", 6),
    (EVERYTHING, "test evaluation, methods", 2),
    (VERIFIED, "verification by ape, pairs", 2),
]


class Counter:
    """Counts the pairs and networks that are trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watch the solvers."""
        self.counts = {"pairs": 0, "networks": 0}
        from hyperalign import solve
        from hyperalign.align.baseline import solve_ape
        from hyperalign.align.residual import solve_residual

        def pairs(grid: Any, chosen: Any, *given: Any, **named: Any) -> Any:
            solution = solve_ape(grid, chosen, *given, **named)
            self.counts["pairs"] += len(solution.pairs)
            return solution

        def network(*given: Any, **named: Any) -> Any:
            solution = solve_residual(*given, **named)
            self.counts["networks"] += 1
            return solution

        monkeypatch.setattr(solve, "solve_ape", pairs)
        monkeypatch.setattr(solve, "solve_residual", network)


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts what is finished from here on."""
    return Counter(monkeypatch)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world for all stops."""
    return write_world(tmp_path_factory.mktemp("stops") / "world")


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> dict[str, Path]:
    """The same searches, finished in one go."""
    return {
        str(changes): small_search(shared, config=small_config(shared, **changes), out=f"undisturbed {n}")
        for n, changes in enumerate((EVERYTHING, VERIFIED))
    }


@pytest.mark.parametrize(("changes", "stage", "at"), STOPS, ids=[stage for _, stage, _ in STOPS])
def test_a_search_that_is_stopped_anywhere_goes_on_to_the_same_table(
    shared: Path,
    tmp_path: Path,
    undisturbed: dict[str, Path],
    counter: Counter,
    changes: dict[str, Any],
    stage: str,
    at: int,
) -> None:
    config, out = small_config(shared, **changes), str(tmp_path / "reports")

    def stop(name: str, done: int, total: int) -> None:
        if name == stage and done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_search(shared, config=config, out=out, progress=stop)
    cut = next((tmp_path / "reports").iterdir())
    assert read_result(cut)["status"] == "running"
    before = finished_stages(cut)
    run = small_search(shared, config=config, out=out, resume=cut)

    whole = undisturbed[str(changes)]
    assert run == cut
    assert same_table(run, whole)
    mine, theirs = load_run(run), load_run(whole)
    columns = ["method", "stage", "flops"]
    assert mine.ledger[columns].equals(theirs.ledger[columns])
    assert mine.result["totals"] == theirs.result["totals"]
    assert mine.result["notes"] == theirs.result["notes"]
    kept = [line["name"] for line in read_log(run) if line["event"] == "stage"]
    assert kept[: len(before)] == before
    assert len(kept) == len(set(kept))  # nothing was made twice
    assert counter.counts == {"pairs": 12 if changes is EVERYTHING else 3, "networks": 1}


def test_what_was_told_of_the_embedding_stands_in_the_record_of_a_run_gone_on_with(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small_config(shared), str(tmp_path / "reports")
    with monkeypatch.context() as patch:
        patch.setattr("hyperalign.pipeline.note_near_duplicates", lambda *_, **__: ["batches were halved"])
        patch.setattr("hyperalign.pipeline.solve", _stopped)
        with pytest.raises(KeyboardInterrupt):
            small_search(shared, config=config, out=out)

    run = small_search(shared, config=config, out=out)

    assert [path.parent for path in (tmp_path / "reports").glob("*/result.json")] == [run]
    assert "batches were halved" in read_result(run)["notes"]


def _stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_whose_rows_have_changed_does_not_go_on(shared: Path, tmp_path: Path) -> None:
    world = write_world(tmp_path / "other")
    config = small_config(world)

    def stop(name: str, done: int, total: int) -> None:
        if name == "hypernetwork, steps":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_search(world, config=config, progress=stop)
    run = next((world / "reports").iterdir())
    write_rows(world, "sharp", "train", read_rows(world, "sharp", "train")[::-1])

    with pytest.raises(ValueError, match="have changed since it began; search anew, without --resume"):
        small_search(world, config=config, resume=run)


@pytest.mark.usefixtures("world")
def test_ctrl_c_says_what_is_finished_and_how_to_go_on(
    command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperalign.show.progress import Display

    real = Display.progress

    def stop(self: Display, stage: str, done: int, total: int) -> None:
        real(self, stage, done, total)
        if stage == "hypernetwork, steps":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Display, "progress", stop)
        said = command(*search_words("--method", "closed-form,hypernet"))
    run = next(Path("reports").iterdir())
    gone_on = command("search", "--resume", str(run))

    assert said.status == 130
    assert said.out == ""
    assert "closed-form-both-0, closed-form-text-0" in said.err
    assert said.err.endswith(f"go on with `hyperalign search --resume {run}`\n")
    assert gone_on.status == 0, gone_on.err
    assert read_result(run)["status"] == "finished"
    assert (run / "report.html").is_file()


def words_of(config: SearchConfig) -> list[str]:
    """The same search on a command line."""
    words = ["--zoo", config.zoo[0], "--data", config.data, "--method", ",".join(config.methods)]
    names = {"n_steps": "--steps", "batch_size": "--batch-size", "pairs_per_step": "--pairs-per-step"}
    words += [part for key, value in config.train.items() for part in (names[key], str(value))]
    words += [part for key, value in config.baseline.items() for part in (f"--baseline-{key[2:]}", str(value))]
    return [*words, "--polish", str(config.polish)]


def test_a_real_interrupt_is_resumed_by_another_process(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    config = small_config(world, methods=("ape",), baseline={"n_epochs": 60.0})
    command = [sys.executable, "-m", "hyperalign", "search"]
    where = ["--cache-dir", str(world / "cache"), "--out", str(world / "reports")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs us behind may have it ignored
    process = subprocess.Popen(
        [*command, *words_of(config), *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    signal.signal(signal.SIGINT, ours)
    deadline = time.monotonic() + 200
    while not list((world / "reports").glob("*/stages/ape-text-0-0.json")):  # the first image encoder is finished
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    run = next((world / "reports").iterdir())
    stages = finished_stages(run)
    resumed = subprocess.run(
        [*command, "--resume", str(run), *where, "--json"], capture_output=True, text=True, env=environment, check=False
    )

    assert process.returncode == 130, err
    assert out == ""
    assert f"hyperalign search --resume {run}" in err
    assert "Traceback" not in err
    assert 0 < len([name for name in stages if name.startswith("ape")]) < 6
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["status"] == "finished"
    assert same_table(run, small_search(world, config=config, out="undisturbed"))
    assert not re.search("Traceback|Warning", resumed.stderr)
