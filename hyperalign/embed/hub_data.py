"""Data sets of the Hugging Face hub, `hf:<name>[:<configuration>][@<revision>]`.

Needs the optional library `datasets`; nothing is imported and no connection opened for other forms.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hyperalign.embed.memory import keep, recall
from hyperalign.embed.pictures import decode
from hyperalign.embed.samples import Sample, Source, captions_in, split_named
from hyperalign.embed.tables import find_columns

__all__ = ["HubPictures", "read_hub"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubPictures:
    """Pictures in the tables of the library `datasets`, left encoded until asked for.

    Attributes:
        tables: The splits, with their picture column not decoded.
        column: Name of that column.
        home: Which table and row each picture is in.
    """

    tables: Sequence[Any]
    column: str
    home: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.home)

    def __getitem__(self, index: int) -> Image.Image:
        """Read and decode one picture."""
        return decode(self.read(index))

    def read(self, index: int) -> bytes:
        """Read one picture's bytes, which lie in the table or in a file it names."""
        table, row = self.home[index]
        found = self.tables[table][row][self.column]
        if found is None:
            raise ValueError("there is no picture in its row")
        return found["bytes"] if found.get("bytes") else Path(found["path"]).read_bytes()


def read_hub(name: str, *, memory: Path | None, progress: Progress) -> Source:
    """Read all splits of a hub data set; one that comes as a single split is split by hash.

    Rows of a split with the same picture, byte for byte, are one picture with the captions of all.
    """
    splits = _load(name)
    names = list(next(iter(splits.values())).column_names)
    image, caption, split_column = find_columns(names, f"hf:{name}")
    tables = [_undecoded(table, image, f"hf:{name}") for table in splits.values()]
    home = [(number, row) for number, table in enumerate(tables) for row in range(len(table))]
    pictures = HubPictures(tables=tables, column=image, home=home)
    about = " ".join(["hub", name, *(str(table._fingerprint) for table in tables)])
    digests = _digests(pictures, about, memory, progress)

    first: dict[tuple[int, str], int] = {}  # by split and content, the row whose picture stands for all
    samples: dict[int, Sample] = {}
    words = [table.select_columns([column for column in (caption, split_column) if column]) for table in tables]
    for index, (number, row) in enumerate(home):
        split, record = list(splits)[number], words[number][row]
        where = f"row {row} of {split}"
        named = str(record[split_column]) if split_column else split
        own = split_named(named, f"hf:{name}", where) if split_column or len(splits) > 1 else None
        kept = first.setdefault((number, digests[index] or str(index)), index)
        before = samples.get(kept, Sample(f"{split}/{row:07}", (), own))
        captions = captions_in(record[caption], f"hf:{name}", where)
        samples[kept] = before._replace(captions=[*before.captions, *captions])
    chosen = list(samples)
    return Source(
        name=re.split("[:@]", name)[0].rstrip("/").split("/")[-1],
        samples=list(samples.values()),
        pictures=HubPictures(tables=tables, column=image, home=[home[index] for index in chosen]),
        digests=lambda positions: [digests[chosen[position]] for position in positions],
    )


def _load(name: str) -> Any:
    """Download a data set, or open the copy that the library keeps."""
    try:
        import datasets
    except ImportError:
        raise ValueError("hf: needs the library `datasets`; pip install 'hyperalign[datasets]'") from None
    path, _, revision = name.partition("@")
    path, _, configuration = path.partition(":")
    if not path:
        raise ValueError(f"a hub data set is written hf:<name>[:<configuration>][@<revision>], got 'hf:{name}'")
    try:
        return datasets.load_dataset(path, configuration or None, revision=revision or None)
    except Exception as error:  # the library raises its own, the hub's and the network's errors
        raise ValueError(f"hf:{name} could not be opened: {str(error).splitlines()[0]}") from None


def _undecoded(table: Any, column: str, name: str) -> Any:
    """Ask for a picture's bytes instead of its pixels."""
    import datasets

    if not isinstance(table.features[column], datasets.Image):
        raise ValueError(f"column {column!r} of {name} must hold pictures, got {table.features[column]}")
    return table.cast_column(column, datasets.Image(decode=False))


def _digests(pictures: HubPictures, about: str, memory: Path | None, progress: Progress) -> list[str]:
    """Hash pictures' bytes; one that is not there has no hash, and is found again when it is embedded."""
    known: list[str] = recall(memory, about).get("digests", [])
    if len(known) == len(pictures):
        return known
    digests: list[str] = []
    for index in range(len(pictures)):
        try:
            digests.append(hashlib.sha256(pictures.read(index)).hexdigest())
        except (OSError, ValueError):
            digests.append("")
        if index % 500 == 499 or index == len(pictures) - 1:
            progress("reading pictures", index + 1, len(pictures))
    keep(memory, about, {"digests": digests})
    return digests
