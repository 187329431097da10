"""What every reader of a data set hands over: pictures in order, each with captions and perhaps a split."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from hyperalign.embed.pictures import Pictures

__all__ = ["SPLITS", "Sample", "Source", "captions_in", "clean", "expand", "only_one", "split_in_name", "split_named"]

SPLITS: Final = ("train", "val", "test")

_SPLIT_WORDS: Final = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy's splits of COCO
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class Sample(NamedTuple):
    """One picture of a source.

    Attributes:
        image_id: Its name, unique in the source.
        captions: As they were found.
        split: "train", "val" or "test" if the source says so, else None.
    """

    image_id: str
    captions: Sequence[str]
    split: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A data set as it was found, before it is cut into splits.

    Attributes:
        name: What to call it.
        samples: Its pictures, in order.
        pictures: The same pictures, to be decoded.
        digests: Gives the SHA-256 of the bytes of chosen pictures.
        left_out: Pictures that were named but are not there.
    """

    name: str
    samples: Sequence[Sample]
    pictures: Pictures
    digests: Callable[[Sequence[int]], list[str]]
    left_out: Sequence[str] = ()


def captions_in(value: Any, path: object, where: str) -> list[str]:
    """Read a text, a list of texts or nothing as captions; file and place in it open the error."""
    if value is None:
        return []
    texts = list(value) if isinstance(value, list | tuple) else [value]
    for text in texts:
        if not isinstance(text, str | None):
            holder = "a list with " if isinstance(value, list | tuple) else ""
            raise ValueError(
                f"{path}: captions of {where} must be a text or a list of texts, got {holder}{type(text).__name__} "
                f"{repr(text)[:40]}"
            )
    return [text for text in texts if text is not None]


def clean(text: str) -> str:
    """Strip a text and replace what no file could hold (half of a surrogate pair)."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def split_named(word: str, path: object, where: str) -> str:
    """Read the name of a split; file and place in it open the error."""
    split = _SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        raise ValueError(f"{path}: the split of {where} must be train, val or test, got {word[:40]!r}")
    return split


def split_in_name(path: Path) -> str | None:
    """Find a split's name among the words of a file's name or else of its folder's: `coco-val2014-003.tar` is val."""
    for text in (path.name.split(".")[0], path.parent.name):
        words = re.findall(r"[a-z]+", text.lower())
        found = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def only_one(splits: Sequence[str | None], files: Sequence[Path]) -> bool:
    """Tell whether the names of files say nothing about splits: none has one, or all have the same."""
    found = set(splits)
    if None in found and len(found) > 1:
        silent = files[list(splits).index(None)]
        raise ValueError(
            f"{silent} must say its split in its name as the other files do (train, val or test); rename it"
        )
    return len(found) <= 1


def expand(pattern: str) -> list[str]:
    """Write out braces as a shell does: `{a,b}` and ranges `{000..004}`; what is not such a brace stays."""
    for match in re.finditer(r"\{([^{}]*)\}", pattern):
        choices = _choices(match.group(1))
        if choices is not None:
            head, tail = pattern[: match.start()], pattern[match.end() :]
            return [done for choice in choices for done in expand(head + choice + tail)]
    return [pattern]


def _choices(inside: str) -> list[str] | None:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = numbers.groups()
        padded = any(len(number) > 1 and number[0] == "0" for number in (first, last))
        width = max(len(first), len(last)) if padded else 0
        low, high = int(first), int(last)
        step = 1 if low <= high else -1
        if abs(high - low) >= 1_000_000:
            raise ValueError(
                f"{{{inside}}} stands for {abs(high - low) + 1:,} files; a pattern may stand for a million"
            )
        return [f"{number:0{width}}" for number in range(low, high + step, step)]
    return inside.split(",") if "," in inside else None
