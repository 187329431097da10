"""The examples below each command's help: every command has some, each can be typed, and they fit a terminal."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from parsing import parse
from PIL import Image
from test_cache import KEY
from typer.testing import CliRunner

from hyperalign.cli import app
from hyperalign.cli.examples import EXAMPLES
from hyperalign.embed.cache import fill
from hyperalign.embed.zoo import load_zoos

TYPED = [(command, example.words) for command, examples in EXAMPLES.items() for example in examples]


def commands(group: object, name: str = "") -> Iterator[str]:
    """The names of a group and of all commands below it; empty for the program."""
    yield name
    for below, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{name} {below}".strip())


def test_every_command_has_an_example_and_no_other_has() -> None:
    assert sorted(EXAMPLES) == sorted(commands(typer.main.get_command(app)))
    assert all(EXAMPLES.values())


@pytest.mark.parametrize(("command", "typed"), TYPED, ids=[typed for _, typed in TYPED])
def test_an_example_is_one_of_its_command_and_can_be_typed(
    command: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").write_text('data = "scenes"\n')
    monkeypatch.chdir(tmp_path)
    words = shlex.split(typed.replace("\\\n", " "))

    assert words[: 1 + len(command.split())] == ["hyperalign", *command.split()]
    assert str(parse(words[1:]).command.name) in words


def test_the_example_of_importing_rows_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = next(typed for _, typed in TYPED if "import rows.npy" in typed)
    lines = [f"{number}.png,picture {number}" for number in range(60)]
    for number in range(60):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "pairs.csv").write_text("\n".join(["image,caption", *lines]))
    np.save(tmp_path / "rows.npy", np.ones((60, 8), np.float32))
    monkeypatch.chdir(tmp_path)

    answer = CliRunner().invoke(app, shlex.split(typed.replace("\\\n", " "))[1:])

    assert answer.exit_code == 0, answer.output
    assert [spec.name for spec in load_zoos(["imported/zoo.toml"])] == ["rows"]


def test_the_example_of_exporting_rows_fits_one_entry_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = next(typed for command, typed in TYPED if command == "cache export")
    for split in ("train", "val", "test"):
        key = replace(KEY, encoder="mobilenetv4-s", dataset="pairs", split=split)
        fill(tmp_path / "cache", key, n_rows=2, embed=lambda start, stop: (np.ones((2, 4)), []))
    monkeypatch.chdir(tmp_path)

    answer = CliRunner().invoke(app, shlex.split(typed)[1:])

    assert (answer.exit_code, answer.stdout) == (0, "rows.faiss\n"), answer.output


def test_an_option_that_is_not_there_is_found() -> None:
    with pytest.raises(Exception, match="--nosuch"):
        parse(["search", "--nosuch"])


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_shows_the_examples_whole_at_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    answer = CliRunner().invoke(app, [*command.split(), "--help"])

    shown = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", answer.stdout).splitlines()]
    for what, typed in EXAMPLES[command]:
        assert all(line.strip() in shown for line in typed.splitlines())
        assert not what or f"# {what}" in shown


def test_encoders_that_examples_name_are_in_the_zoo_of_the_hub() -> None:
    names = {spec.name for spec in load_zoos(["hub"])}
    place = re.compile(r"(?:--image|--text|zoo show|cache rm|cache export) '?([\w.]+(?:-[\w.]+)*)")
    named = [name for _, typed in TYPED for name in place.findall(typed)]

    assert len(named) == 5
    assert set(named) <= names
