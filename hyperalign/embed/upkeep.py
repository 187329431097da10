"""The cache seen from outside: what is in it, whether it is sound, and how to make it smaller."""

import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hyperalign.embed.locks import is_claimed, no_new_claims, owned_now
from hyperalign.embed.shards import Part, damage, read_manifest, read_part, record_fault

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
        split: Whose rows they are, such as "val"; empty while the entry is unfinished.
    """

    folder: Path
    shape: tuple[int, int] | None
    n_bytes: int
    used: float
    split: str

    @property
    def name(self) -> str:
        """That of the folder, with the split before the digest: ENCODER--DATASET--SPLIT--DIGEST."""
        encoder_and_data, digest = self.folder.name.rsplit("--", 1)
        return f"{encoder_and_data}--{self.split}--{digest}"

    def fits(self, pattern: str) -> bool:
        """Whether a pattern, `*` and `?` as in a shell, fits the name or that of the folder."""
        return any(fnmatch.fnmatchcase(name, pattern) for name in (self.name, self.folder.name))


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
        problems = list(_faults(found.folder))
        if problems:
            faults[found.folder] = problems
        progress("checking the cache", done, len(entries))
    return faults


def _faults(folder: Path) -> Iterator[str]:
    """What is wrong with one entry."""
    manifest, known = read_manifest(folder), set[str]()
    for record in sorted([*folder.glob("part-*.json"), *folder.glob("some-*.json")]):
        part = read_part(record)
        problem = record_fault(record) if part is None else damage(folder, part)
        known.add(record.with_suffix(".npy").name)
        if problem:
            yield problem
    if manifest is None:
        fault = record_fault(folder / "manifest.json")
        yield fault if fault and (folder / "manifest.json").exists() else "unfinished"
        return
    for part in map(Part.from_record, manifest["parts"]):
        if part.file not in known:
            yield f"{Path(part.file).with_suffix('.json')} is missing"


def prune(root: Path, max_bytes: int) -> list[Path]:
    """Remove the entries that were not used for longest until the cache takes at most `max_bytes`.

    What another process writes, or a search that is running reads, stays; the cache may be larger than asked after it.
    """
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
    """Remove the entries that a pattern fits (`Found.fits`).

    Raises:
        FileNotFoundError: If none does.
        ValueError: If another process writes or reads one of them; the others are removed.
    """
    chosen = [found.folder for found in find_entries(root) if found.fits(pattern)]
    if not chosen:
        raise FileNotFoundError(f"no entry in {root} matches {pattern!r}; `hyperalign cache ls` lists them")
    busy = [folder.name for folder in chosen if not _delete(root, folder)]
    if busy:
        why = "is being written by another process or read by a running search"
        raise ValueError(f"{busy[0]} {why}; wait for it or stop it")
    return chosen


def _delete(root: Path, folder: Path) -> bool:
    """Remove one entry, manifest first; False if a process is writing or reading it."""
    with no_new_claims(root), owned_now(root, folder.name) as ours:
        free = ours and not is_claimed(root, folder.name)
        if free:
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        return free


def _is_entry(path: Path) -> bool:
    return bool(_FOLDER.match(path.name)) and path.is_dir() and not path.is_symlink()


def _found(folder: Path) -> Found:
    manifest, facts = read_manifest(folder), list[os.stat_result]()
    for path in (*folder.glob("*"), folder):
        with suppress(FileNotFoundError):  # a draft that has got its name meanwhile
            facts.append(path.stat())
    shape = (manifest["shape"][0], manifest["shape"][1]) if manifest else None
    used = max((fact.st_mtime for fact in facts[:-1]), default=0.0)
    split = manifest["key"].get("split", "") if manifest else ""
    return Found(folder, shape, sum(fact.st_size for fact in facts[:-1]), used, split)
