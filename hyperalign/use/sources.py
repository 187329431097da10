"""The pictures that a user named: folders, all that lies in them; tar shards; single files. Nothing is decoded here."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperalign.embed.memory import stamp
from hyperalign.embed.pictures import PICTURE_SUFFIXES, StoredPictures
from hyperalign.embed.tars import index_tar

__all__ = ["Place", "Sources", "find_pictures"]

Progress = Callable[[str, int, int], None]

_SHARD = ".tar"


class Place(NamedTuple):
    """Where a picture lies, and in which state.

    Attributes:
        root: Which of the named folders and files.
        name: Path below it; empty where it is the file itself.
        member: Name inside a tar; empty for a file of its own.
        stamp: Length and time of change of a file, hash of a member: another one means another picture.
    """

    root: int
    name: str
    member: str
    stamp: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sources:
    """Pictures in a fixed order.

    Attributes:
        roots: The folders and files that were named.
        places: Where each picture lies.
        pictures: The same pictures, to be decoded.
    """

    roots: tuple[Path, ...]
    places: Sequence[Place]
    pictures: StoredPictures

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.places)

    def path(self, index: int) -> Path:
        """The file in which a picture lies."""
        return self.roots[self.places[index].root] / self.places[index].name


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def find_pictures(roots: Sequence[Path], *, memory: Path | None = None, progress: Progress = _silent) -> Sources:
    """List the pictures below folders, in tar shards and by themselves, each once.

    Hidden files and folders are passed over, and links to folders are not followed.

    Args:
        roots: What a user named.
        memory: Where the indexes of tars are kept between runs.
        progress: Told how many were found.

    Raises:
        FileNotFoundError: If a root is not there.
        ValueError: If it is no folder, picture or tar, or there is no picture in all of them.
    """
    places: list[Place] = []
    files: list[str] = []
    spans: list[tuple[int, int, int]] = []
    seen: set[Path] = set()
    for which, root in enumerate(roots):
        for path in _files(root):
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            name = "" if path == root else path.relative_to(root).as_posix()
            for member, mark, offset, n_bytes in _pictures_of(path, memory):
                places.append(Place(which, name, member, mark))
                spans.append((len(files), offset, n_bytes))
            files.append(str(path))
            if len(files) % 1000 == 0:
                progress("finding pictures", len(places), 0)
    if not places:
        named = ", ".join(map(str, roots))
        raise ValueError(
            f"{named} holds no pictures; a picture ends in {', '.join(PICTURE_SUFFIXES)} or lies in a .tar"
        )
    home, offset, n_bytes = np.array(spans, dtype=np.int64).T
    return Sources(
        roots=tuple(roots),
        places=places,
        pictures=StoredPictures(files=files, home=home, offset=offset, n_bytes=n_bytes),
    )


def _files(root: Path) -> Iterator[Path]:
    """Picture files and tars, in an order that does not depend on the disk."""
    if root.is_file():
        if root.suffix.lower() not in (*PICTURE_SUFFIXES, _SHARD):
            raise ValueError(f"{root} is no folder, no picture ({', '.join(PICTURE_SUFFIXES)}) and no .tar of pictures")
        yield root
        return
    if not root.is_dir():
        raise FileNotFoundError(f"there is no {root}; name a folder, pictures or tar shards")
    for folder, below, names in os.walk(root, onerror=_refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in (*PICTURE_SUFFIXES, _SHARD) and not name.startswith(".") and path.is_file():
                yield path


def _refuse(error: OSError) -> None:
    """A folder that cannot be read is no empty folder."""
    raise error


def _pictures_of(path: Path, memory: Path | None) -> Iterator[tuple[str, str, int, int]]:
    """Member, stamp, first byte and length of each picture in a file."""
    if path.suffix.lower() != _SHARD:
        n_bytes, changed = stamp(path)
        yield "", f"{n_bytes} {changed}", 0, -1
        return
    for member in index_tar(path, memory=memory):
        if member.sha256:
            yield member.name, member.sha256[:32], member.offset, member.n_bytes
