"""Facts about files, remembered between runs so that a warm start reads no picture.

A fact is kept with the file's length and time of change and forgotten when either differs. Losing
this memory costs time and nothing else.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hyperalign.embed.shards import read_record, write_record

__all__ = ["file_digests", "keep", "recall", "stamp"]

Progress = Callable[[str, int, int], None]

_VERSION = 1  # raised when the meaning of what is kept changes


def stamp(path: Path) -> list[int]:
    """Tell one state of a file from another without reading it: length and time of change."""
    fact = path.stat()
    return [fact.st_size, fact.st_mtime_ns]


def recall(memory: Path | None, about: str) -> dict[str, Any]:
    """Read what was kept about something; empty if nothing was."""
    return {} if memory is None else read_record(_file(memory, about)) or {}


def keep(memory: Path | None, about: str, facts: dict[str, Any]) -> None:
    """Keep facts about something, if there is a memory and it can be written to."""
    if memory is None:
        return
    with suppress(OSError):
        _file(memory, about).parent.mkdir(parents=True, exist_ok=True)
        write_record(_file(memory, about), facts, indent=None)  # large, and for no one to read


def file_digests(folder: Path, names: Sequence[str], *, memory: Path | None, progress: Progress) -> list[str]:
    """Take the SHA-256 of whole files, reading only those that changed since last time.

    Args:
        folder: What the names are relative to.
        names: Paths of the files.
        memory: Where facts are kept between runs.
        progress: Told how many files were looked at.
    """
    about = f"files of {folder.resolve()}"
    known = recall(memory, about)
    digests: list[str] = []
    changed = False
    for done, name in enumerate(names, start=1):
        now = stamp(folder / name)
        fact = known.get(name)
        if fact is None or fact[:2] != now:
            with (folder / name).open("rb") as file:
                fact = [*now, hashlib.file_digest(file, "sha256").hexdigest()]
            known[name], changed = fact, True
        digests.append(fact[2])
        if done % 500 == 0 or done == len(names):
            progress("reading pictures", done, len(names))
    if changed:
        keep(memory, about, known)
    return digests


def _file(memory: Path, about: str) -> Path:
    name = hashlib.sha256(f"{_VERSION} {about}".encode(errors="surrogateescape")).hexdigest()[:24]
    return memory / ".data" / f"{name}.json"
