"""Label sets for zero-shot classification: `class/picture` in a folder or a tar.

A JSON file of the same name beside it may give `classes` (names in the order of the class folders'
numbers, or folder -> name), `templates` (prompts with one `{}`) and `groups`: `class/picture` -> group, or
"metadata.csv:place", a table beside it and its column of groups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed import scenes
from hyperalign.embed.memory import file_digests
from hyperalign.embed.pictures import PICTURE_SUFFIXES, Pictures, StoredPictures, whole_files
from hyperalign.embed.plain import parse_json
from hyperalign.embed.samples import clean, cut_short
from hyperalign.embed.splits import digest_of
from hyperalign.embed.tables import TABLES, find_pictures, parquet_rows, rows_of
from hyperalign.embed.tars import index_tar, stored

__all__ = ["TEMPLATES", "LabelSet", "fill_templates", "open_label_set", "read_words", "scene_labels"]

Progress = Callable[[str, int, int], None]

TEMPLATES: Final = ("a photo of a {}.",)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSet:
    """Pictures with one class each, and the words for the classes.

    Attributes:
        name: What to call it.
        class_names: One per class.
        templates: Prompts with one gap, `{}`.
        image_ids: One per picture, unique: `class/picture`.
        pictures: The pictures.
        labels: (n_images,) class of each picture.
        image_digest: Hash of the pictures' bytes and their order.
        text_digest: Hash of the prompts and their order.
        groups: (n_images,) group of each picture, for the accuracy of the worst one; or None.
        group_names: What the groups are called.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    image_ids: Sequence[str]
    pictures: Pictures
    labels: NDArray[np.int64]
    image_digest: str
    text_digest: str
    groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] = ()

    def prompts(self) -> list[str]:
        """Fill every template with every class."""
        return fill_templates(self.class_names, self.templates)


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def open_label_set(source: str, *, seed: int = 0, memory: Path | None = None, progress: Progress = _silent) -> LabelSet:
    """Open a folder or tar of `class/picture`, or `scenes:<name>` (seeded)."""
    if source.startswith("scenes:"):
        return scene_labels(source.removeprefix("scenes:"), seed=seed)
    path = Path(source).expanduser()
    if source.strip() and path.is_dir():
        names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if _is_picture(file)]
        names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        digests = file_digests(path, names, memory=memory, progress=progress)
        return _label_set(
            path.resolve().name, names, digests, whole_files([str(path / name) for name in names]), _words(path)
        )
    if path.is_file() and path.suffix.lower() == ".tar":
        members = [member for member in index_tar(path, memory=memory) if member.sha256]
        names = _without_common_folder([member.name.removeprefix("./") for member in members])
        pictures = stored([path], [0] * len(members), members)
        return _label_set(path.stem, names, [member.sha256 for member in members], pictures, _words(path))
    raise FileNotFoundError(f"a label set is a folder or a .tar of class/picture, and {source!r} is neither")


def scene_labels(name: str, *, seed: int) -> LabelSet:
    """Open one of the embedded label sets."""
    found = scenes.open_scene_labels(name, seed=seed)
    return LabelSet(
        name=found.name,
        class_names=found.class_names,
        templates=found.templates,
        image_ids=found.image_ids,
        pictures=found.pictures,
        labels=found.labels,
        image_digest=found.image_digest,
        text_digest=found.text_digest,
        groups=found.groups,
        group_names=found.group_names,
    )


def fill_templates(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Prompts: class 0 with all templates, then class 1, and so on."""
    return [template.replace("{}", name) for name in class_names for template in templates]


def _label_set(
    name: str, names: Sequence[str], digests: Sequence[str], pictures: StoredPictures, words: Mapping[str, Any]
) -> LabelSet:
    """Put pictures in the order of their classes and give the classes their words."""
    for picture in names:
        if picture.count("/") != 1:
            raise ValueError(f"pictures of the label set {name} must lie in class/picture, got {picture!r}")
    if not names:
        raise ValueError(f"the label set {name} has no pictures; it must hold class/picture ({PICTURE_SUFFIXES[0]}, …)")
    if len(set(names)) < len(names):
        twin = next(picture for picture in names if names.count(picture) > 1)
        raise ValueError(f"the label set {name} holds {twin!r} twice; make it again")
    folders = sorted({picture.split("/")[0] for picture in names})
    class_of, class_names = _classes(name, folders, words.get("classes"))
    templates = _templates(name, words.get("templates"))
    labels = np.array([class_of[picture.split("/")[0]] for picture in names], dtype=np.int64)
    order = sorted(range(len(names)), key=lambda index: (labels[index], names[index]))
    image_ids = [names[index] for index in order]
    groups, group_names = _groups(name, image_ids, words.get("groups"))
    return LabelSet(
        name=name,
        class_names=class_names,
        templates=templates,
        image_ids=image_ids,
        pictures=StoredPictures(
            files=pictures.files,
            home=pictures.home[order],
            offset=pictures.offset[order],
            n_bytes=pictures.n_bytes[order],
        ),
        labels=labels[order],
        image_digest=digest_of([digests[index] for index in order]),
        text_digest=digest_of(fill_templates(class_names, templates)),
        groups=groups,
        group_names=group_names,
    )


def _classes(name: str, folders: Sequence[str], given: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Say which class each folder is, and what the classes are called."""
    if given is None:
        return {folder: index for index, folder in enumerate(folders)}, tuple(
            clean(folder.replace("_", " ")) for folder in folders
        )
    if isinstance(given, dict) and given and all(isinstance(word, str) for word in given.values()):
        _known(name, folders, given)
        return {folder: index for index, folder in enumerate(given)}, tuple(clean(word) for word in given.values())
    if not isinstance(given, list) or not given or not all(isinstance(word, str) for word in given):
        raise ValueError(f"`classes` of the label set {name} must be a list of names or folder -> name; mend its JSON")
    words = tuple(clean(word) for word in given)
    if all(folder.isdecimal() for folder in folders):
        if int(max(folders, key=int)) >= len(words):
            raise ValueError(
                f"the label set {name} names {len(words):,} classes, but has a folder {max(folders, key=int)!r}; "
                "folders count from 0"
            )
        return {folder: int(folder) for folder in folders}, words
    if set(folders) <= set(given):
        return {folder: given.index(folder) for folder in folders}, words
    if len(folders) == len(words):
        return {folder: index for index, folder in enumerate(folders)}, words
    raise ValueError(
        f"the label set {name} names {len(words):,} classes but has {len(folders):,} class folders; "
        "give `classes` as folder -> name"
    )


def _known(name: str, folders: Sequence[str], given: Mapping[str, str]) -> None:
    unknown = [folder for folder in folders if folder not in given]
    if unknown:
        raise ValueError(f"`classes` of the label set {name} has no name for the folder {unknown[0]!r}; add it")


def _templates(name: str, given: Any) -> tuple[str, ...]:
    if given is None:
        return TEMPLATES
    if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
        raise ValueError(f"`templates` of the label set {name} must be a list of texts with one gap, {{}}")
    for text in given:
        if text.count("{}") != 1:
            raise ValueError(f"a template of the label set {name} must have one gap, {{}}, got {cut_short(text)!r}")
    return tuple(clean(text) for text in given)


def _groups(name: str, image_ids: Sequence[str], given: Any) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    if given is None:
        return None, ()
    if not isinstance(given, dict) or not all(isinstance(group, str) for group in given.values()):
        raise ValueError(f"`groups` of the label set {name} must be class/picture -> name of its group")
    missing = [picture for picture in image_ids if picture not in given]
    if missing:
        raise ValueError(f"`groups` of the label set {name} has no group for {missing[0]!r}; give all or none")
    names = tuple(sorted({given[picture] for picture in image_ids}))
    return np.array([names.index(given[picture]) for picture in image_ids], dtype=np.int64), names


def read_words(file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and templates from the JSON file of a label set, whether its pictures are there or not."""
    words = _read_json(file)
    given = words.get("classes")
    names = list(given.values()) if isinstance(given, dict) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must give `classes`, a list of names or folder -> name; add it")
    return tuple(map(clean, names)), _templates(file.stem, words.get("templates"))


def _words(path: Path) -> dict[str, Any]:
    """Read the JSON file beside a label set, if there is one."""
    stem = path.stem if path.is_file() else path.resolve().name
    file = path.resolve().parent / f"{stem}.json"
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        words = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(words, dict):
        raise ValueError(f"{file} must be an object with `classes` and `templates`, got {type(words).__name__}")
    if isinstance(words.get("groups"), str):
        words["groups"] = _groups_in_table(words["groups"], file)
    return words


def _groups_in_table(given: str, file: Path) -> dict[str, str]:
    """Read `class/picture` -> group from a column of a table."""
    name, _, column = given.rpartition(":")
    path = file.parent / name
    if not name or path.suffix.lower() not in TABLES or not path.is_file():
        raise ValueError(
            f"`groups` of {file} must be class/picture -> name of its group, or 'TABLE:COLUMN' of a table beside it "
            f"({', '.join(TABLES)}), got {given[:80]!r}"
        )
    groups: dict[str, str] = {}
    rows = parquet_rows(path, lambda names: names) if path.suffix.lower() == ".parquet" else rows_of(path)
    for number, row in rows:
        picture = find_pictures(list(row))
        if picture is None or column not in row:
            lacking = "of pictures" if picture is None else repr(column)
            raise ValueError(f"{path}, line {number}, has no column {lacking}; it has {', '.join(map(repr, row))}")
        groups[str(row[picture]).strip()] = clean(str(row[column]))
    return groups


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def _without_common_folder(names: Sequence[str]) -> list[str]:
    """Drop a folder that all pictures share above their classes, as `tar` of a folder makes it."""
    tops = {name.split("/")[0] for name in names}
    if len(tops) == 1 and all(name.count("/") == 2 for name in names):
        return [name.split("/", 1)[1] for name in names]
    return list(names)
