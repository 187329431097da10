"""Where a study is kept: what is refused is left as it was, what is cut off is mended."""

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from hyperalign.study.kept import FORMAT
from hyperalign.study.storage import (
    MARK,
    create_study,
    load_study,
    open_storage,
    quiet,
    settle_storage,
    shown,
)

ASKED = {"over": "training", "inputs": "abc"}


def kept_in(folder: Path, words: str) -> optuna.storages.BaseStorage:
    """A storage inside the folder."""
    return open_storage(settle_storage(words, folder, jobs=1), folder)


@pytest.mark.parametrize(
    ("words", "jobs", "url"),
    [
        (None, 1, "sqlite:///{}/study.db"),
        (None, 4, "journal:{}/study.journal"),
        ("sqlite", 4, "sqlite:///{}/study.db"),
        ("/elsewhere/all.db", 1, "sqlite:////elsewhere/all.db"),
        ("/elsewhere/all.journal", 1, "journal:/elsewhere/all.journal"),
        ("postgresql://me@host/db", 2, "postgresql://me@host/db"),
    ],
)
def test_words_say_where_a_study_is_kept(words: str | None, jobs: int, url: str, tmp_path: Path) -> None:
    assert settle_storage(words, tmp_path, jobs=jobs) == url.format(tmp_path)


def test_a_word_that_is_no_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'somewhere'"):
        settle_storage("somewhere", tmp_path, jobs=1)


@pytest.mark.parametrize("words", ["sqlite", "journal"])
def test_a_study_is_joined_where_it_was_asked_for_the_same_and_refused_where_not(words: str, tmp_path: Path) -> None:
    with quiet():
        first = create_study(kept_in(tmp_path, words), "mine", ASKED, directions=["maximize"])
        again = create_study(kept_in(tmp_path, words), "mine", ASKED, directions=["maximize"])

        assert again.user_attrs == first.user_attrs
        with pytest.raises(ValueError, match=r"asked for something else \(inputs differ\); give another --name"):
            create_study(kept_in(tmp_path, words), "mine", {**ASKED, "inputs": "other"}, directions=["maximize"])


def test_a_study_of_another_form_or_maker_is_refused(tmp_path: Path) -> None:
    with quiet():
        storage = kept_in(tmp_path, "sqlite")
        optuna.create_study(storage=storage, study_name="someone's")
        newer = optuna.create_study(storage=storage, study_name="newer")
        newer.set_user_attr(MARK, {"format": FORMAT + 1, "version": "9.0"})

        with pytest.raises(ValueError, match="not made by `hyperalign study`"):
            load_study(storage, "someone's")
        with pytest.raises(ValueError, match=rf"hyperalign 9\.0 in form {FORMAT + 1}, and this release reads form"):
            load_study(storage, "newer")
        with pytest.raises(ValueError, match="holds no study 'none'"):
            load_study(storage, "none")


def test_a_file_that_is_no_storage_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("my notes\n")
    (tmp_path / "study.journal").write_text("my notes without an end of line")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
        other.commit()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    for words in ("sqlite", "journal", str(tmp_path / "other.db")):
        with pytest.raises(ValueError, match="is not a study's"):
            kept_in(tmp_path, words)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_storage_of_another_optuna_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    with quiet():
        kept_in(tmp_path, "sqlite")
    with closing(sqlite3.connect(tmp_path / "study.db")) as file:
        file.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
        file.commit()
    before = (tmp_path / "study.db").read_bytes()

    with quiet(), pytest.raises(ValueError, match="made by another version of Optuna"):
        kept_in(tmp_path, "sqlite")

    assert (tmp_path / "study.db").read_bytes() == before


def test_a_database_that_cannot_be_reached_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    url = "sqlite+nodriver://me:secret@nowhere/db"

    with quiet(), pytest.raises((OSError, ValueError), match="nowhere") as raised:
        open_storage(url, tmp_path)

    assert "secret" not in str(raised.value)
    assert shown(url) == "sqlite+nodriver://me:***@nowhere/db"


def test_a_line_that_a_killed_process_has_left_half_written_loses_nothing_else(tmp_path: Path) -> None:
    with quiet():
        study = create_study(kept_in(tmp_path, "journal"), "mine", ASKED, directions=["maximize"])
        study.enqueue_trial({"x": 1})
        with (tmp_path / "study.journal").open("ab") as journal:
            journal.write(b'{"op_code":4,"worker')

        again = load_study(kept_in(tmp_path, "journal"), "mine")
        again.enqueue_trial({"x": 2})

        assert len(load_study(kept_in(tmp_path, "journal"), "mine").trials) == 2
