"""Tar shards, read where they lie: an index of offsets, nothing unpacked.

A WebDataset sample is a run of members that share a name up to its first dot: `0001.jpg` with
`0001.txt` (one caption a line) or `0001.json` (`captions`, a list of texts, or `caption`, a text).
"""

import hashlib
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from hyperalign.embed.memory import keep, recall, stamp
from hyperalign.embed.pictures import PICTURE_SUFFIXES, StoredPictures
from hyperalign.embed.plain import parse_json
from hyperalign.embed.samples import Sample, Source, captions_in, splits_in_names

__all__ = [
    "Gathered",
    "Member",
    "gather_samples",
    "index_tar",
    "key_and_kind",
    "member_name",
    "read_tars",
    "stored",
    "take_member",
]

Progress = Callable[[str, int, int], None]

_TEXTS: Final = (".txt", ".json")
_MAX_TEXT: Final = 1 << 20  # bytes; a caption file is a few hundred


class Member(NamedTuple):
    """One file inside a tar.

    Attributes:
        name: Its path in the tar.
        offset: Where its bytes begin.
        n_bytes: How many they are.
        sha256: Of a picture's bytes; empty for a text.
        text: What a text file says; empty for a picture.
    """

    name: str
    offset: int
    n_bytes: int
    sha256: str
    text: str


class _Found(NamedTuple):
    """One sample of a shard.

    Attributes:
        key: Its name in the shard.
        shard: Which shard.
        picture: Its picture, or None where there are only captions.
        captions: Its captions.
    """

    key: str
    shard: int
    picture: Member | None
    captions: list[str]


class Gathered(NamedTuple):
    """The samples of some shards.

    Attributes:
        name: Of the data set.
        samples: Its pictures, in order.
        pictures: Where they lie.
        homes: Which shard each is in.
        left_out: Samples without a picture.
    """

    name: str
    samples: list[Sample]
    pictures: list[Member]
    homes: list[int]
    left_out: list[str]


def index_tar(path: Path, *, memory: Path | None) -> list[Member]:
    """List the pictures and texts of a tar; other kinds of files are passed over.

    The index is kept in `memory` and read from there while the tar does not change.
    """
    about, now = f"tar {path.resolve()}", stamp(path)
    known = recall(memory, about)
    if known.get("stamp") == now:
        return [Member(*fields) for fields in known["members"]]
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar, path.open("rb") as data:
            members = [
                member for info in tar if (member := take_member(info, partial(_content, data, info), path)) is not None
            ]
            data.seek(tar.offset)
            if data.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # the library takes any rubbish for the end
                raise ValueError(f"{path} has no end mark; it was not written or copied to its end")
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path} must be a plain, uncompressed tar and cannot be read as one ({error}); make it again"
        ) from None
    keep(memory, about, {"stamp": now, "members": members})
    return members


def read_tars(paths: Sequence[Path], *, name: str, memory: Path | None, progress: Progress) -> Source:
    """Read WebDataset shards as one data set, in the order given."""
    members = []
    for done, path in enumerate(paths, start=1):
        members.append(index_tar(path, memory=memory))
        progress("reading shards", done, len(paths))
    found = gather_samples(paths, members, name=name)
    return Source(
        name=name,
        samples=found.samples,
        pictures=stored(paths, found.homes, found.pictures),
        digests=lambda chosen: [found.pictures[index].sha256 for index in chosen],
        left_out=found.left_out,
    )


def gather_samples(paths: Sequence[Path], members: Sequence[Sequence[Member]], *, name: str) -> Gathered:
    """Put the members of all shards together to samples, in the order given.

    Args:
        paths: What the shards are called; their names may say splits.
        members: Of each shard.
        name: Of the data set.
    """
    found = [item for shard, path in enumerate(paths) for item in _samples(path, shard, members[shard])]
    lone = [f"{paths[item.shard].name}: {item.key}" for item in found if item.picture is None]
    found = [item for item in found if item.picture is not None]
    pictures = [item.picture for item in found if item.picture is not None]
    splits = splits_in_names(paths)
    keys = [item.key for item in found]
    if len(set(keys)) < len(keys):  # shards may count from zero each: their names tell samples apart
        keys = [f"{paths[item.shard].stem}/{item.key}" for item in found]
    _refuse_twins(keys, name)
    samples = [Sample(key, item.captions, splits[item.shard]) for key, item in zip(keys, found, strict=True)]
    return Gathered(name, samples, pictures, [item.shard for item in found], lone)


def key_and_kind(name: str) -> tuple[str, str]:
    """Cut a member's name at the first dot of its file: what its sample is called, and what of the sample it holds."""
    folder, slash, file = name.rpartition("/")
    stem, dot, kind = file.partition(".")
    return folder + slash + stem, dot + kind.lower()


def member_name(info: tarfile.TarInfo) -> str:
    """A member's name as text, whatever bytes it has."""
    return info.name.encode(errors="surrogateescape").decode(errors="replace")


def stored(paths: Sequence[Path], homes: Sequence[int], members: Sequence[Member]) -> StoredPictures:
    """Point at pictures inside tars."""
    return StoredPictures(
        files=[str(path) for path in paths],
        home=np.array(homes, dtype=np.int64),
        offset=np.array([member.offset for member in members], dtype=np.int64),
        n_bytes=np.array([member.n_bytes for member in members], dtype=np.int64),
    )


def _content(data: BinaryIO, info: tarfile.TarInfo) -> bytes:
    data.seek(info.offset_data)
    return data.read(info.size)


def take_member(info: tarfile.TarInfo, read: Callable[[], bytes], path: object) -> Member | None:
    """Take one member down, its picture hashed or its text read; None for what is neither."""
    name = member_name(info)
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        raise ValueError(f"{path} holds {name!r}, a link or device; only plain files are read")
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{path} holds {name!r}, a name that leads out of the tar; make it again")
    kind = inside.suffix.lower()
    if inside.name.startswith(".") or kind not in (*PICTURE_SUFFIXES, *_TEXTS):
        return None
    if kind in _TEXTS and info.size > _MAX_TEXT:
        raise ValueError(f"{path} holds {name!r} of {info.size:,} bytes; a caption file has at most {_MAX_TEXT:,}")
    content = read()
    if len(content) < info.size:
        raise ValueError(f"{path} ends inside {name!r}; it was not written or copied to its end")
    if kind not in _TEXTS:
        return Member(str(inside), info.offset_data, info.size, hashlib.sha256(content).hexdigest(), "")
    try:
        return Member(str(inside), info.offset_data, info.size, "", content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {name!r} must be UTF-8 text; convert it") from None


def _samples(path: Path, shard: int, members: Sequence[Member]) -> list[_Found]:
    """Group one shard's members by what stands before the first dot of their names."""
    pictures: dict[str, Member] = {}
    texts: dict[str, dict[str, str]] = {}
    for member in members:
        key, kind = key_and_kind(member.name)
        if kind in _TEXTS:
            texts.setdefault(key, {})[kind.removeprefix(".")] = member.text
        elif kind in PICTURE_SUFFIXES:
            if key in pictures:
                raise ValueError(f"{path} holds two pictures named {key!r}; names must differ before the first dot")
            pictures[key] = member
    lone = {key: None for key, kinds in texts.items() if key not in pictures and "json" in kinds}
    return [
        _Found(key, shard, picture, _captions(texts.get(key, {}), path, key))
        for key, picture in {**pictures, **lone}.items()
    ]


def _captions(texts: dict[str, str], path: Path, key: str) -> list[str]:
    """Read the captions of one sample: those of its JSON, else the lines of its text."""
    if "json" in texts:
        try:
            record: Any = parse_json(texts["json"])
        except ValueError as error:
            raise ValueError(f"{path}: {key}.json is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: {key}.json must be an object with `captions`, got {type(record).__name__}")
        captions = captions_in(record.get("captions", record.get("caption")), path, f"{key}.json")
        if captions or "txt" not in texts:
            return captions
    return texts.get("txt", "").splitlines()


def _refuse_twins(keys: Sequence[str], name: str) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{name} has two shards with the same name and the same picture {key!r}; rename one")
        seen.add(key)
