"""The cache seen from outside: what is in it, whether it is sound, and how to make it smaller."""

import fnmatch
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hyperalign.embed.locks import owned_now
from hyperalign.embed.shards import Part, damage, read_manifest, read_part

__all__ = ["Found", "find_entries", "prune", "remove", "verify"]

Progress = Callable[[str, int, int], None]

_FOLDER = re.compile(r"^.+--.+--[0-9a-f]{16}$")


class Found(NamedTuple):
    """One folder of the cache, seen from outside.

    Attributes:
        folder: Where it lies.
        shape: (n, D), or None while the entry is unfinished.
        n_bytes: What it takes on disk.
        used: When it was last written or opened, in seconds since 1970.
    """

    folder: Path
    shape: tuple[int, int] | None
    n_bytes: int
    used: float


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def find_entries(root: Path) -> list[Found]:
    """List the entries under `root`, finished or not, by name."""
    if not root.is_dir():
        return []
    return [_found(path) for path in sorted(root.iterdir()) if _is_entry(path)]


def verify(root: Path, *, progress: Progress = _silent) -> dict[Path, list[str]]:
    """Read every byte of the cache.

    Returns:
        What is wrong, by folder; empty if nothing is. A damaged or missing shard is computed again
        by the next run that needs its entry, and no other shard is.
    """
    faults: dict[Path, list[str]] = {}
    entries = find_entries(root)
    for done, found in enumerate(entries, start=1):
        paths = [*sorted(found.folder.glob("part-*.json")), *sorted(found.folder.glob("some-*.json"))]
        parts = [read_part(path) for path in paths]
        problems = [damage(found.folder, part) for part in parts if part is not None]
        manifest = read_manifest(found.folder)
        if manifest is not None:
            problems = [damage(found.folder, Part.from_record(record)) for record in manifest["parts"]]
        elif (found.folder / "manifest.json").exists():
            problems.append("manifest.json is damaged")
        else:
            problems.append("unfinished")
        if any(problems):
            faults[found.folder] = [problem for problem in problems if problem]
        progress("checking the cache", done, len(entries))
    return faults


def prune(root: Path, max_bytes: int) -> list[Path]:
    """Remove the entries that were not used for longest until the cache takes at most `max_bytes`."""
    if max_bytes < 0:
        raise ValueError(f"the cache cannot be smaller than nothing, got {max_bytes} bytes")
    entries = sorted(find_entries(root), key=lambda found: found.used)
    n_bytes = sum(found.n_bytes for found in entries)
    removed: list[Path] = []
    for found in entries:
        if n_bytes <= max_bytes:
            break
        if _delete(root, found.folder):
            removed.append(found.folder)
            n_bytes -= found.n_bytes
    return removed


def remove(root: Path, pattern: str) -> list[Path]:
    """Remove the entries whose folder name matches `pattern` (`*` and `?` as in a shell)."""
    chosen = [found.folder for found in find_entries(root) if fnmatch.fnmatchcase(found.folder.name, pattern)]
    if not chosen:
        raise FileNotFoundError(f"no entry in {root} matches {pattern!r}; `hyperalign cache ls` lists them")
    busy = [folder.name for folder in chosen if not _delete(root, folder)]
    if busy:
        raise ValueError(f"{busy[0]} is being written by another process; wait for it or stop it")
    return chosen


def _delete(root: Path, folder: Path) -> bool:
    """Remove one entry, manifest first; False if another process is writing it."""
    with owned_now(root, folder.name) as ours:
        if ours:
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        return ours


def _is_entry(path: Path) -> bool:
    return bool(_FOLDER.match(path.name)) and path.is_dir() and not path.is_symlink()


def _found(folder: Path) -> Found:
    manifest = read_manifest(folder)
    facts = [path.stat() for path in folder.iterdir()]
    shape = (manifest["shape"][0], manifest["shape"][1]) if manifest else None
    used = max((fact.st_mtime for fact in facts), default=folder.stat().st_mtime)
    return Found(folder, shape, sum(fact.st_size for fact in facts), used)
