"""Tables of picture paths and captions: .csv, .tsv, .jsonl, .parquet.

Paths are relative to the table's folder. A picture may have one row for each caption, or one row with
a list of them; rows of the same picture are put together.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hyperalign.embed.memory import file_digests
from hyperalign.embed.pictures import whole_files
from hyperalign.embed.plain import first_line, parse_json
from hyperalign.embed.samples import Sample, Source, captions_in, split_named, splits_in_names

__all__ = [
    "TABLES",
    "find_captions",
    "find_columns",
    "find_picture_column",
    "find_pictures",
    "listed",
    "parquet_batches",
    "parquet_rows",
    "plain_batch",
    "plain_rows",
    "read_tables",
    "rows_of",
    "separator",
]

Progress = Callable[[str, int, int], None]
Row = tuple[int, Mapping[str, Any]]

TABLES: Final = (".csv", ".tsv", ".jsonl", ".parquet")

_IMAGE_NAMES: Final = (
    "image", "image_path", "img", "img_path", "path", "file", "filepath", "file_path", "filename", "file_name",
    "image_name", "image_file",
)  # fmt: skip
_CAPTION_NAMES: Final = (
    "captions", "caption", "texts", "text", "sentences", "sentence", "raw", "comment", "description", "title",
)  # fmt: skip


@dataclass(slots=True)
class _Found:
    """What the rows of one picture said so far."""

    captions: list[str] = field(default_factory=list)
    split: str | None = None


def read_tables(paths: Sequence[Path], *, name: str, memory: Path | None, progress: Progress) -> Source:
    """Read one table, or several whose names tell the splits apart, as one data set."""
    folder = paths[0].resolve().parent
    found: dict[str, _Found] = {}
    for path, split in zip(paths, splits_in_names(paths), strict=True):
        _read(path, os.path.relpath(path.resolve().parent, folder), split, found)
    there = [picture for picture in found if _is_there(folder / picture)]
    if not there:
        raise FileNotFoundError(
            f"none of the {len(found):,} pictures of {name} is there, the first would be "
            f"{folder / next(iter(found))}; paths are relative to the table's folder"
        )
    return Source(
        name=name,
        samples=[Sample(picture, found[picture].captions, found[picture].split) for picture in there],
        pictures=whole_files([str(folder / picture) for picture in there]),
        digests=lambda chosen: file_digests(
            folder, [there[index] for index in chosen], memory=memory, progress=progress
        ),
        left_out=sorted(found.keys() - set(there)),
    )


def rows_of(path: Path) -> Iterator[Row]:
    """Read a table as numbered rows; a number is that of the line, or of the row in a .parquet."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return parquet_rows(path, lambda names: [name for name in find_columns(names, path) if name is not None])
    if kind == ".jsonl":
        return _json_rows(path)
    return _text_rows(path)


def separator(path: Path) -> str:
    """What parts the cells of a .csv (comma, semicolon, bar or tab, whichever gives known columns) or a .tsv."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _delimiter(file.readline())


def plain_rows(path: Path) -> Iterator[Row]:
    """Read a table with any columns as numbered rows."""
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{path} must be a table, {', '.join(TABLES)}")
    return parquet_rows(path, list) if path.suffix.lower() == ".parquet" else rows_of(path)


def find_picture_column(names: Sequence[str], path: object) -> str:
    """Guess which column holds the picture."""
    found = find_pictures(names)
    if found is None:
        raise ValueError(
            f"{path} has no column of pictures: its columns are {', '.join(map(repr, names)) or 'none'}; "
            f"call it one of {', '.join(_IMAGE_NAMES)}"
        )
    return found


def find_columns(names: Sequence[str], path: object) -> tuple[str, str, str | None]:
    """Guess which columns hold the picture, the captions and the split."""
    image, caption = find_pictures(names), find_captions(names)
    if image is None or caption is None:
        lacking, known = ("pictures", _IMAGE_NAMES) if image is None else ("captions", _CAPTION_NAMES)
        raise ValueError(
            f"{path} has no column of {lacking}: its columns are {', '.join(map(repr, names)) or 'none'}; "
            f"call it one of {', '.join(known)}"
        )
    return image, caption, _first(("split",), names)


def find_captions(names: Sequence[str]) -> str | None:
    """Guess which column holds the captions; None where no name tells."""
    return _first(_CAPTION_NAMES, names)


def find_pictures(names: Sequence[str]) -> str | None:
    """Guess which column holds the paths of pictures; None where no name tells."""
    return _first(_IMAGE_NAMES, names)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """Find the first of the wanted names, whatever its case and the blanks around it."""
    plain = {name.strip().lower(): name for name in reversed(names)}
    return next((plain[name] for name in wanted if name in plain), None)


def _read(path: Path, prefix: str, by_name: str | None, found: dict[str, _Found]) -> None:
    """Add the rows of one table, in the folder `prefix` below the first table's, to what was found before."""
    columns: dict[tuple[str, ...], tuple[str, str, str | None]] = {}
    pictures: dict[str, str] = {}
    number = 0
    for number, row in rows_of(path):
        where, names = f"line {number}", tuple(row)
        if names not in columns:
            columns[names] = find_columns(names, f"{path}, {where},")
        image, caption, split_column = columns[names]
        written = _picture(row[image], path, where)
        if written not in pictures:  # a path is slow work, and each comes with every caption
            pictures[written] = os.path.normpath(Path(prefix) / written)
        picture, split = pictures[written], by_name
        if split_column is not None and row[split_column] not in (None, ""):
            split = split_named(str(row[split_column]), path, where)
        item = found.setdefault(picture, _Found())
        if item.split is None:
            item.split = split
        elif split not in (None, item.split):
            raise ValueError(
                f"{path}, {where}: {picture!r} is {split} here and {item.split} above; a picture has one split"
            )
        item.captions += captions_in(listed(row[caption]), path, where)
    if not number:
        raise ValueError(f"{path} has no rows; it needs a picture and a caption in each")


def _picture(value: object, path: Path, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}, {where}: a row must hold the path of a picture, got {_short(value)}")
    if "://" in value:
        raise ValueError(f"{path}, {where}: {value[:80]!r} is an address; download the pictures first")
    return value.strip()


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for a file
        return False


def listed(value: Any) -> Any:
    """Read a JSON list in a text cell as a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            inside = parse_json(value)
        except ValueError:
            return value  # a caption that starts with a bracket
        return inside if isinstance(inside, list) and inside else value
    return value


def _text_rows(path: Path) -> Iterator[Row]:
    """Read a .csv or a .tsv."""
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator(path), strict=True)
            names = next(reader, [])
            line = reader.line_num
            if len(set(names)) < len(names):
                raise ValueError(f"{path} has two columns of one name among {', '.join(map(repr, names))}; rename one")
            for cells in reader:
                line = reader.line_num
                if not cells:
                    continue  # an empty line
                if len(cells) != len(names):
                    raise ValueError(
                        f"{path}, line {line}: {len(cells)} cells where the header has {len(names)}; "
                        "put a text that holds the separator in double quotes"
                    )
                yield line, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, after line {line}: {error}; check the quotes") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be UTF-8 text; convert it") from None


def _delimiter(header: str) -> str:
    for delimiter in (",", ";", "\t", "|"):
        names = next(csv.reader([header], delimiter=delimiter), [])
        if find_captions(names) and (find_pictures(names) or len(names) > 1):
            return delimiter
    return ","


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{path}, line {number}: each line must be an object, got {_short(row)}")
                yield number, row
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be UTF-8 text; convert it") from None


def parquet_rows(path: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Row]:
    """Read the columns of a .parquet that `choose` picks from their names, row by row."""
    number = 0
    for batch in parquet_batches(path, choose):
        for row in plain_batch(batch, path):
            number += 1
            yield number, row


def parquet_batches(
    path: Path, choose: Callable[[Sequence[str]], Sequence[str]], *, n_rows: int = 65_536
) -> Iterator[Any]:
    """Read the columns of a .parquet that `choose` picks from their names, as Arrow's batches of at most `n_rows`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is none, or damaged; what is behind the damage is not read.
    """
    import pyarrow.parquet as parquet  # a fifth of a second that the other forms need not pay

    try:
        file = parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
    except FileNotFoundError:
        raise
    except Exception as error:  # of Arrow, of the system's and of Python's kinds, as the damage has it
        raise _unreadable(path, error) from None
    with file:
        chosen = list(choose(names))
        try:
            batches = file.iter_batches(batch_size=n_rows, columns=chosen)
        except Exception as error:
            raise _unreadable(path, error) from None
        while (batch := _next(batches, path)) is not None:
            yield batch


def plain_batch(batch: Any, path: Path) -> list[dict[str, Any]]:
    """Rows of one of Arrow's batches as plain values."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except Exception as error:  # such as a date beyond those of Python
        raise _unreadable(path, error) from None
    return rows


def _next(batches: Iterator[Any], path: Path) -> Any:
    try:
        return next(batches, None)
    except Exception as error:  # damage that shows only where it is read
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a parquet file that can be read: {first_line(error)}")


def _short(value: object) -> str:
    return f"{type(value).__name__} {repr(value)[:40]}"
