"""The classes that pictures are sorted into: their names, the prompts that are made of them, and their rows."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from hyperalign.embed.label_sets import TEMPLATES, fill_templates, read_words, scene_labels
from hyperalign.embed.samples import clean, cut_short
from hyperalign.use.dual import DualEncoder

__all__ = ["Classes", "check_templates", "class_rows", "read_classes"]

_WANTED = "--labels is a file with one class a line, or names with commas"


class Classes(NamedTuple):
    """What pictures can be.

    Attributes:
        names: One per class, each once.
        templates: Prompts with one gap, `{}`.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]


def read_classes(source: str, templates: Sequence[str] = ()) -> Classes:
    """Read classes as a user wrote them.

    Args:
        source: Names with commas between; a text file with one a line; the JSON file of a label set, with `classes` and
            perhaps `templates`; a label set that has one beside it; or `scenes:<name>`.
        templates: Prompts with one gap instead of those of the label set.

    Raises:
        FileNotFoundError: If it looks like a file and is none.
        ValueError: If there are fewer than two classes, one stands twice, or a template has no gap or several.
    """
    names, own = _read(source)
    check_templates(templates)
    if len(names) < 2:
        got = cut_short(names[0]) if names else "none"
        raise ValueError(f"sorting needs at least two classes, got {got} in --labels; {_WANTED}")
    if len(set(names)) < len(names):
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the classes of --labels must differ, and {cut_short(twin)!r} stands twice")
    return Classes(names, tuple(templates) or own)


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template that has no gap for the class, or several."""
    for text in templates:
        if text.count("{}") != 1:
            raise ValueError(f"a template must have one gap, {{}}, got {cut_short(text)!r}")


@torch.no_grad()
def class_rows(model: DualEncoder, classes: Classes) -> Tensor:
    """Rows of the classes.

    A class is the mean of its prompts' unit rows, normalised; prompts of which the model knows no word are left out.

    Args:
        model: The pair.
        classes: C of them.

    Returns:
        (C, D) unit rows; zeros where no prompt of a class means anything to the model.
    """
    rows = model.encode_text(fill_templates(classes.names, classes.templates))
    return F.normalize(rows.reshape(len(classes.names), len(classes.templates), -1).sum(1), dim=1)


def _read(source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if source.startswith("scenes:"):
        found = scene_labels(source.removeprefix("scenes:"), seed=0)
        return found.class_names, found.templates
    if not source.strip():
        return (), TEMPLATES
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix.lower() == ".tar":
        path = path.resolve().with_suffix(".json") if path.suffix.lower() == ".tar" else _beside(path)
        if not path.is_file():
            raise FileNotFoundError(f"{source} has no {path.name} beside it that names its classes; {_WANTED}")
    if path.suffix.lower() == ".json":
        return read_words(path)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path} must be UTF-8 text with one class a line; convert it") from None
        return tuple(text for text in map(clean, lines) if text), TEMPLATES
    if path.suffix.lower() == ".txt" or (os.sep in source and "," not in source):
        raise FileNotFoundError(f"there is no {path}; {_WANTED}")
    return tuple(name for name in map(clean, source.split(",")) if name), TEMPLATES


def _beside(folder: Path) -> Path:
    """The JSON file of a label set in a folder."""
    return folder.resolve().parent / f"{folder.resolve().name}.json"
