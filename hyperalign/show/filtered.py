"""What a filter dropped and kept, in the terminal and as JSON. Captions are untrusted text."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hyperalign.hyperclip.filtering import Filtered
from hyperalign.hyperclip.rules import REASONS
from hyperalign.show.lists import plain_table
from hyperalign.show.words import clean

__all__ = ["filtered_facts", "filtered_table"]

_SHOWN = 40  # letters of a caption that are shown
_MISSING = 5  # classes that are named when no caption names them


def filtered_table(found: Filtered) -> Group:
    """How many captions each rule dropped, with an example of each."""
    tally = found.tally
    rows = [("read", f"{tally.n_read:,}", "", "")]
    for reason, words in REASONS.items():
        if n_dropped := tally.dropped[reason]:
            examples = tally.examples.get(reason) or [""]
            rows.append((f"− {words}", f"{n_dropped:,}", _share(n_dropped, tally.n_read), _short(examples[0])))
    rows.append(("kept", f"{tally.n_kept:,}", _share(tally.n_kept, tally.n_read), ""))
    parts: list[RenderableType] = [plain_table(("captions", "number", "share", "for example"), rows, words=1)]
    parts += [Text(line) for line in _lines(found)]
    return Group(*parts)


def filtered_facts(found: Filtered) -> dict[str, Any]:
    """The same as plain values."""
    tally = found.tally
    return {
        "n_read": tally.n_read,
        "n_kept": tally.n_kept,
        "n_items": tally.n_items,
        "n_items_kept": tally.n_items_kept,
        "dropped": {reason: tally.dropped[reason] for reason in REASONS},
        "examples": tally.examples,
        "least_score": found.least,
        "classes": {name: tally.classes[name] for name in found.names},
        "files": [str(path) for path in found.files],
    }


def _lines(found: Filtered) -> list[str]:
    tally = found.tally
    lines = [f"{tally.n_items_kept:,} of {tally.n_items:,} rows or samples have a caption left."]
    if found.least is not None:
        lines.append(f"Pairs scored {found.least:.6g} or more are kept.")
    if missing := [name for name in found.names if not tally.classes[name]]:
        first = ", ".join(clean(name) for name in missing[:_MISSING]) + (", …" if len(missing) > _MISSING else "")
        lines.append(f"{len(missing):,} of {len(found.names):,} classes are named by no caption that is kept: {first}.")
    elif found.names:
        lines.append(f"Every one of {len(found.names):,} classes is named by a caption that is kept.")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _short(text: str) -> str:
    text = clean(text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1].rstrip() + "…"
