"""Cached rows put together as the methods see them: a grid for each split, and the rows of a label set.

A picture that could not be decoded is left out for every encoder alike, with its captions, counted and named. A row
that is NaN, Inf or zero belongs to one encoder: it stays, is kept out of the loss and counts as a miss.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Grid, Picked, Rows, build_grid
from hyperalign.candidates import Candidates
from hyperalign.embed.cache import Entry
from hyperalign.embed.data import Dataset, LabelSet, Split, surviving
from hyperalign.embed.duplicates import near_duplicates
from hyperalign.embed.memory import keep, recall
from hyperalign.embed.samples import cut_short
from hyperalign.embed.tar_streams import is_streamed
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.prepare import LABELS, SPLITS, Entries

__all__ = ["LabelGrid", "Prepared", "note_near_duplicates", "open_grid", "open_grids"]

Progress = Callable[[str, int, int], None]

_NAMED = 5  # pictures that are named before the rest is counted
_MOST_COMPARED = 50_000  # pictures among which near-duplicates are looked for: each is decoded once more


@dataclass(frozen=True, kw_only=True)
class LabelGrid:
    """Rows of a label set.

    Attributes:
        name: Of the label set.
        images: For each image encoder the rows of the pictures.
        texts: For each text encoder the rows of the prompts.
        labels: (n_images,) class of each picture.
        n_classes: Classes, K; prompts are class-major, the same number for each.
    """

    name: str
    images: tuple[Rows, ...]
    texts: tuple[Rows, ...]
    labels: NDArray[np.int64]
    n_classes: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that methods need.

    Attributes:
        train: Rows to learn from.
        val: Rows to choose by.
        test: Rows to report on.
        labels: Rows of the label set, where one was asked for.
        notes: What was left out, and what is a miss, in words.
    """

    train: Grid
    val: Grid
    test: Grid
    labels: LabelGrid | None
    notes: list[str]


def open_grids(
    candidates: Candidates, dataset: Dataset, labels: LabelSet | None, entries: Entries, *, strict: bool
) -> Prepared:
    """Put the rows of every encoder together, split by split, without the pictures that nobody could read.

    Raises:
        ValueError: If a split has no readable picture with a caption, or `strict` and a picture was unreadable.
    """
    notes = list(dataset.notes)
    grids = {
        name: open_grid(candidates, dataset.splits[name], entries, notes, strict=strict, of=dataset.name)
        for name in SPLITS
    }
    _check_usable(candidates, grids["train"])
    label_grid = None if labels is None else _open_labels(candidates, labels, entries, notes, strict=strict)
    return Prepared(train=grids["train"], val=grids["val"], test=grids["test"], labels=label_grid, notes=notes)


def open_grid(
    candidates: Candidates, split: Split, entries: Entries, notes: list[str], *, strict: bool, of: str
) -> Grid:
    """Put the rows of every encoder on one split together; what is left out or a miss is added to the notes.

    Raises:
        ValueError: If no picture of the split, of data set `of`, was readable, or `strict` and one was not.
    """
    name = split.name
    bad = _unreadable(candidates.images, entries, name)
    notes += _bad_notes(name, bad, split.image_ids, strict=strict)
    left = surviving(split, bad)
    if not len(left.captions):
        raise ValueError(f"the split {name} of {of} has no readable picture with a caption; mend the data")
    images = [_rows(entries[spec.name, name], left.images) for spec in candidates.images]
    texts = [_rows(entries[spec.name, name], left.captions) for spec in candidates.texts]
    grid = build_grid(images, texts, left.owner)
    notes += _miss_notes(candidates.images, grid.image_ok, name, "picture", split.image_ids, left.images)
    notes += _miss_notes(candidates.texts, grid.text_ok, name, "caption", split.captions, left.captions)
    return grid


def note_near_duplicates(dataset: Dataset, *, cache_dir: Path, progress: Progress) -> list[str]:
    """Photographs of val and test that look like one of an earlier split, in words; remembered beside the cache.

    The embedded scenes are disjoint by construction and are not looked at.
    """
    n_pictures = sum(len(split.image_ids) for split in dataset.splits.values())
    if dataset.name == "scenes":
        return []
    if any(is_streamed(split.pictures) for split in dataset.splits.values()):
        return ["near-duplicate pictures were not looked for: they come as streams, which would be read once more"]
    if n_pictures > _MOST_COMPARED:
        return [f"near-duplicate pictures were not looked for among {n_pictures:,}: that decodes each once more"]
    about = "near-duplicates of " + " ".join(split.image_digest for split in dataset.splits.values())
    known = recall(cache_dir, about)
    if "twins" not in known:
        twins = near_duplicates(dataset.splits, progress=progress)
        known = {"twins": [f"{t.image_id} ({t.split}) of {t.other_id} ({t.other_split})" for t in twins]}
        keep(cache_dir, about, known)
    if not known["twins"]:
        return []
    return [f"{_pictures(len(known['twins']))} nearly the same in two splits: {_some(known['twins'])}"]


def _open_labels(
    candidates: Candidates, labels: LabelSet, entries: Entries, notes: list[str], *, strict: bool
) -> LabelGrid:
    bad = _unreadable(candidates.images, entries, LABELS)
    notes += _bad_notes(labels.name, bad, labels.image_ids, strict=strict)
    left = np.setdiff1d(np.arange(len(labels.labels)), list(bad))
    if len(left) < 2:
        raise ValueError(f"the label set {labels.name} needs at least two readable pictures, got {len(left)}")
    return LabelGrid(
        name=labels.name,
        images=tuple(_rows(entries[spec.name, LABELS], left) for spec in candidates.images),
        texts=tuple(_rows(entries[spec.name, LABELS]) for spec in candidates.texts),
        labels=labels.labels[left],
        n_classes=len(labels.class_names),
    )


def _rows(entry: Entry | Rows, index: NDArray[np.int64] | None = None) -> Rows:
    """The rows of an entry, of some of its items where an index is given."""
    rows = entry.rows if isinstance(entry, Entry) else entry
    return rows if index is None or len(index) == rows.shape[0] else Picked(rows, index)


def _check_usable(candidates: Candidates, grid: Grid) -> None:
    """Every encoder must have something to learn from."""
    for specs, ok in ((candidates.images, grid.image_ok), (candidates.texts, grid.text_ok)):
        for spec, row in zip(specs, ok, strict=True):
            if not row.any():
                raise ValueError(
                    f"encoder {spec.name!r} has no usable row for train: all {len(row):,} are NaN, Inf or zero; "
                    "mend it or leave it out of the zoo"
                )


def _unreadable(images: Iterable[EncoderSpec], entries: Entries, part: str) -> dict[int, str]:
    """Index and reason of every picture that some encoder could not be shown."""
    found: dict[int, str] = {}
    for spec in images:
        entry = entries[spec.name, part]
        if isinstance(entry, Entry):
            found.update(entry.bad)
    return found


def _bad_notes(part: str, bad: Mapping[int, str], image_ids: Sequence[str], *, strict: bool) -> list[str]:
    if not bad:
        return []
    named = _some([f"{image_ids[index]} ({reason})" for index, reason in sorted(bad.items())])
    note = f"{part}: {_pictures(len(bad))} left out as unreadable: {named}"
    if strict:
        raise ValueError(f"{note}; mend or remove them, or leave out --strict")
    return [note]


def _miss_notes(
    specs: Sequence[EncoderSpec],
    ok: NDArray[np.bool_],
    part: str,
    what: str,
    names: Sequence[str],
    left: NDArray[np.int64],
) -> list[str]:
    """Rows that are NaN, Inf or zero, for each encoder that has some."""
    notes = []
    for spec, row in zip(specs, ok, strict=True):
        missed = left[~row]
        if len(missed):
            quoted = [cut_short(names[k]) if what == "caption" else names[k] for k in missed]
            count = (
                f"1 {what}, which counts as a miss"
                if len(missed) == 1
                else (f"{len(missed):,} {what}s, which count as misses")
            )
            notes.append(f"{part}: {spec.name} has no usable row for {count}: {_some(quoted)}")
    return notes


def _pictures(count: int) -> str:
    return "1 picture is" if count == 1 else f"{count:,} pictures are"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
