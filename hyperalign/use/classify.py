"""Pictures sorted into classes that were never trained on, one plain record for each picture."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from hyperalign.embed.pictures import choose
from hyperalign.embed.samples import cut_short
from hyperalign.use.classes import Classes, class_rows
from hyperalign.use.dual import DualEncoder
from hyperalign.use.likeness import likeness
from hyperalign.use.sources import Sources

__all__ = ["LOGIT_SCALE", "Tally", "classify", "write_classified"]

Progress = Callable[[str, int, int], None]

LOGIT_SCALE: Final = 100.0  # of a pair that has kept none: the cap of CLIP's training, to which it rises
BLOCK = 512  # pictures classified at a time, the most that an interruption can cost


class Tally(NamedTuple):
    """What was sorted.

    Attributes:
        n_pictures: Pictures that were looked at now.
        n_before: Pictures that an earlier, interrupted call had looked at.
        bad: Path and reason of those that cannot be decoded.
    """

    n_pictures: int
    n_before: int
    bad: list[tuple[str, str]]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def classify(  # noqa: PLR0913 - by whom, what, into what, how, and who is told
    model: DualEncoder,
    sources: Sources,
    classes: Classes,
    *,
    top: int = 5,
    logit_scale: float | None = None,
    chosen: Sequence[int] | None = None,
    progress: Progress = _silent,
) -> Iterator[dict[str, Any]]:
    """Sort pictures.

    The probability of class c is softmax(s · cosine)_c over the classes, s the inverse temperature.
    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.

    Args:
        model: The pair.
        sources: The pictures.
        classes: What they can be.
        top: How many classes to say of each picture.
        logit_scale: s; None is the model's own, or `LOGIT_SCALE`.
        chosen: Which of the pictures; None are all.
        progress: Told `(stage, done, total)`.

    Yields:
        `path`, `member` where the file is a tar, and `labels`, a list of `label` and `probability`, likeliest first; or
        `error` instead of labels where a picture cannot be decoded.

    Raises:
        ValueError: If the model knows no word of a class.
    """
    scale = logit_scale or model.logit_scale or LOGIT_SCALE
    rows = class_rows(model, classes)
    for name, known in zip(classes.names, rows.any(1).tolist(), strict=True):
        if not known:
            raise ValueError(
                f"{model.text_name} knows no word of the class {cut_short(name)!r}; call it by another name"
            )
    index = np.arange(len(sources)) if chosen is None else np.array(chosen, dtype=np.int64)
    pictures = choose(sources.pictures, index)
    for low in range(0, len(index), BLOCK):
        high = min(low + BLOCK, len(index))

        def tell(done: int, low: int = low) -> None:
            progress("sorting pictures", low + done, len(index))

        found, bad = model.encode_pictures(pictures, low, high, tell=tell)
        logits = scale * model.similarity(found.nan_to_num(0.0), rows)
        shares, order = logits.softmax(1).sort(dim=1, descending=True, stable=True)
        reasons = dict(bad)
        for n in range(low, high):
            record = _place(sources, int(index[n]))
            if n in reasons:
                yield record | {"error": reasons[n]}
                continue
            first = zip(order[n - low, :top].tolist(), shares[n - low, :top].tolist(), strict=True)
            yield record | {"labels": [{"label": classes.names[c], "probability": round(p, 6)} for c, p in first]}


def write_classified(  # noqa: PLR0913 - as `classify`, and where to
    model: DualEncoder,
    sources: Sources,
    classes: Classes,
    out: Path,
    *,
    top: int = 5,
    logit_scale: float | None = None,
    progress: Progress = _silent,
) -> Tally:
    """Sort pictures into a file of JSON lines, going on where an earlier call was interrupted.

    Lines are collected in `<out>.part`, whose first line says whose they are; the file takes its name when it is whole.

    Raises:
        FileExistsError: If `out` is there.
        ValueError: If `<out>.part` is of another model, other classes or other settings.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there and is not written over; choose another --out")
    part = out.with_name(f"{out.name}.part")
    head = _head(model, classes, top, logit_scale)
    done = _done(part, head)
    left = [n for n in range(len(sources)) if _key(_place(sources, n)) not in done]
    with part.open("a", encoding="utf-8") as file:
        if not done:
            file.truncate(0)
            file.write(head + "\n")
        for record in classify(
            model, sources, classes, top=top, logit_scale=logit_scale, chosen=left, progress=progress
        ):
            file.write(json.dumps(record) + "\n")
    bad = _finish(part, out)
    return Tally(len(left), len(sources) - len(left), bad)


def _place(sources: Sources, index: int) -> dict[str, Any]:
    member = sources.places[index].member
    return {"path": str(sources.path(index))} | ({"member": member} if member else {})


def _key(record: dict[str, Any]) -> tuple[str, str]:
    return record["path"], record.get("member", "")


def _head(model: DualEncoder, classes: Classes, top: int, logit_scale: float | None) -> str:
    """The first line of an unfinished file: a digest of everything that its lines depend on."""
    about = [likeness(model), *classes, top, logit_scale or model.logit_scale or LOGIT_SCALE]
    return json.dumps({"sorted_by": hashlib.sha256(json.dumps(about).encode()).hexdigest()})


def _done(part: Path, head: str) -> set[tuple[str, str]]:
    """Pictures that an unfinished file has; a last line that was cut off is taken away.

    Raises:
        ValueError: If the file is of something else.
    """
    if not part.exists():
        return set()
    data = part.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.decode("utf-8").splitlines()
    if lines and lines[0] != head:
        raise ValueError(f"{part} is of another model, other labels or settings; remove it, or choose another --out")
    if len(whole) < len(data):
        with part.open("rb+") as file:
            file.truncate(len(whole))
    return {_key(json.loads(line)) for line in lines[1:]}


def _finish(part: Path, out: Path) -> list[tuple[str, str]]:
    """Give the lines their name, the first one left out; the pictures that could not be decoded."""
    draft, bad = out.with_name(f".{out.name}.tmp"), []
    with part.open(encoding="utf-8") as lines, draft.open("w", encoding="utf-8") as file:
        next(lines)
        for line in lines:
            file.write(line)
            record = json.loads(line)
            if "error" in record:
                bad.append((" ".join(filter(None, _key(record))), record["error"]))
    draft.replace(out)
    part.unlink()
    return bad
