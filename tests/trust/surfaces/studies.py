"""Studies: where they are kept, in words of a user and in `study.json`; journals, databases, records."""

import io
import json
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from small_zoo import small_config, write_world

from hyperalign.show.studied import studied_table
from hyperalign.study import storage
from hyperalign.study.asked import StudyConfig
from hyperalign.study.conduct import Place, begin, best_commands, hint
from hyperalign.study.kept import read_study
from trust.hostile import Case
from trust.mutate import WORDS, broken, mutated
from trust.surfaces.folders import Kept

__all__ = ["open_studies"]

_URLS = (
    *(
        "sqlite",
        "journal",
        "all.db",
        "x/all.sqlite3",
        "all.journal",
        "all.log",
        "sqlite:///all.db",
        "journal:all.journal",
    ),
    *("postgresql://me:secret@host:5432/db", "mysql+pymysql://u:p@[::1]:3306/x?charset=utf8", "redis://host:6379/0"),
    *("sqlite:///all.db?mode=ro&cache=shared", "sqlite+pysqlite:///all.db", "postgresql+psycopg2://u@/db?host=/tmp"),
)
_PIECES = tuple(
    word.encode()
    for word in ("://", ":///", "sqlite", "journal:", "@", ":", "?", "#", "%00", "%2e%2e/", "[", "]", "../")
)


def open_studies(folder: Path) -> Case:
    """Words for storages, databases and journals that are none, and records of a study that say something else."""
    vars(storage)["time"] = SimpleNamespace(sleep=lambda seconds: None)  # a mark may come late
    world = write_world(folder / "world")
    place = Place(
        cache_dir=world / "cache", out=folder / "out", storage="journal", progress=_silent, say=lambda words: None
    )
    asked = StudyConfig(trials=3, space={"learning_rate": "2e-1:2e1:log"})
    home = begin(small_config(world), asked, place)
    kept, record = Kept(home), json.loads((home / "study.json").read_text())
    urls = [url.encode() for url in _URLS]
    with closing(sqlite3.connect(folder / "valid.db")) as file:
        for name in ("studies", "trials", "alembic_version", "version_info"):
            file.execute(f"CREATE TABLE {name} (x int)")
        file.commit()
    database = (folder / "valid.db").read_bytes()

    def case(rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.5:
            _settle(rng, folder, urls, database)
            return
        if kind < 0.9:
            kept.write("study.json", broken(rng, record))
        else:
            kept.write("study.journal", mutated(rng, kept.files["study.journal"]))
        try:
            if kind < 0.8:
                found = read_study(home)
                hint(home)
                Console(file=io.StringIO(), width=100).print(studied_table(found, width=100))
            else:
                best_commands(home)
        finally:
            kept.restore()

    return case


def _settle(rng: random.Random, folder: Path, urls: list[bytes], database: bytes) -> None:
    """A storage by the words that name it; what a user names himself may be made, if it lies in the case's folder."""
    words = (
        rng.choice(WORDS)
        if rng.random() < 0.1
        else mutated(rng, rng.choice(urls), urls, _PIECES).decode("utf-8", "replace")
    )
    url = storage.settle_storage(words, folder, jobs=1)
    storage.shown(url)
    storage.dashboard_words(url)
    is_file = url.startswith(("journal:", "sqlite"))
    if rng.random() < 0.3:
        path = folder / rng.choice(("all.db", "all.journal"))
        first = b'{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [1]}\n'
        path.write_bytes(mutated(rng, database if path.suffix == ".db" else first))
        url = f"sqlite:///{path}" if path.suffix == ".db" else f"journal:{path}"
    elif not is_file or rng.random() < 0.97 or not _lies_in(folder, storage.local_file(url)):
        return  # a database takes twenty milliseconds to make, a server a connection, and elsewhere is the user's wish
    with storage.quiet():
        storage.open_storage(url, folder)
    for name in ("all.db", "all.journal"):
        (folder / name).unlink(missing_ok=True)


def _lies_in(folder: Path, path: Path | None) -> bool:
    return path is not None and Path(os.path.abspath(path)).parent == folder.resolve()  # noqa: PTH100 - it may hold a null


def _silent(stage: str, done: int, total: int) -> None: ...
