"""One matrix of rows, cut into shards on disk and read by memory map.

A shard is `part-00000.npy`, an ordinary NumPy file, and `part-00000.json`, its record: which rows
it holds, how long the file is, its checksum, and which rows could not be computed. The record is
written first and the array is renamed into place last, so that a shard exists wholly or not at all.
Whoever reads a shard for the first time checks its checksum: a flipped byte is never served.
"""

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.plain import first_line, misfit, parse_json

__all__ = [
    "FORMAT",
    "Part",
    "Rows",
    "crc32_of",
    "damage",
    "read_array",
    "read_manifest",
    "read_part",
    "read_record",
    "record_fault",
    "store_dtype",
    "unwritten",
    "write_part",
    "write_record",
]

FORMAT = 1  # of manifests and of records; one that says none is of the first
_CHUNK = 1 << 20  # bytes read at a time while a checksum is taken
_DTYPES: Final = ("float16", "float32", "float64")


class _PartRecord(TypedDict):
    """The record of a shard, or its place in a manifest."""

    file: str
    start: int
    stop: int
    dim: int
    dtype: str
    n_bytes: int
    crc32: int | None
    bad: list[tuple[int, str]]


class _ManifestRecord(TypedDict):
    """What the manifest of an entry says."""

    key: dict[str, str]
    shape: tuple[int, int]
    parts: list[_PartRecord]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One shard, as its record describes it.

    Attributes:
        file: Name of the array file inside the entry's folder.
        start: First row it holds.
        stop: One past its last row.
        dim: Width D of a row.
        dtype: NumPy name of the stored type.
        n_bytes: Length of the file.
        crc32: Checksum of the file's bytes; None for files that others wrote.
        bad: Rows that could not be computed, with the reason; they are stored as NaN.
    """

    file: str
    start: int
    stop: int
    dim: int
    dtype: str
    n_bytes: int
    crc32: int | None
    bad: tuple[tuple[int, str], ...] = ()

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Part":
        """Read back what `write_part` wrote; which items a shard of single ones holds is not part of it.

        Raises:
            ValueError: If this release has not written it, or it names a file elsewhere.
        """
        known = {name: value for name, value in record.items() if name != "items"}
        fault = misfit(known, _PartRecord)
        if fault is None and set(known) != set(_PartRecord.__annotations__):
            fault = f"{sorted(set(known) - set(_PartRecord.__annotations__))[0][:40]!r} means nothing"
        if fault is None and (Path(record["file"]).name != record["file"] or not record["file"].endswith(".npy")):
            fault = "its file must lie beside it"
        if fault is None and not (0 <= record["start"] <= record["stop"] < 2**62 and 1 <= record["dim"] < 2**31):
            fault = "it must hold rows"
        if fault is None and (record["dtype"] not in _DTYPES or "\0" in record["file"]):
            fault = f"its numbers must be {' or '.join(_DTYPES)}"
        if fault is not None:
            raise ValueError(f"the record of a shard is damaged: {fault}")
        return cls(**{**known, "bad": tuple((index, reason) for index, reason in record["bad"])})


class Rows:
    """A read-only (n, D) matrix over memory-mapped shards.

    Indexing copies exactly the rows that were asked for; nothing is kept. Where shards differ in
    type (see `store_dtype`), rows come in the wider one.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], *, checked: bool = False) -> None:
        """Map `parts` of `folder`; with `checked` their checksums are not looked at again."""
        self.claim: object = None  # of whoever would have these files stay while the rows live
        self._folder, self._parts = folder, tuple(parts)
        self._maps = [_map(folder, part) for part in self._parts]
        self._checked = [checked or part.crc32 is None for part in self._parts]
        self._starts = np.array([part.start for part in self._parts], dtype=np.int64)
        self.shape = (self._parts[-1].stop, self._parts[0].dim)
        self.dtype: np.dtype[Any] = np.result_type(*(rows.dtype for rows in self._maps))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Name the folder and the shape."""
        return f"Rows({self._folder.name!r}, {self.shape[0]} × {self.shape[1]}, {self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by name: the rows are mapped there again, not copied."""
        return (Rows, (self._folder, self._parts))

    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Copy the rows of a slice, of an array of indices or of a mask, as (n_asked, D)."""
        if not isinstance(index, slice):
            return self._gather(_positions(index, len(self)))
        start, stop, step = index.indices(len(self))
        if step != 1:
            return self._gather(np.arange(start, stop, step))
        out = np.empty((max(0, stop - start), self.shape[1]), dtype=self.dtype)
        for which, part in enumerate(self._parts):
            low, high = max(start, part.start), min(stop, part.stop)
            if low < high:
                out[low - start : high - start] = self._open(which)[low - part.start : high - part.start]
        return out

    def blocks(self, n_rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Copy the whole matrix piece by piece: (index of the first row, at most `n_rows` rows)."""
        for start in range(0, len(self), n_rows):
            yield start, self[start : start + n_rows]

    def _gather(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        out = np.empty((len(positions), self.shape[1]), dtype=self.dtype)
        home = np.searchsorted(self._starts, positions, side="right") - 1
        for which in np.unique(home).tolist():
            chosen = np.flatnonzero(home == which)
            out[chosen] = self._open(which)[positions[chosen] - self._parts[which].start]
        return out

    def _open(self, which: int) -> NDArray[Any]:
        """Hand out one shard, its checksum taken the first time."""
        if not self._checked[which]:
            problem = damage(self._folder, self._parts[which])
            if problem:
                raise ValueError(f"{self._folder}: {problem}; run `hyperalign embed` to compute it again")
            self._checked[which] = True
        return self._maps[which]


def store_dtype(rows: NDArray[Any], wanted: str) -> str:
    """Name the type these rows can be stored in without harm: `wanted`, or float32 where float16 would spoil them.

    Spoiling is a finite value that becomes infinite, or a whole row so small (below 6.1e-5) that
    it falls among float16's subnormal numbers and loses its direction.
    """
    if wanted != "float16":
        return wanted
    half = np.finfo(np.float16)
    magnitude = np.abs(rows, dtype=np.float32, where=np.isfinite(rows), out=np.zeros(rows.shape, np.float32))
    largest = magnitude.max(axis=1, initial=0.0)
    fits = (largest <= float(half.max)) & ((largest >= float(half.smallest_normal)) | (largest == 0))
    return "float16" if bool(fits.all()) else "float32"


def write_part(  # noqa: PLR0913 - a shard and what its record says
    folder: Path,
    index: int,
    start: int,
    rows: NDArray[Any],
    bad: Sequence[tuple[int, str]],
    *,
    stem: str = "part",
    items: Sequence[Any] | None = None,
) -> Part:
    """Store `rows` as shard `index` of `folder`; when this returns, they survive a power cut.

    Args:
        folder: Of the entry.
        index: Number in the file's name.
        start: First row.
        rows: (n, D)
        bad: Rows that could not be computed, with the reason.
        stem: Of the file's name.
        items: What the rows belong to, one JSON value a row, where they do not follow each other.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(rows), allow_pickle=False)
    data = buffer.getbuffer()
    part = Part(
        file=f"{stem}-{index:05}.npy",
        start=start,
        stop=start + len(rows),
        dim=rows.shape[1],
        dtype=rows.dtype.name,
        n_bytes=len(data),
        crc32=zlib.crc32(data),
        bad=tuple(sorted((int(item), str(reason)) for item, reason in bad)),
    )
    write_record(
        folder / f"{stem}-{index:05}.json", asdict(part) if items is None else {**asdict(part), "items": items}
    )
    _write(folder / part.file, data)
    return part


def damage(folder: Path, part: Part) -> str | None:
    """Compare a shard's length and checksum with its record; the fault in words, or None."""
    path = folder / part.file
    try:
        n_bytes = path.stat().st_size
        if n_bytes != part.n_bytes:
            return f"{part.file} has {n_bytes:,} bytes where {part.n_bytes:,} were written"
        if part.crc32 is not None and crc32_of(path) != part.crc32:
            return f"{part.file} is damaged: its bytes are not those that were written"
    except FileNotFoundError:
        return f"{part.file} is missing"
    try:
        _map(folder, part)
    except ValueError:
        return f"{part.file} is damaged: it is not the array that its record describes"
    return None


def read_array(path: Path, *, mapped: bool = True) -> NDArray[Any]:
    """Read a .npy, or map it; no code in it is run.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no whole .npy of numbers.
    """
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy reads the header as Python text: a damaged one fails in any way text can
        raise ValueError(f"{path} is no whole .npy of numbers: {first_line(error)}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        raise ValueError(f"{path} is no whole .npy of numbers: it holds something else")
    return found


def read_part(path: Path) -> Part | None:
    """Read the record of a shard; None if there is none, or none that this release can read."""
    record = read_record(path)
    try:
        return None if record is None else Part.from_record(record)
    except ValueError:
        return None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of an entry; None if there is none, or none that this release can read."""
    manifest = read_record(folder / "manifest.json")
    if manifest is None or manifest.get("format", FORMAT) != FORMAT:
        return None
    if misfit(manifest, _ManifestRecord) is not None or not manifest["parts"]:
        return None
    try:
        parts = [Part.from_record(record) for record in manifest["parts"]]
    except ValueError:
        return None
    starts = [0, *(part.stop for part in parts[:-1])]
    joined = [part.start for part in parts] == starts and len({part.dim for part in parts}) == 1
    return manifest if joined and tuple(manifest["shape"]) == (parts[-1].stop, parts[0].dim) else None


def record_fault(path: Path) -> str | None:
    """What is wrong with a record or a manifest, in words, or None."""
    if not path.is_file():
        return f"{path.name} is missing"
    if read_record(path) is None:
        return f"{path.name} is damaged: its bytes are not those that were written"
    found = read_manifest(path.parent) if path.name == "manifest.json" else read_part(path)
    return f"{path.name} is of another version of hyperalign" if found is None else None


def write_record(path: Path, record: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Write a JSON object with a checksum of its own, whole or not at all."""
    seal = zlib.crc32(_canonical(record))
    _write(path, json.dumps({**record, "seal": seal}, indent=indent).encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote; None if there is nothing or if a byte of it has changed."""
    try:
        record: dict[str, Any] = parse_json(path.read_bytes())
        seal = record.pop("seal")
        return record if seal == zlib.crc32(_canonical(record)) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def _write(path: Path, data: bytes | memoryview) -> None:
    """Write to a temporary name, flush to the disk, rename: the file is whole or not there."""
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # a disk that turned read-only keeps the draft
            draft.unlink(missing_ok=True)
        raise unwritten(path, error) from None


def unwritten(path: Path, error: Exception) -> OSError:
    """The sentence of a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return OSError(f"could not write {path}: {reason}; make room or choose another folder, what is finished is kept")


def _flush_folder(folder: Path) -> None:
    """Flush the names in `folder`; without this a rename may be forgotten in a power cut."""
    if os.name != "posix":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32_of(path: Path) -> int:
    """Checksum of a file of any size, read piece by piece."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _map(folder: Path, part: Part) -> NDArray[Any]:
    """Map one shard; its header must say what its record says."""
    try:
        rows = read_array(folder / part.file)
    except FileNotFoundError:
        raise ValueError(f"{folder}: {part.file} is missing; run `hyperalign embed` to compute it again") from None
    except ValueError:
        raise ValueError(f"{folder}: {part.file} is damaged; run `hyperalign embed` to compute it again") from None
    expected = (part.stop - part.start, part.dim)
    if rows.shape != expected or rows.dtype.name != part.dtype:
        raise ValueError(
            f"{folder}: {part.file} holds {rows.dtype.name} {rows.shape} where {part.dtype} {expected} was written; "
            "run `hyperalign embed` to compute it again"
        )
    return rows


def _positions(index: Sequence[int] | NDArray[Any], n_rows: int) -> NDArray[np.int64]:
    """Turn indices (negative ones count from the end) or a mask into positions."""
    asked = np.asarray(index)
    if asked.dtype == np.bool_:
        if asked.shape != (n_rows,):
            raise IndexError(f"a mask of {n_rows} rows must have shape ({n_rows},), got {asked.shape}")
        return np.flatnonzero(asked)
    if asked.ndim != 1 or not (asked.size == 0 or np.issubdtype(asked.dtype, np.integer)):
        raise IndexError(f"rows are asked for by a slice or by one axis of indices, got {asked.dtype} {asked.shape}")
    positions = np.where(asked < 0, asked + n_rows, asked).astype(np.int64)
    if positions.size and not (0 <= positions.min() and positions.max() < n_rows):
        raise IndexError(f"row {asked[(positions < 0) | (positions >= n_rows)][0]} of {n_rows} does not exist")
    return positions
