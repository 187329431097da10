"""What every reader of a data set hands over: pictures in order, each with captions and perhaps a split."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from hyperalign.embed.pictures import Pictures

__all__ = [
    "SPLITS",
    "Sample",
    "Source",
    "captions_in",
    "clean",
    "cut_short",
    "expand",
    "split_named",
    "splits_in_names",
]

SPLITS: Final = ("train", "val", "test")

_MOST_FILES: Final = 1_000_000  # that braces may stand for
_LONGEST: Final = 1024  # letters of a path with braces
_QUOTED: Final = 60  # letters of a caption in a message

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
        notes: What else is wrong with it, in words.
    """

    name: str
    samples: Sequence[Sample]
    pictures: Pictures
    digests: Callable[[Sequence[int]], list[str]]
    left_out: Sequence[str] = ()
    notes: Sequence[str] = ()


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
    """Strip a text and replace what no file could hold (half of a surrogate pair); a clean one comes back itself."""
    cleaned = text.encode("utf-8", "replace").decode("utf-8").strip()
    return text if cleaned == text else cleaned  # of a million captions no second copy


def cut_short(text: str) -> str:
    """A caption, a class or a prompt as messages quote it: 60 letters at most, the last a … where it goes on."""
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1].rstrip() + "…"


def split_named(word: str, path: object, where: str) -> str:
    """Read the name of a split; file and place in it open the error."""
    split = _SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        raise ValueError(f"{path}: the split of {where} must be train, val or test, got {word[:40]!r}")
    return split


def splits_in_names(files: Sequence[Path]) -> list[str | None]:
    """Read each file's split from the words of its name, `coco-val2014-003.tar`, or else from its folder's.

    Where all have the same word or none has one, names say nothing about splits.
    """
    found = [_split_word(file.name.split(".")[0]) for file in files]
    if not any(found):
        found = [_split_word(file.resolve().parent.name) for file in files]
    if len(set(found)) == 1:
        return [None] * len(files)
    if None in found:
        raise ValueError(
            f"{files[found.index(None)]} must say its split in its name as the other files do (train, val or test); "
            "rename it"
        )
    return found


def _split_word(name: str) -> str | None:
    words = re.findall(r"[a-z]+", name.lower())
    found = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def expand(pattern: str) -> list[str]:
    """Write out braces as a shell does: `{a,b}` and ranges `{000..004}`; what is not such a brace stays."""
    if len(pattern) > _LONGEST:
        raise ValueError(f"a path has at most {_LONGEST:,} letters, got {len(pattern):,}: {pattern[:60]!r}…")
    for start in (match.start() for match in re.finditer(r"\{", pattern)):
        pieces = _pieces(pattern[start + 1 :])
        if pieces is None:
            continue  # never closed
        end = start + 1 + len(",".join(pieces)) + 1
        choices = pieces if len(pieces) > 1 else _range(pieces[0])
        if choices:
            tails, inners = expand(pattern[end:]), [inner for choice in choices for inner in expand(choice)]
            _refuse_many(pattern, len(inners) * len(tails))
            return [pattern[:start] + inner + tail for inner in inners for tail in tails]
    return [pattern]


def _refuse_many(pattern: str, n_files: int) -> None:
    if n_files > _MOST_FILES:
        raise ValueError(f"{pattern} stands for {n_files:,} files; at most {_MOST_FILES:,} can be named")


def _pieces(text: str) -> list[str] | None:
    """Cut what stands before the closing brace at its commas, those of inner braces aside."""
    depth, begin, pieces = 0, 0, list[str]()
    for position, letter in enumerate(text):
        if depth == 0 and letter in ",}":
            pieces.append(text[begin:position])
            begin = position + 1
            if letter == "}":
                return pieces
        depth += (letter == "{") - (letter == "}")
    return None


def _range(text: str) -> list[str]:
    """Write out `000..004`; nothing if the text is no range."""
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", text, re.ASCII)
    if not numbers:
        return []
    padded = any(len(number) > 1 and number[0] == "0" for number in numbers.groups())
    width = max(map(len, numbers.groups())) if padded else 0
    low, high = map(int, numbers.groups())
    _refuse_many(f"{{{text}}}", abs(high - low) + 1)
    step = 1 if low <= high else -1
    return [f"{number:0{width}}" for number in range(low, high + step, step)]
