"""Which classes a caption names, word by word.

A class is named where its words stand one after the other, in any case, in the singular or the plural. Names and
captions are cut into words by the same rule, so that "T-shirt" is found in "two t shirts" and "cat" is not found in
"category". The time for a caption grows with its words and hardly with the number of classes.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from hyperalign.embed.plain import parse_json

__all__ = ["Vocabulary", "compile_vocabulary", "named", "read_vocabulary", "words_of"]

_WORD: Final = re.compile(r"[^\W_]+")
_ASIDE: Final = re.compile(r"\([^()]*\)")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Classes, and how they may be written.

    Attributes:
        names: The classes, each once.
        lengths: By the first word of a form, how many words the forms that begin with it have.
        classes: By the words of a form, which classes it names.
    """

    names: tuple[str, ...]
    lengths: Mapping[str, tuple[int, ...]]
    classes: Mapping[tuple[str, ...], tuple[int, ...]]


def words_of(text: str) -> list[str]:
    """Letters and digits in runs, case folded; anything else parts words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def compile_vocabulary(names: Sequence[str]) -> Vocabulary:
    """Write every class out in all its forms.

    Args:
        names: Classes. Commas, semicolons and bars part other names of the same class, "great white shark, white
            shark"; what stands in round brackets explains and is passed over, "crane (bird)".
    """
    kept = tuple(dict.fromkeys(" ".join(name.split()) for name in names if name.strip()))
    if not kept:
        raise ValueError("a vocabulary needs at least one class; it has none")
    classes: dict[tuple[str, ...], list[int]] = {}
    for number, name in enumerate(kept):
        forms = _forms(name)
        if not forms:
            from hyperalign.embed.samples import cut_short  # it needs numpy and Pillow

            raise ValueError(
                f"class {cut_short(name)!r} of the vocabulary has no letter or digit that a caption could hold"
            )
        for form in forms:
            classes.setdefault(form, []).append(number)
    lengths: dict[str, set[int]] = {}
    for form in classes:
        lengths.setdefault(form[0], set()).add(len(form))
    return Vocabulary(
        kept,
        {word: tuple(sorted(found)) for word, found in lengths.items()},
        {form: tuple(found) for form, found in classes.items()},
    )


def named(vocabulary: Vocabulary, caption: str) -> set[int]:
    """The classes that a caption names, as positions in `names`; a name inside a longer one counts as well."""
    words = words_of(caption)
    found: set[int] = set()
    for start, word in enumerate(words):
        for length in vocabulary.lengths.get(word, ()):
            found.update(vocabulary.classes.get(tuple(words[start : start + length]), ()))
    return found


def read_vocabulary(source: str) -> list[str]:
    """Read classes from a text file (one a line), a .json (a list, or a label set's `classes`) or a label set."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() != ".tar":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"{path} must be UTF-8 text with one class a line; convert it") from None
        names = _in_json(text, path) if path.suffix.lower() == ".json" else text.splitlines()
        if not any(name.strip() for name in names):
            raise ValueError(f"{path} names no class; write one a line")
        return names
    from hyperalign.embed.label_sets import open_label_set  # numpy and Pillow, which a text file can do without

    try:
        return list(open_label_set(source).class_names)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"a vocabulary is a text file with one class a line, a .json or a label set, and {source!r} is none"
        ) from None


def _in_json(text: str, path: Path) -> list[str]:
    try:
        found: Any = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if isinstance(found, dict):
        found = found.get("classes")
    names = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must be a list of classes, or an object whose `classes` are one")
    return names


def _forms(name: str) -> set[tuple[str, ...]]:
    """Every way to write a class, in words."""
    forms: set[tuple[str, ...]] = set()
    for alias in re.split(r"[,|;]", _ASIDE.sub(" ", name)):
        words = words_of(alias)
        if words:
            forms |= {tuple(words), *(tuple(words_of(form)) for form in _numbers(" ".join(words)))}
    return forms


def _numbers(name: str) -> list[str]:
    """A name in the other number: its plural, and its singular where it is a plural itself."""
    engine = _engine()
    found = [str(engine.plural_noun(name))]
    single = engine.singular_noun(name)
    if single and _is_plural(name, str(single)) and engine.plural_noun(single) == name:
        found.append(str(single))
    return found


def _is_plural(name: str, single: str) -> bool:
    """Whether a name looks like a plural: the library takes "bus" for several "bu" and "lens" for several "len"."""
    if not name.endswith("s"):
        return True
    return len(single) > 3 and not name.endswith(("ss", "us", "is"))


@cache
def _engine() -> Any:
    """The library's rules, compiled once."""
    try:
        import inflect
    except ImportError:
        raise ValueError("a vocabulary needs the library `inflect`; pip install 'hyperalign[filter]'") from None
    return inflect.engine()
