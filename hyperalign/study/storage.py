"""Where a study is kept: SQLite or a journal inside its folder, or a database that several machines reach.

What is there is never taken for what it is not: a file that Optuna has not made, tables of another Optuna or a study
that was asked for something else is refused before anything is written.
"""

import os
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from hyperalign import __version__
from hyperalign.embed.locks import owned
from hyperalign.embed.plain import first_line
from hyperalign.study.kept import FORMAT, check_mark
from hyperalign.study.seats import GRACE, give_back

__all__ = [
    "create_study",
    "dashboard_words",
    "load_study",
    "local_file",
    "open_storage",
    "quiet",
    "settle_storage",
    "shown",
]

MARK = "hyperalign"
_FIRST = b'{"op_code":'  # of a journal
_DATABASE_BYTES = 2**18  # of one without trials, and its journal
HEARTBEAT = 20  # seconds; of databases, where a worker's lock cannot be seen


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's lines on stderr and its warnings of what may change: the progress says what happens."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def settle_storage(words: str | None, folder: Path, *, jobs: int) -> str:
    """Where a study is kept, as `sqlite:///PATH`, `journal:PATH` or another URL.

    Args:
        words: "sqlite" or "journal" for a file inside the folder, a path that ends with `.db` or `.journal`, or a URL;
            None is SQLite for one process and a journal for several, who would wait for each other at SQLite.
        folder: Of the study.
        jobs: Processes.
    """
    words = words or ("sqlite" if jobs == 1 else "journal")
    if words == "sqlite":
        return f"sqlite:///{folder / 'study.db'}"
    if words == "journal":
        return f"journal:{folder / 'study.journal'}"
    if words.startswith("journal:") or "://" in words:
        return words
    if Path(words).suffix in (".db", ".sqlite", ".sqlite3"):
        return f"sqlite:///{words}"
    if Path(words).suffix in (".journal", ".log"):
        return f"journal:{words}"
    raise ValueError(
        f"a study is kept in sqlite, journal, a path that ends with .db or .journal, or a URL such as "
        f"postgresql://USER@HOST/NAME, got {words!r}"
    )


def open_storage(url: str, folder: Path) -> optuna.storages.BaseStorage:
    """Open what `settle_storage` gives.

    Raises:
        ValueError: If what lies there is no storage, or one of another Optuna.
        OSError: If a database cannot be reached.
    """
    if url.startswith("journal:"):
        return _open_journal(Path(url.removeprefix("journal:")), folder)
    url, local = _with_driver(url), _file_of(url)
    if local is not None:
        if not local.parent.is_dir():
            raise FileNotFoundError(f"no folder {local.parent} for the study's storage; make it first")
        _check_sqlite(local)
    options: dict[str, Any] = {"engine_kwargs": {"connect_args": {"timeout": 60}}} if local is not None else {}
    if local is None or local.parent.resolve() != folder.resolve():  # others may share it, whose locks are elsewhere
        options |= {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE}
        options["heartbeat_stale_trial_callback"] = give_back
    try:
        return RDBStorage(url, skip_table_creation=local is not None and local.is_file(), **options)
    except RuntimeError as error:
        raise ValueError(f"{shown(url)} was made by another version of Optuna: {error}") from None
    except ImportError:
        raise ValueError(
            f"no driver for {shown(url)} is installed; for PostgreSQL `pip install 'hyperalign[postgresql]'`"
        ) from None
    except Exception as error:  # of any database
        said = f"{type(error).__name__}: {first_line(error)}"
        why = said if local is None else _unwritable(local.parent) or said
        raise OSError(f"the study's storage {shown(url)} cannot be opened ({why})") from None


def create_study(
    storage: optuna.storages.BaseStorage, name: str, mark: Mapping[str, Any], **given: Any
) -> optuna.Study:
    """Make a study, or join the one of this name where it was asked for the same.

    Args:
        storage: Where.
        name: Of the study.
        mark: What it is asked for; a study that was asked for something else is refused.
        given: `directions` of Optuna, and what else it takes.

    Raises:
        ValueError: If there is a study of this name that is not the same.
    """
    own = {"format": FORMAT, "version": __version__, **mark}
    try:
        study = optuna.create_study(storage=storage, study_name=name, **given)
    except optuna.exceptions.DuplicatedStudyError:
        study = load_study(storage, name)
        theirs = dict(study.user_attrs[MARK])
        differing = [key for key in mark if theirs.get(key) != own[key]]
        if differing:
            raise ValueError(
                f"there is a study {name!r} already, and it was asked for something else ({', '.join(differing)} "
                "differ); give another --name"
            ) from None
        return study
    study.set_user_attr(MARK, own)
    return study


def load_study(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """Open a study that this program has made.

    Raises:
        ValueError: If there is none of this name, or it is of another kind or form.
    """
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise ValueError(f"the storage holds no study {name!r}; begin one, without --resume") from None
    for _ in range(20):  # another machine may be about to mark it
        if MARK in study.user_attrs:
            break
        time.sleep(0.1)
    check_mark(study.user_attrs.get(MARK), f"the study {name!r}")
    return study


def shown(url: str) -> str:
    """The URL without its password.

    Raises:
        ValueError: If it is no URL.
    """
    try:
        password = urlsplit(url).password if "://" in url else None
    except ValueError as error:
        raise ValueError(
            f"a study's storage is a URL such as postgresql://USER@HOST/NAME, got {url!r}: {error}"
        ) from None
    return url if password is None else url.replace(f":{password}@", ":***@", 1)


def dashboard_words(url: str) -> str:
    """The command that shows a study in a browser."""
    return f"optuna-dashboard {shown(url).removeprefix('journal:')}"


def local_file(url: str) -> Path | None:
    """The file of a journal or a SQLite URL; None for a database elsewhere."""
    return Path(url.removeprefix("journal:")) if url.startswith("journal:") else _file_of(url)


def _unwritable(folder: Path) -> str | None:
    """Why no database can be written there, in the system's words, which SQLite keeps to itself; None where one can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_DATABASE_BYTES))
            file.flush()  # whole, or an error: an unbuffered file takes what there is room for
            return None
    except OSError as error:
        return error.strerror


def _with_driver(url: str) -> str:
    """The URL with the driver of ours for PostgreSQL, where it names none and its usual one is not there."""
    if url.startswith(("postgresql://", "postgres://")) and find_spec("psycopg2") is None and find_spec("psycopg"):
        return f"postgresql+psycopg://{url.partition('://')[2]}"
    return url


def _file_of(url: str) -> Path | None:
    """The file of a SQLite URL."""
    kind, _, path = url.partition(":///")
    return Path(path.split("?")[0]) if kind.split("+")[0] == "sqlite" and path else None


def _check_sqlite(path: Path) -> None:
    """Look into a file without writing; one that is not there is fine."""
    if not path.is_file():
        return
    mode = "rw" if Path(f"{path}-journal").exists() else "ro"  # what a process killed has left half-done is taken back
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)) as file:
            tables = {row[0] for row in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a study's storage ({error}); give another --storage") from None
    if not {"studies", "trials", "alembic_version"} <= tables:
        raise ValueError(f"{path} is not a study's storage: it has no tables of Optuna; give another --storage")


def _open_journal(path: Path, folder: Path) -> JournalStorage:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for the study's journal; make it first")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(len(_FIRST)) == _FIRST:
                raise ValueError(f"{path} is not a study's journal; give another --storage")
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Optuna looks at nothing before it uses it
        raise ValueError(f"{path} is not a study's journal ({type(error).__name__}); give another --storage") from None


class _JournalLock:
    """The operating system's lock, which goes when its process ends; Optuna's own stays behind a process killed.

    Whoever gets it cuts off a line that such a process has left half-written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, ExitStack()

    def acquire(self) -> bool:
        """Wait for it."""
        self.held.enter_context(owned(self.path.parent, self.path.name, lambda: None, "--storage"))
        _mend(self.path)
        return True

    def release(self) -> None:
        """Let the next one in."""
        self.held.close()


def _mend(path: Path) -> None:
    """Cut a journal behind its last whole line."""
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
