"""Splits of a data set: pictures, their captions, and who belongs to whom.

A split is decided for a picture, never for a caption, so all captions of a picture stay on one side.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.pictures import Chosen, Pictures, choose
from hyperalign.embed.samples import SPLITS, Sample, Source, clean

__all__ = ["ALL", "Split", "Survivors", "cut", "cut_one", "digest_of", "shared_captions", "surviving", "take"]

ALL: Final = "all"  # pictures of every split, or of none

_HASHED: Final = (("train", 0.8), ("val", 0.9), ("test", 1.0))  # upper ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Pictures and captions of one side of a data set.

    Attributes:
        name: "train", "val" or "test".
        image_ids: One name per picture, unique.
        pictures: The pictures, in the same order.
        captions: All captions, picture by picture.
        owner: (n_captions,) index of each caption's picture, non-decreasing.
        image_digest: Hash of the pictures' bytes and their order.
        text_digest: Hash of the captions and their order.
    """

    name: str
    image_ids: Sequence[str]
    pictures: Pictures
    captions: Sequence[str]
    owner: NDArray[np.int64]
    image_digest: str
    text_digest: str


class Survivors(NamedTuple):
    """What is left of a split: indices, so that cached rows need no rewriting.

    Attributes:
        images: (n_left,) pictures that stay.
        captions: (n_captions_left,) captions that stay.
        owner: (n_captions_left,) index of each staying caption's picture *among those that stay*.
    """

    images: NDArray[np.int64]
    captions: NDArray[np.int64]
    owner: NDArray[np.int64]


def surviving(split: Split, bad: Collection[int]) -> Survivors:
    """Leave out the pictures `bad` and their captions."""
    keep = np.ones(len(split.image_ids), dtype=bool)
    keep[list(bad)] = False
    captions = np.flatnonzero(keep[split.owner])
    place = np.cumsum(keep) - 1
    return Survivors(np.flatnonzero(keep), captions, place[split.owner[captions]].astype(np.int64))


def take(split: Split, images: NDArray[np.int64]) -> Split:
    """Make a split of chosen pictures, in the order given, with all their captions.

    Its digests are those of the whole split and the choice, so no picture is read.
    """
    first = np.searchsorted(split.owner, images, side="left")
    counts = np.searchsorted(split.owner, images, side="right") - first
    captions = [
        split.captions[index]
        for start, count in zip(first.tolist(), counts.tolist(), strict=True)
        for index in range(start, start + count)
    ]
    chosen = np.ascontiguousarray(images, dtype="<i8").tobytes().hex()
    return replace(
        split,
        image_ids=[split.image_ids[index] for index in images.tolist()],
        pictures=choose(split.pictures, np.asarray(images, dtype=np.int64)),
        captions=captions,
        owner=np.repeat(np.arange(len(images), dtype=np.int64), counts),
        image_digest=digest_of([split.image_digest, chosen]),
        text_digest=digest_of([split.text_digest, chosen]),
    )


def digest_of(texts: Sequence[str]) -> str:
    """Hash texts and their order; no two lists share a digest by being joined differently."""
    total = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def cut(source: Source, *, strict: bool, seed: int, limit: int | None) -> tuple[dict[str, Split], list[str]]:
    """Cut a source into train, val and test.

    Args:
        source: What a reader found.
        strict: Stop at a picture that is missing or has no caption, instead of leaving it out.
        seed: Seeds the hash that splits where the source does not.
        limit: Keep at most so many pictures of each split, the first ones.

    Returns:
        The splits by name, and in words what was left out and what stands twice.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 picture per split, got {limit}")
    samples, notes = _usable(source, strict=strict)
    homes = _homes(source.name, samples, seed)
    chosen = {name: [index for index in samples if homes[index] == name][:limit] for name in SPLITS}
    for name in SPLITS:
        if not chosen[name]:
            raise ValueError(_empty(source.name, name, homes))
    every = iter(
        source.digests([index for some in chosen.values() for index in some])
    )  # all at once: one memory of them
    digests = {name: list(islice(every, len(some))) for name, some in chosen.items()}
    splits = {name: _split(name, some, source, samples, digests[name]) for name, some in chosen.items()}
    return splits, [*notes, *shared_captions(splits), *_shared_pictures(splits, digests)]


def cut_one(
    source: Source, split: str | None, *, strict: bool, seed: int, limit: int | None
) -> tuple[Split, list[str]]:
    """Take one split of a source, whether it has the others or not.

    Args:
        source: What a reader found.
        split: "train", "val" or "test"; drawn by hash where the source names no splits. None is test where the source
            names splits, and all pictures where it names none, called "all".
        strict: Stop at a picture that is missing or has no caption, instead of leaving it out.
        seed: Seeds the hash.
        limit: Keep at most so many pictures, the first ones.

    Returns:
        The split, and in words what was left out and what stands twice.
    """
    samples, notes = _usable(source, strict=strict)
    declared = any(sample.split is not None for sample in samples.values())
    name = split or ("test" if declared else ALL)
    homes = dict.fromkeys(samples, ALL) if name == ALL else _homes(source.name, samples, seed)
    chosen = [index for index in samples if homes[index] == name][:limit]
    if not chosen:
        there = ", ".join(f"{one} {count:,}" for one, count in Counter(homes.values()).items())
        raise ValueError(f"{source.name} has no {name} pictures (there are: {there}); choose another --split, or all")
    found = _split(name, chosen, source, samples, source.digests(chosen))
    return found, [*notes, *shared_captions({name: found})]


def _usable(source: Source, *, strict: bool) -> tuple[dict[int, Sample], list[str]]:
    """Keep the pictures that have a caption; say what was left out."""
    notes = [*source.notes, *_left_out("is not there", "are not there", source.left_out)]
    usable: dict[int, Sample] = {}
    silent: list[str] = []
    n_empty = 0
    for index, sample in enumerate(source.samples):
        captions = [text for text in map(clean, sample.captions) if text]
        n_empty += len(sample.captions) - len(captions)
        if captions:
            usable[index] = sample if captions == sample.captions else sample._replace(captions=captions)
        else:
            silent.append(sample.image_id)
    if not usable:
        raise ValueError(
            f"{source.name} has no captions: of its {len(source.samples):,} pictures none has a text; "
            "give each picture at least one caption"
        )
    notes += _left_out("has no caption", "have no caption", silent)
    if strict and notes:
        raise ValueError(f"with --strict every picture of {source.name} must be there and have a caption: {notes[0]}")
    if n_empty:
        notes.append(f"{n_empty:,} empty caption{'s' * (n_empty > 1)} left out")
    return usable, notes


def _left_out(one: str, many: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    subject = f"1 picture {one}" if len(names) == 1 else f"{len(names):,} pictures {many}"
    return [f"{subject}: {_some(names)}"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _homes(name: str, samples: Mapping[int, Sample], seed: int) -> dict[int, str]:
    """Say for each picture which split it is in."""
    given = sum(sample.split is not None for sample in samples.values())
    if given == 0:
        return {index: _hashed(sample.image_id, seed) for index, sample in samples.items()}
    for sample in samples.values():
        if sample.split is None:
            raise ValueError(
                f"{name} must give a split for all pictures or for none: {given:,} have one, {sample.image_id!r} not"
            )
    return {index: str(sample.split) for index, sample in samples.items()}


def _hashed(image_id: str, seed: int) -> str:
    """Draw a split by hash: adding pictures never moves one that was there."""
    digest = hashlib.sha256(f"{seed} {image_id}".encode("utf-8", "surrogatepass")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return next(name for name, end in _HASHED if share < end)


def _empty(source: str, name: str, homes: Mapping[int, str]) -> str:
    counts = Counter(homes.values())
    there = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
    return (
        f"{source} has an empty split, {name!r} (pictures: {there}); all of {', '.join(SPLITS)} need some: "
        "name them in a `split` column or in the shards' names, or give more pictures"
    )


def _split(
    name: str, chosen: Sequence[int], source: Source, samples: Mapping[int, Sample], digests: Sequence[str]
) -> Split:
    captions = [text for index in chosen for text in samples[index].captions]
    counts = [len(samples[index].captions) for index in chosen]
    return Split(
        name=name,
        image_ids=[samples[index].image_id for index in chosen],
        pictures=Chosen(pictures=source.pictures, index=np.array(chosen, dtype=np.int64)),
        captions=captions,
        owner=np.repeat(np.arange(len(chosen), dtype=np.int64), counts),
        image_digest=digest_of(digests),
        text_digest=digest_of(captions),
    )


def shared_captions(splits: Mapping[str, Split]) -> list[str]:
    """Count captions that stand at several pictures of one split: ties that no pair can win outright."""
    notes = []
    for name, split in splits.items():
        first: dict[str, int] = {}
        shared = len(
            {
                caption
                for caption, owner in zip(split.captions, split.owner.tolist(), strict=True)
                if first.setdefault(caption, owner) != owner
            }
        )
        if shared:
            notes.append(f"{name}: {shared:,} caption{'s stand' if shared > 1 else ' stands'} at several pictures")
    return notes


def _shared_pictures(splits: Mapping[str, Split], digests: Mapping[str, Sequence[str]]) -> list[str]:
    """Name pictures of val and test that are in an earlier split, byte for byte."""
    notes = []
    for late, early in (("val", "train"), ("test", "train"), ("test", "val")):
        known = set(digests[early])
        twins = [
            image_id for image_id, digest in zip(splits[late].image_ids, digests[late], strict=True) if digest in known
        ]
        if twins:
            verb = "s are" if len(twins) > 1 else " is"
            notes.append(f"{len(twins):,} picture{verb} in {late} and in {early}, byte for byte: {_some(twins)}")
    return notes
