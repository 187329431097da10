"""Tar shards that come as streams: an index made in one pass, and one pass for each encoder that embeds.

Nothing is kept on disk but the index. A pass opens each shard once and reads it from begin to end, so pictures come in
the order of the shards and are asked for in that order alone. A shard that breaks off is tried again from where it
broke; if it stays broken, the samples before the break are kept and the shard is named.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperalign.embed.memory import keep, recall
from hyperalign.embed.pictures import Chosen, Pictures, decode
from hyperalign.embed.samples import Source
from hyperalign.embed.streams import Reading, label, stamp_of, streams_of
from hyperalign.embed.tars import Member, gather_samples, take_member

__all__ = [
    "StreamedPictures",
    "at_places",
    "in_order",
    "index_stream",
    "is_beside",
    "is_streamed",
    "read_streams",
    "streamed_places",
]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedPictures:
    """Pictures inside tar shards that are streams.

    Attributes:
        names: The shards, as commands or addresses.
        home: (n,) which of them each picture is in, non-decreasing.
        offset: (n,) its first byte there; it grows inside a shard.
        n_bytes: (n,) its length.
        digests: (n) SHA-256 of its bytes.
    """

    names: Sequence[str]
    home: NDArray[np.int64]
    offset: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    digests: Sequence[str]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.home)

    def __getitem__(self, index: int) -> Image.Image:
        """Decode one picture; its shard is read up to there."""
        return decode(next(self.stream([index])))

    def stream(self, index: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some pictures, ascending; each shard is opened once and read as far as it is needed.

        Raises:
            ValueError: If they are not ascending, or a picture is not what it was when the shard was indexed.
            OSError: If a shard cannot be read.
        """
        if any(later <= earlier for earlier, later in pairwise(index)):
            raise ValueError("pictures of a stream come in their own order alone; copy the shards to a disk first")
        for home, chosen in groupby(index, key=lambda k: int(self.home[k])):
            with Reading(self.names[home]) as reading:
                for k in chosen:
                    reading.skip_to(int(self.offset[k]))
                    data = reading.read(int(self.n_bytes[k]))
                    if hashlib.sha256(data).hexdigest() != self.digests[k]:
                        raise ValueError(
                            f"{label(self.names[home])} is not what it was when it was read first: another picture "
                            f"begins at byte {int(self.offset[k]):,}; remove .data in the cache to read all shards anew"
                        )
                    yield data


def is_streamed(pictures: object) -> bool:
    """Whether pictures come as streams, chosen ones too."""
    return isinstance(_root(pictures), StreamedPictures)


def is_beside(pictures: object, others: object) -> bool:
    """Whether two choices of pictures are of one stream."""
    return is_streamed(pictures) and _root(pictures) is _root(others)


def streamed_places(pictures: Pictures) -> tuple[NDArray[np.int64], int]:
    """Where in their stream pictures lie, (n,) ascending, and how many there are in it."""
    root: Any = pictures
    index = np.arange(len(root), dtype=np.int64)
    while isinstance(root, Chosen):
        root, index = root.pictures, root.index[index]
    return index, len(root)


def at_places(pictures: Pictures, places: NDArray[np.int64]) -> Pictures:
    """Other pictures of the same stream."""
    return Chosen(pictures=_root(pictures), index=places)


def in_order(pictures: Pictures, bounds: range) -> Iterator[bytes] | None:
    """The bytes of consecutive pictures of a stream, one after the other; None for pictures that lie on a disk."""
    root = _root(pictures)
    if not isinstance(root, StreamedPictures):
        return None
    return root.stream(streamed_places(pictures)[0][bounds.start : bounds.stop].tolist())


def _root(pictures: Any) -> Any:
    """What pictures were chosen from."""
    while isinstance(pictures, Chosen):
        pictures = pictures.pictures
    return pictures


def read_streams(source: str, *, memory: Path | None, progress: Progress) -> Source:
    """Read tar shards that are streams as one data set, in the order given."""
    names = streams_of(source)
    labels, found, notes = [Path("/", label(name)) for name in names], list[list[Member]](), list[str]()
    for done, name in enumerate(names, start=1):
        members, broken = index_stream(name, memory=memory)
        found.append(members)
        if broken is not None:
            notes.append(f"the shard {label(name)} {broken}; the {len(members):,} files before that are kept")
        progress("reading shards", done, len(names))
    gathered = gather_samples(labels, found, name=labels[0].parent.name or "stream")
    pictures = gathered.pictures
    return Source(
        name=gathered.name,
        samples=gathered.samples,
        pictures=StreamedPictures(
            names=names,
            home=np.array(gathered.homes, dtype=np.int64),
            offset=np.array([member.offset for member in pictures], dtype=np.int64),
            n_bytes=np.array([member.n_bytes for member in pictures], dtype=np.int64),
            digests=[member.sha256 for member in pictures],
        ),
        digests=lambda chosen: [pictures[index].sha256 for index in chosen],
        left_out=gathered.left_out,
        notes=notes,
    )


def index_stream(name: str, *, memory: Path | None) -> tuple[list[Member], str | None]:
    """List the pictures and texts of a shard, reading it once; and in words how it broke off, None where it is whole.

    The index of a whole shard is kept in `memory` and read from there while the object does not change. A command's
    output is taken to stay as it is; every picture is held against the index when it is embedded.
    """
    about, now = f"stream {name}", stamp_of(name)
    known = recall(memory, about)
    if known.get("stamp") == now:
        return [Member(*fields) for fields in known["members"]], None
    members, broken, where = list[Member](), None, label(name)
    with Reading(name) as reading:
        try:
            with tarfile.open(fileobj=reading, mode="r|") as tar:  # type: ignore[call-overload]
                for info in tar:
                    if (member := take_member(info, partial(_content, tar, info), where)) is not None:
                        members.append(member)
                end = tar.offset + tarfile.BLOCKSIZE
            reading.skip_to(max(end, reading.position))
            if reading.position < end:
                broken = "breaks off without an end mark"
        except (tarfile.TarError, EOFError, UnicodeError, _CutError) as error:
            if not members:
                raise ValueError(f"{where} cannot be read as a plain, uncompressed tar ({error})") from None
            broken = f"breaks off ({error})"
        except OSError as error:
            if not members or isinstance(error, FileNotFoundError):
                raise
            broken = f"breaks off ({error})"
    if broken is None:
        keep(memory, about, {"stamp": now, "members": members})
    return members, broken


class _CutError(Exception):
    """A file of a shard that ends before its last byte."""


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    data = b"" if file is None else file.read()
    if len(data) < info.size:
        raise _CutError(f"inside {info.name!r}")
    return data
