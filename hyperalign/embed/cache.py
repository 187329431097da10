"""Embeddings on disk: computed once, never recomputed, never mixed up.

    cache/<encoder>--<dataset>--<digest>/  part-00000.npy, part-00000.json, …, manifest.json

The digest covers everything that can change an embedding. The manifest comes last, so a folder
without one is an interrupted run, or one that asked for a sample: it is resumed, and no finished shard and no row of a
sample (see `partial`) is computed twice. Rows are float16; a shard that float16 would spoil (see `shards.store_dtype`)
is kept as float32.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.locks import make_folder, owned
from hyperalign.embed.partial import Stored, find_stored, store
from hyperalign.embed.shards import (
    FORMAT,
    Part,
    Rows,
    damage,
    read_manifest,
    read_part,
    record_fault,
    store_dtype,
    write_part,
    write_record,
)
from hyperalign.embed.upkeep import Found, find_entries, prune, remove, verify

__all__ = [
    "CacheKey",
    "Entry",
    "Found",
    "Rows",
    "Sample",
    "fill",
    "fill_shards",
    "fill_some",
    "find_entries",
    "is_whole",
    "missing_shards",
    "n_missing",
    "open_entry",
    "open_folder",
    "own_entries",
    "prune",
    "remove",
    "verify",
]

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]
Embed = Callable[[int, int], tuple[NDArray[Any], Sequence[tuple[int, str]]]]
EmbedSome = Callable[[NDArray[np.int64]], tuple[NDArray[Any], Sequence[tuple[int, str]]]]

_DTYPES = ("float16", "float32")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # Windows: no file may be called so


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKey:
    """Everything that can change an embedding, and nothing else.

    Attributes:
        encoder: Name in the zoo.
        weights: Hash of the weights.
        revision: Commit of the weights.
        preprocess: Digest of the image transform or of the tokenizer.
        pooling: How tokens or positions become one row.
        prompt: What is put before or around a caption.
        dataset: Name of the data set.
        content: Hash of the pictures or captions and their order.
        split: Name of the split.
        dtype: Type of the stored rows, float16 or float32.
    """

    encoder: str
    weights: str
    revision: str
    preprocess: str
    pooling: str
    prompt: str
    dataset: str
    content: str
    split: str
    dtype: str = "float16"

    def __post_init__(self) -> None:
        """Refuse a type that rows are not stored in."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"rows are stored as {' or '.join(_DTYPES)}, got {self.dtype!r}")

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for all fields."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Name of the entry's folder; the names in it are for people, the digest decides."""
        return f"{_file_name(self.encoder)}--{_file_name(self.dataset)}--{self.digest}"


class Entry(NamedTuple):
    """One cached matrix of embeddings.

    Attributes:
        rows: (n, D)
        bad: Index and reason of the items that could not be embedded; their rows are NaN.
        manifest: The entry's record: key, shape, shards.
    """

    rows: Rows
    bad: dict[int, str]
    manifest: dict[str, Any]


class Sample(NamedTuple):
    """Rows of some items of an entry, whether the rest is there or not.

    Attributes:
        rows: Where they lie, among others.
        at: (n,) which of `rows` belongs to each item, in the order in which they were asked for.
        bad: Index, counted in the whole entry, and reason of the items that could not be embedded.
    """

    rows: Rows
    at: NDArray[np.int64]
    bad: dict[int, str]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def fill(  # noqa: PLR0913 - whose rows, how they are computed, and who is told
    root: Path,
    key: CacheKey,
    *,
    n_rows: int,
    embed: Embed,
    embed_some: EmbedSome | None = None,
    shard_rows: int = 8192,
    progress: Progress = _silent,
    tell: Tell = lambda sentence: None,
) -> Entry:
    """Open the entry of `key`; compute what of it is missing or damaged first.

    Args:
        root: Folder of the cache.
        key: Whose rows.
        n_rows: How many rows there are.
        embed: `embed(start, stop)` returns rows start to stop as (stop - start, D) and, for those
            that could not be computed, their index (counted from 0 in the whole split) and the reason.
        embed_some: `embed_some(items)` returns the same for single items; without it, the rows of samples that were
            embedded before are computed again.
        shard_rows: Rows per shard, the most that an interruption can cost.
        progress: Told `(stage, rows done, rows in all)`.
        tell: Told what was damaged, in sentences; no more than that is computed again.

    Returns:
        The whole entry, every checksum compared.
    """
    if n_rows < 1 or shard_rows < 1:
        raise ValueError(f"there is nothing to embed: {n_rows} rows in shards of {shard_rows}")
    if (entry := _whole(root, key, n_rows)) is not None:
        return entry
    folder = root / key.folder
    make_folder(folder)
    with owned(root, key.folder, lambda: _tell_of_other(folder, key, n_rows, progress)):
        if (entry := _whole(root, key, n_rows)) is not None:
            return entry  # another process finished it while we waited
        known = _known(folder, tell)
        (folder / "manifest.json").unlink(missing_ok=True)  # a damaged entry becomes an unfinished one
        embed = embed if embed_some is None else _completing(find_stored(folder, shards=False), embed, embed_some)
        parts: list[Part] = []
        for index, start in enumerate(range(0, n_rows, shard_rows)):
            stop = min(start + shard_rows, n_rows)
            part = _finished(folder, index, (start, stop), known, tell)
            if part is None or part.dim != (parts[0].dim if parts else part.dim):
                rows, bad = _computed(embed, start, stop, key, parts)
                part = write_part(folder, index, start, rows, bad)
            parts.append(part)
            progress(f"{key.encoder}, {key.split}", stop, n_rows)
        _sweep(folder, parts)
        write_record(folder / "manifest.json", _manifest(key, parts))
    whole = _whole(root, key, n_rows)
    assert whole is not None, "an entry that was just written must open"
    return whole


def fill_some(  # noqa: PLR0913 - whose rows, which, how they are computed, and who is told
    root: Path,
    key: CacheKey,
    *,
    n_rows: int,
    items: NDArray[np.int64],
    embed_some: EmbedSome,
    shard_rows: int = 8192,
    progress: Progress = _silent,
) -> Sample:
    """Open the rows of some items of an entry; compute those that no earlier sample has first.

    The entry is not whole after this, and does not look so: it has no manifest.

    Args:
        root: Folder of the cache.
        key: Whose rows.
        n_rows: How many rows the whole entry has.
        items: (n,) which of them, each once.
        embed_some: `embed_some(items)` returns (n, D) rows and, for those that could not be computed, item and reason.
        shard_rows: Rows per shard, the most that an interruption can cost.
        progress: Told `(stage, rows done, rows asked for)`.
    """
    if not len(items) or items.min() < 0 or items.max() >= n_rows:
        raise ValueError(f"a sample is of items 0 to {n_rows - 1}, got {len(items)} others")
    if (entry := _whole(root, key, n_rows)) is not None:
        return _sample(Stored(np.arange(n_rows), entry.rows, entry.bad), items)
    folder = root / key.folder
    make_folder(folder)
    with owned(root, key.folder, lambda: _tell_of_other(folder, key, n_rows, progress)):
        if (entry := _whole(root, key, n_rows)) is not None:
            return _sample(Stored(np.arange(n_rows), entry.rows, entry.bad), items)
        stored = find_stored(folder, shards=True)
        missing, dim = np.setdiff1d(items, stored.items), None if stored.rows is None else stored.rows.shape[1]
        for start in range(0, len(missing), shard_rows):
            chosen = missing[start : start + shard_rows]
            rows, bad = embed_some(chosen)
            rows = np.asarray(rows)
            _check_shape(rows, len(chosen), dim, key)
            dim = rows.shape[1]
            store(folder, chosen, rows.astype(store_dtype(rows, key.dtype)), bad)
            progress(f"{key.encoder}, {key.split}", len(items) - len(missing) + start + len(chosen), len(items))
        return _sample(find_stored(folder, shards=True) if len(missing) else stored, items)


@contextmanager
def own_entries(root: Path, keys: Sequence[CacheKey], waiting: Callable[[], None]) -> Iterator[None]:
    """Own several entries for processes that fill them by `fill_shards`; `waiting` is called while others own one."""
    with ExitStack() as owning:
        for folder in sorted({key.folder for key in keys}):  # in one order, so that two owners never wait in a circle
            make_folder(root / folder)
            owning.enter_context(owned(root, folder, waiting))
        yield


def missing_shards(root: Path, key: CacheKey, *, n_rows: int, shard_rows: int = 8192) -> list[tuple[int, int]]:
    """First row and end of each shard that `fill` would have to compute, by the records; a whole entry is trusted."""
    if is_whole(root, key):
        return []
    missing = []
    for index, start in enumerate(range(0, n_rows, shard_rows)):
        stop, folder = min(start + shard_rows, n_rows), root / key.folder
        part = read_part(folder / f"part-{index:05}.json")
        whole = part is not None and (part.start, part.stop) == (start, stop)
        if not whole or not (folder / f"part-{index:05}.npy").is_file():
            missing.append((start, stop))
    return missing


def fill_shards(  # noqa: PLR0913 - whose rows, which, how they are computed, and who is told
    root: Path,
    key: CacheKey,
    shards: Sequence[tuple[int, int]],
    *,
    embed: Embed,
    embed_some: EmbedSome,
    shard_rows: int = 8192,
    progress: Progress = _silent,
) -> None:
    """Compute some shards of an entry for the process that owns it, which makes it whole by `fill` in the end.

    Args:
        root: Folder of the cache.
        key: Whose rows.
        shards: First row and end of each, as `missing_shards` gives them.
        embed: As for `fill`.
        embed_some: As for `fill`.
        shard_rows: Rows per shard.
        progress: Told `(stage, rows done, rows asked for)`.
    """
    folder = root / key.folder
    embed = _completing(find_stored(folder, shards=False), embed, embed_some)
    parts, total = list[Part](), sum(stop - start for start, stop in shards)
    for start, stop in shards:
        rows, bad = _computed(embed, start, stop, key, parts)
        parts.append(write_part(folder, start // shard_rows, start, rows, bad))
        progress(f"{key.encoder}, {key.split}", sum(part.stop - part.start for part in parts), total)


def n_missing(root: Path, key: CacheKey, *, n_rows: int, items: NDArray[np.int64] | None = None) -> int:
    """How many rows of an entry, or of some of its items, an embedding would compute; a whole entry is trusted."""
    if is_whole(root, key):
        return 0
    stored = np.unique(find_stored(root / key.folder, shards=True).items)
    return n_rows - len(stored) if items is None else len(np.setdiff1d(items, stored))


def open_entry(root: Path, key: CacheKey) -> Entry:
    """Open a finished entry; a shard's checksum is compared when it is first read."""
    return _open(root, key, checked=False)


def open_folder(folder: Path) -> Entry:
    """Open a finished entry by where it lies, whatever its key."""
    manifest = read_manifest(folder)
    if manifest is None or set(manifest["key"]) != {field.name for field in fields(CacheKey)}:
        raise FileNotFoundError(f"{folder} is no finished entry of a cache; `hyperalign cache ls` lists them")
    return _open(folder.parent, CacheKey(**manifest["key"]), checked=False)


def is_whole(root: Path, key: CacheKey) -> bool:
    """Tell whether an entry is finished, without reading its rows."""
    return read_manifest(root / key.folder) is not None


def _whole(root: Path, key: CacheKey, n_rows: int) -> Entry | None:
    """Open an entry with every checksum compared; None where anything is missing or damaged."""
    if not is_whole(root, key):
        return None
    try:
        entry = _open(root, key, checked=True)
    except (ValueError, FileNotFoundError):
        return None
    if any(record_fault(root / key.folder / path) for path in _records(entry)):
        return None
    if len(entry.rows) != n_rows:
        raise ValueError(
            f"{root / key.folder} holds {len(entry.rows)} rows where {n_rows} are asked for; "
            "remove it with `hyperalign cache rm`"
        )
    parts = (Part.from_record(record) for record in entry.manifest["parts"])
    return None if any(damage(root / key.folder, part) for part in parts) else entry


def _open(root: Path, key: CacheKey, *, checked: bool) -> Entry:
    folder = root / key.folder
    manifest = read_manifest(folder)
    if manifest is None or manifest["key"] != asdict(key):
        raise FileNotFoundError(
            f"no embeddings of {key.dataset} ({key.split}) by {key.encoder} in {root}; run `hyperalign embed`"
        )
    parts = [Part.from_record(record) for record in manifest["parts"]]
    rows = Rows(folder, parts, checked=checked)
    with suppress(OSError):  # a cache that others own can still be read
        os.utime(folder / "manifest.json")  # `prune` removes what was not used for longest
    bad = {index: reason for part in parts for index, reason in part.bad}
    return Entry(rows, bad, manifest)


def _records(entry: Entry) -> list[str]:
    """Names of the records of an entry's shards."""
    return [Path(record["file"]).with_suffix(".json").name for record in entry.manifest["parts"]]


def _manifest(key: CacheKey, parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "key": asdict(key),
        "shape": [parts[-1].stop, parts[0].dim],
        "dtype": sorted({part.dtype for part in parts}),
        "n_bad": sum(len(part.bad) for part in parts),
        "parts": [json.loads(json.dumps(asdict(part))) for part in parts],
    }


def _known(folder: Path, tell: Tell) -> dict[str, Part]:
    """The shards that a manifest vouches for, by file."""
    path = folder / "manifest.json"
    fault = record_fault(path) if path.is_file() else None
    if fault is not None:
        tell(f"{folder.name}: {fault}; it is written again")
    manifest = read_manifest(folder)
    parts = [] if manifest is None else [Part.from_record(record) for record in manifest["parts"]]
    return {part.file: part for part in parts}


def _finished(folder: Path, index: int, bounds: tuple[int, int], known: Mapping[str, Part], tell: Tell) -> Part | None:
    """Find a shard that an earlier run finished and that is still as it was written.

    Either record vouches for it, its own or the manifest's; its own is written again where it is damaged.
    """
    record = folder / f"part-{index:05}.json"
    own = read_part(record)
    part = own or known.get(record.with_suffix(".npy").name)
    fault = record_fault(record) if own is None and (part or record.is_file()) else None
    if fault is not None:
        tell(f"{folder.name}: {fault}; it is written again")
    if part is None or (part.file, part.start, part.stop) != (record.with_suffix(".npy").name, *bounds):
        return None
    fault = damage(folder, part)
    if fault is not None:
        if known or (folder / part.file).is_file():  # else it was cut off between its record and itself
            tell(f"{folder.name}: {fault}; its rows are embedded again")
        return None
    if own is None:
        write_record(record, asdict(part))
    return part


def _computed(
    embed: Embed, start: int, stop: int, key: CacheKey, parts: Sequence[Part]
) -> tuple[NDArray[Any], Sequence[tuple[int, str]]]:
    """Embed one shard and look at what came back."""
    rows, bad = embed(start, stop)
    rows = np.asarray(rows)
    _check_shape(rows, stop - start, parts[0].dim if parts else None, key)
    if any(not start <= index < stop for index, _ in bad):
        raise ValueError(f"undecodable items must be counted in the whole split, {start} to {stop - 1}, got {bad[0]}")
    return rows.astype(store_dtype(rows, key.dtype)), bad


def _check_shape(rows: NDArray[Any], n_rows: int, dim: int | None, key: CacheKey) -> None:
    """One row for each item, as wide as those before."""
    if rows.ndim != 2 or len(rows) != n_rows:
        raise ValueError(
            f"encoder {key.encoder!r} must give one row for each of {n_rows} items, got shape {rows.shape}"
        )
    if dim is not None and rows.shape[1] != dim:
        raise ValueError(
            f"encoder {key.encoder!r} gives rows of width {rows.shape[1]} where it gave {dim} before; "
            f"remove {key.folder} with `hyperalign cache rm`"
        )


def _sample(stored: Stored, items: NDArray[np.int64]) -> Sample:
    assert stored.rows is not None, "what was just computed is stored"
    wanted = set(items.tolist())
    return Sample(stored.rows, stored.find(items), {k: why for k, why in stored.bad.items() if k in wanted})


def _completing(stored: Stored, embed: Embed, embed_some: EmbedSome) -> Embed:
    """`embed` that takes over what is stored and computes the rest."""

    def complete(start: int, stop: int) -> tuple[NDArray[Any], Sequence[tuple[int, str]]]:
        known = np.unique(stored.items[(stored.items >= start) & (stored.items < stop)])
        if stored.rows is None or not len(known):
            return embed(start, stop)
        kept, rest = stored.rows[stored.find(known)], np.setdiff1d(np.arange(start, stop), known)
        rows, bad = embed_some(rest) if len(rest) else (kept[:0], [])
        whole = np.empty((stop - start, kept.shape[1]), np.result_type(kept, rows))
        if rows.shape != (len(rest), kept.shape[1]):
            return rows, bad  # refused as any other wrong shape is
        whole[known - start], whole[rest - start] = kept, rows
        return whole, [*bad, *((k, why) for k, why in stored.bad.items() if start <= k < stop)]

    return complete


def _sweep(folder: Path, parts: Sequence[Part]) -> None:
    """Remove what earlier runs left behind: drafts, samples, and shards of another size."""
    kept = {part.file for part in parts} | {Path(part.file).with_suffix(".json").name for part in parts}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def _tell_of_other(folder: Path, key: CacheKey, n_rows: int, progress: Progress) -> None:
    """Show how far the process that fills this entry has come."""
    parts = (read_part(path) for path in folder.glob("part-*.json"))
    done = max((part.stop for part in parts if part), default=0)
    progress(f"{key.encoder}, {key.split} (by another process)", done, n_rows)


def _file_name(name: str) -> str:
    """Make a name fit for a file on any system: letters, digits, dot, dash and underscore, at most 60 of them."""
    fit = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".-")[:60].strip(".-") or "_"
    return f"_{fit}" if _DEVICES.match(fit) else fit
