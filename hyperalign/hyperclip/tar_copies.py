"""Tar shards copied sample by sample, with some of their captions left out.

Every file of a sample that is kept is copied as it is, but for texts of which a caption was dropped. The shard is
read twice, its texts first and then what is copied, and never held.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hyperalign.embed.pictures import PICTURE_SUFFIXES
from hyperalign.embed.plain import parse_json
from hyperalign.embed.samples import captions_in
from hyperalign.embed.tars import index_tar, key_and_kind, member_name
from hyperalign.hyperclip.rules import Item, as_score
from hyperalign.hyperclip.table_copies import Judge, Layout
from hyperalign.run import drafted

__all__ = ["copy_tar", "tar_scores"]


class _Sample(NamedTuple):
    """The words of one sample.

    Attributes:
        texts: What its .txt and .json say, by member.
        record: Its .json, read; empty where it has none.
        has_picture: Whether a picture lies beside them.
    """

    texts: Mapping[str, str]
    record: Mapping[str, Any]
    has_picture: bool


def copy_tar(path: Path, to: Path, judge: Judge, layout: Layout) -> int:
    """Copy the samples of which `judge` keeps a caption; where it keeps none, nothing is written.

    Args:
        path: A plain tar of WebDataset samples.
        to: Where the copy goes.
        judge: Says which captions of each item are kept, as positions.
        layout: Which keys of a sample's .json hold what.

    Returns:
        Samples with captions and no picture; they are not judged and not copied.
    """
    samples = _samples(path)
    judged = {key: sample for key, sample in samples.items() if sample.has_picture}
    items = [Item(_captions(sample, path, key, layout), _score(sample, layout)) for key, sample in judged.items()]
    chosen: set[str] = set()
    texts: dict[str, bytes] = {}
    for (key, sample), item, kept in zip(judged.items(), items, judge(items), strict=True):
        if kept:
            chosen.add(key)
            if len(kept) < len(item.captions):
                texts |= _rewritten(sample, [item.captions[place] for place in kept], layout)
    if chosen:
        with drafted(to) as draft:
            _write(path, draft, chosen, texts)
    return len(samples) - len(judged)


def tar_scores(path: Path, score: str) -> Iterator[float | None]:
    """The score of every sample that has a picture."""
    for sample in _samples(path).values():
        if sample.has_picture:
            yield _score(sample, Layout(score=score))


def _samples(path: Path) -> dict[str, _Sample]:
    """The words of every sample that has any, or a picture."""
    texts: dict[str, dict[str, str]] = {}
    pictures = set()
    for member in index_tar(path, memory=None):
        key, kind = key_and_kind(member.name)
        if kind in PICTURE_SUFFIXES:
            pictures.add(key)
        if kind in (".txt", ".json", *PICTURE_SUFFIXES):
            texts.setdefault(key, {}).update({} if kind in PICTURE_SUFFIXES else {member.name: member.text})
    return {key: _Sample(found, _record(found, path), key in pictures) for key, found in texts.items()}


def _record(texts: Mapping[str, str], path: Path) -> Mapping[str, Any]:
    """The .json of a sample."""
    for name, text in texts.items():
        if name.lower().endswith(".json"):
            try:
                record = parse_json(text)
            except ValueError as error:
                raise ValueError(f"{path}: {name} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}: {name} must be an object with `captions`, got {type(record).__name__}")
            return record
    return {}


def _captions(sample: _Sample, path: Path, key: str, layout: Layout) -> list[str]:
    """The captions of a sample: those of its .json, else the lines of its .txt."""
    found = captions_in(sample.record.get(_caption_key(sample, layout)), path, f"{key}.json")
    return found or [line for name, text in sample.texts.items() if _is_txt(name) for line in text.splitlines()]


def _caption_key(sample: _Sample, layout: Layout) -> str:
    return layout.captions or ("captions" if "captions" in sample.record else "caption")


def _score(sample: _Sample, layout: Layout) -> float | None:
    return None if layout.score is None else as_score(sample.record.get(layout.score))


def _rewritten(sample: _Sample, left: Sequence[str], layout: Layout) -> dict[str, bytes]:
    """The texts of a sample with only those captions that are left."""
    changed = {}
    key = _caption_key(sample, layout)
    for name, text in sample.texts.items():
        if _is_txt(name):
            changed[name] = "".join(f"{line}\n" for line in text.splitlines() if line in left).encode()
        elif key in sample.record:
            changed[name] = json.dumps({**sample.record, key: list(left)}, ensure_ascii=False).encode()
    return changed


def _write(path: Path, draft: Path, chosen: Set[str], texts: Mapping[str, bytes]) -> None:
    """Copy the members of the chosen samples in their order, with some texts changed."""
    with tarfile.open(path, "r:") as source, tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as copy:
        for info in source:
            name = str(PurePosixPath(member_name(info)))
            if not info.isreg() or key_and_kind(name)[0] not in chosen:
                continue
            text = texts.get(name)
            if text is not None:
                info.size = len(text)
            copy.addfile(info, source.extractfile(info) if text is None else io.BytesIO(text))


def _is_txt(name: str) -> bool:
    return key_and_kind(name)[1] == ".txt"
