"""Data copied without the pairs that are not worth training on, file by file.

Every file keeps its name and its form. A file appears whole or not at all, and `filtered.log` gains a line for each
that says what was dropped from it and why: a filter that was cut short goes on where it stood.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from hyperalign.embed.data import find_files
from hyperalign.embed.memory import stamp
from hyperalign.embed.plain import parse_json
from hyperalign.embed.tables import TABLES
from hyperalign.hyperclip.rules import FilterConfig, Item, Rules, Tally, judge, open_rules
from hyperalign.hyperclip.table_copies import Layout, copy_table, table_scores
from hyperalign.hyperclip.tar_copies import copy_tar, tar_scores
from hyperalign.record import to_json
from hyperalign.run import write_whole

__all__ = ["LOG", "Filtered", "filter_data"]

Progress = Callable[[str, int, int], None]

LOG: Final = "filtered.log"


@dataclass(frozen=True, kw_only=True, slots=True)
class Filtered:
    """What a filter did.

    Attributes:
        tally: What was dropped, over all files.
        least: Score below which pairs were dropped; None where scores did not matter.
        names: The classes of the vocabulary; empty where there was none.
        files: Files that hold what was kept.
    """

    tally: Tally
    least: float | None
    names: Sequence[str]
    files: Sequence[Path]


def filter_data(
    source: str, out: Path, config: FilterConfig, *, captions: str | None = None, progress: Progress
) -> Filtered:
    """Copy a table, tables or tar shards without the pairs that the rules drop.

    Args:
        source: A .csv, .tsv, .jsonl or .parquet table, tar shards with braces or wildcards, or a folder of either.
        out: Folder of the copy.
        config: The rules.
        captions: Column or key of the captions, where its name does not tell.
        progress: Told `(stage, done, total)`.
    """
    paths = _readable(source)
    places = _places(paths, out)
    layout = Layout(config.score, captions)
    rules = open_rules(config, scores=lambda: _scores(paths, str(config.score), progress))
    asked = {**asdict(config), "captions": captions, "least": rules.least, "classes": _classes(rules)}
    done = _begun(out, json.loads(to_json(asked)), places)
    total, kept = Tally(), []
    for path, to in zip(paths, places, strict=True):
        name = to.relative_to(out).as_posix()
        tally = _tally(done[name]) if name in done and done[name]["stamp"] == stamp(path) else None
        if tally is None:
            tally = _filter_file(path, to, rules, layout, progress)
            _append(out, {"file": name, "stamp": stamp(path), **json.loads(to_json(tally))})
        total.add(tally)
        kept += [to] if tally.n_kept else []
    return Filtered(tally=total, least=rules.least, names=_classes(rules), files=kept)


def _readable(source: str) -> list[Path]:
    """The files to filter."""
    paths = find_files(source)
    for path in paths:
        if path.suffix.lower() not in (".tar", *TABLES):
            raise ValueError(f"{path} is no table ({', '.join(TABLES)}) and no plain .tar; only these are filtered")
    return paths


def _places(paths: Sequence[Path], out: Path) -> list[Path]:
    """Where each file's copy goes: under the same name, below the folder that all have in common."""
    whole = [path.resolve() for path in paths]
    top = Path(os.path.commonpath([path.parent for path in whole]))
    places = [out / path.relative_to(top) for path in whole]
    for path, to in zip(whole, places, strict=True):
        if to.resolve() == path:
            raise ValueError(f"{out} is where the data lies; name another folder with --out")
    return places


def _begun(out: Path, rules: dict[str, Any], places: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What was done before by the same rules, by file; a folder that holds anything else is refused."""
    log = out / LOG
    if log.is_file():
        first, *lines = _lines(log)
        if first != rules:
            raise ValueError(f"{out} holds data filtered by other rules; remove it or name another folder with --out")
        return {line["file"]: line for line in lines}
    for to in places:
        if to.exists():
            raise ValueError(f"{to} is there and no filter wrote it; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(log, (to_json(rules) + "\n").encode())
    return {}


def _lines(log: Path) -> list[dict[str, Any]]:
    """The rules, then what was done; a last line that was cut short is passed over."""
    lines = log.read_bytes().split(b"\n")
    try:
        found = [parse_json(line) for line in lines[:-1]] or [{}]
    except ValueError:
        found = [None]
    if not all(isinstance(line, dict) for line in found):
        raise ValueError(f"{log} is damaged; remove its folder or name another with --out")
    return found


def _append(out: Path, line: dict[str, Any]) -> None:
    """Add a line to the log, behind the last whole one."""
    with (out / LOG).open("rb+") as file:
        file.seek(file.read().rfind(b"\n") + 1)
        file.truncate()
        file.write((to_json(line) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _filter_file(path: Path, to: Path, rules: Rules, layout: Layout, progress: Progress) -> Tally:
    tally = Tally()
    stage = f"filtering {path.name}, captions"

    def judged(items: Sequence[Item]) -> list[list[int]]:
        kept: list[list[int]] = []
        for start in range(0, len(items), 1024):
            kept += judge(rules, items[start : start + 1024], tally)
            progress(stage, tally.n_read, 0)
        return kept

    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)  # of a source that has changed since; its record is written anew
    if path.suffix.lower() == ".tar":
        for _ in range(copy_tar(path, to, judged, layout)):
            tally.drop("no picture")
            tally.n_items += 1
    else:
        copy_table(path, to, judged, layout)
    progress(stage, tally.n_read, tally.n_read)
    return tally


def _scores(paths: Sequence[Path], score: str, progress: Progress) -> Iterator[float | None]:
    """The scores of all pairs, for the share of them that is kept."""
    for done, path in enumerate(paths, start=1):
        yield from tar_scores(path, score) if path.suffix.lower() == ".tar" else table_scores(path, score)
        progress("reading scores, files", done, len(paths))


def _classes(rules: Rules) -> list[str]:
    return [] if rules.vocabulary is None else list(rules.vocabulary.names)


def _tally(record: dict[str, Any]) -> Tally:
    """A file's tally from its record."""
    tally = Tally(**{name: record[name] for name in ("n_read", "n_kept", "n_items", "n_items_kept", "examples")})
    tally.dropped.update(record["dropped"])
    tally.classes.update(record["classes"])
    return tally
