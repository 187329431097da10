"""Data sets: pictures with captions, cut into splits, and label sets for zero-shot classification.

Nothing is unpacked and no picture is decoded when a data set is opened. What was left out, what stands
twice and what ties is said in `Dataset.notes`; pictures that cannot be decoded are found when they are
embedded, and `surviving` leaves them out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperalign.embed import scenes
from hyperalign.embed.hub_data import read_hub
from hyperalign.embed.label_sets import LabelSet, open_label_set, scene_labels
from hyperalign.embed.pictures import Pictures
from hyperalign.embed.samples import SPLITS, Source, expand
from hyperalign.embed.splits import ALL, Split, Survivors, cut, cut_one, shared_captions, surviving, take
from hyperalign.embed.streams import is_stream
from hyperalign.embed.tables import TABLES, read_tables
from hyperalign.embed.tar_streams import read_streams
from hyperalign.embed.tars import index_tar, read_tars

__all__ = [
    "FORMS",
    "Dataset",
    "LabelSet",
    "Pictures",
    "Split",
    "Survivors",
    "find_files",
    "is_label_set",
    "open_dataset",
    "open_label_set",
    "open_split",
    "surviving",
    "take",
]

Progress = Callable[[str, int, int], None]

FORMS: Final = (
    "scenes, a .csv, .tsv, .jsonl or .parquet table, .tar shards, a folder of either, hf:<name>, or shards that are "
    "streams (s3://…/{000..009}.tar, pipe:COMMAND)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Everything a search looks at.

    Attributes:
        name: What to call it.
        splits: train, val and test.
        label_sets: Zero-shot label sets by name.
        notes: In words, what was left out, what stands twice and what ties.
    """

    name: str
    splits: Mapping[str, Split]
    label_sets: Mapping[str, LabelSet]
    notes: tuple[str, ...]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def open_dataset(  # noqa: PLR0913 - the options of `--data`, each with its name
    source: str,
    *,
    strict: bool = False,
    seed: int = 0,
    limit: int | None = None,
    labels: Sequence[str] = (),
    memory: Path | None = None,
    progress: Progress = _silent,
) -> Dataset:
    """Open a data set by what a user wrote.

    Args:
        source: One of `FORMS`; shards and tables may be written with braces and wildcards.
        strict: Stop at a picture that is missing or has no caption, instead of leaving it out.
        seed: Draws the splits where the source has none; the seed of `scenes`.
        limit: Keep at most so many pictures of each split, the first ones.
        labels: Label sets to open beside it; `scenes` has its own.
        memory: Folder in which facts about files are kept, so that the next time no picture is read.
        progress: Told `(stage, done, total)`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 picture per split, got {limit}")
    if source == "scenes":
        name, (splits, notes) = source, _open_scenes(seed=seed, limit=limit)
        opened = [scene_labels(name, seed=seed) for name in scenes.LABEL_SETS]
    else:
        found = _read(source, memory=memory, progress=progress)
        name, (splits, notes) = found.name, cut(found, strict=strict, seed=seed, limit=limit)
        opened = []
    opened += [open_label_set(label_set, seed=seed, memory=memory, progress=progress) for label_set in labels]
    return Dataset(name=name, splits=splits, label_sets=_by_name(opened), notes=tuple(notes))


def open_split(  # noqa: PLR0913 - the options of `--on`, each with its name
    source: str,
    split: str | None = None,
    *,
    strict: bool = False,
    seed: int = 0,
    limit: int | None = None,
    memory: Path | None = None,
    progress: Progress = _silent,
) -> tuple[str, Split, list[str]]:
    """Open one split of a data set, whether it has the others or not: its pictures are all that is looked at.

    Args:
        source: One of `FORMS`.
        split: "train", "val", "test" or "all"; None as in `cut_one`.
        strict: Stop at a picture that is missing or has no caption, instead of leaving it out.
        seed: Draws the split where the source names none; the seed of `scenes`.
        limit: Keep at most so many pictures, the first ones.
        memory: Folder in which facts about files are kept, so that the next time no picture is read.
        progress: Told `(stage, done, total)`.

    Returns:
        What to call the data set, the split, and in words what was left out and what stands twice.
    """
    if split not in (None, ALL, *SPLITS):
        raise ValueError(f"a split is {', '.join(SPLITS)} or {ALL}, got {split!r}")
    if source == "scenes":
        if split == ALL:
            raise ValueError(f"scenes is evaluated split by split, got {ALL!r}; choose one of {', '.join(SPLITS)}")
        splits, notes = _open_scenes(seed=seed, limit=limit)
        return source, splits[split or "test"], notes
    found = _read(source, memory=memory, progress=progress)
    return found.name, *cut_one(found, split, strict=strict, seed=seed, limit=limit)


def is_label_set(source: str, *, memory: Path | None = None) -> bool:
    """Whether a source is pictures in `class/picture`, and not pictures with captions."""
    path = Path(source).expanduser()
    if source.startswith("scenes:"):
        return True
    if path.is_dir():
        return not any(find.suffix.lower() in (".tar", *TABLES) for find in (*path.glob("*"), *path.glob("*/*")))
    if path.is_file() and path.suffix.lower() == ".tar":
        return all(member.sha256 for member in index_tar(path, memory=memory))
    return False


def _open_scenes(*, seed: int, limit: int | None) -> tuple[dict[str, Split], list[str]]:
    whole = {name: size for name, size in (scenes.open_scenes.__kwdefaults__ or {}).items() if name != "seed"}
    sizes = {name: min(size, limit or size) for name, size in whole.items()}
    splits = {
        name: Split(
            name=name,
            image_ids=found.image_ids,
            pictures=found.pictures,
            captions=found.captions,
            owner=found.owner,
            image_digest=found.image_digest,
            text_digest=found.text_digest,
        )
        for name, found in scenes.open_scenes(seed=seed, **sizes).items()
    }
    return splits, shared_captions(splits)


def _by_name(label_sets: Sequence[LabelSet]) -> dict[str, LabelSet]:
    named: dict[str, LabelSet] = {}
    for label_set in label_sets:
        if label_set.name in named:
            raise ValueError(f"two label sets are called {label_set.name!r}; rename one of them")
        named[label_set.name] = label_set
    return named


def _read(source: str, *, memory: Path | None, progress: Progress) -> Source:
    """Find the reader for what a user wrote, and read."""
    if source.startswith("hf:"):
        return read_hub(source.removeprefix("hf:"), memory=memory, progress=progress)
    if "://" in source and ".tar" not in source:
        raise ValueError(f"{source!r} is an address; download it first, or give hf:<name> or an address of .tar shards")
    if is_stream(source):
        return read_streams(source, memory=memory, progress=progress)
    paths = find_files(source)
    kinds = {path.suffix.lower() for path in paths}
    folder = paths[0].resolve().parent
    if kinds == {".tar"}:
        return read_tars(paths, name=folder.name, memory=memory, progress=progress)
    if kinds <= set(TABLES):
        name = paths[0].stem if len(paths) == 1 else folder.name
        return read_tables(paths, name=name, memory=memory, progress=progress)
    raise ValueError(
        f"{source!r} names {paths[0].name}, which is no data set; data is {FORMS} (a compressed tar must be unpacked)"
    )


def find_files(source: str) -> list[Path]:
    """List the files that a user named by a path, a folder, braces or wildcards."""
    if not source.strip():
        raise ValueError(f"data has no name, got {source!r}; it is {FORMS}")
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return [path]
    paths: list[Path] = []
    for name in expand(str(path)):
        found = _matching(name) if set(name) & set("*?[") else [Path(name)]
        if not any(path.is_file() for path in found):
            raise FileNotFoundError(f"there is no {name}; data is {FORMS}")
        paths += [path for path in found if path.is_file()]
    return list(dict.fromkeys(paths))


def _matching(name: str) -> list[Path]:
    """Files that fit a name with wildcards."""
    anchor = Path(name).anchor
    try:
        return sorted(Path(anchor).glob(name.removeprefix(anchor)))
    except (ValueError, IndexError) as error:  # as pathlib says it of `a/**.tar`
        raise ValueError(
            f"{name!r} cannot be matched: {error}; write ** as a folder of its own, as in a/**/*.tar"
        ) from None


def _in_folder(folder: Path) -> list[Path]:
    """List a folder's shards or tables, or those of the folders in it."""
    for pattern in ("*", "*/*"):
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file() and not path.name.startswith(".")]
        tars = [path for path in files if path.suffix.lower() == ".tar"]
        tables = [path for path in files if path.suffix.lower() in TABLES]
        if tars and tables:
            raise ValueError(
                f"{folder} holds shards ({tars[0].name}) and tables ({tables[0].name}); name those to read"
            )
        if tars or tables:
            return tars or tables
    raise FileNotFoundError(
        f"the folder {folder} holds no .tar shard and no {', '.join(TABLES)} table; data is {FORMS}"
    )
