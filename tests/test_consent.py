"""Code and addresses that a record names: whoever is handed a run by others runs nothing of theirs unasked."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_zoo import write_world

import hyperalign
from hyperalign.cli import app, main
from hyperalign.embed import consent
from hyperalign.embed.consent import UntrustedError, Written, allowed, trusting
from hyperalign.embed.data import open_dataset
from hyperalign.embed.factories import hold_factory
from hyperalign.embed.streams import streams_of
from hyperalign.embed.zoo import EncoderSpec, load_zoo, read_spec
from hyperalign.record import to_json

NETS = """
from pathlib import Path
import torch

def net(width=4):
    with open(Path(__file__).parent / "ran", "a") as file:
        file.write("x")
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 4, 4), torch.nn.BatchNorm2d(width), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    )
"""
ENCODER = """
[[encoder]]
name = "net"
modality = "image"
loader = "python"
factory = "nets.py:net"
input_size = 16
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
"""
SEEN: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TRAINING = ("--steps", "3", "--batch-size", "16", "--no-scores")
READS_NO_RECORD = {"bench", "doctor", "embed", "filter", "import", "zoo", "cache"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody else: a zoo with a factory, a run over it, one cut short, a study, a model and an index."""
    folder = write_world(tmp_path_factory.mktemp("theirs"))
    (folder / "nets.py").write_text(NETS)
    zoo = (folder / "zoo.toml").read_text()
    (folder / "zoo.toml").write_text(zoo + ENCODER)
    (folder / "more.toml").write_text(zoo.split("\n\n")[0].replace("'sharp'", "'more'"))
    words = ["--zoo", folder / "zoo.toml", "--data", folder / "pairs.csv", "--cache-dir", folder / "cache"]
    _said("search", *words, "--out", folder / "runs", *TRAINING)
    run = (next((folder / "runs").iterdir())).rename(folder / "run")
    for name in ("cut", "of-a-study"):
        shutil.copytree(run, folder / name)
    record = json.loads((run / "result.json").read_text())
    (folder / "cut" / "result.json").write_text(json.dumps({**record, "status": "running"}))
    how = ["--cache-dir", folder / "cache", "--trials", 1, "--looks", 1]
    _said("study", "--run", folder / "of-a-study", *how)
    (folder / "model").mkdir()
    spec = {"name": "net", "modality": "image", "loader": "python", "factory": "nets.py:net", "input_size": 16}
    spec |= {"mean": [0.5] * 3, "std": [0.5] * 3, "folder": str(folder)}
    model = {"format": 1, "image": spec, "embed_dim": 8, "head": True, "hyper": None, "text_dim": 4}
    (folder / "model" / "model.json").write_text(json.dumps(model))
    (folder / "prompts.txt").write_text("a\nb\n")
    Image.new("RGB", (16, 16)).save(folder / "one.png")
    (folder / "ran").unlink()
    return folder


@pytest.fixture
def stranger(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, seen by somebody who has run nothing of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(consent, "_SEEN", set())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(theirs, tmp_path / "theirs")
    for record in (tmp_path / "theirs").glob("*/*.json"):
        record.write_text(record.read_text().replace(str(theirs), str(tmp_path / "theirs")))
    return tmp_path / "theirs"


COMMANDS: dict[str, Callable[[Path], Sequence[Any]]] = {
    "rerun": lambda f: ["rerun", f / "run"],
    "search --resume": lambda f: ["search", "--resume", f / "cut"],
    "search --add": lambda f: ["search", "--add", "more", "--run", f / "run", "--zoo", f / "more.toml"],
    "report": lambda f: ["report", f / "run", "--pictures"],
    "study --run": lambda f: ["study", "--run", f / "run", "--trials", 1],
    "study --resume": lambda f: ["study", "--resume", f / "of-a-study"],
    "study --best": lambda f: ["study", "--best", f / "of-a-study"],
    "adapt": lambda f: ["adapt", f / "run", "--pair", "net+words"],
    "specialise": lambda f: ["specialise", f / "model", "--prompts", f / "prompts.txt", "--out", "folded"],
    "export": lambda f: ["export", f / "run", "--pair", "net+words", "--to", "mine"],
    "classify": lambda f: ["classify", f / "run", f / "one.png", "--labels", "a,b", "--pair", "net+words"],
    "index": lambda f: ["index", f / "run", f / "one.png", "--pair", "net+words"],
    "retrieve": lambda f: ["retrieve", "theirs.index", "a"],
    "evaluate": lambda f: ["evaluate", f / "run", "--on", f / "pairs.csv", "--pair", "net+words"],
}


def _said(*words: Any) -> int:
    """The status of a command."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _index(folder: Path, to: Path) -> None:
    """An index that says it was made by a pair of their run."""
    from colours import colour_model

    from hyperalign.use.update import update_gallery

    by = {"path": str(folder / "run"), "pair": "net+words"}
    update_gallery(colour_model()[0], [folder / "one.png"], to, made_by=by)


def test_every_command_that_reads_a_record_is_tried_here() -> None:
    import typer.main

    known = {*typer.main.get_command(app).commands}  # type: ignore[attr-defined]

    assert {name.split()[0] for name in COMMANDS} | READS_NO_RECORD == known


@pytest.mark.parametrize("name", COMMANDS)
def test_code_that_a_record_names_is_not_run_unasked(
    stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    _index(stranger, tmp_path / "theirs.index")

    status = _said(*COMMANDS[name](stranger))

    said = capsys.readouterr().err
    assert (status, (stranger / "ran").exists()) == (2, False)
    assert f"is built by running {stranger / 'nets.py'}, which a record names and you did not" in said
    assert "--trust-code" in said
    assert "--trust-code" in _options(name.split()[0])


@pytest.mark.parametrize("name", ["rerun", "search --resume", "search --add", "study --run", "report"])
def test_it_is_run_where_its_user_says_so(stranger: Path, name: str) -> None:
    words = COMMANDS[name](stranger)

    status = _said(*words, "--cache-dir", "cache", "--trust-code", *([] if name == "report" else ["--out", "runs"]))

    assert (status, (stranger / "ran").exists()) == (0, True)


def test_a_zoo_that_was_named_here_is_known_until_its_factory_changes(stranger: Path) -> None:
    plain, own = (load_zoo(word(stranger / "zoo.toml"))[-1] for word in (str, Written))
    with pytest.raises(UntrustedError):
        hold_factory(plain)
    hold_factory(own)
    consent._SEEN.clear()  # as in the next process

    assert hold_factory(plain) == stranger / "nets.py"
    for changed in ({"kwargs": {"width": 5}}, {"factory": "nets.py:torch"}):
        with pytest.raises(UntrustedError, match=r"nets\.py"):
            hold_factory(replace(plain, **changed))
    (stranger / "nets.py").write_text(NETS + "\n")
    with pytest.raises(UntrustedError, match="read that file"):
        hold_factory(plain)
    assert not (stranger / "ran").exists()


def test_words_that_went_through_a_record_are_nobodys() -> None:
    spec = EncoderSpec(name="n", modality="image", loader="python", factory=Written("a.py:b"), input_size=8, **SEEN)

    back = read_spec(json.loads(to_json(spec)), Path())

    assert isinstance(asdict(spec)["factory"], Written)
    assert not isinstance(back.factory, Written)
    assert back == spec


def test_where_nothing_can_be_kept_a_process_still_knows_what_it_has_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(consent, "_SEEN", set())

    assert [allowed(word, "x") for word in ("a", Written("a"), "a")] == [False, True, True]


def test_trust_ends_with_its_context(tmp_path: Path) -> None:
    with pytest.raises(KeyError), trusting():
        raise KeyError

    assert not allowed("a", str(tmp_path))


def test_a_model_of_a_strangers_run_is_built_where_its_user_says_so(stranger: Path) -> None:
    found = hyperalign.open_result(stranger / "run")
    with pytest.raises(UntrustedError, match=r"trust_code=True"):
        found.model("net+words")
    assert not (stranger / "ran").exists()

    with pytest.raises(ValueError, match="embeds nothing new"):  # its text encoder; the factory has been run
        found.model("net+words", trust_code=True)
    assert (stranger / "ran").exists()


# Addresses


@pytest.mark.parametrize("source", ["s3://b/{0..1}.tar", "https://h/x.tar?key=1", "simplecache::file:///x.tar"])
def test_an_address_that_a_record_names_is_not_fetched_unasked(stranger: Path, source: str) -> None:
    with pytest.raises(UntrustedError, match="which a record names and you did not") as said:
        open_dataset(source)
    assert "key" not in str(said.value)

    assert streams_of(Written(source)) == streams_of(source)  # known from then on


def test_an_address_of_this_machine_is_read() -> None:
    assert streams_of("file:///x.tar") == ["file:///x.tar"]


def test_no_address_of_a_strangers_study_becomes_the_users_own(
    stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((stranger / "of-a-study" / "study.json").read_text())
    record["configuration"] |= {"zoo": ["embedded"], "data": "s3://b/x.tar"}
    (stranger / "of-a-study" / "study.json").write_text(json.dumps(record))

    assert _said("study", "--best", stranger / "of-a-study") == 2
    assert "would be fetched from 's3://b/x.tar', which a record names" in capsys.readouterr().err
    assert not list((stranger / "of-a-study").glob("trial-*.toml"))


@pytest.mark.parametrize("words", [["--resume"], ["--best"]])
def test_a_database_that_a_record_names_is_not_opened_unasked(
    stranger: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    place = "postgresql://me@host.invalid/db"
    record = json.loads((stranger / "of-a-study" / "study.json").read_text())
    record["configuration"]["zoo"] = ["embedded"]
    (stranger / "of-a-study" / "study.json").write_text(json.dumps({**record, "storage": place}))

    assert _said("study", *words, stranger / "of-a-study") == 2
    assert f"are kept in {place}, which its record names and you did not" in capsys.readouterr().err


def test_trust_runs_no_command_of_a_record(stranger: Path) -> None:
    with trusting(), pytest.raises(ValueError, match="a command is run only where you write it"):
        streams_of("pipe:touch x")


def _options(command: str) -> set[str]:
    import typer.main

    found: Any = typer.main.get_command(app)
    return {word for param in found.commands[command].params for word in param.opts}
