"""Words become configurations: what is given is used, what is left out stays as it was, what is wrong is named."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperalign.config import build, place_words, read_words
from hyperalign.embed.zoo import Limits, Range
from hyperalign.record import to_json


@dataclass(frozen=True, kw_only=True)
class Training:
    """A stand-in for a stage's configuration."""

    n_steps: int | None = 75
    n_epochs: float | None = None
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    rollback: bool = True


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A stand-in for the configuration of a search."""

    zoo: tuple[str, ...] = ("embedded",)
    limits: Limits = field(default_factory=Limits)
    methods: tuple[str, ...] = ("hypernet",)
    seed: int = 0
    max_minutes: float | None = None
    strict: bool = False
    where: Path = Path("cache")
    train: Training = field(default_factory=lambda: Training(n_steps=150))


def test_what_is_left_out_stays_as_the_dataclass_has_it() -> None:
    assert build(Whole, {}) == Whole()
    assert build(Whole, {"train": {"learning_rate": 1}}).train == Training(n_steps=150, learning_rate=1.0)


def test_a_budget_bounds_the_image_encoder() -> None:
    config = build(Whole, place_words({"budget": "30M", "dim": "384", "license": "mit, apache-2.0"}))

    assert config.limits == Limits(image_params=Range(high=30e6), dim=Range(384, 384), licenses=("mit", "apache-2.0"))


def test_every_word_with_a_place_of_its_own_lands_in_another_field() -> None:
    words = {"budget": "1", "text_budget": "2", "pair_budget": "3", "max_gflops": "4.5", "max_latency": "5"}

    limits = build(Whole, place_words(words)).limits

    highs = [limits.image_params, limits.text_params, limits.pair_params, limits.gflops, limits.latency_ms]
    assert highs == [Range(high=1), Range(high=2), Range(high=3), Range(high=4.5), Range(high=5)]


def test_epochs_take_the_place_of_steps() -> None:
    train = build(Whole, place_words({"epochs": 2.0})).train

    assert (train.n_steps, train.n_epochs) == (None, 2.0)


def test_a_word_stands_above_a_table_of_the_file() -> None:
    train = build(Whole, place_words({"train": {"n_epochs": 3, "learning_rate": 0.1}, "steps": 7})).train

    assert (train.n_steps, train.n_epochs, train.learning_rate) == (7, None, 0.1)


def test_steps_and_epochs_together_are_refused() -> None:
    with pytest.raises(ValueError, match="--steps or --epochs"):
        place_words({"steps": 1, "epochs": 1.0})


def test_a_record_gives_back_the_configuration_it_was_made_of() -> None:
    config = Whole(
        zoo=("a.toml", "hub"),
        limits=Limits(image_params=Range(1e6, 30e6), licenses=("mit",)),
        max_minutes=2.5,
        strict=True,
        train=Training(n_steps=None, n_epochs=1.5, betas=(0.9, 0.95), rollback=False),
    )

    assert build(Whole, json.loads(to_json(config))) == config


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"sede": 1}, "unknown setting 'sede'; did you mean seed?"),
        ({"train": {"n_step": 1}}, r"unknown setting 'train\.n_step'; did you mean n_steps"),
        ({"seed": "one"}, "seed must be a whole number, got 'one'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"strict": 1}, "strict must be true or false, got 1"),
        ({"train": 3}, "train must be a table, got 3"),
        ({"train": {"betas": [0.9]}}, r"train\.betas must be a list of 2 values"),
        ({"zoo": 3}, "zoo must be a list, got 3"),
        ({"zoo": [3]}, "zoo must be text, got 3"),
        ({"limits": {"dim": {"low": 5, "high": 1}}}, "must rise"),
    ],
)
def test_what_is_wrong_is_named(record: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(Whole, record)


def test_a_file_may_write_dashes(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('max-minutes = 3\nzoo = ["hub"]\n[train]\nn_steps = 5\n')

    words = read_words(path, ["max_minutes", "zoo"], tables=["train"])

    assert words == {"max_minutes": 3, "zoo": ["hub"], "train": {"n_steps": 5}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("budgett = 3", "unknown key 'budgett'; did you mean budget?"),
        ("budget = ", "not a TOML file"),
        ("train = 3", "'train' must be a table"),
        ("[budget]\na = 1", "'budget' must be a single value"),
        ("[trian]\na = 1", "did you mean train?"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence_with_its_name(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(content)

    with pytest.raises(ValueError, match=sentence) as caught:
        read_words(path, ["budget"], tables=["train"])
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*run\.toml"):
        read_words(tmp_path / "run.toml", [])
