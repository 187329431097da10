"""Which connectors a run has kept, whose they are, and which of a pair's is taken: the one that validates best.

Tensors stand in `connectors.safetensors`, a note on each batch of them in the run's log. A search notes those of every
method's first pairs, an adoption those of the newcomer's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from hyperalign.embed.plain import first_line
from hyperalign.run import Run, read_log

__all__ = ["Note", "best_row", "note_of", "read_notes", "undamaged", "whose"]

Whose = tuple[str, str, int]  # method, sides and seed


class Note(NamedTuple):
    """Connectors that were kept together.

    Attributes:
        whose: Method, sides and seed.
        images: Image encoders that its pairs count.
        texts: Text encoders.
        record: What `packing.unpack` makes a solution of, with the tensors.
        prefix: What the names of the tensors begin with.
    """

    whose: Whose
    images: Sequence[str]
    texts: Sequence[str]
    record: Mapping[str, Any]
    prefix: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names of the pairs, in the order of the solution."""
        return [(self.images[i], self.texts[j]) for i, j in self.record["pairs"]]

    def own(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Its tensors among all of `connectors.safetensors`."""
        return {name.removeprefix(self.prefix): one for name, one in tensors.items() if name.startswith(self.prefix)}


def read_notes(run: Run) -> list[Note]:
    """Every note of a run, the latest first; of earlier releases those that name no method are of the one that answers.

    Raises:
        KeyError: If a note lacks a part; so do `TypeError` and `IndexError` tell of a damaged log.
    """
    board = run.leaderboard
    seeds = board.loc[board["method"] == run.result["method"], "seed"]
    notes = []
    for line in read_log(run.path):
        if line.get("event") != "connectors":
            continue
        method = (line.get("method", run.result["method"]), line["solution"]["sides"], line.get("seed", seeds.iloc[0]))
        prefix = f"{line['prefix']}/" if "prefix" in line else ""
        notes.append(Note(method, line["images"], line["texts"], line["solution"], prefix))
    return notes[::-1]


def whose(row: Mapping[str, Any]) -> Whose:
    """Method, sides and seed of a row of the table."""
    return row["method"], row["sides"], row["seed"]


def note_of(notes: Sequence[Note], row: Mapping[str, Any]) -> Note | None:
    """The latest note with the connector of a row of the table; None where it was not kept."""
    pair = (row["image_encoder"], row["text_encoder"])
    return next((note for note in notes if note.whose == whose(row) and pair in note.pairs), None)


def best_row(run: Run, row: dict[str, Any], notes: Sequence[Note]) -> dict[str, Any]:
    """The row of the same pair by the method whose kept connector of it validates best, with the place of `row`.

    Args:
        run: The run.
        row: Of the method that answers; it stands where no other is better.
        notes: Of the run.
    """
    board = run.leaderboard
    pair = board["image_encoder"].eq(row["image_encoder"]) & board["text_encoder"].eq(row["text_encoder"])
    best = row
    for other in board[pair].to_dict("records"):
        named = {str(name): value for name, value in other.items()}
        if named["validation_score"] > best["validation_score"] and note_of(notes, named) is not None:
            best = {**named, **{name: row[name] for name in ("position", "rank", "p_best")}}
    return best


@contextmanager
def undamaged(run: Path) -> Iterator[None]:
    """Say of a record that does not hold together that it is damaged."""
    try:
        yield
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ValueError(f"{run} is damaged: its records do not fit together ({first_line(error)})") from None
